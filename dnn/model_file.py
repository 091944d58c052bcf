"""Model files: HDF5, no pickle, written atomically.

    /                   attributes: format = "dnn model", format_version, needs, dnn_version, sha256 of the contents
    /architecture       JSON
    /parameters/Wl      (n_out, n_in); of several members (members, n_out, n_in)
    /parameters/...     the other parameters, by name
    /state/...          what layers keep beside parameters: running statistics
    /statistics/...     what the scales of inputs and targets were taken from
    /classes            (K,) names, if the data had them
    /training/...       what a fit goes on with: see dnn.training_file. Who only predicts may leave it out

`needs` names what a reader has to know beyond version 1, as "layers, statistics, activation mish": a dnn that knows all
of it reads the file, whatever version wrote it. Version 1 needs nothing: any dnn reads it. Version 2 is of before there
was `needs`; 3 has it where version 2 would not do.

A file is built in memory and appears under its name only when it is complete on disk. Loading checks every data set
against the architecture, and all of them against the checksum, before using any. Strings have fixed length: on a
damaged string of variable length the HDF5 library can loop forever.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fsdecode
from os.path import expanduser
from typing import Any

import numpy as np

from dnn.activations import ACTIVATIONS
from dnn.backends import log_once
from dnn.configuration import of_numpy
from dnn.data.schema import Schema
from dnn.errors import DataError, ModelFileError, check_switch
from dnn.files import check_writable, write_whole
from dnn.hdf5 import attribute, dataset, has, names_in, open_hdf5, read, reporting_damage, unpadded
from dnn.inference import check_finite
from dnn.initializers import COURSE, INITIALIZERS
from dnn.layers import layer_config, layer_from_config
from dnn.losses import BUILT_IN, LOSSES, loss_config, loss_from_config
from dnn.network import Network
from dnn.parameters import kind_of
from dnn.specification import sizes_of
from dnn.training_file import GROUP, LARGEST_TEXT, Stored, checksum, stored_training, training_contents

FORMAT = "dnn model"
FORMAT_VERSION = 3
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
_KNOWN = {"activation": ACTIVATIONS, "initializer": INITIALIZERS, "loss": LOSSES}
_GROUPS = ("parameters", "state", "statistics")
_NEEDED = ("layers", "steps", "schema", "loss settings", *_NEW_SETTINGS, "state", "statistics")
"""What this dnn knows of what a file may need, beside names."""
_OF_VERSION_2 = frozenset(_NEEDED) - {"schema"}


def save(
    network: Network, path: str | bytes | PathLike[str], force: bool = False, training_state: bool | None = None
) -> None:
    """Write `network` to `path`. OutputError if it cannot be written, or exists and `force` is not given.

    With what a next fit goes on with, unless `training_state` is False. By default a log line says where that has no
    name to be stored by, as an optimizer of one's own; with True it is a ValueError.
    """
    if not isinstance(path, (str, bytes, PathLike)):
        raise TypeError(f"save takes the path of a file, got {type(path).__name__}")
    if not isinstance(force, (bool, np.bool_)):
        raise TypeError(f"force must be True or False, got {force!r}")
    if training_state is not None:
        check_switch("training_state", training_state)
    path = expanduser(fsdecode(path))
    check_writable(path, force)
    write_whole({path: model_bytes(network, training_state)}, force)


def model_bytes(network: Network, training_state: bool | None = None) -> bytes:
    """The model file's content. An error where `load` would refuse it."""
    check_finite(network)
    described = check_describable(network)
    contents = model_contents(network, described)
    if training_state is not False:
        try:
            training = training_contents(network, network.fit_record)
            check_readable("this network", contents | training)
            contents |= training
        except ValueError as cause:
            if training_state:
                raise
            log_once(f"a model file is written without what its next fit would go on with: {cause}")
    return file_bytes(contents)


def check_readable(path: str, contents: Mapping[str, np.ndarray]) -> None:
    """ValueError where `load` would not go on with the state of training among these data sets."""
    if f"{GROUP}/state" not in contents:
        return
    text = bytes(contents[f"{GROUP}/state"])
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"its history takes {len(text)} bytes, and {LARGEST_TEXT} are the most that is read")
    try:
        stored = Stored(text, described(path, contents))
    except (TypeError, KeyError, AttributeError, OverflowError) as cause:
        raise ValueError(f"its state of training, or its history, could not be read: {cause}") from None
    if missing := stored.shapes.keys() - contents.keys():
        raise ValueError(f"its state of training lacks {sorted(missing)[0]}")


def check_describable(network: Network) -> bytes:
    """The architecture, as JSON; an error where `load` would refuse it."""
    text = architecture_of(network)
    described("this network", {"architecture": np.array(text)})
    return text


def architecture_of(network: Network) -> bytes:
    """The architecture, as JSON; an error where it, or a name of a class, cannot be stored."""
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
    if network.schema is not None:
        architecture["schema"] = network.schema.config()
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
    for name in network.classes or ():
        if "\0" in name or name != name.encode("utf-8", "replace").decode():
            raise ValueError(f"network.classes: a file cannot store {name!r}: leave out what is no character")
    if network.classes is not None and len(set(network.classes)) < expected:
        raise ValueError(f"network.classes must be different names, got {list(network.classes)!r}: rename those alike")
    if (
        sizes_of(network.layer_sizes[0], network.layers) != network.layer_sizes
        or network.dtype != network.parameters.dtype
    ):
        raise ValueError("layer_sizes and dtype are those that the network was made with: make another instead")
    return json.dumps(architecture, default=of_numpy).encode()


def model_contents(network: Network, architecture: bytes, copied: bool = False) -> dict[str, np.ndarray]:
    """The data sets of the model, by name; `copied`: they do not change when the network is trained."""
    contents = {"architecture": np.array(architecture)}
    for group, parameters in (("parameters", network.parameters), ("state", network.layer_state)):
        host = network.backend.to_numpy(parameters.flat)
        host = host.copy() if copied and host is parameters.flat else host
        contents |= {f"{group}/{name}": view for name, view in parameters.named(host).items()}
    learned = expected_statistics(network) if network.statistics else ()
    contents |= {f"statistics/{name}": network.statistics[name] for name in learned}
    if network.classes is not None:
        contents["classes"] = np.array([name.encode() for name in network.classes], dtype=bytes)
    return contents


def file_bytes(contents: Mapping[str, np.ndarray]) -> bytes:
    """The file of these data sets, those of the model first."""
    import h5py

    import dnn

    architecture = json.loads(bytes(contents["architecture"]))
    needs = _needs(architecture, contents)
    version = 1 if not needs else 2 if all(need in _OF_VERSION_2 or " " in need for need in needs) else FORMAT_VERSION
    of_model = _checksum(array for name, array in contents.items() if not name.startswith(f"{GROUP}/"))
    if f"{GROUP}/state" in contents:
        contents = {**contents, f"{GROUP}/checksum": np.array(checksum(contents, of_model).encode())}
    buffer = io.BytesIO()
    # format version 1.10 adds checksums to all of HDF5's own metadata
    with h5py.File(buffer, "w", libver="v110", track_order=True) as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["format_version"] = version
        file.attrs["needs"] = np.bytes_(", ".join(needs) or "nothing")
        file.attrs["dnn_version"] = np.bytes_(dnn.__version__)
        file.attrs["sha256"] = np.bytes_(of_model)
        for group in _GROUPS:
            if any(name.startswith(f"{group}/") for name in contents):
                file.create_group(group, track_order=True)
        for name, content in contents.items():
            file.create_dataset(name, data=content)
    return buffer.getvalue()


def load(path: str | bytes | PathLike[str], backend: str | None = None, isolate: bool = False) -> Network:
    """The network in the model file `path`, on the given backend, by default the one in use.

    A fit goes on where the last one stopped, if the file keeps that. With `isolate` a file that is not trusted is read
    in a process of its own, with limits on memory and time. ModelFileError says what is wrong with the file.
    """
    path = expanduser(fsdecode(path))
    if isolate:
        from dnn.isolation import contents_isolated

        return network_of(path, contents_isolated(path), backend)
    return network_of(path, contents(path), backend)


def contents(path: str, strict: bool = False) -> dict[str, np.ndarray]:
    """All data sets of a model file, by name, checked. With `strict`, a state of training that no fit can go on with is
    an error too; otherwise it is left out."""
    with reporting_damage(path, ModelFileError), open_hdf5(path, ModelFileError) as file:
        check_format(path, file)
        found = {"architecture": _text(path, file, "architecture", "JSON")}
        described = _architecture(path, bytes(found["architecture"]), "numpy", _Described)
        sets = _checked_tensors(path, file, described)
        for name, tensor in sets.items():
            # the scale of a constant feature may be infinite
            found[name] = read(path, tensor, ModelFileError, finite=not name.startswith("statistics/"))
        if has(file, "classes"):
            found["classes"] = read(path, _checked_classes(path, file, described), ModelFileError)
        of_model = attribute(path, file, "sha256", ModelFileError)
        if of_model != _checksum(found.values()).encode():
            raise ModelFileError(f"{path}: its checksum does not match its content: the file is damaged")
        if has(file, GROUP):
            found |= _training(path, file, described, of_model, strict)
    return found


def described(path: str, contents: Mapping[str, np.ndarray]) -> Network:
    """The network of these data sets without arrays."""
    return _architecture(path, bytes(contents["architecture"]), "numpy", _Described)


def network_of(path: str, contents: Mapping[str, np.ndarray], backend: str | None) -> Network:
    """The network of the data sets that `contents` gave."""
    network = _architecture(path, bytes(contents["architecture"]), backend, Network)
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
    if f"{GROUP}/state" in contents:
        Stored(bytes(contents[f"{GROUP}/state"]), network).give(network, contents)
    return network


def classes_of(layer_sizes: Sequence[int]) -> int:
    """The number of classes that the output layer distinguishes."""
    return max(layer_sizes[-1], 2)


def _checksum(contents: Iterable[np.ndarray]) -> str:
    checksum = hashlib.sha256()
    for content in contents:
        checksum.update(np.ascontiguousarray(content).tobytes())
    return checksum.hexdigest()


def check_format(path: str, file: Any) -> None:
    """ModelFileError where this is no model file, or it needs what this dnn does not know."""
    if attribute(path, file, "format", ModelFileError) != FORMAT.encode():
        raise ModelFileError(f"{path}: an HDF5 file, but not a model of dnn (no format = {FORMAT!r})")
    version, needs = (attribute(path, file, name, ModelFileError) for name in ("format_version", "needs"))
    if isinstance(version, bytes):
        raise ModelFileError(f"{path}: format_version: expected a whole number, got text: the file is damaged")
    if not isinstance(needs, bytes):
        if version not in (1, 2):
            raise ModelFileError(
                f"{path}: model format {version}, but this dnn reads 1 to {FORMAT_VERSION}: "
                "use the dnn version that wrote it"
            )
        return
    unknown = [need for need in needs.decode("ascii", "replace").split(", ") if not _is_known(need)]
    if unknown:
        raise ModelFileError(
            f"{path}: it needs {', '.join(unknown)}, which this dnn does not know (it is of format {version}): "
            "register that name, or use the dnn version that wrote it"
        )


def _is_known(need: str) -> bool:
    kind, _, name = need.partition(" ")
    return need in ("nothing", *_NEEDED) or name in _KNOWN.get(kind, ())


def _needs(architecture: dict[str, Any], contents: Iterable[str]) -> list[str]:
    """What a reader has to know beyond the first version of this format, in a fixed order."""
    found = {name for name in ("layers", "steps", "schema", *_NEW_SETTINGS) if name in architecture}
    found |= {group for group in ("state", "statistics") if any(name.startswith(f"{group}/") for name in contents)}
    names = []
    for kind, unknown in _NEW_NAMES.items():
        value = architecture.get(kind, "")
        for each in [value] if isinstance(value, (str, dict)) or not isinstance(value, (list, tuple)) else value:
            if isinstance(each, dict):
                found.add(f"{kind} settings")
                each = each.get("name")
            elif not isinstance(each, str):  # a number
                found.add("layers")
            if each in unknown:
                names.append(f"{kind} {each}")
    return [name for name in _NEEDED if name in found] + sorted(set(names))


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
        if "schema" in architecture:
            settings["schema"] = Schema.from_config(architecture["schema"])
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
    # a fit that was interrupted in its first epoch has learned them as well
    statistics = expected_statistics(network) if network.epochs or has(file, "statistics") else {}
    expected: dict[str, tuple[Mapping[str, Any], np.dtype]] = {
        "parameters": (network.shapes, network.dtype),
        "state": (network.state_shapes, network.dtype),
        "statistics": (statistics, np.dtype(np.float64)),
    }
    found = {}
    for group, (shapes, dtype) in expected.items():
        if not shapes and not has(file, group):
            continue
        if not has(file, group):
            raise ModelFileError(f"{path}: no group {group!r}")
        names = names_in(path, file, group, ModelFileError)
        if set(names) != set(shapes):
            raise ModelFileError(
                f"{path}: its architecture {list(network.layer_sizes)} has the {group} {', '.join(shapes)}; "
                f"the file has {', '.join(names[:20]) or 'none'}: the file is damaged"
            )
        for name, shape in shapes.items():
            found[f"{group}/{name}"] = _tensor(path, file, f"{group}/{name}", shape, dtype)
    return found


def _tensor(path: str, file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    tensor = dataset(path, file, name, ModelFileError, whole=True)
    if tensor.shape != shape or tensor.dtype != dtype:
        own = name.rpartition("/")[2]
        layer = own.removeprefix(kind_of(own)).partition("_")[0]
        where = f"layer {layer}: " if layer else ""
        raise ModelFileError(
            f"{path}: {where}{name} has shape {tensor.shape} and dtype {tensor.dtype}, but the "
            f"architecture specifies {shape} and {dtype}: the file is damaged, save the model again"
        )
    return tensor


def _training(path: str, file: Any, network: Network, of_model: Any, strict: bool) -> dict[str, np.ndarray]:
    """The data sets of the state of training, or none of them where this dnn cannot go on with it."""
    found = {f"{GROUP}/state": _text(path, file, f"{GROUP}/state", "JSON")}
    of_file = _text(path, file, f"{GROUP}/checksum", "a checksum")
    stored = stored_training(path, bytes(found[f"{GROUP}/state"]), network, strict)
    if stored is None:
        return {}
    for name, (shape, dtype) in stored.shapes.items():
        found[name] = read(path, _tensor(path, file, name, shape, dtype), ModelFileError)
    if bytes(of_file) != checksum(found, bytes(of_model).decode()).encode():
        raise ModelFileError(f"{path}: the checksum of its state of training does not match: the file is damaged")
    return found


def _text(path: str, file: Any, name: str, what: str) -> np.ndarray:
    data = dataset(path, file, name, ModelFileError, kinds="biufS", whole=True, budget=LARGEST_TEXT)
    if data.shape != () or data.dtype.kind != "S":
        raise ModelFileError(f"{path}: {name}: expected {what}, got {data.dtype} of shape {data.shape}")
    return read(path, data, ModelFileError)


def _checked_classes(path: str, file: Any, network: Network) -> Any:
    names, expected = dataset(path, file, "classes", ModelFileError, whole=True), classes_of(network.layer_sizes)
    if names.shape != (expected,) or names.dtype.kind != "S":
        raise ModelFileError(f"{path}: classes: expected {expected} names, got {names.dtype} of shape {names.shape}")
    return names
