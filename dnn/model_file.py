"""Model files: HDF5, no pickle, written atomically.

    /                   attributes: format = "dnn model", format_version, dnn_version, sha256 of the contents below
    /architecture       JSON
    /parameters/Wl      (n_out, n_in); of several members (members, n_out, n_in)
    /parameters/...     the other parameters, by name
    /state/...          what layers keep beside parameters: running statistics
    /statistics/...     what the scales of inputs and targets were taken from
    /classes            (K,) names, if the data had them

Version 1 is for networks given by their sizes, without any of what came later, names included: any dnn reads them.
Version 2 has all.

A file is built in memory and appears under its name only when it is complete on disk. Loading checks every data set
against the architecture, and all of them against the checksum, before using any. Strings have fixed length: on a
damaged string of variable length the HDF5 library can loop forever.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fsdecode
from os.path import expanduser
from typing import Any

import numpy as np

from dnn.activations import ACTIVATIONS
from dnn.data.hdf5 import open_hdf5, reporting_damage, unpadded
from dnn.errors import DataError, ModelFileError
from dnn.files import check_writable, write_whole
from dnn.inference import check_finite
from dnn.initializers import COURSE, INITIALIZERS
from dnn.layers import layer_config, layer_from_config
from dnn.losses import BUILT_IN, loss_config, loss_from_config
from dnn.network import Network
from dnn.parameters import kind_of
from dnn.specification import sizes_of

FORMAT = "dnn model"
FORMAT_VERSION = 2
_SETTINGS = ("activation", "output", "initializer", "seed", "dtype", "input_scale")
_NEW_SETTINGS = {"dropout": 0.0, "norm": None, "target_scale": None, "members": 1, "shared": None}
"""Of version 2, with what they are in version 1."""
_FIRST_INITIALIZERS = (
    *(f"{name}_{law}" for name in ("he", "glorot", "lecun") for law in ("normal", "uniform")),
    *COURSE,
)
_NEW_NAMES = {
    # at import: names that users register come later, and are for any version
    "activation": frozenset(ACTIVATIONS) - {"relu", "tanh", "sigmoid", "gelu"},
    "initializer": frozenset(INITIALIZERS) - set(_FIRST_INITIALIZERS),
    "loss": frozenset(BUILT_IN) - {"sigmoid_cross_entropy", "softmax_cross_entropy", "squared_error"},
}
"""That version 2 has and version 1 did not know."""
_GROUPS = ("parameters", "state", "statistics")


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
    settings = network.settings()
    architecture = {"layer_sizes": network.layer_sizes, **{name: settings.get(name) for name in _SETTINGS}}
    if network.spelled_out:
        del architecture["activation"]
        architecture["layers"] = [layer_config(layer) for layer in network.layers]
    architecture |= {
        name: settings[name] for name, usual in _NEW_SETTINGS.items() if settings.get(name, usual) != usual
    }
    if network.steps:
        architecture["steps"] = network.steps
    architecture |= {
        "input_kind": network.input_kind,
        "input_shape": network.input_shape,
        "feature_names": network.feature_names,
        "epochs": network.epochs,
    }
    if network.loss is not None:
        architecture["loss"] = loss_config(network.loss)
    expected = classes_of(network.layer_sizes)
    if isinstance(network.classes, str):
        raise TypeError(f"network.classes must be a list of names, got {network.classes!r}")
    if network.classes is not None and len(network.classes) != expected:
        raise ValueError(f"network.classes must be {expected} names, got {len(network.classes)}")
    if network.classes is not None and not all(isinstance(name, str) for name in network.classes):
        raise TypeError(f"network.classes must be names, got {list(network.classes)!r}")
    if network.classes is not None and len(set(network.classes)) < expected:
        raise ValueError(f"network.classes must be different names, got {list(network.classes)!r}: rename those alike")
    if (
        sizes_of(network.layer_sizes[0], network.layers) != network.layer_sizes
        or network.dtype != network.parameters.dtype
    ):
        raise ValueError("layer_sizes and dtype are those that the network was made with: make another instead")
    text = json.dumps(architecture, default=_of_numpy).encode()
    _architecture("this network", text, "numpy", _Described)
    contents = {"architecture": np.array(text)}
    for group, arrays in (("parameters", network.parameters), ("state", network.layer_state)):
        contents |= {f"{group}/{name}": network.backend.to_numpy(view) for name, view in arrays.items()}
    learned = expected_statistics(network) if network.statistics else ()
    contents |= {f"statistics/{name}": network.statistics[name] for name in learned}
    if network.classes is not None:
        contents["classes"] = np.array([name.encode() for name in network.classes], dtype=bytes)
    buffer = io.BytesIO()
    # format version 1.10 adds checksums to all of HDF5's own metadata
    with h5py.File(buffer, "w", libver="v110", track_order=True) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = 1 if _is_first_version(architecture, contents) else FORMAT_VERSION
        file.attrs["dnn_version"] = np.bytes_(dnn.__version__)
        file.attrs["sha256"] = np.bytes_(_checksum(contents.values()))
        for group in _GROUPS:
            if any(name.startswith(f"{group}/") for name in contents):
                file.create_group(group, track_order=True)
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
        described = _architecture(path, contents["architecture"], backend, _Described)
        tensors = _checked_tensors(path, file, described)
        contents |= {name: tensor[...] for name, tensor in tensors.items()}
        if "classes" in file:
            contents["classes"] = _checked_classes(path, file, described)[...]
        if file.attrs.get("sha256") != np.bytes_(_checksum(contents.values())):
            raise ModelFileError(f"{path}: its checksum does not match its content: the file is damaged")
    network = _architecture(path, contents["architecture"], backend, Network)
    for group, arrays in (("parameters", network.parameters), ("state", network.layer_state)):
        for name in arrays:
            try:
                arrays[name] = contents[f"{group}/{name}"]
            except DataError as cause:
                raise ModelFileError(f"{path}: {cause}") from None
    of_scales = expected_statistics(network)
    network.statistics = {
        name: contents[f"statistics/{name}"] for name in of_scales if f"statistics/{name}" in contents
    }
    if "classes" in contents:
        try:
            network.classes = [unpadded(name) for name in contents["classes"]]
        except UnicodeDecodeError as cause:
            raise ModelFileError(f"{path}: classes: {cause.object!r} is not UTF-8: the file is damaged") from None
    return network


def _of_numpy(value: Any) -> Any:
    if isinstance(value, (np.number, np.bool_, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a model file stores numbers and names, got {value!r}")


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
    if version not in (1, FORMAT_VERSION):
        raise ModelFileError(
            f"{path}: model format {version}, but this dnn reads 1 to {FORMAT_VERSION}: "
            "use the dnn version that wrote it"
        )


def _is_first_version(architecture: dict[str, Any], contents: Iterable[str]) -> bool:
    """Whether the first version of this format says all that there is to say."""
    new = {"layers", "steps", *_NEW_SETTINGS} & architecture.keys()
    plain = isinstance(architecture.get("loss", ""), str) and isinstance(architecture["initializer"], str)
    for name, unknown in _NEW_NAMES.items():
        value = architecture.get(name, "")
        plain = plain and unknown.isdisjoint([value] if isinstance(value, str) else value)
    return plain and not new and not any(name.startswith(("state/", "statistics/")) for name in contents)


class _Described(Network):
    """A network without arrays: a damaged file may describe one that no machine has memory for."""

    def _allocate(self, shapes: Mapping[str, Sequence[int]], state_shapes: Mapping[str, Sequence[int]]) -> None:
        pass


def _architecture(path: str, text: bytes, backend: str | None, kind: type[Network]) -> Network:
    """The network of an architecture, with nothing learned in it."""
    try:
        architecture = json.loads(text)
        sizes, spelled_out = architecture["layer_sizes"], "layers" in architecture
        settings = {name: architecture[name] for name in _SETTINGS if name != "activation" or not spelled_out}
        settings |= {name: architecture[name] for name in _NEW_SETTINGS if name in architecture}
        if "loss" in architecture:
            settings["loss"] = loss_from_config(architecture["loss"])
        layers = [layer_from_config(config) for config in architecture["layers"]] if spelled_out else None
        kind_of_input, shape, epochs = (architecture[name] for name in ("input_kind", "input_shape", "epochs"))
        names, steps = architecture.get("feature_names"), architecture.get("steps", 0)  # older files have none
        if not isinstance(sizes, list) or not sizes:
            raise ValueError(f"layer_sizes {sizes!r:.100}")
        n_in = sizes[0]
        if kind_of_input not in (None, "bytes", "numbers"):
            raise ValueError(f"input_kind {kind_of_input!r}")
        if shape is not None and (
            not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape) or math.prod(shape) != n_in
        ):
            raise ValueError(f"input_shape {shape!r}")
        if names is not None and (
            not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != n_in
        ):
            raise ValueError(f"feature_names {names!r:.100}")
        for name, count in (("epochs", epochs), ("steps", steps)):
            if type(count) is not int or count < 0:
                raise ValueError(f"{name} {count!r}")
        network = kind(n_in if spelled_out else sizes, layers, **settings, backend=backend)
        if list(network.layer_sizes) != sizes:
            raise ValueError(f"layer_sizes {sizes!r:.100}")
    except KeyError as cause:
        raise ModelFileError(f"{path}: its architecture lacks {cause}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as cause:
        raise ModelFileError(f"{path}: its architecture cannot be used: {cause}") from None
    network.input_kind, network.feature_names = kind_of_input, names
    network.input_shape = None if shape is None else tuple(shape)
    network.epochs, network.steps = epochs, steps
    return network


def expected_statistics(network: Network) -> dict[str, tuple[int, ...]]:
    """What a network learns of the scales of its data, with the shapes."""
    found: dict[str, tuple[int, ...]] = {}
    for part, scale, size in (
        ("input", network.input_scale, network.layer_sizes[0]),
        ("target", network.target_scale, network.targets),
    ):
        if isinstance(scale, str):
            found |= {f"{part}_shift": (size,), f"{part}_factor": (size,)}
    return found


def _checked_tensors(path: str, file: Any, network: Network) -> dict[str, Any]:
    """The data sets of parameters, state and statistics, after checking shapes and dtypes against the architecture."""
    import h5py

    # a fit that was interrupted in its first epoch has learned them as well
    statistics = expected_statistics(network) if network.epochs or "statistics" in file else {}
    expected: dict[str, tuple[Mapping[str, Any], np.dtype]] = {
        "parameters": (network.shapes, network.dtype),
        "state": (network.state_shapes, network.dtype),
        "statistics": (statistics, np.dtype(np.float64)),
    }
    found = {}
    for group, (shapes, dtype) in expected.items():
        if not shapes and group not in file:
            continue
        is_here = isinstance(file.get(group, getlink=True), h5py.HardLink)
        if not is_here or not isinstance(file[group], h5py.Group):
            raise ModelFileError(f"{path}: no group {group!r}")
        if set(file[group]) != set(shapes):
            raise ModelFileError(
                f"{path}: its architecture {list(network.layer_sizes)} has the {group} {', '.join(shapes)}; "
                f"the file has {', '.join(sorted(file[group])) or 'none'}: the file is damaged"
            )
        for name, shape in shapes.items():
            tensor = found[f"{group}/{name}"] = _stored(path, file, f"{group}/{name}")
            if tensor.shape != shape or tensor.dtype != dtype:
                layer = name.removeprefix(kind_of(name)).partition("_")[0]
                where = f"layer {layer}: " if layer else ""
                raise ModelFileError(
                    f"{path}: {where}{group}/{name} has shape {tensor.shape} and dtype {tensor.dtype}, but the "
                    f"architecture specifies {shape} and {dtype}: the file is damaged, save the model again"
                )
    return found


def _checked_classes(path: str, file: Any, network: Network) -> Any:
    names, expected = _stored(path, file, "classes"), classes_of(network.layer_sizes)
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
