"""A cache on the wire: a header, the positions, then a section for each layer. docs/wire-format.md has every byte.

A cache is encoded, sent and decoded layer by layer, so that the three overlap and no second copy of the whole cache
exists. A receiver checks every length against the expected model and its limits before it allocates memory. On a GPU
with Triton, `kvcache.fused` packs and unpacks many layers at once; the bytes are the same.
"""

import struct
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.cache import DTYPES, Geometry, KVCache
from kvcache.crc32 import crc32
from kvcache.errors import WireError
from kvcache.fused import AVAILABLE as FUSED
from kvcache.plans import plan_of
from kvcache.positions import (
    MAX_POSITIONS,
    Form,
    check_counts,
    positions_bytes,
    read_positions,
    write_positions,
)
from kvcache.quantizers import QUANTIZERS, QuantizeError
from kvcache.sections import CRC, SECTION_BYTES, Section, checked_section

if FUSED:
    from kvcache.fused import codec, receiving, sending

MAGIC = b"SCKV"
VERSION = 1
FINGERPRINT_BYTES = 16
HEADER = struct.Struct("<4sHBB16sHHHHIII")
HEADER_BYTES = HEADER.size + CRC.size


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


def encode(
    cache: KVCache, plan: str | Sequence[str], fingerprint: bytes, keep: Tensor | None = None
) -> Iterator[memoryview]:
    """Encode a cache as buffers in sending order: header and positions, then three for each layer.

    On a GPU with Triton, all layers are packed at once, and buffers are in pinned memory.

    Args:
        plan: the quantizer of every layer, or one for all.
        fingerprint: 16 bytes that identify the model; a receiver accepts caches of known models only.
        keep: positions that the encoded cache keeps, as for `KVCache.keep`; None: all that the cache has.

    Raises:
        ValueError: the plan, the fingerprint or a position is invalid; raised at the first buffer.
        QuantizeError: values can't be quantized; raised at their layer.
    """
    geometry = cache.geometry
    names = plan_of(plan, geometry.layers)
    if len(fingerprint) != FINGERPRINT_BYTES:
        raise ValueError(f"a fingerprint of {len(fingerprint)} bytes, not {FINGERPRINT_BYTES}")
    fused = _fused(cache, names)
    rows = None
    if keep is not None and fused:
        rows = cache.rows_of(keep)
    elif keep is not None:
        cache = cache.keep(keep)
    packed = sending.start(cache.layers, tuple(QUANTIZERS[name].code for name in names), rows) if fused else None
    positions = cache.positions if keep is None else keep.cpu()
    form, raw = write_positions(positions, cache.length)
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
        len(positions),
        len(raw),
    )
    yield memoryview(head + CRC.pack(crc32(raw, crc32(head))) + raw)
    if packed is not None:
        for index, (usable, header, keys, values) in enumerate(packed):
            if not usable:
                QUANTIZERS[names[index]].encode(*cache.layers[index])  # raises
            yield memoryview(header)
            yield keys
            yield values
        return
    for index, (name, layer) in enumerate(zip(names, cache.layers, strict=True)):
        scheme = QUANTIZERS[name]
        keys, values = (part.cpu().numpy().data for part in scheme.encode(*layer))
        yield memoryview(Section(index, scheme, len(keys), len(values), crc32(values, crc32(keys))).header())
        yield keys
        yield values


def _fused(cache: KVCache, names: Sequence[str]) -> bool:
    """Whether kernels pack the whole cache at once."""
    device, head_dim = cache.layers[0][0].device, cache.geometry.head_dim
    return FUSED and device.type == "cuda" and all(codec.suits(QUANTIZERS[name], head_dim) for name in set(names))


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
        layers: (keys, values) of the complete layers; on a GPU with Triton none before `finish`, which checks them.
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
        self._intake: receiving.Intake | None = None
        self._part = next(self._parse, None)

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Process the next bytes; the caller may reuse their buffer afterwards.

        A GPU reads large pieces in pinned memory where they are.

        Raises:
            WireError: the bytes are not an acceptable cache; every later call raises it again.
        """
        if self._failure is not None:
            raise self._failure
        left = memoryview(chunk).cast("B")
        try:
            while len(left):
                if self._intake is not None:
                    self._intake.feed(left)
                    return
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
        if self._intake is not None:
            try:
                cache = self._intake.cache()
            except WireError as error:
                self._failure = error if error.code != "truncated" else None
                raise
            self.layers = list(cache.layers)
            return cache
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
        if CRC.unpack_from(head, HEADER.size)[0] != crc32(raw, crc32(head[: HEADER.size])):
            raise WireError("the header's checksum differs", "checksum")
        positions = read_positions(form, bytes(raw), length, kept)
        self.header = Header(bytes(head[8 : 8 + FINGERPRINT_BYTES]), geometry, length, positions)
        shape = geometry.shape(kept)
        if FUSED and self._device.type == "cuda":
            self._intake = receiving.Intake(geometry, positions, length, self._device)
            return
        for index in range(geometry.layers):
            head = bytearray(SECTION_BYTES)
            yield memoryview(head)
            section = checked_section(bytes(head), index, shape)
            keys, values = bytearray(section.key_bytes), bytearray(section.value_bytes)
            yield memoryview(keys)
            yield memoryview(values)
            if crc32(values, crc32(keys)) != section.checksum:
                raise WireError(f"the checksum of layer {index} differs", "checksum")
            try:
                layer = section.scheme.decode(self._tensor(keys), self._tensor(values), shape, geometry.dtype)
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
