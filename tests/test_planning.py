"""plsc plan: operations, memory, length, schedule and warnings, against counts and measurements of their own."""

import json
import subprocess
import sys

import paddle
import pytest

import plsc
from plsc import build
from plsc.cli import main
from plsc.config import load
from plsc.engine.tracking import Meter
from plsc.engine.utilisation import full_speed, known_peak, training_flops
from plsc.models import VisionTransformer, ViTSpec
from plsc.planning import advice
from plsc.planning.memory import footprint
from plsc.planning.text import _size
from tests.helpers import CHECKOUT, clean_environment, tiny_digits, write_config
from tests.test_model_names import operations

GIB = 2**30


def tree(model=(), **settings) -> dict:
    made = tiny_digits()
    made["Model"] |= dict(model)
    made["Global"] |= settings
    return made


def planned(made: dict, overrides=(), **options):
    return plsc.plan(load(made, overrides), **options)


# -- operations and utilisation -------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"depth": 5, "embed_dim": 32},
        {"pool": "map", "class_token": False},
        {"img_size": 32, "resnet_layers": [1, 1]},
    ],
    ids=["small", "deeper", "pooled", "hybrid"],
)
def test_operations_are_those_of_the_network(model):
    made = tree({"patch_size": 1 if "resnet_layers" in model else 4, **model})
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in made["Model"].items() if k != "name"}
    counted = operations(VisionTransformer(ViTSpec(**arguments)))
    plan = planned(made)
    assert plan.flops == pytest.approx(counted, rel=0.01)
    assert plan.update_flops == pytest.approx(3 * 32 * counted, rel=0.01), "backward costs twice forward"
    assert plan.parameters == sum(p.size for p in VisionTransformer(ViTSpec(**arguments)).parameters())


def test_utilisation_is_what_is_needed_over_what_is_there(monkeypatch):
    spec = ViTSpec(embed_dim=192, num_heads=3)
    needed = training_flops(spec)
    assert needed == 3 * 2507366400.0
    assert training_flops(spec, trained=0.0) == needed / 3 and training_flops("another family") is None
    assert full_speed(spec, trained=1.0, tflops=None, devices=1) is None
    meter = Meter(full_speed(spec, trained=1.0, tflops=needed / 1e12, devices=2))  # one image a second on each of 2
    assert "mfu" not in Meter().read()
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("plsc.engine.tracking.time.perf_counter", lambda: next(clock))
    meter._mark = next(clock)
    meter.count(5)
    assert meter.read()["mfu"] == pytest.approx(5 / 10 / 2)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", 165.0),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", None),
        ("Tesla V100-PCIE-32GB", 112.0),
        ("Tesla T4", 65.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("Quadro K600", None),
    ],
)
def test_peaks_of_known_gpus(name, peak):
    assert known_peak(name) == peak


def test_a_run_with_a_known_peak_logs_its_utilisation(tmp_path):
    made = tree(output_dir=str(tmp_path / "run"), device_tflops=0.001)
    plsc.train(load(made))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    cost = planned(made).update_flops / 32
    for record in records:
        assert record["mfu"] == pytest.approx(record["images_per_second"] * cost / 0.001e12)
    assert "MFU " in (tmp_path / "run" / "train.log").read_text()


# -- memory -----------------------------------------------------------------------------------------


def test_a_shallow_copy_gives_the_whole_models_amounts():
    """What is linear in the depth is the same whether it is counted at depth 2 and 3, or on the whole model."""
    model = {"depth": 7, "img_size": 32, "embed_dim": 64, "drop_rate": 0.1, "drop_path_rate": 0.1}
    shallow = footprint(load(tree(model)))
    made = tree(model)
    made["Optimizer"]["freeze"] = ["cls_token"]  # whose pattern needs the whole model
    whole = footprint(load(made))
    assert shallow.parameters == whole.parameters == whole.trained + 64
    assert shallow.activations == pytest.approx(whole.activations, rel=0.02)
    assert shallow.recomputed == pytest.approx(whole.recomputed, rel=0.05)
    assert shallow.optimizer == pytest.approx(whole.optimizer, rel=0.01)


def test_optimizer_states_are_counted_whatever_the_optimizer():
    def bytes_a_parameter(name):
        made = tree({"depth": 4, "embed_dim": 64})
        made["Optimizer"] = {"name": name}
        counted = footprint(load(made))
        return counted.optimizer / counted.parameters

    assert bytes_a_parameter("SGD") == 0
    assert bytes_a_parameter("Momentum") == pytest.approx(4, rel=0.01)
    assert bytes_a_parameter("AdamW") == pytest.approx(8, rel=0.02)


def test_half_precision_recompute_and_averages_on_a_gpu():
    gpu = {"device": "gpu"}
    base = planned(tree({"img_size": 32, "embed_dim": 64}, **gpu)).memory
    made = tree({"img_size": 32, "embed_dim": 64}, **gpu) | {"EMA": {"decay": 0.9}, "FP16": {"level": "O2"}}
    half = planned(made, devices=2).memory
    count = base.weights // 4
    assert (half.weights, half.masters, half.average) == (2 * count, 4 * count, 4 * count)
    assert half.gradients == 4 * count, "master_grad keeps float32 gradients"
    assert half.communication == 2 * count, "which travel as they come"
    assert half.traffic == 2 * count, "of a sum over two devices each receives as much as there is"
    assert half.activations < 0.6 * base.activations and half.process == 0
    made["DistributedStrategy"] = {"recompute": {}}
    less = planned(made).memory
    assert less.activations == less.activations_recomputed < less.activations_kept


def test_half_precision_copies_of_o1_are_not_spread():
    """Each block's stay until its backward, in stage 3, too, unless the block is recomputed."""
    made = tree({"img_size": 32, "embed_dim": 64, "depth": 12}, device="gpu")
    made |= {"FP16": {"level": "O1"}, "DistributedStrategy": {"sharding": {"stage": 3}}}
    plan = planned(made, devices=8)
    count = plan.parameters
    assert plan.stages[0].weights == 6 * count
    assert 2 * count < plan.stages[3].weights < 4 * count
    made["DistributedStrategy"]["recompute"] = {}
    assert planned(made, devices=8).stages[3].weights < 0.7 * plan.stages[3].weights


def test_gradients_of_parameters_are_no_part_of_an_images_workspace():
    """They have the parameters' size, whatever the batch: a large head adds its logits' gradients alone."""
    small, large = (footprint(load(tree({"embed_dim": 64, "class_num": classes}))) for classes in (10, 20_000))
    assert large.workspace - small.workspace < 4 * 4 * 20_000
    assert large.activations - small.activations < 4 * 4 * 20_000


def test_attention_matrices_stay_where_flash_attention_is_not_taken():
    """16 numbers of a head are a multiple of 8, 12 are not (as ViT-6B's 145)."""
    taken, explicit = (footprint(load(tree({"embed_dim": 48, "num_heads": heads}))) for heads in (3, 4))
    assert taken.attention > 0 and explicit.attention == 0
    assert explicit.activations > taken.activations, "four heads have more matrices than three"


def test_sharding_is_counted():
    """What a stage spreads is near a quarter, the rest stays; devices that cannot be divided are refused."""
    made = tree({"img_size": 32, "embed_dim": 64, "depth": 12}, device="gpu")
    made |= {"EMA": {"decay": 0.9}, "FP16": {"level": "O2"}}
    whole = planned(made, devices=8).memory
    spread = {"masters", "optimizer", "average"}
    for stage in (1, 2, 3):
        made["DistributedStrategy"] = {"sharding": {"stage": stage, "degree": 4}}
        plan = planned(made, devices=8)
        for name in ("weights", "gradients", *spread):
            ratio = getattr(plan.memory, name) / getattr(whole, name)
            is_spread = name in spread or (name == "gradients" and stage > 1)
            assert (0.25 <= ratio < 0.3) if is_spread else (0.25 < ratio < 0.6) if stage == 3 else ratio == 1.0
        assert (plan.memory.communication < whole.communication) == (stage > 1)
        assert plan.memory is plan.stages[stage] and plan.stages[0] == whole
        assert any("groups of 4 devices" in note for note in plan.notes)
        assert planned(made, devices=1).memory.optimizer == whole.optimizer
    with pytest.raises(plsc.ConfigError, match=r"sharding\.degree: 4 does not divide"):
        planned(made, devices=6)


def test_a_process_begins_with_all_weights():
    """Of stage 3, too: where that is more than an update needs, it is the peak."""
    made = tree({"img_size": 32, "embed_dim": 64, "depth": 12}, device="gpu")
    made["DistributedStrategy"] = {"sharding": {"stage": 3}, "recompute": {}}
    made["DataLoader"]["Train"]["sampler"]["batch_size"] = 1
    plan = planned(made, devices=8)
    memory = plan.memory
    assert memory.start == 4 * plan.parameters + memory.optimizer, "which a checkpoint restores"
    assert memory.start == memory.peak > memory.weights + memory.optimizer + memory.gradients
    assert f"start          {_size(memory.start)}: every process" in plan.text()
    assert planned(made, devices=8, memory=memory.start).memory.largest >= 1
    assert planned(made, devices=8, memory=memory.start - 1).memory.largest == 0
    made["FP16"] = {"level": "O2", "dtype": "bfloat16"}
    half = planned(made, devices=8).memory
    assert half.start == 4 * plan.parameters > 2 * plan.parameters + half.masters + half.optimizer


def test_a_plan_says_what_it_has_run():
    assert any("models of 2 and 3 blocks were run" in note for note in planned(tree({"depth": 12})).notes)
    assert not any("blocks were run" in note for note in planned(tree()).notes), "which has two blocks"


def test_what_travels_is_what_zero_says():
    """Of N devices: 2 (N - 1) / N of the gradients unsharded and in stage 2, half as much again in stages 1 and 3."""
    made = tree({"img_size": 32, "embed_dim": 64, "depth": 12}, device="gpu")
    made["DistributedStrategy"] = {"sharding": {"stage": 2}}
    plan = planned(made, devices=8)
    once = 4 * plan.parameters * 7 / 8
    traffic = [plan.stages[stage].traffic / once for stage in range(4)]
    assert traffic[:3] == pytest.approx([2.0, 3.0, 2.0], rel=1e-6)
    assert 2.9 < traffic[3] < 3.0, "embeddings and head are not gathered"
    made["Global"]["accum_steps"] = 4
    plan = planned(made, devices=8)
    assert plan.stages[2].traffic / once == pytest.approx(4 + 1, rel=1e-6), "each micro-batch sends its gradients"
    made["DistributedStrategy"]["sharding"]["degree"] = 4
    hybrid = planned(made, devices=8).stages[2].traffic / (4 * plan.parameters)
    assert hybrid == pytest.approx(4 * (3 / 4 + 2 / 4 * 1 / 2) + 3 / 4, rel=1e-6)
    assert planned(made).stages == {} and planned(made).memory.traffic == 0


def test_a_plan_that_does_not_fit_names_the_parts_that_do():
    made = tree({"img_size": 32, "embed_dim": 64}, device="gpu")
    plan = planned(made, memory=8 * 2**20)
    assert plan.memory.fits is False
    [note] = [note for note in plan.notes if "Global.accum_steps=" in note]
    parts = int(note.split("=")[1].split()[0])
    smaller = planned(made, [f"Global.accum_steps={parts}"], memory=8 * 2**20)
    assert smaller.memory.fits and not planned(made, [f"Global.accum_steps={parts // 2}"], memory=8 * 2**20).memory.fits


@pytest.mark.parametrize("kibibytes", [2048, 3328, 5632, 10240])
def test_parts_that_are_named_fit_with_the_gradients_that_they_keep(kibibytes):
    """A micro-batch of that size fits as a whole batch; as a part, sums of gradients stay beside its activations."""
    made, memory = tree({"img_size": 32, "embed_dim": 64}, device="gpu"), kibibytes * 1024
    plan = planned(made, memory=memory)
    assert plan.memory.fits is False and plan.memory.largest
    for note in plan.notes:
        if "Global.accum_steps=" in note:
            parts = int(note.split("=")[1].split()[0])
            assert planned(made, [f"Global.accum_steps={parts}"], memory=memory).memory.fits


def test_sizes_have_three_digits():
    sizes = [999, 999.7 * 2**10, 999.7 * 2**20, 1023 * 2**30, 64 * 2**30]
    assert [_size(size) for size in sizes] == ["999 B", "0.976 MiB", "0.976 GiB", "1,023 GiB", "64 GiB"]


def test_this_machines_memory_is_what_its_container_has(monkeypatch):
    monkeypatch.setattr("plsc.environment.memory_limit", lambda: 6 * GIB)
    assert planned(tree()).memory.available == 6 * GIB
    assert planned(tree(), devices=2).memory.available == 3 * GIB
    monkeypatch.setattr("plsc.environment.memory_limit", lambda: None)
    assert planned(tree()).memory.fits is None


def test_the_largest_micro_batch_is_the_largest_that_fits():
    made = tree({"img_size": 32, "embed_dim": 64}, device="gpu")
    available = 8 * 2**20
    memory = planned(made, memory=available).memory
    assert memory.largest > 0

    def fits(size):
        return planned(made, [f"DataLoader.Train.sampler.batch_size={size}"], memory=available).memory.fits

    assert fits(memory.largest) and not fits(memory.largest + 1)
    tight = planned(made, memory=1000).memory
    assert not tight.fits and tight.largest == 0


MEASURED = {
    "narrow": ({"img_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 8, "num_heads": 3}, 12),
    "wide": ({"img_size": 224, "patch_size": 32, "embed_dim": 768, "depth": 4, "num_heads": 12}, 8),
    "small": ({"img_size": 64, "patch_size": 8, "embed_dim": 384, "depth": 5, "num_heads": 6}, 32),
}
_PLAN = "import sys, plsc; print(plsc.plan(plsc.load_config(sys.argv[1])).memory.peak)"
_TRAIN = """
import re, sys, plsc
plsc.train(plsc.load_config(sys.argv[1]))
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", MEASURED)
def test_memory_is_what_a_process_really_takes(kind, tmp_path):
    model, batch = MEASURED[kind]
    made = tree(model, max_train_step=4, output_dir=str(tmp_path / "run"), cpu_threads=2)
    resize = {"ResizeImage": {"size": [model["img_size"]] * 2}}
    for section in made["DataLoader"].values():
        section["dataset"]["transform_ops"] = [resize, *section["dataset"]["transform_ops"][-2:]]
        section["sampler"]["batch_size"] = batch
    recipe = write_config(tmp_path / "recipe.yaml", made)
    predicted, measured = (_of_a_process(code, recipe) for code in (_PLAN, _TRAIN))
    print(f"{kind}: predicted {predicted / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert predicted == pytest.approx(measured, rel=0.15)


def _of_a_process(code: str, recipe) -> int:
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe)],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


# -- length, time, disk ------------------------------------------------------------------------------


def test_length_hours_and_disk():
    plan = planned(tree(epochs=3, max_train_step=100), tflops=0.01, utilisation=0.5)
    assert (plan.samples, plan.steps_per_epoch, plan.steps, plan.global_batch) == (1437, 45, 100, 32)
    assert plan.epochs == pytest.approx(100 / 45)
    assert plan.hours == pytest.approx(100 * plan.update_flops / (0.01e12 * 0.5) / 3600)
    both = planned(tree(epochs=3, max_train_step=100), tflops=0.01, utilisation=0.5, devices=2)
    assert both.device_hours == pytest.approx(2 * both.hours) and both.global_batch == 64
    assert plan.checkpoint == {"model": 4 * plan.parameters, "optimizer": plan.memory.optimizer}
    assert plan.disk == 2 * sum(plan.checkpoint.values())


def test_the_schedules_first_peak_and_last_rate():
    plan = planned(tree())
    schedule = load(tree()).LRScheduler
    assert (plan.first_rate, plan.peak_rate, plan.peak_step) == (0.0, schedule.arguments["learning_rate"], 2)
    assert 0.0 < plan.last_rate < plan.peak_rate


def test_auto_is_this_machine_unless_another_device_is_described():
    made = tree(device="auto") | {"FP16": {"level": "O2"}}
    here = planned(made)
    assert here.device == "cpu" and here.precision == "float32" and "which is cpu on this machine" in here.notes[0]
    for options in ({"memory": GIB}, {"tflops": 1.0}):
        there = planned(made, **options)
        assert there.device == "gpu" and there.precision == "float16 (O2)" and "planned for a GPU" in there.notes[0]
    assert planned(tree(), memory=GIB).device == "cpu", "which the recipe names"


def test_without_data_the_number_of_samples_is_enough(tmp_path):
    made = tree(max_train_step=None, epochs=2)
    for section in made["DataLoader"].values():
        section["dataset"] = {
            "name": "ImageNetDataset",
            "image_root": str(tmp_path / "nowhere"),
            "cls_label_path": str(tmp_path / "nowhere.txt"),
            "transform_ops": section["dataset"]["transform_ops"],
        }
    unknown = planned(made, tflops=1.0)
    assert unknown.steps is None and unknown.hours is None and "--samples N" in " ".join(unknown.notes)
    assert unknown.memory.peak > 0
    made["Model"]["class_num"] = "auto"
    assert "planned for 1,000 classes" in " ".join(planned(made, samples=320).notes)
    known = planned(made, samples=320, tflops=1.0)
    assert (known.steps, known.steps_per_epoch) == (20, 10) and known.hours > 0


# -- warnings ------------------------------------------------------------------------------------------


def warned(made, overrides=()) -> list[str]:
    config = load(made, overrides)
    return advice.warnings(config, build.model(config).spec, length=build.length_of(config))


def test_a_good_recipe_has_no_warnings():
    assert warned(tree()) == warned("digits") == []


def changed(**sections) -> dict:
    made = tree()
    for name, keys in sections.items():
        made[name] = {**made.get(name, {}), **keys}
    return made


@pytest.mark.parametrize(
    ("made", "overrides", "text"),
    [
        (changed(LRScheduler={"warmup_steps": 10}), [], "never reaches its peak"),
        (changed(LRScheduler={"warmup_steps": 6}), [], "over half of the run"),
        (changed(Optimizer={"weight_decay": 30.0}), [], "off the weights in each update"),
        (changed(Optimizer={"weight_decay": 1e-4}, Global={"max_train_step": 2000, "epochs": 100}), [], "hardly acts"),
        (changed(Model={"head_bias": -10.0}), [], "Model.head_bias is -10"),
        (changed(EMA={"decay": 0.9999}), [], "averages over about 10,000 updates"),
        (tree(), ["DataLoader.Train.sampler.batch_size=64"], "sampler.batch_size is overridden"),
        (
            tree(),
            ["Global.global_batch_size=64", "DataLoader.Train.sampler.batch_size=null"],
            "batch_size is overridden",
        ),
    ],
)
def test_known_mistakes_are_named(made, overrides, text):
    [warning] = warned(made, overrides)
    assert text in warning


def test_a_rate_that_is_overridden_with_the_batch_is_meant():
    overrides = ["DataLoader.Train.sampler.batch_size=64", "LRScheduler.learning_rate=0.004"]
    assert warned(tree(), overrides) == []


# -- the command ---------------------------------------------------------------------------------------


def test_the_command_prints_all_of_it(tmp_path, capsys):
    recipe = write_config(tmp_path / "recipe.yaml", tree(device="gpu"))
    before = paddle.get_device()
    assert (
        main(
            [
                "plan",
                "-c",
                str(recipe),
                "--devices",
                "2",
                "--memory",
                "1GiB",
                "--tflops",
                "2",
                "-o",
                "LRScheduler.warmup_steps=10",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    for text in ("2 x gpu in float32", "yes, in 1 GiB; the largest micro-batch is", "device hours at 40 % of 2 TFLOPS"):
        assert text in printed
    assert (
        "warning: -o LRScheduler.warmup_steps=10: LRScheduler.warmup_steps: is 10, but the run of 10 updates" in printed
    )
    assert "10 updates, 640 images" in printed and "note: sampler.batch_size is of one process" in printed
    assert paddle.get_device() == before


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--memory", "lots"], "'lots' is not a size such as 40GiB"), (["--utilisation", "1.5"], "utilisation is 1.5")],
)
def test_wrong_options(options, text, tmp_path, capsys):
    recipe = write_config(tmp_path / "recipe.yaml", tree())
    try:
        code = main(["plan", "-c", str(recipe), *options])
    except SystemExit as error:
        code = error.code
    assert code == 2 and text in capsys.readouterr().err
