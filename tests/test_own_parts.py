"""Other people's parts: from a file outside the package through every command, and what never runs code."""

import json
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits

from tests.helpers import CHECKOUT, metrics, plsc, summed_anew, tiny_digits, write_config

EXAMPLE = CHECKOUT / "examples" / "own_parts"
QUICK = ["-o", "Global.epochs=2", "-o", "Global.cpu_threads=1", "-o", "Global.output_dir=run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the stranger's parts and recipe, trained for two epochs into run/."""
    folder = tmp_path_factory.mktemp("stranger")
    for name in ("parts.py", "recipe.yaml"):
        shutil.copy(EXAMPLE / name, folder)
    plsc("train", "-c", "recipe.yaml", *QUICK, cwd=folder)
    return folder


def test_training_uses_every_part(trained):
    last = metrics(trained / "run", "eval")[-1]
    assert last["step"] == 46 and last["samples"] == 360
    assert last["top1"] > 0.7 and 0.0 <= last["recall_1"] <= 1.0
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    assert config["Global"]["imports"] == [str(trained / "parts.py")]


def test_resume_is_bit_equal(trained, tmp_path):
    """Stopped after the first epoch and continued from the run's own configuration, from another folder."""
    plsc("train", "-c", trained / "recipe.yaml", *QUICK, "-o", "Global.max_train_step=23", cwd=tmp_path)
    plsc("train", "-c", "run/config.yaml", "-o", "Global.resume=auto", "-o", "Global.max_train_step=46", cwd=tmp_path)
    for name in ("model", "optimizer"):
        file = f"run/checkpoints/step-00000046/{name}.safetensors"
        assert _arrays(tmp_path / file) == _arrays(trained / file)


def _arrays(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="np") as opened:
        return {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118 - no mapping


@pytest.mark.parametrize("way", [["--import", "parts.py"], ["-c", "recipe.yaml"]])
def test_evaluation_agrees_with_training(trained, way):
    done = plsc("eval", "--weights", "run", *way, "-o", "Global.device=cpu", cwd=trained)
    top1 = metrics(trained / "run", "eval")[-1]["top1"]
    assert f"{100 * top1:.2f} %" in done.stdout and "recall_1" in done.stdout


def test_predict_export_and_convert(trained, tmp_path):
    picture = tmp_path / "seven.png"
    Image.fromarray((load_digits().images[7] * 255 / 16).astype("uint8")).save(picture)
    ways = ["--import", "parts.py"]
    first = _prediction(plsc("predict", picture, "--weights", "run", *ways, "--format", "jsonl", cwd=trained))
    assert {entry["name"] for entry in first} == {"even", "odd"}
    for form in ("paddle", "onnx"):
        output = tmp_path / form
        plsc("export", "--weights", "run", *ways, "--format", form, "--output", output, cwd=trained)
        # an export needs no stranger's code
        other = _prediction(plsc("predict", picture, "--weights", output, "--format", "jsonl", cwd=tmp_path))
        assert [entry["class"] for entry in other] == [entry["class"] for entry in first]
        np.testing.assert_allclose(
            [entry["probability"] for entry in other], [entry["probability"] for entry in first], atol=2e-4
        )
    converted = tmp_path / "alone.safetensors"
    plsc("convert", "run", *ways, "--to", "safetensors", "--output", converted, cwd=trained)
    again = _prediction(plsc("predict", picture, "--weights", converted, *ways, "--format", "jsonl", cwd=trained))
    assert again == first
    done = plsc("convert", "run", *ways, "--to", "timm", "--output", tmp_path / "x", cwd=trained, check=False)
    assert done.returncode == 2 and "SmallConvNet" in done.stderr and "Traceback" not in done.stderr


def _prediction(done) -> list[dict]:
    return json.loads(done.stdout.splitlines()[-1])["predictions"]


def test_what_a_model_lacks_is_reported(trained):
    """Pictures of attention, layer decay and recomputation by block ask for optional abilities."""
    done = plsc("visualize", "attention", "x.png", "--weights", "run", "--import", "parts.py", cwd=trained, check=False)
    assert done.returncode == 2 and "attention_maps" in done.stderr and "Traceback" not in done.stderr
    done = plsc(
        "train", "-c", "recipe.yaml", *QUICK, "-o", "Global.output_dir=other", "-o", "Optimizer.layer_decay=0.7",
        cwd=trained, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "layer_id" in done.stderr and "Optimizer.layer_decay" in done.stderr


def test_compiling_and_recomputing_take_the_whole_model(trained, tmp_path):
    arrays = []
    for extra in ([], ["-o", "Global.to_static=True"], ["-o", "DistributedStrategy.recompute.layerlist_interval=1"]):
        folder = tmp_path / str(len(arrays))
        short = ["-o", "Global.max_train_step=5", "-o", f"Global.output_dir={folder}", "-o", "Global.cpu_threads=1"]
        plsc("train", "-c", trained / "recipe.yaml", *short, *extra, cwd=tmp_path)
        with safe_open(folder / "checkpoints/step-00000005/model.safetensors", framework="np") as opened:
            arrays.append(opened.get_tensor("body.0.weight"))
    np.testing.assert_allclose(arrays[1], arrays[0], atol=1e-6)
    np.testing.assert_allclose(arrays[2], arrays[0], atol=1e-6)


# -- what is not imported ----------------------------------------------------------------------


def test_a_configuration_in_a_checkpoint_never_runs_code(trained, tmp_path):
    """Eval, predict, export, convert and visualize read a run whose config.yaml imports a file that leaves a mark."""
    hostile = tmp_path / "hostile"
    shutil.copytree(trained / "run", hostile)
    mark = tmp_path / "code_was_run"
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(mark)!r}, 'w').close()\n")
    for path in [hostile / "config.yaml", *hostile.glob("checkpoints/*/config.yaml")]:
        tree = yaml.safe_load(path.read_text())
        tree["Global"]["imports"] = [str(evil)]
        path.write_text(yaml.safe_dump(tree))
        if path.parent != hostile:
            summed_anew(path.parent)
    picture = tmp_path / "x.png"
    Image.fromarray(np.zeros([8, 8], "uint8")).save(picture)
    commands = [
        ["eval", "--weights", hostile],
        ["predict", picture, "--weights", hostile],
        ["export", "--weights", hostile, "--output", "out"],
        ["convert", hostile, "--to", "safetensors", "--output", "out.safetensors"],
        ["visualize", "filters", "--weights", hostile],
        ["benchmark", hostile, "--seconds", "0.01", "--batch-sizes", "1"],
    ]
    for arguments in commands:
        for ways in ([], ["--import", trained / "parts.py"]):
            done = plsc(*arguments, *ways, cwd=tmp_path, check=False)
            assert not mark.exists(), f"{arguments} ran code of a checkpoint"
            if not ways and arguments[0] == "convert":  # which needs the arrays' names alone
                assert done.returncode == 0, done.stderr
            elif not ways:
                assert done.returncode == 2 and "--import" in done.stderr, done.stderr
                assert "Traceback" not in done.stderr
    plsc("eval", "--weights", hostile, "--import", trained / "parts.py", cwd=tmp_path)
    # naming the file is consent
    plsc("eval", "-c", hostile / "config.yaml", "--import", trained / "parts.py", cwd=tmp_path, check=False)
    assert mark.exists()


# -- schedule and optimizer, and parts that only training needs -----------------------------------

TRAINING_PARTS = """
    import paddle
    import plsc


    @plsc.register_scheduler(supplied=("total_steps", "steps_per_epoch"))
    def Triangle(learning_rate: float, *, total_steps: int, steps_per_epoch: int):
        '''Up to the middle of the run, and down again.'''
        return lambda step: learning_rate * (1 - abs(2 * step / total_steps - 1))


    @plsc.register_optimizer(supplied=("groups", "multi_precision"))
    def SignSGD(*, groups, multi_precision: bool = False):
        '''The sign of the gradient (Bernstein et al., 2018).'''
        return _SignSGD(parameters=[{"params": g.parameters, "learning_rate": g.lr_scale} for g in groups])


    class _SignSGD(paddle.optimizer.SGD):
        def __init__(self, parameters):
            super().__init__(learning_rate=0.0, parameters=parameters)

        def step(self):
            for group in self._param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.set_value(paddle.sign(parameter.grad))
            super().step()


    @plsc.register_transform()
    class Counted:
        '''Leaves pictures as they are, and a mark of each.'''

        def __call__(self, image, rng):
            with open("marks", "a") as file:
                file.write(".")
            return image


    @plsc.register_sampler()
    class Turning:
        '''The first `part` samples, each epoch from another one on.'''

        def __init__(self, batch_size: int, part: int, *, size, rank, world):
            self.batch_size, self.global_batch = batch_size, batch_size * world
            self.steps_per_epoch, self._part, self._rank = part // self.global_batch, min(part, size), rank

        def identity(self):
            return {"turning": self._part}

        def batches(self, step):
            while True:
                epoch, k = divmod(step, self.steps_per_epoch)
                start = epoch + k * self.global_batch + self._rank * self.batch_size
                yield [plsc.Draw(epoch, i % self._part) for i in range(start, start + self.batch_size)]
                step += 1
"""


def test_parts_that_only_training_needs(tmp_path):
    """Schedule, optimizer, transform and sampler: a run follows them and continues; other commands do without."""
    (tmp_path / "training_parts.py").write_text(textwrap.dedent(TRAINING_PARTS))
    tree = tiny_digits()
    tree["Global"].update(imports=["./training_parts.py"], output_dir="run")
    tree["Global"]["epochs"] = 2
    tree["LRScheduler"] = {"name": "Triangle", "learning_rate": 0.01}
    tree["Optimizer"] = {"name": "SignSGD"}
    tree["DataLoader"]["Train"]["sampler"] = {"name": "Turning", "batch_size": 32, "part": 320}
    tree["DataLoader"]["Train"]["dataset"]["transform_ops"].insert(0, {"Counted": None})
    write_config(tmp_path / "recipe.yaml", tree)
    plsc("train", "-c", "recipe.yaml", cwd=tmp_path)
    rates = [record["lr"] for record in metrics(tmp_path / "run")]
    np.testing.assert_allclose(rates, [0.01 * (1 - abs(2 * step / 20 - 1)) for step in range(10)])
    assert len((tmp_path / "marks").read_text()) >= 320
    plsc("train", "-c", "recipe.yaml", "-o", "Global.resume=auto", "-o", "Global.max_train_step=12", cwd=tmp_path)
    assert [(r["step"], r["epoch"]) for r in metrics(tmp_path / "run")][9:] == [(10, 1), (11, 2), (12, 2)]
    (tmp_path / "training_parts.py").unlink()
    done = plsc("eval", "--weights", "run", cwd=tmp_path)
    assert "top1" in done.stdout
    Image.fromarray((load_digits().images[7] * 255 / 16).astype("uint8")).save(tmp_path / "seven.png")
    assert "seven.png" in plsc("predict", "seven.png", "--weights", "run", cwd=tmp_path).stdout
    plsc("export", "--weights", "run", "--output", "out", cwd=tmp_path)
    done = plsc("train", "-c", "run/config.yaml", "-o", "Global.resume=auto", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "training_parts.py" in done.stderr and "Traceback" not in done.stderr


def test_errors_in_an_imported_file_are_one_message(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for text, expected in (
        ("import no_such_module\n", r"parts\.py:1: .*no_such_module"),
        ("x = 1\n1 / 0\n", r"parts\.py:2: .*division by zero"),
        ("def broken(:\n", r"parts\.py:1: "),
    ):
        (tmp_path / "parts.py").write_text(text)
        tree = tiny_digits()
        tree["Global"]["imports"] = ["./parts.py"]
        write_config(recipe, tree)
        done = plsc("config", "-c", recipe, cwd=tmp_path, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert re.search(expected, done.stderr.replace("\n", " ")), done.stderr
    tree["Global"]["imports"] = ["./absent.py"]
    write_config(recipe, tree)
    done = plsc("config", "-c", recipe, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "absent.py" in done.stderr and "recipe.yaml" in done.stderr


def test_an_installed_package_registers_its_parts(tmp_path):
    """By an entry point in the group plsc.components, with nothing in the recipe."""
    (tmp_path / "their_package.py").write_text(textwrap.dedent(TRAINING_PARTS))
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[plsc.components]\nparts = their_package\n")
    path = f"{tmp_path}:{CHECKOUT}"
    done = plsc("list", "schedulers", cwd=tmp_path, env={"PYTHONPATH": path})
    assert "Triangle" in done.stdout
    (tmp_path / "their_package.py").write_text("1 / 0\n")
    done = plsc("list", "schedulers", cwd=tmp_path, env={"PYTHONPATH": path}, check=False)
    assert done.returncode == 2 and "their-package" in done.stderr and "division by zero" in done.stderr
