"""Triton kernels of the fused codec: the arithmetic of `quantizers.symmetric` and of CRC-32, over whole caches.

Tensors are found by a table of int64 with a row for each *segment*, the keys or the values of a layer: address, stride
between heads, stride between positions (in elements; channels are contiguous), offset of its bytes in the image, number
of its flag. KIND is 0 for float32, 1 for float16, 2 for bfloat16. ITEMS is a power of two by which strides are
divisible, and addresses in elements; BYTES is one by which offsets in the image are. HALF is half a head; WIDE the next
power of two.

To give the same bits as the CPU, maxima are taken over bit patterns, divisions round to nearest, and callers turn the
contraction of products and sums off. Adding MAGIC rounds a float32 to an integer, which then is in the lowest bits.

Only imported where Triton is installed.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,operator"

import triton
import triton.language as tl

from kvcache.crc32 import POLYNOMIAL
from kvcache.quantizers.symmetric import NUDGE, SMALLEST

COLUMNS = tl.constexpr(5)  # of the table
# What these are divisible by varies from call to call, and must not make a variant of a kernel each time.
UNSPECIALIZED = ["n", "table", "picked", "flags", "sums"]
MAGIC = tl.constexpr(1.5 * 2.0**23)
NUDGED = tl.constexpr(NUDGE)
LEAST = tl.constexpr(SMALLEST)
LARGEST_FP16 = tl.constexpr(65504.0)
REFLECTED = tl.constexpr(POLYNOMIAL - 2**32)


@triton.jit
def _integers(address, KIND: tl.constexpr, ITEMS: tl.constexpr):
    """A pointer to the bit patterns of values."""
    if KIND == 0:
        pointer = address.to(tl.pointer_type(tl.int32))
        pointer = tl.multiple_of(pointer, 4 * ITEMS)
    else:
        pointer = address.to(tl.pointer_type(tl.int16))
        pointer = tl.multiple_of(pointer, 2 * ITEMS)
    return pointer


@triton.jit
def _magnitudes(bits, KIND: tl.constexpr):
    """Bit patterns without signs; they are ordered as the magnitudes are."""
    if KIND == 0:
        return bits & 0x7FFFFFFF
    else:
        return bits & 0x7FFF


@triton.jit
def _floats(bits, KIND: tl.constexpr):
    if KIND == 0:
        return bits.to(tl.int32).to(tl.float32, bitcast=True)
    elif KIND == 1:
        return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _scales(top, KIND: tl.constexpr, BITS: tl.constexpr):
    """The fp16 scales of the largest bit patterns, and whether they are finite."""
    scale = (_floats(top, KIND) * (1 / (2 ** (BITS - 1) - 1)) + NUDGED).to(tl.float16)
    finite = (scale.to(tl.int16, bitcast=True) & 0x7C00) != 0x7C00
    return scale, finite


@triton.jit
def _inverse(scale):
    wide = tl.maximum(scale.to(tl.float32), LEAST)
    return tl.div_rn(tl.full(wide.shape, 1.0, tl.float32), wide)


@triton.jit
def _rounded(values, inverse):
    """The codes, modulo 2 ** 8, in the lowest bits of int32."""
    return (values * inverse + MAGIC).to(tl.int32, bitcast=True)


@triton.jit
def _store_codes(pointer, low, high, column, mask, DIM: tl.constexpr, HALF: tl.constexpr, BITS: tl.constexpr):
    if BITS == 8:
        tl.store(pointer, low.to(tl.int8), mask=mask)
        tl.store(pointer + HALF, high.to(tl.int8), mask=mask & (column < DIM - HALF)[None, :])
    else:
        tl.store(pointer, (low + 16 * high + 136).to(tl.int8), mask=mask)


@triton.jit
def _load_codes(pointer, column, mask, DIM: tl.constexpr, HALF: tl.constexpr, BITS: tl.constexpr):
    """The codes of both halves as float32."""
    if BITS == 8:
        low = tl.load(pointer, mask=mask, other=0).to(tl.int8, bitcast=True).to(tl.float32)
        high = tl.load(pointer + HALF, mask=mask & (column < DIM - HALF)[None, :], other=0)
        high = high.to(tl.int8, bitcast=True).to(tl.float32)
    else:
        pair = tl.load(pointer, mask=mask, other=0).to(tl.int32)
        low = ((pair & 15) - 8).to(tl.float32)
        high = (((pair >> 4) & 15) - 8).to(tl.float32)
    return low, high


@triton.jit
def _store_values(address, offsets, values, mask, KIND: tl.constexpr, ITEMS: tl.constexpr):
    if KIND == 0:
        pointer = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 4 * ITEMS)
        tl.store(pointer + offsets, values, mask=mask)
    elif KIND == 1:
        pointer = tl.multiple_of(address.to(tl.pointer_type(tl.float16)), 2 * ITEMS)
        within = tl.minimum(tl.maximum(values, -LARGEST_FP16), LARGEST_FP16)
        tl.store(pointer + offsets, within.to(tl.float16), mask=mask)
    else:
        pointer = tl.multiple_of(address.to(tl.pointer_type(tl.bfloat16)), 2 * ITEMS)
        tl.store(pointer + offsets, values.to(tl.bfloat16), mask=mask)


@triton.jit
def _entry(table, segment, ITEMS: tl.constexpr, BYTES: tl.constexpr):
    """A row of the table."""
    row = table + segment * COLUMNS
    address = tl.load(row)
    by_head = tl.multiple_of(tl.load(row + 1), ITEMS)
    by_position = tl.multiple_of(tl.load(row + 2), ITEMS)
    offset = tl.multiple_of(tl.load(row + 3), BYTES)
    return address, by_head, by_position, offset, tl.load(row + 4)


@triton.jit
def _positions(picked, t, there, GATHER: tl.constexpr):
    """The positions in the source of positions `t` of the image."""
    if GATHER:
        return tl.load(picked + t, mask=there, other=0)
    else:
        return t.to(tl.int64)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def pack_tokens(
    table, picked, image, flags, n,
    KIND: tl.constexpr, BITS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, BYTES: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """A scale for each head and position. Grid: blocks of ROWS positions, heads, segments."""
    head, segment = tl.program_id(1), tl.program_id(2)
    address, by_head, by_position, offset, number = _entry(table, segment, ITEMS, BYTES)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    there = t < n
    mask = there[:, None] & (column < HALF)[None, :]
    source = _integers(address, KIND, ITEMS) + head * by_head
    source += (_positions(picked, t, there, GATHER) * by_position)[:, None] + column[None, :]
    low = tl.load(source, mask=mask, other=0)
    high = tl.load(source + HALF, mask=mask & (column < DIM - HALF)[None, :], other=0)
    top = tl.max(tl.maximum(_magnitudes(low, KIND), _magnitudes(high, KIND)), 1)
    scale, finite = _scales(top, KIND, BITS)
    place = head.to(tl.int64) * n + t
    tl.store((image + offset).to(tl.pointer_type(tl.float16)) + place, scale, mask=there)
    tl.store(flags + number + tl.zeros_like(t), 1, mask=there & (finite == 0))
    inverse = _inverse(scale)[:, None]
    WIDTH: tl.constexpr = DIM if BITS == 8 else HALF
    codes = image + tl.multiple_of(offset + 2 * tl.num_programs(1).to(tl.int64) * n, BYTES)
    codes += (place * WIDTH)[:, None] + column[None, :]
    low, high = _rounded(_floats(low, KIND), inverse), _rounded(_floats(high, KIND), inverse)
    _store_codes(codes, low, high, column, mask, DIM, HALF, BITS)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def unpack_tokens(
    table, image, flags, n,
    KIND: tl.constexpr, BITS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """The inverse of `pack_tokens`; flags segments with scales that are negative or not finite."""
    head, segment = tl.program_id(1), tl.program_id(2)
    address, by_head, by_position, offset, number = _entry(table, segment, ITEMS, BYTES)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    there = t < n
    mask = there[:, None] & (column < HALF)[None, :]
    place = head.to(tl.int64) * n + t
    scale = tl.load((image + offset).to(tl.pointer_type(tl.float16)) + place, mask=there, other=0)
    bits = scale.to(tl.int16, bitcast=True)
    wrong = ((bits & 0x7C00) == 0x7C00) | ((bits < 0) & ((bits & 0x7FFF) != 0))
    tl.store(flags + number + tl.zeros_like(t), 1, mask=there & wrong)
    WIDTH: tl.constexpr = DIM if BITS == 8 else HALF
    codes = image + tl.multiple_of(offset + 2 * tl.num_programs(1).to(tl.int64) * n, BYTES)
    codes += (place * WIDTH)[:, None] + column[None, :]
    low, high = _load_codes(codes, column, mask, DIM, HALF, BITS)
    wide = scale.to(tl.float32)[:, None]
    target = head * by_head + (t.to(tl.int64) * by_position)[:, None] + column[None, :]
    _store_values(address, target, low * wide, mask, KIND, ITEMS)
    _store_values(address, target + HALF, high * wide, mask & (column < DIM - HALF)[None, :], KIND, ITEMS)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def pack_channels(
    table, picked, image, flags, n,
    KIND: tl.constexpr, BITS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, BYTES: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """A scale for each head, group of ROWS positions and channel. Grid: groups, heads, segments."""
    group, head, segment = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    address, by_head, by_position, offset, number = _entry(table, segment, ITEMS, BYTES)
    t = group * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    there = t < n
    left, right = column < HALF, column < DIM - HALF
    mask = there[:, None] & left[None, :]
    source = _integers(address, KIND, ITEMS) + head * by_head
    source += (_positions(picked, t, there, GATHER) * by_position)[:, None] + column[None, :]
    low = tl.load(source, mask=mask, other=0)
    high = tl.load(source + HALF, mask=there[:, None] & right[None, :], other=0)
    low_scale, low_finite = _scales(tl.max(_magnitudes(low, KIND), 0), KIND, BITS)
    high_scale, high_finite = _scales(tl.max(_magnitudes(high, KIND), 0), KIND, BITS)
    scales = (image + offset).to(tl.pointer_type(tl.float16))
    scales += (head.to(tl.int64) * tl.num_programs(0) + group) * DIM + column
    tl.store(scales, low_scale, mask=left)
    tl.store(scales + HALF, high_scale, mask=right)
    wrong = (left & (low_finite == 0)) | (right & (high_finite == 0))
    tl.store(flags + number + tl.zeros_like(column), 1, mask=wrong)
    WIDTH: tl.constexpr = DIM if BITS == 8 else HALF
    first = offset + 2 * DIM * tl.num_programs(1).to(tl.int64) * tl.num_programs(0)
    codes = image + tl.multiple_of(first, BYTES)
    codes += ((head.to(tl.int64) * n + t) * WIDTH)[:, None] + column[None, :]
    low = _rounded(_floats(low, KIND), _inverse(low_scale)[None, :])
    high = _rounded(_floats(high, KIND), _inverse(high_scale)[None, :])
    _store_codes(codes, low, high, column, mask, DIM, HALF, BITS)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def unpack_channels(
    table, image, flags, n,
    KIND: tl.constexpr, BITS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """The inverse of `pack_channels`; flags segments with scales that are negative or not finite."""
    group, head, segment = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    address, by_head, by_position, offset, number = _entry(table, segment, ITEMS, BYTES)
    t = group * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    there = t < n
    left, right = column < HALF, column < DIM - HALF
    mask = there[:, None] & left[None, :]
    scales = (image + offset).to(tl.pointer_type(tl.float16))
    scales += (head.to(tl.int64) * tl.num_programs(0) + group) * DIM + column
    low_scale = tl.load(scales, mask=left, other=0)
    high_scale = tl.load(scales + HALF, mask=right, other=0)
    low_bits, high_bits = low_scale.to(tl.int16, bitcast=True), high_scale.to(tl.int16, bitcast=True)
    wrong = ((low_bits & 0x7C00) == 0x7C00) | ((low_bits < 0) & ((low_bits & 0x7FFF) != 0))
    wrong = wrong | ((high_bits & 0x7C00) == 0x7C00) | ((high_bits < 0) & ((high_bits & 0x7FFF) != 0))
    tl.store(flags + number + tl.zeros_like(column), 1, mask=wrong)
    WIDTH: tl.constexpr = DIM if BITS == 8 else HALF
    first = offset + 2 * DIM * tl.num_programs(1).to(tl.int64) * tl.num_programs(0)
    codes = image + tl.multiple_of(first, BYTES)
    codes += ((head.to(tl.int64) * n + t) * WIDTH)[:, None] + column[None, :]
    low, high = _load_codes(codes, column, mask, DIM, HALF, BITS)
    target = head * by_head + (t.to(tl.int64) * by_position)[:, None] + column[None, :]
    _store_values(address, target, low * low_scale.to(tl.float32)[None, :], mask, KIND, ITEMS)
    high = high * high_scale.to(tl.float32)[None, :]
    _store_values(address, target + HALF, high, there[:, None] & right[None, :], KIND, ITEMS)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def pack_as_is(
    table, picked, image, flags, n,
    KIND: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, BYTES: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """16-bit values as they are, float32 rounded to bfloat16; flags what isn't finite. WIDE: of a whole head here."""
    head, segment = tl.program_id(1), tl.program_id(2)
    address, by_head, by_position, offset, number = _entry(table, segment, ITEMS, BYTES)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    there = t < n
    mask = there[:, None] & (column < DIM)[None, :]
    source = _integers(address, KIND, ITEMS) + head * by_head
    source += (_positions(picked, t, there, GATHER) * by_position)[:, None] + column[None, :]
    bits = tl.load(source, mask=mask, other=0)
    if KIND == 0:
        wrong = (bits & 0x7F800000) == 0x7F800000
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    else:
        wrong = mask & (column < 0)[None, :]
    LIMIT: tl.constexpr = 0x7C00 if KIND == 1 else 0x7F80
    wrong = wrong | ((bits & LIMIT) == LIMIT)
    tl.store(flags + number + tl.zeros_like(bits).to(tl.int32), 1, mask=wrong & mask)
    target = (image + offset).to(tl.pointer_type(tl.int16))
    target += ((head.to(tl.int64) * n + t) * DIM)[:, None] + column[None, :]
    tl.store(target, bits.to(tl.int16), mask=mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def unpack_as_is(
    table, image, flags, n,
    KIND: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """The inverse of `pack_as_is`; flags nothing. WIDE: of a whole head here."""
    head, segment = tl.program_id(1), tl.program_id(2)
    address, by_head, by_position, offset, _number = _entry(table, segment, ITEMS, BYTES)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    mask = (t < n)[:, None] & (column < DIM)[None, :]
    source = (image + offset).to(tl.pointer_type(tl.int16))
    source += ((head.to(tl.int64) * n + t) * DIM)[:, None] + column[None, :]
    bits = tl.load(source, mask=mask, other=0)
    if KIND == 0:
        bits = bits.to(tl.int32) << 16
    target = _integers(address, KIND, ITEMS) + head * by_head
    tl.store(target + (t.to(tl.int64) * by_position)[:, None] + column[None, :], bits, mask=mask)


@triton.jit
def _times(a, b):
    """Products of polynomials of `kvcache.crc32`, as int32."""
    product = (a ^ a) ^ (b ^ b)
    for i in tl.static_range(32):
        product ^= ((a << i) >> 31) & b
        b = ((b >> 1) & 0x7FFFFFFF) ^ ((-(b & 1)) & REFLECTED)
    return product


@triton.jit
def _times_constant(a, POWERS: tl.constexpr):
    """Products with a constant c; POWERS is (c, c x, c x ** 2, ...), 32 of them."""
    product = a ^ a
    for i in tl.static_range(32):
        # The lowest 31 bits by masks, which the compiler turns into predicates; shifts take a third more time.
        chosen = a < 0 if i == 0 else (a & (1 << (31 - i))) != 0
        product = tl.where(chosen, product ^ POWERS[i], product)
    return product


@triton.jit(do_not_specialize=UNSPECIALIZED)
def checksums(
    table, image, lane_powers, chunk_powers, sums,
    POWERS: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """XOR the CRC-32 of each section to `sums`. Grid: chunks of the longest section, sections.

    A lane takes every LANES-th word of a chunk by Horner's rule; lanes and chunks are shifted to their places.

    Args:
        table: int64 [sections, 4]: offset in the image, bytes, x to the power that takes the padding back, and a number
            to be XORed as well.
        lane_powers: x ** (32 (LANES - 1 - i)) for lane i; POWERS: of x ** (32 LANES), see `_times_constant`.
        chunk_powers: x to the power of i chunks, in bits.
    """
    chunk, section = tl.program_id(0), tl.program_id(1)
    offset = tl.multiple_of(tl.load(table + 4 * section), BYTES)
    size = tl.load(table + 4 * section + 1)
    chunks = tl.cdiv(size, 4 * LANES * STEPS).to(tl.int32)
    if chunk < chunks:
        lane = tl.arange(0, LANES)
        words = (image + offset).to(tl.pointer_type(tl.int32))
        whole = (size // 4).to(tl.int32)
        kept = (1 << (8 * (size % 4).to(tl.int32))) - 1  # of the last word, if it isn't whole
        state = tl.zeros([LANES], tl.int32)
        for step in range(STEPS):
            at = (chunk * STEPS + step) * LANES + lane
            word = tl.load(words + at, mask=at * 4 < size, other=0)
            state = _times_constant(state, POWERS) ^ tl.where(at == whole, word & kept, word)
        total = tl.xor_sum(_times(state, tl.load(lane_powers + lane)), 0)
        total = _times(total, tl.load(chunk_powers + chunks - 1 - chunk))
        total = _times(total, tl.load(table + 4 * section + 2).to(tl.int32))
        if chunk == 0:
            total ^= tl.load(table + 4 * section + 3).to(tl.int32)
        tl.atomic_xor(sums + section, total, sem="relaxed")


@triton.jit(do_not_specialize=["source", "target", "count"])
def export(source, target, count, BLOCK: tl.constexpr):
    """Copy int32 to pinned host memory: unlike a copy, a kernel doesn't queue behind the cache's bytes."""
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < count), mask=at < count)
