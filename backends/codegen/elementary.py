"""The elementary functions, decomposed once into operations that every target has.

Each function is called either with arrays of `xp` or with symbolic arrays, which the code generator turns into the body
of a loop: there is no control flow on values, no table and no conversion that could meet a value out of range. Where a
power of two is needed, it is put together from bits.

The targets may contract a * b + c into one fused multiply-add; NumPy does not. The error bounds hold both ways, in
units in the last place, against mpmath on dense samples (tests/test_elementary.py). The targets must not reassociate.
The polynomials are minimax fits (Remez) of this project unless a source is named.

Arguments outside the domain give what NumPy gives; on the way there, NumPy arrays may warn of an overflow where NumPy's
own function warns as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any

_LN2 = 0.6931471805599453
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class _Format:
    """What differs between the two formats. Polynomials have their lowest coefficient first."""

    number: type
    word: type  # an unsigned integer of the same size
    mantissa: int  # stored bits of the mantissa
    bias: int  # of the exponent
    three_quarters: int  # the bits of 3/4
    ln2_high: float  # times any exponent it is exact; below ln 2, so that ln2_low > 0 and -0.0 keeps its sign
    ln2_low: float
    exp_range: tuple[float, float]  # exp is 0 below and inf above
    expm1_low: float  # expm1 is -1 below
    tanh_high: float  # tanh is 1 above
    exp_terms: tuple[float, ...]  # (exp(r) - 1 - r) / r**2 on |r| <= ln(2)/2
    expm1_terms: tuple[float, ...]  # the same on [ln(3/4), ln(3/2)]
    tanh_terms: tuple[float, ...]  # (tanh(r)/r - 1) / r**2 in r**2, on |r| <= 0.375 ln(2)
    sin_terms: tuple[float, ...]  # (sin(r)/r - 1) / r**2 in r**2, on |r| <= pi/4
    cos_terms: tuple[float, ...]  # (cos(r) - 1 + r**2/2) / r**4, the same
    log_terms: tuple[float, ...]  # float32: (log(1+f) - f) / f**2; float64: (log(1+f)/s - 2) / s**2, s = f/(2+f)

    @property
    def one(self) -> int:
        """The bits of 1.0."""
        return self.bias << self.mantissa

    @property
    def integer(self) -> float:
        """Adding it rounds a float to an integer, which then is in the lowest bits."""
        return 1.5 * 2.0**self.mantissa


_FLOAT32 = _Format(
    number=np.float32,
    word=np.uint32,
    mantissa=23,
    bias=127,
    three_quarters=0x3F400000,
    ln2_high=0.693145751953125,
    ln2_low=1.428606765330187e-06,
    exp_range=(-104.0, 89.0),
    expm1_low=-18.0,
    tanh_high=9.5,
    exp_terms=(0.49999994, 0.16666517, 0.041668106, 0.008369126, 0.0013836247),
    expm1_terms=(0.5000001, 0.16666585, 0.0416596, 0.008358634, 0.0014603282),
    tanh_terms=(-0.33333215, 0.13322687, -0.05122463),
    sin_terms=(-0.16666655, 0.008332189, -0.00019518261),
    cos_terms=(0.041666646, -0.001388731, 2.4432322e-05),
    log_terms=(
        -0.5000006,
        0.3333355,
        -0.24993436,
        0.1997701,
        -0.16822807,
        0.14984722,
        -0.1206905,
        0.05414178,
    ),
)
_FLOAT64 = _Format(
    number=np.float64,
    word=np.uint64,
    mantissa=52,
    bias=1023,
    three_quarters=0x3FE8000000000000,
    ln2_high=6.93147180369123816490e-01,
    ln2_low=1.90821492927058770002e-10,
    exp_range=(-746.0, 710.0),
    expm1_low=-38.0,
    tanh_high=20.0,
    exp_terms=(
        0.5000000000000011,
        0.1666666666666641,
        0.041666666666529274,
        0.008333333333496225,
        0.0013888888943903658,
        0.0001984126950348403,
        2.480149278036405e-05,
        2.755758846437835e-06,
        2.763037285088639e-07,
        2.4999617725393635e-08,
    ),
    expm1_terms=(
        0.49999999999999994,
        0.16666666666667326,
        0.041666666666679605,
        0.008333333332656788,
        0.0013888888885931357,
        0.00019841272051156114,
        2.480157778684723e-05,
        2.7554397616272034e-06,
        2.7588293627210644e-07,
        2.642712132913965e-08,
    ),
    tanh_terms=(
        -0.33333333333332416,
        0.13333333332986677,
        -0.05396825352451294,
        0.021869461580540945,
        -0.008862358044830456,
        0.0035763629743997423,
        -0.0013074530025280208,
    ),
    sin_terms=(
        -0.1666666666666663,
        0.008333333333322113,
        -0.00019841269829585956,
        2.7557313620201625e-06,
        -2.505074757980176e-08,
        1.5896219438946698e-10,
    ),
    cos_terms=(
        0.041666666666666595,
        -0.0013888888888873054,
        2.480158728884877e-05,
        -2.7557314178121286e-07,
        2.0875700650936623e-09,
        -1.1358525451602441e-11,
    ),
    log_terms=(
        0.6666666666667272,
        0.3999999999615737,
        0.28571429396037096,
        0.22222138441667652,
        0.1818635849637763,
        0.1525014028097426,
        0.15368565918552674,
    ),
)


def _format(x: Array) -> _Format:
    return _FLOAT32 if x.dtype == np.float32 else _FLOAT64


def _polynomial(x: Array, terms: tuple[float, ...]) -> Array:
    """Horner's rule, the lowest coefficient first."""
    y = x * terms[-1] + terms[-2]
    for term in terms[-3::-1]:
        y = y * x + term
    return y


def _power_of_two(biased: Array, c: _Format) -> Array:
    """2**(n - bias) from an integer whose lowest bits hold n, whatever is above them."""
    return (biased << c.mantissa).view(c.number)


# ------------------------------------------------------------------------------------------- exponentials


def exp(xp: Any, x: Array) -> Array:
    """e**x = 2**n e**r with n = rint(x / ln 2), |r| <= ln(2)/2. Below 1.2 ulp.

    W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980, chapter 6, with a polynomial instead of
    a quotient.
    """
    return _exp(xp, x, _format(x))


def _exp(xp: Any, x: Array, c: _Format, rest: Array | None = None) -> Array:
    """exp(x + rest), the rest being too small to show in x.

    2**n is two factors: together they reach the subnormal results, and 2**128 or 2**1024.
    """
    low, high = c.exp_range
    x = xp.maximum(xp.minimum(x, high), low)
    integer = c.integer + 2 * c.bias
    shifted = x * _LOG2_E + integer
    n = shifted - integer
    r = x - n * c.ln2_high - n * c.ln2_low
    if rest is not None:
        r = r + rest
    bits = shifted.view(c.word)  # n + 2 bias, which is split into two halves
    half = bits >> 1
    return _polynomial(r, (1.0, 1.0, *c.exp_terms)) * _power_of_two(half, c) * _power_of_two(bits - half, c)


def expm1(xp: Any, x: Array) -> Array:
    """e**x - 1 = 2**n (e**r - 1) + (2**n - 1) with 3/4 <= e**r <= 3/2. Below 1.3 ulp.

    The reduction of exp, with n rounded so that the sum is at least 1/4 in size for every n but 0: it loses no digits.
    Computed as one half of the result, since 2**128 or 2**1024 would overflow.
    """
    c = _format(x)
    y = xp.maximum(xp.minimum(x, c.exp_range[1]), c.expm1_low)
    integer = c.integer + (c.bias - 1)
    shifted = (y * _LOG2_E - 0.0849625) + integer  # 1/2 - log2(4/3)
    n = shifted - integer
    r = y - n * c.ln2_high - n * c.ln2_low
    scale = _power_of_two(shifted.view(c.word), c)
    half = (r + r * r * _polynomial(r, c.expm1_terms)) * scale + (scale - 0.5)
    # x itself for the smallest arguments: halves of subnormal numbers, and -0.0
    return xp.where(xp.absolute(x) < 2.0 ** -(c.mantissa + 3), x, half + half)


def tanh(xp: Any, x: Array) -> Array:
    """tanh(n ln(2)/2 + r) = u / (u + 2 - 2 t) with t = tanh(r), u = (2**n - 1) + t (2**n + 1). Below 1.9 ulp.

    The addition theorem, tanh(n ln(2)/2) being (2**n - 1)/(2**n + 1). For n = 0, the quotient is 2 t / 2. The largest
    n = 0 has r = 0.375 ln 2, so that every other result is above 1/4, where u keeps its digits.
    """
    c = _format(x)
    size = xp.minimum(xp.absolute(x), c.tanh_high)
    integer = c.integer + c.bias
    shifted = (size * (2 * _LOG2_E) - 0.25) + integer
    n = shifted - integer
    r = size - n * (c.ln2_high / 2) - n * (c.ln2_low / 2)
    square = r * r
    t = r + r * square * _polynomial(square, c.tanh_terms)
    scale = _power_of_two(shifted.view(c.word), c)
    u = t * (scale + 1.0) + (scale - 1.0)
    return xp.copysign(u / (u + (2.0 - 2.0 * t)), x)


# --------------------------------------------------------------------------------------------- logarithms


def _exponent(bits: Array, c: _Format, bias: int) -> Array:
    """minus (exponent field - bias), as a float. Minus, so that 0 - 0 gives the zero of log1p its sign."""
    integer = 2.0**c.mantissa  # below it, in its mantissa, the field is a float without a conversion
    return (integer + bias) - ((bits >> c.mantissa) | ((c.mantissa + c.bias) << c.mantissa)).view(c.number)


def _log_near_one(f: Array, c: _Format) -> Array:
    """log(1 + f) for 3/4 <= 1 + f <= 3/2."""
    if c is _FLOAT32:
        return f + f * f * _polynomial(f, c.log_terms)
    s = f / (f + 2.0)
    square = s * s
    return f - s * (f - square * _polynomial(square, c.log_terms))


def _split(xp: Any, x: Array, c: _Format) -> tuple[Array, Array]:
    """f and -k in x = 2**k (1 + f), 3/4 <= 1 + f < 3/2, for finite x > 0."""
    smallest = 2.0 ** (1 - c.bias)
    shift = c.mantissa + 2  # makes subnormal numbers normal; 64 keeps every exponent field positive
    scaled = (xp.minimum(x, smallest) * 2.0**shift).view(c.word) - (shift << c.mantissa)
    bits = xp.where(x < smallest, scaled, x.view(c.word)) + (c.one - c.three_quarters + (64 << c.mantissa))
    f = ((bits & ((1 << c.mantissa) - 1)) + c.three_quarters).view(c.number) - 1.0
    return f, _exponent(bits, c, c.bias + 64)


def log(xp: Any, x: Array) -> Array:
    """log(x) = k ln 2 + log(1 + f), x = 2**k (1 + f), 3/4 <= 1 + f < 3/2. Below 1.6 ulp.

    float64: log(1 + f) = f - s (f - R(s**2)), s = f/(2 + f), as fdlibm's e_log.c (Sun Microsystems, 1993). float32: a
    polynomial, which saves the division.
    """
    c = _format(x)
    f, minus_k = _split(xp, x, c)
    y = _log_near_one(f, c) - minus_k * _LN2
    y = xp.where(x < np.inf, y, x)
    y = xp.where(x == 0.0, -np.inf, y)
    return xp.where(x >= 0.0, y, np.nan)


def log1p(xp: Any, x: Array) -> Array:
    """log(1 + x) = k ln 2 + log(1 + f) with f = 2**-k x - (1 - 2**-k), k as for log(1 + x). Below 1.6 ulp.

    Scaled that way, f is rounded once, so the rounding of 1 + x needs no correction. k = 0 leaves f = x; for k = 1, the
    rounding shows most, and 3/4 <= 1 + f keeps it small.
    """
    c = _format(x)
    bits = (x + 1.0).view(c.word) + (c.one - c.three_quarters)
    field = bits & ((4 * c.bias + 3) << c.mantissa)  # k + bias, in place
    scaled = (x.view(c.word) - (field - c.one)).view(c.number)
    quadruple = (((2 * c.bias + 2) << c.mantissa) - field).view(c.number)  # 4 * 2**-k: never subnormal
    f = scaled - (1.0 - 0.25 * quadruple)
    y = _log_near_one(f, c) - _exponent(bits, c, c.bias) * _LN2
    y = xp.where(x < np.inf, y, x)
    y = xp.where(x == -1.0, -np.inf, y)
    return xp.where(x >= -1.0, y, np.nan)


# ------------------------------------------------------------------------------------------------- powers


_LOG_TERMS = (  # (log(1+f)/s - 2 - (2/3) s**2) / s**4 in s**2, s = f/(2+f), to 66 digits of the logarithm
    0.39999999999999725,
    0.28571428571577334,
    0.22222222191245947,
    0.18181821526199926,
    0.1538440663655096,
    0.13341145076156347,
    0.11592345458069313,
    0.12571536767538544,
)
_TWO_THIRDS = (float.fromhex("0x1.55554p-1"), float.fromhex("0x1.5555555555555p-21"))


def _upper(x: Array) -> Array:
    """The upper 26 of the 53 digits of a float64: products of two such numbers are exact, fused or not."""
    return (x.view(np.uint64) & 0xFFFFFFFFF8000000).view(np.float64)


def _log_twice(xp: Any, x: Array) -> tuple[Array, Array]:
    """log(x) of a float64 > 0 as a sum of two numbers, to about 65 digits.

    k ln 2 + s (2 + z (2/3 + R(z))), s = f/(2 + f), z = s**2, each but R as a sum of 26 digits and the rest.
    """
    c = _FLOAT64
    f, minus_k = _split(xp, x, c)
    d = f + 2.0
    inverse = 1.0 / d
    d_up = _upper(d)
    d_low = (d - d_up) + (f - (d - 2.0))
    s_up = _upper(f * inverse)
    s_low = ((f - s_up * d_up) - s_up * d_low) * inverse
    square = s_up * s_up
    z_up = _upper(square)
    z_low = (square - z_up) + s_low * (s_up + s_up + s_low)
    z = z_up + z_low
    R = z * _polynomial(z, _LOG_TERMS)
    product = z_up * _TWO_THIRDS[0]  # exact, as every product that something is subtracted from
    u_up = _upper(product + 2.0)
    u_low = (product - (u_up - 2.0)) + (z_low * _TWO_THIRDS[0] + z * (R + _TWO_THIRDS[1]))
    t = s_up * u_up
    t_low = s_up * u_low + s_low * (u_up + u_low)
    high = t - minus_k * c.ln2_high
    low = (t - (high + minus_k * c.ln2_high)) + (t_low - minus_k * c.ln2_low)
    total = high + low
    return total, (high - total) + low


def power(xp: Any, x: Array, y: Array) -> Array:
    """x**y = exp(y log|x|), with the sign and the exceptions of pow in C99, annex F. Below 1.5 ulp.

    The logarithm and the product have some twelve digits more than the result: float32 is computed in float64, float64
    in pairs of numbers.
    """
    size = xp.absolute(x)
    if x.dtype == np.float32:
        exponent, rest = y.astype(np.float64) * log(xp, size.astype(np.float64)), None
    else:
        high, low = _log_twice(xp, size)
        high_up, y_up = _upper(high), _upper(y)
        rest = y_up * ((high - high_up) + low) + (y - y_up) * high
        simple = y * xp.where(size < np.inf, xp.where(size == 0.0, -np.inf, high), size)
        ordinary = xp.absolute(simple) < 800.0  # else the result is 0, inf or nan
        exponent = xp.where(ordinary, y_up * high_up, simple)
        rest = xp.where(ordinary, rest, 0.0)
    exponent = xp.where((size == 1.0) | (y == 0.0), 0.0, exponent)  # not nan from 0 times inf
    result = _exp(xp, exponent, _FLOAT64, rest).astype(x.dtype)
    whole = xp.floor(y) == y
    half = y * 0.5
    odd = whole & (xp.floor(half) != half)
    result = xp.where(odd, xp.copysign(result, x), result)
    return xp.where((x < 0.0) & (x > -np.inf) & ~whole, np.nan, result)


# ------------------------------------------------------------------------------------------- sine and cosine

_TURN_BITS = 1163
_TURN = int(  # floor(2**1163 / (2 pi))
    "145f306dc9c882a53f84eafa3ea69bb81b6c52b3278872083fca2c757bd778ac36e48dc74849ba5c00c925dd413a32439fc3bd63962534e7"
    "dd1046bea5d768909d338e04d68befc827323ac7306a673e93908bf177bf250763ff12fffbc0b301fde5e2316b414da3eda6cfd9e4f96136"
    "e9e8c7ecd3cbfd45aea4f758fd7cbe2f67a0e73ef14a525d4d7f6bf623f1aba10ac",
    16,
)
_WORDS = tuple((_TURN >> (64 * i)) & ((1 << 64) - 1) for i in reversed(range(19)))  # behind 53 bits of zero
_LOW_WORD = 0xFFFFFFFF


def _turn_parts() -> tuple[float, ...]:
    """1/(2 pi) as a sum: five numbers of 29 digits, whose products with a float32 a float64 holds, and the rest."""
    parts, rest, bits = [], _TURN, _TURN_BITS - 31
    for _ in range(5):
        parts.append((rest >> bits) / (1 << (_TURN_BITS - bits)))
        rest &= (1 << bits) - 1
        bits -= 29
    return (*parts, rest / (1 << _TURN_BITS))


_TURN_PARTS = _turn_parts()
_TWO_PI = 6.283185307179586
_TWO_PI_UP = 6.283185243606567  # 26 digits
_TWO_PI_DOWN = 6.357301909411278e-08


def _quadrant32(xp: Any, size: Array) -> tuple[Array, None, Array]:
    """r, None and q with size = q pi/2 + r for every float32 >= 0, |r| <= pi/4; the lowest bits of q are right.

    Each part of size / (2 pi) is exact, and so is what is left of it without its whole turns.
    """
    x = size.astype(np.float64)
    turns = [x * part for part in _TURN_PARTS[:-1]]
    turns = [turn - xp.rint(turn) for turn in turns]
    about = turns[0] + turns[1] + turns[2] + turns[3] + turns[4]
    shifted = about * 4.0 + _FLOAT64.integer
    rest = turns[0] - (shifted - _FLOAT64.integer) * 0.25
    for turn in turns[1:]:
        rest = rest + turn
    rest = rest + x * _TURN_PARTS[-1]
    return (rest * _TWO_PI).astype(np.float32), None, shifted.view(np.uint64)


def _whole(bits: Array, unit: float) -> Array:
    """unit times an unsigned integer below 2**52, by its place in the mantissa of 2**52 unit."""
    base = 2.0**52 * unit
    return (bits | int(np.float64(base).view(np.uint64))).view(np.float64) - base


def _quadrant64(xp: Any, size: Array) -> tuple[Array, Array, Array]:
    """r, r_low and q with size = q pi/2 + (r + r_low) for every float64 >= 0, |r| <= pi/4.

    M. Payne and R. Hanek, Radian reduction for trigonometric functions, SIGNUM Newsletter 18, 1983: size = m 2**e is
    multiplied, in integers, with those 192 bits of 1/(2 pi) which decide the fraction of a turn.
    """
    bits = size.view(np.uint64)
    first = (bits >> 52) - 1022  # the first bit that counts: those before it give whole turns
    last = first >> 10  # 1 for the largest numbers, whose first is 1024
    m = ((bits & ((1 << 52) - 1)) | (1 << 52)) << (last & 1)
    first = first - last
    words = [np.uint64(word) for word in _WORDS]
    for level in (3, 2, 1, 0):
        step = 1 << level
        later = (first & (64 << level)) != 0
        words = [xp.where(later, words[i + step], words[i]) for i in range(step + 3)]
    shift = first & 63
    a, b, c = ((words[i] << shift) | (words[i + 1] >> 1 >> (shift ^ 63)) for i in range(3))
    # the upper two words of the product m (a, b, c), modulo whole turns
    m_up, m_low, b_up, b_low, c_up, c_low = m >> 32, m & _LOW_WORD, b >> 32, b & _LOW_WORD, c >> 32, c & _LOW_WORD
    low = m_low * b_low
    middle = m_up * b_low + (low >> 32)
    other = m_low * b_up + (middle & _LOW_WORD)
    lower = (other << 32) | (low & _LOW_WORD)
    upper = m * a + m_up * b_up + (middle >> 32) + (other >> 32)
    second = lower + (m_up * c_up + ((m_up * c_low) >> 32) + ((m_low * c_up) >> 32))
    upper = xp.where(second < lower, upper + 1, upper)
    quadrant = (upper + (1 << 61)) >> 62
    upper = upper - (quadrant << 62)
    # to floats: the sign, then 32 + 32 + 52 bits
    negative = (upper >> 63) != 0
    upper, second = (xp.where(negative, word ^ ((1 << 64) - 1), word) for word in (upper, second))
    large, small = _whole(upper >> 32, 2.0**32), _whole(upper & _LOW_WORD, 1.0)
    turns = large + small
    turns_low = (small - (turns - large)) + _whole(second >> 12, 2.0**-52)
    turns_up = _upper(turns)
    main = turns_up * (_TWO_PI_UP * 2.0**-64)
    rest = (turns - turns_up) * (_TWO_PI * 2.0**-64) + turns_up * (_TWO_PI_DOWN * 2.0**-64)
    rest = rest + turns_low * (_TWO_PI * 2.0**-64)
    r = main + rest
    r_low = rest - (r - main)
    r, r_low = xp.where(negative, -r, r), xp.where(negative, -r_low, r_low)
    inside = size < 0.7853981633974483
    r, r_low = xp.where(inside, size, r), xp.where(inside, 0.0, r_low)
    return xp.where(size < np.inf, r, np.nan), r_low, xp.where(inside, 0, quadrant)


def _sine(xp: Any, size: Array, quarters: int) -> Array:
    """sin(size + quarters pi/2) for size >= 0."""
    c = _format(size)
    r, r_low, quadrant = _quadrant32(xp, size) if c is _FLOAT32 else _quadrant64(xp, size)
    quadrant = quadrant + quarters
    square = r * r
    bend = r * square * _polynomial(square, c.sin_terms)
    sine = r + (bend if r_low is None else bend + r_low)
    cosine = square * (square * _polynomial(square, c.cos_terms) - 0.5) + 1.0
    y = xp.where((quadrant & 1) == 0, sine, cosine)
    return xp.where((quadrant & 2) == 0, y, -y)


def sin(xp: Any, x: Array) -> Array:
    """sin(x) from the sine or the cosine of x - n pi/2, for every finite x. Below 1.6 ulp."""
    return _sine(xp, xp.absolute(x), 0) * xp.copysign(1.0, x)


def cos(xp: Any, x: Array) -> Array:
    """cos(x), as sin. Below 1.6 ulp."""
    return _sine(xp, xp.absolute(x), 1)
