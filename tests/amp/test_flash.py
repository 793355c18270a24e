"""Flash attention is taken wherever a shipped recipe trains in half precision: by Paddle's own list of conditions.

A model with one block of each such recipe is run forward as training would, and what reaches
scaled_dot_product_attention is held against the conditions. That a GPU's kernel then runs nobody has seen.
"""

import json

import paddle
import paddle.nn.functional as F
import pytest

import plsc
from plsc import build
from plsc.config.recipes import shipped_recipes
from plsc.engine.distributed import World
from plsc.engine.precision import Precision
from tests.accelerator.build import DEVICE

sdpa = pytest.importorskip("paddle.nn.functional.sdpa", reason="this Paddle has no list of conditions")

EXPLICIT = {"ViT_6B_patch14_224_coyo300m"}  # PLSC's model has heads of 145 numbers, no multiple of 8
# how arguments of a model begin that attention does not see
ELSEWHERE = (
    "class",
    "depth",
    "drop",
    "head_",
    "img",
    "init",
    "mlp",
    "patch",
    "pool",
    "pos_",
    "representation",
    "weight",
)


def half_precision_recipes() -> dict[str, list[str]]:
    """What attention depends on, as text → the recipes that have it."""
    alike: dict[str, list[str]] = {}
    for name in shipped_recipes():
        config = plsc.load_config(name, {"Model.class_num": 10})
        if config.FP16 is None or config.FP16.level == "O0" or name in EXPLICIT:
            continue
        arguments = {key: value for key, value in config.Model.arguments.items() if not key.startswith(ELSEWHERE)}
        key = [config.Model.name, arguments, config.FP16.level, config.FP16.dtype]
        alike.setdefault(json.dumps(key, default=str, sort_keys=True), []).append(name)
    return alike


RECIPES = {names[0]: names for names in half_precision_recipes().values()}


def calls(name: str, monkeypatch) -> list:
    """What scaled_dot_product_attention is given by a shallow copy of a recipe's model in one forward in training."""
    config = plsc.load_config(name, {"Model.class_num": 10, "Global.device": DEVICE})
    if "depth" in config.Model.arguments:
        config = config.replace({"Model.depth": 1})
    seen, real = [], F.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, training=True, **more):
        seen.append((query, key, value, attn_mask, dropout_p, is_causal, more))
        return real(query, key, value, attn_mask, dropout_p, is_causal, training, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    precision = Precision.of(config, World(DEVICE))
    network = build.model(config)
    network, _ = precision.decorate(network)
    network.train()
    size = plsc.models.spec.pair(network.spec.img_size)
    with paddle.no_grad():
        precision.forward(network)(paddle.zeros([1, network.spec.in_chans, *size]))
    return seen


@pytest.mark.parametrize("name", RECIPES)
def test_attention_meets_the_conditions_of_flash(name, monkeypatch):
    half = (paddle.float16, paddle.bfloat16)  # what a GPU with flash attention has
    monkeypatch.setattr(sdpa, "_config", {"flash_attn": {"support_dtypes": half}})
    seen = calls(name, monkeypatch)
    assert seen, f"{RECIPES[name]}: attention takes the explicit path"
    for query, key, value, mask, dropout, causal, more in seen:
        assert mask is None and not causal and 0.0 <= dropout < 1.0 and not more
        params = sdpa.SDPParams(
            *(query.shape, key.shape, value.shape, None, dropout, causal, None, query.stop_gradient),
            dtype=(query.dtype, key.dtype, value.dtype),
            place=(query.place, key.place, value.place),
        )
        for condition in (
            sdpa.check_all_tensors_on_device,
            sdpa.check_head_dim_size_flash,
            sdpa.check_flash_causal_non_square_seqlens,
            sdpa.check_dtypes_low_precision_fa,
            sdpa.check_scale_is_None,
        ):
            assert condition(params), f"{RECIPES[name]}: {condition.__name__}"


@pytest.mark.parametrize("name", sorted(EXPLICIT))
def test_what_is_left_out_cannot_take_it(name):
    spec = plsc.models.spec_of(plsc.load_config(name).Model.name)
    assert spec.embed_dim // spec.num_heads % 8


@pytest.mark.parametrize("changed", [{"embed_dim": 60, "num_heads": 5}, {"rel_pos_bias": True}])
def test_a_model_that_cannot_take_it_is_noticed(changed, monkeypatch):
    """A head dimension that is not a multiple of 8; a bias by position."""
    load = plsc.load_config

    def other(name, overrides):
        return load(name, {**overrides, **{f"Model.{key}": value for key, value in changed.items()}})

    monkeypatch.setattr(plsc, "load_config", other)
    assert not calls("ViT_base_patch16_224_in1k_1n8c_dp_fp16o2", monkeypatch)
