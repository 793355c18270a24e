"""Parts of a data set: labels without pictures, what val_fraction holds out, slices, classes counted by the data."""

import json
import logging
import shutil

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc import build, datatools
from plsc.cli.main import main
from plsc.config import load
from plsc.data import split as split_module
from plsc.data.byte_file import ByteFile
from plsc.data.datasets import (
    Dataset,
    Digits,
    ImageFolder,
    ImageNetDataset,
    Parquet,
    Sample,
    Stack,
    Subset,
    TFRecord,
    WebDataset,
)
from plsc.data.datasets.base import labels_of
from plsc.data.datasets.combine import Renumbered, knows_labels, numbered_as, sliced
from plsc.data.split import LabelTable, split
from plsc.errors import ConfigError, DataError
from tests.conftest import write_pictures
from tests.helpers import metrics, plsc, tiny_digits, write_config
from tests.test_shards import write_shard, write_tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No cache of the user is touched."""
    monkeypatch.setenv("PLSC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Plain(Dataset):
    """Samples of given labels, which only reading them tells."""

    def __init__(self, labels):
        self.given = list(labels)
        self.max_labels = 1 if all(isinstance(label, int) for label in self.given) else 4

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        return Sample(np.zeros((2, 2, 1), "uint8"), self.given[index])


class Telling(Plain):
    """The same, with its labels at hand."""

    def labels_of(self, indices):
        return np.array(self.given)[indices]


# -- labels without pictures ------------------------------------------------------------------


def folder_data(tmp_path):
    write_pictures(tmp_path / "pictures", 3, 4, size=(8, 8))
    return ImageFolder(str(tmp_path / "pictures"))


def list_data(tmp_path, lines, **options):
    write_pictures(tmp_path / "pictures", 1, 1, size=(8, 8))
    delimiter = options.get("delimiter", " ")
    (tmp_path / "list.txt").write_text("".join(f"class_0/000.jpg{delimiter}{line}\n" for line in lines))
    return ImageNetDataset(str(tmp_path / "pictures"), str(tmp_path / "list.txt"), **options)


def several_labels(path):
    members = []
    for k, (ids, probs) in enumerate([([4, 2], [0.2, 0.9]), ([7], [0.4]), ([1, 2, 3], [0.6, 0.6, 0.1]), ([5], [0.9])]):
        members += [
            (f"{k}.jpg", b"x" * 5000),
            (f"{k}.json", json.dumps({"labels": ids, "label_probs": probs}).encode()),
        ]
    return write_tar(path, members)


def tars(folder, *sizes) -> WebDataset:
    ends = np.cumsum(sizes).tolist()
    spans = zip([0, *ends], ends, strict=False)
    return WebDataset([write_shard("WebDataset", folder / f"{a:03d}.tar", range(a, b)) for a, b in spans])


DATA = {
    "digits": lambda tmp: Digits(),
    "folder": folder_data,
    "list": lambda tmp: list_data(tmp, [3, 0, "2  \n", 1, "0\n\n", 5]),
    "list of several": lambda tmp: list_data(tmp, ["3,17,0", "4", "2,2"], multi_label=True),
    "list with another delimiter": lambda tmp: list_data(tmp, ["1", "0"], delimiter="\t"),
    "tar": lambda tmp: WebDataset(
        [write_shard("WebDataset", tmp / f"{k}.tar", range(5 * k, 5 * k + 5)) for k in (0, 1)]
    ),
    "records": lambda tmp: TFRecord(write_shard("TFRecord", tmp / "a.tfrecord", range(7)), label_key="label"),
    "parquet": lambda tmp: Parquet(write_shard("Parquet", tmp / "a.parquet", range(7))),
    "soft": lambda tmp: WebDataset(several_labels(tmp / "a.tar"), label_mode="soft", max_labels=2),
    "threshold": lambda tmp: WebDataset(several_labels(tmp / "a.tar"), label_mode="soft", label_prob_threshold=0.5),
    "stack": lambda tmp: Stack(
        [list_data(tmp, ["3,17,0", "4"], multi_label=True), sliced(Digits(), "5:9"), Plain([3])]
    ),
    "subset": lambda tmp: Subset(Digits(), np.array([0, 3, 4, 200])),
    "renumbered": lambda tmp: numbered_as(folder_data(tmp), ["z", "class_2", "class_0", "class_1"], "x"),
    "read": lambda tmp: Plain([(3, 1), (2,), ()]),
}


@pytest.mark.parametrize("kind", DATA)
def test_labels_are_those_of_the_samples(kind, tmp_path):
    """Of any samples, in any number, as reading each gives them."""
    data = DATA[kind](tmp_path)
    indices = np.arange(len(data))
    for chosen in (indices, indices[1::2], indices[:0], indices[-1:]):
        expected = [data[i].label for i in chosen]
        labels = labels_of(data, chosen)
        if data.max_labels == 1:
            assert labels.tolist() == expected
        else:
            rows = [tuple(label for label in row if label >= 0) for row in labels.tolist()]
            assert rows == [e if isinstance(e, tuple) else (e,) for e in expected]
    assert knows_labels(data) == (kind not in ("stack", "read"))


@pytest.mark.parametrize("kind", ["tar", "records", "parquet", "list", "folder"])
def test_labels_are_read_without_pictures(kind, tmp_path, monkeypatch):
    """No picture's file is read, and of shards no more than labels need."""
    data = DATA[kind](tmp_path)
    shutil.rmtree(tmp_path / "pictures", ignore_errors=True)
    read, sizes = ByteFile.read, []
    monkeypatch.setattr(ByteFile, "read", lambda file, at, size: sizes.append(size) or read(file, at, size))
    if kind == "parquet":
        table = __import__("pyarrow.parquet").parquet.ParquetFile
        columns, read_group = [], table.read_row_group
        monkeypatch.setattr(
            table,
            "read_row_group",
            lambda f, k, **options: columns.append(options["columns"]) or read_group(f, k, **options),
        )
    labels_of(data, np.arange(len(data)))
    if kind == "parquet":
        assert columns and all(c == ["label"] for c in columns)
    elif kind in ("tar", "records"):
        assert max(sizes) < 200 if kind == "tar" else max(sizes) <= 4096


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_labels_of_shards_are_read_once_a_machine(kind, tmp_path, monkeypatch):
    data = DATA[kind](tmp_path)
    first = labels_of(data, np.arange(len(data)))
    again = {"tar": WebDataset, "parquet": Parquet}[kind](data.files)
    monkeypatch.setattr(type(again.format), "labels", None)
    assert np.array_equal(labels_of(again, np.arange(len(again))), first)


@pytest.mark.parametrize("options, line", [({}, "a.jpg x"), ({}, "a.jpg -1"), ({"multi_label": True}, "a.jpg 1,,2")])
def test_a_label_that_is_none_names_its_line(tmp_path, options, line):
    data = list_data(tmp_path, ["0", "1", "2"], **options)
    text = (tmp_path / "list.txt").read_text()
    (tmp_path / "list.txt").write_text(text + line + "\n")
    data = ImageNetDataset(str(tmp_path / "pictures"), str(tmp_path / "list.txt"), **options)
    with pytest.raises(DataError, match="line 4"):
        LabelTable.of(data)


def test_a_stranger_whose_labels_have_to_be_read_is_named(caplog):
    caplog.set_level(logging.INFO, "plsc")
    assert LabelTable.of(Plain([1, 0, 1])).ids.tolist() == [1, 0, 1]
    assert "labels_of(indices) spares this" in caplog.text


# -- what is held out -------------------------------------------------------------------------

sizes_of_classes = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda sizes: max(sizes) > 1)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes_of_classes, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32), order=st.randoms())
def test_each_class_is_parted_in_proportion(sizes, fraction, seed, order):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    order.shuffle(labels)
    kept, held = split(Telling(labels), fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert np.array_equal(kept, np.sort(kept)) and np.array_equal(held, np.sort(held))
    for label, size in enumerate(sizes):
        count = sum(labels[i] == label for i in held)
        if size > 1:
            assert 1 <= count <= size - 1
            assert abs(count - size * fraction) <= 0.5 or count in (1, size - 1)
        else:
            assert count == 0


def test_the_split_is_a_function_of_labels_fraction_and_seed():
    """However labels come, in processes or not, cached or not; another seed is another split."""
    labels = np.random.default_rng(0).integers(0, 5, 300).tolist()
    kept, held = split(Telling(labels), 0.2, 7)
    assert np.array_equal(split(Telling(labels), 0.2, 7)[1], held)
    assert np.array_equal(split(Stack([Telling(labels[:100]), Telling(labels[100:])]), 0.2, 7)[1], held)
    assert not np.array_equal(split(Telling(labels), 0.2, 8)[1], held)
    assert np.array_equal(split(Plain(labels), 0.2, 7)[0], kept)
    # of all versions of plsc and NumPy: a run that is continued, and an evaluation years later, hold the same out
    assert split(Digits(), 0.1, 0)[1][:12].tolist() == [0, 2, 21, 38, 43, 54, 66, 69, 85, 91, 102, 152]


def test_a_large_data_set_is_parted_alike(monkeypatch, cache):
    labels = np.random.default_rng(0).integers(0, 5, 300).tolist()
    expected = split(Telling(labels), 0.2, 7)
    monkeypatch.setattr(split_module, "_LARGE", 50)
    monkeypatch.setattr(split_module, "_CHUNK", 70)
    for _ in range(2):
        for part, wanted in zip(split(Telling(labels), 0.2, 7), expected, strict=True):
            assert np.array_equal(part, wanted)
        monkeypatch.setattr(split_module, "_drawn_parts", None)  # the second time it comes from the cache
    monkeypatch.undo()


def test_a_sample_of_several_labels_counts_for_its_rarest(tmp_path):
    """So each class that two samples have as their rarest is on both sides."""
    rows = [(0, 1), (0, 1), (0, 2), (2, 0), (0,), (0,), (), ()]
    table = LabelTable.of(Plain(rows))
    assert table.rarest().tolist() == [1, 1, 2, 2, 0, 0, -1, -1]
    assert table.class_counts().tolist() == [6, 2, 2] and table.classes == 3
    kept, held = split(Plain(rows), 0.3, 0)
    assert len(kept) == len(held) == 4
    for side in (kept, held):
        assert {label for i in side for label in rows[i]} == {0, 1, 2}


def test_classes_of_one_sample_are_kept_and_named(caplog):
    _, held = split(Telling([0, 0, 0, 1, 2, 2]), 0.4, 0)
    assert 3 not in held
    assert "of classes with a single sample: 1" in caplog.text
    with pytest.raises(DataError, match="no class has two samples"):
        split(Telling([0, 1, 2]), 0.5, 0)


def test_shards_keep_their_sizes(tmp_path):
    """So the order of a part of shards still reads them one after the other."""
    data = tars(tmp_path, 14, 14, 14)
    parts = [Subset(data, indices) for indices in split(data, 0.3, 0)]
    for part in parts:
        assert part.shard_sizes.sum() == len(part) > 0
        owners = np.repeat(np.arange(3), data.shard_sizes)[part.indices]
        assert part.shard_sizes.tolist() == np.bincount(owners, minlength=3)[np.unique(owners)].tolist()


# -- in a recipe ------------------------------------------------------------------------------


def parted(**keys) -> dict:
    """Digits' training pictures, in parts for training and evaluation."""
    tree = tiny_digits()
    for mode in ("Train", "Eval"):
        tree["DataLoader"][mode]["dataset"].update({"split": "train", "val_fraction": 0.1, **keys})
    return tree


def test_training_and_evaluation_take_complementary_parts(tmp_path):
    tree = parted(slice="[:1000]")
    config = load(tree)
    train, evaluation = (build.dataset(config, mode) for mode in ("Train", "Eval"))
    names = [{data.name(i) for i in range(len(data))} for data in (train, evaluation)]
    assert names[0] | names[1] == {Digits().name(i) for i in range(1000)} and not names[0] & names[1]
    shares = [np.bincount(labels_of(data, np.arange(len(data)))) for data in (train, evaluation)]
    assert len(shares[1]) == 10 and np.allclose(shares[1] / (shares[0] + shares[1]), 0.1, atol=0.01)


def test_data_sets_of_a_stack_are_parted_each(tmp_path):
    tree = tiny_digits()
    parts = [{"Digits": {"split": "train", "val_fraction": 0.1}}, {"Digits": {"split": "test"}}]
    for mode in ("Train", "Eval"):
        tree["DataLoader"][mode]["dataset"] = {"name": "Stack", "datasets": parts, "transform_ops": []}
    train, evaluation = (build.dataset(load(tree), mode) for mode in ("Train", "Eval"))
    assert len(train) + len(evaluation) == 1797 + 360


@pytest.mark.parametrize("changed", [{"val_fraction": 0.2}, {"val_fraction": None}, {"val_seed": 1}])
@pytest.mark.parametrize("mode", ["Train", "Eval"])
def test_one_data_set_parted_in_two_ways_is_refused(mode, changed):
    tree = parted()
    tree["DataLoader"][mode]["dataset"].update(changed)
    with pytest.raises(ConfigError, match=r"DataLoader.Eval.dataset.val_fraction: DataLoader.Train names the same"):
        load(tree)


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 1.5, "half"])
def test_a_fraction_lies_between_0_and_1(wrong):
    with pytest.raises(ConfigError, match=r"dataset\.val_fraction: "):
        load(parted(val_fraction=wrong))


def test_other_data_sets_with_val_fraction_are_warned_of(caplog):
    tree = parted()
    tree["DataLoader"]["Eval"]["dataset"]["test_fraction"] = 0.3
    config = load(tree)
    build.compare_parts(config, *(build.dataset(config, mode) for mode in ("Train", "Eval")))
    assert "but are not alike" in caplog.text


@pytest.mark.parametrize("kind", ["plain", "stack"])
def test_a_continued_run_holds_out_what_it_did(tmp_path, process_state, capsys, kind):
    """Else it would train on pictures that it is evaluated on."""
    tree, place = parted(), "DataLoader.Train.dataset"
    if kind == "stack":
        place += ".datasets.0.Digits"
        for section in tree["DataLoader"].values():
            data = section["dataset"]
            transforms = data.pop("transform_ops")
            inner = {"Digits": {k: v for k, v in data.items() if k != "name"}}
            section["dataset"] = {"name": "Stack", "datasets": [inner], "transform_ops": transforms}
    tree["Global"] |= {"max_train_step": 1, "save_interval": 1, "output_dir": str(tmp_path / "run")}
    train = ["train", "-c", str(write_config(tmp_path / "c.yaml", tree)), "-o", "Global.resume=auto"]
    assert main(train) == 0
    train += ["-o", "Global.max_train_step=2"]
    for key, now, before in (("val_fraction", 0.2, 0.1), ("val_fraction", "null", 0.1), ("val_seed", 3, 0)):
        changed = [f"-o{place.replace('Train', mode)}.{key}={now}" for mode in ("Train", "Eval")]
        assert main([*train, *changed]) == 2
        shown = "None" if now == "null" else now
        assert f"{place}.{key}: is {shown}, but {before} in " in (error := capsys.readouterr().err), error
    assert main(train) == 0


@pytest.mark.distributed
def test_what_is_held_out_is_measured_alike_by_train_resume_and_eval(tmp_path):
    """On one process and on two, and by a standalone evaluation."""
    tree = parted()
    tree["Global"].update(
        eval_during_train=True, save_interval=1, max_train_step=4, epochs=2, eval_unit="step", eval_interval=2
    )
    path = write_config(tmp_path / "c.yaml", tree)
    out = f"Global.output_dir={tmp_path / 'run'}"
    plsc("train", "-c", path, "-o", out, "-o", "Global.max_train_step=2", cwd=tmp_path)
    again = ("Global.resume=auto", "DataLoader.Train.sampler.batch_size=16")
    plsc("train", "-c", path, "-o", out, *(x for o in again for x in ("-o", o)), processes=2, cwd=tmp_path)
    records = metrics(tmp_path / "run", "eval")
    held = len(split(Digits(), 0.1, 0)[1])
    assert [record["samples"] for record in records] == [held, held]
    plsc("eval", "--weights", tmp_path / "run" / "checkpoints" / "latest", "--output", tmp_path / "e.json")
    measured = json.loads((tmp_path / "e.json").read_text())
    assert measured["samples"] == held
    assert measured["top1"] == pytest.approx(records[-1]["top1"], abs=1e-9)


def test_slices_of_other_classes_are_named_both_ways(tmp_path, caplog):
    root = tmp_path / "pictures"
    write_pictures(root, 4, 3, size=(8, 8))
    tree = tiny_digits()
    for mode, piece in (("Train", "[:8]"), ("Eval", "[8:]")):
        tree["DataLoader"][mode]["dataset"] = {"name": "ImageFolder", "root": str(root), "slice": piece}
    tree["Model"]["class_num"] = 4
    config = load(tree)
    build.compare_parts(config, *(build.dataset(config, mode) for mode in ("Train", "Eval")))
    assert "Train.dataset.slice leaves no sample of some classes of DataLoader.Eval: class_3;" in caplog.text
    assert "Eval.dataset.slice leaves no sample of some classes of DataLoader.Train: class_0, class_1;" in caplog.text
    caplog.clear()
    tree["DataLoader"]["Train"]["dataset"]["slice"] = "[:11]"
    tree["DataLoader"]["Eval"]["dataset"]["slice"] = "[:12]"
    config = load(tree)
    build.compare_parts(config, *(build.dataset(config, mode) for mode in ("Train", "Eval")))
    assert not caplog.records


# -- classes ----------------------------------------------------------------------------------


def folder_tree(train, evaluation=None) -> dict:
    tree = tiny_digits()
    tree["Model"].update(in_chans=3, class_num="auto")
    for mode, root in (("Train", train), ("Eval", evaluation or train)):
        transforms = [{"DecodeImage": None}, {"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3}}]
        tree["DataLoader"][mode]["dataset"] = {"name": "ImageFolder", "root": str(root), "transform_ops": transforms}
        tree["DataLoader"][mode]["sampler"]["batch_size"] = 4
    tree["Global"].update(max_train_step=2, eval_during_train=True)
    return tree


def test_the_data_set_counts_the_models_classes(tmp_path):
    """In training and in what it leaves; the recipe itself stays as it is."""
    write_pictures(tmp_path / "a", 3, 4, size=(8, 8))
    path = write_config(tmp_path / "c.yaml", folder_tree(tmp_path / "a"))
    assert load(str(path)).Model.arguments["class_num"] == "auto"
    done = plsc("train", "-c", path, "-o", f"Global.output_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert "Model.class_num: auto, which is 3 by the data set" in done.stdout + done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["Model"]["class_num"] == 3
    shutil.rmtree(tmp_path / "a" / "class_1")  # the weights count the classes of an evaluation, and number them
    plsc("eval", "-c", path, "--weights", tmp_path / "run", "--output", tmp_path / "e.json", cwd=tmp_path)
    assert json.loads((tmp_path / "e.json").read_text())["samples"] == 8


def test_a_list_without_names_has_one_class_more_than_its_largest_label(tmp_path):
    data = list_data(tmp_path, ["3", "0", "3"])
    config = load(folder_tree(tmp_path / "pictures"))
    assert build.class_num(build.resolve_class_num(config, data)) == 4
    with pytest.raises(ConfigError, match="is auto, but neither data nor weights"):
        build.class_num(config)


def test_empty_folders_are_no_classes_and_are_named(tmp_path, caplog):
    write_pictures(tmp_path, 3, 2, size=(8, 8))
    (tmp_path / "class_1a").mkdir()
    (tmp_path / "class_1b" / "below").mkdir(parents=True)
    (tmp_path / "class_1b" / "below" / "notes.txt").write_text("no picture")
    data = ImageFolder(str(tmp_path))
    assert data.class_names == ["class_0", "class_1", "class_2"]
    assert labels_of(data, np.arange(6)).tolist() == [0, 0, 1, 1, 2, 2]
    assert "are not classes: class_1a, class_1b; remove them, or" in caplog.text


@pytest.mark.parametrize(
    ("inside", "problem", "remedy"),
    [
        (None, "no such folder (ImageFolder.root)", "name one that holds a folder for each class"),
        ("", "holds no folders (ImageFolder.root)", "put the pictures of each class into a folder of their own"),
        ("class", "hold no pictures ending in .jpg", "or name another folder as ImageFolder.root"),
    ],
)
def test_a_folder_without_classes_is_refused_with_key_and_remedy(tmp_path, inside, problem, remedy):
    """From Python by the class's argument, from a recipe by file and key, too."""
    root = tmp_path / "pictures"
    root.touch() if inside is None else (root / inside).mkdir(parents=True)
    tree = tiny_digits()
    tree["DataLoader"]["Train"]["dataset"] = {"name": "ImageFolder", "root": str(root), "transform_ops": []}
    recipe = write_config(tmp_path / "recipe.yaml", tree)
    with pytest.raises(DataError) as direct:
        ImageFolder(str(root))
    assert f"{root}: " in str(direct.value) and problem in str(direct.value) and remedy in str(direct.value)
    with pytest.raises(DataError, match=r"recipe\.yaml:\d+: DataLoader\.Train\.dataset: ") as refused:
        build.dataset(load(str(recipe)), "Train")
    assert str(refused.value).endswith(str(direct.value))


def test_a_class_that_evaluation_has_no_pictures_of_changes_no_number(tmp_path, caplog):
    """Whether its folder is empty or missing there."""
    write_pictures(tmp_path / "train", 4, 2, size=(8, 8))
    write_pictures(tmp_path / "val", 4, 2, size=(8, 8), seed=1)
    for picture in (tmp_path / "val" / "class_1").iterdir():
        picture.unlink()
    shutil.rmtree(tmp_path / "val" / "class_2")
    config = load(folder_tree(tmp_path / "train", tmp_path / "val"))
    train = build.dataset(config, "Train")
    data = build.dataset(config, "Eval", class_names=train.class_names, owner="the training data")
    assert isinstance(data, Renumbered) and data.class_names == train.class_names
    assert [data[i].label for i in range(len(data))] == labels_of(data, np.arange(4)).tolist() == [0, 0, 3, 3]
    assert "its classes are numbered as in the training data, and has no pictures of class_1, class_2" in caplog.text


def test_a_class_that_only_evaluation_has_is_refused(tmp_path):
    """Where its training folder is empty, for instance."""
    write_pictures(tmp_path / "train", 3, 2, size=(8, 8))
    write_pictures(tmp_path / "val", 4, 2, size=(8, 8))
    (tmp_path / "train" / "class_3").mkdir()
    config = load(folder_tree(tmp_path / "train", tmp_path / "val"))
    names = build.dataset(config, "Train").class_names
    with pytest.raises(
        DataError,
        match="has classes that the training data do not have: class_3; they have class_0",
    ):
        build.dataset(config, "Eval", class_names=names, owner="the training data")


def test_names_that_are_there_twice_are_not_matched():
    class Cranes(Plain):
        class_names = ["crane", "crane", "dog"]

    data = Cranes([0, 1, 2])
    assert numbered_as(data, ["crane", "crane", "dog"], "x") is data
    with pytest.raises(DataError, match="twice"):
        numbered_as(data, ["dog", "crane", "crane"], "x")


# -- a stranger's data set --------------------------------------------------------------------


def test_what_is_no_data_set_is_refused_with_what_it_lacks():
    from plsc.data.datasets.base import check_protocol, sample_of

    class Bare:
        def __len__(self):
            return 1

    class NamedByText(Plain):
        name = "flowers"

    class Tuples(Plain):
        def __getitem__(self, index):
            return np.zeros((2, 2, 1), "uint8"), 0

    with pytest.raises(DataError, match="Bare is not a data set"):
        check_protocol(Bare())
    with pytest.raises(DataError, match=r"NamedByText.name is a str; rename it: plsc calls name\(index\)"):
        check_protocol(NamedByText([0]))
    with pytest.raises(DataError, match=r"Tuples\[0\] is of type tuple; a data set gives Sample"):
        sample_of(Tuples([0]), 0)
    check_protocol(Plain([0]))
    assert sample_of(Plain([0]), 0).name == "Plain, sample 0"


# -- plsc data split --------------------------------------------------------------------------


def test_a_folder_is_divided_into_lists_like_val_fraction(tmp_path):
    """The same pictures, and a run on the lists knows the classes' names."""
    root = tmp_path / "pic tures"
    write_pictures(root, 3, 10, size=(8, 8))
    done = plsc(
        "data", "split", "--folder", root, "--output", tmp_path / "lists", "--val-fraction", "0.2", "--seed", "5"
    )
    assert "24 pictures in " in done.stdout and "6 pictures in " in done.stdout and "classes.txt" in done.stdout
    folder = ImageFolder(str(root))
    for name, indices in zip(("train_list.txt", "val_list.txt"), split(folder, 0.2, 5), strict=True):
        listed = ImageNetDataset(
            str(root), str(tmp_path / "lists" / name), class_names=str(tmp_path / "lists" / "classes.txt")
        )
        assert listed.class_names == folder.class_names
        assert [(listed.name(k), listed[k].label) for k in range(len(listed))] == [
            (folder.name(i), folder[i].label) for i in indices
        ]


def test_a_list_is_divided_line_by_line(tmp_path):
    """Of several labels too, with its delimiter; both parts together are the list."""
    lines = ["1,2", "1", "2", "2,3", "1,3", "3"]
    data = list_data(tmp_path, lines, delimiter="\t", multi_label=True)
    counts = datatools.split(data, tmp_path / "lists", val_fraction=0.4)
    parts = [(tmp_path / "lists" / name).read_text().splitlines() for name in ("train_list.txt", "val_list.txt")]
    assert counts == {"train_list.txt": len(parts[0]), "val_list.txt": len(parts[1])} and all(parts)
    assert sorted(parts[0] + parts[1]) == sorted((tmp_path / "list.txt").read_text().splitlines())
    assert not (tmp_path / "lists" / "classes.txt").exists()


def test_lists_that_are_there_are_kept(tmp_path):
    data = list_data(tmp_path, ["0", "0", "1", "1"])
    (tmp_path / "val_list.txt").write_text("mine")
    with pytest.raises(DataError, match=r"val_list\.txt: is there already"):
        datatools.split(data, tmp_path)
    assert (tmp_path / "val_list.txt").read_text() == "mine" and not (tmp_path / "train_list.txt").exists()


@pytest.mark.parametrize("name", ["a line\nbreak.png", "bytes \udcff.png"])
def test_names_of_any_bytes_stand_in_lists_but_for_line_breaks(tmp_path, name):
    for k in range(2):
        write_pictures(tmp_path / "pictures", 1, 2, size=(8, 8))
        (tmp_path / "pictures" / "class_0" / f"{k}{name}").write_bytes(
            (tmp_path / "pictures" / "class_0" / "000.jpg").read_bytes()
        )
    data = ImageFolder(str(tmp_path / "pictures"))
    if "\n" in name:
        with pytest.raises(DataError, match="line break"):
            datatools.split(data, tmp_path / "lists")
        assert not (tmp_path / "lists" / "train_list.txt").exists()
        return
    datatools.split(data, tmp_path / "lists")
    listed = ImageNetDataset(str(tmp_path / "pictures"), str(tmp_path / "lists" / "train_list.txt"))
    assert all(listed[k].image for k in range(len(listed)))


def test_other_data_sets_have_no_lines():
    with pytest.raises(ConfigError, match="Digits has no lines for list files"):
        datatools.split(Digits(), "lists")
    with pytest.raises(ConfigError, match=r"split\.val_fraction: got 1"):
        datatools.split(Digits(), "lists", val_fraction=1.0)
