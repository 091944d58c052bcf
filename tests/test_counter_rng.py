"""Philox: the published vectors, the same bits however it is run, and that the words look random."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from traced import KERNELS, WAYS, eagerly, traced

from dnn.backends.counter_rng import philox, random_words
from dnn.backends.plan import schedule

# kat_vectors of Random123: philox4x32, 10 rounds
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.fixture(params=[*WAYS, *KERNELS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != WAYS[0]:
        pytest.importorskip("llvmlite", reason="the extra fast is not installed")
    monkeypatch.setattr(schedule, "MIN_MACS_PER_THREAD", 1)
    return request.param


def numbers(words: str) -> list[int]:
    return [int(word, 16) for word in words.split()]


def of_arrays(xp, x0, x1, x2, x3, k0, k1):
    return philox(xp, (x0, x1, x2, x3), (k0, k1))


def test_the_published_vectors(way):
    counters = [np.array(column, np.uint32) for column in zip(*(numbers(c) for c, _, _ in KNOWN), strict=True)]
    keys = [np.array(column, np.uint32) for column in zip(*(numbers(k) for _, k, _ in KNOWN), strict=True)]
    expected = [np.array(column, np.uint32) for column in zip(*(numbers(w) for *_, w in KNOWN), strict=True)]
    for found in (eagerly(of_arrays, *counters, *keys), traced(way, of_arrays, *counters, *keys)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_published_vectors_with_numbers_as_keys(counter, key, words, way):
    def function(xp, *counter):
        return philox(xp, counter, tuple(numbers(key)))

    counters = [np.full(3, word, np.uint32) for word in numbers(counter)]
    for found in (eagerly(function, *counters), traced(way, function, *counters)):
        assert [list(set(word.tolist())) for word in found] == [[word] for word in numbers(words)]


def words_of(xp, step, *, m, n, seed=7, stream=3):
    words = random_words(xp, m, n, seed, stream, step)
    dropped = random_words(xp, m, n, seed, stream, step, each=lambda word: word < 1 << 30)
    return words, dropped, xp.where(words >= np.uint32(1 << 30), words.astype(np.float32), 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3), (3, 1), (4, 1), (5, 7), (6, 64), (9, 2), (130, 33)], ids=str)
def test_words_of_a_matrix_are_the_same_however_they_are_computed(shape, way):
    m, n = shape
    for step in (0, 5 + (9 << 32)):
        step = np.array([step])
        expected = eagerly(words_of, step, m=m, n=n)
        assert expected[0].shape == shape and expected[0].dtype == np.uint32
        for found, of_numpy in zip(traced(way, words_of, step, m=m, n=n), expected, strict=True):
            np.testing.assert_array_equal(found, of_numpy)


def test_a_word_is_that_of_its_counter():
    """Element (i, j) of a matrix of 9 rows, of which a quarter is 3."""
    step = 5 + (9 << 32)
    words = random_words(np, 9, 4, 7, 3, np.array([step]))
    for i, j in ((0, 0), (2, 1), (3, 0), (8, 3)):
        counter = tuple(np.array([part], np.uint32) for part in (i % 3 * 4 + j, 0, 5, 9))
        assert words[i, j] == philox(np, counter, (7, 3))[i // 3][0]


def test_too_many_words_are_refused():
    with pytest.raises(ValueError, match="17179869184 x 1 random numbers"):
        random_words(np, 1 << 34, 1, 7, 3, np.array([0]))


def uniforms(seed=7, stream=3, step=0, shape=(512, 200)) -> np.ndarray:
    return random_words(np, *shape, seed, stream, np.array([step])).astype(np.float64) / 2**32


OTHERS = [{}, {"step": 1}, {"step": 1 << 32}, {"stream": 4}, {"seed": 8}, {"seed": 7 + (1 << 31)}, {"stream": 0}]


def test_words_look_random():
    U = uniforms()
    n = U.size
    assert abs(U.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n) and abs(U.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / n)
    counts = np.bincount((U.reshape(-1) * 256).astype(int), minlength=256)
    assert abs(((counts - n / 256) ** 2 / (n / 256)).sum() - 255) < 5 * np.sqrt(2 * 255)
    bits = np.unpackbits(random_words(np, 512, 200, 7, 3, np.array([0])).view(np.uint8)).reshape(-1, 32)
    assert (np.abs(bits.mean(axis=0) - 0.5) < 5 * np.sqrt(0.25 / n)).all()
    for lag in (1, 2, 200, 128 * 200):  # neighbours, rows, and the words of one counter
        pairs = np.corrcoef(U.reshape(-1)[:-lag], U.reshape(-1)[lag:])[0, 1]
        assert abs(pairs) < 5 / np.sqrt(n - lag)


def test_steps_layers_and_seeds_have_words_of_their_own():
    found = [uniforms(**other).reshape(-1) for other in OTHERS]
    for a, b in combinations(found, 2):
        assert (a != b).mean() > 0.999
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size)
