"""Decoding against Pillow, pixel for pixel; parts of pictures against the whole; hostile files."""

import contextlib
import functools
import io
import multiprocessing
import resource
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from plsc.data.transforms import DecodeImage, InceptionCrop, MAERandCropImage, RandCropImage, RandomResizedCrop
from plsc.data.transforms.decode import decode, decode_region, jpeg_header
from plsc.data.transforms.fused import DecodeAndCrop, fuse
from plsc.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No cache of the user is touched."""
    monkeypatch.setenv("PLSC_CACHE", str(tmp_path / "cache"))


# -- pictures ---------------------------------------------------------------------------------


@functools.cache
def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Edges, gradients and noise in colour: what chroma subsampling and transforms show in."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([127 + 120 * np.sin(x / 5.0), 255 * y / height, 60 + 90 * ((x // 9 + y // 7) % 2)], axis=2)
    pixels[height // 3 : height // 2, width // 4 :] = (250, 10, 20)
    return np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype("uint8")


def encoded(pixels: np.ndarray, form: str = "JPEG", mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(buffer, form, **options)
    return buffer.getvalue()


# (horizontal, vertical) sampling of luminance, as OpenCV names it
SAMPLING = {"4:4:4": 0x111111, "4:2:2": 0x211111, "4:4:0": 0x121111, "4:2:0": 0x221111, "4:1:1": 0x411111}


def jpeg(
    pixels, *, sampling="4:2:0", quality=90, restart=0, progressive=False, optimize=False, exif=b"", grey=False
) -> bytes:
    """A JPEG by OpenCV's encoder: it offers every sampling, and restart intervals in blocks."""
    options = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_RST_INTERVAL: restart,
        cv2.IMWRITE_JPEG_PROGRESSIVE: int(progressive),
        cv2.IMWRITE_JPEG_OPTIMIZE: int(optimize),
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: SAMPLING[sampling],
    }
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if grey else pixels[..., ::-1]
    done, data = cv2.imencode(".jpg", pixels, [number for pair in options.items() for number in pair])
    assert done
    return with_segment(data.tobytes(), 0xE1, exif) if exif else data.tobytes()


def with_segment(data: bytes, marker: int, content: bytes, fill: int = 0) -> bytes:
    """A JPEG with one more segment in front, after `fill` fill bytes."""
    segment = b"\xff" * (1 + fill) + bytes([marker]) + struct.pack(">H", len(content) + 2) + content
    return data[:2] + segment + data[2:]


def exif(orientation: int, order: str = "<", kind: int = 3, before: int = 2) -> bytes:
    """EXIF with `before` other tags in front of the orientation; kind 3 is a short number, 4 a long one."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    entries = [struct.pack(order + "HHII", 0x00C0 + k, 4, 1, 77) for k in range(before)]
    value = struct.pack(order + "HH", orientation, 0) if kind == 3 else struct.pack(order + "I", orientation)
    entries.append(struct.pack(order + "HHI", 0x0112, kind, 1) + value)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return b"Exif\0\0" + start + directory


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def pillow_agrees_with_simplejpeg() -> bool:
    """Whether both come with the same arithmetic; releases of libjpeg-turbo differ at most by rounding."""
    data = [jpeg(scene(61, 67), sampling=s, quality=q) for s in SAMPLING for q in (40, 95)]
    return all(np.array_equal(simplejpeg.decode_jpeg(d), by_pillow(d)) for d in data)


MOST_DIFFERENCE = 0 if pillow_agrees_with_simplejpeg() else 2


def assert_pixels(actual: np.ndarray, expected: np.ndarray):
    assert actual.dtype == np.uint8 and actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).max(initial=0) <= MOST_DIFFERENCE


# -- headers and whole pictures ---------------------------------------------------------------


PLAIN = {
    **{f"sampling {name}": {"sampling": name} for name in SAMPLING},
    "progressive": {"progressive": True},
    "progressive 4:4:4": {"progressive": True, "sampling": "4:4:4"},
    "own Huffman tables": {"optimize": True},
    "coarse": {"quality": 3},
    "grey": {"grey": True},
    "grey progressive": {"grey": True, "progressive": True},
    "restart after each block": {"restart": 1},
    "restart after 5 blocks": {"restart": 5, "sampling": "4:2:2"},
}


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 8), (61, 67), (64, 48), (17, 16)])
@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_plain_jpegs_are_as_pillow_reads_them(options, size):
    """Size, orientation and pixels."""
    data = jpeg(scene(*size), **options)
    header = jpeg_header(data)
    assert (header.height, header.width) == size and header.upright
    assert header.in_rows == (not options.get("progressive", False))
    assert struct.unpack_from(">HH", data, header.height_at) == size
    assert_pixels(decode(data), by_pillow(data))


@pytest.mark.parametrize(
    "options", [{"subsampling": k} for k in (0, 1, 2)] + [{"quality": "web_high"}, {"dpi": (72, 72)}]
)
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_pillows_encoder(options, progressive):
    data = encoded(scene(45, 53), progressive=progressive, **options)
    assert (jpeg_header(data).height, jpeg_header(data).width) == (45, 53)
    assert_pixels(decode(data), by_pillow(data))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_other_colour_models(mode):
    """Inks are multiplied by libjpeg-turbo or by Pillow, which round differently."""
    data = encoded(scene(40, 50), mode=mode)
    whole = decode(data)
    assert np.abs(whole.astype(int) - by_pillow(data)).max() <= (1 if mode == "CMYK" else MOST_DIFFERENCE)
    assert np.array_equal(decode_region(data, jpeg_header(data), (3, 5, 10, 11)), whole[3:13, 5:16])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(order, orientation):
    """Little- and big-endian EXIF; the header gives the size as stored."""
    data = jpeg(scene(21, 34), exif=exif(orientation, order))
    header = jpeg_header(data)
    assert (header.height, header.width) == (21, 34)
    assert header.upright == (orientation == 1)
    assert_pixels(decode(data), by_pillow(data))
    assert decode(data).shape[:2] == ((21, 34) if orientation <= 4 else (34, 21))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "content",
    [
        exif(6, before=0),
        exif(6, before=40),
        exif(0),
        exif(9),
        exif(6)[:-20],
        exif(6)[:12],
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0XX*\0" + bytes(20),
        b"http://ns.adobe.com/xap/1.0/\0<x/>",
        b"",
    ],
)
def test_odd_exif(order, content):
    """Far, wrong, cut and foreign ones: as Pillow takes them, and no error."""
    data = jpeg(scene(21, 34), exif=content or b"\0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF
        assert_pixels(decode(data), by_pillow(data))


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_written_as_a_long_number(order):
    """Against the standard, which says short, but Pillow reads it."""
    data = jpeg(scene(21, 34), exif=exif(6, order, kind=4))
    assert by_pillow(data).shape[:2] == (34, 21)
    assert_pixels(decode(data), by_pillow(data))


@pytest.mark.parametrize("fill", [0, 1, 2, 5])
@pytest.mark.parametrize("length", [0, 1, 1000, 65533])
def test_segments_and_fill_bytes_in_front(fill, length):
    """Application segments of any length, a start marker within one, bytes that fill up before a marker."""
    data = jpeg(scene(21, 34), restart=2)
    content = (b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x01\x00\x01" * 6000)[:length]
    padded = with_segment(with_segment(data, 0xE2, content, fill), 0xFE, b"a comment", fill)
    header = jpeg_header(padded)
    assert (header.height, header.width, header.in_rows) == (21, 34, True)
    assert_pixels(decode(padded), by_pillow(data))
    assert np.array_equal(decode_region(padded, header, (2, 3, 4, 5)), decode(data)[2:6, 3:8])


def test_a_thumbnail_is_not_taken_for_the_picture():
    """A whole JPEG within EXIF, and another one after the picture's end."""
    data = jpeg(scene(50, 60))
    thumbnail = jpeg(scene(12, 16, seed=1))
    both = with_segment(data, 0xE1, exif(1) + thumbnail) + thumbnail
    assert (jpeg_header(both).height, jpeg_header(both).width) == (50, 60)
    assert_pixels(decode(both), by_pillow(data))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    sampling=st.sampled_from(sorted(SAMPLING)),
    quality=st.integers(1, 100),
    restart=st.integers(0, 9),
    progressive=st.booleans(),
    orientation=st.none() | st.integers(1, 8),
    order=st.sampled_from("<>"),
    grey=st.booleans(),
)
def test_all_of_it_together(height, width, orientation, order, **options):
    written = b"" if orientation is None else exif(orientation, order)
    data = jpeg(scene(height, width), exif=written, **options)
    header = jpeg_header(data)
    assert (header.height, header.width) == (height, width)
    assert_pixels(decode(data), by_pillow(data))


@pytest.mark.parametrize(
    "data",
    [
        encoded(scene(24, 30), exif=exif(6)),
        encoded(scene(24, 30), progressive=True),
        jpeg(scene(24, 30), restart=1),
        encoded(scene(24, 30), "PNG"),
        encoded(scene(24, 30), "GIF"),
        encoded(scene(24, 30), "WEBP"),
        encoded(scene(24, 30), "BMP"),
    ],
    ids=["turned", "progressive", "restart", "png", "gif", "webp", "bmp"],
)
def test_a_file_cut_anywhere(data):
    """Either it is refused, or what is missing does not matter; the header is whole or none."""
    whole, header = decode(data), jpeg_header(data)
    for end in range(len(data)):
        cut = data[:end]
        actual = jpeg_header(cut)
        assert actual is None or actual == header
        try:
            assert np.array_equal(decode(cut), whole)
        except DataError:
            continue
        assert end > len(data) - 24  # checksums and end markers


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF"])
def test_damaged_files_raise_nothing_but_data_errors(form, capfd):
    """Bytes changed at random, most of them among the first."""
    try:
        data = encoded(scene(24, 30), form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        bad = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            bad[int(rng.integers(len(bad) if rng.random() < 0.5 else min(200, len(bad))))] = int(rng.integers(256))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels = decode(bytes(bad))
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        except DataError:
            refused += 1
        header = jpeg_header(bytes(bad))
        if header is not None and header.upright and header.height * header.width < 10**6:
            box = (header.height // 3, header.width // 3, 1 + header.height // 3, 1 + header.width // 3)
            for factor in (1, 4):
                with contextlib.suppress(DataError):
                    assert decode_region(bytes(bad), header, box, factor).ndim == 3
    assert refused > 20
    if form != "TIFF":  # libtiff has a handler of its own, which Pillow does not replace
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("RGB", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGB", "GIF"),
        ("RGB", "BMP"),
        ("RGB", "TIFF"),
        ("CMYK", "TIFF"),
        ("RGB", "WEBP"),
    ],
)
def test_other_formats_are_as_pillow_reads_them(mode, form, capfd):
    data = encoded(scene(31, 45), form, mode=mode)
    assert np.array_equal(decode(data), by_pillow(data))
    assert jpeg_header(data) is None
    assert capfd.readouterr() == ("", "")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_sixteen_bits_become_the_upper_eight():
    deep = (np.arange(40 * 50).reshape(40, 50) * 32).astype("uint16")
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG")
    assert np.array_equal(decode(buffer.getvalue()), np.repeat((deep >> 8).astype("uint8")[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(b"no profile" * 20)),
        png_chunk(b"tEXt", b"Comment\0x")[:-1] + b"?",
        png_chunk(b"gAMA", struct.pack(">I", 0)),
        png_chunk(b"cHRM", bytes(32)),
        png_chunk(b"tIME", b"\xff" * 7),
        png_chunk(b"eXIf", exif(6)[6:]),
        png_chunk(b"sBIT", b"\x09\x09\x09"),
    ],
    ids=["iCCP", "tEXt", "gAMA", "cHRM", "tIME", "eXIf", "sBIT"],
)
def test_odd_chunks_of_a_png_are_passed_over_in_silence(chunk, capfd):
    """Wrong profiles are common on the web, and one warning a picture floods the terminal."""
    data = encoded(scene(24, 30), "PNG")
    data = data[:33] + chunk + data[33:]
    try:
        pixels = decode(data)
    except DataError:
        with pytest.raises((OSError, SyntaxError)):
            by_pillow(data)
    else:
        upright = decode(encoded(scene(24, 30), "PNG"))
        assert np.array_equal(pixels, np.rot90(upright, -1) if b"eXIf" in chunk else upright)
    assert capfd.readouterr() == ("", "")


def test_damaged_files_are_refused_in_silence(capfd):
    """What C libraries have to say of a cut or changed picture is in the DataError."""
    for data in (encoded(scene(60, 70), "PNG"), jpeg(scene(60, 70)), jpeg(scene(60, 70), progressive=True)):
        for bad in (data[:-30], data[: len(data) // 2], data[:400] + bytes(60) + data[460:], data[:50]):
            try:
                decode(bad)
            except DataError as error:
                assert "readable picture" in str(error)
    assert capfd.readouterr() == ("", "")


# -- hostile sizes ----------------------------------------------------------------------------


def bomb(form: str, height: int, width: int) -> bytes:
    """A small whole file that claims this size."""
    small = encoded(scene(24, 30), form)
    if form == "JPEG":
        at = jpeg_header(small).height_at
        return small[:at] + struct.pack(">HH", height, width) + small[at + 4 :]
    if form == "PNG":
        head = png_chunk(b"IHDR", struct.pack(">II", width, height) + small[24:29])
        return small[:8] + head + small[33:]
    if form == "GIF":
        image = small.index(b"\x2c\0\0\0\0")
        size = struct.pack("<HH", width, height)
        return small[:6] + size + small[10 : image + 5] + size + small[image + 9 :]
    assert form == "BMP"
    return small[:18] + struct.pack("<ii", width, height) + small[26:]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(30000, 30000), (65000, 65000), (20000, 10000)])
def test_a_file_that_claims_a_giant_picture_is_refused_unread(form, size):
    """In a process that may use 200 MB more than now: no attempt to hold the pixels."""
    data = bomb(form, *size)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work():
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 200_000_000, now + 200_000_000))
        try:
            theirs.send(str(decode(data).shape))
        except BaseException as error:
            theirs.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=work)
    process.start()
    received = ours.recv()
    process.join()
    assert received.startswith("DataError"), received
    header = jpeg_header(data)
    if header is not None:
        with pytest.raises(DataError, match="more than"):
            decode_region(data, header, (0, 0, 10, 10))
        with pytest.raises(DataError, match="more than"):
            DecodeAndCrop(DecodeImage(), RandCropImage(8))(data, np.random.default_rng(0))


# -- parts ------------------------------------------------------------------------------------


def box_in(height: int, width: int, numbers) -> tuple[int, int, int, int]:
    top, left, tall, wide = numbers
    box_height, box_width = 1 + tall % height, 1 + wide % width
    return top % (height - box_height + 1), left % (width - box_width + 1), box_height, box_width


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    boxes=st.lists(st.tuples(*[st.integers(0, 999)] * 4), min_size=1, max_size=6),
    sampling=st.sampled_from(sorted(SAMPLING)),
    quality=st.integers(1, 100),
    restart=st.integers(0, 9),
    progressive=st.integers(0, 4).map(lambda n: n == 0),
    optimize=st.booleans(),
    grey=st.booleans(),
)
def test_a_part_is_the_whole_cut(height, width, boxes, **options):
    """To the last bit, wherever the box lies and however the file is made."""
    data = jpeg(scene(height, width), **options)
    whole, header = decode(data), jpeg_header(data)
    for numbers in boxes:
        top, left, tall, wide = box = box_in(height, width, numbers)
        assert np.array_equal(decode_region(data, header, box), whole[top : top + tall, left : left + wide])


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:0", "4:4:0"])
def test_every_bottom_row_of_a_part(sampling):
    """Where decoding stops does not show in the last rows, for each place within a block."""
    data = jpeg(scene(100, 20), sampling=sampling)
    whole, header = decode(data), jpeg_header(data)
    for bottom in range(1, 101):
        assert np.array_equal(decode_region(data, header, (0, 0, bottom, 20)), whole[:bottom])


def test_a_part_of_a_picture_in_several_scans():
    """Baseline, but each colour in a scan of its own: the upper rows do not come first."""
    sequence = jpeg(scene(64, 64), sampling="4:4:4")
    header = jpeg_header(sequence)
    assert header.in_rows
    scan = sequence.index(b"\xff\xda")
    # the header of the same picture with a scan of one component: what follows is not decoded here
    alone = sequence[: scan + 2] + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0) + sequence[scan + 14 :]
    assert not jpeg_header(alone).in_rows


def test_what_a_part_leaves_out_is_not_decoded():
    """The upper tenth of a tall picture takes a fraction of the time."""
    import time

    data = jpeg(scene(2000, 400))
    header = jpeg_header(data)

    def least(function):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
        return min(times)

    assert least(lambda: decode_region(data, header, (0, 0, 200, 400))) < 0.5 * least(lambda: decode(data))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("sampling", sorted(SAMPLING))
@pytest.mark.parametrize("progressive", [False, True])
def test_a_reduced_part_is_close_to_averages(factor, sampling, progressive):
    """Of each factor x factor pixels; and in its place, which gradients of 1 a pixel show.

    Colours that are stored at less than the reduced size are repeated, not smoothed: there only brightness is near.
    """
    y, x = np.mgrid[:240, :240]
    smooth = np.stack([x, y, (x + y) / 2], axis=2).astype("uint8")
    data = jpeg(smooth, sampling=sampling, quality=98, progressive=progressive)
    header, whole = jpeg_header(data), decode(data).astype(float)
    averages = whole.reshape(240 // factor, factor, 240 // factor, factor, 3).mean(axis=(1, 3))
    for box in ((0, 0, 240, 240), (16, 24, 80, 64), (40, 8, 200, 232), (0, 160, 8, 80)):
        top, left, height, width = (n // factor for n in box)
        difference = decode_region(data, header, box, factor) - averages[top : top + height, left : left + width]
        brightness = difference @ [0.299, 0.587, 0.114]
        assert np.abs(brightness).max() < 2.0
        if box[2] == 240:
            assert np.abs(difference.mean(axis=(0, 1))).max() < 0.6
        if sampling in ("4:4:4", "4:2:0"):
            assert np.abs(difference).max() < 2.5


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    numbers=st.tuples(*[st.integers(0, 999)] * 4),
    factor=st.sampled_from([2, 4, 8]),
    sampling=st.sampled_from(sorted(SAMPLING)),
    progressive=st.booleans(),
)
def test_a_reduced_part_covers_its_box(height, width, numbers, factor, **options):
    """At every place and size: the pixels of the reduced whole that the box touches, never none."""
    data = jpeg(scene(height, width), **options)
    top, left, tall, wide = box = box_in(height, width, numbers)
    rows = sorted({y // factor for y in range(top, top + tall)})
    columns = sorted({x // factor for x in range(left, left + wide)})
    whole = decode_region(data, jpeg_header(data), (0, 0, height, width), factor)
    assert np.array_equal(decode_region(data, jpeg_header(data), box, factor), whole[rows][:, columns])


def test_a_part_of_a_cut_file_is_refused():
    """Also where the rows that are asked for are there: a file is whole or damaged, not now this, now that."""
    data = jpeg(scene(400, 400), quality=95)
    header = jpeg_header(data)
    for part in (0.95, 0.5, 0.2):
        with pytest.raises(DataError):
            decode_region(data[: int(part * len(data))], header, (0, 0, 20, 20))


def test_a_thumbnails_end_is_not_taken_for_the_pictures():
    """A file cut soon after EXIF with a thumbnail holds an end marker, but not its own."""
    thumbnail = jpeg(scene(30, 40, seed=1))
    data = with_segment(jpeg(scene(400, 400), quality=95), 0xE1, exif(1) + thumbnail)
    header = jpeg_header(data)
    cut = data[: data.index(thumbnail) + len(thumbnail) + 3000]
    assert jpeg_header(cut) == header
    with pytest.raises(DataError):
        decode(cut)
    with pytest.raises(DataError):
        decode_region(cut, header, (0, 0, 200, 200))


# -- fused with the crop ----------------------------------------------------------------------


CROPS = [RandCropImage, RandomResizedCrop, MAERandCropImage, InceptionCrop]
FILES = {
    "4:2:0": jpeg(scene(97, 120)),
    "4:4:4 restart": jpeg(scene(97, 120), sampling="4:4:4", restart=3),
    "progressive": jpeg(scene(97, 120), progressive=True),
    "turned": jpeg(scene(97, 120), exif=exif(6)),
    "grey": jpeg(scene(97, 120), grey=True),
    "CMYK": encoded(scene(97, 120), mode="CMYK"),
    "PNG": encoded(scene(97, 120), "PNG"),
    "pixels": scene(97, 120),
    "one pixel": jpeg(scene(1, 1)),
    "narrow": jpeg(scene(3, 200)),
}


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
@pytest.mark.parametrize(
    ("backend", "size"), [("pil", 16), ("pil", (30, 20)), ("cv2", 70)], ids=["pil 16", "pil 30x20", "cv2 70"]
)
@pytest.mark.parametrize("crop", CROPS)
def test_fused_is_decoding_followed_by_cropping(crop, backend, size, file):
    """The same pixels and the same draws, for Pillow and for what OpenCV does not shrink to half."""
    for interpolation in ("bilinear", "random"):
        decoding, cropping = DecodeImage(), crop(size, interpolation=interpolation, backend=backend)
        steps = fuse([decoding, cropping])
        for seed in range(8):
            one, two = np.random.default_rng(seed), np.random.default_rng(seed)
            actual = file
            for step in steps:
                actual = step(actual, one)
            assert np.array_equal(actual, cropping(decoding(file, two), two))
            assert one.random() == two.random()


@pytest.mark.parametrize("crop", CROPS)
def test_every_random_crop_is_fused(crop):
    """And nothing else: not another order, not a crop that is alone."""
    steps = [DecodeImage(), crop(8), DecodeImage()]
    assert [type(step) for step in fuse(steps)] == [DecodeAndCrop, DecodeImage]
    assert fuse(steps[1:]) == steps[1:] and fuse(steps[:1]) == steps[:1] and fuse([]) == []


def test_fused_keeps_the_order_of_channels():
    cropping, file = RandCropImage(16, backend="pil"), FILES["4:2:0"]
    rgb, bgr = (
        fuse([DecodeImage(to_rgb=order), cropping])[0](file, np.random.default_rng(0)) for order in (True, False)
    )
    assert np.array_equal(bgr, rgb[..., ::-1])
    rng = np.random.default_rng(0)
    assert np.array_equal(bgr, cropping(DecodeImage(to_rgb=False)(file, rng), rng))


@pytest.mark.parametrize("size", [5, 10, 20, 40])
def test_what_opencv_shrinks_is_averaged(size):
    """Decoded smaller: nearer to the average of what a pixel covers than OpenCV's own skipping."""
    data = jpeg(scene(320, 320), quality=95)
    cropping = RandCropImage(size, scale=(0.9, 1.0), interpolation="bilinear", backend="cv2")
    [fused] = fuse([DecodeImage(), cropping])
    ours, skipping = [], []
    for seed in range(6):
        actual = fused(data, np.random.default_rng(seed)).astype(float)
        plain = cropping(decode(data), np.random.default_rng(seed)).astype(float)
        top, left, height, width = cropping.box(320, 320, np.random.default_rng(seed))
        area = cv2.resize(
            decode(data)[top : top + height, left : left + width], (size, size), interpolation=cv2.INTER_AREA
        )
        assert actual.shape == (size, size, 3)
        ours.append(np.abs(actual - area).mean())
        skipping.append(np.abs(plain - area).mean())
    assert np.mean(ours) < 0.7 * np.mean(skipping)


def test_damage_is_reported_by_the_fused_step_too():
    [fused] = fuse([DecodeImage(), RandCropImage(16)])
    data = FILES["4:2:0"]
    for bad in (b"", b"GIF89a", data[:100], data[:-400], data[:2] + data[200:]):
        with pytest.raises(DataError):
            fused(bad, np.random.default_rng(0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_odd_tags_beside_the_orientation_do_not_stop_a_picture(orientation):
    """EXIF that Pillow cannot write again: XResolution as text."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif, quality=95)
    plain = decode(file.getvalue())
    # tag 0x011A (XResolution) of type ASCII, two characters
    tiff = b"MM\0*\0\0\0\x08\0\x02" + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff += struct.pack(">HHI4s", 0x011A, 2, 2, b"x\0\0\0") + b"\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    odd = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "JPEG", quality=95)
    assert np.array_equal(decode(odd + body.getvalue()[2:]), plain)
