"""Request bodies of real models: a cache to decode from, or a question for the cloud's model. Little-endian.

A cache (modes `full`, `int8`, any selection): the prompt's last token as uint32, then the stream of `kvcache.wire`.

A question (`prompt`, `scout`):

    offset size field
         0    4 magic "SASK"
         4    1 version (1)
         5    1 flags: 1 the context is at the cloud already, 2 positions follow
         6    2 reserved, 0
         8    4 index of the context (flag 1), or its length in bytes
        12    4 length of the question in bytes
        16    4 length of the positions in bytes
        20      context (without flag 1) and question in UTF-8, then positions as a message of `kvcache.positions`

The frame around either has the checksum.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from kvcache.cache import Geometry, KVCache
from kvcache.errors import WireError
from kvcache.plans import plan_of
from kvcache.positions import positions_message, read_positions_message
from kvcache.wire import Decoder, Limits, encode, payload_bytes

LAST_TOKEN = struct.Struct("<I")
QUESTION = struct.Struct("<4sBBHIII")
MAGIC, VERSION = b"SASK", 1
RESIDENT, WITH_POSITIONS = 1, 2
MAX_QUESTION_BYTES = 2**24


@dataclass(frozen=True, eq=False, slots=True)
class CachePayload:
    """The content of a cache body: a cache, and the prompt's last token, which is fed next."""

    cache: KVCache
    last_token: int


@dataclass(frozen=True, eq=False, slots=True)
class QuestionPayload:
    """The content of a question body, for the cloud's own model.

    Attributes:
        context: its text, or the index of a context that the cloud already has.
        positions: int64 [kept], the context tokens to keep; None for all.
        context_tokens: the context's length in tokens at the edge; 0 without positions.
    """

    context: str | int
    question: str
    positions: Tensor | None = None
    context_tokens: int = 0


def write_cache(
    handover: CachePayload, plan: str | Sequence[str], fingerprint: bytes, keep: Tensor | None = None
) -> Iterator[memoryview]:
    """Encode a cache body as buffers. `keep` and what is raised: as for `kvcache.wire.encode`."""
    first = memoryview(LAST_TOKEN.pack(handover.last_token))
    return chain([first], encode(handover.cache, plan, fingerprint, keep))


def cache_bytes(geometry: Geometry, plan: str | Sequence[str], positions: Tensor, length: int) -> int:
    """The exact size of a cache body. Raises ValueError for a quantizer whose size depends on the values."""
    return LAST_TOKEN.size + payload_bytes(geometry, plan, positions, length)


def write_question(asked: QuestionPayload) -> bytes:
    """Encode a question body."""
    resident = isinstance(asked.context, int)
    context = b"" if isinstance(asked.context, int) else asked.context.encode()
    question = asked.question.encode()
    message = b"" if asked.positions is None else positions_message(asked.positions, asked.context_tokens)
    flags = (RESIDENT if resident else 0) | (WITH_POSITIONS if message else 0)
    number = asked.context if isinstance(asked.context, int) else len(context)
    head = QUESTION.pack(MAGIC, VERSION, flags, 0, number, len(question), len(message))
    return head + context + question + message


class CacheBody:
    """Decodes a cache body incrementally, each layer as soon as it is complete.

    Args:
        accepts: the geometries of accepted models, by fingerprint.
        plan: the quantizers of the request's mode; None for any.
        size: the body's size by its frame header.
        device: the device of the decoded layers.
    """

    def __init__(
        self,
        accepts: Mapping[bytes, Geometry],
        limits: Limits,
        plan: str | Sequence[str] | None,
        size: int,
        device: torch.device | str,
    ) -> None:
        self._token = bytearray()
        self._decoder = Decoder(accepts, limits, device)
        self._plan, self._size = plan, size

    def feed(self, piece: memoryview) -> None:
        """Raises WireError."""
        missing = LAST_TOKEN.size - len(self._token)
        self._token += piece[:missing]
        self._decoder.feed(piece[missing:])

    def finish(self) -> CachePayload:
        """The whole content. Raises WireError, also if the cache's quantizers differ from the mode's."""
        cache = self._decoder.finish()
        if self._plan is not None:
            expected = cache_bytes(
                cache.geometry, plan_of(self._plan, len(cache.layers)), cache.positions, cache.length
            )
            if self._size != expected:
                raise WireError(f"{self._size} bytes, where the mode's cache has {expected}", "bad_layer")
        return CachePayload(cache, LAST_TOKEN.unpack(self._token)[0])


class QuestionBody:
    """Collects a question body of at most `MAX_QUESTION_BYTES`, then decodes it."""

    def __init__(self, max_positions: int) -> None:
        self._raw = bytearray()
        self._max_positions = max_positions

    def feed(self, piece: memoryview) -> None:
        """Raises WireError."""
        if len(self._raw) + len(piece) > MAX_QUESTION_BYTES:
            raise WireError(f"a question of more than {MAX_QUESTION_BYTES} bytes", "oversized")
        self._raw += piece

    def finish(self) -> QuestionPayload:
        """Raises WireError."""
        raw = bytes(self._raw)
        if len(raw) < QUESTION.size:
            raise WireError(f"a question ends after {len(raw)} bytes of {QUESTION.size}", "truncated")
        magic, version, flags, reserved, number, question_bytes, positions_bytes = QUESTION.unpack_from(raw)
        if magic != MAGIC:
            raise WireError(f"not a question: it begins with {magic!r}", "magic")
        if version != VERSION:
            raise WireError(f"a question of version {version}; version {VERSION} is supported", "version")
        if reserved or flags & ~(RESIDENT | WITH_POSITIONS) or bool(flags & WITH_POSITIONS) != bool(positions_bytes):
            raise WireError(f"flags {flags}, reserved field {reserved}, {positions_bytes} bytes of positions", "header")
        context_bytes = 0 if flags & RESIDENT else number
        left = len(raw) - QUESTION.size - context_bytes - question_bytes - positions_bytes
        if left:
            raise WireError(
                f"{abs(left)} bytes too {'many' if left > 0 else 'few'}", "trailing" if left > 0 else "truncated"
            )
        question_at = QUESTION.size + context_bytes
        positions_at = question_at + question_bytes
        try:
            context = raw[QUESTION.size : question_at].decode()
            question = raw[question_at:positions_at].decode()
        except UnicodeDecodeError:
            raise WireError("a text that is not UTF-8", "bad_values") from None
        positions, tokens = None, 0
        if positions_bytes:
            positions, tokens = read_positions_message(raw[positions_at:], self._max_positions)
        return QuestionPayload(number if flags & RESIDENT else context, question, positions, tokens)
