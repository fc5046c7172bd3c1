"""Checksums are zlib's whatever computes them, and those of parts give that of the whole."""

import random
import sys
import zlib
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache.crc32 import LIBRARIES, ONE, conditioning, crc32, fastest, multiply, power

POLYNOMIALS = st.integers(0, 2**32 - 1)


@given(first=st.binary(max_size=200), second=st.binary(max_size=200))
def test_the_checksum_of_two_parts(first: bytes, second: bytes) -> None:
    assert crc32(second, crc32(first)) == zlib.crc32(first + second)


@given(size=st.integers(0, 2000))
def test_zeros_have_only_the_conditioning(size: int) -> None:
    """Inverting at both ends is all that zlib does to the remainder of zeros, which is 0."""
    assert conditioning(size) == zlib.crc32(bytes(size))


@given(a=POLYNOMIALS, b=POLYNOMIALS, c=POLYNOMIALS)
def test_polynomials_form_a_field(a: int, b: int, c: int) -> None:
    assert multiply(a, b) == multiply(b, a) and multiply(a, ONE) == a
    assert multiply(a, multiply(b, c)) == multiply(multiply(a, b), c)
    assert multiply(a, b ^ c) == multiply(a, b) ^ multiply(a, c)


@given(e=st.integers(-(2**40), 2**40))
def test_powers_have_inverses(e: int) -> None:
    assert multiply(power(e), power(-e)) == ONE and multiply(power(e), power(1)) == power(e + 1)


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_installed_library_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in LIBRARIES:  # None: importing it fails
        monkeypatch.setitem(sys.modules, library, None)
    assert fastest() is zlib.crc32
    package, module = ModuleType(name.split(".")[0]), ModuleType(name)
    module.crc32 = zlib.adler32  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, name, module)
    assert fastest() is zlib.adler32


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_real_library_agrees(name: str) -> None:
    module = pytest.importorskip(name)
    data = random.Random(3).randbytes(100_003)
    assert module.crc32(data[7:], module.crc32(data[:7])) == zlib.crc32(data)
