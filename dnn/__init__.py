"""A dense-network engine: one forward, backward and update code, on NumPy or on CuPy.

net = dnn.Network([784, 256, 10], output="softmax")
net.fit(X, Y, epochs=10, batch_size=128, optimizer=dnn.Adam(1e-3))
net.evaluate(X_test, Y_test)
"""

from __future__ import annotations

__version__ = "0.1.0"

from dnn import errors
from dnn.activations import register_activation
from dnn.data import open_dataset
from dnn.losses import Loss, register_loss
from dnn.model_file import load
from dnn.network import Network
from dnn.optimizers import SGD, Adam, Momentum, Optimizer
from dnn.training import FitSettings, History

__all__ = [
    "SGD",
    "Adam",
    "FitSettings",
    "History",
    "Loss",
    "Momentum",
    "Network",
    "Optimizer",
    "__version__",
    "errors",
    "load",
    "open_dataset",
    "register_activation",
    "register_loss",
]
