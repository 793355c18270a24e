"""PLSC's own four ViT recipes, unmodified: they resolve, mean what they say, and train."""

import pytest

from plsc.config import load
from tests.helpers import SHARED, metrics, plsc

FOLDER = SHARED / "compat" / "plsc_vit"
BASE, BASE_FT = "ViT_base_patch16_224_in1k_1n8c_dp_fp16o2", "ViT_base_patch16_384_ft_in1k_1n8c_dp_fp16o2"
LARGE, LARGE_FT = "ViT_large_patch16_224_in21k_4n32c_dp_fp16o2", "ViT_large_patch16_384_in1k_ft_4n32c_dp_fp16o2"

pytestmark = pytest.mark.shared


@pytest.mark.parametrize("name", [BASE, BASE_FT, LARGE, LARGE_FT])
def test_the_shipped_recipe_is_plscs(name):
    """Paths apart, our file of that name resolves to the same run as PLSC's."""
    theirs, ours = load(str(FOLDER / f"{name}.yaml")).to_dict(), load(name).to_dict()
    for tree in (theirs, ours):
        del tree["Global"]["output_dir"], tree["Global"]["pretrained_model"]
        tree["DataLoader"]["Train"]["dataset"].pop("class_num")  # some files repeat Model.class_num there
    assert theirs == ours


def test_every_key_has_its_evident_meaning():
    """Spot checks of what PLSC's engine drops or reads otherwise."""
    config = load(str(FOLDER / f"{LARGE}.yaml"))
    assert config.Optimizer.arguments["epsilon"] == 1e-6
    assert config.Optimizer.arguments["betas"] == (0.9, 0.999)
    assert any("epsilon" in note and "PLSC itself drops" in note for note in config.notes)
    assert any("exp_avg_force_fp32" in note for note in config.notes)
    base = load(str(FOLDER / f"{BASE}.yaml"))
    assert base.FP16.master_weight is False
    assert base.FP16.GradScaler.init_loss_scaling == 65536.0
    assert base.Loss["Train"][0].arguments["epsilon"] == 1e-4
    assert base.LRScheduler.arguments["learning_rate"] == 3e-3
    assert base.DataLoader["Train"].transforms[3].arguments["scale"] == pytest.approx(1 / 255)
    assert base.Export.input_shape == (None, 3, 224, 224)


def overrides(tree, batch: int, steps: int, train_list="train_list.txt", **paths):
    """Paths, batch and steps, and the device this machine has."""
    values = {
        "Global.device": "cpu",
        "Global.max_train_step": steps,
        "Global.print_batch_step": 1,
        "DataLoader.Train.sampler.batch_size": batch,
        "DataLoader.Eval.sampler.batch_size": 4,
        **{f"DataLoader.{mode}.dataset.image_root": tree for mode in ("Train", "Eval")},
        "DataLoader.Train.dataset.cls_label_path": tree / train_list,
        "DataLoader.Eval.dataset.cls_label_path": tree / "val_list.txt",
        **paths,
    }
    return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory, picture_tree):
    """The picture tree with a validation list of four pictures, since these models are large."""
    lines = (picture_tree / "val_list.txt").read_text().splitlines()
    root = tmp_path_factory.mktemp("lists")
    for name in ("train", "val"):
        (root / name).symlink_to(picture_tree / name)
    (root / "train_list.txt").write_text((picture_tree / "train_list.txt").read_text())
    (root / "multi_list.txt").write_text((picture_tree / "multi_list.txt").read_text())
    (root / "val_list.txt").write_text("\n".join(lines[::5]) + "\n")
    return root


@pytest.mark.long
@pytest.mark.distributed
def test_plscs_base_recipe_trains_then_fine_tunes(small_tree, tmp_path):
    """Two processes, two updates each: pre-training at 224 px, then fine-tuning at 384 px from it."""
    first, second = tmp_path / "first", tmp_path / "second"
    paths = {"Global.output_dir": first}
    recipe = ["-c", FOLDER / f"{BASE}.yaml"]
    plsc("train", *recipe, *overrides(small_tree, 2, 2, **paths), processes=2, cwd=tmp_path, timeout=400)
    losses = [record["loss"] for record in metrics(first)]
    # 1000 sigmoids after a bias of -10, one right class: about 10 + 1000 log(1 + exp(-10)), and the smoothing
    assert len(losses) == 2 and 9 < losses[0] < 14
    recipe = ["-c", FOLDER / f"{BASE_FT}.yaml"]
    paths = {"Global.output_dir": second, "Global.pretrained_model": first}
    done = plsc("train", *recipe, *overrides(small_tree, 2, 2, **paths), cwd=tmp_path, timeout=400)
    assert "pos_embed" in done.stdout and "bicubic (14, 14) → (24, 24)" in done.stdout
    assert metrics(second)[0]["loss"] == pytest.approx(6.9078, abs=1e-3)  # log 1000: a head of zeros


@pytest.mark.long
@pytest.mark.parametrize("name", [LARGE, LARGE_FT])
def test_plscs_large_recipes_train(small_tree, tmp_path, name):
    """One process, two updates of one picture: several labels of 21,841 classes, and 384 px."""
    run = tmp_path / "run"
    listing = "multi_list.txt" if name == LARGE else "train_list.txt"
    paths = {"Global.output_dir": run}
    if name == LARGE_FT:
        paths["Global.pretrained_model"] = ""
    plsc(
        "train",
        "-c",
        FOLDER / f"{name}.yaml",
        *overrides(small_tree, 1, 2, listing, **paths),
        cwd=tmp_path,
        timeout=500,
    )
    assert len(metrics(run)) == 2
