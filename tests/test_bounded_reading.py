"""Recipes and pickles that would take endless time or memory: refused within 2 seconds and 200 MB.

One process without Paddle reads all of them under a limit of memory; what it reports is looked at here.
"""

import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc import build, pickles
from plsc.config import load
from plsc.config.source import load_source
from plsc.errors import CheckpointError, ConfigError, DataError
from tests.helpers import tiny_digits, within, write_config

SECONDS, MEGABYTES = 2.0, 200


def laughs(levels: int = 9, width: int = 9) -> str:
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merge_laughs(levels: int = 30, width: int = 5) -> str:
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * width)}]}}" for i in range(1, levels)]
    return "\n".join(lines)


# text of a recipe → (line that the message names, part of the message)
RECIPES = {
    "empty int": ('A:\n  b: !!int ""', 2, "'' is not a whole number"),
    "hex without digits": ("A: !!int 0x", 1, "'0x' is not a whole number"),
    "underscores": ("A: !!int _", 1, "'_' is not a whole number"),
    "bool": ("A:\n  b: !!bool maybe", 2, "'maybe' is not true or false"),
    "float": ("A: !!float abc", 1, "'abc' is not a number"),
    "null": ("A: !!null 3", 1, "'3' is not null"),
    "timestamp": ("A:\n  b: !!timestamp x", 2, "!!timestamp"),
    "date": ("A: !!timestamp 2001-01-01", 1, "!!timestamp"),
    "binary": ('A: !!binary "YQ=="', 1, "!!binary"),
    "set": ("A: !!set {a, b}", 1, "!!set"),
    "ordered": ("A: !!omap [a: 1]", 1, "!!omap"),
    "own tag": ("A: !mine 3", 1, "!mine"),
    "call": ('A: !!python/object/apply:os.system ["touch canary"]', 1, "!!python/object/apply:os.system"),
    "name": ('A: !!python/name:os.system ""', 1, "!!python/name:os.system"),
    "name for a key": ('!!python/name:os.system "": 3', 1, "!!python/name:os.system"),
    "laughs": (laughs(), 1, "more than 20,000 values"),
    "laughs in a list": ("- &a [x]\n- [*a, *a]", None, "top level"),
    "merge laughs": (merge_laughs(), 6, "more than 20,000 values"),
    "deep lists": ("A: " + "[" * 100_000 + "]" * 100_000, 1, "nested more than 50 deep"),
    "deep mappings": ("\n".join(" " * i + "a:" for i in range(600)), 50, "nested more than 50 deep"),
    "itself": ("A: &a [*a]", 1, "anchor holds its own alias"),
    "merges itself": ("A: &a {<<: *a}", 1, "anchor holds its own alias"),
    "holds itself": ("A: &a {b: {c: *a}}", 1, "anchor holds its own alias"),
    "huge decimal": ("A: " + "9" * 500_000, 1, "a number of 500,000 characters"),
    "huge hex": ("A: 0x" + "f" * 500_000, 1, "a number of 500,002 characters"),
    "huge sexagesimal": ("A: 1" + ":59" * 150_000, 1, "a number of 450,001 characters"),
    "character of no number": ('A:\n  b: "\\U00110000"', 2, "not valid YAML"),
    "character outside C": ('A:\n  b: "\\UFFFFFFFF"', 2, "not valid YAML"),
    "NUL": ("A: 3\nB: \0", 2, "the character 0x0 is not allowed"),
    "version": ("%YAML 1." + "9" * 5000 + "\n---\nA: 1", 1, "not valid YAML"),
    "not UTF-8": (b"A: 3\nB: \xe9 x", 2, "not UTF-8"),
    "large file": ("A: " + "x" * 2**20, None, "too large"),
    "many values": ("A: [" + "1," * 100_000 + "]", 1, "more than 20,000 values"),
    "many keys": ("\n".join(f"k{i}: 1" for i in range(30_000)), 10_000, "more than 20,000 values"),
    "long key": ("k" * 5000 + ": 1", None, "not valid YAML"),
    "long quoted key": ("'" + "k" * 500 + "': 1", 1, "a key of 500 characters"),
}


def nested(levels: int) -> bytes:
    """A tuple of two of a tuple of two of …, as opcodes; whoever walks through it meets 2 ** levels."""
    return b")" + b"2\x86" * levels


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def memoised(value: bytes, function: str, times: int) -> bytes:
    """One value given to a function many times."""
    return value + b"\x940c" + function.encode() + b"\n\x940" + b"h\1(h\0tR" * times


PRIME = 2**61 - 1  # whole numbers have their remainder for a hash
NUMBERS = b"".join(b"\x8a\x0a" + (PRIME * (i + 1)).to_bytes(10, "little") + b"N" for i in range(100_000))
MANY = b"".join(b"J" + i.to_bytes(4, "little") + b"N" for i in range(50_000))
# opcodes → part of the message; None where the file is read
PICKLES = {
    "DUP": (b"N" + b"2" * 5_000_000, "steps"),
    "marks": (b"(" * 5_000_000, "steps"),
    "dicts": (b"}" * 5_000_000, "steps"),
    "memo": (b"N" + b"\x94" * 5_000_000, "steps"),
    "LONG4": (b"N" + (b"0\x8b" + (20).to_bytes(4, "little") + b"\x7f" * 20) * 2_000_000, "steps"),
    "LONG4 of the whole file": (b"\x8b" + (10**7).to_bytes(4, "little") + b"\x7f" * 10**7, None),
    "tuples for a key": (b"}" + nested(100) + b"Ns", "not a plain value"),
    "tuples for keys": (b"}(" + nested(100) + b"Nu", "not a plain value"),
    "tuples for keys of DICT": (b"(" + nested(100) + b"Nd", "not a plain value"),
    "tuples in a set": (b"\x8f(" + nested(45) + b"\x90", "too many values"),
    "tuples in a frozenset": (b"(" + nested(45) + b"\x91", "too many values"),
    "frozensets of frozensets": (b"(" * 40 + b")\x94" + b"2\x91" * 40, "deeply|too many|damaged|no plain"),
    "set()": (b"cbuiltins\nset\n(](" + nested(45) + b"etR", "too many values"),
    "OrderedDict()": (b"ccollections\nOrderedDict\n(](" + b"(" + nested(100) + b"NtetR", "not a plain value"),
    "dtype()": (b"cnumpy\ndtype\n(" + nested(100) + b"tR", "array of type tuple"),
    "encode()": (b"c_codecs\nencode\n(" + text("a") + nested(100) + b"tR", "encoding tuple"),
    "persistent id": (b"(" + text("storage") + nested(100) + b"K\0NK\1tQ", "reference"),
    "persistent key": (b"(" + text("storage") + text("FloatStorage") + nested(100) + b"NK\1tQ", "reference"),
    "numbers of one hash": (b"}(" + NUMBERS + b"u", "huge number"),
    "many numbers": (
        b"}(" + b"".join(b"J" + i.to_bytes(4, "little") + b"N" for i in range(50_000)) + b"u",
        "10,000 keys",
    ),
    "memo of one hash": (b"N" + b"".join(b"p%d\n" % (PRIME * i) for i in range(50_000)), "memo"),
    "copies of a text": (memoised(text("a" * 10**6), "_codecs\nencode", 1000), "copies"),
    "copies of a list": (memoised(b"](" + b"N" * 100_000 + b"e", "builtins\nlist", 10_000), "copies"),
    "bytearray": (b"\x96" + (2**33).to_bytes(8, "little"), "ends within a value"),
    "shared by many": (b"(" + nested(45) + b"t", "too many values"),
    "long text, many times": (b"(" + text("a" * 10**6) + b"2" * 500_000 + b"t", "copies"),
    "long name": (b"c" + b"a" * 10**6 + b"\nb\n", "it asks for aaa"),
}

READ = """
import io, json, resource, sys, time
from pathlib import Path
import plsc.pickles
from plsc.config.source import load_source
from plsc.errors import PlscError

def used():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

def read(name):
    kind, _, rest = name.partition(" ")
    if kind == "recipe":
        load_source(f"{rest}.yaml")
    elif kind == "override":
        load_source({"Global": {}}, ["Global.x=" + Path(f"{rest}.yaml").read_bytes().decode("latin1")])
    else:
        with open(f"{rest}.pkl", "rb") as file:
            plsc.pickles.load(file, Path(f"{rest}.pkl"))

limit = used() + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in json.load(sys.stdin):
    began, message = time.process_time(), None
    try:
        read(name)
    except PlscError as error:
        message = str(error)
    print(json.dumps([name, time.process_time() - began, message]), flush=True)
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Name → (seconds of the processor, message or None), from a process that reads everything under a limit."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (content, *_) in RECIPES.items():
        (folder / f"{name}.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, (opcodes, _) in PICKLES.items():
        (folder / f"{name}.pkl").write_bytes(b"\x80\x05" + opcodes + b".")
    for i in range(60):
        bases = f"_base_: [base{i + 1}.yaml, base{i + 1}.yaml]\n" if i < 59 else ""
        (folder / f"base{i}.yaml").write_text(f"{bases}Global: {{seed: {i}}}\n")
    keys = "".join(f"  k{i}: {{a: 1}}\n" for i in range(9000))
    (folder / "replaced.yaml").write_text("_base_: replacing.yaml\nGlobal:\n" + keys.replace("{a: 1}", "2"))
    (folder / "replacing.yaml").write_text("Global:\n" + keys[: len(keys) // 2].rpartition("\n")[0] + "\n")
    names = [f"recipe {name}" for name in (*RECIPES, "base0", "replaced")]
    names += [f"override {name}" for name in RECIPES] + [f"pickle {name}" for name in PICKLES]
    done = subprocess.run(
        [sys.executable, "-c", READ, str(MEGABYTES)],
        input=json.dumps(names),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"it ended at {names[len(lines)]}: {done.stderr[-1500:]}"
    assert not (folder / "canary").exists()
    return {name: (seconds, message) for name, seconds, message in lines}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_refused_with_file_and_line(reports, name):
    _, line, part = RECIPES[name]
    seconds, message = reports[f"recipe {name}"]
    assert message is not None
    assert message.startswith(f"{name}.yaml:" if line is None else f"{name}.yaml:{line}: "), message[:200]
    assert part in message
    assert len(message) < 1000
    assert seconds < SECONDS


@pytest.mark.parametrize("name", RECIPES)
def test_an_override_is_bounded_like_a_file(reports, name):
    seconds, message = reports[f"override {name}"]
    assert message is None or (message.startswith("-o ") and len(message) < 1000)
    assert seconds < SECONDS


def test_bases_that_multiply_are_refused(reports):
    seconds, message = reports["recipe base0"]
    assert "_base_ names more than 100 files" in message
    assert seconds < SECONDS


def test_thousands_of_replaced_sections_take_no_time(reports):
    seconds, message = reports["recipe replaced"]
    assert message is None or "more than 20,000 values" in message
    assert seconds < SECONDS


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_bounded_in_time_and_memory(reports, name):
    part = PICKLES[name][1]
    seconds, message = reports[f"pickle {name}"]
    if part is None:
        assert message is None
    else:
        assert message.startswith(f"{name}.pkl: ")
        assert re.search(part, message), message[:300]
        assert len(message) < 1000
    assert seconds < SECONDS


# -- what is not a file ----------------------------------------------------------------------------


def special(folder: Path, kind: str, name: str) -> Path:
    """A named pipe, a socket or a device of a name."""
    path = folder / name
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            here = os.getcwd()
            os.chdir(folder)  # the name of a socket has 107 characters at most
            try:
                bound.bind(name)
            finally:
                os.chdir(here)
    else:
        path.symlink_to("/dev/zero")
    return path


KINDS = ["a named pipe", "a socket", "a device"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_no_file_is_named_and_not_opened(tmp_path, kind):
    from plsc.data.datasets.image_folder import ImageFolder
    from plsc.data.datasets.imagenet import ImageNetDataset
    from plsc.predictor import _read

    (tmp_path / "tree" / "cat").mkdir(parents=True)
    path = special(tmp_path / "tree" / "cat", kind, "a.jpg")
    (tmp_path / "tree" / "cat" / "b.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("cat/b.jpg 0\ncat/a.jpg 0\n")
    listed = ImageNetDataset(str(tmp_path / "tree"), str(tmp_path / "list.txt"))
    for read in (lambda: ImageFolder(str(tmp_path / "tree"))[0], lambda: listed[1]):
        with within(SECONDS), pytest.raises(DataError, match=f"a.jpg: is {kind}, not a file"):
            read()
    with within(SECONDS), pytest.raises(OSError, match=f"is {kind}, not a file"):
        _read(path, True)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_a_recipe_names_and_are_none(tmp_path, kind):
    from plsc import places, weights
    from plsc.data.class_names import read_class_names
    from plsc.data.datasets.webdataset import WebDataset
    from plsc.metrics.real import read_real_labels
    from plsc.visualize.pictures import read_picture

    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"head.bias": "thing.tar"}}')
    path = special(tmp_path, kind, "thing.tar")
    refused: list = [
        (ConfigError, lambda: load_source(str(path))),
        (ConfigError, lambda: load_source({"_base_": str(path)})),
        (CheckpointError, lambda: places.weights_file(path)),
        (CheckpointError, lambda: weights.read(tmp_path / "model.safetensors.index.json")),
        (DataError, lambda: read_picture(path, None, None)),
        (DataError, lambda: read_class_names(path, None)),
        (DataError, lambda: read_real_labels(path)),
        (DataError, lambda: len(WebDataset(files=str(path)))),
    ]
    for error, read in refused:
        with within(SECONDS), pytest.raises(error, match=f"thing.tar.* is {kind}, not a file"):
            read()


def test_the_key_of_a_list_that_is_no_file_is_named(tmp_path):
    """As `plsc train` meets it: before the data set is opened, with file and line."""
    path = special(tmp_path, "a named pipe", "list.txt")
    tree = json.loads(json.dumps(tiny_digits()))
    tree["DataLoader"]["Train"]["dataset"] = {
        "name": "ImageNetDataset",
        "image_root": str(tmp_path),
        "cls_label_path": str(path),
        "transform_ops": [{"DecodeImage": None}, {"NormalizeImage": None}, {"ToCHWImage": None}],
    }
    config = load(str(write_config(tmp_path / "run.yaml", tree)))
    with within(SECONDS), pytest.raises(ConfigError, match=r"run.yaml:\d+: .*cls_label_path: .* is a named pipe"):
        build.dataset(config, "Train")


# -- arbitrary files ----------------------------------------------------------------------------

PIECES = [
    *["a: ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "<<: ", "!!int ", "!!bool ", "!!float ", "!!null ", "!!str "],
    *["!!timestamp ", "!!set ", "!x ", "? ", ": ", "|\n", ">\n", "'", '"', "\n", " ", "  ", "\t", "#", "%YAML 1.1\n"],
    *["---\n", "...\n", "0x", "1e9", "_", "~", "null", ".inf", "x", "1", "9" * 50, "\\U00110000", "\0", "=", "@", "`"],
]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_any_recipe_is_read_or_refused_with_one_message(pieces):
    content = "".join(pieces)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(content, encoding="utf-8", newline="")
        for read in (lambda: load_source(str(path)), lambda: load_source({}, [f"A.b={content}"])):
            try:
                read()
            except ConfigError as error:
                assert str(error)


OPCODES = [bytes([code]) for code in b"(.012NIKJMX)]}lsuaetdbRocihqrpQPC" + bytes([*range(0x80, 0x98)])]
NAMES = [b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n", b"cnumpy\nndarray\n", b"cargparse\nNamespace\n"]
NAMES += [b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\nset\n", b"c_codecs\nencode\n"]
NAMES += [text("f4"), b"K\1", b"\0"]


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(OPCODES), st.sampled_from(NAMES), st.binary(max_size=3)), max_size=40))
def test_any_pickle_is_read_or_refused_with_one_message(pieces):
    with within(SECONDS):
        try:
            pickles.load(io.BytesIO(b"\x80\x04" + b"".join(pieces) + b"."), Path("w.pkl"))
        except CheckpointError as error:
            assert str(error).startswith("w.pkl: ")
