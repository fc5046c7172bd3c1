"""zlib's CRC-32, by the fastest library that is installed, and its arithmetic.

A CRC-32 is a remainder of polynomials over GF(2), here in zlib's bit order: bit 31 of a number is the coefficient of 1,
bit 0 that of x ** 31. Multiplying by a power of x shifts a message, so the checksums of parts give that of the whole.
"""

import importlib
import zlib
from collections.abc import Callable
from functools import lru_cache

POLYNOMIAL = 0xEDB88320
ORDER = 2**32 - 1  # x ** ORDER is 1, so negative powers exist
ONE = 1 << 31
ONES = 0xFFFFFFFF
LIBRARIES = ("isal.isal_zlib", "zlib_ng.zlib_ng")  # several times as fast as zlib


def fastest() -> Callable[..., int]:
    """The `crc32` of the first of LIBRARIES that is installed, else zlib's; all have the same arguments."""
    for name in LIBRARIES:
        try:
            found: Callable[..., int] = importlib.import_module(name).crc32
        except ImportError:
            continue
        return found
    return zlib.crc32


crc32 = fastest()


def multiply(a: int, b: int) -> int:
    """The product of two polynomials."""
    product = 0
    while a:
        if a & ONE:
            product ^= b
        a = a << 1 & ONES
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=1)
def _squares() -> list[int]:
    """x ** (2 ** i)."""
    squares = [ONE >> 1]
    while len(squares) < 32:
        squares.append(multiply(squares[-1], squares[-1]))
    return squares


@lru_cache(maxsize=4096)
def power(exponent: int) -> int:
    """x ** exponent; the exponent may be negative."""
    exponent %= ORDER
    product = ONE
    for i, square in enumerate(_squares()):
        if exponent >> i & 1:
            product = multiply(square, product)
    return product


@lru_cache(maxsize=4096)
def conditioning(size: int) -> int:
    """What zlib's initial and final inversions add to the remainder of a message of `size` bytes, times x ** 32."""
    return multiply(ONES, power(8 * size)) ^ ONES
