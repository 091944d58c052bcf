"""Folders of pictures: one folder for each class, in train and test where those are there.

    train/cats/1.jpg   train/dogs/1.png   test/cats/2.jpg        or   cats/1.jpg   dogs/1.png

Pictures are read as they are asked for, in the order of their names, into bytes: (m, height, width, 3), or (m, height,
width) in grey.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from dnn.backends import log_once
from dnn.data.hdf5 import Dataset, Part
from dnn.data.sources import Rows
from dnn.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Those that pillow decodes itself: others run programs, or are not for pictures."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
"""Of 8 bits or fewer a channel."""
PARTS = ("train", "test")


def open_pictures(path: str, size: tuple[int, int] | None = None, grey: bool = False) -> Dataset:
    """The pictures below a folder, scaled to `size` (width, height); None: all have that of the first one."""
    if find_spec("PIL") is None:
        raise DataError(f"{path}: pictures are read with pillow, which is not installed: pip install pillow")
    folders = _folders(path)
    parts = [part for part in PARTS if part in folders]
    where = {part: os.path.join(path, part) for part in parts} or {"train": path}
    if parts and len(folders) > len(parts):
        others = ", ".join(name for name in folders if name not in parts)
        log_once(f"{path}: only {' and '.join(parts)} are read, not {others}")
    names = _folders(next(iter(where.values())))
    if not names:
        raise DataError(f"{next(iter(where.values()))}: expected a folder of pictures for each class, got none")
    scaled, found = size is not None, {}
    for part, folder in where.items():
        files: list[str] = []
        numbers: list[int] = []
        for name in _folders(folder):
            if name not in names:
                raise DataError(f"{os.path.join(folder, name)}: there is no class {name} in {where[parts[0]]}")
            of_class = _pictures(os.path.join(folder, name))
            files += of_class
            numbers += [names.index(name)] * len(of_class)
        if not files:
            raise DataError(f"{folder}: expected pictures ({', '.join(SUFFIXES)}) in its folders, got none")
        if size is None:
            height, width = _decoded(files[0], None, False, grey).shape[:2]
            size = width, height
        found[part] = Part(_rows(files, size, scaled, grey), np.array(numbers), "")
    return Dataset(path, _NothingOpen(), found.get("train"), found.get("test"), names)


def _folders(path: str) -> list[str]:
    with _listing(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: str) -> list[str]:
    """The pictures below the folder of a class."""
    found: list[str] = []
    others: list[str] = []
    for below, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                (found if name.lower().endswith(SUFFIXES) else others).append(os.path.join(below, name))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        log_once(f"{others[0]}{more}: not read: pictures are {', '.join(SUFFIXES)}")
    return found


@contextmanager
def _listing(path: str) -> Iterator[Any]:
    try:
        with os.scandir(path) as entries:
            yield entries
    except OSError as cause:
        raise DataError(f"{path}: cannot be read: {cause.strerror}") from None


def _rows(files: Sequence[str], size: tuple[int, int], scaled: bool, grey: bool) -> Rows:
    shape = (len(files), size[1], size[0], *(() if grey else (3,)))

    def read(start: int, stop: int) -> np.ndarray:
        # pillow decodes without Python's lock
        with ThreadPoolExecutor() as threads:
            rows = threads.map(lambda file: _decoded(file, size, scaled, grey), files[start:stop])
            return np.stack(list(rows))

    return Rows(shape, np.dtype(np.uint8), read)


def _decoded(path: str, size: tuple[int, int] | None, scaled: bool, grey: bool) -> np.ndarray:
    """A picture as it is shown: turned as its camera says, with its colours, without transparency."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=FORMATS) as stored:
            width, height = stored.size
            if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError(f"{width}x{height} pixels")
            if stored.mode not in MODES:
                raise DataError(f"{path}: expected 8 bits a colour, got pillow's mode {stored.mode}: convert it first")
            shown = ImageOps.exif_transpose(stored)
            if size is not None and not scaled and shown.size != size:
                raise DataError(
                    f"{path}: expected {size[0]}x{size[1]} pixels as the first picture has, got {shown.width}x"
                    f"{shown.height}: scale all with size={size[0]}x{size[1]}"
                )
            shown = shown.convert("L" if grey else "RGB")
            return np.asarray(shown if size is None or shown.size == size else shown.resize(size))
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as cause:
        limit = Image.MAX_IMAGE_PIXELS
        raise DataError(f"{path}: refused: more than {limit} pixels ({cause}): scale it down first") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except PermissionError as cause:
        raise DataError(f"{path}: cannot be read: {cause.strerror}") from None
    except Exception as cause:  # the decoders raise whatever a damaged file makes them
        raise DataError(f"{path}: no picture, or a damaged one: {' '.join(str(cause).split())}") from None


class _NothingOpen:
    def close(self) -> None:
        pass
