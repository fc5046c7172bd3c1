"""Positions are sent in the smallest form, and only whole, ascending, bounded ones are taken."""

import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.errors import WireError
from kvcache.positions import (
    CRC,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    Form,
    check_counts,
    positions_bytes,
    positions_message,
    read_positions,
    read_positions_message,
    write_positions,
)


@st.composite
def position_sets(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """From none to all, of sequences around the forms' limits; even, clustered or sparse."""
    length = draw(st.sampled_from([1, 7, 8, 9, 500, 65_535, 65_536, 65_537, 300_000]) | st.integers(1, 5000))
    share = draw(st.sampled_from([0.0, 0.001, 0.03, 0.25, 0.9, 1.0]))
    source = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    chosen = torch.rand(length, generator=source) < share
    begin = draw(st.integers(0, length))
    chosen[begin : begin + draw(st.integers(0, 300))] = True
    return chosen.nonzero().flatten(), length


@settings(max_examples=200, deadline=None)
@given(position_sets())
def test_positions_come_back_in_the_smallest_form(case: tuple[torch.Tensor, int]) -> None:
    positions, length = case
    form, raw = write_positions(positions, length)
    assert len(raw) == positions_bytes(positions, length)
    assert check_counts(form, length, len(positions), len(raw), length) is form
    assert torch.equal(read_positions(form, raw, length, len(positions)), positions)
    assert len(raw) <= -(-length // 8)
    assert length > 65_536 or len(raw) <= 2 * len(positions)
    found, found_length = read_positions_message(positions_message(positions, length))
    assert torch.equal(found, positions) and found_length == length
    assert len(positions_message(positions, length)) == HEADER_BYTES + len(raw)


@pytest.mark.parametrize(
    ("positions", "length", "form", "raw"),
    [
        ([0, 1, 2], 3, Form.ALL, b""),
        ([258], 1000, Form.LIST, b"\x02\x01"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 9], 16, Form.BITMAP, b"\xff\x02"),
        ([5, 6, 200], 2000, Form.GAPS, b"\x05\x00\xc1\x01"),
        ([70_000], 100_000, Form.GAPS, b"\xf0\xa2\x04"),
    ],
)
def test_the_bytes_of_each_form(positions: list[int], length: int, form: Form, raw: bytes) -> None:
    assert write_positions(torch.tensor(positions), length) == (form, raw)


def message(form: int, length: int, count: int, raw: bytes, version: int = 1, reserved: int = 0) -> bytes:
    """A message with a right checksum, whatever it says."""
    head = HEADER.pack(MAGIC, version, form, reserved, length, count, len(raw))
    return head + CRC.pack(zlib.crc32(head + raw)) + raw


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (message(1, 10, 2, struct.pack("<HH", 5, 5)), "bad_positions"),
        (message(1, 10, 2, struct.pack("<HH", 7, 5)), "bad_positions"),
        (message(1, 10, 2, struct.pack("<HH", 5, 10)), "bad_positions"),
        (message(1, 10, 3, struct.pack("<HH", 5, 6)), "bad_positions"),
        (message(1, 10, 11, struct.pack("<11H", *range(11))), "bad_positions"),
        (message(1, 65_537, 1, struct.pack("<H", 5)), "bad_positions"),
        (message(2, 10, 2, b"\x01\x00"), "bad_positions"),
        (message(2, 10, 1, b"\x00\x80"), "bad_positions"),
        (message(2, 10, 1, b"\x01"), "bad_positions"),
        (message(3, 10, 2, b"\x01\x81"), "bad_positions"),
        (message(3, 10, 1, b"\x01\x01"), "bad_positions"),
        (message(3, 10, 1, b"\x80\x80\x80\x80\x80\x01"), "bad_positions"),
        (message(3, 10, 1, b"\x80\x80\x80\x80\x7f"), "bad_positions"),
        (message(0, 10, 9, b""), "bad_positions"),
        (message(0, 0, 0, b""), "bad_positions"),
        (message(4, 10, 1, b"\x01"), "bad_positions"),
        (message(0, 10, 10, b"", version=2), "version"),
        (message(0, 10, 10, b"", reserved=1), "header"),
        (message(0, 2**32 - 1, 2**32 - 1, b""), "oversized"),
        (message(0, 10, 10, b"") + b"x", "trailing"),
        (message(2, 10, 1, b"\x01\x00")[:-1], "truncated"),
        (b"SID", "truncated"),
        (b"?" * 40, "magic"),
    ],
)
def test_refusals(raw: bytes, code: str) -> None:
    with pytest.raises(WireError) as refusal:
        read_positions_message(raw)
    assert refusal.value.code == code


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_is_noticed(data: st.DataObject) -> None:
    whole = bytearray(positions_message(torch.tensor([3, 5, 100]), 200))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(WireError):
        read_positions_message(whole)
