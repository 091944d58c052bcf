"""The only door to HDF5 files: model, checkpoint and data files are a stranger's until they are checked.

A file is opened for reading only. Of a path every component is a hard link: soft and external links are refused, not
followed. A data set is checked before anything of it is read: it has its values in this file, of a simple type, in
chunks of a sane size, by filters with a name, and its declared shape fits what the file holds. `error` is what is
raised, DataError or ModelFileError, in one line that starts with the path.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import numpy as np

from dnn import chunk_index
from dnn.backends import BackendUnavailableError, log_once
from dnn.errors import DataError, DnnError

_LFS = b"version https://git-lfs"

on_opening: Callable[[str, type[Exception]], None] | None = None
"""Called with the path before HDF5 opens a file: in a child process, to say which one it is that then crashes it."""

LARGEST_CHUNK = 1 << 30
"""Most bytes of a chunk: HDF5 takes each into memory whole."""
LARGEST_ATTRIBUTE = 4096
MOST_UNWRITTEN = 1 << 30
"""A data set that declares more bytes than these, and has written less than half, is an attack or a mistake."""
_SHOWN, _LOOKED_AT = 20, 1000
"""How many names a message lists, and how many are looked at for it: a file may have any number, or a cycle."""

BUILT_IN = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "n-bit", 6: "scale-offset"}
FILTERS = {
    305: "LZO",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "Bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}
"""Filters by their registered numbers: most files are written without the names."""


# ------------------------------------------------------------------------------------------- files


def open_hdf5(path: str, error: type[Exception]) -> Any:
    """The file, opened for reading; a one-line `error` if it is not a readable HDF5 file."""
    import h5py  # a tenth of a second, paid only when a file is opened

    read_head(path, error)
    if on_opening is not None:
        on_opening(path, error)
    try:
        return h5py.File(path, "r")
    except OSError as cause:
        if "truncated" in str(cause):
            raise error(f"{path}: the HDF5 file is truncated: copy or download it again") from None
        if isinstance(cause, BlockingIOError):
            raise error(
                f"{path}: cannot be read while another program writes it: wait, or close that program"
            ) from None
        if "already open for write" in str(cause):
            raise error(
                f"{path}: cannot be read while another program writes it (or one that did has crashed): close that "
                f"program, or clear the mark it left with h5clear -s {path}"
            ) from None
        if "unable to lock file" in str(cause):
            raise error(
                f"{path}: its file system cannot lock it: set HDF5_USE_FILE_LOCKING=FALSE, or copy the file"
            ) from None
        if "n't match" in str(cause):  # HDF5 opens a file once a process
            raise error(
                f"{path}: is open in this process with other settings (locking= or the like): close it there first, "
                "or open it there as h5py.File(path) does"
            ) from None
        if _is_device_error(cause):
            raise error(f"{path}: cannot be read: {os.strerror(errno.EIO)}") from None
        if not h5py.is_hdf5(path):
            raise error(f"{path}: not an HDF5 file") from None
        if "version number" in str(cause):
            raise error(
                f"{path}: damaged, or of a version that HDF5 {h5py.version.hdf5_version} cannot read: update h5py, or "
                f"write it with an older libver ({cause})"
            ) from None
        raise error(f"{path}: a damaged HDF5 file: {cause}") from None
    except (LookupError, RuntimeError, ValueError, TypeError) as cause:
        raise error(f"{path}: a damaged HDF5 file: {' '.join(str(cause).split())}") from None


def read_head(path: str, error: type[Exception]) -> bytes:
    """The first bytes of a file; a one-line `error` if it cannot be read or holds no data."""
    try:
        # opening a pipe would block, and neither format can be read from one
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise error(f"{path}: expected a file, got a pipe or a device: copy it to a file first")
        with open(path, "rb") as file:
            head = file.read(len(_LFS))
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from None
    except ValueError as cause:  # a null character, or one that no file system can name
        raise error(f"{path!r}: no name of a file ({cause}): correct the path") from None
    if head == _LFS:
        raise error(f"{path}: this is a Git LFS pointer, not the data: run 'git lfs pull' in its repository")
    if not head:
        raise error(f"{path}: the file is empty")
    return head


@contextmanager
def reporting_damage(path: str, error: type[Exception]) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file, from KeyError to OSError, into a one-line `error`."""
    try:
        yield
    except (DnnError, BackendUnavailableError):
        raise
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, ArithmeticError) as cause:
        if _is_device_error(cause):
            raise error(f"{path}: cannot be read: {os.strerror(errno.EIO)}") from None
        raise error(f"{path}: a damaged HDF5 file: {' '.join(str(cause).split())}") from cause


def _is_device_error(cause: BaseException) -> bool:
    return isinstance(cause, OSError) and cause.errno == errno.EIO


# --------------------------------------------------------------------------------- groups and names


def has(file: Any, name: str) -> bool:
    """Whether there is something of that name, be it a link that `find` refuses: none is followed, as `in` would."""
    import h5py

    for part in _parts(name):
        link = _link(file, part) if isinstance(file, h5py.Group) else None
        if link != h5py.h5l.TYPE_HARD:
            return link is not None
        file = file[part]
    return True


def find(path: str, file: Any, name: str, error: type[Exception]) -> Any:
    """The group or data set of that name: each part of it a hard link, which leads to an object of this very file."""
    import h5py

    found = file
    parts = _parts(name)
    for i, part in enumerate(parts):
        if part == "..":
            raise error(f"{path}: {name!r}: refused: HDF5 has no '..'; name the data set from the root")
        link = _link(found, part) if isinstance(found, h5py.Group) else None
        if link is None:
            raise error(f"{path}: no data set {name!r}: the file has {listed(file)}")
        if link != h5py.h5l.TYPE_HARD:
            raise error(f"{path}: {'/'.join(parts[: i + 1])} is a link to elsewhere: refused; store the data itself")
        found = found[part]
    return found


def names_in(path: str, file: Any, group: str, error: type[Exception], most: int = 10_000) -> list[str]:
    """The names of a group's members, sorted; an `error` where there are more than `most`. "/" is the root."""
    import h5py

    found = find(path, file, group, error)
    if not isinstance(found, h5py.Group):
        raise error(f"{path}: {group!r} is a data set, not a group: the file is damaged")
    names = _members(found, most + 1)
    if len(names) > most:
        raise error(f"{path}: group {group!r} has more than {most} members: refused")
    decoded = [name.decode("utf-8", "backslashreplace") for name in names]
    for name in decoded:
        if name == "..":
            raise error(f"{path}: group {group!r} has a member named '..': refused")
    return sorted(decoded)


def listed(file: Any) -> str:
    """The data sets of a file, in words."""
    import h5py

    names: list[str] = []
    seen: set[int] = set()
    groups, left = [("", file)], _LOOKED_AT
    while groups and left:
        prefix, group = groups.pop(0)
        for member in _members(group, left):
            left -= 1
            name = prefix + member.decode("utf-8", "backslashreplace")
            with suppress(Exception):  # of what is damaged, the names that can be read
                link = group.id.links.get_info(member)
                if link.type != h5py.h5l.TYPE_HARD:
                    continue
                found = h5py.h5o.open(group.id, member)
                if isinstance(found, h5py.h5d.DatasetID):
                    names.append(name)
                elif isinstance(found, h5py.h5g.GroupID) and link.u not in seen:  # a group may contain itself
                    seen.add(link.u)
                    groups.append((f"{name}/", h5py.Group(found)))
    more = len(names) - _SHOWN
    shown = ", ".join(sorted(names)[:_SHOWN]) or "no data sets"
    if not left:
        return f"{shown} and more"
    return shown + (f" and {more} more" if more > 0 else "")


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _link(group: Any, name: str | bytes) -> int | None:
    """The type of a link, as h5py.h5l.TYPE_HARD; None where there is none of this name."""
    name = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    if b"\0" in name or not group.id.links.exists(name):  # to HDF5 a name ends at a null character
        return None
    return group.id.links.get_info(name).type


def _members(group: Any, most: int) -> list[bytes]:
    """Names of a group's members in no order, at most so many."""
    import h5py

    names: list[bytes] = []

    def take(name: bytes) -> bool | None:
        names.append(name)
        return True if len(names) >= most else None  # anything but None stops

    group.id.links.iterate(take, idx_type=h5py.h5.INDEX_NAME, order=h5py.h5.ITER_NATIVE)
    return names


# ----------------------------------------------------------------------------------------- attributes


def attribute(path: str, file: Any, name: str, error: type[Exception]) -> bytes | int | None:
    """An attribute of the root: text of fixed length, or a whole number; None where there is none of this name.

    Reading another type can crash HDF5, or loop, on a damaged file: it is an `error`.
    """
    import h5py

    if not h5py.h5a.exists(file.id, name.encode()):
        return None
    found = h5py.h5a.open(file.id, name.encode())
    kind = found.get_type()
    if not _is_simple(kind) or kind.get_class() not in (h5py.h5t.STRING, h5py.h5t.INTEGER):
        raise error(f"{path}: attribute {name}: expected text of fixed length or a whole number, got {_in_words(kind)}")
    shape = found.get_space().get_simple_extent_dims() or ()
    if math.prod(shape) != 1 or kind.get_size() > LARGEST_ATTRIBUTE:
        raise error(
            f"{path}: attribute {name}: expected one value of at most {LARGEST_ATTRIBUTE} bytes, got shape {shape} of "
            f"{kind.get_size()} bytes each"
        )
    value = np.zeros(shape, kind.dtype)
    found.read(value)
    return value.reshape(()).item()


# ----------------------------------------------------------------------------------------- data sets


def stored(path: str, file: Any, name: str, error: type[Exception]) -> Any:
    """The data set of that name, which has its values in this very file; `dataset` checks the rest."""
    import h5py

    data = find(path, file, name, error)
    if not isinstance(data, h5py.Dataset):
        what = "group" if isinstance(data, h5py.Group) else "type"
        raise error(f"{path}: {name!r} is a {what}, not a data set: the file has {listed(file)}")
    check_stored(f"{path}: {name}", data, error=error)
    return data


def dataset(
    path: str,
    file: Any,
    name: str,
    error: type[Exception],
    *,
    kinds: str = "biufS",
    whole: bool = False,
    budget: int | None = None,
) -> Any:
    """The data set of that name, checked: what reading it takes is bounded by what it declares, and that by the file.

    `kinds` are those of NumPy's dtypes. With `whole`, it must be stored in one piece, in full, not compressed, as model
    files are. `budget` is the most bytes that it may declare.
    """
    data = stored(path, file, name, error)
    what = f"{path}: {name}"
    _check_type(what, data, kinds, error)
    declared = math.prod(data.shape) * data.dtype.itemsize  # in Python's integers: no shape overflows them
    if budget is not None and declared > budget:
        raise error(
            f"{what}: shape {data.shape} of {data.dtype} declares {declared} bytes, more than the {budget} that it "
            "may take: refused"
        )
    if whole:
        _check_whole(what, data, declared, error)
    damage = chunk_index.damage(path, file, data)  # before any call that walks it
    if damage is not None:
        raise error(f"{what}: its index of chunks {damage}")
    _check_storage(what, data, declared, error)
    _check_chunks(what, data, error)
    return data


def read(path: str, data: Any, error: type[Exception], *, finite: bool = False) -> np.ndarray:
    """All values of a data set that `dataset` gave; with `finite`, an `error` where one of them is nan or infinite."""
    name = (data.name or "/a data set without a name")[1:]
    try:
        values = np.asarray(data[...])
    except MemoryError:
        raise
    except Exception as cause:  # whatever h5py raises on damage
        raise error(f"{path}: {name}: cannot be read: {read_failure(data, cause)}") from None
    if finite and values.dtype.kind == "f" and not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise error(f"{path}: {name}: expected finite numbers, got {values[place]} at {list(place)}: refused")
    return values


def check_stored(what: str, data: Any, fix: str = "store the data itself", error: type[Exception] = DataError) -> None:
    """`error` unless this data set of HDF5 has its values in its own file: others, if gone, would read as zeros."""
    # in this order: asking a virtual data set for its shape opens its sources
    if data.external is not None or data.is_virtual:
        raise error(f"{what} keeps its data in another file: refused; {fix}")
    if data.shape is None:
        raise error(f"{what} is empty")


def check_written(what: str, data: Any, error: type[Exception] = DataError) -> None:
    """`error` where nothing of this data set was ever written, a warning where rows were not: they read as a fill."""
    if data.size and not data.id.get_storage_size():
        raise error(f"{what} shape {data.shape} is declared, but no data was ever written")
    unwritten = _rows_never_written(data)
    if unwritten:
        log_once(
            f"{place_of(data)}: {unwritten} of {data.shape[0]} rows were never written, at least "
            f"in part, and read as {data.fillvalue}: write them, or leave them out"
        )


def place_of(data: Any) -> str:
    return f"{data.file.filename}: {(data.name or '/a data set without a name')[1:]}"


def _check_type(what: str, data: Any, kinds: str, error: type[Exception]) -> None:
    expected = "text of fixed length" if kinds == "S" else "numbers or text" if "S" in kinds else "numbers"
    kind = data.id.get_type()
    if not _is_simple(kind):
        raise error(f"{what}: expected {expected}, got {_in_words(kind)}")
    try:
        dtype = data.dtype
    except TypeError as cause:  # a type of HDF5 that NumPy has no like of
        raise error(f"{what}: expected {expected}, got another type ({cause})") from None
    if dtype.kind not in kinds:
        raise error(f"{what}: expected {expected}, got {dtype}")


def _is_simple(kind: Any) -> bool:
    """Whether a type's values are numbers or text of a fixed length, which stand where they are stored."""
    import h5py

    simple = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM, h5py.h5t.BITFIELD)
    return kind.get_class() in simple and not is_variable_text(kind)


def is_variable_text(kind: Any) -> bool:
    import h5py

    return kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()


def _in_words(kind: Any) -> str:
    """What a type is, for an error, with NumPy's name where it has one."""
    import h5py

    words = {
        h5py.h5t.STRING: "text of variable length",
        h5py.h5t.VLEN: "lists of variable length",
        h5py.h5t.COMPOUND: "a compound type",
        h5py.h5t.REFERENCE: "references",
        h5py.h5t.ARRAY: "an array in each place",
        h5py.h5t.OPAQUE: "opaque bytes",
    }.get(kind.get_class(), "another type")
    with suppress(Exception):
        return f"{words} ({kind.dtype!s:.60})"
    return words


def _check_whole(what: str, data: Any, declared: int, error: type[Exception]) -> None:
    if data.id.get_create_plist().get_nfilters():
        raise error(f"{what} is compressed, as dnn saves no model: undo it with h5repack -f NONE")
    if data.chunks or data.id.get_storage_size() != declared:
        raise error(f"{what} is not stored in full in this file")


def _check_storage(what: str, data: Any, declared: int, error: type[Exception]) -> None:
    """An `error` where what is declared cannot be what the file holds."""
    itemsize, size = data.dtype.itemsize, data.file.id.get_filesize()
    stored = data.id.get_storage_size()
    start = data.id.get_offset() or 0
    if stored > size or start + (0 if data.chunks else stored) > size:
        raise error(f"{what}: {stored} bytes are to be stored in a file of {size}: the file is damaged")
    if not data.chunks:
        return
    chunk = math.prod(data.chunks) * itemsize
    if chunk > LARGEST_CHUNK:
        raise error(
            f"{what}: a chunk of shape {data.chunks} takes {chunk} bytes, more than {LARGEST_CHUNK}: refused; store it "
            "in smaller chunks, as with h5repack -l CHUNK="
        )
    if declared > MOST_UNWRITTEN and stored and data.shape[0] < 2 * (lacking := _rows_never_written(data)):
        raise error(f"{what}: shape {data.shape} is declared, but {lacking} of its rows were not ever written: refused")


def _check_chunks(what: str, data: Any, error: type[Exception]) -> None:
    """An `error` where a filter is unknown or not installed, or a chunk is not what and where it has to be.

    HDF5 trusts its index of chunks: most of the damage that makes it read elsewhere in memory is seen there.
    """
    if not data.chunks:
        return
    filters = data.id.get_create_plist()
    numbers = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
    unknown = [i for i, number in enumerate(numbers) if number not in BUILT_IN | FILTERS]
    chunk, size = math.prod(data.chunks) * data.dtype.itemsize, data.file.id.get_filesize()
    # what cannot be compressed grows by a few bytes; HDF5 unpacks all that is there, be it more than declared
    most = chunk + chunk // 8 + 4096 if numbers else chunk
    places = list(zip(data.shape, data.chunks, strict=True))

    def look(found: Any) -> str | None:
        offset = found.chunk_offset
        if not 1 <= found.size <= most or not 1 <= found.byte_offset <= size - found.size:
            return (
                f"a chunk at {list(offset)} is stored in {found.size} bytes from {found.byte_offset} on, declared with "
                f"{chunk} in a file of {size}: refused"
            )
        if any(first % step or first >= n for first, (n, step) in zip(offset, places, strict=True)):
            return f"a chunk at {list(offset)} is none of shape {data.shape} in chunks of {data.chunks}: damaged"
        for i in unknown:
            if not found.filter_mask >> i & 1:  # the chunk was passed through it
                return missing_filter(data, load=False)
        return None

    wrong = _chunks(data, look)
    if wrong is None and numbers and not unknown and data.size:
        missing = missing_filter(data)
        if missing is not None:
            try:
                data[(0,) * data.ndim]  # filters are optional: the data may have been stored without it
            except OSError:
                wrong = missing
    if wrong is not None:
        raise error(f"{what}: {wrong}")


def _chunks(data: Any, look: Any) -> Any:
    """The first thing but None that `look` finds at a chunk."""
    if not hasattr(data.id, "chunk_iter"):  # built with an old HDF5
        return next(filter(None, (look(data.id.get_chunk_info(i)) for i in range(data.id.get_num_chunks()))), None)
    return data.id.chunk_iter(look)


def read_failure(data: Any, cause: Exception) -> str:
    """Why reading a data set, of HDF5 or of another library, has failed."""
    missing = missing_filter(data)
    if missing is not None:
        return missing
    message = " ".join(str(cause).split())
    if not type(data).__module__.startswith("h5py"):
        return f"{type(cause).__name__}: {message}"
    return os.strerror(errno.EIO) if _is_device_error(cause) else f"the file is damaged ({message})"


def missing_filter(data: Any, load: bool = True) -> str | None:
    """What to do about a filter of this data set that HDF5 lacks here; None if there is none.

    Without `load`, HDF5 is not asked for those without a name: it would look for a library to load.
    """
    if not (type(data).__module__.startswith("h5py") and hasattr(data, "id")):
        return None
    import h5py

    filters = data.id.get_create_plist()
    for i in range(filters.get_nfilters()):
        number, _, _, name = filters.get_filter(i)
        if number in BUILT_IN | FILTERS or load:
            with suppress(ImportError):  # importing it is what registers its filters
                if not h5py.h5z.filter_avail(number):
                    import_module("hdf5plugin")
            if h5py.h5z.filter_avail(number):
                continue
        name = FILTERS.get(number) or name.decode("utf-8", "backslashreplace") or "unknown"
        fix = "pip install hdf5plugin" if number in FILTERS else "install its plugin"
        if not load:
            fix += ", open the file with h5py and give its data set"
        return (
            f"it is compressed with the filter {name} ({number}), which is not installed: {fix}, or store the "
            "data set with gzip"
        )
    return None


def _rows_never_written(data: Any) -> int:
    """The rows of which HDF5 has allocated no chunk, or not all. What is left of an allocated one is unknown."""
    if not data.chunks or not data.size or not hasattr(data.id, "chunk_iter"):
        return 0
    bands, *across = (-(-n // size) for n, size in zip(data.shape, data.chunks, strict=True))
    if data.id.get_num_chunks() >= bands * math.prod(across):
        return 0
    found: dict[int, int] = {}

    def count(chunk: Any) -> None:
        first = chunk.chunk_offset[0]
        found[first] = found.get(first, 0) + 1

    data.id.chunk_iter(count)
    m, rows = data.shape[0], data.chunks[0]
    return m - sum(min(rows, m - first) for first, n in found.items() if n >= math.prod(across))


# ----------------------------------------------------------------------------------------------- text


def unpadded(name: bytes) -> str:
    """A name without what fills its field: spaces, or a null character and whatever follows it."""
    return name.split(b"\0")[0].decode().rstrip()


def variable_text(path: str, file: Any, data: Any, error: type[Exception], most: int) -> Sequence[bytes]:
    """The values of a list of text of variable length, of at most `most` bytes, read from the file without HDF5.

    HDF5 can loop forever on a damaged one. It is what h5py makes of a list of names: a length and a place in one of the
    file's heaps, for each.
    """
    what = f"{path}: {(data.name or '')[1:]}"
    again = "store text of fixed length, as np.array(names, dtype='S')"
    sizes, start, n = file.id.get_create_plist().get_sizes(), data.id.get_offset(), data.shape[0]
    if data.chunks or tuple(sizes) != (8, 8) or start is None or 16 * n > most:
        raise error(f"{what}: expected text of fixed length, got text of variable length: {again}")
    base = file.userblock_size
    heaps: dict[int, dict[int, bytes]] = {}
    texts: list[bytes] = []
    with open(path, "rb") as raw:

        def take(place: int, length: int) -> bytes:
            nonlocal most
            most -= length
            if most < 0:
                raise error(f"{what}: its text takes too many bytes: {again}")
            raw.seek(min(place, 2**62))
            taken = raw.read(length)
            if len(taken) < length:
                raise error(f"{what}: a damaged HDF5 file: its text lies beyond the end")
            return taken

        records = take(start, 16 * n)
        for i in range(n):
            record = records[16 * i : 16 * i + 16]
            length, heap, index = (int.from_bytes(part, "little") for part in (record[:4], record[4:12], record[12:]))
            if length and heap not in heaps:
                head = take(base + heap, 16)
                if head[:4] != b"GCOL":
                    raise error(f"{what}: a damaged HDF5 file: no heap of text at {heap}")
                heaps[heap] = _objects(take(base + heap, int.from_bytes(head[8:], "little"))[16:])
            text = heaps[heap].get(index) if length else b""
            if text is None or len(text) < length:
                raise error(f"{what}: a damaged HDF5 file: text {i} is not in its heap")
            texts.append(text[:length])
    return texts


def _objects(heap: bytes) -> dict[int, bytes]:
    """The objects in a collection of HDF5's global heap, by their index: 2 + 2 + 4 + 8 bytes, then the content."""
    found, place = {}, 0
    while place + 16 <= len(heap):
        index = int.from_bytes(heap[place : place + 2], "little")
        size = int.from_bytes(heap[place + 8 : place + 16], "little")
        if index == 0:  # what is free
            break
        found[index] = heap[place + 16 : place + 16 + size]
        place += 16 + -(-size // 8) * 8
    return found
