"""A dense-network engine: one forward, backward and update code, on NumPy or on CuPy.

net = dnn.Network([784, 256, 10], output="softmax")
net.fit(X, Y, epochs=10, batch_size=128, optimizer=dnn.Adam(1e-3))
net.evaluate(X_test, Y_test)
"""

from __future__ import annotations

__version__ = "0.1.0"

from dnn import errors, layers, losses, optimizers, schedules
from dnn.activations import register_activation
from dnn.callbacks import EarlyStopping, Event, History
from dnn.checkpoint import resume
from dnn.data import open_dataset
from dnn.data.schema import Schema
from dnn.gradient_check import GradientCheck, gradient_check
from dnn.layers import *  # noqa: F403
from dnn.losses import *  # noqa: F403
from dnn.metrics import Pinball, TopK
from dnn.model_file import load
from dnn.network import Network
from dnn.optimizers import *  # noqa: F403
from dnn.range_test import RangeTest, learning_rate_range
from dnn.schedules import *  # noqa: F403
from dnn.settings import FitSettings

__all__ = [
    "EarlyStopping",
    "Event",
    "FitSettings",
    "GradientCheck",
    "History",
    "Network",
    "Pinball",
    "RangeTest",
    "Schema",
    "TopK",
    "__version__",
    "errors",
    "gradient_check",
    "layers",
    "learning_rate_range",
    "load",
    "losses",
    "open_dataset",
    "optimizers",
    "register_activation",
    "resume",
    "schedules",
    *layers.__all__,
    *losses.__all__,
    *optimizers.__all__,
    *schedules.__all__,
]
