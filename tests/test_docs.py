"""What the documentation shows works: its commands and programs are run, its YAML is checked, its links lead somewhere.

Blocks of bash, Python and console are run in a folder that has what pages speak of (`world`), the blocks of a page one
after the other; its Python is one process. A comment `<!-- not run: REASON -->` above a block keeps it from being run;
its commands are then still read by the parser, and the recipe and overrides that they name are checked. A block whose
first line is a comment with nothing but a file name is written into the folder under that name.
"""

import dataclasses
import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from plsc.cli.main import parser
from plsc.config import load
from plsc.model_card import ModelCard
from plsc.models import VisionTransformer, ViTSpec
from plsc.weights import Source, write
from tests import markdown
from tests.conftest import write_pictures
from tests.helpers import CHECKOUT, TINY_MODEL, tiny_digits, write_config
from tests.markdown import Block
from tests.plsc_server import Commands, Programs

PAGES = ["README.md", "CONTRIBUTING.md", "task/classification/vit/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md"))
PAGES = [page for page in PAGES if (CHECKOUT / page).is_file()]
GENERATED = {"docs/cli.md", "docs/api.md"}  # compared with their sources in test_generated_pages.py
RUN = [page for page in PAGES if page not in GENERATED]

# what pages run is made small by these arguments
_SETTINGS = ["max_train_step=2", "print_batch_step=1", "cpu_threads=1", "global_batch_size=4"]
SMALL = {
    "train": [f"-oGlobal.{setting}" for setting in _SETTINGS] + ["-oDataLoader.Train.sampler.batch_size=null"],
    "benchmark": ["--seconds=0.01"],
}


def all_blocks(*languages: str):
    blocks = (block for page in PAGES for block in markdown.blocks(CHECKOUT, page))
    return [pytest.param(block, id=block.place) for block in blocks if block.language in languages]


# -- YAML -----------------------------------------------------------------------------------


def merged(base: dict, over: dict) -> dict:
    """As in a recipe with _base_: mappings join, a data set of another name begins anew."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        anew = both and "name" in value and value["name"] != out[key].get("name")
        out[key] = merged(out[key], value) if both and not anew else value
    return out


def parts_of_recipes():
    return [block for block in all_blocks("yaml") if block.values[0].reason is None and block.values[0].file is None]


@pytest.mark.parametrize("block", parts_of_recipes())
def test_each_yaml_is_a_valid_part_of_a_recipe(block, tmp_path):
    part = yaml.safe_load(block.text.replace("[...]", "[]"))
    if "dataset" in part:
        part = {"DataLoader": {"Train": part}}
    part.pop("_base_", None)
    load(str(write_config(tmp_path / "c.yaml", merged(tiny_digits(), part))))


# -- what is not run ------------------------------------------------------------------------

_LAUNCHER = ("--nproc_per_node", "--nnodes", "--master", "--devices", "--log_dir", "--log_level", "--job_id")
_LAUNCHER += ("--elastic_level", "--elastic_timeout", "--max_restart")
_RESTART = ("--tries", "--pause", "--restart_on")
# programs that pages name and that are not plsc's
_OTHERS = {"cd", "curl", "docker", "export", "for", "git", "hf", "img2dataset", "mkdir", "rm", "source", "tar", "wget"}
_OTHERS |= {"[", "apt-get", "break", "etcd", "exit", "head", "python3", "scontrol", "sleep"}
_BEFORE_A_COMMAND = {"exec", "if", "srun", "until"}


def commands(script: str) -> list[list[str]]:
    """The simple commands of a script, as lists of words."""
    parts: list[list[str]] = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        parts.append([])
        for word in lexer:
            if set(word) <= set(";&|()"):
                parts.append([])
            elif word not in ("do", "done", "then", "fi"):
                parts[-1].append(word)
    return [part[: part.index(">")] if ">" in part else part for part in parts if part]


def check_plsc(arguments: list[str]) -> None:
    """Read the arguments as `plsc` does, and check recipe and overrides where the recipe is a shipped one."""
    read = parser().parse_args(arguments)
    recipe = getattr(read, "config", None)
    if recipe and (recipe.endswith(".yaml") <= ("configs/" in recipe)):
        recipe = str(CHECKOUT / recipe) if "/" in recipe else recipe
        load(recipe, [override for override in read.override if "…" not in override])


def check_command(words: list[str]) -> None:
    """Raise where a command names what does not exist."""
    program, *arguments = words
    if program in _BEFORE_A_COMMAND:
        check_command(arguments)
    elif program == "python" and arguments[0] == "tools/restart.py":
        rest = arguments[1:]
        while rest[0].startswith("--"):
            assert rest[0] in _RESTART, rest[0]
            rest = rest[2:]
        check_command(rest)
    elif program == "plsc":
        check_plsc(arguments)
    elif program == "python" and arguments[:2] == ["-m", "paddle.distributed.launch"]:
        rest = arguments[2:]
        while rest[0].startswith("--"):
            option, equals, _ = rest[0].partition("=")
            assert option in _LAUNCHER, option
            rest = rest[1:] if equals else rest[2:]
        check_command(["python", *rest])
    elif program == "python" and arguments[0].startswith(("tools/", "benchmarks/")):
        assert (CHECKOUT / arguments[0]).is_file(), arguments[0]
        if arguments[0] in ("tools/train.py", "tools/eval.py", "tools/export.py"):
            check_plsc([Path(arguments[0]).stem, *arguments[1:]])
    elif program == "make":
        makefile = (CHECKOUT / "Makefile").read_text()
        for target in arguments:
            assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), target
    elif program == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
        metadata = (CHECKOUT / "pyproject.toml").read_text()
        for extra in ",".join(extras).split(","):
            assert not extra or re.search(rf"^{extra} = \[", metadata, re.MULTILINE), extra
        for option, file in itertools.pairwise(arguments):
            assert option != "-r" or (CHECKOUT / file).is_file(), file
    elif re.match(r"\w+=", program):  # a variable, with or without a command after it
        if arguments:
            check_command(arguments)
    else:
        assert program in _OTHERS or "=" in program or program.endswith("python"), f"{program} is not known here"


@pytest.mark.parametrize("block", all_blocks("bash"))
def test_each_command_exists_and_takes_its_arguments(block):
    subprocess.run(["bash", "-n", "-c", block.text], check=True)
    if block.page in GENERATED:
        return
    for words in commands(block.text):
        try:
            check_command(words)
        except SystemExit as ended:  # 0 after --help and --version
            assert ended.code == 0, f"{block.place}: the parser refuses {shlex.join(words)}"


@pytest.mark.parametrize("block", all_blocks("python"))
def test_each_program_is_python(block):
    if block.page not in GENERATED:
        compile(block.text, block.place, "exec")


# -- links ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    path = CHECKOUT / page
    for link in markdown.links(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{page}: {link} leads nowhere"
        if anchor:
            assert anchor in markdown.anchors(there.read_text(encoding="utf-8")), f"{page}: {link} has no such heading"


def test_the_list_of_parts_is_complete():
    """docs/development.md lists every module and package of plsc, and none that is not there."""
    listed = markdown.blocks(CHECKOUT, "docs/development.md")[0].text
    assert listed.startswith("plsc/\n")
    entries = set(re.findall(r"^    (\w+(?:\.py|/)) ", listed, re.MULTILINE)) - {"configs/"}
    modules = {path.name for path in (CHECKOUT / "plsc").glob("*.py")} - {"__main__.py"}
    packages = {f"{path.parent.name}/" for path in (CHECKOUT / "plsc").glob("*/__init__.py")}
    assert entries == modules | packages


# -- running pages --------------------------------------------------------------------------


def my_run() -> dict:
    """A recipe of a tiny ViT on the world's pictures."""
    normalise = [{"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3}}, {"ToCHWImage": None}]
    crop = [{"DecodeImage": None}, {"RandCropImage": {"size": 32}}]
    middle = [{"DecodeImage": None}, {"ResizeImage": {"resize_short": 36}}, {"CenterCropImage": {"size": 32}}]
    tree = tiny_digits()
    tree["Global"]["output_dir"] = "output/mine"
    tree["Model"] = {**TINY_MODEL, "img_size": 32, "patch_size": 16, "depth": 6, "in_chans": 3, "class_num": 5}
    tree["EMA"] = {"decay": 0.9, "ema_eval": True}
    for mode, split, transforms in (("Train", "train", crop), ("Eval", "val", middle)):
        section = tree["DataLoader"][mode]
        section["dataset"] = {"name": "ImageFolder", "root": f"flowers/{split}"}
        section["dataset"]["transform_ops"] = [*transforms, *normalise]
        section["sampler"]["batch_size"] = 4
    return tree


@pytest.fixture(scope="module")
def shells(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("commands") / "bin", SMALL)
    yield commands
    commands.close()


def write_weights(path: Path) -> None:
    """A DeiT-Ti of 1000 classes with random weights, in plsc's own format."""
    network = VisionTransformer(ViTSpec(embed_dim=192, depth=12, num_heads=3))
    arrays = {name: parameter.numpy() for name, parameter in network.named_parameters()}
    card = ModelCard(model="DeiT_tiny_patch16_224", spec=dataclasses.asdict(network.spec))
    write(Source.of_arrays(path, arrays, card), "safetensors", path)


@pytest.fixture(scope="module")
def world(shells, tmp_path_factory) -> Path:
    """A folder that has what pages speak of: pictures in folders, a recipe, runs, weights, names of classes."""
    root = tmp_path_factory.mktemp("world")
    write_pictures(root / "flowers" / "train", 5, 4)
    write_pictures(root / "flowers" / "val", 5, 2, seed=1)
    write_pictures(root / "pictures" / "v2", 5, 2, seed=2)
    picture = (root / "flowers/val/class_0/000.jpg").read_bytes()
    for name in ("rose.jpg", "tulip.jpg", "photo.jpg", "pictures/1.jpg", "pictures/2.jpg"):
        (root / name).write_bytes(picture)
    (root / "lists").mkdir()
    (root / "lists" / "val.txt").write_text("".join(f"../flowers/val/class_{k}/000.jpg {k}\n" for k in range(5)))
    (root / "names.txt").write_text("".join(f"flower {k}\n" for k in range(5)))
    (root / "synset_words.txt").write_text("".join(f"n{k:08d} kind {k}\n" for k in range(1000)))
    (root / "ILSVRC2012" / "val").mkdir(parents=True)
    (root / "ILSVRC2012" / "val" / "ILSVRC2012_val_00000002.JPEG").write_bytes(picture)
    (root / "ILSVRC2012" / "val_list.txt").write_text("val/ILSVRC2012_val_00000002.JPEG 7\n")
    (root / "real.json").write_text("[[3], [7, 8]]")
    for name in ("tools", "benchmarks", "configs", "plsc"):
        (root / name).symlink_to(CHECKOUT / name)
    write_config(root / "my_run.yaml", my_run())
    write_config(root / "shards.yaml", my_run())
    write_weights(root / "deit.safetensors")
    done = shells.shell(
        """
        plsc train -c my_run.yaml
        for run in first second a b; do cp -r output/mine output/$run; done
        plsc convert deit.safetensors --to timm --output deit_tiny_patch16_224.safetensors
        plsc convert deit.safetensors --to google --output deit.npz
        cp deit.npz deit_tiny_patch16_224.npz
        plsc convert output/mine --to timm --output vit.safetensors
        plsc export --weights output/mine --output exported
        """,
        root,
    )
    assert done.returncode == 0, done.stdout
    return root


@pytest.fixture
def folder(world, tmp_path) -> Path:
    """The world again, for one page to change."""
    subprocess.run(["cp", "-a", f"{world}/.", str(tmp_path)], check=True)
    return tmp_path


def run(block: Block, shells: Commands, programs: Programs, folder: Path) -> str | None:
    """Run one block; what went wrong, or None."""
    if block.file:
        (folder / block.file).write_text(block.text, encoding="utf-8")
        return None
    if block.language == "console":
        return run_console(block, shells, folder)
    if block.language == "python":
        program = folder / f"block_{block.line}.py"
        program.write_text(block.text, encoding="utf-8")
        return programs.run(program)
    done = shells.shell(block.text, folder)
    return f"exit code {done.returncode}\n{done.stdout}" if done.returncode else None


def run_console(block: Block, shells: Commands, folder: Path) -> str | None:
    """Lines after `$` are commands, all others what they print: in this order, with … for anything."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        printed = shells.shell(command, folder).stdout
        pattern = ".*".join(re.escape(piece) for piece in expected.strip().split("…"))
        if not re.search(pattern, printed, re.DOTALL):
            return f"$ {command}\nprinted\n{printed}\nand not\n{expected}"
    return None


@pytest.fixture
def programs(shells, folder):
    running = Programs(shells, folder)
    yield running
    running.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_what_a_page_shows_works(page, shells, programs, folder):
    failures = []
    for block in markdown.blocks(CHECKOUT, page):
        if block.reason is None and (block.file or block.language in ("bash", "python", "console")):
            failure = run(block, shells, programs, folder)
            if failure:
                failures.append(f"{block.place}: {failure}")
    assert not failures, "\n\n".join(failures)
