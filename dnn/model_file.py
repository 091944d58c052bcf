"""Model files: HDF5, no pickle, written atomically.

    /                   attributes: format = "dnn model", format_version = 1, dnn_version, sha256 of the contents below
    /architecture       JSON
    /parameters/Wl      (n_out, n_in)
    /parameters/bl      (n_out,)
    /classes            (K,) names, if the data had them

A file is built in memory and appears under its name only when it is complete on disk. Loading checks every data set
against the architecture, and all of them against the checksum, before using any. Strings have fixed length: on a
damaged string of variable length the HDF5 library can loop forever.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from os import PathLike, fsdecode
from os.path import expanduser
from typing import Any

import numpy as np

from dnn.data.hdf5 import open_hdf5, reporting_damage, unpadded
from dnn.errors import DataError, ModelFileError
from dnn.files import check_writable, write_whole
from dnn.inference import check_finite
from dnn.losses import LOSSES, Loss, checked_loss
from dnn.network import Network
from dnn.parameters import Parameters

FORMAT = "dnn model"
FORMAT_VERSION = 1
_SETTINGS = ("layer_sizes", "activation", "output", "initializer", "seed", "dtype", "input_scale")


def save(network: Network, path: str | bytes | PathLike[str], force: bool = False) -> None:
    """Write `network` to `path`. OutputError if it cannot be written, or exists and `force` is not given."""
    if not isinstance(path, (str, bytes, PathLike)):
        raise TypeError(f"save takes the path of a file, got {type(path).__name__}")
    if not isinstance(force, (bool, np.bool_)):
        raise TypeError(f"force must be True or False, got {force!r}")
    path = expanduser(fsdecode(path))
    check_writable(path, force)
    write_whole({path: model_bytes(network)}, force)


def model_bytes(network: Network) -> bytes:
    """The model file's content. An error where `load` would refuse it."""
    import h5py

    import dnn

    check_finite(network)
    architecture = {
        "layer_sizes": network.layer_sizes,
        "activation": network.activation,
        "output": network.output,
        "initializer": network.initializer,
        "seed": network.seed,
        "dtype": network.dtype.name,
        "input_scale": network.input_scale,
        "input_kind": network.input_kind,
        "input_shape": network.input_shape,
        "feature_names": network.feature_names,
        "epochs": network.epochs,
    }
    if network.loss is not None:
        architecture["loss"] = _name_of(network.loss)
    expected = classes_of(network.layer_sizes)
    if isinstance(network.classes, str):
        raise TypeError(f"network.classes must be a list of names, got {network.classes!r}")
    if network.classes is not None and len(network.classes) != expected:
        raise ValueError(f"network.classes must be {expected} names, got {len(network.classes)}")
    if network.classes is not None and not all(isinstance(name, str) for name in network.classes):
        raise TypeError(f"network.classes must be names, got {list(network.classes)!r}")
    if network.classes is not None and len(set(network.classes)) < expected:
        raise ValueError(f"network.classes must be different names, got {list(network.classes)!r}: rename those alike")
    if (network.layer_sizes, network.dtype) != (network.parameters.layer_sizes, network.parameters.dtype):
        raise ValueError("layer_sizes and dtype are those that the network was made with: make another instead")
    text = json.dumps(architecture, default=_of_numpy).encode()
    _architecture("this network", text)
    contents = {"architecture": np.array(text)}
    contents |= {f"parameters/{name}": network.backend.to_numpy(view) for name, view in network.parameters.items()}
    if network.classes is not None:
        contents["classes"] = np.array([name.encode() for name in network.classes], dtype=bytes)
    buffer = io.BytesIO()
    # format version 1.10 adds checksums to all of HDF5's own metadata
    with h5py.File(buffer, "w", libver="v110", track_order=True) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["dnn_version"] = np.bytes_(dnn.__version__)
        file.attrs["sha256"] = np.bytes_(_checksum(contents.values()))
        file.create_group("parameters", track_order=True)
        for name, content in contents.items():
            file.create_dataset(name, data=content)
    return buffer.getvalue()


def load(path: str | bytes | PathLike[str], backend: str | None = None) -> Network:
    """The network in the model file `path`, on the given backend, by default the one in use.

    ModelFileError says what is wrong with the file.
    """
    path = expanduser(fsdecode(path))
    with open_hdf5(path, ModelFileError) as file, reporting_damage(path, ModelFileError):
        _check_format(path, file)
        text = _stored(path, file, "architecture")
        if text.shape != () or text.dtype.kind != "S":
            raise ModelFileError(f"{path}: architecture: expected JSON, got {text.dtype} of shape {text.shape}")
        contents = {"architecture": text[()]}
        architecture = _architecture(path, contents["architecture"])
        tensors = _checked_tensors(path, file, architecture)
        contents |= {name: tensor[...] for name, tensor in tensors.items()}
        if "classes" in file:
            contents["classes"] = _checked_classes(path, file, architecture)[...]
        if file.attrs.get("sha256") != np.bytes_(_checksum(contents.values())):
            raise ModelFileError(f"{path}: its checksum does not match its content: the file is damaged")
    settings = {name: architecture[name] for name in _SETTINGS}
    network = Network(**settings, backend=backend, loss=architecture.get("loss"))
    for name in network.parameters:
        try:
            network.parameters[name] = contents[f"parameters/{name}"]
        except DataError as cause:
            raise ModelFileError(f"{path}: {cause}") from None
    if "classes" in contents:
        try:
            network.classes = [unpadded(name) for name in contents["classes"]]
        except UnicodeDecodeError as cause:
            raise ModelFileError(f"{path}: classes: {cause.object!r} is not UTF-8: the file is damaged") from None
    network.input_kind = architecture["input_kind"]
    shape = architecture["input_shape"]
    network.input_shape = None if shape is None else tuple(shape)
    network.feature_names = architecture.get("feature_names")
    network.epochs = architecture["epochs"]
    return network


def _of_numpy(value: Any) -> Any:
    if isinstance(value, (np.number, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a model file stores numbers and names, got {value!r}")


def _name_of(loss: str | Loss) -> str:
    """The name under which a loss is registered; ValueError if it is not."""
    found = loss if isinstance(loss, str) else next((name for name, known in LOSSES.items() if known is loss), None)
    if found is None:
        raise ValueError("a model file stores the loss by name: register it with dnn.register_loss before saving")
    return found


def classes_of(layer_sizes: Sequence[int]) -> int:
    """The number of classes that the output layer distinguishes."""
    return max(layer_sizes[-1], 2)


def _checksum(contents: Iterable[np.ndarray]) -> str:
    import hashlib

    checksum = hashlib.sha256()
    for content in contents:
        checksum.update(np.ascontiguousarray(content).tobytes())
    return checksum.hexdigest()


def _check_format(path: str, file: Any) -> None:
    if file.attrs.get("format") != np.bytes_(FORMAT):
        raise ModelFileError(f"{path}: an HDF5 file, but not a model of dnn (no format = {FORMAT!r})")
    version = file.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: model format {version}, but this dnn reads {FORMAT_VERSION}: use the dnn version that wrote it"
        )


def _architecture(path: str, text: bytes) -> dict[str, Any]:
    try:
        architecture = json.loads(text)
        Network.check(**{name: architecture[name] for name in _SETTINGS})
        if "loss" in architecture:
            checked_loss(architecture["loss"])
        kind, shape, epochs = (architecture[name] for name in ("input_kind", "input_shape", "epochs"))
        if kind not in (None, "bytes", "numbers"):
            raise ValueError(f"input_kind {kind!r}")
        if shape is not None and (
            not isinstance(shape, list)
            or not all(type(n) is int and n > 0 for n in shape)
            or math.prod(shape) != architecture["layer_sizes"][0]
        ):
            raise ValueError(f"input_shape {shape!r}")
        names = architecture.get("feature_names")  # older files have none
        if names is not None and (
            not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or len(names) != architecture["layer_sizes"][0]
        ):
            raise ValueError(f"feature_names {names!r:.100}")
        if type(epochs) is not int or epochs < 0:
            raise ValueError(f"epochs {epochs!r}")
    except KeyError as cause:
        raise ModelFileError(f"{path}: its architecture lacks {cause}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as cause:
        raise ModelFileError(f"{path}: its architecture cannot be used: {cause}") from None
    return architecture


def _checked_tensors(path: str, file: Any, architecture: dict[str, Any]) -> dict[str, Any]:
    """The parameters' data sets, after checking their shapes and dtypes against the architecture."""
    import h5py

    layer_sizes, dtype = architecture["layer_sizes"], architecture["dtype"]
    shapes = dict(Parameters.shapes(layer_sizes))
    is_here = isinstance(file.get("parameters", getlink=True), h5py.HardLink)
    if not is_here or not isinstance(file["parameters"], h5py.Group):
        raise ModelFileError(f"{path}: no group 'parameters'")
    if set(file["parameters"]) != set(shapes):
        raise ModelFileError(
            f"{path}: its architecture {layer_sizes} has the parameters {', '.join(shapes)}; "
            f"the file has {', '.join(sorted(file['parameters'])) or 'none'}: the file is damaged"
        )
    tensors = {f"parameters/{name}": _stored(path, file, f"parameters/{name}") for name in shapes}
    for (name, tensor), shape in zip(tensors.items(), shapes.values(), strict=True):
        if tensor.shape != shape or tensor.dtype != dtype:
            layer = name.removeprefix("parameters/")[1:]
            raise ModelFileError(
                f"{path}: layer {layer}: {name} has shape {tensor.shape} and dtype {tensor.dtype}, but the "
                f"architecture specifies {shape} and {dtype}: the file is damaged, save the model again"
            )
    return tensors


def _checked_classes(path: str, file: Any, architecture: dict[str, Any]) -> Any:
    names, expected = _stored(path, file, "classes"), classes_of(architecture["layer_sizes"])
    if names.shape != (expected,) or names.dtype.kind != "S":
        raise ModelFileError(f"{path}: classes: expected {expected} names, got {names.dtype} of shape {names.shape}")
    return names


def _stored(path: str, file: Any, name: str) -> Any:
    """The data set of that name, stored in full in this file itself.

    Anything else (linked, virtual, external, never written) is refused: it could read other data, and a small file
    could declare a data set larger than memory.
    """
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise ModelFileError(f"{path}: {name} is not a data set of this file")
    data = file[name]
    if data.id.get_create_plist().get_nfilters():
        raise ModelFileError(f"{path}: {name} is compressed, as dnn saves no model: undo it with h5repack -f NONE")
    if data.is_virtual or data.external is not None or data.id.get_storage_size() != data.nbytes:
        raise ModelFileError(f"{path}: {name} is not stored in full in this file")
    return data
