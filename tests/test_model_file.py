"""Model files: networks survive a round trip, and every invalid file gets a clear error."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import h5py
import numpy as np
import pytest

import dnn
from dnn import model_file
from dnn.backends import Backend
from dnn.errors import DataError, ModelFileError, NonFiniteLossError, OutputError

X = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
Y = np.arange(12) % 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A trained model in a file."""
    network = dnn.Network([3, 5, 4], output="softmax", seed=2)
    network.classes = ["a", "b", "ç", "d"]
    network.fit(X, Y, epochs=2)
    network.save(tmp_path / "model.h5", training_state=False)
    return tmp_path / "model.h5"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("output", "units"), [("sigmoid", 1), ("sigmoid", 2), ("softmax", 4), ("linear", 2)])
def test_the_network_comes_back_bit_for_bit(output, units, dtype, backend: Backend, tmp_path: Path):
    network = dnn.Network(
        [3, 5, units], output=output, activation="tanh", dtype=dtype, seed=7, input_scale=0.5, backend=backend.name
    )
    targets = Y if output == "softmax" else np.random.default_rng(1).random((12, units))
    network.fit(X.reshape(12, 1, 3), targets, epochs=3)
    network.save(tmp_path / "model.h5")
    again = dnn.load(tmp_path / "model.h5", backend=backend.name)
    assert repr(again) == repr(network)
    for name, view in network.parameters.items():
        np.testing.assert_array_equal(backend.to_numpy(again.parameters[name]), backend.to_numpy(view))
    np.testing.assert_array_equal(again.predict(X), network.predict(X))
    assert (again.epochs, again.input_shape, again.input_kind) == (3, (1, 3), None)


def test_a_model_moves_between_backends(model: Path, backend: Backend):
    np.testing.assert_allclose(
        dnn.load(model, backend=backend.name).predict_proba(X), dnn.load(model).predict_proba(X), rtol=1e-6
    )


def test_scaling_and_input_kind_come_back(tmp_path: Path):
    network = dnn.Network([3, 2], output="softmax")
    network.fit(np.arange(36, dtype=np.uint8).reshape(12, 3), Y % 2, epochs=1)
    network.save(tmp_path / "model.h5")
    again = dnn.load(tmp_path / "model.h5")
    assert again.input_scale == 1 / 255
    with pytest.raises(DataError, match=r"trained on uint8, scaled by 1/255; got float32: give uint8"):
        again.predict(X)


def test_an_untrained_network_comes_back_untrained(tmp_path: Path):
    dnn.Network([3, 2], output="softmax").save(tmp_path / "model.h5")
    again = dnn.load(tmp_path / "model.h5")
    assert again.input_scale is None and again.input_shape is None and again.epochs == 0


def test_the_file_has_names_shapes_and_no_pickle(model: Path):
    with h5py.File(model) as file:
        assert file.attrs["dnn_version"].decode() == dnn.__version__
        assert json.loads(file["architecture"][()])["layer_sizes"] == [3, 5, 4]
        shapes = {name: tensor.shape for name, tensor in file["parameters"].items()}
        assert shapes == {"W1": (5, 3), "W2": (4, 5), "b1": (5,), "b2": (4,)}
    assert dnn.load(model).classes == ["a", "b", "ç", "d"]


def test_an_existing_model_is_replaced_only_with_force(model: Path):
    before, other = model.read_bytes(), dnn.Network([2, 1])
    with pytest.raises(OutputError, match="already exists"):
        other.save(model)
    assert model.read_bytes() == before
    other.save(model, force=True)
    assert dnn.load(model).layer_sizes == (2, 1)
    assert [path.name for path in model.parent.iterdir()] == ["model.h5"]


def test_a_model_that_appears_while_one_is_saved_is_kept(tmp_path: Path, monkeypatch):
    path, to_bytes = tmp_path / "model.h5", model_file.model_bytes

    def meanwhile(network: dnn.Network, training: bool | None) -> bytes:
        path.write_bytes(b"the other's")
        return to_bytes(network, training)

    monkeypatch.setattr(model_file, "model_bytes", meanwhile)
    with pytest.raises(OutputError, match=r"model\.h5: already exists"):
        dnn.Network([2, 1]).save(path)
    assert path.read_bytes() == b"the other's" and os.listdir(tmp_path) == ["model.h5"]


def test_a_model_that_is_replaced_keeps_its_permissions_and_the_link_to_it(model: Path):
    model.chmod(0o640)
    link = model.with_name("latest.h5")
    link.symlink_to(model.name)
    dnn.Network([2, 1]).save(link, force=True)
    assert link.is_symlink() and stat.S_IMODE(model.stat().st_mode) == 0o640
    assert dnn.load(model).layer_sizes == (2, 1)


def test_paths_are_text_bytes_or_objects(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("a.h5", b"caf\xe9.h5", Path("folder") / "c.h5"):
        dnn.Network([2, 1]).save(path)
        assert dnn.load(path).layer_sizes == (2, 1)
    with pytest.raises(TypeError, match="int"):
        dnn.Network([2, 1]).save(3)


# --------------------------------------------------------------------------------------- damaged files


def set_architecture(value):
    def edit(file: h5py.File) -> None:
        del file["architecture"]
        file["architecture"] = np.bytes_(value) if isinstance(value, str) else value

    return edit


def edit_architecture(**changes):
    def edit(file: h5py.File) -> None:
        architecture = json.loads(file["architecture"][()]) | changes
        set_architecture(json.dumps({k: v for k, v in architecture.items() if v != "gone"}))(file)

    return edit


def replace_tensor(name: str, value):
    def edit(file: h5py.File) -> None:
        del file["parameters"][name]
        if value is not None:
            file["parameters"][name] = value

    return edit


def changed_number(file: h5py.File) -> None:
    file["parameters/W2"][1, 2] += 1e-7


def soft_link(file: h5py.File) -> None:
    del file["parameters/b1"]
    file["parameters/b1"] = h5py.SoftLink("/classes")


def external_link(file: h5py.File) -> None:
    del file["parameters"]
    file["parameters"] = h5py.ExternalLink("other.h5", "/parameters")


def never_written(file: h5py.File) -> None:
    del file["parameters/W1"]
    file["parameters"].create_dataset("W1", shape=(5, 3), dtype="f4")


def compressed(file: h5py.File) -> None:
    values = file["parameters/b1"][...]
    del file["parameters/b1"]
    file.create_dataset("parameters/b1", data=values, compression="gzip")


def virtual(file: h5py.File) -> None:
    del file["parameters/b1"]
    layout = h5py.VirtualLayout(shape=(5,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "b1", shape=(5,))
    file["parameters"].create_virtual_dataset("b1", layout)


DAMAGE = {
    "a tensor of the wrong shape": (replace_tensor("W1", np.zeros((3, 5), "f4")), r"layer 1: .*\(3, 5\).*\(5, 3\)"),
    "a tensor of the wrong dtype": (replace_tensor("b2", np.zeros(4)), r"layer 2: .*float64.*float32"),
    "a tensor of text": (replace_tensor("b2", np.array([b"a"] * 4)), "layer 2"),
    "a tensor missing": (replace_tensor("b2", None), "W1, W2, b1, b2; the file has W1, W2, b1"),
    "a tensor too many": (lambda file: file.create_dataset("parameters/W3", data=1), "the file has W1, W2, W3"),
    "a group for a tensor": (lambda file: (replace_tensor("b2", None)(file), file.create_group("parameters/b2")), "b2"),
    "a changed number": (changed_number, "checksum does not match its content"),
    "a tensor by a soft link": (soft_link, "parameters/b1 is a link to elsewhere"),
    "tensors in another file": (external_link, "parameters is a link to elsewhere"),
    "a tensor that was never written": (never_written, "not stored in full"),
    "a virtual tensor": (virtual, "b1 keeps its data in another file"),
    "a compressed tensor": (compressed, "parameters/b1 is compressed.*h5repack -f NONE"),
    "no parameters": (lambda file: file.__delitem__("parameters"), "no group 'parameters'"),
    "no format": (lambda file: file.attrs.__delitem__("format"), "not a model of dnn"),
    "a format of other type": (lambda file: file.attrs.__setitem__("format", 7), "not a model of dnn"),
    "a newer version": (
        lambda file: file.attrs.update({"format_version": 4, "needs": np.bytes_("layers, attention")}),
        "it needs attention, which this dnn does not know",
    ),
    "a version that says nothing of what it needs": (
        lambda file: (file.attrs.__delitem__("needs"), file.attrs.__setitem__("format_version", 4)),
        "model format 4, but .* reads 1 to 3",
    ),
    "needs of other type": (
        lambda file: file.attrs.__setitem__("needs", np.arange(5)),
        "attribute needs: expected one value",
    ),
    "no architecture": (lambda file: file.__delitem__("architecture"), "no data set 'architecture'"),
    "no JSON": (set_architecture("{"), "architecture cannot be used"),
    "JSON of another kind": (set_architecture("[1]"), "architecture cannot be used"),
    "deep JSON": (set_architecture("[" * 50_000), "architecture cannot be used"),
    "architecture of variable length": (
        set_architecture(np.array("{}", dtype=object)),
        "architecture: expected numbers or text, got text of variable length",
    ),
    "a list of architectures": (set_architecture(np.array([b"{}"])), "expected JSON"),
    "no checksum": (lambda file: file.attrs.__delitem__("sha256"), "checksum"),
    "a setting missing": (edit_architecture(seed="gone"), "its architecture lacks 'seed'"),
    "an unknown activation": (edit_architecture(activation="swish"), "activation must be one of"),
    "a layer of size 0": (edit_architecture(layer_sizes=[3, 0, 4]), "must be at least 1"),
    "a layer of size text": (edit_architecture(layer_sizes=[3, "5", 4]), "whole number"),
    "sizes that are no list": (edit_architecture(layer_sizes=12), "layer_sizes"),
    "huge layers": (edit_architecture(layer_sizes=[3, 10**12, 4]), r"\(1000000000000, 3\)"),
    "sizes of other tensors": (edit_architecture(layer_sizes=[3, 6, 4]), r"layer 1: .*\(5, 3\).*\(6, 3\)"),
    "an impossible scale": (edit_architecture(input_scale=-1), "input_scale"),
    "a scale of text": (edit_architecture(input_scale="big"), "input_scale"),
    "an unknown kind of input": (edit_architecture(input_kind="pixels"), "input_kind"),
    "another input shape": (edit_architecture(input_shape=[2, 2]), "input_shape"),
    "an endless input shape": (edit_architecture(input_shape=[10**400]), "input_shape"),
    "feature names of another number": (edit_architecture(feature_names=["a", "b"]), r"feature_names \['a', 'b'\]"),
    "feature names that are numbers": (edit_architecture(feature_names=[1, 2, 3]), "feature_names"),
    "a text for feature names": (edit_architecture(feature_names="abc"), "feature_names 'abc'"),
    "epochs below zero": (edit_architecture(epochs=-1), "epochs -1"),
    "too few classes": (
        lambda file: (file.__delitem__("classes"), file.__setitem__("classes", np.array([b"a"]))),
        "classes: expected 4 names",
    ),
    "classes that are numbers": (
        lambda file: (file.__delitem__("classes"), file.__setitem__("classes", np.arange(4))),
        "classes: expected 4 names",
    ),
    "classes that are a group": (
        lambda file: (file.__delitem__("classes"), file.create_group("classes")),
        "'classes' is a group, not a data set",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(damage, model: Path):
    edit, complaint = DAMAGE[damage]
    with h5py.File(model, "r+") as file:
        edit(file)
    with pytest.raises(ModelFileError, match=complaint) as error:
        dnn.load(model)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(model))


def test_missing_files_and_other_formats_are_told_apart(tmp_path: Path, model: Path):
    def complaint(content: bytes | None) -> str:
        path = tmp_path / "other.h5"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelFileError) as error:
            dnn.load(path)
        path.unlink(missing_ok=True)
        return str(error.value).removeprefix(f"{path}: ")

    whole = model.read_bytes()
    assert complaint(None) == "no such file"
    assert complaint(b"") == "the file is empty"
    assert complaint(b"some text\n" * 100) == "not an HDF5 file"
    assert "Git LFS pointer" in complaint(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "truncated" in complaint(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="cannot be read: Is a directory"):
        dnn.load(tmp_path)


def test_a_byte_changed_anywhere_is_detected(model: Path):
    whole = model.read_bytes()
    for place in range(0, len(whole), 17):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        model.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            dnn.load(model)


def test_a_wrong_number_of_class_names_is_not_saved(tmp_path: Path):
    network = dnn.Network([3, 1])
    network.classes = ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"network.classes must be 2 names, got 3"):
        network.save(tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())


def test_the_same_network_is_saved_as_the_same_file(model: Path):
    before = model.read_bytes()
    dnn.load(model).save(model, force=True)
    assert model.read_bytes() == before


def test_feature_names_come_back_and_an_older_file_has_none(model: Path):
    network = dnn.load(model)
    assert network.feature_names is None
    network.feature_names = ["a", "b", "ç"]
    network.save(model, force=True)
    assert dnn.load(model).feature_names == ["a", "b", "ç"]
    rewrite(model, architecture=lambda stored: {k: v for k, v in stored.items() if k != "feature_names"})
    again = dnn.load(model)
    assert again.feature_names is None and again.classes == ["a", "b", "ç", "d"]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [([b"a ", b"b", b"c", b"d  "], ["a", "b", "c", "d"]), ([b"a", b"a", b"b", b"c"], ["a", "a", "b", "c"])],
)
def test_class_names_of_older_files_are_read_without_padding(stored, expected, model: Path):
    rewrite(model, classes=np.array(stored))
    assert dnn.load(model).classes == expected


def test_class_names_that_are_not_utf_8_are_refused(model: Path):
    rewrite(model, classes=np.array([b"a", b"b", b"\xe4", b"d"]))
    with pytest.raises(ModelFileError, match=r"classes: b'\\xe4' is not UTF-8"):
        dnn.load(model)


def rewrite(path: Path, architecture=None, classes=None) -> None:
    """Change the content of a model file and its checksum, as if another version had written it."""
    with h5py.File(path, "r+") as file:
        if architecture is not None:
            set_architecture(json.dumps(architecture(json.loads(file["architecture"][()]))))(file)
        if classes is not None:
            del file["classes"]
            file["classes"] = classes
        names = [f"parameters/{name}" for name in ("W1", "W2", "b1", "b2")]
        contents = [file[name][...] for name in ("architecture", *names, "classes")]
        file.attrs["sha256"] = np.bytes_(model_file._checksum(contents))


# ------------------------------------------------------------------- what load refuses is not written


def _weight(value: float):
    def change(network: dnn.Network) -> None:
        network.parameters["W1"][0, 0] = value

    return change


def _attribute(name: str, value):
    return lambda network: setattr(network, name, value)


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        (_weight(np.nan), NonFiniteLossError, "parameter W1 holds nan or inf"),
        (_weight(-np.inf), NonFiniteLossError, "parameter W1 holds nan or inf"),
        (_attribute("epochs", -1), ModelFileError, "epochs -1"),
        (_attribute("epochs", 2.5), ModelFileError, "epochs 2.5"),
        (_attribute("seed", -1), ModelFileError, "seed must be from 0"),
        (_attribute("input_scale", float("nan")), ModelFileError, "input_scale must be a finite number above 0"),
        (_attribute("input_scale", 1e-50), ModelFileError, "input_scale 1e-50 is 0 in float32"),
        (_attribute("input_shape", (5,)), ModelFileError, r"input_shape \[5\]"),
        (_attribute("input_kind", "words"), ModelFileError, "input_kind 'words'"),
        (_attribute("output", "hinge"), ModelFileError, "output must be one of"),
        (_attribute("activation", "swish"), ModelFileError, "activation must be one of"),
        (_attribute("classes", ["cat"]), ValueError, "network.classes must be 2 names, got 1"),
        (_attribute("classes", ["cat", 3]), TypeError, "network.classes must be names"),
        (_attribute("classes", "ab"), TypeError, "network.classes must be a list of names, got 'ab'"),
        (_attribute("classes", ["cat", "cat"]), ValueError, "network.classes must be different names"),
        (_attribute("feature_names", ["a"]), ModelFileError, r"feature_names \['a'\]"),
        (_attribute("feature_names", ["a", "b", "c", 4]), ModelFileError, "feature_names"),
        (_attribute("feature_names", "abcd"), ModelFileError, "feature_names 'abcd'"),
        (_attribute("classes", ["cat", "\ud800"]), ValueError, "a file cannot store"),
        (_attribute("layer_sizes", (4, 5, 2)), ValueError, "make another instead"),
        (_attribute("dtype", np.dtype("float64")), ValueError, "make another instead"),
        (_attribute("epochs", object()), TypeError, "a model file stores numbers and names"),
    ],
)
def test_what_load_would_refuse_is_never_written_over_a_good_model(change, error, complaint, tmp_path):
    path = tmp_path / "model.h5"
    network = dnn.Network([4, 3, 2], output="softmax")
    network.save(path)
    good = path.read_bytes()
    change(network)
    with pytest.raises(error, match=complaint):
        network.save(path, force=True)
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]


def test_numbers_of_numpy_are_stored_as_what_they_are(tmp_path):
    network = dnn.Network([4, 3, 2], output="softmax")
    network.epochs, network.seed, network.input_scale = np.int64(3), np.uint8(2), np.float32(0.5)
    network.input_shape = (np.int64(2), np.int32(2))
    network.save(tmp_path / "model.h5")
    again = dnn.load(tmp_path / "model.h5")
    assert (again.epochs, again.seed, again.input_scale, again.input_shape) == (3, 2, 0.5, (2, 2))


@pytest.mark.parametrize("path", [None, 3, io.BytesIO(), ["m.h5"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(TypeError, match="save takes the path of a file, got"):
        dnn.Network([2, 1]).save(path)


@pytest.mark.parametrize("force", ["False", 0, None, 1.0])
def test_force_is_true_or_false(force, tmp_path):
    path = tmp_path / "m.h5"
    dnn.Network([2, 1], seed=1).save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="force must be True or False"):
        dnn.Network([2, 1], seed=2).save(path, force=force)
    assert path.read_bytes() == before
