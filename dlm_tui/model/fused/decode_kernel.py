"""The decoder's arithmetic for a few tokens, compiled: all layers in one call, shared by a team of threads.

Weights are read once, as they lie in the checkpoint's pages, at close to the speed of memory; between two products the
threads meet at a barrier of their own, as handing each product to a thread pool costs more than the product.
Nothing here checks shapes: `step` does, and compares the whole with the reference before it is used.

All arrays are C-contiguous. `R` tokens, hidden width `H`; float32 throughout, sums in vector lanes of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
F = np.float32
_SPINS = 4000
"""Looks at the barrier (about 20 µs) before the core is offered to somebody else."""
_NEAR_BYTES = 3072
"""Longest row that is asked for as a whole ahead of its use: more lines at once than a core can wait for stall it."""
_yield = types.ExternalFunction("sched_yield", types.int32())

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    # sums may be reordered and fused, as every vectorised product does; infinities and NaN keep their meaning
    options = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "nogil": True, "cache": True}
    return cast("Function", njit(**options)(function))


def _instruction(build: Callable[..., Any]) -> Callable[..., Any]:
    return cast("Callable[..., Any]", intrinsic(build))


# A row of the table: four fused groups (query, key and value; out; gate and up; down) of so many numbers each …
WEIGHT, _, _, END, _, _, BIAS, LOW, COLUMNS, BLOCKS, RANKS, PARTS, NARROW = range(13)
"""Addresses of up to three weights that stand below one another, and the row that each of them ends before; addresses,
0 where a part is absent, of bias, the adapters' down, the coefficients' columns and the blocks; then the number of
ranks, that of blocks, and 1 where the weights are bfloat16."""
GROUP = 13
# … then the addresses of six norms, 0 where the family has none: before attention and MLP, of queries and keys, behind
# attention and MLP …
NORMS = 4 * GROUP
ATTENTION_NORM, MLP_NORM, QUERY_NORM, KEY_NORM, ATTENTION_OUT_NORM, MLP_OUT_NORM = range(NORMS, NORMS + 6)
# … then how many positions a token looks back (0: all), the rotary table (-1: none), and 1 where the norm of queries
# and keys is over the whole projection …
WINDOW, ROPE, WHOLE_NORM = range(NORMS + 6, NORMS + 9)
# … then, where experts stand in place of the last two groups, their number, how many of them a token gets,
# and 1 where the shares of these add up to 1; the addresses of the router [E, H] in float32 and of the experts' gate
# and up [E, 2I, H] and down [E, H, I]; and 1 where these two are bfloat16.
EXPERTS, TOP_K, NORMALISED, ROUTER, EXPERTS_GATE_UP, EXPERTS_DOWN, EXPERTS_NARROW = range(NORMS + 9, NORMS + 16)
WIDTH = NORMS + 16
SILU, GELU_TANH = range(2)


def _counter(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Where the counter's only number stands."""
    kind = signature.args[0]
    array = target.make_array(kind)(target, builder, arguments[0])
    return cgutils.get_item_pointer(target, builder, kind, array, [ir.Constant(ir.IntType(64), 0)])


@_instruction
def _arrive(context: Any, counter: Any) -> Any:
    """Add one to the counter, visible to all threads."""

    def build(*given: Any) -> Any:
        return given[1].atomic_rmw("add", _counter(*given), ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(counter), build


@_instruction
def _arrived(context: Any, counter: Any) -> Any:
    """The counter, with everything its last writer wrote before."""

    def build(*given: Any) -> Any:
        return given[1].load_atomic(_counter(*given), "acquire", 8)

    return types.int64(counter), build


@_instruction
def _pointer(context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), build


@_instruction
def _wide(context: Any, number: Any) -> Any:
    """A float32 as it is; a bfloat16, which comes as uint16, as the float32 it stands for."""

    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(number), build


@_instruction
def _place_of(context: Any, numbers: Any) -> Any:
    """The address of an array's first number."""

    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = target.make_array(signature.args[0])(target, builder, arguments[0])
        return builder.ptrtoint(array.data, ir.IntType(64))

    return types.int64(numbers), build


@_instruction
def _fetch(context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which nobody waits for; an address of nothing does no harm."""

    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        place = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        builder.call(function, [place, number(0), number(3), number(1)])  # to read, kept close, data

    return types.void(address), build


@_compiled
def _meet(counter: Integers, threads: int, meetings: int) -> int:
    """Wait until all threads have come; returns the number of meetings so far."""
    meetings += 1
    if threads == 1:
        return meetings
    _arrive(counter)
    spins = 0
    while _arrived(counter) < meetings * threads:
        spins += 1
        if spins > _SPINS:
            _yield()
    return meetings


@_compiled
def _share(number: int, thread: int, threads: int) -> tuple[int, int]:
    """The half-open range of rows [first, last) of a thread; borders at multiples of four."""
    quarter = (number + 3) // 4
    return min(number, thread * quarter // threads * 4), min(number, (thread + 1) * quarter // threads * 4)


@_compiled
def dots(w: Floats, x: Floats, y: Floats, first: int, last: int, start: int) -> None:
    """y[r, start + i] = w[i] · x[r] for first ≤ i < last; w [n, k] float32, or bfloat16 as uint16.

    One row of w after the other is one stream from memory, at nearly the speed of a plain read. Four rows at once use
    what they have of x more often, which is quicker where that is a lot, and for float32, whose rows take longer.
    """
    count, width = x.shape
    if w.itemsize == 2:
        by_row = count < 4 or width <= 1024
    else:
        by_row = 1 < count < 4 and width * w.itemsize <= _NEAR_BYTES
    if by_row:
        _dots_by_row(w, x, y, first, last, start)
    else:
        _dots_by_four(w, x, y, first, last, start)


@_compiled
def _fetch_ahead(w: Floats, i: int) -> None:
    """Ask for the row that comes four rows after the i-th, where rows are short."""
    row_bytes = w.shape[1] * w.itemsize
    if row_bytes <= _NEAR_BYTES:
        address = _place_of(w) + (i + 4) * row_bytes
        for place in range(address, address + row_bytes, 64):
            _fetch(place)


@_compiled
def _dots_by_row(w: Floats, x: Floats, y: Floats, first: int, last: int, start: int) -> None:
    """`dots`, a row of w with up to four rows of x at a time."""
    count, width = x.shape
    for i in range(first, last):
        _fetch_ahead(w, i)
        r, at = 0, start + i
        while r + 4 <= count:
            a0 = a1 = a2 = a3 = F(0)
            for j in range(width):
                v = _wide(w[i, j])
                a0 += v * x[r, j]
                a1 += v * x[r + 1, j]
                a2 += v * x[r + 2, j]
                a3 += v * x[r + 3, j]
            y[r, at], y[r + 1, at], y[r + 2, at], y[r + 3, at] = a0, a1, a2, a3
            r += 4
        if r + 2 <= count:
            a0 = a1 = F(0)
            for j in range(width):
                v = _wide(w[i, j])
                a0 += v * x[r, j]
                a1 += v * x[r + 1, j]
            y[r, at], y[r + 1, at] = a0, a1
            r += 2
        if r < count:
            a0 = F(0)
            for j in range(width):
                a0 += _wide(w[i, j]) * x[r, j]
            y[r, at] = a0


@_compiled
def _dots_each(w: Floats, x: Floats, y: Floats, first: int, last: int) -> None:
    """`dots`, every row of x by itself: the same bits, however many there are."""
    count, width = x.shape
    for i in range(first, last):
        _fetch_ahead(w, i)
        for r in range(count):
            a0 = F(0)
            for j in range(width):
                a0 += _wide(w[i, j]) * x[r, j]
            y[r, i] = a0


@_compiled
def _dots_by_four(w: Floats, x: Floats, y: Floats, first: int, last: int, start: int) -> None:
    """`dots`, four rows of w with four rows of x, or with one, at a time."""
    count, width = x.shape
    i = first
    while i + 4 <= last:
        r = 0
        while r + 4 <= count:
            a0 = a1 = a2 = a3 = F(0)
            b0 = b1 = b2 = b3 = F(0)
            c0 = c1 = c2 = c3 = F(0)
            d0 = d1 = d2 = d3 = F(0)
            for j in range(width):
                x0, x1, x2, x3 = x[r, j], x[r + 1, j], x[r + 2, j], x[r + 3, j]
                v = _wide(w[i, j])
                a0 += v * x0
                a1 += v * x1
                a2 += v * x2
                a3 += v * x3
                v = _wide(w[i + 1, j])
                b0 += v * x0
                b1 += v * x1
                b2 += v * x2
                b3 += v * x3
                v = _wide(w[i + 2, j])
                c0 += v * x0
                c1 += v * x1
                c2 += v * x2
                c3 += v * x3
                v = _wide(w[i + 3, j])
                d0 += v * x0
                d1 += v * x1
                d2 += v * x2
                d3 += v * x3
            at = start + i
            y[r, at], y[r, at + 1], y[r, at + 2], y[r, at + 3] = a0, b0, c0, d0
            y[r + 1, at], y[r + 1, at + 1], y[r + 1, at + 2], y[r + 1, at + 3] = a1, b1, c1, d1
            y[r + 2, at], y[r + 2, at + 1], y[r + 2, at + 2], y[r + 2, at + 3] = a2, b2, c2, d2
            y[r + 3, at], y[r + 3, at + 1], y[r + 3, at + 2], y[r + 3, at + 3] = a3, b3, c3, d3
            r += 4
        while r < count:
            a0 = b0 = c0 = d0 = F(0)
            for j in range(width):
                v = x[r, j]
                a0 += _wide(w[i, j]) * v
                b0 += _wide(w[i + 1, j]) * v
                c0 += _wide(w[i + 2, j]) * v
                d0 += _wide(w[i + 3, j]) * v
            at = start + i
            y[r, at], y[r, at + 1], y[r, at + 2], y[r, at + 3] = a0, b0, c0, d0
            r += 1
        i += 4
    while i < last:
        for r in range(count):
            a0 = F(0)
            for j in range(width):
                a0 += _wide(w[i, j]) * x[r, j]
            y[r, start + i] = a0
        i += 1


@_compiled
def _product(part: Integers, x: Floats, y: Floats, first: int, last: int) -> None:
    """One fused layer's rows `first` to `last` for all tokens, with its bias."""
    start = 0
    for weight in range(END - WEIGHT):
        end = part[END + weight]
        low, high = max(first, start) - start, min(last, end) - start
        if low < high:
            shape = (end - start, x.shape[1])
            if part[NARROW] != 0:
                dots(carray(_pointer(part[WEIGHT + weight]), shape, np.uint16), x, y, low, high, start)
            else:
                dots(carray(_pointer(part[WEIGHT + weight]), shape, F), x, y, low, high, start)
        start = end
    if part[BIAS] != 0:
        bias = carray(_pointer(part[BIAS]), (y.shape[1],), F)
        for r in range(x.shape[0]):
            for i in range(first, last):
                y[r, i] += bias[i]


@_compiled
def _inner(
    part: Integers, coefficients: Floats, rows: Integers, x: Floats, inner: Floats, thread: int, threads: int
) -> None:
    """inner[r, q] = coefficient of rank q in token r's row, times (lora_A x)[q], for the thread's share of ranks."""
    ranks = part[RANKS]
    first, last = _share(ranks, thread, threads)
    dots(carray(_pointer(part[LOW]), (ranks, x.shape[1]), F), x, inner, first, last, 0)
    columns = carray(_pointer(part[COLUMNS]), (ranks,), np.int64)
    for r in range(x.shape[0]):
        for q in range(first, last):
            inner[r, q] *= coefficients[rows[r], columns[q]]


@_compiled
def _spread(part: Integers, inner: Floats, y: Floats, first: int, last: int) -> None:
    """y[r, first:last] += lora_B inner[r], for each module of the group with its own outputs and ranks."""
    blocks = carray(_pointer(part[BLOCKS]), (part[PARTS], 5), np.int64)
    for block in range(blocks.shape[0]):
        start, end, low, high = blocks[block, 0], blocks[block, 1], blocks[block, 2], blocks[block, 3]
        lora_B = carray(_pointer(blocks[block, 4]), (end - start, high - low), F)
        for i in range(max(first, start), min(last, end)):
            for r in range(y.shape[0]):
                total = F(0)
                for q in range(high - low):
                    total += lora_B[i - start, q] * inner[r, low + q]
                y[r, i] += total


@_compiled
def _mixes(part: Integers, coefficients: Floats) -> bool:
    """Whether adapters add to this group; without coefficients (no rows) no adapter arithmetic runs at all."""
    return coefficients.shape[0] > 0 and int(part[RANKS]) > 0


@_compiled
def _add(y: Floats, x: Floats, scale: float, first: int, last: int) -> None:
    for r in range(x.shape[0]):
        for i in range(first, last):
            y[r, i] += x[r, i] * scale


@_compiled
def _activate(gate_up: Floats, kind: int, active: Floats, first: int, last: int) -> None:
    """active = activation(gate) · up for the columns `first` to `last` of gate_up [R, 2I]."""
    width = active.shape[1]
    if kind == SILU:
        for r in range(active.shape[0]):
            for i in range(first, last):
                gate = gate_up[r, i]
                active[r, i] = gate / (F(1) + np.exp(-gate)) * gate_up[r, width + i]
        return
    for r in range(active.shape[0]):
        for i in range(first, last):
            gate = gate_up[r, i]
            inner = F(0.7978845608028654) * (gate + F(0.044715) * gate * gate * gate)
            active[r, i] = F(0.5) * gate * (F(1) + np.tanh(inner)) * gate_up[r, width + i]


@_compiled
def _norm(x: Floats, address: int, eps: float, y: Floats) -> None:
    """Root mean square norm of every row of x [R, n] into y, with the weight [n] at `address` (0: a copy)."""
    count, width = x.shape
    if address == 0:
        for r in range(count):
            for j in range(width):  # the compiler takes seconds for an assignment of whole arrays
                y[r, j] = x[r, j]
        return
    weight = carray(_pointer(address), (width,), F)
    for r in range(count):
        total = F(0)
        for j in range(width):
            total += x[r, j] * x[r, j]
        factor = F(1) / np.sqrt(total / F(width) + eps)
        for j in range(width):
            y[r, j] = x[r, j] * factor * weight[j]


@_compiled
def _attend(
    query: Floats, keys: Floats, values: Floats, start: int, length: int, scale: float, cap: float, result: Floats,
    scores: Floats,
) -> None:  # fmt: skip
    """result [D] = softmax(scale · query · keys) · values over the positions `start` to `length`; with a `cap` above 0
    a score is cap · tanh(score / cap)."""
    width = query.shape[0]
    highest = F(-np.inf)
    for t in range(start, length):
        total = F(0)
        for j in range(width):
            total += query[j] * keys[t, j]
        score = total * scale
        if cap > F(0):
            score = np.tanh(score / cap) * cap
        scores[t] = score
        highest = max(highest, score)
    whole = F(0)
    for t in range(start, length):
        scores[t] = np.exp(scores[t] - highest)
        whole += scores[t]
    result[:] = F(0)
    for t in range(start, length):
        share = scores[t] / whole
        for j in range(width):
            result[j] += share * values[t, j]


@_compiled
def _norm_whole(qkv: Floats, query_norm: int, key_norm: int, queries: int, keys: int, eps: float, r: int) -> None:
    """Norm all queries of token r as one vector, and all its keys, in place."""
    start = 0
    for part in range(2):
        width = queries if part == 0 else keys
        weight = carray(_pointer(query_norm if part == 0 else key_norm), (width,), F)
        total = F(0)
        for j in range(start, start + width):
            total += qkv[r, j] * qkv[r, j]
        factor = F(1) / np.sqrt(total / F(width) + eps)
        for j in range(width):
            qkv[r, start + j] *= factor * weight[j]
        start += width


@_compiled
def _place(
    qkv: Floats, r: int, head: int, heads: int, kv_heads: int, norm: int, keys: Floats, values: Floats, b: int,
    spot: int, cos: Floats, sin: Floats, rope: int, eps: float,
) -> None:  # fmt: skip
    """Norm (weight at address `norm`, 0: none) and rotate one head of token r, in place: x·cos + swap(x)·sin, where
    swap exchanges the halves of the first R values and `sin` carries the signs. Keys and values go into row b of the
    cache at `spot`."""
    width = keys.shape[3]
    start, half = head * width, cos.shape[2] // 2
    if head >= heads + kv_heads:
        for j in range(width):
            values[b, head - heads - kv_heads, spot, j] = qkv[r, start + j]
        return
    if norm != 0:
        weight = carray(_pointer(norm), (width,), F)
        total = F(0)
        for j in range(start, start + width):
            total += qkv[r, j] * qkv[r, j]
        factor = F(1) / np.sqrt(total / F(width) + eps)
        for j in range(width):
            qkv[r, start + j] *= factor * weight[j]
    if rope >= 0:
        for j in range(half):
            low, high = qkv[r, start + j], qkv[r, start + half + j]
            qkv[r, start + j] = low * cos[rope, spot, j] + high * sin[rope, spot, j]
            qkv[r, start + half + j] = high * cos[rope, spot, half + j] + low * sin[rope, spot, half + j]
    if head >= heads:
        for j in range(width):
            keys[b, head - heads, spot, j] = qkv[r, start + j]


@_compiled
def _mlp(
    thread: int, threads: int, counter: Integers, meetings: int, row: Integers, x: Floats, activation: int,
    coefficients: Floats, rows: Integers, gate_up: Floats, active: Floats, added: Floats, inner: Floats,
) -> int:  # fmt: skip
    """added [R, H] = down(activation(gate x) · up x) for the thread's own columns; returns the meetings so far."""
    gate_up_part, down_part, intermediate = row[2 * GROUP : 3 * GROUP], row[3 * GROUP : NORMS], active.shape[1]
    first, last = _share(intermediate, thread, threads)
    _product(gate_up_part, x, gate_up, first, last)
    _product(gate_up_part, x, gate_up, intermediate + first, intermediate + last)
    if _mixes(gate_up_part, coefficients):
        _inner(gate_up_part, coefficients, rows, x, inner, thread, threads)
        meetings = _meet(counter, threads, meetings)
        _spread(gate_up_part, inner, gate_up, first, last)
        _spread(gate_up_part, inner, gate_up, intermediate + first, intermediate + last)
    _activate(gate_up, activation, active, first, last)
    meetings = _meet(counter, threads, meetings)

    first, last = _share(added.shape[1], thread, threads)
    _product(down_part, active, added, first, last)
    if _mixes(down_part, coefficients):
        _inner(down_part, coefficients, rows, active, inner, thread, threads)
        meetings = _meet(counter, threads, meetings)
        _spread(down_part, inner, added, first, last)
    return meetings


@_compiled
def _choose(scores: Floats, chosen: Integers, shares: Floats, normalised: bool) -> None:
    """The K experts of each token with the largest softmax probabilities of `scores` [R, E], which is used up.

    `chosen` [R, K], best first, and their `shares` [R, K].
    """
    for r in range(scores.shape[0]):
        highest = F(-np.inf)
        for e in range(scores.shape[1]):
            highest = max(highest, scores[r, e])
        total = F(0)
        for e in range(scores.shape[1]):
            scores[r, e] = np.exp(scores[r, e] - highest)
            total += scores[r, e]
        kept = F(0)
        for k in range(chosen.shape[1]):
            best = 0
            for e in range(1, scores.shape[1]):
                if scores[r, e] > scores[r, best]:
                    best = e
            chosen[r, k], shares[r, k] = best, scores[r, best] / total
            kept += shares[r, k]
            scores[r, best] = F(-1)
        if normalised:
            for k in range(chosen.shape[1]):
                shares[r, k] /= kept


@_compiled
def _of_expert(
    address: int, narrow: int, expert: int, height: int, x: Floats, y: Floats, first: int, last: int
) -> None:
    """y[:, first:last] = x · weightᵀ with the expert's matrix [height, x's width] of those at `address`.

    How many tokens an expert has depends on the other rows of the batch, so a token's numbers must not.
    """
    shape = (height, x.shape[1])
    skipped = expert * height * x.shape[1]
    if narrow != 0:
        _dots_each(carray(_pointer(address + 2 * skipped), shape, np.uint16), x, y, first, last)
    else:
        _dots_each(carray(_pointer(address + 4 * skipped), shape, F), x, y, first, last)


@_compiled
def _mix_experts(
    thread: int, threads: int, counter: Integers, meetings: int, row: Integers, x: Floats, activation: int,
    router: Floats, gate_up: Floats, active: Floats, outer: Floats, added: Floats,
) -> int:  # fmt: skip
    """added [R, H] = every token of x [R, H] through the experts that the router prefers, for the thread's own columns.

    Each chosen expert's weights are read once, for all of its tokens, which stand together in `gate_up` [R·K, 2I],
    `active` [R·K, I] and `outer` [R·K, H]. Returns the number of meetings so far.
    """
    count, width = x.shape
    experts, top_k, narrow, intermediate = row[EXPERTS], row[TOP_K], row[EXPERTS_NARROW], active.shape[1]
    first, last = _share(experts, thread, threads)
    dots(carray(_pointer(row[ROUTER]), (experts, width), F), x, router, first, last, 0)
    meetings = _meet(counter, threads, meetings)

    chosen, shares = np.empty((count, top_k), np.int64), np.empty((count, top_k), F)
    _choose(router.copy(), chosen, shares, row[NORMALISED] != 0)
    starts, tokens, share = (
        np.empty(experts + 1, np.int64),
        np.empty(count * top_k, np.int64),
        np.empty(count * top_k, F),
    )
    gathered = np.empty((count * top_k, width), F)
    place = 0
    for expert in range(experts):
        starts[expert] = place
        for r in range(count):
            for k in range(top_k):
                if chosen[r, k] == expert:
                    tokens[place], share[place] = r, shares[r, k]
                    for j in range(width):
                        gathered[place, j] = x[r, j]
                    place += 1
    starts[experts] = place

    first, last = _share(intermediate, thread, threads)
    for expert in range(experts):
        start, end = starts[expert], starts[expert + 1]
        if start < end:
            given, found, matrix = gathered[start:end], gate_up[start:end], row[EXPERTS_GATE_UP]
            _of_expert(matrix, narrow, expert, 2 * intermediate, given, found, first, last)
            _of_expert(
                matrix, narrow, expert, 2 * intermediate, given, found, intermediate + first, intermediate + last
            )
    _activate(gate_up, activation, active, first, last)
    meetings = _meet(counter, threads, meetings)

    first, last = _share(width, thread, threads)
    for expert in range(experts):
        start, end = starts[expert], starts[expert + 1]
        if start < end:
            _of_expert(row[EXPERTS_DOWN], narrow, expert, width, active[start:end], outer[start:end], first, last)
    for r in range(count):
        for i in range(first, last):
            added[r, i] = F(0)
    for place in range(count * top_k):
        for i in range(first, last):
            added[tokens[place], i] += share[place] * outer[place, i]
    return meetings


@_compiled
def decode(
    thread: int, threads: int, counter: Integers, table: Integers, hidden: Floats, rows: Integers,
    positions: Integers, coefficients: Floats, kv: Floats, cos: Floats, sin: Floats, heads: int,
    kv_heads: int, activation: int, eps: float, scale: float, cap: float, residual: float, qkv: Floats, mixed: Floats,
    added: Floats, gate_up: Floats, active: Floats, inner: Floats, router: Floats | None,
    outer: Floats | None,
) -> None:  # fmt: skip
    """Run `hidden` [R, H] through all layers in place; token r is `positions[r]` of row `rows[r]` of the cache `kv`.

    `table` [layers, WIDTH] addresses, `kv` [layers, 2, B, kv heads, capacity, D], `cos` and `sin` [tables, positions,
    R], `coefficients` [B or 0, N], `counter` [1] zero; attention scores are multiplied by `scale` and capped by `cap`
    (0: not), what a block adds is multiplied by `residual`; then six arrays [R, …] to work in, all ranks in the last,
    and two of experts, scores [R, E] and outputs [R·K, H] (with experts `gate_up` and `active` have R·K rows, too),
    None for a base without: then nothing of experts is compiled. All threads must call it.
    """
    count, width = hidden.shape
    head_dim = kv.shape[5]
    x = np.empty((count, width), F)
    scores = np.empty(kv.shape[4], F)
    own, own_last = _share(width, thread, threads)
    meetings = 0
    for number in range(table.shape[0]):
        row = table[number]
        qkv_part, out_part = row[:GROUP], row[GROUP : 2 * GROUP]
        keys, values = kv[number, 0], kv[number, 1]

        _norm(hidden, row[ATTENTION_NORM], eps, x)
        first, last = _share(qkv.shape[1], thread, threads)
        _product(qkv_part, x, qkv, first, last)
        if _mixes(qkv_part, coefficients):
            _inner(qkv_part, coefficients, rows, x, inner, thread, threads)
            meetings = _meet(counter, threads, meetings)
            _spread(qkv_part, inner, qkv, first, last)
        meetings = _meet(counter, threads, meetings)

        if row[WHOLE_NORM] != 0:
            for r in range(thread, count, threads):
                _norm_whole(qkv, row[QUERY_NORM], row[KEY_NORM], heads * head_dim, kv_heads * head_dim, eps, r)
            meetings = _meet(counter, threads, meetings)

        each = heads + 2 * kv_heads
        for job in range(thread, count * each, threads):
            r, head = job // each, job % each
            b, spot = rows[r], positions[r]
            norm = 0
            if row[WHOLE_NORM] == 0:
                norm = row[QUERY_NORM] if head < heads else row[KEY_NORM]
            _place(qkv, r, head, heads, kv_heads, norm, keys, values, b, spot, cos, sin, row[ROPE], eps)
        meetings = _meet(counter, threads, meetings)

        for job in range(thread, count * heads, threads):
            r, head = job // heads, job % heads
            b, kv_head = rows[r], head * kv_heads // heads
            query = qkv[r, head * head_dim : (head + 1) * head_dim]
            result = mixed[r, head * head_dim : (head + 1) * head_dim]
            length = positions[r] + 1
            start = max(0, length - row[WINDOW]) if row[WINDOW] > 0 else 0
            _attend(query, keys[b, kv_head], values[b, kv_head], start, length, scale, cap, result, scores)
        meetings = _meet(counter, threads, meetings)

        _product(out_part, mixed, added, own, own_last)
        if _mixes(out_part, coefficients):
            _inner(out_part, coefficients, rows, mixed, inner, thread, threads)
            meetings = _meet(counter, threads, meetings)
            _spread(out_part, inner, added, own, own_last)
        if row[ATTENTION_OUT_NORM] != 0:
            meetings = _meet(counter, threads, meetings)
            _norm(added, row[ATTENTION_OUT_NORM], eps, x)
            _add(hidden, x, residual, own, own_last)
        else:
            _add(hidden, added, residual, own, own_last)
        meetings = _meet(counter, threads, meetings)

        _norm(hidden, row[MLP_NORM], eps, x)
        if router is not None and outer is not None:
            meetings = _mix_experts(
                thread, threads, counter, meetings, row, x, activation, router, gate_up, active, outer, added
            )
        else:
            meetings = _mlp(
                thread, threads, counter, meetings, row, x, activation, coefficients, rows, gate_up, active, added,
                inner,
            )  # fmt: skip
        if row[MLP_OUT_NORM] != 0:
            meetings = _meet(counter, threads, meetings)
            _norm(added, row[MLP_OUT_NORM], eps, x)
            _add(hidden, x, residual, own, own_last)
        else:
            _add(hidden, added, residual, own, own_last)
        meetings = _meet(counter, threads, meetings)


@_compiled
def project(thread: int, threads: int, counter: Integers, weight: Floats, x: Floats, y: Floats) -> None:
    """y [R, V] = x [R, H] · weightᵀ [V, H]; each thread does its own share."""
    first, last = _share(weight.shape[0], thread, threads)
    dots(weight, x, y, first, last, 0)
