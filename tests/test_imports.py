"""Components from outside the package: Global.imports, imports=, and installed packages' entry points."""

import functools
import importlib
import importlib.metadata
import sys
import textwrap

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from plsc import build, components, registry
from plsc.bounds import BelowOne, NonNegativeFloat, PositiveFloat
from plsc.config import load
from plsc.engine.evaluation import evaluate
from plsc.errors import ConfigError
from plsc.optim import paddle_groups
from plsc.registry import LOSSES
from plsc.training import train
from tests.helpers import metrics, tiny_digits, write_config

LOSS = """
    from plsc.registry import LOSSES


    @LOSSES.register()
    class {name}:
        activation = None

        def __init__(self, weight: float = 1.0, power: float = 2.0):
            self.weight, self.power = weight, power

        def __call__(self, outputs, targets):
            return (outputs - targets.to_dense(outputs.shape[-1])).pow(self.power).mean(axis=-1)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory of its own; registrations and modules of the test are undone."""
    monkeypatch.chdir(tmp_path)
    components.register_all()
    entries, aliases, modules = dict(LOSSES._entries), dict(LOSSES._aliases), set(sys.modules)
    yield tmp_path
    LOSSES._entries, LOSSES._aliases = entries, aliases
    for name in set(sys.modules) - modules:
        if name.startswith("plsc_import_") or name in ("own_losses", "broken"):
            del sys.modules[name]


def write(path, text: str, **names) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).format(**names) if names else textwrap.dedent(text))


def recipe(loss: str, imports=()) -> dict:
    tree = tiny_digits()
    tree["Loss"] = {"Train": [{loss: {"power": 3.0}}]}
    if imports:
        tree["Global"]["imports"] = list(imports)
    return tree


def test_a_file_beside_the_recipe_registers_components(here):
    """Relative to the recipe, wherever the command is given; the resolved run names it by its absolute path."""
    write(here / "recipes" / "losses.py", LOSS, name="PowerLoss")
    config = load(write_config(here / "recipes" / "run.yaml", recipe("PowerLoss", ["./losses.py"])))
    assert config.Loss["Train"][0].arguments == {"weight": 1.0, "power": 3.0}
    path = str(here / "recipes" / "losses.py")
    assert config.to_dict()["Global"]["imports"] == [path]
    assert load(config.to_dict()).to_dict() == config.to_dict()


def test_a_file_is_run_once_a_process_and_path(here):
    write(here / "losses.py", LOSS + "\n    open('runs', 'a').write('x')\n", name="PowerLoss")
    for _ in range(2):
        load(recipe("PowerLoss"), imports=["losses.py"])
    load(recipe("PowerLoss", ["./losses.py", str(here / "losses.py")]))
    assert (here / "runs").read_text() == "x"


def test_a_file_that_the_program_has_imported_itself_is_not_run_again(here, monkeypatch):
    """As where a script defines a loss, trains, and its recipe names the script for the commands."""
    write(here / "own_losses.py", LOSS + "\n    open('runs', 'a').write('x')\n", name="PowerLoss")
    monkeypatch.syspath_prepend(here)
    importlib.import_module("own_losses")
    config = load(recipe("PowerLoss", ["./own_losses.py"]))
    assert config.Global.imports == (str(here / "own_losses.py"),) and (here / "runs").read_text() == "x"


def test_a_module_and_an_import_of_the_command_line(here, monkeypatch):
    write(here / "modules" / "own_losses.py", LOSS, name="PowerLoss")
    monkeypatch.syspath_prepend(here / "modules")
    config = load(recipe("PowerLoss"), imports=["own_losses"])
    assert config.Global.imports == ("own_losses",)
    assert load(recipe("PowerLoss"), ["Global.imports=[own_losses]"]).Global.imports == ("own_losses",)


def test_an_override_names_a_file_from_the_working_directory(here):
    write(here / "losses.py", LOSS, name="PowerLoss")
    path = write_config(here / "run.yaml", recipe("PowerLoss"))
    (here / "elsewhere").mkdir()
    path = path.rename(here / "elsewhere" / "run.yaml")
    assert load(path, ["Global.imports=[losses.py]"]).Global.imports == (str(here / "losses.py"),)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./gone.py", "there is no such file"),
        ("no_such_module", "ModuleNotFoundError"),
        ("no_such_module", "PYTHONPATH"),
        ("./raises.py", "raises.py:3: ValueError: not today"),
        ("./syntax.py", "syntax.py:2: "),
        ("./twice.py", "CELoss"),
        ("./swallows.py", "swallows.py:5: "),
    ],
)
def test_what_cannot_be_imported_is_one_message_with_its_place(here, name, expected):
    write(here / "raises.py", "x = 1\n\nraise ValueError('not today')\n")
    write(here / "syntax.py", "x = 1\ndef f(:\n")
    write(here / "twice.py", LOSS, name="CELoss")
    write(
        here / "swallows.py",
        "from plsc.registry import LOSSES\n\ndef loss(**kwargs):\n    pass\nLOSSES.register('Loose')(loss)\n",
    )
    path = write_config(here / "run.yaml", recipe("CELoss", [name]))
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert expected in message and "\n" not in message
    assert message.startswith("run.yaml:") and "Global.imports.0: " in message


def test_a_file_that_failed_can_be_mended_and_imported_again(here):
    """As in a notebook: what it had registered before the error is not an obstacle."""
    write(here / "losses.py", LOSS + "\n    raise ValueError('not yet')\n", name="PowerLoss")
    with pytest.raises(ConfigError, match="not yet"):
        load(recipe("PowerLoss"), imports=["losses.py"])
    write(here / "losses.py", LOSS, name="PowerLoss")
    assert load(recipe("PowerLoss"), imports=["losses.py"]).Loss["Train"][0].name == "PowerLoss"


# -- configurations that nobody named -----------------------------------------------------


def test_a_configuration_that_was_found_runs_no_code(here):
    write(here / "losses.py", LOSS + "\n    open('executed', 'w').close()\n", name="PowerLoss")
    path = write_config(here / "run.yaml", recipe("PowerLoss", ["./losses.py"]))
    with pytest.raises(ConfigError) as caught:
        load(path, run_imports=False)
    message = str(caught.value)
    assert "PowerLoss" in message and "--import ./losses.py" in message and "-c" in message
    assert not (here / "executed").exists()
    with pytest.raises(ConfigError):  # an override of another key allows nothing
        load(path, ["Global.seed=3"], run_imports=False)
    assert not (here / "executed").exists()
    assert load(path, imports=["./losses.py"], run_imports=False).Loss["Train"][0].name == "PowerLoss"
    assert (here / "executed").exists()


@pytest.mark.parametrize("section", [[1], "text", {"imports": "./losses.py"}, {"imports": [3]}, {"imports": {"a": 1}}])
def test_imports_of_another_form_are_a_problem_like_any_other(here, section):
    write(here / "losses.py", LOSS, name="PowerLoss")
    with pytest.raises(ConfigError, match="in the given dict: Global"):
        load({**recipe("PowerLoss"), "Global": section}, imports=["losses.py"])


def test_an_override_of_one_import_allows_that_one_alone(here):
    write(here / "bad.py", "open('executed', 'w').close()\n")
    write(here / "losses.py", LOSS, name="PowerLoss")
    path = write_config(here / "run.yaml", recipe("PowerLoss", ["./gone.py", "./bad.py"]))
    config = load(path, ["Global.imports.0=./losses.py"], run_imports=False)
    assert config.Loss["Train"][0].name == "PowerLoss" and not (here / "executed").exists()


def test_a_base_of_a_found_configuration_runs_no_code_either(here):
    write(here / "bad.py", "open('executed', 'w').close()\n")
    write_config(here / "base.yaml", recipe("CELoss", ["./bad.py"]))
    tree = recipe("CELoss")
    tree["Loss"] = {"Train": [{"CELoss": {}}]}
    path = write_config(here / "run.yaml", {"_base_": "base.yaml", **tree})
    load(path, run_imports=False)
    assert not (here / "executed").exists()


# -- installed packages -------------------------------------------------------------------


class Distribution(importlib.metadata.Distribution):
    """A package that is installed as far as its entry points go."""

    def __init__(self, name: str, points: str):
        self._files = {"METADATA": f"Name: {name}\nVersion: 1\n", "entry_points.txt": points}

    def read_text(self, filename):
        return self._files.get(filename)

    def locate_file(self, path):
        return path


def install(monkeypatch, name: str, point: str):
    package = Distribution(name, f"[plsc.components]\nall = {point}\n")
    monkeypatch.setattr(components, "entry_points", lambda group: [p for p in package.entry_points if p.group == group])
    monkeypatch.setattr(components, "_register_installed", functools.cache(components._register_installed.__wrapped__))


@pytest.mark.parametrize("function", [False, True], ids=["module", "function"])
def test_an_installed_package_registers_components_once(here, monkeypatch, function):
    indented = textwrap.indent(textwrap.dedent(LOSS), "    ")
    text = f"def register():\n    open('runs', 'a').write('x')\n{indented}" if function else LOSS
    write(here / "modules" / "own_losses.py", text, name="PowerLoss")
    monkeypatch.syspath_prepend(here / "modules")
    install(monkeypatch, "losses-of-powers", "own_losses:register" if function else "own_losses")
    for _ in range(2):
        assert load(recipe("PowerLoss")).Global.imports == ()
    assert not function or (here / "runs").read_text() == "x"


def test_a_broken_package_is_named(here, monkeypatch):
    write(here / "modules" / "broken.py", "import plsc\n\n1 / 0\n")
    monkeypatch.syspath_prepend(here / "modules")
    install(monkeypatch, "broken-package", "broken")
    with pytest.raises(ConfigError) as caught:
        load(tiny_digits())
    assert "broken-package" in str(caught.value) and "broken.py:3: ZeroDivisionError" in str(caught.value)


# -- parts that only training needs -------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "value", "absent"),
    [
        (("Optimizer",), {"name": "NoSuchOptimizer", "rate": 3}, lambda c: c.Optimizer is None),
        (("LRScheduler",), {"name": "NoSuchSchedule"}, lambda c: c.LRScheduler is None),
        (("Task",), {"name": "NoSuchTask", "share": 0.5}, lambda c: c.Task.name == "Classification"),
        (("Loss",), {"Train": [{"NoSuchLoss": {}}, {"CELoss": {}}]}, lambda c: not c.Loss["Train"]),
        (
            ("Metric", "Train"),
            [{"NoSuchMetric": {}}, {"TopkAcc": {}}],
            lambda c: [m.name for m in c.Metric["Train"]] == ["TopkAcc"],
        ),
        (("DataLoader", "Train", "dataset", "name"), "NoSuchData", lambda c: "Train" not in c.DataLoader),
        (
            ("DataLoader", "Train", "dataset", "transform_ops"),
            [{"RandomApply": {"transforms": [{"NoSuchTransform": {}}]}}],
            lambda c: "Train" not in c.DataLoader,
        ),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_what_only_training_needs_may_be_unknown_elsewhere(here, section, value, absent):
    tree = tiny_digits()
    at = tree
    for key in section[:-1]:
        at = at[key]
    at[section[-1]] = value
    with pytest.raises(ConfigError, match="NoSuch"):
        load(tree)
    config = load(tree, for_training=False)
    assert absent(config) and config.Model.name == "VisionTransformer" and config.DataLoader["Eval"]
    [note] = [note for note in config.notes if "NoSuch" in note]
    assert "only training needs it" in note and ".".join(section[:2]) in note


@pytest.mark.parametrize("section", ["Loss", "LRScheduler", "Optimizer"])
def test_what_only_training_needs_may_be_missing_elsewhere(section):
    tree = tiny_digits()
    del tree[section]
    with pytest.raises(ConfigError, match=section):
        load(tree)
    assert load(tree, for_training=False).Model.name == "VisionTransformer"


@pytest.mark.parametrize(("key", "name"), [("Model", "Model.name"), ("Eval", "DataLoader.Eval.dataset.name")])
def test_what_evaluation_needs_stays_an_error(key, name):
    tree = tiny_digits()
    (tree["Model"] if key == "Model" else tree["DataLoader"]["Eval"]["dataset"])["name"] = "NoSuch"
    with pytest.raises(ConfigError, match=f"{name}: .*NoSuch"):
        load(tree, for_training=False)


def test_a_typing_error_stays_an_error_also_where_only_training_needs_the_key():
    tree = tiny_digits()
    tree["Optimizer"]["weigth_decay"] = 0.1
    with pytest.raises(ConfigError, match="did you mean weight_decay"):
        load(tree, for_training=False)


# -- schedules, optimizers and metrics of others ------------------------------------------


@pytest.fixture
def own(monkeypatch):
    """Registries that forget what a test registers."""
    for name in ("OPTIMIZERS", "SCHEDULERS", "METRICS"):
        monkeypatch.setattr(getattr(registry, name), "_entries", dict(getattr(registry, name)._entries))


def test_a_schedule_and_an_optimizer_of_others_train_and_continue(own, here):
    """Neither says more than it uses: no warm-up, no multi_precision; a run that stops and continues ends the same."""

    @registry.SCHEDULERS.register()
    def Halving(learning_rate: PositiveFloat, *, total_steps: int):
        return lambda step: learning_rate * 0.5 ** (10 * step / total_steps)

    @registry.OPTIMIZERS.register()
    def RMSProp(rho: BelowOne = 0.95, weight_decay: NonNegativeFloat = 0.0, *, groups):
        return paddle.optimizer.RMSProp(0.0, rho, momentum=0.9, parameters=paddle_groups(groups, weight_decay))

    tree = tiny_digits()
    tree["Global"]["epochs"] = 1
    tree["LRScheduler"] = {"name": "Halving", "learning_rate": 0.002}
    tree["Optimizer"] = {"name": "RMSProp", "rho": 0.9, "weight_decay": 0.01, "no_weight_decay": ["bias"]}
    train(load(tree, {"Global.output_dir": "whole", "Global.max_train_step": 6}))
    rates = [record["lr"] for record in metrics("whole")]
    assert rates == pytest.approx([0.002 * 0.5 ** (10 * step / 45) for step in range(6)])
    train(load(tree, {"Global.output_dir": "parts", "Global.max_train_step": 3}))
    train(load(tree, {"Global.output_dir": "parts", "Global.max_train_step": 6, "Global.resume": "auto"}))
    for name in ("model", "optimizer"):
        whole, parts = (here / run / f"checkpoints/step-00000006/{name}.safetensors" for run in ("whole", "parts"))
        arrays, others = load_file(whole), load_file(parts)
        assert arrays.keys() == others.keys() and len(arrays) > 10
        assert all(np.array_equal(arrays[key], others[key]) for key in arrays)
    tree["LRScheduler"]["learning_rate"] = 0.0
    with pytest.raises(ConfigError, match=r"LRScheduler\.learning_rate: got 0\.0"):
        load(tree)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("Optimizer", r"Optimizer\.name: Wrong makes dict, not a paddle\.optimizer\.Optimizer"),
        ("LRScheduler", r"LRScheduler: Wrong lacks __call__, which a schedule needs"),
        ("Metric", r"Metric\.Eval\.0\.Wrong: Wrong lacks names, reset, reduce, compute"),
    ],
)
def test_what_is_none_is_refused_with_what_it_lacks(own, section, expected):
    kinds = {"Optimizer": registry.OPTIMIZERS, "LRScheduler": registry.SCHEDULERS, "Metric": registry.METRICS}

    @kinds[section].register()
    def Wrong():
        return {}

    tree = tiny_digits()
    tree[section] = {"Eval": ["Wrong"]} if section == "Metric" else {"name": "Wrong"}
    config = load(tree)
    with pytest.raises(ConfigError, match=expected):
        if section == "Metric":
            build.metrics(config, "Eval")
        elif section == "LRScheduler":
            build.schedule(config, 10, 5)
        else:
            build.optimizer(config, build.model(config), multi_precision=False)


def test_an_evaluation_without_its_losses_has_no_loss(here, caplog):
    """The run's loss is gone; its other figures are those of training, and a note says what is left out."""
    write(here / "losses.py", LOSS, name="PowerLoss")
    tree = recipe("PowerLoss")
    tree["Global"].update(output_dir="run", max_train_step=2, eval_during_train=True)
    result = train(load(tree, imports=["losses.py"]))
    LOSSES._entries.pop("PowerLoss")
    with caplog.at_level("INFO", logger="plsc"):
        evaluation = evaluate("run")
    assert evaluation["top1"] == result.last["top1"] and "loss" not in evaluation
    [note] = [r.getMessage() for r in caplog.records if "only training needs it" in r.getMessage()]
    assert "Loss.Train.0.PowerLoss" in note
    with pytest.raises(ConfigError, match="--import"):
        load("run/config.yaml", run_imports=False)
