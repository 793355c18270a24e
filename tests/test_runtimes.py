"""What the runtimes print is left out, and what others print is not lost."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from plsc import runtimes


@pytest.fixture
def descriptors():
    """stdout and stderr of the process are put back, whatever a test leaves there."""
    kept = {number: os.dup(number) for number in (1, 2)}
    yield
    for number, descriptor in kept.items():
        os.dup2(descriptor, number)
        os.close(descriptor)


def test_two_threads_that_capture_at_the_same_time(descriptors, capfd):
    """Of two that overlapped the second one put the first one's file back in place of stdout, for good."""
    inside, second_inside, leave, first_left = (threading.Event() for _ in range(4))
    texts = {}

    def first():
        with runtimes.captured_output() as printed:
            os.write(1, b"one\n")
            inside.set()
            assert leave.wait(10)
            texts["first"] = printed()

    def second():
        assert inside.wait(10)
        with runtimes.captured_output() as printed:
            second_inside.set()
            assert first_left.wait(10)
            os.write(2, b"two\n")
            texts["second"] = printed()

    threads = [threading.Thread(target=function) for function in (first, second)]
    for thread in threads:
        thread.start()
    second_inside.wait(0.2)  # it would be there by now if it did not wait for the first one
    leave.set()
    threads[0].join(10)
    first_left.set()
    threads[1].join(10)
    os.write(1, b"printed afterwards\n")
    os.write(2, b"logged afterwards\n")
    assert capfd.readouterr() == ("printed afterwards\n", "logged afterwards\n")
    assert texts == {"first": "one\n", "second": "two\n"}


def test_a_capture_within_another_one(descriptors, capfd):
    with runtimes.captured_output() as outer:
        with runtimes.captured_output() as inner:
            os.write(1, b"inner\n")
            assert inner() == "inner\n"
        os.write(1, b"outer\n")
        assert outer() == "outer\n"
    assert capfd.readouterr() == ("", "")


class Printing:
    """A predictor of Paddle Inference that prints in its first run, while other threads print, too."""

    def get_input_names(self):
        return ["image"]

    get_output_names = get_input_names

    def get_input_handle(self, name):
        return SimpleNamespace(copy_from_cpu=lambda images: None, copy_to_cpu=lambda: np.zeros((2, 3), "float32"))

    get_output_handle = get_input_handle

    def run(self):
        other = threading.Thread(target=os.write, args=(1, b"half a line"))
        other.start()
        other.join()
        os.write(1, b"ReduceMeanCheckIfOneDNNSupport\n")
        os.write(1, b" and its end\n")
        os.write(2, b"a log's line\n")


def test_what_other_threads_print_while_a_graph_runs_for_the_first_time_appears(descriptors, capfd):
    session = runtimes._Session(Path("inference.json"), Printing())
    assert session(np.zeros((2, 3, 4, 4), "float32")).shape == (2, 3)
    assert capfd.readouterr() == ("half a line and its end\n", "a log's line\n")
