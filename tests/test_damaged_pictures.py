"""A folder of odd and damaged pictures through the loader: right pixels, or an error that names the file.

What plsc makes of odd pictures: CMYK is converted as Pillow does, 16 bits become the upper 8, transparency is
dropped, of an animation the first picture is taken, a picture is turned as its EXIF orientation says, and
what the bytes are counts, not the name's ending.
"""

import contextlib
import io
import itertools
import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from plsc.data.datasets import ImageFolder, ImageNetDataset
from plsc.data.datasets.base import Sample
from plsc.data.fetch import Fetcher
from plsc.data.loader import Loader
from plsc.data.sampler import Draw
from plsc.data.transforms import DecodeImage, RandCropImage, ResizeImage
from plsc.errors import DataError
from tests.helpers import CHECKOUT, clean_environment

HEIGHT, WIDTH = 40, 56
Y, X = np.mgrid[:HEIGHT, :WIDTH]
PIXELS = np.stack([4 * X, 6 * Y, 2 * (X + Y)], axis=-1).clip(0, 255).astype("uint8")
PICTURE = Image.fromarray(PIXELS)
RED = Image.new("RGB", PICTURE.size, (255, 0, 0))


def packed(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def see_through(mode: str) -> Image.Image:
    """The picture, invisible at its left edge."""
    image = PICTURE.copy()
    image.putalpha(Image.fromarray((4 * X).astype("uint8")))
    return image.convert(mode)


def turned(form: str, orientation: int) -> bytes:
    """Stored so that the EXIF orientation brings it back to HEIGHT x WIDTH."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = PICTURE.transpose(Image.Transpose.ROTATE_90) if orientation in (5, 6, 7, 8) else PICTURE
    return packed(stored, form, exif=exif)


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


JPEG = packed(PICTURE, "JPEG", quality=90)
PNG = packed(PICTURE, "PNG")
GREY16 = (29 * np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)).astype("uint16")

# name → content; what is right is Pillow's own conversion
ODD = {
    "plain.jpg": JPEG,
    "progressive.jpg": packed(PICTURE, "JPEG", quality=90, progressive=True),
    "grey.jpg": packed(PICTURE.convert("L"), "JPEG"),
    "cmyk.jpg": packed(PICTURE.convert("CMYK"), "JPEG", quality=95),
    "turned.jpg": turned("JPEG", 6),
    "mirrored.jpg": turned("JPEG", 2),
    "turned.png": turned("PNG", 8),
    "palette.png": packed(PICTURE.quantize(16), "PNG"),
    "palette_transparent.png": packed(PICTURE.quantize(16), "PNG", transparency=3),
    "alpha.png": packed(see_through("RGBA"), "PNG"),
    "grey_alpha.png": packed(see_through("LA"), "PNG"),
    "alpha.webp": packed(see_through("RGBA"), "WEBP", lossless=True, exact=True),
    "two_colours.png": packed(PICTURE.convert("1"), "PNG"),
    "animated.gif": packed(PICTURE.quantize(32), "GIF", save_all=True, append_images=[RED.quantize(2)], duration=50),
    "animated.webp": packed(PICTURE, "WEBP", save_all=True, append_images=[RED], lossless=True),
    "plain.bmp": packed(PICTURE, "BMP"),
    "cmyk.tif": packed(PICTURE.convert("CMYK"), "TIFF"),
    "a_png.jpg": PNG,
    "a_jpeg.png": JPEG,
    "one_pixel.png": packed(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"),
    "trailing_bytes.jpg": JPEG + bytes(500),
}
# 16 bits: the upper 8, where Pillow's convert would clip
DEEP = {
    "grey16.png": (packed(Image.fromarray(GREY16), "PNG"), np.repeat((GREY16 >> 8)[..., None], 3, axis=2)),
    "grey16.tif": (packed(Image.fromarray(GREY16), "TIFF"), np.repeat((GREY16 >> 8)[..., None], 3, axis=2)),
    "rgb16.png": (cv2.imencode(".png", PIXELS[..., ::-1].astype("uint16") * 256 + 77)[1].tobytes(), PIXELS),
}
RIGHT = {name: (data, by_pillow(data)) for name, data in ODD.items()} | DEEP


def png_bomb(side: int) -> bytes:
    """A whole PNG of side x side black pixels, 1 bit each: about 100 KB at 30,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze = zlib.compressobj(9)
    row = bytes(1 + -(-side // 8))
    rows = b"".join([squeeze.compress(row * 100) for _ in range(side // 100)]) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def gif_claiming(width: int, height: int) -> bytes:
    """A GIF of one small frame on a canvas that claims another size."""
    gif = packed(PICTURE.quantize(8), "GIF")
    return gif[:6] + struct.pack("<HH", width, height) + gif[10:]


def bmp_claiming(width: int, height: int) -> bytes:
    bmp = ODD["plain.bmp"]
    return bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]


BOMBS = {
    "bomb.png": png_bomb(30_000),
    "bomb.jpg": jpeg_claiming(65_000, 65_000),
    "bomb.gif": gif_claiming(65_000, 65_000),
    "bomb.bmp": bmp_claiming(30_000, 30_000),
}
DAMAGED = {
    "empty.jpg": b"",
    "zeros.jpg": bytes(4000),
    "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20,
    "noise.png": np.random.default_rng(0).bytes(3000),
    "half.jpg": JPEG[: len(JPEG) // 2],
    "half_progressive.jpg": ODD["progressive.jpg"][: len(ODD["progressive.jpg"]) // 2],
    "without_end.jpg": JPEG[:-2],
    "header_only.jpg": JPEG[:20],
    "half.png": PNG[: len(PNG) // 2],
    "signature_only.png": PNG[:8],
    "half.gif": ODD["animated.gif"][:200],
    "half.webp": ODD["alpha.webp"][: len(ODD["alpha.webp"]) // 2],
    "half.bmp": ODD["plain.bmp"][:1000],
    "no_size.jpg": jpeg_claiming(0, 0),
    **BOMBS,
    "gone.jpg": None,  # no such file
    "folder.jpg": "folder",
}

WHOLE = [DecodeImage(), ResizeImage(size=(WIDTH, HEIGHT))]
CROP = [DecodeImage(), RandCropImage(24)]  # decodes no more than the crop needs


def write_list(root, names) -> ImageNetDataset:
    """The named pictures on disk, with a list file that numbers them; a good one stands first."""
    contents = {**{name: data for name, (data, _) in RIGHT.items()}, **DAMAGED}
    for name in names:
        if contents[name] == "folder":
            (root / name).mkdir()
        elif contents[name] is not None:
            (root / name).write_bytes(contents[name])
    (root / "list.txt").write_text("".join(f"{name} {k}\n" for k, name in enumerate(names)))
    return ImageNetDataset(str(root), str(root / "list.txt"))


def load(data, transforms, workers, damaged, messages=None):
    """One batch of the whole data set."""
    fetcher = Fetcher(data, transforms, seed=3, class_num=len(data), damaged=damaged)
    report = messages.append if messages is not None else lambda message: None
    loader = Loader(fetcher, batch_size=len(data), num_workers=workers, on_skip=report)
    try:
        [batch] = itertools.islice(loader.run([[Draw(0, k) for k in range(len(data))]]), 1)
        return {name: array.copy() for name, array in batch.items()}
    finally:
        loader.close()


def expected_pixels(name: str) -> np.ndarray:
    right = RIGHT[name][1]
    return np.broadcast_to(right, (HEIGHT, WIDTH, 3)) if right.shape == (1, 1, 3) else right


@pytest.mark.parametrize("workers", [0, 2])
def test_odd_pictures_give_the_pixels_of_pillow(tmp_path, workers):
    """JPEG may differ by its decoder's rounding, everything else is equal."""
    data = write_list(tmp_path, list(RIGHT))
    batch = load(data, WHOLE, workers, "raise")
    assert batch["label"].tolist() == list(range(len(RIGHT)))
    for name, pixels in zip(RIGHT, batch["image"], strict=True):
        lossy = RIGHT[name][0].startswith(b"\xff\xd8")
        difference = np.abs(pixels.astype(int) - expected_pixels(name).astype(int)).max()
        assert difference <= (2 if lossy else 0), f"{name}: {difference}"


def test_a_turned_picture_is_upright():
    """Against the picture itself, not another reader: the stored one lies on its side."""
    for name in ("turned.jpg", "turned.png"):
        with Image.open(io.BytesIO(ODD[name])) as image:
            assert image.size == (HEIGHT, WIDTH)
    assert np.array_equal(DecodeImage()(turned("PNG", 6), None), PIXELS)
    assert np.array_equal(DecodeImage()(turned("PNG", 8), None), PIXELS[::-1, ::-1])


def test_of_an_animation_the_first_picture_is_taken():
    pixels = DecodeImage()(ODD["animated.webp"], None)
    assert np.array_equal(pixels, PIXELS)


@pytest.mark.parametrize("transforms", [WHOLE, CROP], ids=["whole", "crop"])
@pytest.mark.parametrize("name", list(DAMAGED))
def test_a_damaged_picture_is_refused_by_name(tmp_path, name, transforms):
    data = write_list(tmp_path, ["plain.jpg", name])
    with pytest.raises(DataError, match=rf"{tmp_path}/{name}: "):
        load(data, transforms, 0, "raise")


@pytest.mark.parametrize("name", list(DAMAGED))
def test_a_worker_survives_a_damaged_picture(tmp_path, name):
    """Not killed, not hung: the error arrives with the file's name, and soon."""
    data = write_list(tmp_path, ["plain.jpg", name])
    started = time.monotonic()
    with pytest.raises(DataError, match=rf"{tmp_path}/{name}: "):
        load(data, WHOLE, 2, "raise")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("transforms", [WHOLE, CROP], ids=["whole", "crop"])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_of_them_are_skipped_when_asked(tmp_path, workers, transforms):
    """Each is reported once by name; its row holds the next readable picture and does not count."""
    names = [name for pair in itertools.zip_longest(RIGHT, DAMAGED) for name in pair if name]
    data, messages = write_list(tmp_path, names), []
    batch = load(data, transforms, workers, "skip", messages)
    for name in DAMAGED:
        assert any(f"{tmp_path}/{name}: " in message for message in messages), name
    assert not any(f"{tmp_path}/{name}: " in message for message in messages for name in RIGHT)
    assert batch["valid"].tolist() == [name in RIGHT for name in names]
    following = [next(n for n in (names + names)[k:] if n in RIGHT) for k in range(len(names))]
    assert batch["label"].tolist() == [names.index(name) for name in following]
    if transforms is WHOLE:
        for name, pixels in zip(following, batch["image"], strict=True):
            assert np.abs(pixels.astype(int) - expected_pixels(name)).max() <= 2, name


def test_a_crop_above_the_missing_part_is_refused_too():
    """However little of the picture is decoded, a truncated one is not whole."""
    tall = packed(PICTURE.resize((60, 600)), "JPEG")
    crop = [DecodeImage(), RandCropImage(8, scale=(0.001, 0.002))]
    for seed in range(10):
        for data, whole in ((tall, True), (tall[: int(0.95 * len(tall))], False)):
            fetcher = Fetcher(Alone(data), crop, seed=seed, class_num=1)
            with contextlib.nullcontext() if whole else pytest.raises(DataError, match=r"alone\.jpg: "):
                fetcher.fields()


class Alone:
    """A data set of one picture."""

    max_labels, class_names = 1, None

    def __init__(self, data: bytes):
        self.data = data

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Sample(self.data, 0, "alone.jpg")


def test_a_folder_reads_what_its_endings_promise(tmp_path):
    """A folder named .jpg is not a picture; a file without a picture's ending is none either."""
    (tmp_path / "a" / "folder.jpg").mkdir(parents=True)
    (tmp_path / "a" / "folder.jpg" / "inside.PNG").write_bytes(PNG)
    (tmp_path / "a" / "plain.jpg").write_bytes(JPEG)
    (tmp_path / "a" / "readme.txt").write_text("no picture")
    data = ImageFolder(str(tmp_path))
    assert [data[k].name for k in range(len(data))] == [
        str(tmp_path / "a" / name) for name in ("folder.jpg/inside.PNG", "plain.jpg")
    ]


def test_bombs_take_no_memory(tmp_path):
    """A fresh process that meets all of them grows by less than 100 MB; unpacked they have up to 12 GB."""
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
        assert len(data) < 200_000
    script = (
        "import pathlib, resource, sys\n"
        "from plsc.data.transforms import DecodeImage\n"
        "from plsc.errors import DataError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3\n"
        "DecodeImage()(pathlib.Path(sys.argv[1]).read_bytes(), None)\n"
        "before = peak()\n"
        "for path in sys.argv[2:]:\n"
        "    try:\n"
        "        DecodeImage()(pathlib.Path(path).read_bytes(), None)\n"
        "        print('decoded', path)\n"
        "    except DataError:\n"
        "        pass\n"
        "print(peak() - before)\n"
    )
    (tmp_path / "plain.jpg").write_bytes(JPEG)
    paths = [tmp_path / "plain.jpg", *(tmp_path / name for name in BOMBS)]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths],
        env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert float(done.stdout) < 100
