"""From words to weights in registers.

A code is not shifted into place. Its bits, where they are in the word, become low mantissa bits of a
float32 with the exponent of 2^23: one `and` and one `or` (one instruction) make the number
2^23 + code 2^at, and one multiply-add with 2^-at removes the 2^23 and the zero point, exactly. The
mantissa has 23 bits, so the first four 4-bit codes (five 3-bit codes) of a word need no shift and the
next ones share one. That is 1.2 integer operations per code, where a shift, an `and` and a conversion
would be 3.
"""

import triton
from triton import language as tl

EXPONENT = 0x4B000000  # of 2^23


@triton.jit
def load_words(at, inside, BITS: tl.constexpr):
    """Three words of each lane; 4-bit weights have one, which is returned three times."""
    LANES: tl.constexpr = 16 if BITS == 4 else 4
    one = tl.load(at, mask=inside, other=0)
    two, three = one, one
    if BITS == 3:
        two = tl.load(at + LANES, mask=inside, other=0)
        three = tl.load(at + 2 * LANES, mask=inside, other=0)
    return one, two, three


@triton.jit
def steps(words, zero, exponent, PLACE: tl.constexpr, BITS: tl.constexpr):
    """Code number PLACE of every lane minus its zero point, float32."""
    one, two, three = words
    if BITS == 4:
        AT: tl.constexpr = PLACE % 4 * 4
        bits = (one >> 16 if PLACE >= 4 else one) & (15 << AT)
    elif PLACE < 30:
        AT: tl.constexpr = PLACE % 5 * 3
        word = one if PLACE < 10 else (two if PLACE < 20 else three)
        bits = (word >> 15 if PLACE % 10 >= 5 else word) & (7 << AT)
    else:
        AT: tl.constexpr = 0
        tops = one if PLACE == 30 else two
        bits = (tops >> 30 & 3) | (three >> (PLACE - 2) & 4)
    number = (bits | exponent).to(tl.float32, bitcast=True)
    # 2^(23 - AT) + zero has at most 24 bits, so nothing is rounded.
    return number * (1.0 / (1 << AT)) - ((1 << (23 - AT)) + zero)


@triton.jit
def _side_by_side(
    words,
    zero,
    exponent,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
):
    """Codes FIRST, FIRST + STEP, ..., COUNT of them, [N, L * COUNT]: all of a lane, then the next."""
    if COUNT == 1:
        codes = steps(words, zero, exponent, FIRST, BITS)
    else:
        even = _side_by_side(words, zero, exponent, FIRST, 2 * STEP, COUNT // 2, BITS)
        odd = _side_by_side(words, zero, exponent, FIRST + STEP, 2 * STEP, COUNT // 2, BITS)
        codes = tl.interleave(even, odd)
    return codes


@triton.jit
def inputs_in_order(
    words, zero, exponent, PART: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr
):
    """Codes minus zero points of WIDTH inputs, part number PART of a block, [N, WIDTH]."""
    LANES: tl.constexpr = 16 if BITS == 4 else 4
    PLACES: tl.constexpr = WIDTH // LANES
    codes = _side_by_side(words, zero, exponent, PART * PLACES, 1, PLACES, BITS)
    codes = tl.reshape(codes, (codes.shape[0], LANES, PLACES))
    return tl.reshape(tl.permute(codes, (0, 2, 1)), (codes.shape[0], WIDTH))


@triton.jit
def group_of(block, PART: tl.constexpr, GROUP: tl.constexpr, groups):
    """The group of a part of a block; past the end, the last one. GROUP is 0 if there is only one."""
    if GROUP == 0:
        g = block * 0
    else:
        g = tl.minimum(block * (128 // GROUP) + PART, groups - 1)
    return g


@triton.jit
def load_zero(zero_ptr, at, inside, BITS: tl.constexpr, HAS_ZERO: tl.constexpr):
    """Zero points, float32; the middle code where none are stored."""
    if HAS_ZERO:
        zero = tl.load(zero_ptr + at, mask=inside, other=0).to(tl.float32)
    else:
        zero = tl.zeros(at.shape, tl.float32) + (1 << (BITS - 1))
    return zero
