"""Data at the door: HDF5 files in, checked and converted examples out."""

from dnn.data.examples import Examples, prepare
from dnn.data.hdf5 import Dataset, Part, open_dataset

__all__ = ["Dataset", "Examples", "Part", "open_dataset", "prepare"]
