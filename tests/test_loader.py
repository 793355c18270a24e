"""The loader's contract: order, sameness, failures with their cause, nothing is left."""

import io
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from plsc.data.datasets import ImageFolder, ImageNetDataset
from plsc.data.datasets.base import Sample
from plsc.data.fetch import Fetcher
from plsc.data.loader import Loader, LoaderFault
from plsc.data.sampler import DistributedBatchSampler, Draw
from plsc.data.transforms import DecodeImage, RandCropImage, RandFlipImage, ResizeImage
from plsc.errors import DataError
from tests.helpers import CHECKOUT, clean_environment

TRANSFORMS = [DecodeImage(), RandCropImage(24, backend="pil"), RandFlipImage()]


def loader(dataset, workers=0, transforms=TRANSFORMS, damaged="raise", batch_size=10, class_num=4, **kwargs) -> Loader:
    fetcher = Fetcher(dataset, transforms, seed=5, class_num=class_num, damaged=damaged)
    return Loader(fetcher, batch_size=batch_size, num_workers=workers, **kwargs)


def order(dataset, batch_size=10, step=0):
    sampler = DistributedBatchSampler(
        batch_size, drop_last=True, shuffle=True, size=len(dataset), seed=5, rank=0, world=1
    )
    return sampler.batches(step)


def take(load, batches, count):
    return [{k: v.copy() for k, v in batch.items()} for batch in itertools.islice(load.run(batches), count)]


def equal(a, b):
    return all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def test_batches_are_the_same_with_0_1_and_3_workers(picture_tree):
    """Byte for byte, over more than two epochs, augmentation included."""
    data = ImageFolder(str(picture_tree / "train"))
    made = {}
    for workers in (0, 1, 3):
        load = loader(data, workers)
        made[workers] = take(load, order(data), 10)
        load.close()
    assert equal(made[0], made[1]) and equal(made[0], made[3])
    first, again = made[0][0], made[0][4]
    assert first["image"].shape == (10, 24, 24, 3) and first["image"].dtype == np.uint8
    assert not np.array_equal(first["image"], again["image"])


def test_augmentation_is_new_every_epoch(picture_tree):
    """The same sample in another epoch is cropped otherwise; in the same epoch alike."""
    fetcher = Fetcher(ImageFolder(str(picture_tree / "train")), TRANSFORMS, seed=5, class_num=4)
    drawn = []
    for draw in (Draw(0, 3), Draw(1, 3), Draw(0, 3), Draw(0, 3, copy=1), Draw(0, 4)):
        drawn.append(fetcher.generator(draw).random(4).tolist())
    assert drawn[0] == drawn[2]
    assert len({tuple(d) for d in drawn}) == 4


def test_resuming_in_the_middle_gives_the_remaining_batches(picture_tree):
    data = ImageFolder(str(picture_tree / "train"))
    load = loader(data, workers=2)
    whole = take(load, order(data), 9)
    rest = take(load, order(data, step=4), 5)
    load.close()
    assert equal(whole[4:], rest)


def test_an_abandoned_iteration_does_not_disturb_the_next(picture_tree):
    data = ImageFolder(str(picture_tree / "train"))
    load = loader(data, workers=2)
    first = take(load, order(data), 1)
    again = take(load, order(data), 3)
    load.close()
    assert equal(first, again[:1])


def damaged_tree(tmp_path):
    for label in range(2):
        (tmp_path / f"c{label}").mkdir()
        for i in range(6):
            Image.new("RGB", (30, 30), (40 * i, 90 * label, 50)).save(tmp_path / f"c{label}" / f"{i}.jpg")
    bad = tmp_path / "c1" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    return ImageFolder(str(tmp_path)), bad


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_stops_the_run_and_is_named(tmp_path, workers):
    """With and without workers, at once, and the loader can be used again."""
    data, bad = damaged_tree(tmp_path)
    load = loader(data, workers, batch_size=4)
    started = time.monotonic()
    with pytest.raises(DataError, match=str(bad)):
        take(load, order(data, 4), 3)
    assert time.monotonic() - started < 20
    load.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_skipped_and_counted_when_asked(tmp_path, workers):
    """Training takes the next sample, so that batches stay whole; evaluation marks the row."""
    data, bad = damaged_tree(tmp_path)
    messages = []
    load = loader(data, workers, damaged="skip", batch_size=4, on_skip=messages.append)
    batches = take(load, order(data, 4), 3)
    load.close()
    # with workers the next epoch may be under way, where the picture is met again
    assert 1 <= load.skipped == len(messages) <= 2 and all(str(bad) in message for message in messages)
    assert sum(int((~b["valid"]).sum()) for b in batches) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrong_label_is_not_skipped_as_damage(picture_tree, workers):
    data = ImageFolder(str(picture_tree / "train"))
    load = loader(data, workers, damaged="skip", class_num=2)
    with pytest.raises(DataError, match=r"label is [23], but Model.class_num is 2"):
        take(load, order(data), 5)
    load.close()


class Faulty:
    """A data set with a programming error at one index."""

    max_labels, class_names = 1, None

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            raise KeyError("no such attribute in the code")
        return Sample(np.zeros([4, 4, 1], "uint8"), 0, f"sample {index}")


def test_a_fault_of_the_code_comes_with_the_workers_traceback():
    load = loader(Faulty(), workers=1, transforms=[], batch_size=8)
    with pytest.raises(LoaderFault, match=r"(?s)Traceback.*__getitem__.*no such attribute"):
        take(load, order(Faulty(), 8), 1)
    load.close()


class Deadly(Faulty):
    """A data set that kills the process that reads index 5."""

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return Sample(np.zeros([4, 4, 1], "uint8"), 0, f"sample {index}")


def test_a_killed_worker_ends_the_run_with_its_cause():
    """No hang: the message names the signal and what usually sends it."""
    load = loader(Deadly(), workers=2, transforms=[], batch_size=8)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"plsc-loader-\d was killed by signal 9 \(SIGKILL\).*memory"):
        take(load, order(Deadly(), 8), 2)
    assert time.monotonic() - started < 20


def test_pictures_of_different_sizes_are_refused_by_name(tmp_path):
    (tmp_path / "a").mkdir()
    for i, size in enumerate(((20, 30), (20, 31))):
        Image.new("RGB", size).save(tmp_path / "a" / f"{i}.png")
    data = ImageFolder(str(tmp_path))
    load = loader(data, transforms=[DecodeImage()], batch_size=2)
    with pytest.raises(DataError, match=r"1.png.*31x20x3.*30x20x3.*crop"):
        take(load, [[Draw(0, 0), Draw(0, 1)]], 1)


def test_workers_die_with_a_killed_parent(tmp_path):
    """SIGKILL of the trainer leaves no process and no file in /dev/shm."""
    before = set(os.listdir("/dev/shm"))
    parent = _start_parent(tmp_path, "time.sleep(60)")
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(os.path.exists(f"/proc/{pid}") for pid in pids)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)
    assert set(os.listdir("/dev/shm")) <= before


def test_workers_take_no_sigterm_and_end_with_a_parent_that_forgets_them(tmp_path):
    """A scheduler may ask every process to end, but the update in progress still needs its batches."""
    parent = _start_parent(tmp_path, "sys.stdin.readline()", "print(len([next(batches) for _ in range(20)]))")
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    output, _ = parent.communicate("go on\n", timeout=30)
    assert (parent.returncode, output) == (0, "20\n")
    assert not any(_alive(pid) for pid in pids)


def _start_parent(folder, *lines: str) -> subprocess.Popen:
    """A process that prints the pids of its loader's two workers, and then runs `lines`."""
    script = folder / "parent.py"
    script.write_text(
        "import itertools, sys, time\n"
        "from plsc.data.datasets import Digits\n"
        "from plsc.data.fetch import Fetcher\n"
        "from plsc.data.loader import Loader\n"
        "from plsc.data.sampler import DistributedBatchSampler\n"
        "data = Digits()\n"
        "load = Loader(Fetcher(data, [], seed=1, class_num=10), batch_size=8, num_workers=2)\n"
        "sampler = DistributedBatchSampler(8, size=len(data), seed=1, rank=0, world=1)\n"
        "batches = load.run(sampler.batches(0))\n"
        "next(batches)\n"
        "print(*[w.pid for w in load._workers], flush=True)\n" + "\n".join(lines) + "\n"
    )
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
    )


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_list_file_names_its_line(tmp_path, picture_tree):
    """Missing pictures and malformed lines say file, line and picture."""
    listing = tmp_path / "list.txt"
    listing.write_text("train/class_0/000.jpg 0\n\ntrain/class_0/gone.jpg 1\ntrain/class_0/001.jpg one\n")
    data = ImageNetDataset(str(picture_tree), str(listing))
    assert len(data) == 3
    with pytest.raises(DataError, match=r"gone.jpg: No such file.*line 3"):
        data[1]
    with pytest.raises(DataError, match=r"line 4: expected 'path label', got"):
        data[2]
    with pytest.raises(DataError, match="no such list file"):
        ImageNetDataset(str(picture_tree), str(tmp_path / "absent.txt"))
    listing.write_text("wrong/root.jpg 0\n")
    with pytest.raises(DataError, match=r"wrong/root.jpg: named in line 1"):
        ImageNetDataset(str(picture_tree), str(listing))


def test_multi_label_lines_are_padded(picture_tree):
    """path 3,17 lines give ids padded with -1 and weights; a comma without multi_label is refused."""
    arguments = (str(picture_tree), str(picture_tree / "multi_list.txt"))
    data = ImageNetDataset(*arguments, multi_label=True, class_num=4)
    load = loader(data, transforms=[DecodeImage(), ResizeImage(8)], batch_size=2)
    [batch] = take(load, [[Draw(0, 0), Draw(0, 47)]], 1)
    assert data.max_labels == 2
    assert batch["label_ids"].tolist() == [[0, 1], [3, 0]] and batch["label_ids"].dtype == np.int32
    assert batch["label_weights"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    with pytest.raises(DataError, match="expected 'path label'"):
        ImageNetDataset(*arguments)


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("empty", b""),
        ("text", b"<html>not found</html>" * 20),
        ("zeros", bytes(5000)),
    ],
)
def test_what_is_no_picture_is_refused(what, data):
    with pytest.raises(DataError):
        DecodeImage()(data, None)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "1", "I;16"])
def test_every_kind_of_picture_becomes_rgb(mode):
    """Grey, palette, alpha, CMYK, 16-bit: three channels of 8 bits."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 30, 60)).convert(mode if mode != "I;16" else "I").convert(mode).save(
        buffer, "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    )
    pixels = DecodeImage()(buffer.getvalue(), None)
    assert pixels.shape == (7, 9, 3) and pixels.dtype == np.uint8


def test_a_damaged_last_picture_is_skipped_where_it_fills_a_batch_up(tmp_path):
    """20 pictures in batches of 3: the last batch repeats the damaged one."""
    from plsc.data.sampler import evaluation_batches

    for k in range(20):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(np.full((24, 24, 3), k, np.uint8)).save(tmp_path / "a" / f"{k:02d}.png")
    (tmp_path / "a" / "19.png").write_bytes(b"no picture")
    messages = []
    load = loader(
        ImageFolder(str(tmp_path)),
        transforms=[DecodeImage()],
        damaged="skip",
        batch_size=3,
        class_num=1,
        on_skip=messages.append,
    )
    counted = [i for b in load.run(evaluation_batches(20, 3, 0, 1)) for i in b["index"][b["valid"]].tolist()]
    assert counted == list(range(19))
    assert len(messages) == 1 and "19.png" in messages[0]


@pytest.mark.parametrize("rows, workers, prefetch", [(4096, 1, 2), (8192, 2, 6)])
def test_large_batches_with_few_workers_do_not_wait_for_each_other(rows, workers, prefetch):
    """More replies than a pipe holds, while tasks are still being sent."""

    class Pixels:
        max_labels, class_names = 1, None

        def __len__(self):
            return rows

        def __getitem__(self, index):
            return Sample(np.full((1, 1, 1), index % 256, np.uint8), 0, f"pixel {index}")

    def hang(number, frame):
        raise TimeoutError("the loader hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(40)
    load = loader(Pixels(), workers, transforms=[], batch_size=rows, class_num=1, prefetch_batches=prefetch)
    try:
        batches = ([Draw(0, k) for k in range(rows)] for _ in range(4))
        for arrays in load.run(batches):
            assert np.array_equal(arrays["index"], np.arange(rows))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        load.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_of_the_storage_are_not_skipped_as_damage(workers):
    """Too many open files, a share that went away: the picture is well."""
    import errno

    class Gone(ImageFolder):
        def __getitem__(self, index):
            try:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            except OSError as error:
                raise DataError("picture 0: cannot be read") from error

        def __init__(self):
            self.class_names, self._labels = ["a"], [0] * 4

    load = loader(Gone(), workers, damaged="skip", class_num=1)
    with pytest.raises(DataError, match="picture 0"):
        next(load.run([[Draw(0, 0)] * 10]))
    load.close()


def test_rows_that_are_read_in_groups_go_to_one_worker_each(tmp_path):
    """Parquet: a row group is read by one worker, whatever lies in a batch."""

    class Grouped:
        max_labels, class_names, reads_groups = 1, None, True
        shard_sizes = np.full(40, 5)

        def __len__(self):
            return 200

        def __getitem__(self, index):
            with open(tmp_path / f"{index // 5}-{os.getpid()}", "w"):
                return Sample(np.full((2, 2, 1), index, np.uint8), 0, f"row {index}")

    mixed = np.random.default_rng(0).permutation(200).reshape(4, 50).tolist()
    batches = [[Draw(0, k) for k in rows] for rows in mixed]
    load = loader(Grouped(), 2, transforms=[], batch_size=50, class_num=1)
    load.fetcher.fields()
    for left in tmp_path.iterdir():
        left.unlink()
    for rows, arrays in zip(mixed, load.run(batches), strict=True):
        assert arrays["index"].tolist() == rows and arrays["image"][:, 0, 0, 0].tolist() == rows
    load.close()
    assert len(list(tmp_path.iterdir())) == 40
