"""Data loading: HDF5 files in, validated and converted examples out."""

from dnn.data.examples import Examples, new_host_array, prepare, prepare_in_parts
from dnn.data.hdf5 import Dataset, Part, open_dataset

__all__ = ["Dataset", "Examples", "Part", "new_host_array", "open_dataset", "prepare", "prepare_in_parts"]
