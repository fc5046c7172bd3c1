"""Frames survive any chunking; anything else is refused with its reason, and never read further than claimed."""

import asyncio
import dataclasses
import math
import struct
import zlib
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.frames import (
    CRC,
    HEADER,
    HEADER_BYTES,
    WITH_DEADLINE,
    CloudStages,
    Disconnected,
    FrameError,
    FrameReader,
    Header,
    Kind,
    frame_bytes,
    small_frame,
)
from models.lengths import MAX_TOKENS, Lengths

LIMIT = 4096
headers = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    request_id=st.integers(0, 2**64 - 1),
    body_bytes=st.just(0),
    agent_id=st.integers(0, 2**32 - 1),
    model=st.integers(0, 2**16 - 1),
    mode=st.integers(0, 255),
    deadline_s=st.floats(0, 1e6),
    lengths=st.none() | st.builds(Lengths, st.integers(1, MAX_TOKENS), st.integers(1, MAX_TOKENS)),
).map(lambda h: h if h.kind in WITH_DEADLINE else dataclasses.replace(h, deadline_s=math.inf))


def reader_of(data: bytes, cuts: Iterable[int] = ()) -> FrameReader:
    """A reader whose peer sends `data` in pieces cut at `cuts`, then closes."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[a:b] for a, b in pairwise(edges)]

    async def receive(view: memoryview) -> int:
        if not pieces:
            return 0
        piece, rest = pieces[0][: len(view)], pieces[0][len(view) :]
        pieces[:1] = [rest] if rest else []
        view[: len(piece)] = piece
        return len(piece)

    return FrameReader(receive, LIMIT)


async def read_all(reader: FrameReader) -> list[tuple[Header, bytes]]:
    frames = []
    while True:
        try:
            header = await reader.header()
        except Disconnected:
            return frames
        frames.append((header, await reader.small_body(header)))


@given(st.lists(st.tuples(headers, st.binary(max_size=300)), max_size=4), st.lists(st.integers(0, 10_000), max_size=12))
def test_round_trip_under_any_chunking(frames: list[tuple[Header, bytes]], cuts: list[int]) -> None:
    frames = [(dataclasses.replace(header, body_bytes=len(body)), body) for header, body in frames]
    data = b"".join(small_frame(header, body) for header, body in frames)
    assert len(data) == sum(frame_bytes(len(body)) for _, body in frames)
    assert asyncio.run(read_all(reader_of(data, cuts))) == frames


@given(headers, st.binary(min_size=1, max_size=200), st.data())
def test_every_flipped_bit_is_noticed(header: Header, body: bytes, data: st.DataObject) -> None:
    frame = bytearray(small_frame(dataclasses.replace(header, body_bytes=len(body)), body))
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        asyncio.run(read_all(reader_of(bytes(frame))))


@given(headers, st.binary(max_size=200), st.data())
def test_every_truncation_is_noticed(header: Header, body: bytes, data: st.DataObject) -> None:
    frame = small_frame(dataclasses.replace(header, body_bytes=len(body)), body)
    cut = data.draw(st.integers(1, len(frame) - 1))
    with pytest.raises(FrameError) as error:
        asyncio.run(read_all(reader_of(frame[:cut])))
    assert error.value.reason == "truncated"


@given(st.binary(min_size=HEADER_BYTES, max_size=500))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        asyncio.run(read_all(reader_of(data)))


def header_with(**changes: object) -> bytes:
    """A header with a right checksum and wrong fields."""
    fields = {"magic": b"SCUT", "version": 4, "kind": 1, "mode": 0, "flags": 0, "model": 0, "reserved": 0}
    fields |= {"agent": 0, "request": 0, "body": 0, "deadline": 1.0, "context": 0, "output": 0} | changes
    packed = HEADER.pack(*fields.values())
    return packed + CRC.pack(zlib.crc32(packed))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"magic": b"HTTP"}, "magic"),
        ({"version": 2}, "version"),
        ({"kind": 9}, "header"),
        ({"flags": 2}, "header"),
        ({"reserved": 1}, "header"),
        ({"deadline": math.nan}, "deadline"),
        ({"kind": 5, "deadline": math.inf}, "deadline"),
        ({"context": 5}, "lengths"),
        ({"output": 5}, "lengths"),
        ({"context": 5, "output": MAX_TOKENS + 1}, "lengths"),
        ({"body": LIMIT + 1}, "oversized"),
        ({"body": 2**64 - 1}, "oversized"),
    ],
)
def test_wrong_headers_are_refused_by_name(changes: dict, reason: str) -> None:
    with pytest.raises(FrameError) as error:
        Header.unpack(header_with(**changes), LIMIT)
    assert error.value.reason == reason


def test_header_layout_is_the_documented_one() -> None:
    lengths = Lengths(10, 20)
    header = Header(Kind.REQUEST, 7, 9, agent_id=3, model=2, mode=1, deadline_s=1.5, lengths=lengths)
    raw = header.pack()
    assert len(raw) == 52
    assert raw[:12] == b"SCUT" + bytes([4, 1, 1, 0, 2, 0, 0, 0])
    assert struct.unpack("<IQQdII", raw[12:48]) == (3, 7, 9, 1.5, 10, 20)


@given(st.binary(max_size=40))
def test_stages_that_are_too_short_are_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        CloudStages.unpack(body)


@given(st.text(max_size=100), st.floats(0, 1e6), st.integers(0, 255))
def test_stages_come_back_with_their_answer(text: str, ms: float, mode: int) -> None:
    stages = CloudStages(12.5, ms, 2 * ms, 0.0, mode, text, first_byte_s=3.5, tokens=17)
    assert CloudStages.unpack(stages.pack()) == stages
