"""Triton kernels of scores: column sums of softmaxed attention rows, without storing the rows.

Tensors are found by a table of int64 with a row for each layer: address, stride between heads, stride between positions
of the queries, then of the keys (in elements; channels are contiguous). Queries are those of the last M of N positions.
All heads that share a key head are one matrix of GROUP * M rows. Logarithms are to base 2; `scale` includes that.

KIND is 0 for float32, 1 for float16, 2 for bfloat16. ITEMS is a power of two by which addresses and strides, in
elements, are divisible. WIDE is the next power of two of DIM, the size of a head.

Only imported where Triton is installed.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,operator"

import triton
import triton.language as tl

COLUMNS = tl.constexpr(6)  # of the table
UNSPECIALIZED = ["table", "tops", "sums", "out", "n", "m", "splits", "size", "seen_from"]
NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def _pointer(address, KIND: tl.constexpr, ITEMS: tl.constexpr):
    if KIND == 0:
        return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 4 * ITEMS)
    elif KIND == 1:
        return tl.multiple_of(address.to(tl.pointer_type(tl.float16)), 2 * ITEMS)
    else:
        return tl.multiple_of(address.to(tl.pointer_type(tl.bfloat16)), 2 * ITEMS)


@triton.jit
def _queries(
    table, pair, row, there, m,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    ITEMS: tl.constexpr,
):  # fmt: skip
    """Queries [rows, WIDE] of a key head's matrix."""
    entry = table + (pair // KV_HEADS) * COLUMNS
    by_head = tl.multiple_of(tl.load(entry + 1), ITEMS)
    by_position = tl.multiple_of(tl.load(entry + 2), ITEMS)
    head = ((pair % KV_HEADS) * GROUP + row // m).to(tl.int64)
    source = _pointer(tl.load(entry), KIND, ITEMS) + (head * by_head + (row % m) * by_position)[:, None]
    column = tl.arange(0, WIDE)
    return tl.load(source + column[None, :], mask=there[:, None] & (column < DIM)[None, :], other=0.0)


@triton.jit
def _keys(
    table, pair, key, there,
    KV_HEADS: tl.constexpr, KIND: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """Keys [keys, WIDE]."""
    entry = table + (pair // KV_HEADS) * COLUMNS + 3
    by_head = tl.multiple_of(tl.load(entry + 1), ITEMS)
    by_position = tl.multiple_of(tl.load(entry + 2), ITEMS)
    source = _pointer(tl.load(entry), KIND, ITEMS) + (pair % KV_HEADS) * by_head
    source += (key.to(tl.int64) * by_position)[:, None]
    column = tl.arange(0, WIDE)
    return tl.load(source + column[None, :], mask=there[:, None] & (column < DIM)[None, :], other=0.0)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def row_statistics(
    table, tops, sums, n, m, scale, size,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    ITEMS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The largest logit of each row, and the sum of exponentials relative to it, over `size` keys.

    Grid: blocks of rows, splits of the keys, layers * KV_HEADS. Results: [layers * KV_HEADS, splits, GROUP * m].
    """
    split, pair = tl.program_id(1), tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < GROUP * m
    position = tl.where(there, n - m + row % m, -1)
    query = _queries(table, pair, row, there, m, KV_HEADS, GROUP, KIND, DIM, WIDE, ITEMS)
    top = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    end = tl.minimum(split * size + size, tl.max(position, 0) + 1)
    for begin in range(split * size, end, KEYS):
        key = begin + tl.arange(0, KEYS)
        keys = _keys(table, pair, key, key < end, KV_HEADS, KIND, DIM, WIDE, ITEMS)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        seen = (key[None, :] <= position[:, None]) & (key < end)[None, :]
        logits = tl.where(seen, logits, NOTHING)
        higher = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(higher == NOTHING, 0.0, higher)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
        top = higher
    place = (pair.to(tl.int64) * tl.num_programs(1) + split) * (GROUP * m) + row
    tl.store(tops + place, top, mask=there)
    tl.store(sums + place, total, mask=there)


@triton.jit
def _row_logarithms(tops, sums, pair, row, there, rows, splits, ONE: tl.constexpr):
    """The logarithm of each row's sum of exponentials."""
    if ONE:
        place = pair.to(tl.int64) * rows + row
        top = tl.load(tops + place, mask=there, other=0.0)
        total = tl.load(sums + place, mask=there, other=1.0)
    else:
        top = tl.full(row.shape, NOTHING, tl.float32)
        total = tl.zeros(row.shape, tl.float32)
        for split in range(splits):
            place = (pair.to(tl.int64) * splits + split) * rows + row
            some = tl.load(tops + place, mask=there, other=0.0)
            higher = tl.maximum(top, some)
            base = tl.where(higher == NOTHING, 0.0, higher)
            total = total * tl.exp2(top - base) + tl.load(sums + place, mask=there, other=1.0) * tl.exp2(some - base)
            top = higher
    return top + tl.log2(total)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def column_sums(
    table, tops, sums, out, n, m, scale, splits, size, seen_from,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    ITEMS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """The sum of each key's probabilities over `size` rows, of those at positions from `seen_from` on.

    Grid: blocks of keys, parts of the rows, layers * KV_HEADS. `tops`, `sums`: of `row_statistics` with `splits`; ONE:
    there is one, and a part is a head. `out`: [layers * KV_HEADS, parts, n].
    """
    part, pair = tl.program_id(1), tl.program_id(2)
    first_key = tl.program_id(0) * KEYS
    key = first_key + tl.arange(0, KEYS)
    keys = _keys(table, pair, key, key < n, KV_HEADS, KIND, DIM, WIDE, ITEMS)
    found = tl.zeros([KEYS], tl.float32)
    rows = GROUP * m
    least = tl.maximum(first_key, seen_from)
    begin, end = part * size, tl.minimum(part * size + size, rows)
    if ONE:
        begin += tl.maximum(0, least - (n - m)) // ROWS * ROWS
    for at in range(begin, end, ROWS):
        row = at + tl.arange(0, ROWS)
        position = tl.where(row < end, n - m + row % m, -1)
        there = position >= least
        sums_of_rows = _row_logarithms(tops, sums, pair, row, there, rows, splits, ONE)
        query = _queries(table, pair, row, there, m, KV_HEADS, GROUP, KIND, DIM, WIDE, ITEMS)
        logits = tl.dot(keys, tl.trans(query), input_precision="ieee") * scale - sums_of_rows[None, :]
        seen = (key[:, None] <= position[None, :]) & there[None, :]
        found += tl.sum(tl.where(seen, tl.exp2(logits), 0.0), 1)
    tl.store(out + (pair.to(tl.int64) * tl.num_programs(1) + part) * n + key, found, mask=key < n)
