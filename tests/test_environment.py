"""Settings of the process that exist before Paddle is imported."""

import gc

import pytest

from plsc.environment import _uncollected, mkl_cpu_type

AVX512 = "avx512f avx512dq avx512cd avx512bw avx512vl"


@pytest.mark.parametrize(
    ("vendor", "flags", "kernels"),
    [
        ("AuthenticAMD", f"fpu avx2 {AVX512}", "9"),
        ("AuthenticAMD", "fpu avx2", "5"),
        ("AuthenticAMD", "fpu avx2 avx512f avx512dq avx512bw", "5"),  # avx512vl is missing
        ("GenuineIntel", f"fpu avx2 {AVX512}", None),
    ],
)
def test_kernels_of_the_matrix_library(vendor, flags, kernels):
    processor = f"vendor_id\t: {vendor}\nmodel name\t: any\nflags\t\t: {flags}\n"
    assert mkl_cpu_type(processor * 2) == kernels


def test_kernels_of_the_matrix_library_without_cpuinfo():
    assert mkl_cpu_type("AMD64 Family 25 Model 17") == "5"
    assert mkl_cpu_type("arm") is None


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_after_an_import_as_before(collects):
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(ImportError), _uncollected():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()
