"""Every optimizer in one launch over the flat buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dnn.backends.base import Array
from dnn.backends.kernels.compiler import Compiler, Elementwise


def sgd(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise("sgd", "T grad, raw T learning_rate", "T theta", "theta -= grad * learning_rate[0]")
    )

    def sgd(xp: Any, theta: Array, grad: Array, learning_rate: Array, *, scratch: Array) -> None:
        kernel(grad, learning_rate, theta)

    return sgd


def momentum(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise(
            "momentum",
            "T grad, raw T learning_rate, raw T momentum",
            "T theta, T velocity",
            "velocity = velocity * momentum[0] + grad; theta -= velocity * learning_rate[0]",
        )
    )

    def momentum(
        xp: Any, theta: Array, grad: Array, velocity: Array, learning_rate: Array, momentum: Array, *, scratch: Array
    ) -> None:
        kernel(grad, learning_rate, momentum, theta, velocity)

    return momentum


def adam(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise(
            "adam",
            "T grad, raw T step_size, raw T epsilon, raw T beta1, raw T beta2",
            "T theta, T m, T v",
            """
            m = m * beta1[0] + grad;
            v = v * beta2[0] + grad * grad;
            theta -= m / (sqrt(v) + epsilon[0]) * step_size[0]
            """,
        )
    )

    def adam(
        xp: Any,
        theta: Array,
        grad: Array,
        m: Array,
        v: Array,
        step_size: Array,
        epsilon: Array,
        beta1: Array,
        beta2: Array,
        *,
        scratch: Array,
    ) -> None:
        kernel(grad, step_size, epsilon, beta1, beta2, theta, m, v)

    return adam


def adam_factors(compiler: Compiler) -> Callable[..., None]:
    kernel = compiler.elementwise(
        Elementwise(
            "adam_factors",
            "raw float64 learning_rate, float64 eps, raw float64 betas, raw float64 one_minus_betas, "
            "raw float64 decays",
            "raw float64 powers, raw float64 c, raw T step_size, raw T epsilon",
            """
            double root = sqrt((1 - powers[1] * betas[1]) / one_minus_betas[1]);
            c[0] = (1 - powers[0] * betas[0]) / one_minus_betas[0];
            c[1] = root * learning_rate[0];
            powers[0] *= decays[0];
            powers[1] *= decays[1];
            epsilon[0] = T(root * eps);
            step_size[0] = T(c[1] / c[0])
            """,
        )
    )

    def adam_factors(
        xp: Any,
        learning_rate: Array,
        eps: float,
        betas: Array,
        one_minus_betas: Array,
        decays: Array,
        *,
        powers: Array,
        c: Array,
        c1: Array,
        c2: Array,
        step_size: Array,
        epsilon: Array,
    ) -> None:
        kernel(learning_rate, eps, betas, one_minus_betas, decays, powers, c, step_size, epsilon, size=1)

    return adam_factors


FACTORIES = {"sgd": sgd, "momentum": momentum, "adam": adam, "adam_factors": adam_factors}
