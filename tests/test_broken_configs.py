"""Broken configurations: exit code 2, one message that names the key, no traceback.

Most run inside this process through plsc.cli.main, which stops before the first update. What that
changes in the process, the handlers of the logger and of signals, is put back after each case.
"""

import json
import re
from dataclasses import dataclass, field

import pytest
import yaml

from plsc.cli import main
from tests.helpers import plsc, tiny_digits, write_config

pytestmark = pytest.mark.usefixtures("process_state")


@dataclass
class Broken:
    """What is changed in tiny_digits, and what the message must say.

    Attributes:
        change: dotted key → value; a key that ends in `!` is renamed to the value.
        says: parts of the message.
        near: the name it must suggest.
        files: written beside the configuration, name → text.
    """

    name: str
    change: dict
    texts: list
    near: str | None = None
    overrides: list = field(default_factory=list)
    files: dict = field(default_factory=dict)

    def tree(self) -> dict:
        tree = json.loads(json.dumps(tiny_digits()))  # no part is shared with another
        tree["Global"]["max_train_step"] = 1  # of a run that is wrongly accepted
        for key, value in self.change.items():
            parts = [int(part) if part.isdigit() else part for part in key.rstrip("!").split(".")]
            at = tree
            for part in parts[:-1]:
                if isinstance(at, dict) and at.get(part) is None:
                    at[part] = {}
                at = at[part]
            if key.endswith("!"):
                at[value] = at.pop(parts[-1])
            else:
                at[parts[-1]] = value
        return tree


TRAIN = "DataLoader.Train"
OPS = f"{TRAIN}.dataset.transform_ops"
PICTURES = [{"DecodeImage": None}, {"NormalizeImage": None}, {"ToCHWImage": None}]


def listed(**keys) -> dict:
    return {f"{TRAIN}.dataset": {"name": "ImageNetDataset", "transform_ops": PICTURES, **keys}}


TYPOS = [
    Broken("section", {"Optimizer!": "Optimiser"}, ["Optimiser: unknown section"], near="Optimizer"),
    Broken("Global", {"Global.epochs!": "epocs"}, ["Global.epocs"], near="epochs"),
    Broken("Model", {"Model.embed_dim!": "embd_dim"}, ["Model.embd_dim"], near="embed_dim"),
    Broken("Model-name", {"Model.name": "ViT_base_patch16_225"}, ["Model.name"], near="ViT_base_patch16_224"),
    Broken("Loss", {"Loss.Train.0": {"CELoss": {"epsilonn": 0.1}}}, ["Loss.Train.0.CELoss.epsilonn"], near="epsilon"),
    Broken("Loss-name", {"Loss.Train.0": {"CELos": {}}}, ["Loss.Train.0.CELos"], near="CELoss"),
    Broken("Loss-bare-name", {"Loss.Train.0": "CELos"}, ["Loss.Train.0"], near="CELoss"),
    Broken("Loss-mode", {"Loss.Train!": "Trian"}, ["Loss.Trian"], near="Train"),
    Broken(
        "LRScheduler", {"LRScheduler.warmup_steps!": "warmup_step"}, ["LRScheduler.warmup_step:"], near="warmup_steps"
    ),
    Broken("LRScheduler-name", {"LRScheduler.name": "Cosin"}, ["LRScheduler.name"], near="Cosine"),
    Broken("Optimizer", {"Optimizer.weight_decay!": "weigth_decay"}, ["Optimizer.weigth_decay"], near="weight_decay"),
    Broken("Optimizer-option", {"Optimizer.grad_clip!": "grad_clp"}, ["Optimizer.grad_clp"], near="grad_clip"),
    Broken("Optimizer-name", {"Optimizer.name": "AdanW"}, ["Optimizer.name"], near="AdamW"),
    Broken(
        "no_weight_decay",
        {"Optimizer.no_weight_decay": ["bias", "nrm"]},
        ["Optimizer.no_weight_decay", "bias, norm, token, position, 1d", "'nrm'"],
    ),
    Broken(
        "grad_clip", {"Optimizer.grad_clip.clip_norm!": "clipnorm"}, ["Optimizer.grad_clip.clipnorm"], near="clip_norm"
    ),
    Broken(
        "grad_clip-name",
        {"Optimizer.grad_clip.name": "ClipGradByNorm"},
        ["Optimizer.grad_clip.name", "ClipGradByGlobalNorm"],
    ),
    Broken("DataLoader", {"DataLoader.Eval!": "Evl"}, ["DataLoader.Evl"], near="Eval"),
    Broken("Train", {f"{TRAIN}.sampler!": "samplr"}, [f"{TRAIN}.samplr"], near="sampler"),
    Broken("dataset", {f"{TRAIN}.dataset.split!": "splitt"}, [f"{TRAIN}.dataset.splitt"], near="split"),
    Broken(
        "dataset-name", {f"{TRAIN}.dataset.name": "ImagenetDataset"}, [f"{TRAIN}.dataset.name"], near="ImageNetDataset"
    ),
    Broken("sampler", {f"{TRAIN}.sampler.drop_last!": "droplast"}, [f"{TRAIN}.sampler.droplast"], near="drop_last"),
    Broken(
        "sampler-name",
        {f"{TRAIN}.sampler.name": "RepeatAugSampler"},
        [f"{TRAIN}.sampler.name"],
        near="RepeatedAugSampler",
    ),
    Broken(
        "loader", {f"{TRAIN}.loader.num_workers!": "num_worker"}, [f"{TRAIN}.loader.num_worker:"], near="num_workers"
    ),
    Broken("transform-name", {f"{OPS}.0": {"RandShft": {}}}, [f"{OPS}.0.RandShft"], near="RandShift"),
    Broken("transform-bare-name", {f"{OPS}.2": "ToCHWImge"}, [f"{OPS}.2"], near="ToCHWImage"),
    Broken("transform-argument", {f"{OPS}.0.RandShift": {"pixel": 1}}, [f"{OPS}.0.RandShift.pixel:"], near="pixels"),
    Broken("Metric", {"Metric.Eval.0": {"TopkAcc": {"top_k": [1]}}}, ["Metric.Eval.0.TopkAcc.top_k"], near="topk"),
    Broken("Metric-name", {"Metric.Eval.0": {"TopKAcc": {}}}, ["Metric.Eval.0.TopKAcc"], near="TopkAcc"),
    Broken("FP16", {"FP16": {"dtyp": "bfloat16"}}, ["FP16.dtyp"], near="dtype"),
    Broken("FP16-value", {"FP16": {"level": "01"}}, ["FP16.level", "O0, O1, O2"]),
    Broken(
        "GradScaler",
        {"FP16": {"GradScaler": {"init_loss_scale": 1}}},
        ["FP16.GradScaler.init_loss_scale:"],
        near="init_loss_scaling",
    ),
    Broken("EMA", {"EMA": {"decy": 0.9}}, ["EMA.decy"], near="decay"),
    Broken(
        "DistributedStrategy",
        {"DistributedStrategy": {"data_paralel": True}},
        ["DistributedStrategy.data_paralel"],
        near="data_parallel",
    ),
    Broken(
        "recompute",
        {"DistributedStrategy": {"recompute": {"layerlist_intervall": 2}}},
        ["DistributedStrategy.recompute.layerlist_intervall"],
        near="layerlist_interval",
    ),
    Broken("Export", {"Export": {"exporttype": "onnx"}}, ["Export.exporttype"], near="export_type"),
]

VALUES = [
    Broken("text-for-number", {"Optimizer.weight_decay": "much"}, ["Optimizer.weight_decay", "a number", "'much'"]),
    Broken("fraction-for-count", {"Model.depth": 2.5}, ["Model.depth", "a whole number", "2.5"]),
    Broken("number-for-section", {"Global": 3}, ["Global", "keys and values"]),
    Broken("mapping-for-list", {"Metric.Train": {"TopkAcc": {}}}, ["Metric.Train", "expected a list"]),
    Broken("number-outside-float", {}, ["Optimizer.weight_decay"], overrides=["Optimizer.weight_decay=10**400"]),
    Broken("seed-above-64-bits", {"Global.seed": 10**30}, ["Global.seed"]),
    Broken("learning-rate-infinite", {"LRScheduler.learning_rate": float("inf")}, ["LRScheduler", "learning_rate"]),
    Broken("learning-rate-negative", {"LRScheduler.learning_rate": -1}, ["LRScheduler", "learning_rate"]),
    Broken("train-batch-of-0", {f"{TRAIN}.sampler.batch_size": 0}, [f"{TRAIN}.sampler", "batch_size"]),
    Broken(
        "eval-batch-of-0",
        {"DataLoader.Eval.sampler.batch_size": 0, "Global.eval_during_train": True},
        ["DataLoader.Eval.sampler", "batch_size"],
    ),
    Broken(
        "eval-batch-negative",
        {"DataLoader.Eval.sampler.batch_size": -4, "Global.eval_during_train": True},
        ["DataLoader.Eval.sampler", "batch_size"],
    ),
    Broken("no-means", {f"{OPS}.1.NormalizeImage": {"mean": [], "std": []}}, [OPS, "NormalizeImage"]),
    Broken("flag-of-wrong-type", {"Global.flags": {"FLAGS_new_executor_sequential_run": "abc"}}, ["Global.flags"]),
    Broken("mlp_ratio-negative", {"Model.mlp_ratio": -1}, ["Model", "mlp_ratio"]),
    Broken("embed_dim-by-num_heads", {"Model.num_heads": 3}, ["run.yaml", "Model: embed_dim 16", "num_heads 3"]),
    Broken("patch-larger-than-image", {"Model.patch_size": 16}, ["Model: img_size", "patch_size"]),
    Broken("accum_steps", {"Global.accum_steps": 3}, [f"{TRAIN}.sampler.batch_size", "Global.accum_steps"]),
    Broken(
        "accum_steps-of-global-batch",
        {"Global.accum_steps": 2, "Global.global_batch_size": 33, f"{TRAIN}.sampler.batch_size": None},
        ["Global.accum_steps", "33"],
    ),
    Broken("two-batch-sizes", {"Global.global_batch_size": 48}, ["Global.global_batch_size", "48", "32"]),
    Broken("two-warm-ups", {"LRScheduler.warmup_epochs": 1}, ["warmup_steps", "warmup_epochs"]),
    Broken("device-gpu", {"Global.device": "gpu"}, ["Global.device", "'gpu'", "paddlepaddle-gpu"]),
    Broken("device-abc", {"Global.device": "abc"}, ["Global.device", "'abc'", "paddle-custom-abc"]),
    Broken("freeze-nothing", {"Optimizer.freeze": ["block.*"]}, ["Optimizer.freeze", "'block.*'"]),
    Broken(
        "recompute-no-layer", {"DistributedStrategy": {"recompute": {"names": ["nope"]}}}, ["recompute.names", "'nope'"]
    ),
    Broken("profiler", {"Global.profiler_options": "batch_rnge=[1,2]"}, ["profiler", "batch_rnge"], near="batch_range"),
    Broken("override-form", {}, ["-o Global.seed", "Section.key=value"], overrides=["Global.seed"]),
    Broken("override-index", {}, ["-o Loss.Train.4=x", "index"], overrides=["Loss.Train.4=x"]),
    Broken("override-typo", {}, ["-o Global.sede=3: Global.sede"], overrides=["Global.sede=3"], near="seed"),
    *(
        Broken(f"missing-{key}", {key: None}, [f"{key}: the section is missing"])
        for key in ("Model", "Loss", "LRScheduler", "Optimizer", "DataLoader")
    ),
    *(Broken(f"empty-{key}", {key: {}}, [key]) for key in ("Model", "LRScheduler", "Optimizer", "DataLoader")),
    Broken("no-train", {TRAIN: None}, [TRAIN]),
    Broken(
        "not-offered",
        {"Global.use_dali": True, "Model.name": "swin_tiny_patch4_window7_224"},
        ["use_dali", "swin_tiny", "2 problems"],
    ),
]

NORMALIZE = f"{OPS}.1.NormalizeImage"
NAN, INFINITY = float("nan"), float("inf")
ABSURD = [  # each value is of the right type
    Broken("mean-nan", {NORMALIZE: {"mean": [NAN], "std": [0.5]}}, ["run.yaml:", f"{NORMALIZE}.mean", "finite"]),
    Broken(
        "std-infinite", {NORMALIZE: {"mean": [0.5], "std": [INFINITY]}}, ["run.yaml:", f"{NORMALIZE}.std", "finite"]
    ),
    Broken("std-of-0", {NORMALIZE: {"mean": [0.5], "std": [0.0]}}, ["run.yaml:", f"{NORMALIZE}.std", "greater than 0"]),
    Broken("scale-nan", {f"{NORMALIZE}.scale": NAN}, ["run.yaml:", f"{NORMALIZE}.scale", "finite"]),
    Broken("scale-by-override", {}, [f"-o {NORMALIZE}.scale=.inf: "], overrides=[f"{NORMALIZE}.scale=.inf"]),
    Broken("qk_scale-nan", {"Model.qk_scale": NAN}, ["run.yaml:", "Model.qk_scale", "finite"]),
    Broken("flag-nan", {"Global.flags": {"FLAGS_x": NAN}}, ["run.yaml:", "Global.flags"]),
    Broken(
        "loss-of-weight-0", {"Loss.Train.0": {"CELoss": {"weight": 0}}}, ["run.yaml:", "Loss.Train.0.CELoss.weight"]
    ),
    Broken(
        "losses-of-weight-0",
        {"Loss.Train": [{"CELoss": {"weight": 0}}, {"ViTCELoss": {"weight": 0.0}}]},
        ["run.yaml:", "Loss.Train.0.CELoss.weight", "nothing is learnt"],
    ),
    Broken(
        "topk", {"Metric.Eval.0": {"TopkAcc": {"topk": [1, 11]}}}, ["run.yaml:", "TopkAcc.topk", "11 is more", "10"]
    ),
    Broken("topk-number", {"Metric.Train.0": {"TopkAcc": {"topk": 11}}}, ["run.yaml:", "TopkAcc.topk", "11 is more"]),
    Broken(
        "shift", {f"{OPS}.0": {"RandShift": {"pixels": 8}}}, ["run.yaml:", f"{OPS}.0.RandShift", "8x8", "shift of 8"]
    ),
    Broken("huge-shift", {f"{OPS}.0": {"RandShift": {"pixels": 10**6}}}, ["run.yaml:", f"{OPS}.0.RandShift.pixels"]),
    Broken("crop", {f"{OPS}.0": {"CenterCropImage": {"size": 9}}}, ["run.yaml:", f"{OPS}.0.CenterCropImage", "8x8"]),
    Broken("crop-drawn", {f"{OPS}.0": {"RandomCrop": {"size": 9}}}, ["run.yaml:", f"{OPS}.0.RandomCrop", "8x8", "9x9"]),
    Broken("padding", {f"{OPS}.0": {"RandomCrop": {"size": 8, "padding": 10**6}}}, ["run.yaml:", "RandomCrop.padding"]),
    Broken("picture-size", {f"{OPS}.0": {"ResizeImage": {"size": 10**6}}}, ["run.yaml:", f"{OPS}.0.ResizeImage.size"]),
    Broken("workers", {f"{TRAIN}.loader.num_workers": 10**5}, ["run.yaml:", f"{TRAIN}.loader.num_workers", "1024"]),
    Broken("prefetch", {f"{TRAIN}.loader": {"num_workers": 1, "prefetch_batches": 10**9}}, ["prefetch_batches", "GiB"]),
    Broken("batch", {f"{TRAIN}.sampler.batch_size": 10**11}, ["run.yaml:", f"{TRAIN}.sampler.batch_size", "GiB"]),
    Broken(
        "batch-by-override", {}, [f"-o {TRAIN}.sampler.batch_size"], overrides=[f"{TRAIN}.sampler.batch_size=10**11"]
    ),
    Broken("batch-in-the-model", {f"{TRAIN}.sampler.batch_size": 10**8}, [f"{TRAIN}.sampler.batch_size", "GiB"]),
    Broken(
        "model",
        {"Model.embed_dim": 32768, "Model.depth": 4000},
        ["run.yaml:", "Model.name", "parameters", "weights", "states of AdamW", "GiB at most on cpu"],
    ),
    Broken("threads", {"Global.cpu_threads": 10**9}, ["run.yaml:", "Global.cpu_threads"]),
]

FILES = [
    Broken("no-list-file", listed(image_root=".", cls_label_path="gone.txt"), ["gone.txt", "cls_label_path"]),
    Broken(
        "empty-list-file",
        listed(image_root=".", cls_label_path="list.txt"),
        ["list.txt", "empty"],
        files={"list.txt": ""},
    ),
    Broken(
        "damaged-list-file",
        listed(image_root=".", cls_label_path="list.txt"),
        ["list.txt, line 1", "'a.jpg'"],
        files={"list.txt": "a.jpg\n"},
    ),
    Broken(
        "no-image-root",
        listed(image_root="gone", cls_label_path="list.txt"),
        ["image_root", "gone"],
        files={"list.txt": "a.jpg 0\n"},
    ),
    Broken(
        "no-picture",
        listed(image_root=".", cls_label_path="list.txt"),
        ["a.jpg", "line 1 of ", "list.txt"],
        files={"list.txt": "a.jpg 0\n"},
    ),
    Broken(
        "no-picture-but-a-text",
        listed(image_root=".", cls_label_path="list.txt"),
        ["a.jpg"],
        files={"list.txt": "a.jpg 0\n", "a.jpg": "no picture"},
    ),
    Broken(
        "no-folder",
        {f"{TRAIN}.dataset": {"name": "ImageFolder", "root": "gone", "transform_ops": PICTURES}},
        ["gone", f"{TRAIN}.dataset.root"],
    ),
    Broken("class_num-too-small", {"Model.class_num": 5}, ["Model.class_num", "10 classes", "-o Model.class_num=10"]),
    Broken("img_size", {"Model.img_size": 16}, [OPS, "8x8", "Model.img_size", "16x16"]),
    Broken("in_chans", {"Model.in_chans": 3}, [OPS, "Model.in_chans"]),
    Broken(
        "drop_last",
        {f"{TRAIN}.sampler.drop_last": True, f"{TRAIN}.sampler.batch_size": 2048},
        [f"{TRAIN}.sampler", "drop_last", "2048"],
    ),
    Broken(
        "pretrained_model",
        {"Global.pretrained_model": "gone.safetensors"},
        ["Global.pretrained_model", "gone.safetensors"],
    ),
    Broken("checkpoint", {"Global.checkpoint": "gone"}, ["Global.checkpoint", "gone"]),
    Broken("resume", {"Global.resume": "step-00000009"}, ["Global.resume", "step-00000009"]),
    Broken(
        "output_dir-holds-a-run",
        {"Global.output_dir": "run"},
        ["run already holds a run (step 3)", "Global.resume=auto", "Global.output_dir"],
        files={"run/checkpoints/step-00000003/trainer.json": "{}"},
    ),
    Broken(
        "output_dir-is-a-file", {"Global.output_dir": "taken"}, ["Global.output_dir", "taken"], files={"taken": "text"}
    ),
    Broken(
        "output_dir-below-a-file",
        {"Global.output_dir": "taken/run"},
        ["Global.output_dir", "taken"],
        files={"taken": "text"},
    ),
]

CASES = [*TYPOS, *VALUES, *ABSURD, *FILES]


def prepare(case: Broken, folder) -> list[str]:
    """Write a case's files; returns the arguments of `plsc`."""
    write_config(folder / "run.yaml", case.tree())
    for name, text in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return ["train", "-c", "run.yaml", *(part for o in case.overrides for part in ("-o", o))]


def assert_reported(case: Broken, code: int, out: str, err: str):
    assert "Traceback" not in out + err, err
    assert code == 2, (code, out, err)
    assert len(re.findall(r"(?m)^error: ", err)) == 1, err
    message = err[err.index("error: ") :]
    for part in case.texts:
        assert part in message
    if case.near:
        assert f"did you mean {case.near}" in message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reported_with_exit_code_2(case, tmp_path, capsys):
    code = main(prepare(case, tmp_path))
    assert_reported(case, code, *capsys.readouterr())


def test_duplicate_keys(tmp_path, capsys):
    text = yaml.safe_dump(tiny_digits(), sort_keys=False).replace("  seed: 7\n", "  seed: 7\n  epochs: 2\n", 1)
    (tmp_path / "run.yaml").write_text(text)
    code = main(["train", "-c", "run.yaml"])
    assert_reported(Broken("", {}, ["run.yaml", "Global.epochs", "line 4 and in line 5"]), code, *capsys.readouterr())


def test_a_recipe_that_does_not_exist(capsys):
    code = main(["train", "-c", "digit"])
    assert_reported(
        Broken("", {}, ["digit: neither a file nor a shipped recipe"], near="digits"), code, *capsys.readouterr()
    )


@pytest.mark.parametrize("case", [c for c in TYPOS if c.near], ids=lambda case: case.name)
def test_typos_are_reported_by_plsc_config_too(case, tmp_path, capsys):
    code = main(["config", *prepare(case, tmp_path)[1:]])
    out, err = capsys.readouterr()
    assert_reported(case, code, out, err)
    assert out == ""


def test_the_unbroken_configuration_passes(tmp_path, capsys):
    """What the cases above break is the change they make."""
    assert main(prepare(Broken("", {}, []), tmp_path)) == 0
    assert "error" not in capsys.readouterr().err


def by_name(name: str) -> Broken:
    return next(case for case in CASES if case.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Optimizer", "device-gpu", "no-list-file"])
def test_in_a_process_of_its_own(name, tmp_path):
    case = by_name(name)
    done = plsc(*prepare(case, tmp_path), cwd=tmp_path, check=False, env={})
    assert_reported(case, done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "case",
    [
        by_name("Optimizer"),
        Broken(
            "global-batch-by-processes",
            {"Global.global_batch_size": 33, f"{TRAIN}.sampler.batch_size": None},
            ["Global.global_batch_size", "33", "2 processes"],
        ),
    ],
    ids=lambda case: case.name,
)
def test_under_the_launcher(case, tmp_path):
    """Both processes end with exit code 2, the launcher too, and the message is to be found."""
    done = plsc(*prepare(case, tmp_path), processes=2, cwd=tmp_path, log_dir=tmp_path / "launch_log", check=False)
    logs = "".join(path.read_text(errors="replace") for path in sorted((tmp_path / "launch_log").glob("workerlog.*")))
    everything = done.stdout + done.stderr + logs
    assert done.returncode == 2, everything
    assert "error: " in everything
    for part in case.texts:
        assert part in everything
    assert "/plsc/" not in "".join(re.findall(r'File "[^"]*"', everything)), everything
