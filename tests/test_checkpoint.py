"""Checkpoints: a fit that is interrupted anywhere ends as one that never was, and what is not whole is passed over."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import dnn
from dnn import checkpoint, model_file
from dnn.backends import Backend, use_compiled_steps
from dnn.callbacks import Event
from dnn.checkpoint import numbered
from dnn.errors import DataError, ModelFileError, NonFiniteLossError, OutputError
from dnn.network import Network

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((43, 4)).astype(np.float32)
Y = X[:, :3].argmax(axis=1)
EVERYTHING: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 8,
    "optimizer": dnn.AdamW(1e-2),
    "schedule": dnn.Cosine(warmup=1),
    "validation_split": 0.2,
    "early_stopping": 2,
    "moving_average": 0.9,
    "accumulate": 2,
    "threads": 1,
}
"""Of a fit with 35 examples: five batches an epoch, the last of three examples."""


def network(backend: str = "numpy", seed: int = 1) -> Network:
    return dnn.Network(
        [4, 6, 3], activation="tanh", norm="batch", dropout=0.2, output="softmax", seed=seed, backend=backend
    )


class Signal:
    """Sends this process a signal after a number of batches."""

    def __init__(self, after: int, number: int = signal.SIGINT) -> None:
        self._left, self._number = after, number

    def on_batch_end(self, event: Event) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), self._number)


def interrupted(folder: Path, after: int, net: Network | None = None, **settings: Any) -> Network:
    """A network whose fit was interrupted after so many batches."""
    net = net or network()
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, **{**EVERYTHING, "checkpoint": folder, "callbacks": [Signal(after)], **settings})
    return net


def all_of(net: Network) -> dict[str, np.ndarray]:
    """Whatever a training changes of a network."""
    assert net.training_state is not None
    arrays = {"theta": net.parameters.flat, "state": net.layer_state.flat, **net.training_state.arrays}
    return {name: net.backend.to_numpy(array) for name, array in arrays.items()}


def assert_same(net: Network, expected: Network) -> None:
    found, wanted = all_of(net), all_of(expected)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert (net.epochs, net.steps) == (expected.epochs, expected.steps)
    assert net.history is not None and expected.history is not None
    assert net.history.config() | {"seconds": 0} == expected.history.config() | {"seconds": 0}


pytestmark = pytest.mark.usefixtures("ctrl_c")


@pytest.fixture(autouse=True)
def no_compiler(request: pytest.FixtureRequest) -> None:
    """What is no matter of a backend is tested without waiting for a compiler."""
    if "backend" not in request.fixturenames:
        use_compiled_steps(False)


def test_a_resumed_fit_ends_with_the_same_bits(backend: Backend, tmp_path: Path):
    expected = network(backend.name)
    expected.fit(X, Y, **EVERYTHING)
    interrupted(tmp_path, 13, network(backend.name))
    net = dnn.resume(tmp_path, backend=backend.name)
    history = net.fit(X, Y, callbacks=[])
    assert_same(net, expected)
    assert history is net.history and net.unfinished is None


AFTER = [after if after in (1, 5, 6) else pytest.param(after, marks=pytest.mark.slow) for after in range(1, 12)]


@pytest.mark.parametrize("after", AFTER)
def test_whichever_step_was_the_last_a_resumed_fit_ends_with_the_same_bits(after, tmp_path: Path):
    expected = network()
    expected.fit(X, Y, **EVERYTHING)
    interrupted(tmp_path, after)
    net = dnn.resume(tmp_path)
    net.fit(X, Y, callbacks=[])
    assert_same(net, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": dnn.Muon(1e-2), "schedule": None},
        {"schedule": dnn.ReduceOnPlateau(patience=0), "early_stopping": None, "moving_average": None},
        {"clip_norm": 0.1, "class_weight": "balanced", "metrics": ["roc_auc", dnn.TopK(2)], "accumulate": 1},
        {"early_stopping": dnn.EarlyStopping("val_accuracy", patience=1), "optimizer": dnn.RAdam(0.3)},
    ],
    ids=["muon", "plateau", "clipped and weighted", "stopped early"],
)
def test_whatever_a_fit_keeps_is_in_its_checkpoint(settings, tmp_path: Path):
    expected = network()
    expected.fit(X, Y, **EVERYTHING | settings)
    interrupted(tmp_path, 7, **settings)
    net = dnn.resume(tmp_path)
    net.fit(X, Y, callbacks=[])
    assert_same(net, expected)


def test_members_are_resumed_each_with_its_own_order(tmp_path: Path):
    def two() -> Network:
        return dnn.Network([4, 5, 3], output="softmax", dropout=0.1, members=2)

    settings = EVERYTHING | {"accumulate": 1}
    expected = two()
    expected.fit(X, Y, **settings)
    interrupted(tmp_path, 8, two(), accumulate=1)
    net = dnn.resume(tmp_path)
    net.fit(X, Y, callbacks=[])
    assert_same(net, expected)


def test_a_fit_may_be_interrupted_again_and_again(tmp_path: Path):
    expected = network()
    expected.fit(X, Y, **EVERYTHING)
    interrupted(tmp_path, 2)
    numbers = []
    for _ in range(2):
        net = dnn.resume(tmp_path)
        assert net.unfinished is not None
        numbers.append(net.unfinished.number)
        with pytest.raises(KeyboardInterrupt):
            net.fit(X, Y, callbacks=[Signal(4)])
    net = dnn.resume(tmp_path)
    net.fit(X, Y, callbacks=[])
    assert_same(net, expected)
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_request_to_end_is_followed_after_the_step(number, status, tmp_path: Path):
    net = network()
    with pytest.raises(SystemExit) as ended:
        net.fit(X, Y, **EVERYTHING, checkpoint=tmp_path, callbacks=[Signal(7, number)])
    assert ended.value.code == status
    assert net.history is not None and net.history.epoch == [1]
    resumed = dnn.resume(tmp_path).unfinished
    assert resumed is not None and (resumed.epoch, resumed.batch) == (1, 2)
    assert signal.getsignal(number) is signal.SIG_DFL


class AtTheEnd:
    """Sends Ctrl-C when an epoch has ended."""

    def __init__(self, epoch: int, stops: bool = False) -> None:
        self._epoch, self._stops = epoch, stops

    def on_epoch_end(self, event: Event) -> None:
        if event.epoch == self._epoch:
            os.kill(os.getpid(), signal.SIGINT)
            if self._stops:
                event.stop("enough")


@pytest.mark.parametrize(
    ("epoch", "settings"),
    [
        (2, {}),
        (5, {"early_stopping": None}),
        (5, {"early_stopping": dnn.EarlyStopping("loss"), "moving_average": None}),
        (3, {"early_stopping": dnn.EarlyStopping("accuracy", min_delta=9.0, patience=2)}),
    ],
    ids=["between two", "the last, averaged", "the last, with the best before", "the one that early stopping ends"],
)
def test_a_fit_that_is_interrupted_after_an_epoch_ends_as_one_that_is_not(epoch, settings, tmp_path: Path):
    expected = network()
    expected.fit(X, Y, **EVERYTHING | settings)
    with pytest.raises(KeyboardInterrupt):
        network().fit(X, Y, **EVERYTHING | settings, checkpoint=tmp_path, callbacks=[AtTheEnd(epoch)])
    net = dnn.resume(tmp_path)
    net.fit(X, Y, callbacks=[])
    assert_same(net, expected)


def test_a_fit_that_a_callback_ends_and_ctrl_c_as_well_has_ended(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        network().fit(X, Y, **EVERYTHING, checkpoint=tmp_path, callbacks=[AtTheEnd(2, stops=True)])
    net = dnn.resume(tmp_path)
    assert net.fit(X, Y, callbacks=[]).stopped == "enough" and net.epochs == 2


def test_a_model_saved_after_an_interrupted_fit_is_no_checkpoint_of_it(tmp_path: Path):
    net = interrupted(tmp_path / "run", 13)
    net.save(tmp_path / "model.h5")
    with pytest.raises(ModelFileError, match="has no fit to go on with"):
        dnn.resume(tmp_path / "model.h5")


def test_a_constant_feature_under_a_robust_scale_is_no_reason_not_to_save(tmp_path: Path):
    net = dnn.Network([4, 3], output="softmax", input_scale="robust")
    constant = X * np.array([1, 1, 0, 1], np.float32)
    with pytest.raises(KeyboardInterrupt):
        net.fit(constant, Y, epochs=2, batch_size=8, checkpoint=tmp_path, callbacks=[Signal(3)])
    assert dnn.resume(tmp_path).unfinished is not None


def test_a_dropout_rate_that_depends_on_the_number_of_epochs_fixes_it(tmp_path: Path):
    net = dnn.Network(4, [dnn.Dense(5), dnn.Dropout(0.5, schedule=dnn.Cosine()), dnn.Dense(3)], output="softmax")
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, epochs=3, batch_size=8, checkpoint=tmp_path, callbacks=[Signal(3)])
    with pytest.raises(ValueError, match="epochs must be 3, as in the fit that is resumed, got 9: a schedule depends"):
        dnn.resume(tmp_path).fit(X, Y, epochs=9, callbacks=[])


def test_numbers_of_numpy_among_the_settings_are_stored_as_what_they_are(tmp_path: Path):
    settings = {
        "epochs": np.int64(2),
        "early_stopping": dnn.EarlyStopping("loss", np.int64(5), np.float64(0.1)),
        "class_weight": {np.int64(0): np.float32(2)},
    }
    net = network()
    net.fit(X, Y, **settings, checkpoint=tmp_path / "run")
    net.save(tmp_path / "model.h5")
    assert dnn.resume(tmp_path / "run").unfinished.settings["class_weight"] == [[0, 2.0]]


def test_what_no_reader_would_take_never_replaces_a_checkpoint(tmp_path: Path, caplog):
    class Writing:
        def on_epoch_end(self, event: Event) -> None:
            event.history.history.setdefault("words", []).append("no number")  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING):
        network().fit(X, Y, epochs=3, checkpoint=tmp_path, checkpoint_every=1, callbacks=[Writing()])
    assert "could not be read" in caplog.text or "could not convert" in caplog.text
    for _, path in numbered(str(tmp_path)):
        dnn.resume(path)


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(tmp_path: Path):
    interrupted(tmp_path, 3)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            dnn.resume(tmp_path).fit(X, Y, callbacks=[Signal(2)])
    (_, last), (good, _) = numbered(str(tmp_path))
    Path(last).write_bytes(b"damaged")
    with pytest.raises(KeyboardInterrupt):
        dnn.resume(tmp_path).fit(X, Y, callbacks=[Signal(2)])
    kept = [number for number, _ in numbered(str(tmp_path))]
    assert kept == [good + 2, good]
    for _, path in numbered(str(tmp_path)):
        dnn.resume(path)


def test_a_folder_is_the_one_that_was_named_wherever_a_program_goes(tmp_path: Path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    net = network()
    net.fit(X, Y, epochs=2, checkpoint="~/run", callbacks=[lambda event: os.chdir(tmp_path / "elsewhere")])
    net.fit(X, Y, epochs=1, checkpoint=os.fsencode(tmp_path / "run"))
    assert not os.listdir("../elsewhere") and len(numbered("../run")) == 1


def test_a_fit_that_cannot_have_its_folder_changes_nothing(tmp_path: Path):
    net = network()
    net.fit(X, Y, **EVERYTHING)
    before, history = all_of(net), net.history
    with checkpoint.Checkpoints(tmp_path, 1), pytest.raises(OutputError, match="another training"):
        net.fit(X, Y, **EVERYTHING, checkpoint=tmp_path)
    for name, array in all_of(net).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert net.history is history


def test_what_was_seen_of_an_interrupted_fit_is_kept(tmp_path: Path):
    net = interrupted(tmp_path, 12, checkpoint=None)
    assert net.history is not None and len(net.history.history["val_loss"]) == 2


def test_saved_loaded_and_fitted_is_fitted_twice(backend: Backend, tmp_path: Path):
    settings = EVERYTHING | {"epochs": 2, "schedule": dnn.Cosine(epochs=4)}
    expected = network(backend.name)
    expected.fit(X, Y, **settings)
    expected.save(tmp_path / "model.h5")
    net = dnn.load(tmp_path / "model.h5", backend=backend.name)
    assert net.history == expected.history
    for each in (expected, net):
        each.fit(X, Y, **settings)
    assert_same(net, expected)


def test_a_model_without_its_state_of_training_begins_anew(tmp_path: Path):
    net = network()
    net.fit(X, Y, epochs=1)
    net.save(tmp_path / "model.h5", training_state=False)
    assert dnn.load(tmp_path / "model.h5").training_state is None


class Own(dnn.SGD):
    pass


def test_an_optimizer_without_a_name_is_left_out_of_a_model_and_said_so(tmp_path: Path, caplog):
    net = network()
    net.fit(X, Y, epochs=1, optimizer=Own(0.1))
    with caplog.at_level(logging.WARNING):
        net.save(tmp_path / "model.h5")
    assert "a file stores Own by name: add it to dnn.optimizers.OPTIMIZERS" in caplog.text
    assert dnn.load(tmp_path / "model.h5").training_state is None
    with pytest.raises(ValueError, match="stores Own by name"):
        net.save(tmp_path / "other.h5", training_state=True)
    with pytest.raises(ValueError, match="stores Own by name"):
        net.fit(X, Y, epochs=1, optimizer=Own(0.1), checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_fit_has_nothing_left_to_do_and_may_go_on(tmp_path: Path):
    settings = EVERYTHING | {"schedule": None, "early_stopping": None}
    net = network()
    net.fit(X, Y, **settings, checkpoint=tmp_path)
    again = dnn.resume(tmp_path)
    again.fit(X, Y)
    assert_same(again, net)
    longer, expected = dnn.resume(tmp_path), network()
    longer.fit(X, Y, epochs=8)
    expected.fit(X, Y, **settings | {"epochs": 8})
    assert_same(longer, expected)


def test_the_last_two_are_kept_under_numbers_that_only_grow(tmp_path: Path):
    seen = []

    class Watching:
        def on_checkpoint(self, event: Event) -> None:
            seen.append(event.checkpoint)
            assert event.checkpoint is not None and os.path.exists(event.checkpoint)

    network().fit(X, Y, epochs=6, batch_size=8, checkpoint=tmp_path, checkpoint_every=2, callbacks=[Watching()])
    assert seen == sorted(set(seen)) and len(seen) >= 2
    assert sorted(os.listdir(tmp_path)) == [Path(path).name for path in seen[-2:]]


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, caplog):
    interrupted(tmp_path, 3)
    net = dnn.resume(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, callbacks=[Signal(3)])
    (_, last), (number, _) = numbered(str(tmp_path))
    content = bytearray(Path(last).read_bytes())
    content[-40] ^= 0xFF
    Path(last).write_bytes(content[: len(content) // 2] if number % 2 else content)
    with caplog.at_level(logging.WARNING):
        resumed = dnn.resume(tmp_path).unfinished
    assert resumed is not None and resumed.number == number
    assert f"{last}: " in caplog.text and "passed over" in caplog.text


def test_where_no_checkpoint_is_whole_each_is_named(tmp_path: Path):
    for name in ("checkpoint-000001.h5", "checkpoint-000002.h5"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"000002\.h5: not an HDF5 file; .*000001\.h5: not an HDF5 file"):
        dnn.resume(tmp_path)
    with pytest.raises(ModelFileError, match="there is no checkpoint to go on with"):
        dnn.resume(tmp_path / "elsewhere", None) if (tmp_path / "elsewhere").mkdir() is None else None


def test_a_byte_changed_anywhere_is_detected(tmp_path: Path):
    interrupted(tmp_path, 3)
    ((_, path),) = numbered(str(tmp_path))
    whole = Path(path).read_bytes()
    for place in range(0, len(whole), 997):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        Path(path).write_bytes(damaged)
        with pytest.raises(ModelFileError):
            dnn.resume(path)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another size of batches": (
        {"batch_size": 4},
        ValueError,
        "batch_size must be 8, as in the fit that is resumed, got 4",
    ),
    "another optimizer": ({"optimizer": "adam"}, ValueError, r"optimizer must be adamw\(.* got adam\("),
    "another setting of it": ({"optimizer": dnn.AdamW(0.5)}, ValueError, "learning_rate must be 0.01, as in the fit"),
    "more epochs of a schedule": (
        {"epochs": 9},
        ValueError,
        "epochs must be 5, as in the fit that is resumed, got 9: a schedule depends",
    ),
    "an unknown setting": ({"epoch": 9}, TypeError, "did you mean epochs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_fit_is_resumed_with_the_settings_it_was_started_with(name, tmp_path: Path):
    given, error, complaint = REFUSED[name]
    interrupted(tmp_path, 3)
    with pytest.raises(error, match=complaint):
        dnn.resume(tmp_path).fit(X, Y, callbacks=[], **given)


def test_what_no_file_keeps_is_asked_for_again(tmp_path: Path):
    interrupted(tmp_path, 3, validation_split=0.0, validation_data=(X[:9], Y[:9]))
    net = dnn.resume(tmp_path)
    with pytest.raises(ValueError, match="started with validation_data, callbacks, which no file keeps: give them"):
        net.fit(X, Y)
    with pytest.raises(DataError, match="validation_data: the fit that is resumed was started with 9 examples, got 8"):
        net.fit(X, Y, validation_data=(X[:8], Y[:8]), callbacks=[])
    with pytest.raises(DataError, match="validation_data: the fit that is resumed was started with other values"):
        net.fit(X, Y, validation_data=(X[:9] + 1, Y[:9]), callbacks=[])


def test_other_data_is_refused_by_what_differs(tmp_path: Path):
    interrupted(tmp_path, 3)
    net = dnn.resume(tmp_path)
    before = all_of(net)
    for other, complaint in ((X[:40], "43 examples, got 40"), (X + 1, "started with other values")):
        with pytest.raises(DataError, match=complaint):
            net.fit(other, Y[: len(other)], callbacks=[])
    for name, array in all_of(net).items():
        np.testing.assert_array_equal(array, before[name])
    net.fit(X, Y, callbacks=[])


def test_other_weights_of_examples_are_other_data(tmp_path: Path):
    weights = np.ones(43)
    interrupted(tmp_path, 3, sample_weight=weights)
    with pytest.raises(DataError, match="X, Y: the fit that is resumed was started with other weights of examples"):
        dnn.resume(tmp_path).fit(X, Y, callbacks=[], sample_weight=weights + np.arange(43))
    dnn.resume(tmp_path).fit(X, Y, callbacks=[], sample_weight=weights)


def test_a_folder_belongs_to_one_run(tmp_path: Path):
    interrupted(tmp_path, 3)
    with pytest.raises(OutputError, match=r"has the checkpoints of another run, checkpoint-000001\.h5 the last"):
        network().fit(X, Y, epochs=1, checkpoint=tmp_path)
    net = dnn.resume(tmp_path)
    net.fit(X, Y, callbacks=[])
    net.fit(X, Y, epochs=1, checkpoint=tmp_path)  # its own


def test_two_trainings_do_not_write_to_one_folder(tmp_path: Path):
    with (
        checkpoint.Checkpoints(tmp_path, 1),
        pytest.raises(OutputError, match="another training writes its checkpoints there"),
    ):
        network().fit(X, Y, epochs=1, checkpoint=tmp_path)
    network().fit(X, Y, epochs=1, checkpoint=tmp_path)


def test_training_goes_on_where_a_checkpoint_cannot_be_written(tmp_path: Path, caplog, monkeypatch):
    expected = network()
    expected.fit(X, Y, **EVERYTHING)
    write, calls = checkpoint.write_whole, []

    def full_disk(contents: dict[str, bytes]) -> None:
        calls.append(contents)
        if len(calls) == 1:
            raise OutputError("run/checkpoint-000001.h5: cannot be written: No space left on device")
        write(contents)

    monkeypatch.setattr(checkpoint, "write_whole", full_disk)
    net = network()
    with caplog.at_level(logging.WARNING):
        net.fit(X, Y, **EVERYTHING, checkpoint=tmp_path, checkpoint_every=2)
    assert "No space left on device; training goes on" in caplog.text
    assert_same(net, expected)
    assert dnn.resume(tmp_path).unfinished is not None


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch):
    def full_disk(contents: dict[str, bytes]) -> None:
        raise OutputError("run/checkpoint-000001.h5: cannot be written: No space left on device")

    monkeypatch.setattr(checkpoint, "write_whole", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        network().fit(X, Y, **EVERYTHING, checkpoint=tmp_path / "run", callbacks=[Signal(3)])
    assert not (tmp_path / "run").exists()


def test_what_is_not_finite_never_takes_the_place_of_a_good_checkpoint(tmp_path: Path):
    class Breaking:
        def on_batch_end(self, event: Event) -> None:
            if event.batch == 4:
                event.network.parameters["W1"][0, 0] = np.nan
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        network().fit(X, Y, **EVERYTHING, checkpoint=tmp_path, callbacks=[Breaking()])
    assert not os.listdir(tmp_path)


def test_after_a_divergence_the_last_checkpoint_is_of_the_last_finite_epoch(tmp_path: Path):
    def rising(event: Event) -> None:
        event.learning_rate = 1e30 if event.epoch == 3 else 0.1

    net = dnn.Network([4, 6, 3], output="softmax")
    with pytest.raises(NonFiniteLossError, match="as it was after epoch 3"):
        net.fit(
            X, Y, epochs=9, batch_size=8, optimizer="sgd", checkpoint=tmp_path, checkpoint_every=1, callbacks=[rising]
        )
    (_, path), *_ = numbered(str(tmp_path))
    kept = dnn.load(path)
    assert kept.epochs == 3
    np.testing.assert_array_equal(kept.parameters.flat, net.parameters.flat)


def test_the_permissions_of_a_folder_decide_nothing_of_its_checkpoints(tmp_path: Path):
    before = os.umask(0o027)
    try:
        interrupted(tmp_path, 3)
    finally:
        os.umask(before)
    ((_, path),) = numbered(str(tmp_path))
    assert os.stat(path).st_mode & 0o777 == 0o640


def test_a_checkpoint_is_a_model(tmp_path: Path):
    net = interrupted(tmp_path, 13, early_stopping=None, moving_average=None)
    ((_, path),) = numbered(str(tmp_path))
    model = dnn.load(path)
    np.testing.assert_array_equal(model.predict_proba(X), net.predict_proba(X))
    assert model.unfinished is None
    with h5py.File(path) as file:
        assert list(file["training/arrays/m"]) == ["W1", "W2", "b2", "beta1", "gamma1"]
        assert not any(data.dtype == object for data in file["training/numbers"].values())


EDITS: dict[str, tuple[Any, str]] = {
    "no text": (b"{", "Expecting property name"),
    "another kind of text": (b"[1]", "expected a dictionary"),
    "nothing of an optimizer": (b"{}", "optimizer"),
    "an optimizer that is not known": (b'{"optimizer": {"name": "adamax"}}', "there is no 'adamax' here"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_state_that_cannot_be_used_is_left_out_of_a_model_and_refused_for_a_resume(name, tmp_path: Path, caplog):
    text, complaint = EDITS[name]
    net = network()
    net.fit(X, Y, epochs=1, checkpoint=tmp_path)
    ((_, path),) = numbered(str(tmp_path))
    contents = model_file.contents(path)
    Path(path).write_bytes(model_file.file_bytes(contents | {"training/state": np.array(text)}))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(dnn.load(path).predict(X), net.predict(X))
    assert complaint in caplog.text
    with pytest.raises(ModelFileError, match=complaint):
        dnn.resume(tmp_path)
