"""Write a data set of scikit-learn's, bundled or drawn, to an HDF5 file in the assignment's layout.

    python scripts/make_dataset.py runs/digits.h5
    python scripts/make_dataset.py imbalanced runs/imbalanced.h5

digits          1797 grayscale images of 8 x 8 bytes, 10 classes
diabetes        442 patients, 10 features, a value
breast_cancer   569 tumours, 30 features, 2 classes
multi_label     6000 examples, 40 features, 8 independent labels
imbalanced      10000 examples, 20 features, 2 classes, 3 % of the second
hundred         20000 examples, 64 features, 100 classes
quantiles       4000 examples, 1 feature, a value whose noise grows with the feature

About a fifth of each is the test part, drawn at random with a fixed seed.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from dnn.errors import OutputError
from dnn.files import check_writable, write_whole


class Data(NamedTuple):
    """A data set in two parts, with the names of its classes where they have some."""

    X: np.ndarray
    Y: np.ndarray
    X_test: np.ndarray
    Y_test: np.ndarray
    classes: Any = None


def split(X: Any, Y: Any, test: int, classes: Any = None) -> Data:
    """`test` examples, drawn at random, for testing, and the others for training."""
    order = np.random.default_rng(0).permutation(len(X))
    return Data(X[order[test:]], Y[order[test:]], X[order[:test]], Y[order[:test]], classes)


def digits() -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    X = np.round(digits.images * 255 / 16).astype(np.uint8)
    return split(X, digits.target.astype(np.int64), 360, digits.target_names)


def diabetes() -> Data:
    from sklearn.datasets import load_diabetes

    return split(*load_diabetes(return_X_y=True, scaled=False), 89)


def breast_cancer() -> Data:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return split(bunch.data, bunch.target.astype(np.int64), 114, bunch.target_names)


def multi_label() -> Data:
    from sklearn.datasets import make_multilabel_classification

    X, Y = make_multilabel_classification(6000, 40, n_classes=8, n_labels=3, random_state=0)
    return split(X, Y.astype(np.int64), 1200)


def imbalanced() -> Data:
    from sklearn.datasets import make_classification

    X, Y = make_classification(
        10000, 20, n_informative=8, n_clusters_per_class=3, weights=[0.97], flip_y=0.002, random_state=0
    )
    return split(X.astype(np.float32), Y.astype(np.int64), 2000)


def hundred() -> Data:
    from sklearn.datasets import make_classification

    X, Y = make_classification(
        20000, 64, n_informative=32, n_classes=100, n_clusters_per_class=1, class_sep=1.5, random_state=0
    )
    return split(X.astype(np.float32), Y.astype(np.int64), 4000)


def quantiles() -> Data:
    random = np.random.default_rng(0)
    x = random.uniform(0, 6, 4000)
    y = np.sin(x) + (0.1 + 0.1 * x) * random.standard_normal(4000)
    return split(x[:, None].astype(np.float32), y.astype(np.float32), 800)


DATA_SETS: dict[str, Callable[[], Data]] = {
    made.__name__: made for made in (digits, diabetes, breast_cancer, multi_label, imbalanced, hundred, quantiles)
}


def as_file(data: Data) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name in ("train", "test"):
            X, Y = (data.X, data.Y) if name == "train" else (data.X_test, data.Y_test)
            file[f"{name}_set_x"], file[f"{name}_set_y"] = X, Y
        if data.classes is not None:
            file["list_classes"] = np.array([str(name).encode() for name in data.classes])
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="digits", choices=DATA_SETS, help="which (default: digits)")
    parser.add_argument("out", metavar="FILE.h5", help="replaced if it exists")
    given = parser.parse_args()
    if given.out in DATA_SETS:
        parser.error(f"{given.out} is a data set: name the file after it, as in {given.out} runs/{given.out}.h5")
    try:
        check_writable(given.out, force=True)
        write_whole({given.out: as_file(DATA_SETS[given.name]())})
    except OutputError as error:
        sys.exit(f"make_dataset.py: {error}")


if __name__ == "__main__":
    main()
