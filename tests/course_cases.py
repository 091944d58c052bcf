"""The assignment's own test cases: what it draws, what it calls, and the digits it prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dnn import course

Give = Callable[[np.ndarray], Any]
"""Moves an array to the backend under test."""


def draws(seed: int, *shapes: tuple[int, int]) -> list[np.ndarray]:
    legacy = np.random.RandomState(seed)
    return [legacy.randn(*shape) for shape in shapes]


def initialize_parameters(give: Give) -> dict[str, Any]:
    return course.initialize_parameters(3, 2, 1)


def initialize_parameters_deep(give: Give) -> dict[str, Any]:
    return course.initialize_parameters_deep([5, 4, 3])


def linear_forward(give: Give) -> dict[str, Any]:
    Z, _ = course.linear_forward(*map(give, draws(1, (3, 2), (1, 3), (1, 1))))
    return {"Z": Z}


def linear_activation_forward(give: Give) -> dict[str, Any]:
    A_prev, W, b = map(give, draws(2, (3, 2), (1, 3), (1, 1)))
    return {f"A_{name}": course.linear_activation_forward(A_prev, W, b, name)[0] for name in ("sigmoid", "relu")}


def L_model_forward_2hidden(give: Give) -> dict[str, Any]:
    X, *tensors = map(give, draws(6, (5, 4), (4, 5), (4, 1), (3, 4), (3, 1), (1, 3), (1, 1)))
    parameters = dict(zip(("W1", "b1", "W2", "b2", "W3", "b3"), tensors, strict=True))
    AL, caches = course.L_model_forward(X, parameters)
    assert len(caches) == 3
    return {"AL": AL}


def compute_cost(give: Give) -> dict[str, Any]:
    return {"cost": course.compute_cost(give(np.array([[0.8, 0.9, 0.4]])), give(np.array([[1, 1, 1]])))}


def compute_cost_v4a(give: Give) -> dict[str, Any]:
    return {"cost": course.compute_cost(give(np.array([[0.8, 0.9, 0.4]])), give(np.array([[1, 1, 0]])))}


def linear_backward(give: Give) -> dict[str, Any]:
    dZ, *cache = map(give, draws(1, (1, 2), (3, 2), (1, 3), (1, 1)))
    return dict(zip(("dA_prev", "dW", "db"), course.linear_backward(dZ, tuple(cache)), strict=True))


def linear_backward_v4a(give: Give) -> dict[str, Any]:
    dZ, *cache = map(give, draws(1, (3, 4), (5, 4), (3, 5), (3, 1)))
    return dict(zip(("dA_prev", "dW", "db"), course.linear_backward(dZ, tuple(cache)), strict=True))


def linear_activation_backward(give: Give) -> dict[str, Any]:
    dA, *linear_cache, Z = map(give, draws(2, (1, 2), (3, 2), (1, 3), (1, 1), (1, 2)))
    return {
        f"{name}.{gradient}": value
        for name in ("sigmoid", "relu")
        for gradient, value in zip(
            ("dA_prev", "dW", "db"),
            course.linear_activation_backward(dA, (tuple(linear_cache), Z), name),
            strict=True,
        )
    }


def L_model_backward(give: Give) -> dict[str, Any]:
    # AL is no sigmoid of the cached Z2, and the Z are no W A + b: only the general route gives these digits
    shapes = (1, 2), (4, 2), (3, 4), (3, 1), (3, 2), (3, 2), (1, 3), (1, 1), (1, 2)
    AL, A0, W1, b1, Z1, A1, W2, b2, Z2 = map(give, draws(3, *shapes))
    return course.L_model_backward(AL, give(np.array([[1, 0]])), [((A0, W1, b1), Z1), ((A1, W2, b2), Z2)])


def update_parameters(give: Give) -> dict[str, Any]:
    shapes = (3, 4), (3, 1), (1, 3), (1, 1)
    parameters = dict(zip(("W1", "b1", "W2", "b2"), map(give, draws(2, *shapes)), strict=True))
    grads = dict(zip(("dW1", "db1", "dW2", "db2"), map(give, draws(3, *shapes)), strict=True))
    return course.update_parameters(parameters, grads, 0.1)


# fmt: off
EXPECTED: dict[Callable[[Give], dict[str, Any]], dict[str, Any]] = {
    initialize_parameters: {
        "W1": [[0.01624345, -0.00611756, -0.00528172], [-0.01072969, 0.00865408, -0.02301539]],
        "b1": [[0.0], [0.0]],
        "W2": [[0.01744812, -0.00761207]],
        "b2": [[0.0]],
    },
    initialize_parameters_deep: {
        "W1": [[0.01788628, 0.0043651, 0.00096497, -0.01863493, -0.00277388],
               [-0.00354759, -0.00082741, -0.00627001, -0.00043818, -0.00477218],
               [-0.01313865, 0.00884622, 0.00881318, 0.01709573, 0.00050034],
               [-0.00404677, -0.0054536, -0.01546477, 0.00982367, -0.01101068]],
        "b1": [[0.0], [0.0], [0.0], [0.0]],
        "W2": [[-0.01185047, -0.0020565, 0.01486148, 0.00236716],
               [-0.01023785, -0.00712993, 0.00625245, -0.00160513],
               [-0.00768836, -0.00230031, 0.00745056, 0.01976111]],
        "b2": [[0.0], [0.0], [0.0]],
    },
    linear_forward: {"Z": [[3.26295337, -1.23429987]]},
    linear_activation_forward: {
        "A_sigmoid": [[0.96890023, 0.11013289]],
        "A_relu": [[3.43896131, 0.0]],
    },
    L_model_forward_2hidden: {"AL": [[0.03921668, 0.70498921, 0.19734387, 0.04728177]]},
    compute_cost: {"cost": 0.41493159961539694},
    compute_cost_v4a: {"cost": 0.2797765635793422},
    linear_backward: {
        "dA_prev": [[0.51822968, -0.19517421], [-0.40506361, 0.15255393], [2.37496825, -0.89445391]],
        "dW": [[-0.10076895, 1.40685096, 1.64992505]],
        "db": [[0.50629448]],
    },
    linear_backward_v4a: {
        "dA_prev": [[-1.15171336, 0.06718465, -0.3204696, 2.09812712],
                    [0.60345879, -3.72508701, 5.81700741, -3.84326836],
                    [-0.4319552, -1.30987417, 1.72354705, 0.05070578],
                    [-0.38981415, 0.60811244, -1.25938424, 1.47191593],
                    [-2.52214926, 2.67882552, -0.67947465, 1.48119548]],
        "dW": [[0.07313866, -0.0976715, -0.87585828, 0.73763362, 0.00785716],
               [0.85508818, 0.37530413, -0.59912655, 0.71278189, -0.58931808],
               [0.97913304, -0.24376494, -0.08839671, 0.55151192, -0.10290907]],
        "db": [[-0.14713786], [-0.11313155], [-0.13209101]],
    },
    linear_activation_backward: {
        "sigmoid.dA_prev": [[0.11017994, 0.01105339], [0.09466817, 0.00949723], [-0.05743092, -0.00576154]],
        "sigmoid.dW": [[0.10266786, 0.09778551, -0.01968084]],
        "sigmoid.db": [[-0.05729622]],
        "relu.dA_prev": [[0.44090989, 0.0], [0.37883606, 0.0], [-0.2298228, 0.0]],
        "relu.dW": [[0.44513824, 0.37371418, -0.10478989]],
        "relu.db": [[-0.20837892]],
    },
    L_model_backward: {
        "dW1": [[0.41010002, 0.07807203, 0.13798444, 0.10502167],
                [0.0, 0.0, 0.0, 0.0],
                [0.05283652, 0.01005865, 0.01777766, 0.0135308]],
        "db1": [[-0.22007063], [0.0], [-0.02835349]],
        "dA1": [[0.12913162, -0.44014127], [-0.14175655, 0.48317296], [0.01663708, -0.05670698]],
        "dW2": [[-0.39202432, -0.13325855, -0.04601089]],
        "db2": [[0.15187861]],
    },
    update_parameters: {
        "W1": [[-0.59562069, -0.09991781, -2.14584584, 1.82662008],
               [-1.76569676, -0.80627147, 0.51115557, -1.18258802],
               [-1.0535704, -0.86128581, 0.68284052, 2.20374577]],
        "b1": [[-0.04659241], [-1.28888275], [0.53405496]],
        "W2": [[-0.55569196, 0.0354055, 1.32964895]],
        "b2": [[-0.84610769]],
    },
}

COSTS = {
    0: 0.7717493284237686, 100: 0.6720534400822914, 200: 0.6482632048575212, 300: 0.6115068816101356,
    400: 0.5670473268366111, 500: 0.5401376634547801, 600: 0.5279299569455267, 700: 0.4654773771766851,
    800: 0.369125852495928, 900: 0.39174697434805344, 1000: 0.31518698886006163, 1100: 0.2726998441789385,
    1200: 0.23741853400268137, 1300: 0.19960120532208644, 1400: 0.18926300388463307, 1500: 0.16118854665827753,
    1600: 0.14821389662363316, 1700: 0.13777487812972944, 1800: 0.1297401754919012, 1900: 0.12122535068005211,
    2000: 0.11382060668633713, 2100: 0.10783928526254133, 2200: 0.10285466069352679, 2300: 0.10089745445261786,
    2400: 0.09287821526472398, 2499: 0.08843994344170202,
}
"""What the four-layer cat classifier of the second assignment costs, by iteration."""
# fmt: on
