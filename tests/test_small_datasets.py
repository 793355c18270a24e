"""CIFAR-10, CIFAR-100 and Fashion-MNIST: archives in the official layout, whole, odd and hostile."""

import functools
import gzip
import hashlib
import io
import itertools
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from plsc.data.datasets import CIFAR10, CIFAR100, FashionMNIST, fashion_mnist
from plsc.errors import DataError
from tests.helpers import SHARED, metrics, plsc
from tests.http_server import FileServer

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 12


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes as Python 2 did, in which the official archives were written."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        short = len(data) < 256
        self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data)))
        self.write(data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2(content) -> bytes:
    packed = io.BytesIO()
    Python2Pickler(packed, protocol=2).dump(content)
    return packed.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python3(content, protocol=2) -> bytes:
    """As somebody writes it who wants Python 2's keys: bytes."""

    def turned(value):
        if isinstance(value, dict):
            return {key.encode(): turned(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [turned(inner) for inner in value]
        return value.encode() if isinstance(value, str) else value

    return pickle.dumps(turned(content), protocol=protocol)


def pictures(count: int, side: int, channels: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """[count, side, side, channels] uint8 whose brightness tells one of ten classes."""
    rng = np.random.default_rng(seed)
    labels = [int(label) for label in rng.permutation(np.arange(count) % 10)]
    brightness = 20 + 22 * np.array(labels).reshape(-1, 1, 1, 1)
    noise = rng.normal(0, 8, [count, side, side, channels])
    return np.clip(brightness + noise, 0, 255).astype("uint8"), labels


def rows(images: np.ndarray) -> np.ndarray:
    """[n, 32, 32, 3] → [n, 3072]: all red, all green, all blue."""
    return np.stack([np.concatenate([image[:, :, c].ravel() for c in range(3)]) for image in images])


def cifar10_members(per_batch=PER_BATCH) -> tuple[dict[str, dict], np.ndarray, list[int]]:
    """The official archive's members by name, and what they hold: six batches, the last one for testing."""
    images, labels = pictures(6 * per_batch, 32, 3, seed=0)
    members = {"batches.meta": {"num_cases_per_batch": per_batch, "label_names": CIFAR10_NAMES, "num_vis": 3072}}
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        piece = slice(k * per_batch, (k + 1) * per_batch)
        members[name] = {
            "batch_label": f"batch {k}",
            "labels": labels[piece],
            "data": rows(images[piece]),
            "filenames": [f"{i}.png" for i in range(per_batch)],
        }
    return members, images, labels


def write_archive(folder, members: dict, dump, *, inner="cifar-10-batches-py", name="cifar-10-python.tar.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, "w:gz") as archive:
        for member, content in members.items():
            packed = content if isinstance(content, bytes) else dump(content)
            info = tarfile.TarInfo(f"{inner}/{member}")
            info.size = len(packed)
            archive.addfile(info, io.BytesIO(packed))
    return folder / name


def equal(data, images, labels) -> bool:
    samples = [data[k] for k in range(len(data))]
    return [s.label for s in samples] == labels and np.array_equal(np.stack([s.image for s in samples]), images)


@pytest.mark.parametrize("dump", [python2, python3, functools.partial(python3, protocol=4)])
def test_cifar10_is_read_from_its_archive(tmp_path, dump):
    """Pixels, labels, names and order, whichever Python wrote it; nothing is unpacked to the disk."""
    members, images, labels = cifar10_members()
    archive = write_archive(tmp_path, members, dump)
    train, test = CIFAR10(str(tmp_path)), CIFAR10(str(archive), split="test")
    assert equal(train, images[: 5 * PER_BATCH], labels[: 5 * PER_BATCH])
    assert equal(test, images[5 * PER_BATCH :], labels[5 * PER_BATCH :])
    assert train.class_names == CIFAR10_NAMES and train.max_labels == 1
    assert train[3].image.dtype == np.uint8 and train[3].name == "CIFAR-10 train 3"
    assert os.listdir(tmp_path) == [archive.name]


def test_cifar10_is_read_from_the_unpacked_folder(tmp_path):
    """The folder itself, or the one above it."""
    members, images, labels = cifar10_members()
    with tarfile.open(write_archive(tmp_path / "packed", members, python2)) as archive:
        archive.extractall(tmp_path, filter="data")
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        assert equal(CIFAR10(str(root)), images[: 5 * PER_BATCH], labels[: 5 * PER_BATCH])


def test_empty_texts_of_python_3_are_read(tmp_path):
    """Empty bytes at protocol 2 are written as a call of bytes()."""
    members, images, labels = cifar10_members()
    for name in list(members)[1:]:
        members[name]["filenames"] = [""] * PER_BATCH
    write_archive(tmp_path, members, python3)
    assert equal(CIFAR10(str(tmp_path), "test"), images[5 * PER_BATCH :], labels[5 * PER_BATCH :])


@pytest.mark.parametrize("dump", [python2, python3])
def test_cifar100_has_fine_and_coarse_labels(tmp_path, dump):
    images, coarse = pictures(50, 32, 3, seed=1)
    fine = [10 * label + 3 for label in coarse]
    members = {
        "meta": {
            "fine_label_names": [f"fine {k}" for k in range(100)],
            "coarse_label_names": [f"coarse {k}" for k in range(20)],
        }
    }
    for name, piece in (("train", slice(0, 40)), ("test", slice(40, 50))):
        members[name] = {"data": rows(images[piece]), "fine_labels": fine[piece], "coarse_labels": coarse[piece]}
    write_archive(tmp_path, members, dump, inner="cifar-100-python", name="cifar-100-python.tar.gz")
    train = CIFAR100(str(tmp_path))
    assert equal(train, images[:40], fine[:40]) and train.class_names[57] == "fine 57" and len(train.class_names) == 100
    groups = CIFAR100(str(tmp_path), split="test", label="coarse")
    assert equal(groups, images[40:], coarse[40:]) and groups.class_names == [f"coarse {k}" for k in range(20)]


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("member", ["batches.meta", "data_batch_3"])
def test_an_archive_that_asks_for_code_is_refused(tmp_path, member):
    """The official reader would run it."""
    members, *_ = cifar10_members()
    members[member] = pickle.dumps({**members[member], "extra": Runs(tmp_path / "run")}, protocol=2)
    write_archive(tmp_path / "data", members, python2)
    with pytest.raises(DataError, match=rf"{member}: refused: it asks for (posix|os)\.mkdir"):
        CIFAR10(str(tmp_path / "data"))
    assert not (tmp_path / "run").exists()


def change(member, **values):
    def apply(members):
        members[member].update(values)

    return apply


def shorten(member, key):
    def apply(members):
        members[member][key] = members[member][key][:-1]

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.pop("data_batch_4"), r"holds no cifar-10-batches-py/data_batch_4"),
        (lambda m: m.pop("batches.meta"), r"holds no cifar-10-batches-py/batches.meta"),
        (lambda m: m.update(data_batch_2=b"no pickle"), r"data_batch_2: damaged"),
        (lambda m: m.update(data_batch_2=python2([1, 2])), r"data_batch_2: holds list, not the dictionary"),
        (lambda m: m["data_batch_1"].pop("data"), r"data_batch_1: its data is NoneType, not \[n, 3072\]"),
        (change("data_batch_1", data=np.zeros([PER_BATCH, 3000], "uint8")), r"its data is \[12, 3000\] uint8"),
        (change("data_batch_1", data=np.zeros([PER_BATCH, 3072], "float32")), r"its data is \[12, 3072\] float32"),
        (shorten("data_batch_5", "data"), r"data_batch_5: has 11 pictures, but the archive says 12"),
        (shorten("data_batch_5", "labels"), r"data_batch_5: has 12 pictures, but 11 labels"),
        (lambda m: m["data_batch_5"].pop("labels"), r"data_batch_5: its labels are not a list of whole numbers"),
        (change("data_batch_3", labels=[10] * PER_BATCH), r"labels reach from 10 to 10; there are 10 classes"),
        (change("data_batch_3", labels=[-1] * PER_BATCH), r"labels reach from -1"),
        (change("batches.meta", label_names=None), r"does not say its label_names"),
    ],
)
def test_a_damaged_archive_names_the_member(tmp_path, spoil, message):
    members, *_ = cifar10_members()
    spoil(members)
    write_archive(tmp_path, members, python2)
    with pytest.raises(DataError, match=message):
        CIFAR10(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_reported(tmp_path, share):
    members, *_ = cifar10_members()
    archive = write_archive(tmp_path, members, python2)
    packed = archive.read_bytes()
    archive.write_bytes(packed[: int(share * len(packed))])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz"):
        CIFAR10(str(tmp_path))


def test_a_flipped_bit_is_reported(tmp_path):
    """In a pixel, where nothing but gzip's checksum can tell."""
    members, *_ = cifar10_members()
    archive = write_archive(tmp_path, members, python2)
    packed = bytearray(gzip.compress(gzip.decompress(archive.read_bytes()), compresslevel=0))
    packed[packed.index(members["data_batch_2"]["data"].tobytes()[:64])] ^= 1
    archive.write_bytes(packed)
    with pytest.raises(DataError, match=r"damaged archive: CRC check failed"):
        CIFAR10(str(tmp_path))


def test_what_is_not_there_says_where_it_belongs(tmp_path):
    with pytest.raises(DataError, match=r"neither cifar-10-python.tar.gz nor the folder .*CIFAR10.download"):
        CIFAR10(str(tmp_path))
    with pytest.raises(DataError, match=r"cifar-100-python.tar.gz.*CIFAR100.download"):
        CIFAR100(str(tmp_path))


# -- Fashion-MNIST ----------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def fashion_files(count=40) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    """The four official files by name, unpacked: the first pictures for training, ten for testing."""
    images, labels = pictures(count + 10, 28, 1, seed=2)
    files = {}
    for split, piece in (("train", slice(0, count)), ("t10k", slice(count, count + 10))):
        files[f"{split}-images-idx3-ubyte"] = idx(images[piece, :, :, 0])
        files[f"{split}-labels-idx1-ubyte"] = idx(np.array(labels[piece], "uint8"))
    return files, images, labels


def write_fashion(folder, files: dict[str, bytes], packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read(tmp_path, packed):
    files, images, labels = fashion_files()
    write_fashion(tmp_path, files, packed)
    train, test = FashionMNIST(str(tmp_path)), FashionMNIST(str(tmp_path), split="test")
    assert equal(train, images[:40], labels[:40]) and equal(test, images[40:], labels[40:])
    assert (
        train[0].image.shape == (28, 28, 1) and train.class_names[0] == "T-shirt/top" and train.class_names[8] == "Bag"
    )


def test_debians_place_is_looked_at_second(tmp_path, monkeypatch):
    """What lies in root comes first; without it the package's files serve."""
    files, images, labels = fashion_files()
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    with pytest.raises(DataError, match=r"holds no train-images-idx3-ubyte.gz.*dataset-fashion-mnist"):
        FashionMNIST(str(tmp_path / "mine"))
    write_fashion(tmp_path / "debian", files)
    assert equal(FashionMNIST(str(tmp_path / "mine")), images[:40], labels[:40])
    few = fashion_files(20)[0]
    write_fashion(tmp_path / "mine", {IMAGES: few[IMAGES]})
    assert len(FashionMNIST(str(tmp_path / "mine"))) == 40, "pictures and labels come from one place"
    write_fashion(tmp_path / "mine", few)
    assert len(FashionMNIST(str(tmp_path / "mine"))) == 20


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (IMAGES, lambda b: b"", r"ends after 0 bytes"),
        (IMAGES, lambda b: b"\x89PNG" + b[4:], r"begins with 89504e47; it is not an IDX file of 3 dimensions"),
        (IMAGES, lambda b: b[:2] + b"\x0d" + b[3:], r"begins with 00000d03"),  # IDX of float32
        (IMAGES, lambda b: b[:-1], r"has fewer values than the 31,360 it says"),
        (IMAGES, lambda b: b + b"\0", r"has more values"),
        (IMAGES, lambda b: idx(np.zeros([40, 32, 32], "uint8")), r"40 items of \[32, 32\]; expected \[28, 28\]"),
        (IMAGES, lambda b: idx(np.zeros([0, 28, 28], "uint8")), r"holds 0 items"),
        (IMAGES, lambda b: struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 28, 28) + b[16:], r"4294967295 items"),
        (LABELS, lambda b: idx(np.zeros(39, "uint8")), r"has 40 pictures, but train-labels.* has 39 labels"),
        (LABELS, lambda b: idx(np.full(40, 10, "uint8")), r"has the label 10; there are 10 classes"),
        (LABELS, lambda b: b[:10], r"has fewer values"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, name, spoil, message):
    files, *_ = fashion_files()
    write_fashion(tmp_path, {**files, name: spoil(files[name])})
    with pytest.raises(DataError, match=rf"{tmp_path}/(train-images|{name}).*{message}"):
        FashionMNIST(str(tmp_path))


def test_a_truncated_gzip_file_is_named(tmp_path):
    files, *_ = fashion_files()
    write_fashion(tmp_path, files)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{IMAGES}.gz: damaged"):
        FashionMNIST(str(tmp_path))


# -- downloading ------------------------------------------------------------------------------


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_a_missing_archive_is_downloaded_once(tmp_path, monkeypatch):
    """By Paddle, from where Paddle says, with Paddle's checksum."""
    from paddle.vision.datasets import cifar

    members, images, labels = cifar10_members()
    archive = write_archive(tmp_path / "web", members, python2)
    monkeypatch.setenv("NO_PROXY", "*")
    with FileServer(tmp_path / "web") as server:
        monkeypatch.setattr(cifar, "CIFAR10_URL", f"{server.address}/{archive.name}")
        monkeypatch.setattr(cifar, "CIFAR10_MD5", md5(archive))
        for _ in range(2):
            data = CIFAR10(str(tmp_path / "new" / "folder"), download=True)
            assert equal(data, images[: 5 * PER_BATCH], labels[: 5 * PER_BATCH])
    assert len(server.requests) == 1
    assert os.listdir(tmp_path / "new" / "folder") == [archive.name]


def test_fashion_mnist_is_downloaded_file_by_file(tmp_path, monkeypatch):
    from paddle.vision.datasets import FashionMNIST as Official

    files, images, labels = fashion_files()
    write_fashion(tmp_path / "web", files)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    monkeypatch.setenv("NO_PROXY", "*")
    official = {"TRAIN_IMAGE": IMAGES, "TRAIN_LABEL": LABELS, "TEST_IMAGE": "t10k-images-idx3-ubyte"}
    with FileServer(tmp_path / "web") as server:
        for name, file in official.items():
            assert getattr(Official, f"{name}_URL").endswith(f"/{file}.gz")
            monkeypatch.setattr(Official, f"{name}_URL", f"{server.address}/{file}.gz")
            monkeypatch.setattr(Official, f"{name}_MD5", md5(tmp_path / "web" / f"{file}.gz"))
        data = FashionMNIST(str(tmp_path / "mine"), download=True)
    assert equal(data, images[:40], labels[:40])


@pytest.mark.parametrize("fault", ["checksum", "missing"])
def test_a_failed_download_says_what_to_do_by_hand(tmp_path, monkeypatch, fault):
    """Another checksum than the official one, or no such file: nothing stays."""
    from paddle.vision.datasets import cifar

    members, *_ = cifar10_members()
    archive = write_archive(tmp_path / "web", members, python2)
    if fault == "missing":
        archive.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("NO_PROXY", "*")
    with FileServer(tmp_path / "web") as server:
        monkeypatch.setattr(cifar, "CIFAR10_URL", f"{server.address}/{archive.name}")
        expected = rf"cannot be downloaded.*MD5 {cifar.CIFAR10_MD5}\) and put it into {tmp_path}/data"
        with pytest.raises(DataError, match=expected):
            CIFAR10(str(tmp_path / "data"), download=True)
    assert os.listdir(tmp_path / "data") == []


def test_a_local_archive_is_not_replaced_by_a_download(tmp_path):
    """Its bytes differ from the official ones, its content is right."""
    members, images, labels = cifar10_members()
    archive = write_archive(tmp_path, members, python2)
    before = md5(archive)
    assert equal(CIFAR10(str(tmp_path), download=True), images[: 5 * PER_BATCH], labels[: 5 * PER_BATCH])
    assert md5(archive) == before


# -- training ---------------------------------------------------------------------------------


def train(tmp_path, recipe: str, root, steps: int, *overrides) -> tuple[list[dict], list[dict]]:
    """Run a shipped recipe for some updates; the training and evaluation records."""
    overrides = [
        f"DataLoader.Train.dataset.root={root}",
        f"DataLoader.Eval.dataset.root={root}",
        f"Global.output_dir={tmp_path}/run",
        "Global.device=cpu",
        f"Global.max_train_step={steps}",
        *overrides,
    ]
    plsc("train", "-c", recipe, *(part for o in overrides for part in ("-o", o)), cwd=tmp_path, timeout=1500)
    return metrics(tmp_path / "run"), metrics(tmp_path / "run", "eval")


SHORT = ("Global.global_batch_size=20", "Global.print_batch_step=1", "LRScheduler.warmup_steps=2")


@pytest.mark.parametrize("recipe", ["cifar10_vit", "fashion_mnist_vit"])
def test_a_shipped_recipe_trains_on_a_tiny_archive(tmp_path, recipe):
    """The official layout with few pictures: the loss falls, every test picture is counted once."""
    if recipe == "cifar10_vit":
        write_archive(tmp_path / "data", cifar10_members(per_batch=20)[0], python2)
    else:
        write_fashion(tmp_path / "data", fashion_files(count=100)[0])
    records, evaluations = train(tmp_path, recipe, tmp_path / "data", 10, *SHORT)
    losses = [record["loss"] for record in records]
    assert len(losses) == 10 and np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05
    assert evaluations[-1]["samples"] == (20 if recipe == "cifar10_vit" else 10)


# to_static and a part of the test pictures, so that it takes a minute
REAL = (
    "Global.global_batch_size=64",
    "Global.print_batch_step=10",
    "Global.to_static=True",
    "DataLoader.Eval.dataset.slice='[:2000]'",
)


def falls(records: list[dict]) -> bool:
    """Each quarter of the run has a lower loss than the one before."""
    quarters = [np.mean([r["loss"] for r in part]) for part in np.array_split(np.array(records, object), 4)]
    return all(later < earlier for earlier, later in itertools.pairwise(quarters))


@pytest.mark.long
@pytest.mark.shared
def test_cifar10_itself_trains(tmp_path):
    """200 updates of the shipped recipe at a batch of 64, on the real pictures."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm, which the archive is built with")
    made = subprocess.run([sys.executable, SHARED / "data" / "make_cifar10.py", tmp_path / "data"], capture_output=True)
    if made.returncode:
        pytest.skip(f"the archive could not be built: {made.stderr.decode()[-200:]}")
    records, evaluations = train(tmp_path, "cifar10_vit", tmp_path / "data", 200, *REAL)
    assert falls(records) and evaluations[-1]["samples"] == 2_000
    assert evaluations[-1]["top1"] > 0.25, "chance is 0.1"


@pytest.mark.long
@pytest.mark.shared
def test_fashion_mnist_itself_trains(tmp_path):
    """200 updates of the shipped recipe at a batch of 64, on the pictures of Debian's package."""
    root = fashion_mnist.DEBIAN
    if not root.is_dir():
        package = "apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb unpacked"
        if subprocess.run(package, shell=True, cwd=tmp_path, capture_output=True).returncode:
            pytest.skip("needs Debian's package dataset-fashion-mnist")
        root = tmp_path / "unpacked" / root.relative_to("/")
    records, evaluations = train(tmp_path, "fashion_mnist_vit", root, 200, *REAL)
    assert falls(records) and evaluations[-1]["samples"] == 2_000
    assert evaluations[-1]["top1"] > 0.4, "chance is 0.1"
