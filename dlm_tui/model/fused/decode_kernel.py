"""The decoder's arithmetic for a few tokens, compiled: all layers in one call, shared by a team of threads.

Weights are read once, as they lie in the checkpoint's pages, at close to the speed of memory; between two products the
threads meet at a barrier of their own, as handing each product to a thread pool costs more than the product.
Nothing here checks shapes: `step` does, and compares the whole with the reference before it is used.
It is one file because what was compiled is kept by the state of its own file alone: a change of a function in another
one would not be seen.

All arrays are C-contiguous. `R` tokens, hidden width `H`; float32 throughout, sums in vector lanes of float32.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
F = np.float32
_SPINS = 4000
"""Looks at the barrier (about 20 µs) before it is asked whether the others can arrive at all."""
_MOST_SPINS = 1000 * _SPINS
"""Looks (about 20 ms, more than a slice of the scheduler) before the core is offered whoever is late."""
_FEATURES = get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx") else 4
"""Float32 numbers in one of the processor's vector registers."""
AT_ONCE = 4 if _FEATURES.get("avx512f") or _FEATURES.get("neon") else 2
"""Tokens whose sums with `HEIGHT` rows of a weight stay in its registers, of which it has 32 or 16."""
HEIGHT = 4
_LINE = 64
"""Bytes that come from memory together."""
_yield = types.ExternalFunction("sched_yield", types.int32())
_core: Callable[[], int]

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    # sums may be reordered and fused, as every vectorised product does; infinities and NaN keep their meaning
    options = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy", "nogil": True, "cache": True}
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
# and 1 where the shares of these add up to 1; the addresses of the router [E, H] in float32 and of the table [E, 3] of
# addresses of each expert's gate and up [I, H] and down [H, I]; and 1 where these are bfloat16.
EXPERTS, TOP_K, NORMALISED, ROUTER, EXPERT_WEIGHTS, EXPERTS_NARROW = range(NORMS + 9, NORMS + 15)
WIDTH = NORMS + 15
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
def _exp(context: Any, number: Any) -> Any:
    """e to a float32, within 2 of its last places: 0 below -87.3, infinite above 88.7.

    Without a call, so that a loop of it becomes vectors: with n the integer next to x / ln 2 it is 2ⁿ, which is bits of
    the result, times the Taylor series to the 7th power of the rest, which is at most ln 2 / 2.
    """

    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        kind, bits = ir.FloatType(), ir.IntType(32)
        rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), "llvm.rint.f32")
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), "llvm.fmuladd.f32"
        )

        def fused(a: Any, b: Any, c: Any) -> Any:
            return builder.call(multiply_add, [a, b, c])

        low, high = (kind(float(np.float32(end))) for end in (-87.3, 88.7))
        above, below = builder.fcmp_ordered(">", x, high), builder.fcmp_ordered("<", x, low)
        inside = builder.select(above, high, builder.select(below, low, x))
        # ln 2 in two parts, the first of few bits, so that its product with n is exact
        coarse = float(np.float32(0.693359375))
        whole = builder.call(rint, [builder.fmul(inside, kind(float(np.float32(1 / math.log(2)))))])
        rest = fused(whole, kind(-coarse), inside)
        rest = fused(whole, kind(float(np.float32(coarse - math.log(2)))), rest)
        series = kind(float(np.float32(1 / math.factorial(7))))
        for power in range(6, -1, -1):
            series = fused(series, rest, kind(float(np.float32(1 / math.factorial(power)))))
        # a NaN has no integer: it comes back as itself below
        exponent = builder.fptosi(builder.select(builder.fcmp_unordered("uno", x, x), kind(0.0), whole), bits)
        # 2¹²⁸ is no float32, and n comes to 128 just before the end: half of it, twice
        half = builder.ashr(exponent, bits(1))
        for part in (half, builder.sub(exponent, half)):
            power_of_two = builder.bitcast(builder.shl(builder.add(part, bits(127)), bits(23)), kind)
            series = builder.fmul(series, power_of_two)
        found = builder.select(above, kind(float("inf")), builder.select(below, kind(0.0), series))
        return builder.select(builder.fcmp_unordered("uno", x, x), x, found)

    return types.float32(types.float32), build


@_instruction
def _place_of(context: Any, numbers: Any) -> Any:
    """The address of an array's first number."""

    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = target.make_array(signature.args[0])(target, builder, arguments[0])
        return builder.ptrtoint(array.data, ir.IntType(64))

    return types.int64(numbers), build


@_instruction
def _tile(
    context: Any, w: Any, row: Any, row_bytes: Any, x: Any, x_bytes: Any, tokens: Any, columns: Any, ahead: Any,
    share: Any, sums: Any,
) -> Any:  # fmt: skip
    """sums[n, k] = w[k, :columns] · x[n, :columns] for up to `AT_ONCE` rows of x and `HEIGHT` rows of w.

    `row`, `x` and `sums` are addresses, the first two each with the bytes from row to row; `columns` is a multiple of
    `LANES`. From the address `ahead` on, the next rows of w are asked for at the pace of the arithmetic: one line for
    every `share` (1 or 2) lines that are read here; for one row of x and float32 that would only take time.

    Written in vectors, since a loop that the compiler makes them of must not ask for memory in between, and with each
    sum in a register of its own: what else is computed beside it does not change its bits.
    """
    narrow = w.dtype == types.uint16

    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, row, row_bytes, x, x_bytes, tokens, columns, ahead, share, sums = arguments
        word = ir.IntType(64)
        case = builder.add(tokens, builder.mul(share, word(AT_ONCE)))
        end = builder.append_basic_block()
        cases = builder.switch(case, end)
        for parts in (1, 2):
            for count in range(1, AT_ONCE + 1):
                block = builder.append_basic_block()
                cases.add_case(word(count + parts * AT_ONCE), block)
                builder.position_at_end(block)
                rows = [builder.add(row, builder.mul(row_bytes, word(k))) for k in range(HEIGHT)]
                given = [builder.add(x, builder.mul(x_bytes, word(n))) for n in range(count)]
                for n, found in enumerate(_products(builder, narrow, rows, given, columns, ahead, parts)):
                    _store(builder, _across(builder, found), builder.add(sums, word(n * HEIGHT * 4)))
                builder.branch(end)
        builder.position_at_end(end)
        return target.get_dummy_value()

    return types.void(w, *[types.int64] * 9), build


def _products(
    builder: Any, narrow: bool, w_rows: Sequence[Any], x_rows: Sequence[Any], columns: Any, ahead: Any, share: int
) -> list[list[Any]]:
    """For each row of x and each of w, from their addresses, a vector that their products are added up in."""
    word, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
    name, kind = f"llvm.fmuladd.v{LANES}f32", ir.FunctionType(vector, [vector] * 3)
    multiply_add = cgutils.get_or_insert_function(builder.module, kind, name)
    lines = max(1, len(w_rows) * LANES * (2 if narrow else 4) // _LINE // share)
    if len(x_rows) == 1 and not narrow:
        lines = 0  # nothing is computed meanwhile, and the processor's own prefetching keeps up
    pairs = [(n, k) for n in range(len(x_rows)) for k in range(len(w_rows))]
    before, body, behind = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed("<", word(0), columns), body, behind)

    builder.position_at_end(body)
    column, line = builder.phi(word), builder.phi(word)
    totals = {pair: builder.phi(vector) for pair in pairs}
    values = [_load(builder, row, column, narrow=False) for row in x_rows]
    for n in range(lines):
        _fetch(builder, builder.add(line, word(n * _LINE)))
    weights = [_load(builder, row, column, narrow=narrow) for row in w_rows]
    added = {(n, k): builder.call(multiply_add, [weights[k], values[n], totals[n, k]]) for n, k in pairs}
    next_column = builder.add(column, word(LANES))
    next_line = builder.add(line, word(lines * _LINE))
    builder.cbranch(builder.icmp_signed("<", next_column, columns), body, behind)

    builder.position_at_end(behind)
    found = {pair: builder.phi(vector) for pair in pairs}
    none = ir.Constant(vector, None)
    again = [(totals[pair], none, added[pair]) for pair in pairs] + [(found[pair], none, added[pair]) for pair in pairs]
    for phi, first, later in [(column, word(0), next_column), (line, ahead, next_line), *again]:
        phi.add_incoming(first, before)
        phi.add_incoming(later, body)
    return [[found[n, k] for k in range(len(w_rows))] for n in range(len(x_rows))]


def _load(builder: Any, row: Any, column: Any, *, narrow: bool) -> Any:
    """`LANES` numbers from `column` on of the row at an address; bfloat16 becomes the float32 it stands for."""
    lane, size = ir.IntType(32), 2 if narrow else 4
    kind = ir.VectorType(ir.IntType(16) if narrow else ir.FloatType(), LANES)
    place = builder.add(row, builder.mul(column, ir.IntType(64)(size)))
    numbers = builder.load(builder.inttoptr(place, kind.as_pointer()), align=size)
    if not narrow:
        return numbers
    wide = ir.VectorType(lane, LANES)
    bits = builder.shl(builder.zext(numbers, wide), ir.Constant(wide, [16] * LANES))
    return builder.bitcast(bits, ir.VectorType(ir.FloatType(), LANES))


def _store(builder: Any, numbers: Any, address: Any) -> None:
    builder.store(numbers, builder.inttoptr(address, numbers.type.as_pointer()), align=4)


def _fetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, which nobody waits for; an address of nothing does no harm."""
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    place = builder.inttoptr(address, cgutils.voidptr_t)
    builder.call(function, [place, number(0), number(3), number(1)])  # to read, kept close, data


def _across(builder: Any, vectors: Any) -> Any:
    """The sums across each of four vectors, as one of four."""

    def taken(first: Any, second: Any, lanes: Sequence[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        return builder.shuffle_vector(first, second, mask)

    def halved(vector: Any) -> Any:
        for width in (16, 8):
            if vector.type.count == width:
                low, high = taken(vector, vector, range(width // 2)), taken(vector, vector, range(width // 2, width))
                vector = builder.fadd(low, high)
        return vector

    a, b, c, d = map(halved, vectors)
    ab = builder.fadd(taken(a, b, (0, 4, 2, 6)), taken(a, b, (1, 5, 3, 7)))
    cd = builder.fadd(taken(c, d, (0, 4, 2, 6)), taken(c, d, (1, 5, 3, 7)))
    return builder.fadd(taken(ab, cd, (0, 1, 4, 5)), taken(ab, cd, (2, 3, 6, 7)))


if sys.platform.startswith("linux"):
    _core = types.ExternalFunction("sched_getcpu", types.int32())
else:

    @_compiled
    def _core() -> int:
        """Nobody tells: every thread may be on this core."""
        return 0


@_compiled
def _meet(counter: Integers, thread: int, threads: int, meetings: int) -> int:
    """Wait until all threads have come; returns the number of meetings so far.

    `counter` [1 + threads]: arrivals, then the core of each thread at its last one. The core is offered only where
    another thread may need it: one that has not begun, or was on this core. Whoever yields besides gives all of its
    slice away, also to what is nicer, at each of a hundred meetings per token: ten times as long beside a training job.
    """
    meetings += 1
    if threads == 1:
        return meetings
    counter[1 + thread] = _core()
    _arrive(counter)
    spins = 0
    while _arrived(counter) < meetings * threads:
        spins += 1
        if spins % _SPINS == 0 and (meetings == 1 or spins > _MOST_SPINS or _share_a_core(counter, thread, threads)):
            _yield()
    return meetings


@_compiled
def _share_a_core(counter: Integers, thread: int, threads: int) -> bool:
    here = _core()
    found = False
    for other in range(threads):
        found = found or (other != thread and counter[1 + other] == here)
    return found


@_compiled
def _share(number: int, thread: int, threads: int) -> tuple[int, int]:
    """The half-open range of rows [first, last) of a thread; borders at multiples of four."""
    quarter = (number + 3) // 4
    return min(number, thread * quarter // threads * 4), min(number, (thread + 1) * quarter // threads * 4)


@_compiled
def dots(w: Floats, x: Floats, y: Floats, first: int, last: int, start: int) -> None:
    """y[r, start + i] = w[i] · x[r] for first ≤ i < last; w [n, k] float32, or bfloat16 as uint16.

    The same bits for a token and a row of w, whichever others there are and however the rows are shared.
    """
    count, width = x.shape
    columns = width // LANES * LANES
    passes = (count + AT_ONCE - 1) // AT_ONCE
    row_bytes, x_bytes = width * w.itemsize, width * x.itemsize
    sums = np.empty((AT_ONCE, HEIGHT), F)
    i = first
    while i < last:
        # a row that is left over stands for all of the tile
        height, apart = (HEIGHT, row_bytes) if i + HEIGHT <= last else (1, 0)
        row = _place_of(w) + i * row_bytes
        r = 0
        for done in range(passes):
            tokens = (count - r) // (passes - done)
            ahead = row + (HEIGHT + done % 2 * HEIGHT // 2) * row_bytes
            place = _place_of(x) + r * x_bytes
            _tile(w, row, apart, place, x_bytes, tokens, columns, ahead, min(passes, 2), _place_of(sums))
            for n in range(tokens):
                for k in range(height):
                    y[r + n, start + i + k] = sums[n, k] + _rest(w, x, i + k, r + n, columns)
            r += tokens
        i += height


@_compiled
def _rest(w: Floats, x: Floats, i: int, r: int, columns: int) -> np.float32:
    """w[i, columns:] · x[r, columns:], the part that fills no vector."""
    total = F(0)
    for j in range(columns, x.shape[1]):
        total += _wide(w[i, j]) * x[r, j]
    return total


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
    """y[r, first:last] += inner[r] · lora_B, for each module of the group with its own outputs and ranks.

    The outputs stand beside one another in lora_B [ranks, out], so nothing is summed across the lanes of a vector.
    """
    blocks = carray(_pointer(part[BLOCKS]), (part[PARTS], 5), np.int64)
    used = np.empty(part[RANKS], np.int64)
    for block in range(blocks.shape[0]):
        start, end, low, high = blocks[block, 0], blocks[block, 1], blocks[block, 2], blocks[block, 3]
        left, right = max(first, start), min(last, end)
        if left >= right:
            continue
        lora_B = carray(_pointer(blocks[block, 4]), (high - low, end - start), F)
        for r in range(y.shape[0]):
            count = 0
            for q in range(low, high):
                if inner[r, q] != F(0):  # most mixes leave most adapters out
                    used[count] = q - low
                    count += 1
            _add_rows(lora_B, left - start, inner[r, low:high], used[:count], y[r, left:right])


@_compiled
def _add_rows(matrix: Floats, start: int, factors: Floats, used: Integers, y: Floats) -> None:
    """y [n] += factors[q] · matrix[q, start : start + n] for each q of `used`, four at a time to write y less often."""
    end = start + len(y)
    k = 0
    while k + 4 <= len(used):
        q0, q1, q2, q3 = used[k], used[k + 1], used[k + 2], used[k + 3]
        f0, f1, f2, f3 = factors[q0], factors[q1], factors[q2], factors[q3]
        w0, w1, w2, w3 = matrix[q0, start:end], matrix[q1, start:end], matrix[q2, start:end], matrix[q3, start:end]
        for i in range(len(y)):
            y[i] += (f0 * w0[i] + f1 * w1[i]) + (f2 * w2[i] + f3 * w3[i])
        k += 4
    while k < len(used):
        f0, w0 = factors[used[k]], matrix[used[k], start:end]
        for i in range(len(y)):
            y[i] += f0 * w0[i]
        k += 1


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
    """active = activation(gate) · up for the columns `first` to `last` of gate_up [R, 2I].

    Both activations are the gate times a sigmoid: of itself, or of what GELU's tanh is taken of, twice.
    """
    width = active.shape[1]
    for r in range(active.shape[0]):
        gates, ups, found = gate_up[r, first:last], gate_up[r, width + first : width + last], active[r, first:last]
        for i in range(last - first):
            gate = gates[i]
            z = gate
            if kind == GELU_TANH:
                z = F(2 * 0.7978845608028654) * (gate + F(0.044715) * gate * gate * gate)
            found[i] = gate / (F(1) + _exp(-z)) * ups[i]


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
    scores: Floats, order: Integers,
) -> None:  # fmt: skip
    """result [D] = softmax(scale · query · keys) · values over the positions `start` to `length`; with a `cap` above 0
    a score is cap · tanh(score / cap). `scores` [1, capacity] is to work in, `order` [capacity] counts from 0."""
    width, seen = query.shape[0], length - start
    dots(keys[start:length], query.reshape(1, width), scores, 0, seen, 0)
    shares, highest, whole = scores[0, :seen], F(-np.inf), F(0)
    for t in range(seen):
        score = shares[t] * scale
        if cap > F(0):
            score = np.tanh(score / cap) * cap
        shares[t] = score
        highest = max(highest, score)
    for t in range(seen):
        share = _exp(shares[t] - highest)
        shares[t] = share
        whole += share
    for t in range(seen):
        shares[t] *= F(1) / whole
    result[:] = F(0)
    _add_rows(values[start:length], 0, shares, order[:seen], result)


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
        meetings = _meet(counter, thread, threads, meetings)
        _spread(gate_up_part, inner, gate_up, first, last)
        _spread(gate_up_part, inner, gate_up, intermediate + first, intermediate + last)
    _activate(gate_up, activation, active, first, last)
    meetings = _meet(counter, thread, threads, meetings)

    first, last = _share(added.shape[1], thread, threads)
    _product(down_part, active, added, first, last)
    if _mixes(down_part, coefficients):
        _inner(down_part, coefficients, rows, active, inner, thread, threads)
        meetings = _meet(counter, thread, threads, meetings)
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
            scores[r, e] = _exp(scores[r, e] - highest)
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
def _of_expert(address: int, narrow: int, height: int, x: Floats, y: Floats, first: int, last: int, start: int) -> None:
    """y[:, start + i] = w[i] · x for first ≤ i < last, w an expert's matrix [height, x's width] at `address`."""
    shape = (height, x.shape[1])
    if narrow != 0:
        dots(carray(_pointer(address), shape, np.uint16), x, y, first, last, start)
    else:
        dots(carray(_pointer(address), shape, F), x, y, first, last, start)


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
    weights = carray(_pointer(row[EXPERT_WEIGHTS]), (experts, 3), np.int64)
    first, last = _share(experts, thread, threads)
    dots(carray(_pointer(row[ROUTER]), (experts, width), F), x, router, first, last, 0)
    meetings = _meet(counter, thread, threads, meetings)

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
            given, found = gathered[start:end], gate_up[start:end]
            _of_expert(weights[expert, 0], narrow, intermediate, given, found, first, last, 0)
            _of_expert(weights[expert, 1], narrow, intermediate, given, found, first, last, intermediate)
    _activate(gate_up, activation, active, first, last)
    meetings = _meet(counter, thread, threads, meetings)

    first, last = _share(width, thread, threads)
    for expert in range(experts):
        start, end = starts[expert], starts[expert + 1]
        if start < end:
            _of_expert(weights[expert, 2], narrow, width, active[start:end], outer[start:end], first, last, 0)
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
    R], `coefficients` [B or 0, N], `counter` [1 + threads] zero; attention scores are multiplied by `scale` and capped
    by `cap` (0: not), what a block adds is multiplied by `residual`; then six arrays [R, …] to work in, all ranks in
    the last, and two of experts, scores [R, E] and outputs [R·K, H] (`gate_up` and `active` have R·K rows then, too),
    None for a base without: then nothing of experts is compiled. All threads must call it.
    """
    count, width = hidden.shape
    head_dim = kv.shape[5]
    x = np.empty((count, width), F)
    scores, order = np.empty((1, kv.shape[4]), F), np.arange(kv.shape[4])
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
            meetings = _meet(counter, thread, threads, meetings)
            _spread(qkv_part, inner, qkv, first, last)
        meetings = _meet(counter, thread, threads, meetings)

        if row[WHOLE_NORM] != 0:
            for r in range(thread, count, threads):
                _norm_whole(qkv, row[QUERY_NORM], row[KEY_NORM], heads * head_dim, kv_heads * head_dim, eps, r)
            meetings = _meet(counter, thread, threads, meetings)

        each = heads + 2 * kv_heads
        for job in range(thread, count * each, threads):
            r, head = job // each, job % each
            b, spot = rows[r], positions[r]
            norm = 0
            if row[WHOLE_NORM] == 0:
                norm = row[QUERY_NORM] if head < heads else row[KEY_NORM]
            _place(qkv, r, head, heads, kv_heads, norm, keys, values, b, spot, cos, sin, row[ROPE], eps)
        meetings = _meet(counter, thread, threads, meetings)

        for job in range(thread, count * heads, threads):
            r, head = job // heads, job % heads
            b, kv_head = rows[r], head * kv_heads // heads
            query = qkv[r, head * head_dim : (head + 1) * head_dim]
            result = mixed[r, head * head_dim : (head + 1) * head_dim]
            length = positions[r] + 1
            start = max(0, length - row[WINDOW]) if row[WINDOW] > 0 else 0
            _attend(query, keys[b, kv_head], values[b, kv_head], start, length, scale, cap, result, scores, order)
        meetings = _meet(counter, thread, threads, meetings)

        _product(out_part, mixed, added, own, own_last)
        if _mixes(out_part, coefficients):
            _inner(out_part, coefficients, rows, mixed, inner, thread, threads)
            meetings = _meet(counter, thread, threads, meetings)
            _spread(out_part, inner, added, own, own_last)
        if row[ATTENTION_OUT_NORM] != 0:
            meetings = _meet(counter, thread, threads, meetings)
            _norm(added, row[ATTENTION_OUT_NORM], eps, x)
            _add(hidden, x, residual, own, own_last)
        else:
            _add(hidden, added, residual, own, own_last)
        meetings = _meet(counter, thread, threads, meetings)

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
            meetings = _meet(counter, thread, threads, meetings)
            _norm(added, row[MLP_OUT_NORM], eps, x)
            _add(hidden, x, residual, own, own_last)
        else:
            _add(hidden, added, residual, own, own_last)
        meetings = _meet(counter, thread, threads, meetings)


@_compiled
def project(thread: int, threads: int, counter: Integers, weight: Floats, x: Floats, y: Floats) -> None:
    """y [R, V] = x [R, H] · weightᵀ [V, H]; each thread does its own share."""
    first, last = _share(weight.shape[0], thread, threads)
    dots(weight, x, y, first, last, 0)
