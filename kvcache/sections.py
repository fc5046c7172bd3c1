"""The section of a layer in a cache on the wire: its header, and what a receiver checks of it."""

import struct
from functools import lru_cache
from typing import NamedTuple

from kvcache.crc32 import crc32
from kvcache.errors import WireError
from kvcache.quantizers import CODES, Quantizer, Scheme
from kvcache.quantizers.base import Shape

SECTION = struct.Struct("<HBBIII")
CRC = struct.Struct("<I")
SECTION_BYTES = SECTION.size + CRC.size


class Section(NamedTuple):
    """A layer's section: its scheme, the bytes of keys and of values, and the CRC-32 of both."""

    layer: int
    scheme: Scheme
    key_bytes: int
    value_bytes: int
    checksum: int

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.key_bytes + self.value_bytes

    def header(self) -> bytes:
        """The section's header."""
        head = SECTION.pack(self.layer, self.scheme.code, 0, self.key_bytes, self.value_bytes, self.checksum)
        return head + CRC.pack(crc32(head))


def checked_section(head: bytes, index: int, shape: Shape) -> Section:
    """Check and parse the header of layer `index`'s section, whose keys and values have this shape.

    Raises:
        WireError: it is damaged, isn't that layer's, or its sizes don't fit the shape.
    """
    number, code, reserved, key_bytes, value_bytes, checksum = SECTION.unpack_from(head)
    if CRC.unpack_from(head, SECTION.size)[0] != crc32(head[: SECTION.size]):
        raise WireError(f"the checksum of the section of layer {index} differs", "checksum")
    if number != index or reserved or code not in CODES:
        raise WireError(f"layer {number} in scheme {code}, where layer {index} should come", "bad_layer")
    (least_keys, most_keys), (least_values, most_values) = _sizes(code, shape)
    if not (least_keys <= key_bytes <= most_keys and least_values <= value_bytes <= most_values):
        sizes = f"{key_bytes} and {value_bytes} bytes"
        raise WireError(f"layer {index}: {sizes} for {shape} in {CODES[code].name}", "bad_layer")
    return Section(index, CODES[code], key_bytes, value_bytes, checksum)


@lru_cache(maxsize=256)
def _sizes(code: int, shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    """The smallest and the largest size of keys and of values of a shape."""

    def sizes(quantizer: Quantizer) -> tuple[int, int]:
        exact = quantizer.size(shape)
        return (0, quantizer.max_size(shape)) if exact is None else (exact, exact)

    return sizes(CODES[code].keys), sizes(CODES[code].values)
