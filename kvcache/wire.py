"""A cache on the wire: a header, the positions, then a section for each layer. docs/wire-format.md has every byte.

A cache is encoded, sent and decoded layer by layer, so that the three overlap and no second copy of the whole cache
exists. A receiver checks every length against the expected model and its limits before it allocates memory.
"""

import struct
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.cache import DTYPES, Geometry, KVCache
from kvcache.errors import WireError
from kvcache.plans import plan_of
from kvcache.positions import (
    MAX_POSITIONS,
    Form,
    check_counts,
    positions_bytes,
    read_positions,
    write_positions,
)
from kvcache.quantizers import CODES, QUANTIZERS, QuantizeError, Quantizer, Scheme

MAGIC = b"SCKV"
VERSION = 1
FINGERPRINT_BYTES = 16
HEADER = struct.Struct("<4sHBB16sHHHHIII")
SECTION = struct.Struct("<HBBIII")
CRC = struct.Struct("<I")
HEADER_BYTES = HEADER.size + CRC.size
SECTION_BYTES = SECTION.size + CRC.size


@dataclass(frozen=True, slots=True)
class Limits:
    """A receiver's limits: positions of a sequence (kept or not), and bytes of a cache in memory."""

    max_positions: int = MAX_POSITIONS
    max_bytes: int = 2**34


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a cache."""

    fingerprint: bytes
    geometry: Geometry
    length: int
    positions: Tensor


def encode(cache: KVCache, plan: str | Sequence[str], fingerprint: bytes) -> Iterator[memoryview]:
    """Encode a cache as buffers in sending order: header and positions, then three for each layer.

    Args:
        plan: the quantizer of every layer, or one for all.
        fingerprint: 16 bytes that identify the model; a receiver accepts caches of known models only.

    Raises:
        ValueError: the plan or the fingerprint is invalid; raised at the first buffer.
        QuantizeError: values can't be quantized; raised at their layer.
    """
    geometry = cache.geometry
    names = plan_of(plan, geometry.layers)
    if len(fingerprint) != FINGERPRINT_BYTES:
        raise ValueError(f"a fingerprint of {len(fingerprint)} bytes, not {FINGERPRINT_BYTES}")
    form, raw = write_positions(cache.positions, cache.length)
    head = HEADER.pack(
        MAGIC,
        VERSION,
        DTYPES.index(geometry.dtype),
        form,
        fingerprint,
        geometry.layers,
        geometry.kv_heads,
        geometry.head_dim,
        0,
        cache.length,
        cache.kept,
        len(raw),
    )
    yield memoryview(head + CRC.pack(zlib.crc32(raw, zlib.crc32(head))) + raw)
    for index, (name, (keys, values)) in enumerate(zip(names, cache.layers, strict=True)):
        scheme = QUANTIZERS[name]
        parts = [part.cpu().numpy().data for part in scheme.encode(keys, values)]
        checksum = zlib.crc32(parts[1], zlib.crc32(parts[0]))
        section = SECTION.pack(index, scheme.code, 0, len(parts[0]), len(parts[1]), checksum)
        yield memoryview(section + CRC.pack(zlib.crc32(section)))
        yield from parts


def payload_bytes(geometry: Geometry, plan: str | Sequence[str], positions: Tensor, length: int) -> int:
    """The exact number of bytes that `encode` yields for such a cache, computed without encoding.

    Raises:
        ValueError: a quantizer's size depends on the values (`delta`).
    """
    total = HEADER_BYTES + positions_bytes(positions, length)
    shape = geometry.shape(len(positions))
    for name in plan_of(plan, geometry.layers):
        sizes = QUANTIZERS[name].keys.size(shape), QUANTIZERS[name].values.size(shape)
        if sizes[0] is None or sizes[1] is None:
            raise ValueError(f"the size of {name} depends on the values")
        total += SECTION_BYTES + sizes[0] + sizes[1]
    return total


class Decoder:
    """Decodes one cache from pieces of any size, each layer as soon as it is complete.

    Args:
        accepts: the geometries of accepted models, by fingerprint.
        limits: the receiver's limits.
        device: the device of the decoded layers.

    Attributes:
        header: None until it has been received and accepted.
        layers: (keys, values) of the complete layers.
    """

    def __init__(
        self, accepts: Mapping[bytes, Geometry], limits: Limits | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self._accepts, self._limits, self._device = accepts, limits or Limits(), torch.device(device)
        self.header: Header | None = None
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._parse = self._parts()
        self._failure: WireError | None = None
        self._got = 0
        self._part = next(self._parse, None)

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Process the next bytes; the caller may reuse their buffer afterwards.

        Raises:
            WireError: the bytes are not an acceptable cache; every later call raises it again.
        """
        if self._failure is not None:
            raise self._failure
        left = memoryview(chunk).cast("B")
        try:
            while len(left):
                if self._part is None:
                    raise WireError(f"{len(left)} bytes after the last layer", "trailing")
                size = min(len(left), len(self._part) - self._got)
                self._part[self._got : self._got + size] = left[:size]
                left = left[size:]
                self._got += size
                while self._part is not None and self._got == len(self._part):
                    self._got = 0
                    self._part = next(self._parse, None)
        except WireError as error:
            self._failure = error
            raise

    def finish(self) -> KVCache:
        """The whole cache.

        Raises:
            WireError: `truncated`, or what `feed` raised.
        """
        if self._failure is not None:
            raise self._failure
        if self.header is None:
            raise WireError("the cache ends within its header", "truncated")
        if self._part is not None:
            layers = self.header.geometry.layers
            raise WireError(f"the cache ends in layer {len(self.layers)} of {layers}", "truncated")
        return KVCache(tuple(self.layers), self.header.positions, self.header.length)

    def _parts(self) -> Generator[memoryview, None, None]:
        """Yield the buffers to fill; resumes when the last one is full."""
        head = bytearray(HEADER_BYTES)
        yield memoryview(head)
        geometry, form, length, kept, size = self._checked_header(bytes(head))
        raw = bytearray(size)
        yield memoryview(raw)
        if CRC.unpack_from(head, HEADER.size)[0] != zlib.crc32(raw, zlib.crc32(head[: HEADER.size])):
            raise WireError("the header's checksum differs", "checksum")
        positions = read_positions(form, bytes(raw), length, kept)
        self.header = Header(bytes(head[8 : 8 + FINGERPRINT_BYTES]), geometry, length, positions)
        shape = geometry.shape(kept)
        for index in range(geometry.layers):
            head = bytearray(SECTION_BYTES)
            yield memoryview(head)
            scheme, key_bytes, value_bytes, checksum = _checked_section(bytes(head), index, shape)
            keys, values = bytearray(key_bytes), bytearray(value_bytes)
            yield memoryview(keys)
            yield memoryview(values)
            if zlib.crc32(values, zlib.crc32(keys)) != checksum:
                raise WireError(f"the checksum of layer {index} differs", "checksum")
            try:
                layer = scheme.decode(self._tensor(keys), self._tensor(values), shape, geometry.dtype)
            except QuantizeError as error:
                raise WireError(f"layer {index}: {error}", "bad_values") from None
            self.layers.append(layer)

    def _checked_header(self, head: bytes) -> tuple[Geometry, Form, int, int, int]:
        """Check a header before anything is allocated; returns geometry, form, length, kept, and size of positions."""
        magic, version, dtype, form, fingerprint, layers, kv_heads, head_dim, reserved, length, kept, size = (
            HEADER.unpack_from(head)
        )
        if magic != MAGIC:
            raise WireError(f"not a cache: it begins with {magic!r}", "magic")
        if version != VERSION:
            raise WireError(f"a cache of version {version}; version {VERSION} is supported", "version")
        if reserved or dtype >= len(DTYPES):
            raise WireError(f"dtype {dtype}, reserved field {reserved}", "header")
        expected = self._accepts.get(fingerprint)
        if expected is None:
            raise WireError(f"a cache of model {fingerprint.hex()}, which isn't served here", "foreign_model")
        geometry = Geometry(layers, kv_heads, head_dim, DTYPES[dtype])
        if geometry != expected:
            raise WireError(f"a cache of {geometry}, where its model has {expected}", "geometry")
        checked = check_counts(form, length, kept, size, self._limits.max_positions)
        if geometry.nbytes(kept) > self._limits.max_bytes:
            needed = geometry.nbytes(kept)
            raise WireError(f"a cache of {needed} bytes; at most {self._limits.max_bytes} are accepted", "oversized")
        return geometry, checked, length, kept, size

    def _tensor(self, raw: bytearray) -> Tensor:
        tensor = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        return tensor.to(self._device)


def _checked_section(head: bytes, index: int, shape: tuple[int, int, int]) -> tuple[Scheme, int, int, int]:
    """Check a section's header; returns scheme, bytes of keys, bytes of values and checksum."""
    number, code, reserved, key_bytes, value_bytes, checksum = SECTION.unpack_from(head)
    if CRC.unpack_from(head, SECTION.size)[0] != zlib.crc32(head[: SECTION.size]):
        raise WireError(f"the checksum of the section of layer {index} differs", "checksum")
    if number != index or reserved or code not in CODES:
        raise WireError(f"layer {number} in scheme {code}, where layer {index} should come", "bad_layer")
    scheme = CODES[code]
    for quantizer, size in ((scheme.keys, key_bytes), (scheme.values, value_bytes)):
        if not _fits(quantizer, size, shape):
            raise WireError(f"layer {index}: {size} bytes for {shape} in {scheme.name}", "bad_layer")
    return scheme, key_bytes, value_bytes, checksum


def _fits(quantizer: Quantizer, size: int, shape: tuple[int, int, int]) -> bool:
    exact = quantizer.size(shape)
    return size <= quantizer.max_size(shape) if exact is None else size == exact
