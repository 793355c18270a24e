"""The command line itself: help, version, list, config, and what is not a command."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import plsc as package
from plsc import environment, registry
from plsc.cli import main
from plsc.cli.list import KINDS
from plsc.cli.main import COMMANDS
from plsc.components import register_all
from plsc.config import load
from plsc.config.recipes import HEADER, SHIPPED, header, shipped_recipes
from tests.helpers import CHECKOUT, clean_environment, command, plsc, tiny_digits, write_config


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leaves(*arguments) -> int:
    """The exit code of a command that argparse ends."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code


def squeezed(text: str) -> str:
    return " ".join(text.split())


# -- help and version ---------------------------------------------------------------------


def test_help_names_every_command_and_shows_examples(capsys):
    assert leaves("--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: plsc")
    assert "examples:" in out and "plsc train -c digits" in out
    for name, summary in COMMANDS.items():
        assert name in out and summary in out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_says_what_it_does_and_shows_an_example(name, capsys):
    assert leaves(name, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: plsc {name}")
    first = import_module(f"plsc.cli.{name}").__doc__.split("\n", 1)[0]
    assert first in squeezed(out)
    examples = out.partition("examples:\n")[2]
    assert f"plsc {name} " in examples


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_plsc_accepts(name):
    """Every `plsc …` line of an example parses."""
    from plsc.cli.main import parser

    text = import_module(f"plsc.cli.{name}").EXAMPLES.replace("\\\n", " ")
    # a line is a command, then perhaps an explanation after several spaces or a redirection
    lines = [re.split(r"\s{3,}|>", line.strip())[0] for line in text.splitlines()]
    commands = [line.split()[1:] for line in lines if line.startswith("plsc ")]
    assert commands
    for arguments in commands:
        assert parser().parse_args(arguments).command == arguments[0]


def test_version(capsys):
    assert leaves("--version") == 0
    assert capsys.readouterr().out == f"plsc {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["list", "--help"]], ids=" ".join
)
def test_help_and_version_do_not_import_paddle(arguments):
    program = (
        "import sys\nfrom plsc.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "sys.exit(3 if 'paddle' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


# -- what is not a command -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "'trian' is unknown; did you mean train? The choices are train, eval, predict"),
        (["frobnicate"], "'frobnicate' is unknown; the choices are train, eval, predict"),
        (["data", "chek"], "'chek' is unknown; did you mean check? The choices are prepare, check"),
        (["visualize", "atention", "a.jpg"], "'atention' is unknown; did you mean attention?"),
        (["export", "--format", "onyx"], "'onyx' is unknown; did you mean onnx?"),
        (["train"], "required: -c/--config"),
        (["config"], "required: -c/--config"),
        (["train", "-c"], "expected one argument"),
        (
            ["train", "-c", "digits", "--epochs", "3"],
            "unrecognized arguments: --epochs 3; a key of the recipe is set with -o",
        ),
        (
            ["convert", "x", "--to", "onnx", "--output", "y"],
            "onnx is not a format of weights but of whole models: `plsc",
        ),
        (["convert", "x", "--to", "tim", "--output", "y"], "no format of weights is called 'tim'; did you mean timm?"),
        (["list", "modells"], "'modells' is unknown; did you mean models?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_give_usage_and_exit_code_2(arguments, expected, capsys):
    assert leaves(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: plsc") and expected in err and "Traceback" not in err


@pytest.mark.parametrize("arguments", [[], ["data"], ["visualize"]], ids=" ".join)
def test_a_group_without_a_command_shows_its_help(arguments, capsys):
    assert leaves(*arguments) == 2
    out, err = capsys.readouterr()
    assert leaves(*arguments, "--help") == 0
    assert out == capsys.readouterr().out and out.startswith("usage: plsc") and err == ""


# -- signals ------------------------------------------------------------------------------

SIGNALS = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (143, "terminated\n")}
MOMENTS = {
    "before Paddle": "name == 'paddle'",
    "within Paddle's import": "name == 'paddle.nn'",
    "after Paddle": "name.startswith('plsc.') and 'paddle.nn' in sys.modules",
}


def run_while_importing(when: str, *what: str) -> tuple[int, str]:
    """Exit code and stderr of `plsc list models` that does something each time a module is looked for.

    Args:
        when, what: Python's condition on `name`, the module's, and the statements that it guards.
    """
    statements = "".join(f"            {line}\n" for line in what)
    program = (
        "import os, signal, subprocess, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if {when}:\n{statements}"
        "sys.meta_path.insert(0, Finder())\n"
        "from plsc.cli import main\n"
        "sys.exit(main(['list', 'models', '-v']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_while_modules_are_imported_ends_quietly(number, moment, here):
    """At once or when Paddle is loaded: the exit code, one line, no traceback and no C++ stack."""
    assert run_while_importing(MOMENTS[moment], f"os.kill(os.getpid(), {int(number)})") == SIGNALS[number]


@pytest.mark.slow
def test_a_pause_while_modules_are_imported_is_no_signal(here):
    """Ctrl-Z and fg, a debugger, a virtual machine that stands still: the command goes on."""
    ended = run_while_importing(
        "name in ('paddle.nn', 'paddle.io', 'paddle.vision', 'paddle.static')",
        "subprocess.Popen(['sh', '-c', f'sleep 0.3; kill -CONT {os.getpid()}'])",
        "os.kill(os.getpid(), signal.SIGSTOP)",
    )
    assert ended == (0, "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_and_cleans_up(number, capsys, monkeypatch):
    """Blocks that were entered are left; afterwards the handlers are what they were."""
    before = [signal.getsignal(n) for n in SIGNALS]
    left = []

    def at_work(arguments):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            left.append(True)

    monkeypatch.setattr("plsc.cli.list.run", at_work)
    assert main(["list"]) == SIGNALS[number][0]
    assert left and capsys.readouterr().err == SIGNALS[number][1]
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_paddle_leaves_sigterm_to_python():
    """Its own handler would print a C++ stack; those of faults stay."""
    program = (
        "from plsc import environment\nenvironment.import_paddle()\n"
        "caught = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('SigCgt'))\n"
        "import signal\nprint(*(bool(int(caught, 16) >> n - 1 & 1) for n in (signal.SIGTERM, signal.SIGSEGV)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(PYTHONPATH=str(CHECKOUT)), capture_output=True, text=True
    )
    assert done.stdout == "False True\n", done.stderr


# -- list ---------------------------------------------------------------------------------


def test_the_end_of_a_command_searches_no_garbage(monkeypatch, capsys):
    """The whole program's alone: who calls main goes on."""
    frozen = []
    monkeypatch.setattr("gc.freeze", lambda: frozen.append(True))
    monkeypatch.setattr(environment, "is_command", False)
    monkeypatch.setattr(sys, "argv", ["plsc", "list"])
    assert main(["list"]) == 0 and not frozen
    assert main() == 0 and len(frozen) == 1
    monkeypatch.setattr(sys, "argv", ["tools/list.py", "models"])
    assert main(command="list") == 0 and len(frozen) == 2
    assert main(["models"], command="list") == 0 and len(frozen) == 2
    assert "ViT_base_patch16_224" in capsys.readouterr().out


def test_list_alone_says_what_can_be_listed(capsys):
    assert main(["list"]) == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()] == [["plsc", "list", k] for k in KINDS]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "recipes"])
def test_list_shows_names_summary_arguments_and_defaults(kind, capsys):
    assert main(["list", kind, "-v"]) == 0
    out = capsys.readouterr().out
    register_all()
    entries = getattr(registry, kind.upper())
    # a name begins a line, what belongs to it is indented
    blocks = {block.split()[0]: block.splitlines() for block in re.split(r"\n(?! )", out.rstrip())}
    assert list(blocks) == list(entries)
    for name, lines in blocks.items():
        entry = entries.get(name)
        block = squeezed("\n".join(lines))
        assert entry.summary and entry.summary in block
        assert all(alias in lines[0] for alias in entries.aliases_of(name))
        for parameter in entry.parameters().values():
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            shown = f"{parameter.name} (required)" if default is parameter.empty else f"{parameter.name}={default}"
            assert squeezed(shown) in block
        for supplied in entry.supplied:
            assert f" {supplied}=" not in block


def test_list_models_shows_size_and_cost(capsys):
    """As a model that is built has them; nothing for a model whose figures are unknown."""
    assert main(["list", "models"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "parameters", "GFLOPs", "image"]
    assert [line.split()[0] for line in lines] == list(registry.MODELS)
    [tiny] = [line for line in lines if line.startswith("DeiT_tiny_patch16_224 ")]
    count = sum(p.size for p in package.create_model("DeiT_tiny_patch16_224").parameters())
    assert re.fullmatch(rf"DeiT_tiny_patch16_224 +{count / 1e6:.1f} M +2\.5 +224  DeiT-Ti/16 at 224 px\.", tiny)


def test_list_models_is_quick():
    """It imports no Paddle and takes less than a second of the processor."""
    program = (
        "import sys, time\nfrom plsc.cli import main\ncode = main(['list', 'models'])\n"
        "sys.exit(code or ('paddle' in sys.modules) or (time.process_time() > 1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(PYTHONPATH=str(CHECKOUT)), capture_output=True, text=True
    )
    assert done.returncode == 0 and "DeiT_tiny_patch16_224" in done.stdout


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("models", "recipes")])
def test_list_is_a_line_each(kind, capsys):
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    register_all()
    assert [line.split()[0] for line in lines] == list(getattr(registry, kind.upper()))
    assert all(re.match(r"\S+  +\S", line) for line in lines)


def test_list_by_a_pattern_or_a_name(capsys):
    """In any case; an alias finds what it stands for; one thing in the singular comes with its arguments."""
    assert main(["list", "models", "vit_SMALL*384"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["model", "ViT_small_patch16_384", "ViT_small_patch32_384"]
    assert main(["list", "dataset", "Cifar10"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("CIFAR10  (also Cifar10)\n") and "root (required)" in out and "CIFAR100" not in out
    assert main(["list", "recipe", "digits"]) == 0
    assert "digits.yaml" in capsys.readouterr().out


@pytest.mark.slow
def test_list_shows_what_is_imported(here):
    (here / "slow.py").write_text(SLOW_DATA)
    shown = plsc("list", "datasets", "*digits", "--import", "slow.py", cwd=here).stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["Digits", "SlowDigits"] and shown[1].endswith("take their time.")


def test_list_of_what_is_not_there(capsys):
    assert main(["list", "models", "ViT_smal_patch16_224"]) == 2
    assert "no model is called 'ViT_smal_patch16_224'; did you mean ViT_small_patch16_224?" in capsys.readouterr().err


def test_list_shows_a_default_that_is_blank(capsys):
    """`delimiter=` alone would not say that it is one space."""
    main(["list", "datasets", "-v"])
    out = capsys.readouterr().out
    assert "delimiter=' '" in out or 'delimiter=" "' in out


def test_list_recipes_shows_data_hardware_and_figure(capsys):
    assert main(["list", "recipes"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", title) == ["recipe", "data", "hardware", "figure"]
    assert len(lines) == len(shipped_recipes())
    for line, (name, path) in zip(lines, shipped_recipes().items(), strict=True):
        head = header(path)
        shown = re.split(r"  +", line)
        assert shown == [name, *(head[key].split(";")[0] for key in ("Data", "Hardware", "Figure"))]
        assert len(line) < 170


def test_a_file_of_weights_stands_for_one_download():
    """Otherwise the second recipe would silently begin from what was fetched for the first."""
    data = [header(path)["Data"] for path in shipped_recipes().values()]
    addresses = {pair for text in data for pair in re.findall(r"(\./pretrained/\S+) from (https://\S+)", text)}
    assert len(addresses) > 5 and len(dict(addresses)) == len(addresses)


@pytest.mark.parametrize("path", shipped_recipes().values(), ids=lambda path: path.stem)
def test_every_recipe_begins_with_a_whole_header(path):
    """What it reproduces, then the entries in order; its command names it, and a figure has its source."""
    head = header(path)
    assert head[""].endswith(".") and list(head)[1:] == [key for key in HEADER if key in head]
    assert set(HEADER) - {"Note"} <= set(head)
    assert path.stem in head["Command"]
    gpus = re.match(r"(\d+) GPUs", head["Hardware"])
    assert gpus is None or int(gpus[1]) <= 8 or f"--nnodes={int(gpus[1]) // 8} " in head["Command"]
    assert "measured" in head["Source"] or path.stem == "finetune_folder"
    assert all(len(line) <= 120 for line in path.read_text().splitlines())


def test_recipes_have_names_of_their_own():
    """A bare name finds one file; what begins with _, or lies in such a folder, is a part of recipes."""
    files = [path.relative_to(SHIPPED).parts for path in SHIPPED.rglob("*.yaml")]
    recipes = [parts for parts in files if not any(part.startswith("_") for part in parts)]
    assert len(recipes) == len(shipped_recipes()) < len(files)


def test_every_kind_of_the_registry_can_be_listed():
    """So that nothing a recipe can name is kept secret."""
    kinds = [name.lower() for name, value in vars(registry).items() if isinstance(value, registry.Registry)]
    assert sorted(kinds) == sorted(set(KINDS) - {"recipes"})


# -- config -------------------------------------------------------------------------------


def test_config_prints_a_recipe_that_loads_to_the_same_run(here, capsys):
    assert main(["config", "-c", "digits"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (here / "resolved.yaml").write_text(out)
    assert load("resolved.yaml").to_dict() == load("digits").to_dict()


def test_config_of_its_own_output_prints_the_same(here, capsys):
    main(["config", "-c", "digits"])
    first = capsys.readouterr().out
    (here / "resolved.yaml").write_text(first)
    assert main(["config", "-c", "resolved.yaml"]) == 0
    assert capsys.readouterr().out == first


def test_config_applies_overrides_and_fills_defaults(capsys):
    assert main(["config", "-c", "digits", "-o", "Optimizer.weight_decay=0.1", "-o", "Global.epochs=2"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["Optimizer"]["weight_decay"] == 0.1 and tree["Global"]["epochs"] == 2
    assert tree["Model"]["qkv_bias"] is True and tree["Export"]["export_type"] == "paddle"


def test_config_tells_notes_beside_the_output(here, capsys):
    tree = tiny_digits()
    tree["Global"]["train_epoch_func"] = "default_train_one_epoch"
    write_config(here / "run.yaml", tree)
    assert main(["config", "-c", "run.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "note: run.yaml:" in err and "Global.train_epoch_func" in err
    assert "train_epoch_func" not in out


def test_config_looks_neither_at_device_nor_files(here, capsys):
    tree = tiny_digits()
    tree["Global"].update(device="gpu", pretrained_model="gone.safetensors")
    tree["DataLoader"]["Train"]["dataset"] = {"name": "ImageFolder", "root": "gone"}
    write_config(here / "run.yaml", tree)
    assert main(["config", "-c", "run.yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["Global"]["device"] == "gpu"
    assert [path.name for path in here.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Global: {epocs: 1}\n", "did you mean epochs?"), ("Global: [\n", "not valid YAML"), ("", "section is missing")],
    ids=["typo", "no-yaml", "empty"],
)
def test_config_of_a_broken_file_exits_with_2(here, text, expected, capsys):
    (here / "run.yaml").write_text(text)
    assert main(["config", "-c", "run.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "run.yaml" in err and expected in err


def test_config_of_a_file_that_is_not_there_exits_with_2(capsys):
    assert main(["config", "-c", "gone.yaml"]) == 2
    assert "gone.yaml: neither a file nor a shipped recipe" in capsys.readouterr().err


# -- as a process -------------------------------------------------------------------------


@pytest.mark.slow
def test_config_as_a_process_prints_nothing_but_the_recipe(here):
    """What Paddle says while it is imported stays out of the output."""
    done = plsc("config", "-c", "digits", cwd=here, env={})
    assert done.stderr == ""
    (here / "resolved.yaml").write_text(done.stdout)
    assert load("resolved.yaml").to_dict() == load("digits").to_dict()


@pytest.mark.slow
def test_a_reader_that_stops_early_is_no_error(here):
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -m plsc list models | head -n 1', sys.executable],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout.startswith("model "), done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_weights_are_converted_from_python(trained, here):
    made = package.convert_weights(trained, "timm", "mine.safetensors", backbone=True)
    assert made.written == [Path("mine.safetensors")] and made.layout == "plsc" and made.card.spec["class_num"] == 10
    back = package.convert_weights("mine.safetensors", "safetensors", "back.safetensors", num_heads=2)
    assert back.layout == "timm" and back.card.spec["num_heads"] == 2 and back.arrays == made.arrays - 2, "no head"
    with pytest.raises(package.ConfigError, match=r"plsc\.export_model"):
        package.convert_weights(trained, "onnx", "x")


def test_a_model_is_exported_from_python(trained, here, monkeypatch):
    """What is missing is reported before weights are read."""
    made = package.export_model(trained, "out", precision="fp16")
    assert made.source.parent.parent == trained / "checkpoints" and made.format == "paddle"
    assert made.checks and all(check.agrees for check in made.checks)
    assert package.load_predictor(made.folder).path.parent == made.folder
    monkeypatch.setattr("plsc.loading.load_model", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(package.ConfigError, match="give output"):
        package.export_model(trained)
    with pytest.raises(package.CheckpointError, match="is an export already"):
        package.export_model("out", "again")
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    with pytest.raises(package.DeviceError, match="pip install paddle2onnx"):
        package.export_model(trained, "onnx", format="onnx")


SLOW_DATA = '''
import time
import plsc
from plsc.data.datasets import Digits


@plsc.register_dataset()
class SlowDigits(Digits):
    """Digits that take their time."""

    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained")
    plsc("train", "-c", write_config(folder / "c.yaml", tiny_digits()), "-o", f"Global.output_dir={folder / 'run'}")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_an_evaluation_quietly(number, workers, trained, here):
    """One line and no C++ stack of Paddle; the processes that prepare pictures end with it, and nothing is written."""
    (here / "slow.py").write_text(SLOW_DATA)
    tree = tiny_digits()
    tree["DataLoader"]["Eval"]["dataset"] = {**tree["DataLoader"]["Eval"]["dataset"], "name": "SlowDigits"}
    tree["DataLoader"]["Eval"]["loader"]["num_workers"] = workers
    write_config(here / "slow.yaml", tree)
    process = subprocess.Popen(
        command(["eval", "-c", "slow.yaml", "--import", "slow.py", "--weights", trained]),
        cwd=here,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert "360 samples" in process.stdout.readline()
    time.sleep(0.5)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (SIGNALS[number][0], "", SIGNALS[number][1])
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not (trained / "evaluation.json").exists()
