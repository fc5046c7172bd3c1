"""Positions on the wire: the smallest of four encodings, and the message of positions alone (`scout`).

A set of positions of a sequence of `length`, as one of

    form 0, all      nothing: every position of the sequence
    form 1, list     a uint16 for each position, ascending (sequences of at most 65,536)
    form 2, bitmap   ceil(length / 8) bytes; position p is bit p % 8 of byte p // 8; bits from `length` on are 0
    form 3, gaps     a LEB128 varint for each position: the number of positions dropped since the one before

and the message around it, little-endian:

    offset size field
         0    4 magic "SIDX"
         4    1 version (1)
         5    1 form
         6    2 reserved, 0
         8    4 length of the sequence
        12    4 number of positions
        16    4 bytes that follow the header
        20    4 CRC-32 of the 20 bytes before and of what follows
        24      the positions
"""

import struct
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from kvcache.cache import check_positions
from kvcache.crc32 import crc32
from kvcache.errors import WireError

MAGIC = b"SIDX"
VERSION = 1
HEADER = struct.Struct("<4sBBHIII")
CRC = struct.Struct("<I")
HEADER_BYTES = HEADER.size + CRC.size
LIST_LENGTH = 2**16  # the longest sequence whose positions fit uint16
VARINT_BYTES = 5  # of a gap below 2 ** 32
VARINT_STEPS = 2 ** np.array([7, 14, 21, 28])  # the numbers from which on a varint takes one byte more
MAX_POSITIONS = 2**20


class Form(IntEnum):
    """The encoding of positions."""

    ALL = 0
    LIST = 1
    BITMAP = 2
    GAPS = 3


FORMS = frozenset(map(int, Form))


def write_positions(positions: Tensor, length: int) -> tuple[Form, bytes]:
    """Encode positions in the smallest form, the simplest of equally small ones.

    Raises:
        ValueError: they are not int64, strictly ascending and within the sequence.
    """
    check_positions(positions, length)
    form, _ = _smallest(positions, length)
    return form, _write(positions, length, form)


def positions_bytes(positions: Tensor, length: int) -> int:
    """The number of bytes that `write_positions` returns."""
    return _smallest(positions, length)[1]


def _smallest(positions: Tensor, length: int) -> tuple[Form, int]:
    if len(positions) == length:
        return Form.ALL, 0
    sizes = {Form.BITMAP: -(-length // 8), Form.GAPS: int(_varint_sizes(_gaps(positions)).sum())}
    if length <= LIST_LENGTH:
        sizes = {Form.LIST: 2 * len(positions), **sizes}
    form = min(sizes, key=sizes.__getitem__)
    return form, sizes[form]


def _write(positions: Tensor, length: int, form: Form) -> bytes:
    if form is Form.ALL:
        return b""
    if form is Form.LIST:
        return positions.numpy().astype("<u2").tobytes()
    if form is Form.GAPS:
        return _write_varints(_gaps(positions))
    bits = np.zeros(length, np.uint8)
    bits[positions.numpy()] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def check_counts(form: int, length: int, count: int, size: int, limit: int) -> Form:
    """Check a header's numbers for consistency before anything is allocated, and return the form.

    Raises:
        WireError: `oversized`, or `bad_positions`.
    """
    if length > limit:
        raise WireError(f"a sequence of {length} positions; at most {limit} are accepted", "oversized")
    if form not in FORMS or not length or count > length:
        raise WireError(f"{count} positions of {length} in form {form}", "bad_positions")
    fits = {
        Form.ALL: size == 0 and count == length,
        Form.LIST: size == 2 * count and length <= LIST_LENGTH,
        Form.BITMAP: size == -(-length // 8),
        Form.GAPS: count <= size <= count * VARINT_BYTES,
    }
    if not fits[Form(form)]:
        raise WireError(f"{size} bytes for {count} positions of {length} in form {Form(form).name}", "bad_positions")
    return Form(form)


def read_positions(form: Form, raw: bytes, length: int, count: int) -> Tensor:
    """Decode positions (int64) after `check_counts`.

    Raises:
        WireError: `bad_positions`: not ascending, beyond the sequence, or not `count` of them.
    """
    if form is Form.ALL:
        return torch.arange(length)
    if form is Form.LIST:
        found = np.frombuffer(raw, "<u2").astype(np.int64)
    elif form is Form.BITMAP:
        found = np.flatnonzero(np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")).astype(np.int64)
    else:
        found = np.cumsum(_read_varints(raw) + 1) - 1
    positions = torch.from_numpy(found)
    try:
        check_positions(positions, length)
    except ValueError as error:
        raise WireError(str(error), "bad_positions") from None
    if len(positions) != count:
        raise WireError(f"{len(positions)} positions where the header says {count}", "bad_positions")
    return positions


def positions_message(positions: Tensor, length: int) -> bytes:
    """Encode a message of positions only, in the module's format."""
    form, raw = write_positions(positions, length)
    head = HEADER.pack(MAGIC, VERSION, form, 0, length, len(positions), len(raw))
    return head + CRC.pack(crc32(raw, crc32(head))) + raw


def read_positions_message(message: bytes | memoryview, max_positions: int = MAX_POSITIONS) -> tuple[Tensor, int]:
    """Decode a message of positions; returns them (int64) and the length of their sequence.

    Raises:
        WireError: the message is malformed, truncated, damaged, or its sequence is longer than accepted.
    """
    message = bytes(message)
    if len(message) < HEADER_BYTES:
        raise WireError(f"positions end after {len(message)} bytes of {HEADER_BYTES}", "truncated")
    magic, version, form, reserved, length, count, size = HEADER.unpack_from(message)
    if magic != MAGIC:
        raise WireError(f"not a message of positions: it begins with {magic!r}", "magic")
    if version != VERSION:
        raise WireError(f"positions of version {version}; version {VERSION} is supported", "version")
    if reserved:
        raise WireError(f"reserved field {reserved}", "header")
    checked = check_counts(form, length, count, size, max_positions)
    left = len(message) - HEADER_BYTES - size
    if left:
        raise WireError(
            f"{abs(left)} bytes too {'many' if left > 0 else 'few'}", "trailing" if left > 0 else "truncated"
        )
    raw = message[HEADER_BYTES:]
    if CRC.unpack_from(message, HEADER.size)[0] != crc32(raw, crc32(message[: HEADER.size])):
        raise WireError("checksum of the positions differs", "checksum")
    return read_positions(checked, raw, length, count), length


def _gaps(positions: Tensor) -> np.ndarray:
    """The number of dropped positions between each position and its predecessor."""
    return np.diff(positions.numpy(), prepend=-1) - 1


def _varint_sizes(numbers: np.ndarray) -> np.ndarray:
    return 1 + (numbers[:, None] >= VARINT_STEPS).sum(1)


def _write_varints(numbers: np.ndarray) -> bytes:
    sizes = _varint_sizes(numbers)
    places = np.arange(VARINT_BYTES)
    sevens = (numbers[:, None] >> 7 * places) & 0x7F
    more = places < sizes[:, None] - 1
    return (sevens | more << 7).astype(np.uint8)[places < sizes[:, None]].tobytes()


def _read_varints(raw: bytes) -> np.ndarray:
    """Decode varints. Raises WireError unless they are complete and at most five bytes each."""
    octets = np.frombuffer(raw, np.uint8).astype(np.int64)
    if not len(octets):
        return octets
    ends = np.flatnonzero(octets < 0x80)
    if not len(ends) or ends[-1] != len(octets) - 1:
        raise WireError("positions end within a number", "bad_positions")
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if sizes.max() > VARINT_BYTES:
        raise WireError("a gap of more than five bytes", "bad_positions")
    places = np.arange(len(octets)) - np.repeat(starts, sizes)
    return np.add.reduceat((octets & 0x7F) << 7 * places, starts)
