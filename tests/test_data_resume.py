"""The order of training data: the same with any number of workers, processes and interruptions."""

import io
import itertools
import json
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from plsc.data import loader as loader_module
from plsc.data.datasets import Digits, ImageNetDataset, Stack, WebDataset
from plsc.data.datasets.base import Sample
from plsc.data.datasets.combine import sliced
from plsc.data.fetch import Fetcher
from plsc.data.loader import Loader, measured_workers
from plsc.data.sampler import DistributedBatchSampler, Draw, RepeatedAugSampler, evaluation_batches
from plsc.data.transforms import DecodeImage, RandCropImage, RandFlipImage
from tests.conftest import write_pictures
from tests.helpers import metrics, plsc, tiny_digits, write_config
from tests.test_shards import write_tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No cache of the user is touched."""
    monkeypatch.setenv("PLSC_CACHE", str(tmp_path / "cache"))


class DrawnPatch:
    """A device transform that draws for each sample, as random erasing does."""

    def fields(self, height, width, channels):
        return {"patch": ((4,), "int32"), "colour": ((channels,), "float32")}

    def draw(self, rng, height, width, channels):
        return {
            "patch": rng.integers(0, [height, width, height, width]).astype("int32"),
            "colour": rng.normal(size=channels).astype("float32"),
        }


SHARD_SIZES = [17, 1, 12, 9, 21]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """60 JPEGs of 4 classes, in folders with a list."""
    root = tmp_path_factory.mktemp("pictures")
    listed = write_pictures(root, 4, 15)
    (root / "list.txt").write_text("".join(f"{name} {label}\n" for name, label in listed))
    return root, listed


def as_shards(pictures, folder) -> WebDataset:
    """The same pictures in tar files of unequal length."""
    root, listed = pictures
    begin, files = 0, []
    for k, size in enumerate(SHARD_SIZES):
        members = []
        for n, (name, label) in enumerate(listed[begin : begin + size]):
            members += [(f"{k}-{n}.jpg", (root / name).read_bytes()), (f"{k}-{n}.cls", str(label).encode())]
        files.append(write_tar(folder / f"{k}.tar", members))
        begin += size
    return WebDataset(files)


@pytest.fixture(params=["shards", "list", "stack"])
def data(request, pictures, tmp_path):
    """60 pictures as shards, as a list, and as a part of each."""
    root, _ = pictures
    as_list = ImageNetDataset(str(root), str(root / "list.txt"))
    if request.param == "list":
        return as_list
    shards = as_shards(pictures, tmp_path)
    return shards if request.param == "shards" else Stack([sliced(shards, ":35"), sliced(as_list, "35:")])


def sampler_of(data, batch, rank=0, world=1, factory=DistributedBatchSampler, lanes=8, **kwargs):
    sizes = getattr(data, "shard_sizes", None)
    common = dict(size=len(data), seed=5, rank=rank, world=world, shard_sizes=sizes, lanes=lanes, shuffle=True)
    return factory(batch, **common, **kwargs)


def batches(data, draws, count, batch, workers=0, seed=5):
    """Copies of `count` batches; every array of each."""
    fetcher = Fetcher(
        data,
        [DecodeImage(), RandCropImage(16, interpolation="random", backend="pil"), RandFlipImage()],
        seed=seed,
        class_num=4,
        drawn=[DrawnPatch()],
    )
    load = Loader(fetcher, batch_size=batch, num_workers=workers)
    try:
        return [{k: v.copy() for k, v in made.items()} for made in itertools.islice(load.run(draws), count)]
    finally:
        load.close()


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for one, two in zip(actual, expected, strict=True):
        assert one.keys() == two.keys() >= {"image", "index", "valid", "label", "patch", "colour"}
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def interleaved(parts):
    """The global batches of several processes: row p of the whole is row p // world of process p % world."""
    whole = []
    for group in zip(*parts, strict=True):
        names = group[0].keys()
        whole.append(
            {
                name: np.stack([part[name] for part in group], axis=1).reshape(-1, *group[0][name].shape[1:])
                for name in names
            }
        )
    return whole


@pytest.mark.parametrize("factory", [DistributedBatchSampler, RepeatedAugSampler])
def test_workers_change_nothing(data, factory):
    """Byte for byte, over more than two epochs, augmentation and draws for the device included."""
    made = [batches(data, sampler_of(data, 13, factory=factory).batches(0), 11, 13, workers) for workers in (0, 1, 4)]
    assert_same(made[1], made[0])
    assert_same(made[2], made[0])
    images = {image.tobytes() for batch in made[0] for image in batch["image"]}
    draws = itertools.islice(sampler_of(data, 13, factory=factory).batches(0), 11)
    assert len(images) == len(set(itertools.chain.from_iterable(draws)))  # every draw has a crop of its own


@pytest.mark.parametrize("factory", [DistributedBatchSampler, RepeatedAugSampler])
def test_processes_change_nothing(data, factory):
    """1, 2 and 4 processes make the same global batches, row by row."""
    [whole] = [batches(data, sampler_of(data, 12, factory=factory).batches(0), 8, 12)]
    for world in (2, 4):
        parts = [
            batches(data, sampler_of(data, 12 // world, rank, world, factory).batches(0), 8, 12 // world)
            for rank in range(world)
        ]
        assert_same(interleaved(parts), whole)


@pytest.mark.parametrize("start", [1, 4, 5, 8])
def test_a_resumed_run_gets_the_remaining_batches(data, start):
    """In the middle and at the end of an epoch, by another object, with workers; and on other world sizes."""
    whole = batches(data, sampler_of(data, 12).batches(0), 11, 12)
    assert_same(batches(data, sampler_of(data, 12).batches(start), 11 - start, 12, workers=2), whole[start:])
    for world in (2, 4):
        parts = [
            batches(data, sampler_of(data, 12 // world, rank, world).batches(start), 11 - start, 12 // world)
            for rank in range(world)
        ]
        assert_same(interleaved(parts), whole[start:])


def test_an_epoch_has_every_picture_once(data):
    made = batches(data, sampler_of(data, 12).batches(0), 10, 12)
    for epoch in (made[:5], made[5:]):
        assert sorted(np.concatenate([batch["index"] for batch in epoch]).tolist()) == list(range(60))
    assert not np.array_equal(made[0]["index"], made[5]["index"])


def test_labels_belong_to_their_pictures(data, pictures):
    """By index, against the list that both were written from."""
    _, listed = pictures
    for batch in batches(data, sampler_of(data, 12).batches(0), 5, 12, workers=2):
        assert batch["label"].tolist() == [listed[index][1] for index in batch["index"].tolist()]


def test_another_seed_draws_otherwise(data):
    """Of the same samples in the same order."""
    draws = list(itertools.islice(sampler_of(data, 12).batches(0), 2))
    one, two = (batches(data, draws, 2, 12, seed=seed) for seed in (5, 6))
    assert np.array_equal(one[0]["index"], two[0]["index"])
    assert not np.array_equal(one[0]["image"], two[0]["image"])
    assert not np.array_equal(one[0]["patch"], two[0]["patch"])


def test_draws_depend_on_nothing_that_went_before(data):
    """Whatever numbers of whatever kind another sample took."""
    fetcher = Fetcher(data, [], seed=2**32 - 1, class_num=4)

    def numbers(draw):
        rng = fetcher.generator(draw)
        return [*rng.random(3), *rng.integers(0, 9, 5, dtype=np.int32), rng.normal()]

    draws = [Draw(0, 0), Draw(0, 1), Draw(1, 0), Draw(0, 0, copy=1), Draw(3000, 2**40), Draw(0, 10**9, copy=65535)]
    expected = [numbers(draw) for draw in draws]
    assert len({tuple(some) for some in expected}) == len(draws)
    for taken in range(7):
        for draw, some in zip(draws, expected, strict=True):
            fetcher.generator(Draw(9, taken)).integers(0, 9, taken, dtype=np.int32)  # leaves half of a 64-bit number
            assert numbers(draw) == some
    rng = np.random.Generator(
        np.random.Philox(key=np.array([(2**32 - 1) << 32 | 3000, (2**40 << 16) % 2**64], "uint64"))
    )
    assert rng.random(3).tolist() == expected[4][:3]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", [7, 16])
def test_evaluation_sees_every_picture_once(data, pictures, world, batch):
    """On any number of processes, each with as many batches of the same size as the others."""
    _, listed = pictures
    seen, counts = [], set()
    for rank in range(world):
        made = batches(data, evaluation_batches(len(data), batch, rank, world), 10**6, batch, workers=rank % 2)
        counts.add(len(made))
        for arrays in made:
            assert len(arrays["valid"]) == batch
            kept = arrays["index"][arrays["valid"]].tolist()
            assert arrays["label"][arrays["valid"]].tolist() == [listed[index][1] for index in kept]
            seen += kept
    assert sorted(seen) == list(range(60)) and len(counts) == 1


# -- how many workers -------------------------------------------------------------------------


class Paced:
    """A data set whose samples take a given time."""

    class_names, max_labels = None, 1

    def __init__(self, seconds: float, size: int = 1000):
        self.seconds, self.size, self.read = seconds, size, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(index)
        time.sleep(self.seconds)
        return Sample(np.zeros([4, 4, 1], "uint8"), 0, f"sample {index}")


@pytest.fixture
def machine(monkeypatch):
    """A machine with some cores and processes, and a clock that only sleeping moves."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    for module in (loader_module, sys.modules[__name__]):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now, sleep=sleep))

    def of(cores: int, processes: int = 1):
        monkeypatch.setattr("plsc.environment.available_cores", lambda: cores)
        monkeypatch.setattr("plsc.environment.local_size", lambda: processes)

    return of


def test_cheap_pictures_need_no_workers(machine):
    machine(64)
    count, why = measured_workers(Fetcher(Paced(0.0001), [], seed=0, class_num=1), 32, on_cpu=True)
    assert count == 0 and "pictures a second" in why and "batch of 32" in why


@pytest.mark.parametrize(
    ("cores", "processes", "on_cpu", "expected"),
    [
        (1, 1, True, 1),
        (2, 1, True, 1),
        (16, 1, True, 4),
        (1, 1, False, 1),
        (16, 1, False, 15),
        (64, 8, False, 7),
        (8, 16, False, 1),
        (256, 1, False, 32),
    ],
)
def test_dear_pictures_get_workers(machine, cores, processes, on_cpu, expected):
    """As many as cores allow; never more than are of use."""
    machine(cores, processes)
    count, why = measured_workers(Fetcher(Paced(0.02), [], seed=0, class_num=1), 32, on_cpu=on_cpu)
    assert count == expected and "pictures a second" in why


def test_measuring_takes_little_and_looks_around(machine):
    """Very slow storage is measured for a second at most; samples from all over the data set."""
    machine(4)
    slow, quick = Paced(0.3), Paced(0.0001)
    started = time.perf_counter()
    assert measured_workers(Fetcher(slow, [], seed=0, class_num=1), 4, on_cpu=False)[0] == 3
    assert time.perf_counter() - started < 1.5
    measured_workers(Fetcher(quick, [], seed=0, class_num=1), 4, on_cpu=False)
    assert len(quick.read) < 100 and np.std(quick.read) > 200
    measured_workers(Fetcher(Paced(0.0001, size=1), [], seed=0, class_num=1), 4, on_cpu=False)


# -- a real run -------------------------------------------------------------------------------


def digits_in_shards(tmp_path) -> dict:
    """A configuration on 330 digits as PNG in 7 tar files of unequal length: 10 updates an epoch."""
    digits, files, begin = Digits(), [], 0
    for k, size in enumerate((80, 3, 60, 1, 90, 47, 49)):
        members = []
        for n in range(begin, begin + size):
            buffer = io.BytesIO()
            Image.fromarray(digits[n].image[..., 0]).save(buffer, "PNG")
            members += [(f"{n:05d}.png", buffer.getvalue()), (f"{n:05d}.cls", str(digits[n].label).encode())]
        files.append(write_tar(tmp_path / f"{k}.tar", members))
        begin += size
    tree = tiny_digits()
    train, evaluation = tree["DataLoader"]["Train"], tree["DataLoader"]["Eval"]
    normalize = [{"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3}}, {"ToCHWImage": None}]
    operations = [{"DecodeImage": None}, {"RandShift": {}}, *normalize]
    train["dataset"] = {"name": "WebDataset", "files": str(tmp_path / "*.tar"), "transform_ops": operations}
    train["sampler"] |= {"drop_last": True, "lanes": 4}
    evaluation["dataset"] = {
        "name": "WebDataset",
        "files": files[:3],
        "transform_ops": [{"DecodeImage": None}, *normalize],
    }
    for part in (train, evaluation):
        part["loader"] = {"num_workers": "auto"}
    tree["Model"]["in_chans"] = 3
    tree["Global"] |= {"epochs": 2, "max_train_step": 17, "max_num_latest_checkpoint": -1, "eval_during_train": True}
    return tree


def train(tmp_path, name, tree, *overrides, processes=None):
    config, out = write_config(tmp_path / f"{name}.yaml", tree), tmp_path / name
    arguments = ["-c", config, "-o", f"Global.output_dir={out}"]
    for override in overrides:
        arguments += ["-o", override]
    done = plsc("train", *arguments, processes=processes, cwd=tmp_path)
    return out, done


def losses(run) -> list[float]:
    return [record["loss"] for record in metrics(run)]


@pytest.mark.distributed
def test_a_run_on_shards_stopped_within_an_epoch_goes_on_with_two_processes(tmp_path):
    """It follows the uninterrupted run of one process, evaluation included, and keeps the checkpoint's lanes."""
    tree = digits_in_shards(tmp_path)
    straight, done = train(tmp_path, "straight", tree)
    assert re.search("worker process(es)?: one core prepares", done.stdout + done.stderr)
    assert len(losses(straight)) == 17
    assert "Traceback" not in done.stderr and "libpng" not in done.stderr

    broken, _ = train(tmp_path, "broken", tree, "Global.max_train_step=7")
    assert len(losses(broken)) == 7
    again = ("Global.resume=auto", "DataLoader.Train.sampler.lanes=64", "DataLoader.Train.loader.num_workers=1")
    broken, _ = train(tmp_path, "broken", tree, *again, processes=2)
    np.testing.assert_allclose(losses(broken), losses(straight), rtol=1e-5)

    evaluations = [metrics(run, "eval")[-1] for run in (straight, broken)]
    assert [e["samples"] for e in evaluations] == [143, 143] and [e["step"] for e in evaluations] == [17, 17]
    assert evaluations[1]["loss"] == pytest.approx(evaluations[0]["loss"], rel=1e-5)
    assert evaluations[1]["top1"] == evaluations[0]["top1"]

    assert "continues with the checkpoint's 4 lanes" in (broken / "train.log").read_text()
    for step in (7, 17):
        saved = json.loads((broken / "checkpoints" / f"step-{step:08d}" / "trainer.json").read_text())
        progress = saved["parts"]["progress"]
        assert progress["order"]["lanes"] == 4 and progress["steps_per_epoch"] == 10
    assert "lanes: 4" in (broken / "config.yaml").read_text()
