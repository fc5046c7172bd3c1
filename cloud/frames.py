"""The frame format between edge agents and cloud workers: bounded and checksummed; its contents are never evaluated.

A frame is a 52-byte little-endian header, a body, and the CRC-32 of the body (of the part that was sent):

    offset size field
         0    4 magic "SCUT"
         4    1 version (4)
         5    1 kind: 1 request, 2 receipt, 3 answer, 4 refusal, 5 hedge, 6 first token of an answer
         6    1 mode: index into the run's list of modes of that model (requests and hedges), 0 otherwise
         7    1 flags: 1 if the body comes in chunks (requests), 0 otherwise
         8    2 model: index into the run's list of models (requests and hedges), 0 otherwise
        10    2 reserved, 0
        12    4 agent id
        16    8 request id
        24    8 body length in bytes
        32    8 deadline of the answer at the agent (requests and hedges): a double, seconds on the clock of
                `CloudStages`, infinite for none; 0 otherwise
        40    4 tokens of the context (requests and hedges whose lengths aren't those of the profile), 0 otherwise
        44    4 tokens of the answer, likewise
        48    4 CRC-32 of the 48 bytes before

A receiver checks the header before it reads, or allocates for, any of the body.

A hedge is a small frame sent ahead of the request with the same id, in a mode of its own. A body in chunks can be cut
short without closing the connection: each chunk is a 4-byte length and that many bytes of the body; a length of 0
withdraws the rest.
"""

import math
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from kvcache.crc32 import crc32
from models.lengths import MAX_TOKENS, Lengths

MAGIC = b"SCUT"
VERSION = 4
HEADER = struct.Struct("<4sBBBBHHIQQdII")
CRC = struct.Struct("<I")
HEADER_BYTES = HEADER.size + CRC.size
OVERHEAD_BYTES = HEADER_BYTES + CRC.size
LENGTH = struct.Struct("<I")
CHUNKED = 1
READ_BYTES = 256 * 1024
MAX_HEDGE_BYTES = 64 * 1024
MAX_TEXT_BYTES = 32 * 1024
UNREADABLE = 2**64 - 1  # the request id of a refusal if the request's own id couldn't be read


class Kind(IntEnum):
    """The kinds of frames."""

    REQUEST = 1
    RECEIPT = 2
    ANSWER = 3
    REFUSAL = 4
    HEDGE = 5
    FIRST_TOKEN = 6


KINDS = frozenset(map(int, Kind))
WITH_DEADLINE = (Kind.REQUEST, Kind.HEDGE)


class FrameError(Exception):
    """The received bytes are not an acceptable frame. `reason` is one word, for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Disconnected(Exception):
    """The peer closed the connection between two frames."""


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of a frame; field meanings are in the module's table."""

    kind: Kind
    request_id: int
    body_bytes: int
    agent_id: int = 0
    model: int = 0
    mode: int = 0
    chunked: bool = False
    deadline_s: float = math.inf
    lengths: Lengths | None = None

    def pack(self) -> bytes:
        """52 bytes."""
        fields = HEADER.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.mode,
            CHUNKED if self.chunked else 0,
            self.model,
            0,
            self.agent_id,
            self.request_id,
            self.body_bytes,
            self.deadline_s if self.kind in WITH_DEADLINE else 0.0,
            *(self.lengths or (0, 0)),
        )
        return fields + CRC.pack(crc32(fields))

    @classmethod
    def unpack(cls, raw: bytes, max_body_bytes: int) -> Self:
        """The header in 52 bytes.

        Raises:
            FrameError: magic, version, checksum, kind or length is not acceptable.
        """
        fields, (checksum,) = raw[: HEADER.size], CRC.unpack(raw[HEADER.size : HEADER_BYTES])
        magic, version, kind, mode, flags, model, reserved, agent_id, number, body_bytes, deadline_s, *tokens = (
            HEADER.unpack(fields)
        )
        if magic != MAGIC:
            raise FrameError("magic", f"not a Scout frame: it begins with {magic!r}")
        if version != VERSION:
            raise FrameError("version", f"frame version {version}; this side speaks {VERSION}")
        if crc32(fields) != checksum:
            raise FrameError("header_checksum", "header checksum differs")
        if kind not in KINDS or flags not in (0, CHUNKED) or reserved or (flags and kind != Kind.REQUEST):
            raise FrameError("header", f"kind {kind} with flags {flags}, reserved field {reserved} is not allowed")
        if math.isnan(deadline_s) or (kind == Kind.HEDGE and math.isinf(deadline_s)):
            raise FrameError("deadline", f"{Kind(kind).name} with the deadline {deadline_s}")
        if min(tokens) == 0 < max(tokens) or max(tokens) > MAX_TOKENS:
            raise FrameError("lengths", f"{tokens[0]} tokens of context and {tokens[1]} of the answer are not allowed")
        if body_bytes > max_body_bytes:
            raise FrameError("oversized", f"body of {body_bytes} bytes; at most {max_body_bytes} are accepted")
        if kind not in WITH_DEADLINE:
            deadline_s = math.inf
        lengths = Lengths(*tokens) if tokens[0] else None
        return cls(Kind(kind), number, body_bytes, agent_id, model, mode, flags == CHUNKED, deadline_s, lengths)


Receive = Callable[[memoryview], Awaitable[int]]
"""Fills (a part of) the view with bytes from the peer and returns how many; 0 at its end of stream."""

Sink = Callable[[memoryview], None]
"""Takes the body of a frame piece by piece, in order; the view is only valid during the call."""


class FrameReader:
    """Reads frames from one peer through a buffer of fixed size, so that lengths in frames allocate nothing."""

    def __init__(self, receive: Receive, max_body_bytes: int) -> None:
        self._receive = receive
        self._max_body_bytes = max_body_bytes
        self._buffer = memoryview(bytearray(READ_BYTES))

    async def header(self) -> Header:
        """The next frame's header; its body must be read next.

        Raises:
            Disconnected: the peer closed before a first byte.
            FrameError: not an acceptable header, or cut off.
        """
        return Header.unpack(bytes(await self._exactly(HEADER_BYTES, between_frames=True)), self._max_body_bytes)

    async def body(self, header: Header, sink: Sink = lambda view: None) -> bool:
        """Pass the body to `sink` and check it.

        Returns:
            True if the body is whole, False if the peer withdrew the rest.

        Raises:
            FrameError: the body is cut off, its checksum differs, or a chunk is longer than the rest of the body.
        """
        checksum, left = 0, header.body_bytes
        while left:
            chunk = left
            if header.chunked:
                (chunk,) = LENGTH.unpack(await self._exactly(LENGTH.size))
                if chunk == 0:
                    break
                if chunk > left:
                    raise FrameError("chunk", f"a chunk of {chunk} bytes where {left} are left of the body")
            left -= chunk
            while chunk:
                received = await self._receive(self._buffer[: min(chunk, READ_BYTES)])
                if received == 0:
                    raise FrameError("truncated", f"connection closed {left + chunk} bytes before the end of a body")
                piece = self._buffer[:received]
                checksum = crc32(piece, checksum)
                sink(piece)
                chunk -= received
        if CRC.unpack(await self._exactly(CRC.size))[0] != checksum:
            raise FrameError("body_checksum", "body checksum differs")
        return left == 0

    async def small_body(self, header: Header) -> bytes:
        """The whole body, for kinds of frames with small bodies (the reader's limit bounds it)."""
        pieces = bytearray()
        await self.body(header, pieces.extend)
        return bytes(pieces)

    async def _exactly(self, size: int, between_frames: bool = False) -> memoryview:
        got = 0
        while got < size:
            received = await self._receive(self._buffer[got:size])
            if received == 0:
                if between_frames and got == 0:
                    raise Disconnected
                raise FrameError("truncated", f"connection closed {size - got} bytes before the end of a header")
            got += received
        return self._buffer[:size]


def small_frame(header: Header, body: bytes = b"") -> bytes:
    """A whole frame with a small body."""
    assert header.body_bytes == len(body)
    return header.pack() + body + CRC.pack(crc32(body))


STAGES = struct.Struct("<dddddIB")


@dataclass(frozen=True, slots=True)
class CloudStages:
    """A worker's report on a request: when it arrived, and how long each stage took.

    Attributes:
        received_s: when its last byte arrived, in seconds of the event loop's clock (live: CLOCK_MONOTONIC, which all
            processes of a machine share).
        queue_ms, prefill_ms, decode_ms: time in the queue and in each stage of service.
        mode: the mode that is answered: the request's own, or that of its hedge.
        text: the answer of a real model; the reason, in a refusal.
        first_byte_s: when its header arrived, by the same clock.
        tokens: of the answer so far; 0 where they aren't counted.
    """

    received_s: float
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    mode: int = 0
    text: str = ""
    first_byte_s: float = 0.0
    tokens: int = 0

    def pack(self) -> bytes:
        """45 bytes and the text, in UTF-8."""
        times = self.first_byte_s, self.received_s, self.queue_ms, self.prefill_ms, self.decode_ms
        fields = STAGES.pack(*times, self.tokens, self.mode)
        return fields + self.text.encode()[:MAX_TEXT_BYTES]

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises FrameError if the body is too short."""
        if len(body) < STAGES.size:
            raise FrameError("body", f"a body of {len(body)} bytes; at least {STAGES.size} are needed")
        first_byte_s, received_s, queue_ms, prefill_ms, decode_ms, tokens, mode = STAGES.unpack_from(body)
        text = body[STAGES.size :].decode(errors="replace")
        return cls(received_s, queue_ms, prefill_ms, decode_ms, mode, text, first_byte_s, tokens)


def frame_bytes(body_bytes: int) -> int:
    """Size of a frame on the connection, below TCP."""
    return OVERHEAD_BYTES + body_bytes
