"""`dnn convert`: what a source holds is what the data file holds, read once, in blocks, and whole or not there."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import ROOT

import dnn
from dnn import files
from dnn.cli import main
from dnn.data import writing
from dnn.data.sources import Rows
from dnn.data.splitting import held_out_rows, shuffled
from dnn.data.writing import Written, new_hdf5, write_parts
from dnn.errors import DataError, OutputError

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (60, 5, 4), dtype=np.uint8)
LABELS = np.repeat(np.arange(3, dtype=np.uint8), 20)

Run = Callable[..., str]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Run:
    """Convert to out.h5; the standard output, or with `code` the one line of complaint."""

    def convert(*arguments: object, code: int = 0, out: str = "out.h5") -> str:
        capsys.readouterr()
        try:
            status = main(["convert", str(arguments[0]), out, *map(str, arguments[1:])])
        except SystemExit as left:
            status = left.code  # type: ignore[assignment]
        printed, complaint = capsys.readouterr()
        assert status == code, (printed, complaint)
        if not code:
            return printed
        assert not printed and complaint.startswith("dnn") and complaint.count("\n") == 1, complaint
        assert not list(Path().glob(".dnn-*")) and (not Path(out).exists() or out != "out.h5")
        return complaint

    return convert


def held(path: str = "out.h5") -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: data[...] for name, data in file.items()}


def check(found: dict[str, np.ndarray], **expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype.newbyteorder("=") == np.asarray(values).dtype.newbyteorder("="), name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def idx(values: np.ndarray) -> bytes:
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[values.dtype.str[1:]]
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, code, values.ndim]) + sizes + values.astype(values.dtype.newbyteorder(">")).tobytes()


def mnist(folder: str = "mnist") -> None:
    Path(folder).mkdir()
    content = {
        "train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES[:40])),
        "train-labels-idx1-ubyte": idx(LABELS[:40]),
        "t10k-images-idx3-ubyte": idx(IMAGES[40:]),
        "t10k-labels-idx1-ubyte.gz": gzip.compress(idx(LABELS[40:])),
    }
    for name, values in content.items():
        Path(folder, name).write_bytes(values)


MNIST = {
    "train_set_x": IMAGES[:40],
    "train_set_y": LABELS[:40],
    "test_set_x": IMAGES[40:],
    "test_set_y": LABELS[40:],
}


# -------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", ["train_set_x train_set_y test_set_x test_set_y", "x_train y_train x_test y_test"])
def test_arrays_of_an_npz_are_found_by_name(convert: Run, save: Callable[..., None], names: str):
    save("a.npz", **dict(zip(names.split(), MNIST.values(), strict=True)))
    assert convert("a.npz") == ("out.h5: train 40 examples of 5 x 4, uint8; test 20 examples of 5 x 4, uint8; 0.0 MB\n")
    check(held(), **MNIST)


@pytest.mark.parametrize("names", [("X", "y"), ("X", "Y"), ("X_train", "y_train")])
def test_other_names_in_an_npz(convert: Run, names: tuple[str, str]):
    np.savez("a.npz", **{names[0]: IMAGES, names[1]: LABELS, "more": LABELS})
    convert("a.npz")
    check(held(), train_set_x=IMAGES, train_set_y=LABELS)


def test_arrays_are_named_by_flags(convert: Run):
    np.savez("a.npz", pictures=IMAGES, X=IMAGES[:3], labels=LABELS)
    convert("a.npz", "--x", "pictures", "--y", "labels")
    check(held(), train_set_x=IMAGES, train_set_y=LABELS)
    assert "no array 'foo': the file has pictures, X, labels" in convert("a.npz", "--x", "foo", code=3, out="other.h5")


@pytest.mark.parametrize("dtype", [">f8", "<f4", "f2", ">i2", "?"])
def test_an_npy_with_its_labels(convert: Run, dtype: str):
    X = (IMAGES[..., 0] % 2).astype(dtype)
    np.save("x.npy", X)
    np.save("y.npy", LABELS)
    convert("x.npy", "--y", "y.npy")
    check(held(), train_set_x=X, train_set_y=LABELS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, None])
def test_columns_first_is_put_in_rows(convert: Run, save: Any):
    X = np.asfortranarray(IMAGES)
    np.save("a.npy", X) if save is None else save("a.npz", X=X)
    convert("a.npy" if save is None else "a.npz")
    check(held(), train_set_x=IMAGES)


def test_names_become_classes_and_the_test_part_is_numbered_alike(convert: Run):
    names = np.array(["cat", "dog", "emu"])
    np.savez("a.npz", x_train=IMAGES, y_train=names[LABELS], x_test=IMAGES[40:], y_test=names[LABELS[40:]])
    convert("a.npz")
    with dnn.open_dataset("out.h5") as data:
        assert data.classes == ["cat", "dog", "emu"] and data.train and data.test
        np.testing.assert_array_equal(data.train.Y, LABELS)
        np.testing.assert_array_equal(data.test.Y, LABELS[40:])
    np.savez("b.npz", x_train=IMAGES[:40], y_train=names[LABELS[:40]], x_test=IMAGES[40:], y_test=names[LABELS[40:]])
    assert "emu" in convert("b.npz", code=3, out="b.h5")


def test_no_array_is_unpickled(convert: Run):
    np.save("x.npy", np.array([{}], object), allow_pickle=True)
    np.savez("x.npz", X=np.array([{}], object), allow_pickle=True)
    for name in ("x.npy", "x.npz"):
        assert "expected numbers, got object" in convert(name, code=3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones((3, 2), complex), "expected numbers, got complex128"),
        (np.array(["a", "b"]), "expected numbers, got <U1"),
        (np.float64(1), "expected one example per row, got a single value"),
        (np.ones((0, 3)), "no examples: its shape is (0, 3)"),
        (np.ones(2, "f4,i4"), "expected numbers, got [('f0'"),
    ],
)
def test_an_npy_of_anything_else_is_refused(convert: Run, values: Any, words: str):
    np.save("x.npy", values)
    assert f"x.npy: {words}" in convert("x.npy", code=3)


@pytest.mark.parametrize("header", [b"{'descr': '<f4', (", b"{'shape': (3,)}", b"\xff", b"1"])
def test_a_damaged_header_is_named(convert: Run, header: bytes):
    Path("x.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(100))
    assert "x.npy: damaged: " in convert("x.npy", code=3)


def test_a_truncated_array_is_named(convert: Run):
    np.save("x.npy", IMAGES)
    Path("x.npy").write_bytes(Path("x.npy").read_bytes()[:-1])
    assert "x.npy: truncated: (60, 5, 4) of uint8" in convert("x.npy", code=3)
    np.savez_compressed("x.npz", X=IMAGES)
    content = bytearray(Path("x.npz").read_bytes())
    content[400:420] = bytes(20)
    Path("x.npz").write_bytes(content)
    assert "x.npz: X: damaged:" in convert("x.npz", code=3)
    Path("x.npz").write_bytes(content[:300])
    assert "x.npz: damaged: File is not a zip file" in convert("x.npz", code=3)


def test_a_shape_that_nothing_could_hold_is_refused_before_it_is_read(convert: Run):
    Path("x.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + b"\xff\xff\xff\xff" * 3))
    assert "damaged: its shape (4294967295, 4294967295, 4294967295) has rows of" in convert(
        "x.gz", "--y", "x.gz", code=3
    )


def test_labels_that_are_not_one_a_row_are_refused(convert: Run):
    np.savez("a.npz", X=IMAGES, y=LABELS[None])
    assert "labels: expected one label per row, got shape (1, 60)" in convert("a.npz", code=3)


# -------------------------------------------------------------------------------- idx


@pytest.mark.parametrize("source", ["mnist", "mnist/train-images-idx3-ubyte.gz"])
def test_idx_files_of_mnist(convert: Run, source: str):
    mnist()
    summary = json.loads(convert(source, "--json"))
    check(held(), **MNIST)
    assert summary["train"] == {"examples": 40, "shape": [5, 4], "dtype": "uint8"} and summary["classes"] is None
    assert summary["bytes"] == os.path.getsize("out.h5")


def test_idx_files_of_other_types_and_labels_of_another_name(convert: Run):
    values = GENERATOR.standard_normal((60, 7))
    Path("features.idx").write_bytes(idx(values))
    Path("labels.idx").write_bytes(idx(LABELS.astype(np.int32)))
    convert("features.idx", "--y", "labels.idx")
    check(held(), train_set_x=values, train_set_y=LABELS.astype(np.int32))
    assert "features.idx: no labels: name their file with --y" in convert("features.idx", code=3, out="b.h5")


def test_missing_and_damaged_idx_files_are_named(convert: Run):
    mnist()
    images = Path("mnist/t10k-images-idx3-ubyte")
    images.write_bytes(images.read_bytes()[:-1])
    assert "t10k-images-idx3-ubyte: truncated" in convert("mnist", code=3)
    zipped = Path("mnist/train-images-idx3-ubyte.gz")
    zipped.write_bytes(gzip.compress(idx(IMAGES[:40])[:-1]))
    images.write_bytes(idx(IMAGES[40:]))
    assert "train-images-idx3-ubyte.gz: truncated" in convert("mnist", code=3)
    Path("mnist/train-labels-idx1-ubyte").unlink()
    assert "expected train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz beside it" in convert("mnist", code=3)


# -------------------------------------------------------------------------------- pictures


def pictures(folder: str, count: int = 2, size: tuple[int, int] = (6, 4)) -> dict[str, np.ndarray]:
    """Folders cat and dog of so many pictures (width, height); what they show."""
    image = pytest.importorskip("PIL.Image")
    shown = {}
    for name in ("dog", "cat"):
        Path(folder, name).mkdir(parents=True)
        shown[name] = GENERATOR.integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
        for i, values in enumerate(shown[name]):
            image.fromarray(values).save(Path(folder, name, f"{i}.png"))
    return shown


def test_folders_of_pictures_are_classes_in_the_order_of_their_names(convert: Run):
    train, test = pictures("p/train"), pictures("p/test", count=1)
    Path("p/train/.cache").mkdir()
    Path("p/train/dog/more").mkdir()
    Path("p/train/dog/1.png").rename("p/train/dog/more/0.png")
    convert("p")
    check(
        held(),
        train_set_x=np.concatenate([train["cat"], train["dog"]]),
        train_set_y=np.array([0, 0, 1, 1]),
        test_set_x=np.concatenate([test["cat"], test["dog"]]),
        test_set_y=np.array([0, 1]),
        list_classes=np.array([b"cat", b"dog"]),
    )
    convert("p/train", "--test", "p/test", out="again.h5")
    check(held("again.h5"), **held())


def test_pictures_are_scaled_and_grey_when_asked(convert: Run):
    shown = pictures("p")
    convert("p", "--gray")
    assert held()["train_set_x"].shape == (4, 4, 6)
    of_first = shown["cat"][0] @ [0.299, 0.587, 0.114]
    assert np.abs(held()["train_set_x"][0] - of_first).max() <= 1
    convert("p", "--size", "3x2", out="small.h5")
    assert held("small.h5")["train_set_x"].shape == (4, 2, 3, 3)


def test_grey_pictures_in_colours_are_said_to_be_grey(convert: Run, capsys: pytest.CaptureFixture[str]):
    pictures("p")
    pytest.importorskip("PIL.Image").new("L", (6, 4), 7).convert("RGB").save("p/cat/0.png")
    assert main(["convert", "p", "out.h5"]) == 0 and "--gray" not in capsys.readouterr().err
    for path in Path("p").rglob("*.png"):
        path.write_bytes(Path("p/cat/0.png").read_bytes())
    assert main(["convert", "p", "grey.h5"]) == 0
    assert "p: the first pictures are grey: with --gray they take a third of the space" in capsys.readouterr().err


def test_a_picture_of_another_size_is_named(convert: Run):
    pictures("p")
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (5, 5)).save("p/dog/odd.png")
    complaint = convert("p", code=3)
    assert f"{Path('p/dog/odd.png')}: expected 6x4 pixels" in complaint and "got 5x5" in complaint
    assert "--size 6x4" in complaint
    convert("p", "--size", "6x4")


@pytest.mark.parametrize("damage", ["truncated", "text", "of another format"])
def test_a_damaged_picture_is_named(convert: Run, damage: str):
    pictures("p")
    content = Path("p/cat/1.png").read_bytes()
    if damage == "of another format":  # pillow knows many, some of which run programs
        pytest.importorskip("PIL.Image").open("p/cat/1.png").save("p/cat/1.png", format="PCX")
    else:
        Path("p/cat/1.png").write_bytes(content[:-60] if damage == "truncated" else b"text")
    assert f"{Path('p/cat/1.png')}: no picture, or a damaged one" in convert("p", code=3)


def test_a_picture_is_turned_as_its_camera_says_and_has_8_bits(convert: Run):
    shown = pictures("p", count=1)
    image = pytest.importorskip("PIL.Image")
    exif = image.Exif()
    exif[0x112] = 3  # upside down
    image.fromarray(shown["cat"][0]).save("p/cat/0.png", exif=exif)
    convert("p")
    np.testing.assert_array_equal(held()["train_set_x"][0], shown["cat"][0][::-1, ::-1])
    image.fromarray(np.ones((4, 6), np.uint16)).save("p/cat/0.png")
    assert "expected 8 bits a colour, got pillow's mode I;16" in convert("p", code=3, out="b.h5")


def test_a_decompression_bomb_is_refused(convert: Run, monkeypatch: pytest.MonkeyPatch):
    pictures("p")
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", image.DecompressionBombWarning)
        assert f"{Path('p/cat/0.png')}: refused: more than 20 pixels" in convert("p", code=3)


def test_folders_without_pictures_and_classes_that_are_not_trained_are_named(convert: Run):
    Path("p").mkdir()
    pytest.importorskip("PIL")
    assert "p: expected a folder of pictures for each class, got none" in convert("p", code=3)
    Path("p/cat").mkdir()
    Path("p/cat/notes.txt").touch()
    assert "p: expected pictures (.bmp" in convert("p", "--quiet", code=3)
    pictures("q/train")
    pictures("q/test")
    Path("q/test/emu").mkdir()
    assert f"{Path('q/test/emu')}: there is no class emu in {Path('q/train')}" in convert("q", code=3)


# -------------------------------------------------------------------------------- HDF5, order, parts


def sorted_file(path: str = "sorted.h5", **settings: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("train_set_x", data=IMAGES, **settings)
        file["train_set_y"] = LABELS
        file["list_classes"] = np.array([b"a", b"b", b"c"])


@pytest.mark.parametrize("compression", ["none", "gzip", "lzf"])
@pytest.mark.parametrize("window", [1, 700, 1 << 20])
def test_shuffled_rows_are_the_same_rows_in_the_order_of_the_seed(
    convert: Run, monkeypatch: pytest.MonkeyPatch, compression: str, window: int
):
    monkeypatch.setattr(writing, "WINDOW", window)
    monkeypatch.setattr(writing, "BLOCK", 170)  # 8 rows
    sorted_file(chunks=(7, 5, 4), compression="gzip")
    convert("sorted.h5", "--shuffle", "--seed", 5, "--compress", compression)
    order = shuffled(60, None, 5)
    assert not np.array_equal(order, np.arange(60)) and sorted(order) == list(range(60))
    names = np.array([b"a", b"b", b"c"])
    check(held(), train_set_x=IMAGES[order], train_set_y=LABELS[order], list_classes=names)
    with h5py.File("out.h5") as file:
        assert file["train_set_x"].compression == (None if compression == "none" else compression)
        assert (file["train_set_x"].chunks is None) == (compression == "none")


@pytest.mark.parametrize("shuffle", [(), ("--shuffle",)])
def test_a_test_part_has_its_share_of_each_class(convert: Run, shuffle: tuple[str, ...]):
    sorted_file()
    convert("sorted.h5", "--test-split", 0.1, "--seed", 3, *shuffle)
    found = held()
    train, test = held_out_rows(60, LABELS, 0.1, 3)
    train = shuffled(60, train, 3) if shuffle else train
    for part, rows in (("train", train), ("test", test)):
        np.testing.assert_array_equal(found[f"{part}_set_x"], IMAGES[rows])
        np.testing.assert_array_equal(found[f"{part}_set_y"], LABELS[rows])
    assert np.bincount(found["test_set_y"]).tolist() == [2, 2, 2]
    assert sorted([*train, *test]) == list(range(60))


def test_a_test_part_of_values_is_drawn_from_all_of_them():
    _, rows = held_out_rows(1000, np.arange(1000.0), 0.1, 0)
    assert len(rows) == 100 and 350 < rows.mean() < 650
    with pytest.raises(DataError, match=r"a test part of 0\.9 of 2 examples leaves none to train on"):
        held_out_rows(2, None, 0.9, 0)


def test_what_is_contiguous_can_be_mapped(convert: Run):
    np.save("x.npy", GENERATOR.standard_normal((300, 5)))
    convert("x.npy")
    with h5py.File("out.h5") as file:
        assert file["train_set_x"].chunks is None and file["train_set_x"].id.get_offset() % 4096 == 0


def test_a_table_in_hdf5_keeps_what_its_columns_are(convert: Run):
    pytest.importorskip("pyarrow")
    Path("t.csv").write_text("city,age,price\n" + "Bonn,1,2.5\nUlm,,3.5\n" * 10)
    convert("t.csv", "--target", "price", "--categories", "city")
    convert("out.h5", "--shuffle", "--compress", "gzip", out="again.h5")
    order, first, again = shuffled(20, None, 0), held(), held("again.h5")
    assert first["schema"] == again["schema"]
    np.testing.assert_array_equal(again["train_set_x"], first["train_set_x"][order])
    np.testing.assert_array_equal(again["train_set_y"], first["train_set_y"][order])
    convert("t.csv", "--target", "price", "--categories", "city", "--shuffle", out="at_once.h5")
    check(held("at_once.h5"), **again)


def test_each_source_is_read_once_in_blocks_from_the_first_row_to_the_last(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "BLOCK", 200)  # 10 rows
    monkeypatch.setattr(writing, "WINDOW", 300)
    reads: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> np.ndarray:
        reads.append((start, stop))
        return IMAGES[start:stop]

    told: list[tuple[int, int]] = []
    X = Rows(IMAGES.shape, IMAGES.dtype, read)
    train, test = held_out_rows(60, LABELS, 0.2, 0)
    parts = [Written("train", X, LABELS, shuffled(60, train, 0)), Written("test", X, LABELS, test)]
    with new_hdf5("out.h5") as new:
        write_parts(new, parts, progress=lambda done, of: told.append((done, of)))
    assert reads == [(start, start + 10) for start in range(0, 60, 10)]
    assert told == [(done, 60) for done in range(10, 70, 10)]


# -------------------------------------------------------------------------------- whole or not there


class Full(OSError):
    pass


@pytest.fixture(params=["none", "gzip"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file's disk is full after 100,000 bytes; the compression to use."""
    write = files._Stream.write

    def limited(self: Any, content: Any) -> int:
        with self._noting():
            if self.tell() + len(memoryview(content).cast("B")) > 100_000:
                raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(files._Stream, "write", limited)
    yield request.param


def test_a_full_disk_is_one_line_and_leaves_nothing(convert: Run, failing: str):
    np.save("x.npy", GENERATOR.standard_normal((500, 100)))
    Path("old.h5").write_bytes(b"old")
    assert convert("x.npy", "--compress", failing, code=7) == (
        "dnn: out.h5: cannot be written: No space left on device\n"
    )
    assert "No space left" in convert("x.npy", "--force", "--compress", failing, code=7, out="old.h5")
    assert Path("old.h5").read_bytes() == b"old" and sorted(os.listdir()) == ["old.h5", "x.npy"]


def test_a_full_disk_does_not_crash_hdf5_when_the_process_ends():
    resource = pytest.importorskip("resource")
    np.save("x.npy", GENERATOR.standard_normal((500, 100)))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = subprocess.run(
        [sys.executable, "-m", "dnn", "convert", "x.npy", "out.h5", "--compress", "gzip"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (7, "dnn: out.h5: cannot be written: File too large\n")
    assert os.listdir() == ["x.npy"]


def test_a_full_disk_for_the_temporary_file_is_an_output_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "WINDOW", 100)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_write_all", full)
    with (
        pytest.raises(OutputError, match="a temporary file cannot be written: No space left on device"),
        new_hdf5("out.h5") as new,
    ):
        write_parts(new, [Written("train", IMAGES, LABELS, shuffled(60, None, 0))])
    assert os.listdir() == []


def test_a_source_that_fails_half_way_leaves_nothing():
    def read(start: int, stop: int) -> np.ndarray:
        raise OSError(5, "Input/output error")

    with pytest.raises(DataError, match="cannot read its data set"), new_hdf5("out.h5") as new:
        write_parts(new, [Written("train", Rows(IMAGES.shape, IMAGES.dtype, read))])
    assert os.listdir() == []


def test_an_existing_file_and_a_source_are_not_replaced_unasked(convert: Run):
    sorted_file()
    Path("old.h5").write_bytes(b"old")
    assert "old.h5: already exists" in convert("sorted.h5", code=7, out="old.h5")
    convert("sorted.h5", "--force", out="old.h5")
    assert held("old.h5").keys() == held("sorted.h5").keys()
    assert "is read by this command and would be lost" in convert("sorted.h5", "--force", code=7, out="sorted.h5")


# -------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--size", "3x3"], "--size is for pictures, and sorted.h5 is not"),
        (["--target", "a"], "--target is for tables, and sorted.h5 is not"),
        (["--test-split", "1"], "--test-split must be between 0 and 1, got 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--test", "x.npy"], "--test: expected one of HDF5 files, as sorted.h5 is, got x.npy"),
        (["--size", "3"], "expected WIDTHxHEIGHT in pixels"),
        (["--labels", "3"], "no flag --labels: did you mean --y?"),
    ],
)
def test_flags_that_do_not_fit_are_refused(convert: Run, flags: list[str], words: str):
    sorted_file()
    np.save("x.npy", IMAGES)
    assert words in convert("sorted.h5", *flags, code=2)


def test_a_test_part_comes_from_one_place(convert: Run):
    sorted_file()
    convert("sorted.h5", "--test", "sorted.h5")
    check(held(), **held("sorted.h5"), test_set_x=IMAGES, test_set_y=LABELS)
    for flags in (["--test-split", "0.1"], ["--test", "sorted.h5"]):
        assert f"out.h5 has a test part already: leave out {flags[0]}" in convert("out.h5", *flags, code=2, out="b.h5")
    np.save("x.npy", IMAGES)
    np.save("z.npy", IMAGES[:, :2])
    assert "z.npy: expected examples of shape (5, 4) as in x.npy, got (2, 4)" in convert(
        "x.npy", "--test", "z.npy", code=3, out="b.h5"
    )


def test_what_is_no_source_is_named(convert: Run):
    Path("x.txt").write_text("hello")
    assert "x.txt: expected a table (.csv" in convert("x.txt", code=3)
    assert "nothing: no such file" in convert("nothing", code=3)
    sorted_file()
    assert "out.csv: expected the name of an HDF5 file" in convert("sorted.h5", code=2, out="out.csv")
    with h5py.File("other.h5", "w") as file:
        file["a"] = [1]
    assert "no data set train_set_x or test_set_x: the file has a" in convert("other.h5", code=3)


def test_a_file_that_is_converted_can_be_trained_on(convert: Run, capsys: pytest.CaptureFixture[str]):
    sorted_file()
    convert("sorted.h5", "--test-split", 0.2, "--quiet")
    assert main(["train", "out.h5", "--hidden", "4", "--epochs", "1", "--quiet"]) == 0, capsys.readouterr().err
