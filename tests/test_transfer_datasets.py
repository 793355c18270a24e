"""Flowers-102, Pets, Food-101, SVHN and STL-10: official layouts in small, unpacking, downloads and damage."""

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from plsc.data.datasets import STL10, SVHN, Flowers102, Food101, OxfordPets, archives, flowers, food, pets, stl10, svhn
from plsc.errors import ConfigError, DataError
from plsc.files import WRITING
from tests.http_server import FileServer
from tests.test_small_datasets import md5, pictures


def jpeg(level: int) -> bytes:
    return cv2.imencode(".jpg", np.full((12, 16, 3), level, "uint8"))[1].tobytes()


def write_tar(path, files: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_flowers(root, labels=(5, 102, 1, 77, 5, 9)):
    """Six pictures: 1 and 4 for training, 2 for validation, 6, 3 and 5 for testing; labels count from 1."""
    write_tar(root / "102flowers.tgz", {f"jpg/image_{k:05d}.jpg": jpeg(10 * k) for k in range(1, 7)})
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], "uint8")})
    sets = {"trnid": [[1, 4]], "valid": [[2]], "tstid": [[6, 3, 5]]}
    savemat(root / "setid.mat", {name: np.array(numbers, "uint16") for name, numbers in sets.items()})
    return root


def write_pets(root):
    names = {"Abyssinian_1": 1, "yorkshire_terrier_2": 2, "Abyssinian_10": 1}
    files = {f"images/{name}.jpg": jpeg(20 * k) for k, name in enumerate(["Abyssinian_3", *names], 1)}
    write_tar(root / "images.tar.gz", {**files, "images/Abyssinian_1.mat": b"another file"})
    lines = "".join(f"{name} {label} 1 1\n" for name, label in names.items())
    listings = {"annotations/trainval.txt": lines.encode(), "annotations/test.txt": b"Abyssinian_3 1 1 1\n"}
    write_tar(root / "annotations.tar.gz", {"./" + name: text for name, text in listings.items()})
    return root


def write_food(root):
    classes, train, test = "apple_pie\nbaby_back_ribs\n", "baby_back_ribs/7\napple_pie/12\n", "apple_pie/3\n"
    files = {"food-101/meta/classes.txt": classes, "food-101/meta/train.txt": train, "food-101/meta/test.txt": test}
    files = {name: text.encode() for name, text in files.items()}
    pictures = [f"food-101/images/{line}.jpg" for line in (train + test).split()]
    write_tar(root / "food-101.tar.gz", files | {name: jpeg(50 * k) for k, name in enumerate(pictures)})
    return root


def write_svhn(root, split="train", count=20, **changes):
    root.mkdir(parents=True, exist_ok=True)
    images, labels = pictures(count, 32, 3, seed=4)
    content = {"X": images.transpose(1, 2, 3, 0), "y": np.array([[label or 10] for label in labels], "uint8")}
    savemat(root / f"{split}_32x32.mat", content | changes)
    return images, labels


def stl10_files() -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    """The members, and all pictures and labels: six for training, four for testing."""
    images, labels = pictures(10, 96, 3, seed=5)
    files = {"stl10_binary/class_names.txt": "\n".join("abcdefghij").encode() + b"\n"}
    files["stl10_binary/unlabeled_X.bin"] = bytes(100)
    for split, piece in (("train", slice(0, 6)), ("test", slice(6, 10))):
        columns = [image[:, :, c].T.tobytes() for image in images[piece] for c in range(3)]  # column by column
        files[f"stl10_binary/{split}_X.bin"] = b"".join(columns)
        files[f"stl10_binary/{split}_y.bin"] = bytes(label + 1 for label in labels[piece])
    files["stl10_binary/fold_indices.txt"] = b"0 2 \n5 1 3 \n" + b"4 \n" * 8
    return files, images, labels


def shown(data) -> list[tuple[str, int]]:
    """(file name, label) of every sample."""
    return [(os.path.basename(data.name(k)), data[k].label) for k in range(len(data))]


# -- whole archives -----------------------------------------------------------------------------


def test_flowers(tmp_path):
    root = str(write_flowers(tmp_path))
    train = Flowers102(root)
    assert shown(train) == [("image_00001.jpg", 4), ("image_00004.jpg", 76)]
    assert train[1].image == jpeg(40) and train[1].name == f"{root}/jpg/image_00004.jpg"
    assert shown(Flowers102(root, "val")) == [("image_00002.jpg", 101)]
    assert shown(Flowers102(root, "trainval")) == [*shown(train), ("image_00002.jpg", 101)]
    assert [label for _, label in shown(Flowers102(root, "test"))] == [8, 0, 4]
    assert len(train.class_names) == len({*train.class_names}) == 102
    assert train.class_names[0] == "pink primrose" and train.class_names[76] == "passion flower"
    assert sorted(os.listdir(root)) == [".jpg.lock", "102flowers.tgz", "imagelabels.mat", "jpg", "setid.mat"]


def test_pets(tmp_path):
    """Classes by their number; a breed's name may have two words. Members may begin with ./ ."""
    data = OxfordPets(str(write_pets(tmp_path)))
    assert shown(data) == [("Abyssinian_1.jpg", 0), ("yorkshire_terrier_2.jpg", 1), ("Abyssinian_10.jpg", 0)]
    assert data.class_names == ["Abyssinian", "yorkshire terrier"] and data[0].image == jpeg(40)
    test = OxfordPets(str(tmp_path), "test")
    assert shown(test) == [("Abyssinian_3.jpg", 0)]
    np.testing.assert_array_equal(data.labels_of(np.array([0, 1])), [0, 1])


def test_food(tmp_path):
    data = Food101(str(write_food(tmp_path)))
    assert shown(data) == [("7.jpg", 1), ("12.jpg", 0)]
    assert data.class_names == ["apple pie", "baby back ribs"]
    assert shown(Food101(f"{tmp_path}/food-101", "test")) == [("3.jpg", 0)]


@pytest.mark.parametrize(("split", "count"), [("train", 20), ("test", 1), ("extra", 3)])
def test_svhn(tmp_path, split, count):
    """Height, width, channel and picture in this order; the digit 0 is stored as 10."""
    images, labels = write_svhn(tmp_path, split, count)
    data = SVHN(str(tmp_path), split)
    assert [data[k].label for k in range(count)] == labels and data.class_names[0] == "0"
    np.testing.assert_array_equal(np.stack([data[k].image for k in range(count)]), images)
    assert data.name(0) == f"SVHN {split} 0"


def test_stl10(tmp_path):
    """From the archive, from the folder, and one of the ten folds."""
    files, images, labels = stl10_files()
    archive = write_tar(tmp_path / "stl10_binary.tar.gz", files)
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    for root in (tmp_path, archive, tmp_path / "unpacked", tmp_path / "unpacked" / "stl10_binary"):
        for split, piece in (("train", slice(0, 6)), ("test", slice(6, 10))):
            data = STL10(str(root), split)
            assert [data[k].label for k in range(len(data))] == labels[piece]
            np.testing.assert_array_equal(np.stack([data[k].image for k in range(len(data))]), images[piece])
    fold = STL10(str(tmp_path), fold=1)
    assert [fold[k].label for k in range(3)] == [labels[k] for k in (5, 1, 3)]
    assert fold.class_names == [*"abcdefghij"]
    with pytest.raises(ConfigError, match=r"STL10\.fold"):
        STL10(str(tmp_path), "test", fold=1)


# -- unpacking ----------------------------------------------------------------------------------


def test_several_processes_unpack_once(tmp_path, monkeypatch):
    write_flowers(tmp_path)
    unpacked, counted = archives._unpack, []
    monkeypatch.setattr(archives, "_unpack", lambda *a: counted.append(a) or unpacked(*a))
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda _: shown(Flowers102(str(tmp_path))), range(4)))
    assert len(counted) == 1 and all(pairs == actual[0] for pairs in actual)


def test_what_a_killed_process_left_is_unpacked_anew(tmp_path):
    write_food(tmp_path)
    (tmp_path / f"{WRITING}food-101" / "images").mkdir(parents=True)
    (tmp_path / f"{WRITING}food-101" / "half").write_bytes(b"half a picture")
    assert len(Food101(str(tmp_path))) == 2
    assert sorted(os.listdir(tmp_path)) == [".food-101.lock", "food-101", "food-101.tar.gz"]
    assert not (tmp_path / "food-101" / "half").exists()


@pytest.mark.parametrize("name", ["jpg/../../escaped.jpg", "/jpg/../escaped.jpg", "../escaped.jpg"])
def test_an_archive_does_not_write_outside_its_folder(tmp_path, name):
    root = write_flowers(tmp_path / "root")
    write_tar(root / "102flowers.tgz", {"jpg/image_00001.jpg": jpeg(1), name: b"hostile"})
    with pytest.raises(DataError, match=r"leaves the folder|holds no image_00004\.jpg"):
        Flowers102(str(root))
    assert not list(tmp_path.rglob("escaped.jpg"))


def test_links_and_what_lies_elsewhere_stay_packed(tmp_path):
    root = write_flowers(tmp_path / "root")
    with tarfile.open(root / "102flowers.tgz", "w:gz") as archive:
        for k in range(1, 7):
            info = tarfile.TarInfo(f"jpg/image_{k:05d}.jpg")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"same"))
        link = tarfile.TarInfo("jpg/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("elsewhere/file.jpg"), io.BytesIO())
    assert len(Flowers102(str(root))) == 2
    assert len(os.listdir(root / "jpg")) == 6 and not (root / "elsewhere").exists()


def test_an_archive_that_unpacks_to_more_than_the_official_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(food, "_LARGEST", 1000)
    with pytest.raises(DataError, match=r"food-101\.tar\.gz: holds more than 1,000 bytes"):
        Food101(str(write_food(tmp_path)))
    assert sorted(os.listdir(tmp_path)) == [".food-101.lock", "food-101.tar.gz"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "another folder"])
def test_a_damaged_archive_leaves_nothing_unpacked(tmp_path, damage):
    archive = write_flowers(tmp_path) / "102flowers.tgz"
    content = bytearray(archive.read_bytes())
    if damage == "cut":
        archive.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[-6] ^= 1  # of gzip's checksum
        archive.write_bytes(content)
    else:
        write_tar(archive, {"png/image_00001.jpg": jpeg(1)})
    with pytest.raises(DataError, match=r"102flowers\.tgz: (cannot be unpacked, or is damaged|holds no folder jpg)"):
        Flowers102(str(tmp_path))
    assert not (tmp_path / "jpg").exists() and not list(tmp_path.glob(f"{WRITING}*"))


# -- what does not fit --------------------------------------------------------------------------


def edited(path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


CASES = {
    "flowers without labels": (
        write_flowers,
        lambda r: (r / "imagelabels.mat").unlink(),
        Flowers102,
        "holds no imagelabels.mat.*Flowers102.download",
    ),
    "flowers' damaged labels": (
        write_flowers,
        lambda r: edited(r / "setid.mat", "text"),
        Flowers102,
        r"setid\.mat: cannot be read as a MATLAB file",
    ),
    "flowers of a class too many": (
        lambda r: write_flowers(r, (5, 103, 1, 7, 5, 9)),
        lambda r: None,
        Flowers102,
        "labels from 1 to 103, not 1 to 102",
    ),
    "flowers' picture missing": (
        write_flowers,
        lambda r: (Flowers102(str(r)), (r / "jpg/image_00004.jpg").unlink()),
        Flowers102,
        r"jpg: holds no image_00004\.jpg",
    ),
    "flowers' other variable": (
        write_flowers,
        lambda r: savemat(r / "imagelabels.mat", {"names": [[1]]}),
        Flowers102,
        "imagelabels.mat: holds no numbers labels",
    ),
    "pets' odd line": (
        write_pets,
        lambda r: (OxfordPets(str(r)), edited(r / "annotations/trainval.txt", "Abyssinian_1 x 1 1")),
        OxfordPets,
        r"trainval\.txt: expected a line such as",
    ),
    "pets without a class": (
        write_pets,
        lambda r: (OxfordPets(str(r)), edited(r / "annotations/trainval.txt", "Abyssinian_1 2 1 1")),
        OxfordPets,
        "no picture of class 1",
    ),
    "pets' empty list": (
        write_pets,
        lambda r: (OxfordPets(str(r)), edited(r / "annotations/trainval.txt", "\n")),
        OxfordPets,
        "names no pictures",
    ),
    "food of no class": (
        write_food,
        lambda r: (Food101(str(r)), edited(r / "food-101/meta/train.txt", "soup/1\n")),
        Food101,
        r"expected a line such as 'apple_pie/1005649', got 'soup/1'",
    ),
    "food's picture missing": (
        write_food,
        lambda r: (Food101(str(r)), (r / "food-101/images/apple_pie/12.jpg").unlink()),
        Food101,
        r"holds no images/apple_pie/12\.jpg",
    ),
    "svhn of another shape": (
        lambda r: write_svhn(r, X=np.zeros((28, 28, 3, 2), "uint8")),
        lambda r: None,
        SVHN,
        r"its X is \[28, 28, 3, 2\] uint8",
    ),
    "svhn's labels": (
        lambda r: write_svhn(r, y=np.array([[11]] * 20)),
        lambda r: None,
        SVHN,
        "reach from 11 to 11, not from 1 to 10",
    ),
    "svhn's counts": (
        lambda r: write_svhn(r, y=np.array([[1]] * 3)),
        lambda r: None,
        SVHN,
        "has 20 pictures, but 3 labels",
    ),
    "nothing of stl10": (
        lambda r: r.mkdir(),
        lambda r: None,
        STL10,
        r"neither stl10_binary\.tar\.gz nor the folder stl10_binary.*STL10.download",
    ),
    "nothing of food": (
        lambda r: r.mkdir(),
        lambda r: None,
        Food101,
        r"neither food-101\.tar\.gz nor the folder food-101.*Food101.download",
    ),
    "nothing of svhn": (lambda r: r.mkdir(), lambda r: None, SVHN, r"holds no train_32x32\.mat.*SVHN.download"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_named(tmp_path, case):
    write, damage, dataset, message = CASES[case]
    write(tmp_path / "root")
    damage(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        dataset(str(tmp_path / "root"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_X.bin", bytes(100), "is not a multiple of 27,648"),
        ("train_y.bin", bytes([1, 2]), "6 pictures, but 2 labels"),
        ("train_y.bin", bytes([0] * 6), "reach from 0 to 0, not from 1 to 10"),
        ("class_names.txt", b"one two", "has 2 names, not 10"),
        ("fold_indices.txt", b"99\n", "between 0 and 5"),
        ("fold_indices.txt", b"a\n", "no numbers in line 1"),
        ("train_X.bin", None, "holds no stl10_binary/train_X.bin"),
    ],
)
def test_a_wrong_member_of_stl10_is_named(tmp_path, name, content, message):
    files = stl10_files()[0]
    files[f"stl10_binary/{name}"] = content
    write_tar(tmp_path / "stl10_binary.tar.gz", {key: value for key, value in files.items() if value is not None})
    with pytest.raises(DataError, match=message):
        STL10(str(tmp_path), fold=0)


# -- downloading --------------------------------------------------------------------------------

FETCHED = {
    "Flowers102": (write_flowers, Flowers102, [(flowers, "PICTURES"), (flowers, "LABELS"), (flowers, "SPLITS")]),
    "OxfordPets": (write_pets, OxfordPets, [(pets, "PICTURES"), (pets, "ANNOTATIONS")]),
    "Food101": (write_food, Food101, [(food, "ARCHIVE")]),
    "STL10": (lambda root: write_tar(root / "stl10_binary.tar.gz", stl10_files()[0]), STL10, [(stl10, "ARCHIVE")]),
    "SVHN": (write_svhn, SVHN, [(svhn, "FILES")]),
}


@pytest.mark.parametrize("name", FETCHED)
def test_missing_files_are_downloaded_and_their_checksums_hold(tmp_path, monkeypatch, name):
    """Each from its own address, once; with another checksum nothing is kept."""
    write, dataset, files = FETCHED[name]
    web = tmp_path / "web"
    write(web)
    monkeypatch.setenv("NO_PROXY", "*")
    with FileServer(web) as server:

        def local(file, sum_of=md5):
            return archives.Official(f"{server.address}/{file.name}", sum_of(web / file.name))

        for module, attribute in files:
            official = getattr(module, attribute)
            made = {"train": local(official["train"])} if isinstance(official, dict) else local(official)
            monkeypatch.setattr(module, attribute, made)
        for _ in range(2):
            assert len(dataset(str(tmp_path / "mine"), download=True)) > 0
        assert len(server.requests) == len(files)
        module, attribute = files[-1]
        wrong = archives.Official(f"{server.address}/{os.path.basename(server.requests[-1][1])}", "0" * 32)
        monkeypatch.setattr(module, attribute, {"train": wrong} if name == "SVHN" else wrong)
        with pytest.raises(DataError, match=rf"cannot be downloaded.*MD5 {'0' * 32}"):
            dataset(str(tmp_path / "again"), download=True)
        assert wrong.name not in os.listdir(tmp_path / "again")


def test_the_official_addresses_and_checksums_are_of_the_published_form():
    everything = [flowers.PICTURES, flowers.LABELS, flowers.SPLITS, pets.PICTURES, pets.ANNOTATIONS]
    everything += [food.ARCHIVE, stl10.ARCHIVE, *svhn.FILES.values()]
    assert all(len(file.md5) == 32 and int(file.md5, 16) for file in everything)
    assert len({file.md5 for file in everything}) == len({file.url for file in everything}) == 10
