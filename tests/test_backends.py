"""Backend selection, the operations of each backend, and the errors if one cannot be used."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from dnn import backends
from dnn.backends import (
    Backend,
    BackendUnavailableError,
    available_backends,
    backend_of,
    base,
    cupy_backend,
    get_backend,
    use_backend,
)


def test_numpy_is_the_default():
    assert get_backend().name == "numpy"


def test_the_environment_variable_is_read_at_each_call(monkeypatch):
    monkeypatch.setenv("DNN_BACKEND", "standin")
    assert get_backend().name == "standin"
    monkeypatch.setenv("DNN_BACKEND", " numpy ")
    assert get_backend().name == "numpy"
    monkeypatch.setenv("DNN_BACKEND", "")
    assert get_backend().name == "numpy"


def test_a_name_in_the_call_comes_before_use_backend_and_that_before_the_environment(monkeypatch):
    monkeypatch.setenv("DNN_BACKEND", "no such thing")
    use_backend("standin")
    assert get_backend().name == "standin"
    assert get_backend("numpy").name == "numpy"
    use_backend(None)
    with pytest.raises(BackendUnavailableError, match="no such thing"):
        get_backend()


def test_use_backend_restores_the_previous_choice_even_after_an_error():
    with use_backend("standin") as outer:
        assert outer is get_backend() and outer.name == "standin"
        with pytest.raises(ZeroDivisionError), use_backend("numpy"):
            assert get_backend().name == "numpy"
            raise ZeroDivisionError
        assert get_backend().name == "standin"
    assert get_backend().name == "numpy"


def test_use_backend_leaves_the_choice_if_the_new_one_cannot_be_used():
    use_backend("standin")
    with pytest.raises(BackendUnavailableError):
        use_backend("nowhere")
    assert get_backend().name == "standin"


def test_an_unknown_backend_is_reported_with_the_choices():
    with pytest.raises(BackendUnavailableError, match=r"unknown backend 'tpu': choose one of numpy, cupy, .*auto"):
        get_backend("tpu")


def test_a_backend_is_created_once():
    assert get_backend("numpy") is get_backend("numpy")


def test_register_adds_a_backend_and_its_loader_explains_failures(monkeypatch):
    monkeypatch.setattr(backends, "_loaders", dict(backends._loaders))

    def broken() -> Backend:
        raise BackendUnavailableError("backend 'broken': by design")

    backends.register("broken", broken)
    with pytest.raises(BackendUnavailableError, match="by design"):
        get_backend("broken")
    assert "broken" not in available_backends()
    assert {"numpy", "standin"} <= set(available_backends())


def test_auto_selects_numpy_if_cupy_cannot_be_used_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_loaders", dict(backends._loaders))
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(base, "_logged", set())

    def missing() -> Backend:
        raise BackendUnavailableError("no GPU here")

    backends.register("cupy", missing)
    with caplog.at_level(logging.WARNING):
        assert get_backend("auto").name == "numpy"
        get_backend("auto")
    assert [record.message for record in caplog.records] == ["DNN_BACKEND=auto selects numpy (no GPU here)"]


def test_auto_selects_cupy_if_it_works(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_loaders", dict(backends._loaders))
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(base, "_logged", set())
    working = get_backend("standin")
    backends.register("cupy", lambda: working)
    with caplog.at_level(logging.WARNING):
        assert get_backend("auto") is working
    assert "auto selects standin" in caplog.text


@pytest.mark.skipif("cupy" in available_backends(), reason="cupy works here")
def test_cupy_without_a_gpu_names_the_wheel_the_driver_or_the_device():
    with pytest.raises(BackendUnavailableError) as error:
        get_backend("cupy")
    message = str(error.value)
    assert "\n" not in message and "backend 'cupy'" in message
    assert any(cause in message for cause in ("wheel is not installed", "driver", "CUDA device"))


def test_cupy_without_its_wheel_says_what_to_install():
    # a new interpreter without cupy, whatever is installed here
    code = (
        "import sys, importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'cupy' else find(name, *rest)\n"
        "from dnn import backends\n"
        "backends.get_backend('cupy')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "the cupy wheel is not installed: pip install 'cupy-cuda13x[ctk]" in last and "'cupy-cuda12x[ctk]" in last


def test_cupy_without_cudas_libraries_says_what_to_install(monkeypatch):
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError)
    cupy = ModuleType("cupy")
    cupy.__spec__ = ModuleSpec("cupy", None)
    cupy.cuda, cupy.ones = SimpleNamespace(runtime=runtime), np.ones
    cupy.dot = lambda a, b: SimpleNamespace(get=lambda: None)
    monkeypatch.setitem(sys.modules, "cupy", cupy)

    def missing() -> None:
        raise RuntimeError('Failure finding "libcublas.so": No such file\nin any of these places')

    monkeypatch.setattr(cupy_backend, "load", missing)
    expected = r"are not usable \(Failure finding \"libcublas.so\": No such file\): pip install 'cupy-cuda13x"
    with pytest.raises(BackendUnavailableError, match=expected):
        cupy_backend._usable_cupy()
    monkeypatch.setattr(cupy_backend, "load", lambda: None)
    assert cupy_backend._usable_cupy() is cupy


# ------------------------------------------------------------------------------------- every backend


def test_arrays_go_there_and_back(backend: Backend):
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    array = backend.asarray(host)
    assert backend.owns(array) and backend_of(array) is backend
    assert array.dtype == np.float32 and array.shape == (2, 3)
    back = backend.to_numpy(array)
    assert type(back) is np.ndarray and back.dtype == np.float32
    np.testing.assert_array_equal(back, host)
    assert backend.asarray(array) is array
    assert backend.asarray(array, np.float64).dtype == np.float64
    np.testing.assert_array_equal(backend.to_numpy(backend.asarray([[1, 2]], np.float32)), [[1, 2]])
    assert backend.to_numpy(host) is host


def test_new_arrays_are_contiguous_and_zeros_are_zero(backend: Backend):
    for shape in (4, (2, 3), (0, 3)):
        for array in (backend.empty(shape, np.float32), backend.zeros(shape, np.float32)):
            assert array.flags.c_contiguous and array.dtype == np.float32
            assert array.shape == np.empty(shape).shape
        assert not backend.to_numpy(backend.zeros(shape, np.float32)).any()


def test_a_backend_describes_itself(backend: Backend):
    free, total = backend.memory()
    assert 0 < free <= total
    assert backend.name in repr(backend) and backend.device in repr(backend)
    with backend.stream():
        array = backend.asarray(np.ones(3))
    backend.synchronize()
    np.testing.assert_array_equal(backend.to_numpy(array), np.ones(3))


def test_backend_of_refuses_other_objects():
    with pytest.raises(TypeError, match=r"expected an array of one of numpy, .*got list"):
        backend_of([1, 2])
