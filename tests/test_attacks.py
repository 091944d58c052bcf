"""Files that were made to do harm: each is refused in one line that says by what name, and no other file is read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import dnn
from dnn import hdf5, model_file
from dnn.errors import DataError, ModelFileError

X = np.arange(24.0).reshape(6, 4)
Y = np.array([0, 1, 1, 0, 1, 0])

ATTACKS = {
    "external link": "leads into another file of the reader's, at any depth of a path",
    "soft link": "leads elsewhere in the file, past what was checked",
    "external storage": "the values are the bytes of any other file",
    "virtual data set": "the values are another file's data sets",
    "huge shape": "2 KB that declare terabytes",
    "mostly unwritten": "terabytes with one chunk of them written: the others read as zeros",
    "zip bomb": "a small chunk that unpacks to gigabytes, as declared",
    "lying chunk": "a chunk that is stored larger than what it declares, to unpack to far more",
    "overlapping chunks": "one chunk in the index of many places",
    "object type": "text of variable length, which HDF5 can loop on",
    "lists": "lists of variable length",
    "references": "to objects and to regions of them",
    "compound": "types in types",
    "array type": "an array in each place",
    "unknown filter": "makes HDF5 look for a library to load",
    "kind": "a data set for a group, a group for a data set, a type for either",
    "cyclic groups": "a group that contains itself, for whoever walks the tree",
    "many groups": "100,000 groups, for whoever lists them",
    "many attributes": "100,000 attributes, likewise",
    "dots": "'..' in a name, for whoever takes it for a path",
    "huge attribute": "an attribute larger than what is looked for",
    "attribute of text": "of variable length, which HDF5 can loop on",
    "nan": "weights that are no numbers, with the right checksum",
    "checksum": "weights that are not those that were saved",
}


def plain(file: h5py.File) -> None:
    file["train_set_x"], file["train_set_y"] = X, Y


def created(name: str, kind: h5py.h5t.TypeID, shape: tuple[int, ...] = (6, 4), plist=None):
    def make(file: h5py.File) -> None:
        h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plist)

    return make


def external_link(deep: str):
    def make(file: h5py.File) -> None:
        file[deep] = h5py.ExternalLink("secret.h5", "/")

    return make


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource("secret.h5", "x", X.shape)
    file.create_virtual_dataset("train_set_x", layout)


def packed(
    chunk: tuple[int, ...], content: bytes, shape: tuple[int, ...] | None = None, places: int = 1
) -> Callable[[h5py.File], None]:
    """A data set of bytes in gzip's chunks, whose stored content is `content`."""

    def make(file: h5py.File) -> None:
        data = file.create_dataset("train_set_x", shape or chunk, "u1", chunks=chunk, compression="gzip")
        for place in range(places):
            data.id.write_direct_chunk((place * chunk[0], *(0 for _ in chunk[1:])), content)

    return make


def _zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)), packer.flush()])


def overlapping(file: h5py.File) -> None:
    packed((1 << 16, 1), np.random.default_rng(0).bytes(1 << 16), (1 << 18, 1), 4)(file)


def overlap(path: Path) -> None:
    """Let all chunks of the index be the first."""
    with h5py.File(path) as file:
        places = [file["train_set_x"].id.get_chunk_info(i).byte_offset for i in range(4)]
    content = path.read_bytes()
    for place in places[1:]:
        assert content.count(struct.pack("<Q", place)) == 1
        content = content.replace(struct.pack("<Q", place), struct.pack("<Q", places[0]))
    # what is no longer used goes: the file ends where the first chunk does
    end = places[0] + (1 << 16)
    assert sorted(places) == places
    content = content.replace(struct.pack("<Q", len(content)), struct.pack("<Q", end))[:end]
    path.write_bytes(content)


def cyclic(file: h5py.File) -> None:
    group = file.create_group("a")
    group["again"], group["root"] = group, file["/"]


def unknown_filter(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(X.shape)
    plist.set_filter(40000, h5py.h5z.FLAG_OPTIONAL, (3,))
    created("train_set_x", h5py.h5t.NATIVE_DOUBLE, X.shape, plist)(file)
    file["train_set_x"].id.write_direct_chunk((0, 0), X.tobytes(), 0)


COMPOUND = np.dtype([("a", "f4"), ("b", "i4")])

OF_DATA: dict[str, tuple[Callable[[h5py.File], None], str, tuple[str, ...]]] = {
    # name: what makes it, the examples' name, words of the refusal
    **{
        f"external link, {depth} deep": (external_link(name), f"{name}/x", (f"{name} is a link to elsewhere: refused",))
        for depth, name in enumerate(("out", "a/out", "a/b/out", "a/b/c/d/e/f/out"), 1)
    },
    "external link itself": (external_link("train_set_x"), "train_set_x", ("train_set_x is a link to elsewhere",)),
    "soft link": (
        lambda file: (plain(file), file.__setitem__("soft", h5py.SoftLink("/train_set_x"))),
        "soft",
        ("soft is a link to elsewhere: refused",),
    ),
    "soft link to a group": (
        lambda file: file.__setitem__("soft", h5py.SoftLink("/")),
        "soft/train_set_x",
        ("soft is a link to elsewhere: refused",),
    ),
    "external storage": (
        lambda file: file.create_dataset("train_set_x", X.shape, "f8", external=[("secret.h5", 0, 4096)]),
        "train_set_x",
        ("keeps its data in another file: refused",),
    ),
    "virtual data set": (virtual, "train_set_x", ("keeps its data in another file: refused",)),
    "huge shape": (
        lambda file: file.create_dataset("train_set_x", (1 << 40, 4), "u1", chunks=(1000, 4)),
        "train_set_x",
        ("(1099511627776, 4) is declared", "no data was ever written"),
    ),
    "huge shape in one piece": (
        lambda file: file.create_dataset("train_set_x", (1 << 40, 4), "u1"),
        "train_set_x",
        ("no data was ever written",),
    ),
    "mostly unwritten": (
        packed((1000, 4), zlib.compress(bytes(4000)), (1 << 40, 4)),
        "train_set_x",
        ("(1099511627776, 4) is declared", "not ever written: refused"),
    ),
    "zip bomb": (packed(((1 << 31) - 1, 1), b"x"), "train_set_x", ("a chunk", "2147483647 bytes", "refused")),
    "lying chunk": (
        packed((1000, 4), _zeros(1 << 24)),
        "train_set_x",
        ("a chunk at [0, 0]", "declared with 4000", "refused"),
    ),
    "overlapping chunks": (overlapping, "train_set_x", ("262144 bytes are to be stored in a file of", "damaged")),
    "object type": (
        lambda file: file.__setitem__("train_set_x", np.array(["a"] * 6, h5py.string_dtype())),
        "train_set_x",
        ("expected numbers, got text of variable length (object)",),
    ),
    "lists": (
        lambda file: file.__setitem__("train_set_x", np.array([[]] * 6, h5py.vlen_dtype("f8"))),
        "train_set_x",
        ("expected numbers, got lists of variable length",),
    ),
    "references to objects": (
        created("train_set_x", h5py.h5t.STD_REF_OBJ),
        "train_set_x",
        ("expected numbers, got references",),
    ),
    "references to regions": (
        created("train_set_x", h5py.h5t.STD_REF_DSETREG),
        "train_set_x",
        ("expected numbers, got references",),
    ),
    "compound": (
        lambda file: file.__setitem__("train_set_x", np.zeros((6, 4), COMPOUND)),
        "train_set_x",
        ("expected numbers, got a compound type",),
    ),
    "array type": (
        created("train_set_x", h5py.h5t.array_create(h5py.h5t.NATIVE_FLOAT, (3,))),
        "train_set_x",
        ("expected numbers, got an array in each place",),
    ),
    "unknown filter": (unknown_filter, "train_set_x", ("filter unknown (40000)", "not installed")),
    "kind: a group": (lambda file: file.create_group("train_set_x/a"), "train_set_x", ("is a group, not a data set",)),
    "kind: a data set": (plain, "train_set_x/a", ("no data set 'train_set_x/a'",)),
    "kind: a type": (
        lambda file: file.__setitem__("train_set_x", np.dtype("f8")),
        "train_set_x",
        ("is a type, not a data set",),
    ),
    "cyclic groups": (cyclic, "a/again/root/a/x", ("no data set 'a/again/root/a/x': the file has no data sets",)),
    "dots": (plain, "../train_set_x", ("'../train_set_x': refused", "'..'")),
    "dots in the file": (
        lambda file: file.create_group(".."),
        "../train_set_x",
        ("'../train_set_x': refused", "'..'"),
    ),
}


def test_every_attack_of_the_list_is_made():
    made = [*OF_DATA, *OF_MODELS, "many attributes"]
    assert [name for name in ATTACKS if not any(each.startswith(name) for each in made)] == []
    assert [each for each in made if not any(each.startswith(name) for name in ATTACKS)] == []


def refusal(use: Callable[[], object], path: Path, error: type[Exception]) -> str:
    with pytest.raises(error) as raised:
        use()
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("attack", OF_DATA)
def test_a_data_file_that_attacks_is_refused_by_name(attack, tmp_path: Path):
    make, name, words = OF_DATA[attack]
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"], file["train_set_x"] = X, X
    path = tmp_path / "bad.h5"
    with h5py.File(path, "w", libver="v110" if attack == "huge shape" else None) as file:
        make(file)
    if attack == "overlapping chunks":
        overlap(path)
    message = refusal(lambda: dnn.open_dataset(path, x=name), path, DataError)
    assert all(word in message for word in words), message


# --------------------------------------------------------------------------------------- model files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["W1"] = np.zeros((2, 3), "f4")
    dnn.Network([3, 2], output="softmax", seed=2).save(tmp_path / "model.h5")
    return tmp_path / "model.h5"


def instead(name: str, make: Callable[[h5py.File], object]):
    """Something else in the place of a part of a model file."""

    def edit(file: h5py.File) -> None:
        del file[name]
        made = make(file)
        if made is not None:
            file[name] = made

    return edit


def virtual_weights(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "W1", (2, 3))
    file.create_virtual_dataset("parameters/W1", layout)


def nan_weights(file: h5py.File) -> None:
    file["parameters/W1"][1, 2] = np.nan
    contents = [file[name][()] for name in ("architecture", "parameters/W1", "parameters/b1")]
    file.attrs["sha256"] = np.bytes_(model_file._checksum(contents))


def as_attribute(name: str, value):
    return lambda file: file.attrs.__setitem__(name, value)


def lists_as_attribute(file: h5py.File) -> None:
    file.attrs.pop("needs", None)
    lists = h5py.h5t.vlen_create(h5py.h5t.NATIVE_INT32)
    h5py.h5a.create(file.id, b"needs", lists, h5py.h5s.create_simple((1,)))


def many_groups(file: h5py.File) -> None:
    group = file["parameters"].id
    for i in range(20_000):
        h5py.h5o.link(group, group, b"%d" % i)


W1, ALL = "parameters/W1", "parameters"
OF_MODELS: dict[str, tuple[Callable[[h5py.File], object], tuple[str, ...]]] = {
    "external link": (instead(W1, lambda file: h5py.ExternalLink("secret.h5", "W1")), (W1,)),
    "external link to a group": (instead(ALL, lambda file: h5py.ExternalLink("secret.h5", "/")), (ALL,)),
    "soft link": (instead(W1, lambda file: h5py.SoftLink("/parameters/b1")), (W1,)),
    "soft link to a group": (instead(ALL, lambda file: h5py.SoftLink("/")), (ALL,)),
    "external storage": (
        instead(W1, lambda file: file.create_dataset(W1, (2, 3), "f4", external=[("secret.h5", 0, 4096)]) and None),
        (W1, "refused"),
    ),
    "virtual data set": (instead(W1, virtual_weights), (W1, "refused")),
    "huge shape": (instead(W1, lambda file: file.create_dataset(W1, (1 << 40, 3), "f4") and None), (W1,)),
    "huge shape of text": (
        instead("architecture", lambda file: file.create_dataset("architecture", (), "S2000000000") and None),
        ("architecture",),
    ),
    "zip bomb": (
        instead(W1, lambda file: file.create_dataset(W1, data=np.zeros((2, 3), "f4"), compression="gzip") and None),
        (W1, "compressed"),
    ),
    "object type": (instead("architecture", lambda file: "{}"), ("architecture",)),
    "references": (
        instead(W1, lambda file: created(W1, h5py.h5t.STD_REF_OBJ, (2, 3))(file)),
        (W1,),
    ),
    "compound": (instead(W1, lambda file: np.zeros((2, 3), COMPOUND)), (W1,)),
    "kind: a group": (instead(W1, lambda file: file.create_group(W1) and None), (W1,)),
    "kind: a data set": (instead(ALL, lambda file: np.zeros(3)), (ALL,)),
    "cyclic groups": (lambda file: file[ALL].__setitem__("again", file[ALL]), (ALL, "again")),
    "many groups": (many_groups, (ALL, "more than", "members: refused")),
    "dots": (lambda file: file[ALL].create_group(".."), (ALL, "'..'")),
    "huge attribute": (as_attribute("sha256", np.zeros(60_000, "S1")), ("attribute sha256", "(60000,)")),
    "attribute of text": (as_attribute("sha256", "0" * 64), ("attribute sha256", "text of variable length")),
    "attribute of text: the format": (as_attribute("format", "dnn model"), ("attribute format", "variable length")),
    "attribute of text: of lists": (
        lists_as_attribute,
        ("attribute needs", "lists of variable length"),
    ),
    "nan": (nan_weights, (W1, "expected finite numbers, got nan at [1, 2]")),
    "checksum": (lambda file: file[W1].__setitem__((0, 0), 1), ("checksum",)),
}


@pytest.mark.parametrize("attack", OF_MODELS)
def test_a_model_file_that_attacks_is_refused_by_name(attack, model: Path):
    make, words = OF_MODELS[attack]
    with h5py.File(model, "r+") as file:
        make(file)
    message = refusal(lambda: dnn.load(model), model, ModelFileError)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("number", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_groups_and_attributes_are_not_listed_in_full(number, tmp_path: Path):
    path = tmp_path / "many.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for i in range(number):
            h5py.h5g.create(file.id, b"group %d" % i)
        if number > 10_000:
            space = h5py.h5s.create(h5py.h5s.SCALAR)
            for i in range(number):
                h5py.h5a.create(file.id, b"attribute %d" % i, h5py.h5t.NATIVE_INT32, space)
    message = refusal(lambda: dnn.open_dataset(path), path, DataError)
    assert "the file has no data sets and more" in message
    with hdf5.open_hdf5(str(path), DataError) as file:
        message = refusal(lambda: hdf5.names_in(str(path), file, "/", DataError, most=5000), path, DataError)
        assert "more than 5000 members: refused" in message
        assert hdf5.attribute(str(path), file, "format", DataError) is None
