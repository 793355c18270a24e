"""List files: their lines found as Python finds them, at any length, and named by number."""

import contextlib
import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data.datasets import ImageNetDataset, imagenet
from plsc.data.datasets.imagenet import line_index
from plsc.errors import DataError
from tests.test_shards import bytes_read, dense_targets, in_child


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No cache of the user is touched."""
    monkeypatch.setenv("PLSC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def python_lines(text: bytes) -> list[tuple[int, bytes]]:
    """(where it begins, line without its end) of every line that is not blank."""
    collected, at = [], 0
    for line in text.split(b"\n"):
        if line.strip():
            collected.append((at, line))
        at += len(line) + 1
    return collected


WORDS = st.sampled_from(["", " ", "\r", "\t", "x", "a/b.jpg 0", "a/b.jpg 3,17", "a,b.jpg 1,2,3,4", "ä ü 5", "0"])
LINES = st.lists(st.tuples(WORDS, st.sampled_from(["\n", "\r\n", "\n\n", " \n"])), max_size=12)


@settings(max_examples=400, deadline=None)
@given(lines=LINES, last=WORDS, piece=st.sampled_from([24, 25, 31, 40, 64, 1000]))
def test_lines_are_pythons(lines, last, piece):
    """Blank lines, either line end, none at the very end; and wherever the text is cut into pieces."""
    text = "".join(word + end for word, end in lines).encode() + last.encode()
    expected = python_lines(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "_PIECE", piece)
        actual = line_index(np.frombuffer(text, np.uint8))
    spans = zip(actual["starts"].tolist(), actual["lengths"].tolist(), strict=True)
    assert [(start, text[start : start + length].rstrip()) for start, length in spans] == [
        (start, line.rstrip()) for start, line in expected
    ]
    assert int(actual["most_commas"][0]) >= max((line.count(b",") for _, line in expected), default=0)


def test_commas_are_not_overcounted():
    """As many places a row as the line with most commas needs, in a text of one piece."""
    actual = line_index(np.frombuffer(b"a 1,2\nb 1\nc 1,2,3\nd 1,2\n", np.uint8))
    assert int(actual["most_commas"][0]) == 2


def test_a_line_longer_than_a_piece_is_refused(monkeypatch):
    monkeypatch.setattr(imagenet, "_PIECE", 32)
    with pytest.raises(DataError, match="a line is longer than"):
        line_index(np.frombuffer(b"a.jpg 0\n" + b"x" * 70 + b" 1\n", np.uint8))


def listed(tmp_path, text: str | bytes, **options) -> ImageNetDataset:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8")
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ImageNetDataset(str(tmp_path), str(path), **options)


def test_several_labels_in_lines_that_pieces_cut(tmp_path, monkeypatch):
    """The line with the most labels lies across two pieces: there is room for all its labels."""
    text = "a.jpg 1\na.jpg 1,2,3,4,5,6\na.jpg 7\n"
    for piece in range(19, 40):
        monkeypatch.setattr(imagenet, "_PIECE", piece)
        data = listed(tmp_path, text, multi_label=True)
        assert data.max_labels >= 6, piece
        assert dense_targets(data).sum(axis=1).tolist() == [1, 6, 1]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_windows_and_unix_lists_are_the_same(tmp_path, end):
    data = listed(tmp_path, end.join(["a.jpg 0", "", "b.jpg 3", " ", "a.jpg 12"]))
    assert [data[i].label for i in range(len(data))] == [0, 3, 12]
    assert data[1].name == str(tmp_path / "b.jpg")


def test_odd_names(tmp_path):
    """Spaces in paths, other delimiters, names that are not UTF-8, labels named twice."""
    (tmp_path / "one two.jpg").write_bytes(b"1")
    (tmp_path / os.fsdecode(b"\xe4.jpg")).write_bytes(b"2")
    data = listed(tmp_path, b"one two.jpg 4\n\xe4.jpg 5\n")
    assert [(s.image, s.label) for s in (data[0], data[1])] == [(b"1", 4), (b"2", 5)]
    assert listed(tmp_path, "one two.jpg\t4\n", delimiter="\t")[0].label == 4
    assert listed(tmp_path, "a.jpg 4,2,4\n", multi_label=True)[0].label == (4, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg", "line 5: expected 'path label', got 'a.jpg'"),
        ("a.jpg one", "line 5: expected"),
        ("a.jpg 1,2", "line 5: expected"),
        ("a.jpg 9", "line 5: there is no class 9; class_num is 5"),
        ("a.jpg -2", "line 5: there is no class -2"),
        ("gone.jpg 0", r"gone\.jpg: No such file.*line 5"),
        ("x", "line 5: expected 'path label', got 'x'"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path, line, message):
    """Counted as an editor counts, blank lines too."""
    data = listed(tmp_path, f"a.jpg 0\n\n\r\nb.jpg 1\n{line}\na.jpg 2\n", class_num=5)
    assert len(data) == 4
    with pytest.raises(DataError, match=message) as caught:
        data[2]
    assert "list.txt" in str(caught.value)
    assert data[3].label == 2


def test_a_check_before_the_run_finds_what_does_not_fit(tmp_path):
    data = listed(tmp_path, "a.jpg 0\n\nb.jpg 7\n")
    data.check(8)
    with pytest.raises(DataError, match=r"list\.txt, line 3: its label is 7, but Model\.class_num is 7"):
        data.check(7)


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("\n\n \n", "no lines"), ("\r\n", "no lines")])
def test_lists_of_nothing(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        listed(tmp_path, text)


@pytest.fixture(scope="module")
def long_list(tmp_path_factory):
    """Three million lines of some 28 bytes, the third of them blank."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "n00").mkdir()
    (folder / "n00" / "0.jpg").write_bytes(b"\xff\xd8")
    with open(folder / "list.txt", "w") as file:
        file.write("n00/0.jpg 0\nn00/0.jpg 1\n\n")
        for k in range(3, 3_000_000, 100_000):
            file.write(
                "".join(f"n{i % 1000:05d}/{i:012d}.jpg {i % 1000}\n" for i in range(k, min(k + 100_000, 3_000_000)))
            )
    return folder


def test_a_long_list_is_indexed_once(long_list, cache):
    """The second start reads next to nothing; every process maps the same index; line numbers hold."""
    path = long_list / "list.txt"
    assert path.stat().st_size > imagenet._PIECE
    started = time.perf_counter()
    data = ImageNetDataset(str(long_list), str(path))
    assert time.perf_counter() - started < 15.0  # 0.3 s where it was measured
    assert len(data) == 2_999_999 and data.max_labels == 1
    before, started = bytes_read(), time.perf_counter()
    again = ImageNetDataset(str(long_list), str(path))
    assert time.perf_counter() - started < 0.5 and bytes_read() - before < 100_000
    text = path.read_bytes()
    assert [start for start, _ in python_lines(text)] == again._starts.tolist()
    for k in (0, 1, 2, 1_234_567, 2_999_998):
        with pytest.raises(DataError, match=f"line {k + 1 + (k > 1)} of") if k > 1 else contextlib.nullcontext():
            again[k]
    assert len(list(cache.rglob("starts.npy"))) == 1
    assert in_child(lambda: again._parse(2_999_998)[1]) == (0, str((2_999_999 % 1000,)))


def test_a_long_list_that_changes_is_indexed_anew(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(imagenet, "_PIECE", 100)
    lines = [f"a.jpg {k}" for k in range(50)]
    assert len(listed(tmp_path, "\n".join(lines))) == 50
    data = listed(tmp_path, "\n".join(lines[:40]))
    assert [data[i].label for i in range(len(data))] == list(range(40))
    assert len(list(cache.rglob("starts.npy"))) == 2  # who still has the first list keeps its index


def test_a_list_rewritten_under_way_kills_nobody(tmp_path):
    """Users write their lists anew while a run reads them; a mapped file that shrinks is SIGBUS."""
    text = "".join(f"a.jpg {k}\n" for k in range(2000))
    data = listed(tmp_path, text)

    def read():
        (tmp_path / "list.txt").write_text("a.jpg 0\n")
        return data[1999]

    code, received = in_child(read)
    assert code != -signal.SIGBUS
    assert received.startswith(("DataError", "Sample"))
