"""Scales that a network learns from the data of its first fit: of its inputs and of its targets."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import dnn
from dnn.backends import Backend, get_backend
from dnn.data import examples, prepare, scaling
from dnn.epochs import OF_DATA
from dnn.errors import DataError, ModelFileError, NonFiniteLossError
from dnn.losses import GaussianNLL, Quantile

GENERATOR = np.random.default_rng(8)
M, N = 60, 4
X = GENERATOR.standard_normal((M, N)) * [1, 20, 0.01, 300] + [0, 5, -2, 1000]
X[:3, 1] = 900.0, -400.0, 1e5  # outliers
Y = np.stack([X[:, 0] * 50 + 1000, X[:, 2] * 3, X[:, 3] / 1e4 - 2], axis=1)
SCALES = ["standard", "robust"]


def by_hand(scale: str, given: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """What scikit-learn's StandardScaler makes of it, or the RobustScaler with a smooth clip after it."""
    if scale == "standard":
        return (given - fitted.mean(axis=0)) / fitted.std(axis=0)
    low, middle, high = np.percentile(fitted, (25, 50, 75), axis=0)
    scaled = (given - middle) / (high - low)
    return scaled / np.sqrt(1 + (scaled / 3) ** 2)


def network_of(units: int = 1, **settings: Any) -> dnn.Network:
    settings = {"output": "linear", "dtype": "float64", "activation": "tanh", "seed": 5} | settings
    return dnn.Network([N, 6, units], **settings)


def fitted(network: dnn.Network, given: Any = X, targets: Any = None, **settings: Any) -> dnn.Network:
    targets = X[:, :1] / 3 if targets is None else targets
    network.fit(given, targets, **({"epochs": 3, "batch_size": 16, "verbose": False} | settings))
    return network


def learned(scale: str, given: Any, dtype: str = "float64", n: int = N) -> dict[str, np.ndarray]:
    network = dnn.Network([n, 1], output="linear", input_scale=scale, dtype=dtype)
    return network.fit(given, np.arange(len(given)), epochs=1, verbose=False) and network.statistics


def as_the_network_sees(network: dnn.Network, given: Any) -> np.ndarray:
    return network.backend.to_numpy(prepare(network, given).X)


# ---------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
def test_a_learned_scale_is_as_data_scaled_beforehand(scale: str, dtype: str, tolerance: float, backend: Backend):
    network = fitted(network_of(input_scale=scale, dtype=dtype, backend=backend.name))
    other = fitted(network_of(dtype=dtype, backend=backend.name), by_hand(scale, X, X))
    new = X[::-1] + 0.5
    np.testing.assert_allclose(network.predict(new), other.predict(by_hand(scale, new, X)), tolerance, tolerance)
    targets = np.arange(M)
    one, two = network.evaluate(new, targets), other.evaluate(by_hand(scale, new, X), targets)
    assert one == pytest.approx(two, rel=tolerance)


@pytest.mark.parametrize("scale", SCALES)
def test_scikit_learn_scales_alike(scale: str):
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    scaler = preprocessing.StandardScaler() if scale == "standard" else preprocessing.RobustScaler()
    scaler.fit(X)
    found = learned(scale, X)
    np.testing.assert_allclose(found["input_shift"], scaler.mean_ if scale == "standard" else scaler.center_, 1e-12)
    np.testing.assert_allclose(found["input_factor"], scaler.scale_, 1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_only_the_training_part_is_learned_from(scale: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(examples, "CHUNK", 7 * N)
    network = network_of(3, input_scale=scale, target_scale="standard")
    fitted(network, X, Y, validation_split=0.3)
    from dnn.data.splitting import split_rows

    _, kept = split_rows(network, Y, 0.3)
    assert kept is not None and len(kept) == 42
    shift = X[kept].mean(axis=0) if scale == "standard" else np.median(X[kept], axis=0)
    np.testing.assert_allclose(network.statistics["input_shift"], shift, 1e-12)
    np.testing.assert_allclose(as_the_network_sees(network, X), by_hand(scale, X, X[kept]), 1e-11, 1e-11)
    np.testing.assert_allclose(network.statistics["target_shift"], Y[kept].mean(axis=0), 1e-12)
    np.testing.assert_allclose(network.statistics["target_factor"], Y[kept].std(axis=0), 1e-12)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_mean_and_deviation_are_exact_far_from_zero(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(examples, "CHUNK", rows * 2)
    given = np.random.default_rng(1).standard_normal((300, 2)) + np.array([1e9, -3e6])
    given[0] = 0
    found = learned("standard", given, n=2)
    for j, values in enumerate(given.T):
        exact = [Fraction(value) for value in values]
        mean = sum(exact) / 300
        variance = sum((value - mean) ** 2 for value in exact) / 300
        assert found["input_shift"][j] == pytest.approx(float(mean), rel=1e-15)
        assert found["input_factor"][j] == pytest.approx(float(variance) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("scale", SCALES)
def test_blocks_of_any_size_give_the_same_statistics(scale: str, rows: int, monkeypatch: pytest.MonkeyPatch):
    whole = learned(scale, X)
    monkeypatch.setattr(examples, "CHUNK", rows * N)
    for name, values in learned(scale, X).items():
        np.testing.assert_allclose(values, whole[name], 1e-13)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("on_device", [False, True])
def test_times_keep_their_digits_in_float32(scale: str, on_device: bool, backend: Backend):
    times = 1.7e9 + np.arange(M * N).reshape(M, N) * 0.25
    network = network_of(input_scale=scale, dtype="float32", backend=backend.name)
    fitted(network, backend.asarray(times) if on_device else times)
    seen = as_the_network_sees(network, backend.asarray(times) if on_device else times)
    np.testing.assert_allclose(seen, by_hand(scale, times, times), 1e-6, 1e-7)
    assert len(np.unique(seen)) == M


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_a_constant_feature_is_0(dtype: str, value: float):
    given = X.copy()
    given[:, 2] = value
    for scale in SCALES:
        network = fitted(network_of(input_scale=scale, dtype=dtype), given)
        assert (as_the_network_sees(network, given)[:, 2] == 0).all()
        # what it is later: as in StandardScaler; as in RealMLP
        seen = as_the_network_sees(network, given + 0.5)[:, 2]
        np.testing.assert_allclose(seen, 0.5 if scale == "standard" else 0, 1e-6)


def test_a_feature_without_interquartile_range_is_scaled_by_half_its_range():
    given = X.copy()
    given[:, 1] = 2
    given[3, 1], given[4, 1] = 10, 0
    network = fitted(network_of(input_scale="robust"), given)
    assert network.statistics["input_shift"][1] == 2 and network.statistics["input_factor"][1] == 5
    assert as_the_network_sees(network, given)[3, 1] == pytest.approx(1.6 / np.sqrt(1 + (1.6 / 3) ** 2), rel=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_robust_scale_binds_any_number(dtype: str):
    network = fitted(network_of(input_scale="robust", dtype=dtype))
    seen = as_the_network_sees(network, np.full((2, N), [[1.7e308], [-1.7e308]]))
    np.testing.assert_array_equal(seen, np.full((2, N), [[3.0], [-3.0]]))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("on_device", [False, True])
def test_bytes_are_scaled_as_the_numbers_they_are(scale: str, on_device: bool, backend: Backend):
    pixels = GENERATOR.integers(0, 256, (M, 2, 2), np.uint8)
    network = fitted(
        network_of(input_scale=scale, backend=backend.name), backend.asarray(pixels) if on_device else pixels
    )
    flat = pixels.reshape(M, N).astype(np.float64)
    np.testing.assert_allclose(as_the_network_sees(network, pixels), by_hand(scale, flat, flat), 1e-12, 1e-12)
    assert network.input_scale == scale and network.input_kind is None
    np.testing.assert_array_equal(network.predict(flat), network.predict(pixels))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["float32", "float64", "int16", "uint8"])
def test_a_data_set_read_in_parts_is_scaled_as_in_memory(
    scale: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(examples, "CHUNK", 5 * N)
    given = (np.abs(X) % 200).astype(kind)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        stored = file.create_dataset("X", data=given)
        of_file = fitted(network_of(input_scale=scale, dtype="float32"), stored, validation_split=0.25)
        of_memory = fitted(network_of(input_scale=scale, dtype="float32"), given, validation_split=0.25)
        for name, values in of_memory.statistics.items():
            np.testing.assert_array_equal(of_file.statistics[name], values)
        np.testing.assert_array_equal(as_the_network_sees(of_file, stored), as_the_network_sees(of_memory, given))
        np.testing.assert_array_equal(of_file.predict(stored), of_memory.predict(given))
        targets = np.arange(M)
        assert of_file.evaluate(stored, targets) == of_memory.evaluate(given, targets)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_array_on_the_device_is_scaled_as_one_on_the_host(scale: str, dtype: str, backend: Backend):
    on_host = fitted(network_of(input_scale=scale, dtype=dtype, backend=backend.name))
    on_device = fitted(network_of(input_scale=scale, dtype=dtype, backend=backend.name), backend.asarray(X))
    for name, values in on_host.statistics.items():
        np.testing.assert_array_equal(on_device.statistics[name], values)
    np.testing.assert_array_equal(as_the_network_sees(on_device, backend.asarray(X)), as_the_network_sees(on_host, X))
    np.testing.assert_array_equal(on_device.predict(backend.asarray(X)), on_host.predict(X))


@pytest.mark.parametrize("scale", SCALES)
def test_an_array_on_another_device_is_scaled_as_one_on_the_host(scale: str):
    network, other = network_of(input_scale=scale), get_backend("standin")
    fitted(network, other.asarray(X))
    np.testing.assert_array_equal(as_the_network_sees(network, other.asarray(X)), as_the_network_sees(network, X))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_named(scale: str, on_device: bool, wrong: float, backend: Backend):
    given = X.copy()
    given[17, 3] = wrong
    network = network_of(input_scale=scale, backend=backend.name)
    offered: Any = backend.asarray(given) if on_device else given
    with pytest.raises(DataError, match=f"got {wrong} in float64 at example 17, feature 3"):
        fitted(network, offered)
    assert network.statistics == {}
    fitted(network)
    with pytest.raises(DataError, match=f"got {wrong} in float64 at example 17, feature 3"):
        network.predict(offered)


@pytest.mark.parametrize("scale", SCALES)
def test_features_too_large_for_float64_are_refused(scale: str):
    given = X.copy()
    given[:, 2] = np.where(np.arange(M) % 2, 1.5e308, -1.5e308)
    with pytest.raises(DataError, match="X: feature 2 is too large to be scaled"):
        fitted(network_of(input_scale=scale), given)
    with pytest.raises(DataError, match="Y: target 0 is too large to be scaled"):
        fitted(network_of(target_scale="standard"), X, given[:, 2])


def test_columns_are_scaled_by_name():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    network = fitted(network_of(input_scale="standard"), frame)
    np.testing.assert_array_equal(network.predict(frame[list("dbca")]), network.predict(frame))


# --------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("members", [1, 2])
def test_a_target_scale_is_as_targets_scaled_beforehand(units: int, members: int, backend: Backend):
    targets = Y[:, :units]
    shift, factor = targets.mean(axis=0), targets.std(axis=0)
    settings = {"input_scale": "standard", "members": members, "backend": backend.name}
    network, other = network_of(units, target_scale="standard", **settings), network_of(units, **settings)
    of_one = network.fit(X, targets, epochs=4, verbose=False).history
    of_other = other.fit(X, (targets - shift) / factor, epochs=4, verbose=False).history
    expected = other.predict(X).reshape(M, units) * factor + shift
    np.testing.assert_allclose(network.predict(X).reshape(M, units), expected, 1e-11)
    # the loss is in units of the deviation, all else in those of the targets
    np.testing.assert_allclose(of_one["loss"], of_other["loss"], 1e-11)
    measured = network.evaluate(X, targets, metrics=["r2", "mae"])
    error = expected - targets
    assert measured["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-10)
    assert measured["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-10)
    r2 = 1 - (error**2).sum(axis=0) / ((targets - shift) ** 2).sum(axis=0)
    assert measured["r2"] == pytest.approx(r2.mean(), rel=1e-10)
    scaled = (targets - shift) / factor
    assert measured["loss"] == pytest.approx(other.evaluate(X, scaled)["loss"], rel=1e-10)
    if units == 1:
        np.testing.assert_allclose(of_one["rmse"], np.array(of_other["rmse"]) * factor[0], 1e-11)
    if members > 1:
        spread = other.predict_spread(X).reshape(M, units) * factor
        np.testing.assert_allclose(network.predict_spread(X).reshape(M, units), spread, 1e-9)


def test_validation_measures_in_the_units_of_the_targets():
    network = network_of(target_scale="standard", input_scale="robust")
    history = network.fit(X, Y[:, 0], epochs=2, validation_data=(X, Y[:, 0]), metrics=["mae"], verbose=False)
    measured = network.evaluate(X, Y[:, 0], metrics=["mae"])
    for name in ("loss", "rmse", "mae"):
        assert history.history[f"val_{name}"][-1] == pytest.approx(measured[name], rel=1e-12)


def test_targets_far_from_zero_keep_their_digits_in_float32(backend: Backend):
    times = 1.7e9 + X[:, 0] * 0.5
    network = network_of(dtype="float32", input_scale="robust", target_scale="standard", backend=backend.name)
    fitted(network, X, times, epochs=200, optimizer=dnn.Adam(0.01))
    P = network.predict(X)
    assert P.dtype == np.float64 and np.sqrt(((P - times) ** 2).mean()) < 0.1
    measured = network.evaluate(X, times, metrics=["mae"])
    assert measured["rmse"] == pytest.approx(np.sqrt(((P - times) ** 2).mean()), rel=1e-4)
    assert measured["mae"] == pytest.approx(np.abs(P - times).mean(), rel=1e-4)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_targets_of_any_size_are_measured_in_float32(size: float, backend: Backend):
    network = network_of(dtype="float32", input_scale="robust", target_scale="standard", backend=backend.name)
    fitted(network, X, X[:, 0] * size)
    error = network.predict(X) - X[:, 0] * size
    assert network.evaluate(X, X[:, 0] * size)["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("loss", [Quantile((0.2, 0.5, 0.7)), GaussianNLL(1e-9)], ids=["quantile", "gaussian"])
def test_losses_with_several_outputs_answer_in_the_units_of_the_targets(loss: Any, targets: int, backend: Backend):
    group = loss.outputs_per_target
    given = Y[:, :targets]
    shift, factor = given.mean(axis=0), given.std(axis=0)
    settings = {"input_scale": "standard", "loss": loss, "backend": backend.name}
    network = network_of(targets * group, target_scale="standard", **settings)
    other = network_of(targets * group, **settings)
    one = network.fit(X, given, epochs=3, verbose=False).history
    two = other.fit(X, (given - shift) / factor, epochs=3, verbose=False).history
    np.testing.assert_allclose(one["loss"], two["loss"], 1e-11)
    expected = other.predict(X).reshape(M, targets, group)
    if group == 2:
        expected = np.stack(
            [expected[..., 0] * factor + shift, expected[..., 1] * factor**2], axis=2
        )  # the mean, and the variance
        point = expected[..., 0]
    else:
        expected = expected * factor[:, None] + shift[:, None]
        point = expected[..., 1]
    np.testing.assert_allclose(network.predict(X).reshape(expected.shape), expected, 1e-10)
    measured = network.evaluate(X, given, metrics=["mae"])
    assert measured["rmse"] == pytest.approx(np.sqrt(((point - given) ** 2).mean()), rel=1e-10)
    assert measured["mae"] == pytest.approx(np.abs(point - given).mean(), rel=1e-10)
    if targets == 1:
        np.testing.assert_allclose(one["rmse"], np.array(two["rmse"]) * factor[0], 1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_missing_targets_are_no_part_of_the_scale(dtype: str, backend: Backend):
    given = Y.copy()
    given[np.random.default_rng(4).random(Y.shape) < 0.3] = np.nan
    network = network_of(3, dtype=dtype, input_scale="robust", target_scale="standard", backend=backend.name)
    fitted(network, X, given, missing_targets="mask")
    np.testing.assert_allclose(network.statistics["target_shift"], np.nanmean(given, axis=0), 1e-12)
    np.testing.assert_allclose(network.statistics["target_factor"], np.nanstd(given, axis=0), 1e-12)
    measured = network.evaluate(X, given, missing_targets="mask")
    error = network.predict(X) - given
    scaled = error / network.statistics["target_factor"]
    assert measured["rmse"] == pytest.approx(np.sqrt(np.nanmean(error**2)), rel=1e-4)
    assert measured["loss"] == pytest.approx(np.nanmean(scaled**2), rel=1e-4)


def test_a_target_that_is_never_known_keeps_its_units():
    given = Y.copy()
    given[:, 1] = np.nan
    network = fitted(network_of(3, target_scale="standard", input_scale="robust"), X, given, missing_targets="mask")
    assert network.statistics["target_shift"][1] == 0 and network.statistics["target_factor"][1] == 1


def test_a_constant_target_is_answered_about_right():
    network = fitted(network_of(input_scale="robust", target_scale="standard"), X, np.full(M, 1e9), epochs=50)
    assert network.statistics["target_factor"] == 1
    np.testing.assert_allclose(network.predict(X), 1e9, atol=5, rtol=0)


# ------------------------------------------------------------------------------------ first and later fits


def test_a_second_fit_keeps_the_statistics_of_the_first():
    network = network_of(3, input_scale="standard", target_scale="standard")
    first = copy.deepcopy(fitted(network, X, Y).statistics)
    fitted(network, X * 2 + 1, Y * 3)
    network.partial_fit(X * 5, Y)
    assert list(network.statistics) == list(first)
    for name, values in first.items():
        np.testing.assert_array_equal(network.statistics[name], values)


def refused_labels(network: dnn.Network) -> None:
    network.fit(X, np.full(M, np.nan), epochs=1, verbose=False)


def refused_validation(network: dnn.Network) -> None:
    network.fit(X, Y[:, 0], epochs=1, validation_data=(X * np.nan, Y[:, 0]), verbose=False)


def diverged(network: dnn.Network) -> None:
    network.fit(X, Y[:, 0], epochs=1, batch_size=8, optimizer=dnn.SGD(1e300), verbose=False)


@pytest.mark.parametrize("fails", [refused_labels, refused_validation, diverged])
def test_a_failed_first_fit_leaves_nothing(fails: Callable[[dnn.Network], None]):
    network = network_of(input_scale="standard", target_scale="standard")
    before = {name: getattr(network, name) for name in OF_DATA}
    with pytest.raises((DataError, NonFiniteLossError)):
        fails(network)
    assert {name: getattr(network, name) for name in OF_DATA} == before
    assert network.statistics == {} and network.input_scale == "standard" and network.epochs == 0
    fitted(network, X / 7, Y[:, 0] / 7)
    np.testing.assert_allclose(network.statistics["input_shift"], X.mean(axis=0) / 7, 1e-12)


def test_advice_after_a_divergence_is_of_the_scaled_data():
    network = network_of(input_scale="robust", target_scale="standard")
    with pytest.raises(NonFiniteLossError) as raised:
        diverged(network)
    assert "lower the learning rate" in str(raised.value)
    assert "X reaches" not in str(raised.value) and "Y reaches" not in str(raised.value)


@pytest.mark.parametrize(
    "settings", [{"input_scale": "standard"}, {"input_scale": "robust"}, {"target_scale": "standard"}]
)
def test_before_its_first_fit_a_network_has_no_scale(settings: dict[str, str]):
    network = network_of(**settings)
    ((name, value),) = settings.items()
    for use in (network.predict, lambda given: network.evaluate(given, Y[:, 0])):
        with pytest.raises(DataError, match=f"X: a network with {name}='{value}' takes its scale .* fit it first"):
            use(X)


def test_classes_can_have_scaled_inputs():
    labels = (X[:, 3] > 1000).astype(int)
    network = dnn.Network([N, 8, 2], output="softmax", input_scale="robust")
    fitted(network, X, labels, epochs=60, optimizer=dnn.Adam(0.02))
    assert network.evaluate(X, labels)["accuracy"] > 0.9
    np.testing.assert_allclose(network.predict_proba(X).sum(axis=1), 1, 1e-6)


def interrupted() -> dnn.Network:
    """A network that has learned its scales, and has not trained a whole epoch."""
    network = network_of(3, input_scale="robust", target_scale="standard")

    class Stop:
        def on_batch_end(self, event: Any) -> None:
            event.stop("enough")

    return fitted(network, X, Y, callbacks=[Stop()])


def trained() -> dnn.Network:
    given = X.copy()
    given[:, 1] = 3  # of an infinite factor
    return fitted(network_of(3, input_scale="robust", target_scale="standard", dtype="float32"), given, Y)


@pytest.mark.parametrize("make", [trained, interrupted])
def test_a_model_file_a_copy_and_a_pickle_have_the_scales(make: Callable[[], dnn.Network], tmp_path: Path):
    network = make()
    assert len(network.statistics) == 4
    network.save(tmp_path / "model.h5")
    loaded = dnn.load(tmp_path / "model.h5")
    for other in (loaded, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert (other.input_scale, other.target_scale) == ("robust", "standard")
        assert list(other.statistics) == list(network.statistics)
        for name, values in network.statistics.items():
            assert other.statistics[name].tobytes() == values.tobytes()
        assert other.predict(X).tobytes() == network.predict(X).tobytes()
        assert other.evaluate(X, Y) == network.evaluate(X, Y)


def test_the_model_file_of_an_untrained_network_has_no_statistics(tmp_path: Path):
    network_of(input_scale="standard", target_scale="standard").save(tmp_path / "model.h5")
    loaded = dnn.load(tmp_path / "model.h5")
    assert loaded.statistics == {} and loaded.input_scale == "standard"
    fitted(loaded)


def test_statistics_that_do_not_fit_the_architecture_are_refused(tmp_path: Path):
    trained().save(tmp_path / "model.h5")
    for change, message in (
        (lambda file: file.pop("statistics"), "no group 'statistics'"),
        (lambda file: file["statistics"].pop("input_shift"), "has the statistics input_shift, .* the file has"),
        (
            lambda file: (
                file["statistics"].pop("input_shift"),
                file.create_dataset("statistics/input_shift", data=np.zeros(N + 1)),
            ),
            r"model.h5: statistics/input_shift has shape \(5,\)",
        ),
    ):
        damaged = tmp_path / "damaged" / "model.h5"
        damaged.parent.mkdir(exist_ok=True)
        damaged.write_bytes((tmp_path / "model.h5").read_bytes())
        with h5py.File(damaged, "r+") as file:
            change(file)
        with pytest.raises(ModelFileError, match=message):
            dnn.load(damaged)


# -------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_scale": "minmax"}, "input_scale must be one of standard, robust"),
        ({"target_scale": "robust"}, "target_scale must be"),
        ({"target_scale": "standard", "output": "sigmoid"}, "target_scale is for output 'linear', not for 'sigmoid'"),
        ({"target_scale": "standard", "loss": "poisson"}, "target_scale is not for the loss Poisson, whose"),
    ],
)
def test_scales_that_cannot_be_are_refused(settings: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        network_of(**settings)


def test_quantiles_need_a_few_features_in_memory():
    """Of a wide array a sixteenth of the features at a time."""
    values = np.random.default_rng(2).standard_normal((50, 64))
    passes = []

    def blocks() -> Any:
        passes.append(1)
        yield from np.split(values, 5)

    shift, _ = scaling.robust(blocks, 64, 50, at_once=1)
    np.testing.assert_allclose(shift, np.median(values, axis=0), 1e-14)
    assert len(passes) == scaling.PASSES
