"""The fused kernels: each against its specification on the CPU, and compiled for real GPUs."""

from __future__ import annotations

import glob
import inspect
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from gpp import Gpp
from ml_dtypes import bfloat16

import dnn
from dnn import functional
from dnn.backends import Backend
from dnn.backends.kernels import FACTORIES, Elementwise
from dnn.backends.kernels.compiler import FOLDER
from dnn.backends.kernels.products import gemm_arguments
from dnn.data import prepare
from dnn.step import TrainStep

UNTOUCHED = {"scratch", "index", "column", "predicted", "actual", "row", "extreme", "is_finite", "exponent"}
"""What a kernel need not fill."""

# --------------------------------------------------------------------- cases: the arguments of a call
# For a dtype of 16 bits what stays in float32 then is of the `master`.


def master(dtype: Any) -> Any:
    return np.float32 if np.dtype(dtype).itemsize == 2 else dtype


def linear(draw, dtype) -> dict[str, Any]:
    return {"A_prev": draw(5, 3), "W": draw(4, 3), "b": draw(4), "out": draw(5, 4), "scratch": draw(5, 4)}


def products(draw, dtype) -> dict[str, Any]:
    gradients = {"dW": draw(4, 3), "db": draw(4), "dA_prev": draw(5, 3)}
    return {"dZ": draw(5, 4), "A_prev": draw(5, 3), "W": draw(4, 3), "ones": np.ones(5, dtype), **gradients}


def products_of_the_first_layer(draw, dtype) -> dict[str, Any]:
    return products(draw, dtype) | {"dA_prev": None}


def backward(draw, dtype) -> dict[str, Any]:
    A = abs(draw(5, 4))
    A[0, :2] = 0.0, -0.0
    return {"dA": draw(5, 4), "A": A, "out": draw(5, 4), "scratch": draw(5, 4)}


def gathered(draw, dtype) -> dict[str, Any]:
    out = draw(3, 5)
    return {"source": draw(7, 5), "rows": np.array([6, 0, 6]), "scale": None, "out": out, "scratch": out}


def gathered_labels(draw, dtype) -> dict[str, Any]:
    out = np.zeros((3, 1), np.int64)
    return {
        "source": np.arange(7).reshape(7, 1),
        "rows": np.array([6, 0, 6]),
        "scale": None,
        "out": out,
        "scratch": out,
    }


def gathered_bytes(draw, dtype) -> dict[str, Any]:
    source = np.arange(35, dtype=np.uint8).reshape(7, 5) * 7
    scratch = np.zeros((3, 5), np.uint8)
    return {
        "source": source,
        "rows": np.array([6, 0, 6]),
        "scale": np.dtype(master(dtype)).type(1 / 255),
        "out": draw(3, 5),
        "scratch": scratch,
    }


def gathered_and_cast(draw, dtype) -> dict[str, Any]:
    source, scratch = (draw(m, 5).astype(master(dtype)) for m in (7, 3))
    return {"source": source, "rows": np.array([6, 0, 6]), "scale": None, "out": draw(3, 5), "scratch": scratch}


def lowered(scale: float | None):
    def case(draw, dtype) -> dict[str, Any]:
        source = draw(6, 3).astype(master(dtype)) * 1.1
        if scale is None:
            return {"source": source, "out": draw(6, 3)}
        # the last is infinite in float16
        source[-1, -1] = 1e9
        loss_scale = np.array([scale], source.dtype)
        return {"source": source, "loss_scale": loss_scale, "out": draw(6, 3), "scratch": source.copy()}

    return case


def raised(draw, dtype) -> dict[str, Any]:
    return {"source": draw(6, 3), "out": np.zeros((6, 3), master(dtype))}


def searched(*wrong: float, finite: int = 1):
    def case(draw, dtype) -> dict[str, Any]:
        grad = draw(40)
        grad[: len(wrong)] = wrong
        grad[-1] = np.finfo(np.float16).max
        scratch = {"extreme": draw(1), "is_finite": np.zeros(1, bool)}
        return {"grad": grad, "finite": np.array([finite]), **scratch}

    return case


def unscaled(finite: int):
    def case(draw, dtype) -> dict[str, Any]:
        scaled = draw(40)
        if not finite:
            scaled[:4] = np.inf, -np.inf, np.nan, 0
        loss_scale, out = (np.full(n, 1024, master(dtype)) for n in (1, 40))
        return {"scaled": scaled, "loss_scale": loss_scale, "finite": np.array([finite]), "out": out}

    return case


def scaling(finite: int, good: int, loss_scale: float = 1024):
    def case(draw, dtype) -> dict[str, Any]:
        ints = {name: np.array([n]) for name, n in (("good", good), ("finite", finite), ("exponent", 0))}
        return {"interval": 5, "loss_scale": np.array([loss_scale], dtype), **ints}

    return case


def one_hot_rows(draw, dtype) -> dict[str, Any]:
    labels, starts = np.array([[2], [0], [3], [2]]), np.arange(0, 20, 5).reshape(4, 1)
    index = np.zeros((4, 1), np.int64)
    return {"labels": labels, "starts": starts, "one": np.ones(1, dtype), "out": draw(4, 5), "index": index}


def update(**more):
    def case(draw, dtype) -> dict[str, Any]:
        state = {name: abs(draw(40)) if name == "v" else draw(40) for name in more.get("state", ())}
        one = {name: abs(draw(1)) for name in more.get("one", ("learning_rate",))}
        return {"theta": draw(40), "grad": draw(40), **state, **one, "scratch": draw(40)}

    return case


def factors(draw, dtype) -> dict[str, Any]:
    c, betas = np.zeros(2), np.array([0.9, 0.999])
    return {
        "learning_rate": np.array([0.01]),
        "eps": 1e-8,
        "betas": betas,
        "one_minus_betas": 1 - betas,
        "decays": betas,
        "powers": betas**3,
        "c": c,
        "c1": c[:1],
        "c2": c[1:],
        "step_size": draw(1),
        "epsilon": draw(1),
    }


def factors_of_no_step(draw, dtype) -> dict[str, Any]:
    return factors(draw, dtype) | {"learning_rate": np.zeros(1), "decays": np.ones(2), "powers": np.ones(2)}


def sigmoids(draw, dtype) -> dict[str, Any]:
    Z = draw(6, 3)
    Z[0] = 800, -800, 0
    outputs = {name: draw(6, 3) for name in ("P", "dZ", "losses", "hits")}
    sides = {name: np.zeros((6, 3), bool) for name in ("predicted", "actual")}
    return {"Z": Z, "Y": (draw(6, 3) > 0).astype(dtype), "scale": 1 / 18, **outputs, **sides}


def softmaxes(K: int, extreme: bool = False):
    def case(draw, dtype) -> dict[str, Any]:
        Z = draw(6, K) * 3
        Z[0, :] = 1.5  # all alike: the first is the answer
        if extreme:
            Z[1, :2] = np.finfo(dtype).max, np.finfo(dtype).min
        labels = np.arange(6).reshape(6, 1) % K
        labels[1] = 1
        outputs = {name: draw(6, K) for name in ("P", "dZ")} | {name: draw(6, 1) for name in ("losses", "hits")}
        scratch = {"column": draw(6, 1), "predicted": np.zeros((6, 1), np.int64)}
        return {
            "Z": Z,
            "labels": labels,
            "Y": np.eye(K, dtype=dtype)[labels[:, 0]],
            "ones": np.ones((K, 1), dtype),
            "scale": 1 / 6,
            **outputs,
            **scratch,
        }

    return case


def softmax_alone(draw, dtype) -> dict[str, Any]:
    return {"Z": draw(6, 200) * 3, "ones": np.ones((200, 1), dtype), "out": draw(6, 200), "column": draw(6, 1)}


def tallied(m: int, k: int):
    def case(draw, dtype) -> dict[str, Any]:
        return {
            "losses": abs(draw(m, k)),
            "hits": (draw(m, k) > 0).astype(dtype),
            "weights": np.full(m, 1 / (m * k), dtype),
            "ones_m": np.ones(m, dtype),
            "ones_k": np.ones((k, 1), dtype),
            "loss": draw(1),
            "correct": draw(1),
            "loss_total": np.array([3.5]),
            "correct_total": np.array([17.0]),
            "row": draw(k),
        }

    return case


def squared(draw, dtype) -> dict[str, Any]:
    return {"Z": draw(6, 3), "Y": draw(6, 3), "scale": 2 / 18, "dZ": draw(6, 3), "losses": draw(6, 3)}


CASES = {
    **{name: [linear] for name in ("linear_forward", "linear_relu", "linear_tanh", "linear_sigmoid")},
    "linear_backward": [products, products_of_the_first_layer],
    **{name: [backward] for name in ("relu_backward", "tanh_backward", "sigmoid_backward")},
    "gather": [gathered, gathered_labels, gathered_bytes, gathered_and_cast],
    "one_hot": [one_hot_rows],
    "sgd": [update()],
    "momentum": [update(state=("velocity",), one=("learning_rate", "momentum"))],
    "adam": [update(state=("m", "v"), one=("step_size", "epsilon", "beta1", "beta2"))],
    "adam_factors": [factors, factors_of_no_step],
    "cast": [lowered(None), raised],
    "scaled_cast": [lowered(1024)],
    "find_overflow": [searched(), searched(finite=0), *(searched(x) for x in (np.inf, -np.inf, np.nan))],
    "unscale": [unscaled(1), unscaled(0)],
    "loss_scaling": [scaling(1, 3), scaling(1, 4), scaling(0, 4), scaling(0, 0, 1), scaling(1, 4, 2.0**24)],
    "sigmoid": [lambda draw, dtype: {"Z": draw(6, 3) * 5, "out": draw(6, 3)}],
    "sigmoid_cross_entropy": [sigmoids],
    "squared_error": [squared],
    "softmax": [softmax_alone],
    "softmax_cross_entropy": [softmaxes(2), softmaxes(10), softmaxes(300), softmaxes(5, extreme=True)],
    "tally": [tallied(6, 1), tallied(200, 3)],
}


WITHOUT_16_BITS = {
    *("one_hot", "sigmoid", "sigmoid_cross_entropy", "squared_error", "softmax", "softmax_cross_entropy", "tally"),
    *("sgd", "momentum", "adam", "adam_factors", "loss_scaling"),
}
"""Outputs and updates: float32 in mixed precision too."""


def test_every_kernel_has_a_specification_and_a_case():
    assert FACTORIES.keys() == CASES.keys()
    for name in FACTORIES:
        assert callable(getattr(functional, name))


def arguments_of(name: str, case: int, dtype: Any) -> dict[str, Any]:
    generator = np.random.default_rng(11)
    return CASES[name][case](lambda *shape: generator.standard_normal(shape).astype(dtype), dtype)


def call(function: Any, xp: Any, arguments: dict[str, Any]) -> None:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    assert [parameter.name for parameter in parameters] == list(arguments) or {p.name for p in parameters} == set(
        arguments
    )
    positional = [arguments[p.name] for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: arguments[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
    function(xp, *positional, **named)


def specified(name: str, case: int, dtype: Any) -> dict[str, Any]:
    """What the specification makes of the case; in 16 bits, what it makes of it in float32, rounded once."""
    given = arguments_of(name, case, dtype)
    arrays = {id(value): value for value in given.values() if isinstance(value, np.ndarray)}
    if np.dtype(dtype).itemsize == 2:
        arrays = {
            key: value.astype(master(dtype) if value.dtype == dtype else value.dtype) for key, value in arrays.items()
        }
    expected = {n: arrays.get(id(value), value) for n, value in given.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        call(getattr(functional, name), np, expected)
        return {n: v.astype(given[n].dtype) if isinstance(v, np.ndarray) else v for n, v in expected.items()}


TOLERANCE = {"float16": 2e-3, "bfloat16": 16e-3, "float32": 2e-6, "float64": 1e-14}
"""In 16 bits, four units in the last place."""


ONE_ROUNDING = {"gather", "cast", "scaled_cast", "find_overflow", "unscale", "loss_scaling"}
"""Those that give the specification's bits."""


def assert_same(name: str, results: dict[str, Any], expected: dict[str, Any], dtype: Any) -> None:
    tolerance = 0 if name in ONE_ROUNDING else TOLERANCE[np.dtype(dtype).name]
    for argument, value in expected.items():
        if argument not in UNTOUCHED and isinstance(value, np.ndarray):
            assert results[argument].dtype == value.dtype
            result, value = results[argument].astype(np.float64), value.astype(np.float64)
            np.testing.assert_allclose(result, value, rtol=tolerance, atol=tolerance, err_msg=argument)


EVERY = [(name, case) for name, cases in CASES.items() for case in range(len(cases))]
EVERY_DTYPE = [
    (name, case, dtype)
    for name, case in EVERY
    for dtype in (np.float32, np.float64, np.float16, bfloat16)
    if name not in WITHOUT_16_BITS or np.dtype(dtype).itemsize > 2
]


@pytest.mark.parametrize(
    ("name", "case", "dtype"), EVERY_DTYPE, ids=[f"{name}-{case}-{dtype.__name__}" for name, case, dtype in EVERY_DTYPE]
)
def test_a_kernel_does_what_its_specification_does(name, case, dtype, gpp: Gpp):
    kernel, results = FACTORIES[name](gpp), arguments_of(name, case, dtype)
    own = [p.name for p in inspect.signature(kernel).parameters.values()]
    assert own == [p.name for p in inspect.signature(getattr(functional, name)).parameters.values()]
    call(kernel, np, results)
    assert_same(name, results, specified(name, case, dtype), dtype)


def gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc) -> None:
    """cuBLAS's gemm with alpha 1 and beta 0, by its manual: column-major, c (m, n) = op(a) (m, k) op(b) (k, n)."""

    def matrix(array, rows, columns, leading):
        strides = array.itemsize, array.itemsize * leading
        return np.lib.stride_tricks.as_strided(array, (rows, columns), strides)

    assert lda >= (k if transpose_a else m) and ldb >= (n if transpose_b else k) and ldc >= m
    op_a = matrix(a, k, m, lda).T if transpose_a else matrix(a, m, k, lda)
    op_b = matrix(b, n, k, ldb).T if transpose_b else matrix(b, k, n, ldb)
    matrix(c, m, n, ldc)[...] = op_a @ op_b


@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize("layout_of_a", ["C", "F", "vector"])
@pytest.mark.parametrize(("rows", "k", "columns"), [(4, 3, 5), (1, 3, 5), (4, 1, 5), (4, 3, 1), (1, 1, 1), (1, 3, 1)])
def test_arguments_for_cublas_give_the_product(rows, k, columns, layout_of_a, transposed_b):
    generator = np.random.default_rng(0)
    a = generator.standard_normal((k, rows)).T if layout_of_a == "F" else generator.standard_normal((rows, k))
    b = generator.standard_normal((columns, k)).T if transposed_b else generator.standard_normal((k, columns))
    out = np.full((rows, columns), np.nan)
    if layout_of_a == "vector":
        a, out = a[0], out[0]
    ops_and_sizes, (first, first_ld, second, second_ld, out_ld) = np.split(
        np.array(gemm_arguments(a, b, out), dtype=object), [5]
    )
    gemm(*ops_and_sizes, first, first_ld, second, second_ld, out, out_ld)
    np.testing.assert_allclose(out, np.dot(a, b), atol=1e-14)


def test_the_updates_are_the_specifications_to_the_bit(gpp: Gpp):
    for name in ("sgd", "momentum", "adam"):
        results = arguments_of(name, 0, np.float64)
        call(FACTORIES[name](gpp), np, results)
        np.testing.assert_array_equal(results["theta"], specified(name, 0, np.float64)["theta"])


@pytest.mark.parametrize("name", ["relu_backward", "tanh_backward", "sigmoid_backward", "sigmoid"])
def test_a_kernel_may_write_over_its_input_where_the_specification_may(name, gpp: Gpp):
    results, expected = arguments_of(name, 0, np.float64), specified(name, 0, np.float64)
    results["out"] = results["Z" if name == "sigmoid" else "dA"]
    call(FACTORIES[name](gpp), np, results)
    np.testing.assert_allclose(results["out"], expected["out"], atol=1e-15)


@pytest.mark.parametrize(("name", "case"), EVERY, ids=[f"{name}-{case}" for name, case in EVERY])
def test_a_backends_own_function_does_what_its_specification_does(name, case, backend: Backend):
    for dtype in (np.float32, np.float64, *backend.precisions.values()):
        if name not in WITHOUT_16_BITS or np.dtype(dtype).itemsize > 2:
            check_own_function(name, case, np.dtype(dtype).type, backend)


def check_own_function(name: str, case: int, dtype: Any, backend: Backend) -> None:
    arguments, held = arguments_of(name, case, dtype), {}
    for argument, value in arguments.items():
        # c1 and c2 are halves of c, and out may be scratch: views stay views
        if argument in ("c1", "c2"):
            held[argument] = held["c"][:1] if argument == "c1" else held["c"][1:]
        elif argument == "scratch" and value is arguments.get("out"):
            held[argument] = held["out"]
        else:
            held[argument] = backend.asarray(value) if isinstance(value, np.ndarray) else value
    with np.errstate(over="ignore", invalid="ignore"):
        call(backend.fused(getattr(functional, name)), backend.xp, held)
    results = {n: backend.to_numpy(v) if backend.owns(v) else v for n, v in held.items()}
    assert_same(name, results, specified(name, case, dtype), dtype)


# ------------------------------------------------------------------------------- in a whole training


@pytest.mark.parametrize(
    ("output", "units", "optimizer"),
    [("sigmoid", 1, dnn.SGD(0.1)), ("softmax", 3, dnn.Adam(0.01)), ("linear", 2, dnn.Momentum(0.1))],
)
def test_a_training_on_fused_kernels_is_that_on_numpy(output, units, optimizer, fused_standin):
    generator = np.random.default_rng(0)
    X = generator.integers(0, 256, (50, 4)).astype(np.uint8)
    Y = generator.standard_normal((50, units)) if output == "linear" else generator.integers(0, max(units, 2), 50)
    trained = {}
    for backend in ("numpy", fused_standin):
        network = dnn.Network([4, 6, 5, units], output=output, dtype="float64", seed=3, backend=backend)
        # batches of 16 and a last one of 2
        history = network.fit(X, Y, epochs=2, batch_size=16, optimizer=optimizer, validation_data=(X, Y))
        trained[backend] = network.backend.to_numpy(network.parameters.flat), history.history
    weights, history = trained.pop("numpy")
    own_weights, own_history = trained.popitem()[1]
    np.testing.assert_allclose(own_weights, weights, rtol=0, atol=1e-12)
    assert own_history == {name: pytest.approx(values, abs=1e-12) for name, values in history.items()}


@pytest.mark.parametrize(("optimizer", "updates"), [(dnn.SGD(0.1), 1), (dnn.Momentum(0.1), 1), (dnn.Adam(0.01), 2)])
def test_a_fused_step_is_seven_launches_an_update_and_its_products(optimizer, updates, fused_standin):
    network = dnn.Network([20, 64, 32, 10], output="softmax", backend=fused_standin)
    generator = np.random.default_rng(0)
    examples = prepare(network, generator.standard_normal((32, 20)), np.arange(32) % 10, fitting=True)
    examples = examples.on(network.backend)
    step = TrainStep(network, optimizer.bind(network.parameters), examples, 32)
    step.load(network.backend.asarray(np.arange(32)))
    with standin.device.capture() as counts:
        step()
    # a bias and activation a layer, the loss, the tally, two activations' backward; dW, db and dA are products
    assert dict(counts) == {"launches": 3 + 1 + 1 + 2 + updates, "products": 3 + 3 + 3 + 2}


# ----------------------------------------------------------------------------------- for real GPUs


class Collector:
    """A `Compiler` that only remembers what it was asked for."""

    dot = None

    def __init__(self) -> None:
        self.elementwise_kernels: list[Elementwise] = []
        self.cuda_functions: list[tuple[str, str]] = []

    def elementwise(self, kernel: Elementwise) -> Any:
        self.elementwise_kernels.append(kernel)

    def cuda(self, file: str, function: str) -> Any:
        self.cuda_functions.append((file, function))


def collected() -> Collector:
    collector = Collector()
    for factory in FACTORIES.values():
        factory(collector)
    return collector


def nvrtc_is_here() -> bool:
    if find_spec("cupy") is None:
        return False
    from cupy_backends.cuda.libs import nvrtc

    try:
        nvrtc.getVersion()
    except Exception:  # the library is loaded at the first call, and says in many ways that it is not there
        return False
    return bool(toolkit_headers())


def toolkit_headers() -> list[str]:
    if find_spec("nvidia") is None:
        return []
    import nvidia

    return [folder for path in nvidia.__path__ for folder in glob.glob(os.path.join(path, "*", "include"))]


needs_nvrtc = pytest.mark.skipif(
    not nvrtc_is_here(), reason="the extra kernelcheck (cupy, NVRTC and CUDA's headers) is not installed"
)


def compile_for(architecture: str, source: str, names: tuple[str, ...] = ()) -> None:
    import cupy
    from cupy.cuda.compiler import _NVRTCProgram

    own = Path(cupy.__file__).parent / "_core" / "include"
    headers = [own, *(own / "cupy" / "_cccl").iterdir(), *toolkit_headers()]
    options = (f"-arch=sm_{architecture}", "--std=c++17", "-ftz=true", *(f"-I{folder}" for folder in headers))
    program = _NVRTCProgram(source, "kernel.cu", name_expressions=names or None, method="cubin")
    cubin, _ = program.compile((*options, "--device-as-default-execution-space"))
    assert cubin[:4] == b"\x7fELF"


def text_of(kernel: Elementwise, types: dict[str, str]) -> str:
    """The very text that CuPy would compile for contiguous arrays of these types."""
    import cupy
    from cupy._core import _carray, _kernel, _scalar

    array, indexer, scalar = 1, 2, 3
    compiled = cupy.ElementwiseKernel(kernel.inputs, kernel.outputs, kernel.operation, kernel.name)
    words = [part.split() for part in f"{kernel.inputs}, {kernel.outputs}".split(",")]
    scalars = {"n", "scale", "eps", "interval"}
    infos = [
        _kernel._ArgInfo(scalar, _scalar.CScalar, np.dtype(types.get(kind, kind)), 0, True, True)
        if name in scalars and not raw
        else _kernel._ArgInfo(array, cupy.ndarray, np.dtype(types.get(kind, kind)), 1, True, False)
        for *raw, kind, name in words
    ]
    infos.append(_kernel._ArgInfo(indexer, _carray.Indexer, None, 1, True, False))
    variables = tuple(sorted({(kind, np.dtype(types[kind]).type) for *_, kind, _ in words if kind in types}))
    body = _kernel._get_elementwise_kernel_code(
        tuple(infos), _kernel._TypeMap(variables), compiled.params, kernel.operation, kernel.name, ""
    )
    return f"#include <cupy/complex.cuh>\n#include <cupy/carray.cuh>\n#include <cupy/math_constants.h>\n{body}"


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("kernel", collected().elementwise_kernels, ids=lambda kernel: kernel.name)
def test_an_elementwise_kernel_compiles_for_a_gpu(kernel, architecture):
    types = [("float32", "uint8"), ("float64", "uint8"), ("int64", "int64")][: 3 if kernel.name == "gather" else 2]
    for low in ("float16", "bfloat16"):
        if kernel.name in ("cast", "unscale"):
            types.append(("float32", low))
        if kernel.name not in WITHOUT_16_BITS | {"unscale"}:
            types.append((low, "uint8" if kernel.name == "gather_scaled" else "float32"))
    for T, S in types:
        compile_for(architecture, text_of(kernel, {"T": T, "S": S}))


CUDA_FILES = sorted({file for file, _ in collected().cuda_functions})


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("file", CUDA_FILES)
def test_a_cuda_source_compiles_for_a_gpu(file, architecture):
    names = [
        f"{function}<{T}>" for of, function in collected().cuda_functions if of == file for T in ("float", "double")
    ]
    compile_for(architecture, (FOLDER / file).read_text(), tuple(names))


@needs_nvrtc
def test_a_kernel_that_is_wrong_would_not_compile():
    from cupy.cuda.compiler import CompileException

    wrong = Elementwise("wrong", "T a", "T b", "b = a + no_such_name")
    with pytest.raises(CompileException, match="no_such_name"):
        compile_for("90", text_of(wrong, {"T": "float32"}))
