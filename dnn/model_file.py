"""Model files: HDF5, no pickle, written whole or not at all.

    /                   attributes: format = "dnn model", format_version = 1, dnn_version, architecture (JSON)
    /parameters/Wl      (n_out, n_in)
    /parameters/bl      (n_out,)
    /classes            (K,) names, where the data had them

A file is made in memory and appears under its name only when it is complete on the disk. Loading holds every data set
against the architecture before any of it is used.
"""

from __future__ import annotations

import io
import json
import math
from os import PathLike, fspath
from typing import Any

import numpy as np

from dnn.data.hdf5 import damage_told, open_hdf5
from dnn.errors import ModelFileError
from dnn.files import check_writable, write_whole
from dnn.network import Network
from dnn.parameters import Parameters

FORMAT = "dnn model"
FORMAT_VERSION = 1
LARGEST_JSON = 1_000_000
_SETTINGS = ("layer_sizes", "activation", "output", "initializer", "seed", "dtype", "input_scale")


def save(network: Network, path: str | PathLike[str], force: bool = False) -> None:
    """Write `network` to `path`. OutputError where it exists (without `force`) or cannot be written."""
    path = fspath(path)
    check_writable(path, force)
    write_whole({path: model_bytes(network)})


def model_bytes(network: Network) -> bytes:
    """The model file's content."""
    import h5py

    import dnn

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
        "epochs": network.epochs,
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["dnn_version"] = dnn.__version__
        file.attrs["architecture"] = json.dumps(architecture)
        group = file.create_group("parameters", track_order=True)
        for name, view in network.parameters.items():
            group.create_dataset(name, data=network.backend.to_numpy(view))
        if network.classes is not None:
            file["classes"] = np.array([name.encode() for name in network.classes], dtype=bytes)
    return buffer.getvalue()


def load(path: str | PathLike[str], backend: str | None = None) -> Network:
    """The network in the model file `path`, on the backend named, or else on the one in use.

    ModelFileError says what is wrong with the file.
    """
    path = fspath(path)
    with open_hdf5(path, ModelFileError) as file, damage_told(path, ModelFileError):
        architecture, settings = _architecture(path, file)
        tensors = _checked_tensors(path, file, settings)
        classes = _checked_classes(path, file, settings)
        network = Network(**settings, backend=backend)
        for name, tensor in tensors.items():
            values = tensor[...]
            if not np.isfinite(values).all():
                raise ModelFileError(f"{path}: parameters/{name} holds numbers that are not finite")
            network.parameters[name] = values
    network.classes = classes
    network.input_kind = architecture["input_kind"]
    shape = architecture["input_shape"]
    network.input_shape = None if shape is None else tuple(shape)
    network.epochs = architecture["epochs"]
    return network


def _architecture(path: str, file: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture, and the part of it that makes the Network."""
    if _text(file.attrs.get("format")) != FORMAT:
        raise ModelFileError(f"{path}: an HDF5 file, but not a model of dnn (no format = {FORMAT!r})")
    version = file.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: model format {version}; this dnn reads {FORMAT_VERSION}: use a dnn that wrote it"
        )
    text = _text(file.attrs.get("architecture"))
    try:
        if text is None or len(text) > LARGEST_JSON:
            raise ValueError("no JSON text of a sane length")
        architecture = json.loads(text)
        settings = {name: architecture[name] for name in _SETTINGS}
        Network.check(**settings)
        kind, shape, epochs = (architecture[name] for name in ("input_kind", "input_shape", "epochs"))
        if kind not in (None, "bytes", "numbers"):
            raise ValueError(f"input_kind {kind!r}")
        if shape is not None and (
            not isinstance(shape, list)
            or not all(type(n) is int and n > 0 for n in shape)
            or math.prod(shape) != settings["layer_sizes"][0]
        ):
            raise ValueError(f"input_shape {shape!r}")
        if type(epochs) is not int or epochs < 0:
            raise ValueError(f"epochs {epochs!r}")
    except KeyError as cause:
        raise ModelFileError(f"{path}: its architecture lacks {cause}") from None
    except (ValueError, TypeError, RecursionError) as cause:
        raise ModelFileError(f"{path}: its architecture cannot be used: {cause}") from None
    return architecture, settings


def _checked_tensors(path: str, file: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The parameters' data sets, each of the shape and dtype the architecture says and stored in full in this file."""
    import h5py

    shapes = dict(Parameters.shapes(settings["layer_sizes"]))
    if not isinstance(file.get("parameters", getlink=True), h5py.HardLink) or not isinstance(
        file["parameters"], h5py.Group
    ):
        raise ModelFileError(f"{path}: no group 'parameters'")
    group, tensors = file["parameters"], {}
    if set(group) != set(shapes):
        raise ModelFileError(
            f"{path}: its architecture {settings['layer_sizes']} has the parameters {', '.join(shapes)}; "
            f"the file has {', '.join(sorted(group)) or 'none'}"
        )
    for name, shape in shapes.items():
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(group[name], h5py.Dataset):
            raise ModelFileError(f"{path}: parameters/{name} is not a data set of this file")
        tensor = group[name]
        if tensor.shape != shape or tensor.dtype != settings["dtype"]:
            raise ModelFileError(
                f"{path}: layer {name[1:]}: parameters/{name} has shape {tensor.shape} and dtype {tensor.dtype}; "
                f"the architecture says {shape} and {settings['dtype']}: the file is damaged, save it again"
            )
        # what is not stored here (virtual, external, never written) would be read as something else
        if tensor.is_virtual or tensor.external is not None or tensor.id.get_storage_size() != tensor.nbytes:
            raise ModelFileError(f"{path}: parameters/{name} is not stored in full in this file")
        tensors[name] = tensor
    return tensors


def _checked_classes(path: str, file: Any, settings: dict[str, Any]) -> list[str] | None:
    import h5py

    if "classes" not in file:
        return None
    link, sizes = file.get("classes", getlink=True), settings["layer_sizes"]
    expected = max(sizes[-1], 2)
    if not isinstance(link, h5py.HardLink) or not isinstance(file["classes"], h5py.Dataset):
        raise ModelFileError(f"{path}: classes is not a data set of this file")
    data = file["classes"]
    if data.shape != (expected,) or data.dtype.kind != "S" or data.external is not None or data.is_virtual:
        raise ModelFileError(f"{path}: classes: expected {expected} names, got {data.dtype} of shape {data.shape}")
    return [name.decode("utf-8", "replace") for name in data[...]]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
