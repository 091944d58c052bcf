"""Layers: frozen descriptions of what a network is made of.

To add one: its mathematics and its class in a file here, or with its kin in one that there is, and its test.
"""

from __future__ import annotations

from dnn.layers.base import (  # noqa: F401
    LAYERS,
    Layer,
    Place,
    known_layer,
    layer_config,
    layer_from_config,
    learns,
    needs_data,
    walk,
    width_after,
)
from dnn.layers.dense import *  # noqa: F403
from dnn.layers.dropout import *  # noqa: F403
from dnn.layers.embeddings import *  # noqa: F403
from dnn.layers.normalization import *  # noqa: F403
from dnn.layers.normalization import NORMS  # noqa: F401
from dnn.layers.residual import *  # noqa: F403

__all__ = ["Layer", "known_layer", *LAYERS]
