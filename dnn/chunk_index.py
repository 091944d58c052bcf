"""The index of a data set's chunks, walked first where a crash of HDF5 does no harm.

HDF5 trusts the indices that came with its newer formats (h5py.File(..., libver="latest")): a damaged one can make it
read elsewhere in memory, or count to 2**64. Such a data set's index is walked in a child process before this one
touches it. The B-trees that HDF5 and h5py write by default need none of this.
"""

from __future__ import annotations

import json
import os
import posixpath
import signal
import struct
import subprocess
import sys
from typing import Any

import numpy as np

expendable = False
"""Whether a crash of this very process does no harm: set in the child of dnn.isolation."""
SECONDS, MOST_SECONDS, BYTES_PER_SECOND = 4.0, 600.0, 10 << 20
"""How long a walk may take: 4 s, and longer in a large file. One of a million chunks takes 1.3 s."""
MEMORY = 1 << 30

_LAYOUT = 8  # the number of this message of an object's header
_walked: dict[tuple[int, ...], dict[int, str | None]] = {}
"""What is wrong with each data set's index, by the state of the file and the place of the data set in it."""

# It walks the data set of that name and then the others of its group, which are likely to be read next, and tells of
# each where it is before the walk, and how it went after it.
_WALK = """
import sys
sys.path += sys.argv[5:]
import h5py
try:
    import resource
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == -1 else min(limit, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
import json
out = open(1, "w", 1)
def walk(name):
    link = group.links.get_info(name)
    data = h5py.h5o.open(group, name) if link.type == h5py.h5l.TYPE_HARD else None
    if not isinstance(data, h5py.h5d.DatasetID):
        return
    print(link.u, file=out)
    wrong = None
    try:
        if data.get_create_plist().get_layout() == h5py.h5d.CHUNKED:
            data.get_storage_size()
            if hasattr(data, "chunk_iter"):
                data.chunk_iter(lambda chunk: None)
            else:
                for i in range(data.get_num_chunks()):
                    data.get_chunk_info(i)
    except Exception as error:
        wrong = " ".join(str(error).split())
    print(json.dumps(wrong), file=out)
group = h5py.h5o.open(h5py.File(sys.argv[1], "r").id, json.loads(sys.argv[2]).encode("utf-8", "surrogateescape"))
wanted = json.loads(sys.argv[3]).encode("utf-8", "surrogateescape")
walk(wanted)
seen = 0
def other(name):
    global seen
    seen += 1
    try:
        if name != wanted:
            walk(name)
    except Exception:
        pass
    return True if seen == 8 else None
group.links.iterate(other, idx_type=h5py.h5.INDEX_NAME, order=h5py.h5.ITER_NATIVE)
import os
os._exit(0)
"""


def damage(path: str, file: Any, data: Any) -> str | None:
    """What is wrong with the index of this data set's chunks, None if nothing is: in a file opened for reading.

    A child process costs a start of Python with h5py, measured: 0.1 s of a CPU, 0.13 to 0.2 s passed. It is one for all
    data sets of a group, once, and only where one has such an index: to see that it has none takes 0.1 ms.
    """
    if expendable or not data.chunks or file.mode != "r" or file.driver != "sec2":
        return None
    (group, name), parent = posixpath.split(data.name), data.parent
    place = parent.id.links.get_info(name.encode("utf-8", "surrogateescape")).u  # h5o.get_info walks the index
    with open(path, "rb") as raw:
        state = os.fstat(raw.fileno())
        if _is_old(raw, file.userblock_size + place):
            return None
    if len(_walked) > 100:  # files change, and go
        _walked.clear()
    found = _walked.setdefault((state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size), {})
    if place not in found:
        walked = _walk(path, group, name, place, min(SECONDS + state.st_size / BYTES_PER_SECOND, MOST_SECONDS))
        found |= {at: wrong for at, wrong in walked.items() if wrong is None or not wrong.startswith("cannot")}
        return walked[place]  # what cannot be checked now may be later
    return found[place]


def _is_old(raw: Any, place: int) -> bool:
    """Whether the header of a data set, at this place, has the layout of HDF5 1.6 to 1.8, whose index is a B-tree.

    False too where that is not plain to see.
    """
    raw.seek(min(place, 2**62))
    head = raw.read(16)
    if len(head) < 16 or head[0] != 1:
        return False
    messages = raw.read(min(int.from_bytes(head[8:12], "little"), 1 << 16))
    at = 0
    while at + 8 < len(messages):
        kind, size, flags = struct.unpack_from("<HHB", messages, at)
        if kind == _LAYOUT:
            return not flags & 2 and messages[at + 8] <= 3
        at += 8 + size
    return False


def _walk(path: str, group: str, name: str, place: int, seconds: float) -> dict[int, str | None]:
    """What a child process finds out about data sets of a group, of which the one of that name is at `place`."""
    import h5py

    homes = sorted({os.path.dirname(os.path.dirname(str(module.__file__))) for module in (h5py, np)})
    command = [sys.executable, "-P", "-c", _WALK, path, json.dumps(group), json.dumps(name), str(MEMORY), *homes]
    late = False
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # each thread takes memory
        )
    except (OSError, ValueError, TypeError) as cause:  # of embedded Pythons some have no sys.executable
        return {
            place: f"cannot be checked: no process can be started for that ({cause}); write the file without libver="
        }
    with child:
        try:
            out, _ = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
            child.kill()
            out, _ = child.communicate()
        except BaseException:
            child.kill()
            raise
    lines = out.decode(errors="replace").splitlines()
    found: dict[int, str | None] = {}
    for address, said in zip(lines[::2], lines[1::2], strict=False):
        wrong = json.loads(said)
        found[int(address)] = None if wrong is None else f"is damaged: {wrong}"
    if len(lines) % 2 or place not in found:
        at = int(lines[-1]) if len(lines) % 2 else place
        if late:
            found[at] = f"is damaged: it takes more than {seconds:.0f} s to walk"
        elif child.returncode < 0:
            found[at] = f"is damaged: HDF5 was ended by {signal.Signals(-child.returncode).name} on it"
        else:
            found[at] = f"cannot be checked: the process for that ended with status {child.returncode}"
    found.setdefault(place, "cannot be checked")
    return found
