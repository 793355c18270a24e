"""What neither arrays nor their shapes show of a model: config.json, name or card state it, or it is refused."""

import dataclasses
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

import plsc
from plsc import loading
from plsc.cli import main
from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError, ConfigError
from plsc.model_card import ModelCard
from plsc.models.published import ARCHITECTURES
from plsc.models.spec import ViTSpec
from plsc.models.vision_transformer import VisionTransformer
from plsc.weights import Source, formats, read, unsaid, write
from tests.helpers import tiny_digits, write_config
from tests.test_checkpoint_formats import drawn, google_names, huggingface, shapes_of, timm

NAMED = dict(embed_dim=192, depth=12, num_heads=3, img_size=32, class_num=3)
PREPROCESS = Preprocess(
    resize=36, crop=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.4,) * 3, truncate=True, round_corner=True
)


def saved(path, arrays, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path, metadata=metadata)
    return path


def of_spec(spec: ViTSpec, **card) -> Source:
    """The arrays of a new model."""
    arrays = {name: tensor.numpy() for name, tensor in VisionTransformer(spec).state_dict().items()}
    return Source.of_arrays("made", arrays, ModelCard("VisionTransformer", dataclasses.asdict(spec), **card))


@pytest.fixture(scope="module")
def tiny_arrays():
    """DeiT-Ti's arrays at 32 px in timm's names."""
    return {
        name: np.zeros(shape[::-1] if len(shape) == 2 else shape, "float32")
        for name, shape in shapes_of(ViTSpec(**NAMED)).items()
    }


# -- heads --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["timm", "huggingface", "pdparams"])
def test_unknown_heads_are_refused_with_the_remedies(tmp_path, layout, capsys):
    arrays = drawn()
    path = saved(
        tmp_path / "w.safetensors", {"timm": timm, "huggingface": huggingface, "pdparams": dict}[layout](arrays)
    )
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    for attempt in (
        lambda: loading.load_model(path),
        lambda: main(["convert", str(path), "--to", "huggingface", "--output", str(tmp_path / "hf")]),
        lambda: main(["predict", "--weights", str(path), str(tmp_path / "black.png")]),
    ):
        try:
            message = None if attempt() != 2 else capsys.readouterr().err
        except CheckpointError as error:
            message = str(error)
        assert message is not None, "it was accepted"
        assert all(word in message for word in ("num_heads", "-c", "config.json", "--num-heads N", "folder"))
    assert not (tmp_path / "hf").exists()
    output = str(tmp_path / "stated.safetensors")
    assert main(["convert", str(path), "--to", "safetensors", "--output", output, "--num-heads", "2"]) == 0
    assert loading.load_model(output).network.spec.num_heads == 2


@pytest.mark.parametrize(
    "place",
    [
        "deit_tiny_patch16_224.safetensors",
        "deit_tiny_patch16_224-a1311bcf.pth",
        "deit_tiny_patch16_224.fb_in1k/model.safetensors",
        "models--timm--deit_tiny_patch16_224.fb_in1k/snapshots/0a1b/model.safetensors",
        "ViT_tiny_patch16_224.pdparams",
    ],
)
def test_the_name_of_a_published_architecture_tells(tmp_path, tiny_arrays, place):
    card = read(saved(tmp_path / place, tiny_arrays)).card
    assert not card.assumed and card.spec["num_heads"] == 3
    assert card.architecture in place and "num_heads" not in card.stated


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224_mine", "vit_small_patch16_224", "a_deit_tiny_patch16_224"])
def test_other_names_do_not_tell(tmp_path, tiny_arrays, name):
    """Of an architecture of another width, or with something before or after the name."""
    source = read(saved(tmp_path / f"{name}.safetensors", tiny_arrays))
    assert "num_heads" in source.card.assumed
    reason = (
        "the arrays are not those of vit_small_patch16_224" if name in ARCHITECTURES else "neither the file nor its"
    )
    with pytest.raises(CheckpointError, match=reason):
        source.check_known()


def test_gap_has_sixteen_heads_and_rpn_is_what_it_is(tmp_path):
    shapes = shapes_of(ViTSpec(embed_dim=768, depth=12, class_token=False, pool="avg", img_size=16, class_num=2))
    arrays = {n: np.zeros(s[::-1] if len(s) == 2 else s, "float16") for n, s in shapes.items()}
    assert read(saved(tmp_path / "vit_base_patch16_gap_224.safetensors", arrays)).card.spec["num_heads"] == 16
    path = saved(tmp_path / "vit_base_patch16_rpn_224.rw_in1k" / "model.safetensors", arrays)
    if "block" in ViTSpec.__dataclass_fields__:
        assert read(path).card.spec["block"] == "post"
    else:
        with pytest.raises(CheckpointError, match=r"vit_base_patch16_rpn_224, which .* lacks block 'post'"):
            read(path)


def test_a_recipe_that_contradicts_the_name_is_warned_of(tmp_path, tiny_arrays, caplog):
    path = saved(tmp_path / "deit_tiny_patch16_224.safetensors", tiny_arrays)
    network = loading.create_model("VisionTransformer", **{**NAMED, "num_heads": 6})
    with caplog.at_level(logging.WARNING, "plsc"):
        loading.load_pretrained(network, path, strict=True)
    assert "weights called deit_tiny_patch16_224 have num_heads 3, the model has 6" in caplog.text


def test_a_recipe_states_the_model_that_is_converted(tmp_path, capsys):
    path = saved(tmp_path / "w.safetensors", timm(drawn()))
    tree = tiny_digits()
    model = dict(img_size=32, patch_size=8, in_chans=3, class_num=16, embed_dim=16, depth=2, num_heads=8)
    tree["Model"] = {"name": "VisionTransformer", **model, "mlp_ratio": 2.0, "act": "gelu_tanh"}
    recipe, output = write_config(tmp_path / "recipe.yaml", tree), tmp_path / "out.pdparams"
    assert main(["convert", str(path), "-c", str(recipe), "--to", "pdparams", "--output", str(output)]) == 0
    assert "heads 8" in capsys.readouterr().out
    card = read(output).card
    assert (card.spec["num_heads"], card.spec["act"], card.assumed) == (8, "gelu_tanh", frozenset())
    assert card.preprocess is not None and card.activation == "softmax"


# -- config.json --------------------------------------------------------------------------

TIMM_CONFIG = {
    "architecture": "deit_tiny_patch16_224",
    "num_classes": 3,
    "global_pool": "token",
    "model_args": {"img_size": 32, "act_layer": "gelu_tanh"},
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.4, 0.4],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "label_names": ["cat", "dog", "owl"],
    },
}


def test_timms_config_tells_model_pictures_and_classes(tmp_path, tiny_arrays):
    path = saved(tmp_path / "model.safetensors", tiny_arrays)
    (tmp_path / "config.json").write_text(json.dumps(TIMM_CONFIG))
    card = read(path).card
    assert not card.assumed - {"qk_scale"} and card.architecture == "deit_tiny_patch16_224"
    stated = {"num_heads": 3, "act": "gelu_tanh", "epsilon": 1e-6, "pool": "token", "img_size": [32, 32]}
    assert {**stated, "img_size": 32}.items() <= card.stated.items()
    assert card.class_names == ["cat", "dog", "owl"]
    assert card.preprocess == Preprocess(
        resize=36, crop=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.4, 0.4), truncate=True, round_corner=True
    )


def test_a_config_of_another_file_is_not_taken(tmp_path, tiny_arrays):
    (tmp_path / "config.json").write_text(json.dumps(TIMM_CONFIG))
    mine = saved(tmp_path / "mine.safetensors", tiny_arrays)
    assert read(mine).card.spec["act"] == "gelu_tanh", "the only file"
    saved(tmp_path / "yours.safetensors", tiny_arrays)
    assert {"num_heads", "act"} <= read(mine).card.assumed


def test_a_config_of_what_plsc_lacks_is_refused(tmp_path, tiny_arrays):
    path = saved(tmp_path / "model.safetensors", tiny_arrays)
    config = {**TIMM_CONFIG, "model_args": {"act_layer": "relu"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: act_layer is 'relu', which the model does not have"):
        read(path)


# -- GELU ---------------------------------------------------------------------------------


def test_googles_files_have_the_tanh_form(tmp_path):
    np.savez(tmp_path / "w.npz", **google_names(drawn(), 2))
    card = read(tmp_path / "w.npz").card
    assert (card.spec["act"], card.spec["epsilon"], card.assumed) == ("gelu_tanh", 1e-6, frozenset())


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("vit_base_patch32_siglip_256", "gelu_tanh"),
        ("vit_base_patch16_siglip_224", "gelu"),
        ("vit_so400m_patch16_siglip_384", "gelu_tanh"),
        ("vit_so400m_patch14_siglip_384", "gelu"),
        ("vit_so400m_patch16_siglip_gap_256", "gelu_tanh"),
        ("vit_giantopt_patch16_siglip_256", "gelu_tanh"),
    ],
)
def test_siglips_gelu_by_name(name, act):
    assert ARCHITECTURES[name]["act"] == act and ARCHITECTURES[name]["num_heads"] in (12, 16)


def test_assumptions_are_listed(tmp_path, caplog):
    path = saved(tmp_path / "w.safetensors", timm(drawn()))
    main(
        ["convert", str(path), "--to", "safetensors", "--num-heads", "2", "--output", str(tmp_path / "out.safetensors")]
    )
    with caplog.at_level(logging.WARNING, "plsc"):
        loading.load_model(tmp_path / "out.safetensors")
    listed = "act gelu, block pre, epsilon 1e-06, img_size 32 (pictures taken as square), pool token, qk_scale None"
    assert f"neither the file nor its name states it: {listed}" in caplog.text


def bare(folder, name="w.safetensors", **fields) -> Path:
    """Weights in timm's names, without card and config.json."""
    spec = ViTSpec(**{**dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1, class_num=2), **fields})
    written = write(of_spec(spec), "timm", folder / "written.safetensors")[0]
    return saved(folder / name, load_file(written))


def test_arrays_of_two_models_are_an_assumption(tmp_path):
    """Meta's DeiT III has the arrays of timm's rope_ape; a name or config.json decides."""
    arrays = load_file(bare(tmp_path, layer_scale=0.1, no_embed_class=True))
    metas = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): array for name, array in arrays.items()}
    card = read(saved(tmp_path / "metas.safetensors", metas)).card
    assert card.spec["rope"] is None and "rope" in card.assumed and "rope None" in card.assumptions
    (tmp_path / "folder").mkdir()
    path = saved(tmp_path / "folder" / "model.safetensors", metas)
    config = {"architecture": "vit_small_patch16_rope_ape_224", "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    card = read(path).card
    assert card.spec["rope"] == "axial" and "rope" not in card.assumed
    assert "rope" not in read(saved(tmp_path / "timms.safetensors", arrays)).card.assumed, "timm's DeiT III says ls1"


def test_pooling_of_dinov3_is_an_assumption(tmp_path):
    """timm takes the mean of patches, others the class token. No array is of one image size, either."""
    path = bare(tmp_path, rope="centred", pos_embed="none", reg_tokens=4, layer_scale=1e-5, k_bias=False, pool="avg")
    card = read(path).card
    assert (card.spec["pool"], card.spec["img_size"]) == ("avg", 224) and {"pool", "img_size"} <= card.assumed
    made = plsc.convert_weights(path, "safetensors", tmp_path / "own.safetensors", num_heads=3)
    assert {"pool", "img_size"} <= made.card.assumed & read(tmp_path / "own.safetensors").card.assumed


def test_norms_after_are_an_assumption(tmp_path):
    """timm's rpn has the arrays of a plain ViT; weights whose block is assumed start a model of another one."""
    path = bare(tmp_path, class_token=False, pool="avg", block="post")
    card = read(path).card
    assert card.spec["block"] == "pre" and {"block", "pool"} <= card.assumed
    fields = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1, class_token=False, pool="avg")
    plsc.create_model("VisionTransformer", class_num=2, pretrained=path, block="post", **fields)
    named = bare(tmp_path, "deit_3_small_224_1k.pth", embed_dim=384, num_heads=6, depth=12, patch_size=16)
    assert not read(named).card.assumed - {"qk_scale"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_shared_rel_pos_bias": True}, "model_args has use_shared_rel_pos_bias True, of which it is unknown"),
        ({"attn_layer": "diff"}, "attn_layer 'diff'"),
        ({"drop_path_rate": 0.1, "qk_norm": False, "dynamic_img_size": True}, None),
    ],
)
def test_arguments_of_timms_that_are_not_known_are_refused(tmp_path, tiny_arrays, arguments, message):
    path = saved(tmp_path / "model.safetensors", tiny_arrays)
    (tmp_path / "config.json").write_text(json.dumps({**TIMM_CONFIG, "model_args": {"num_heads": 3, **arguments}}))
    if message is None:
        assert read(path).card.spec["num_heads"] == 3
    else:
        with pytest.raises(CheckpointError, match=message):
            read(path)


def test_arguments_of_rotary_positions(tmp_path):
    path = bare(tmp_path, "one/model.safetensors", rope="axial", rope_reference=4, k_bias=False, mlp="swiglu")
    arguments = {"use_rot_pos_emb": True, "rope_temperature": 50.0, "ref_feat_shape": [8, 8], "num_heads": 3}
    config = {"architecture": "eva02_tiny_patch14_224", "model_args": arguments}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    spec = read(path).card.spec
    assert (spec["rope"], spec["rope_temperature"], spec["rope_reference"]) == ("axial", 50.0, [8, 8])
    config["model_args"] = {"use_rot_pos_emb": False, "num_heads": 3}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    assert read(path).card.spec["rope"] is None


def test_a_pooler_of_another_function_is_refused(tmp_path):
    spec = ViTSpec(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1, class_num=0, representation_size=24)
    file = write(of_spec(spec), "huggingface", tmp_path)[0]
    saved(file, load_file(file))  # without the card
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pooler_act": "relu"}))
    with pytest.raises(CheckpointError, match="pooler_act is 'relu', which the model does not have; it has tanh"):
        read(tmp_path)


def test_average_pooling_is_an_assumption(tmp_path):
    """A norm after the pooling goes with the maximum, too, or with the class token; a name or config.json decides."""
    assert "pool" in read(bare(tmp_path, pool="avg", fc_norm=True)).card.assumed
    spec = dict(embed_dim=192, num_heads=3, depth=12, patch_size=16, pool="avg", fc_norm=True)
    card = read(bare(tmp_path, "deit_tiny_patch16_224.safetensors", **spec)).card
    assert card.spec["pool"] == "avg" and "pool" not in card.assumed


def test_a_square_is_an_assumption(tmp_path):
    """16 patches are those of 32 x 32 pixels and of 16 x 64; named files and Google's are of squares."""
    card = read(bare(tmp_path, img_size=(16, 64))).card
    assert card.spec["img_size"] == 32 and "img_size" in card.assumed
    np.savez(tmp_path / "google.npz", **google_names(drawn(), 2))
    assert "img_size" not in read(tmp_path / "google.npz").card.assumed
    spec = dict(embed_dim=192, num_heads=3, depth=12, patch_size=16)
    assert "img_size" not in read(bare(tmp_path, "deit_tiny_patch16_224.safetensors", **spec)).card.assumed


def test_clip_as_timm_has_its_config(tmp_path):
    """timm's architectures of CLIP alone have epsilon 1e-5."""
    spec = dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1, class_num=2)
    source = of_spec(ViTSpec(**spec, norm_pre=True, patch_bias=False, epsilon=1e-5, act="quick_gelu"))
    written = write(source, "timm", f"{tmp_path}/mine/")
    config = json.loads(written[1].read_text())
    assert config["architecture"] == "vit_base_patch16_clip_224" and config["model_args"]["pre_norm"] is True
    assert unsaid(source.card, "timm", written[0]) == []
    saved(written[0], load_file(written[0]))  # without the card
    card = read(tmp_path / "mine").card
    assert (card.spec["epsilon"], card.spec["act"], card.assumed - {"qk_scale"}) == (1e-5, "quick_gelu", set())


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (dict(class_num=0, representation_size=24), "ViTModel"),
        (
            dict(pool="avg", norm_pre=True, patch_bias=False, final_norm=False, epsilon=1e-5),
            "CLIPForImageClassification",
        ),
    ],
)
def test_more_ways_back_to_transformers(tmp_path, fields, kind):
    """A ViT's pooler, and CLIP's classifier on the mean of its patches."""
    spec = ViTSpec(**{**dict(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1, class_num=2), **fields})
    source = of_spec(spec)
    written = write(source, "huggingface", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [kind]
    if kind == "ViTModel":
        assert (config["pooler_output_size"], config["pooler_act"]) == (24, "tanh")
        assert not any(name.startswith("vit.") for name in load_file(written[0]))
        with pytest.raises(CheckpointError, match="pre-logits before a head; --backbone leaves both out"):
            write(of_spec(dataclasses.replace(spec, class_num=2)), "huggingface", tmp_path / "with_head")
    else:
        assert config["vision_config"]["hidden_size"] == 24 and "hidden_size" not in config
    saved(written[0], load_file(written[0]))  # without the card
    back = read(tmp_path / "hf")
    assert {**back.card.spec, "img_size": 32} == {**back.card.spec}
    for name, array in source.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array, err_msg=name)
    again = ViTSpec(**back.card.spec)
    assert all(getattr(again, name) == getattr(spec, name) for name in ("pool", "final_norm", "representation_size"))


# -- the card travels ---------------------------------------------------------------------

SPECS = st.fixed_dictionaries(
    {
        "img_size": st.sampled_from([16, (16, 32), (64, 16)]),
        "patch_size": st.sampled_from([8, 4]),
        "embed_dim": st.just(24),
        "num_heads": st.sampled_from([1, 2, 3, 8]),
        "depth": st.sampled_from([1, 2]),
        "mlp_ratio": st.sampled_from([2.0, 3.5]),
        "class_num": st.sampled_from([0, 5]),
        "act": st.sampled_from(["gelu", "gelu_tanh"]),
        "epsilon": st.sampled_from([1e-6, 1e-5, 1e-12]),
        "qk_scale": st.sampled_from([None, 0.25]),
        "class_token": st.booleans(),
        "pool": st.sampled_from(["token", "avg", "map"]),
        "fc_norm": st.booleans(),
        "reg_tokens": st.sampled_from([0, 2]),
        "no_embed_class": st.booleans(),
        "layer_scale": st.sampled_from([None, 0.1]),
        "qkv_bias": st.booleans(),
        "drop_path_rate": st.sampled_from([0.0, 0.2]),
    }
)


def _valid(fields):
    try:
        return ViTSpec(**fields)
    except ConfigError:
        return None


@settings(max_examples=60, deadline=None)
@given(SPECS.map(_valid).filter(bool), st.sampled_from(formats()))
def test_there_and_back_without_a_recipe_keeps_the_model(tmp_path_factory, spec, to):
    """Any model in any format: refused by name, or the same spec, preprocessing and class names come back."""
    names = [f"class {i}" for i in range(spec.class_num)] or None
    source = of_spec(spec, preprocess=PREPROCESS, class_names=names, activation="softmax", position="bilinear")
    output = tmp_path_factory.mktemp("there") / "out"
    try:
        write(source, to, output)
    except CheckpointError as error:
        assert "has no place for" in str(error)
        return
    source.card.spec["img_size"] = spec.img_size
    card = read(output).card
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in card.spec.items()}
    assert ViTSpec(**fields) == spec
    assert (card.preprocess, card.class_names, card.activation, card.position) == (
        source.card.preprocess, names, "softmax", "bilinear",
    )  # fmt: skip
    read(output).check_known()


def test_attention_pooling_over_registers_names_timms_argument(tmp_path):
    spec = ViTSpec(img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1, class_num=2, pool="map", reg_tokens=2)
    source = of_spec(spec)
    written = write(source, "timm", tmp_path / "w.safetensors")[0]
    assert "pool_prefix True (timm's pool_include_prefix)" in unsaid(source.card, "timm", written)
    assert read(written).card.spec["pool_prefix"] is True
    assert read(saved(tmp_path / "bare.safetensors", load_file(written))).card.spec["pool_prefix"] is False
    folder = write(source, "timm", f"{tmp_path}/folder/")
    assert json.loads(folder[1].read_text())["model_args"]["pool_include_prefix"] is True


def test_timm_folder_has_its_config(tmp_path):
    spec = ViTSpec(img_size=(32, 48), patch_size=8, embed_dim=24, num_heads=8, depth=2, class_num=3, act="gelu_tanh")
    source = of_spec(spec, preprocess=PREPROCESS, class_names=["a", "b", "c"])
    written = write(source, "timm", f"{tmp_path}/mine/")
    assert [path.name for path in written] == ["model.safetensors", "config.json"]
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["architecture"] == "vit_base_patch16_224" and config["num_classes"] == 3
    wanted = {"img_size": [32, 48], "num_heads": 8, "embed_dim": 24, "act_layer": "gelu_tanh", "global_pool": "token"}
    assert wanted.items() <= config["model_args"].items()
    assert config["pretrained_cfg"]["label_names"] == ["a", "b", "c"]
    bare = load_file(tmp_path / "mine" / "model.safetensors")
    saved(tmp_path / "mine" / "model.safetensors", bare)
    card = read(tmp_path / "mine").card
    assert card.spec["num_heads"] == 8 and tuple(card.spec["img_size"]) == (32, 48) and card.spec["act"] == "gelu_tanh"
    assert card.class_names == ["a", "b", "c"]


def test_what_a_format_does_not_state_is_listed(tmp_path, capsys):
    spec = ViTSpec(img_size=32, patch_size=8, embed_dim=24, num_heads=8, depth=1, class_num=2, epsilon=2e-6)
    source = of_spec(spec, preprocess=PREPROCESS)

    def listed(to, output, card=source.card):
        return unsaid(card, to, write(source.with_card(), to, output)[0])

    assert listed("safetensors", tmp_path / "x") == []
    bare = ["num_heads 8 (timm's num_heads)", "epsilon 2e-06", "preprocessing"]
    assert listed("timm", tmp_path / "x.safetensors") == bare
    assert listed("timm", f"{tmp_path}/folder/") == ["epsilon 2e-06"]
    assert listed("huggingface", tmp_path / "hf") == ["preprocessing"], "transformers rounds otherwise"
    assert listed("google", tmp_path / "x.npz") == ["act gelu", "epsilon 2e-06", "preprocessing"]
    assert listed("pdparams", tmp_path / "x.pdparams")[:2] == ["num_heads 8", "epsilon 2e-06"]
    write(source, "safetensors", tmp_path / "own.safetensors")
    output = str(tmp_path / "out.safetensors")
    assert main(["convert", str(tmp_path / "own.safetensors"), "--to", "timm", "--output", output]) == 0
    assert "not stated by the format itself, only by plsc's entry in the file: num_heads 8" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", [{"spec": {"num_heads": "8"}}, {"spec": {}, "model": "Other"}, {"spec": 3}, []])
def test_a_damaged_card_is_refused(tmp_path, spoil):
    card = {"model": "VisionTransformer", **spoil} if spoil else spoil
    path = saved(tmp_path / "w.safetensors", timm(drawn()), {"format": "pt", "plsc_card": json.dumps(card)})
    with pytest.raises(CheckpointError, match=r"w\.safetensors: .*damaged"):
        read(path)
