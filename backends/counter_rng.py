"""Random numbers by counting: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

Four words are a function of a counter and a key: there is no state to keep, and any element of any step is computed by
itself, wherever it is needed. The bits are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
"""What the key's words grow by from round to round."""
_WORD = 0xFFFFFFFF
_ROUNDS = 10


def philox(xp: Any, counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Any, ...]:
    """Four arrays of random words, uint32.

    counter     four arrays or numbers uint32, which are broadcast against each other
    key         two whole numbers, or arrays uint32
    """
    # a word is the low half of 64 bits, whose high half is anything: vector units multiply such halves as they are
    x0, x1, x2, x3 = (word.astype(np.uint64) for word in counter)
    for number in range(_ROUNDS):
        k0, k1 = (_grown(word, number * weyl) for word, weyl in zip(key, _WEYL, strict=True))
        product0, product2 = (x0 & _WORD) * _MULTIPLIERS[0], (x2 & _WORD) * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (product2 >> 32) ^ (x1 ^ k0), product2, (product0 >> 32) ^ (x3 ^ k1), product0
    return tuple(word.astype(np.uint32) for word in (x0, x1, x2, x3))


def _grown(word: Any, by: int) -> Any:
    """A word of the key, modulo 2**32."""
    return (word + by) & _WORD if isinstance(word, int) else word.astype(np.uint64) + by


def random_words(
    xp: Any, rows: int, columns: int, seed: Any, stream: Any, step: Any, each: Any = None, parts: int = 1
) -> Any:
    """A matrix (rows, columns) of random words, uint32; with `each`, of what this function makes of them.

    seed, stream    whole numbers below 2**32, or arrays uint32: what tells a network and a layer from others
    step            int64 (1,): each has other words
    each            gives of an array of words one of results, or a list of so many `parts`

    All four words of a counter are used: with q a quarter of the rows, rounded up, word r of counter (i, j) is the
    element in row r q + i and column j. With parts, q is a quarter of the rows that one part of each word gives.
    """
    number = 4 * parts
    share = -(-rows // number)
    if share * columns > _WORD:
        raise ValueError(f"{rows} x {columns} random numbers: a step has at most {number * _WORD}")
    index = xp.arange(share * columns, dtype=np.uint32).reshape(share, columns)
    low, high = (step & _WORD).astype(np.uint32), (step >> 32).astype(np.uint32)
    words = philox(xp, (index, xp.zeros_like(index), low, high), (seed, stream))
    made = [word if each is None else each(word) for word in words]
    found = made if parts == 1 else [part for of_word in made for part in of_word]
    # few rows need no more than the first of them
    return xp.concatenate(found[: -(-rows // share)], axis=0)[:rows]
