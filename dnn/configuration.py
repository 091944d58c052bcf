"""Frozen configurations as JSON: the name by which their kind is known, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np


def to_config(value: Any, kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    """{"name": ..., setting: ...}; ValueError, which names the registry `where`, if its kind is not one of them."""
    name = next((name for name, kind in kinds.items() if kind is type(value)), None)
    if name is None:
        own = type(value).__name__
        raise ValueError(f"a file stores {own} by name: add it to {where}, as {where}['{own.lower()}'] = {own}")
    return {"name": name, **{item.name: _plain(getattr(value, item.name)) for item in fields(value)}}


def from_config(config: Any, kinds: Mapping[str, type], what: str) -> Any:
    """The configuration that `to_config` wrote so; ValueError or TypeError where it wrote no such thing."""
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        raise TypeError(f"{what}: expected a name with settings, got {config!r:.100}")
    kind = kinds.get(config["name"])
    if kind is None:
        raise ValueError(f"{what}: there is no {config['name']!r:.100} here: register it, or update dnn")
    settings = {name: _frozen(value) for name, value in config.items() if name != "name"}
    if unknown := settings.keys() - {item.name for item in fields(kind)}:
        raise ValueError(f"{what}: {config['name']} has no setting {sorted(unknown)[0]!r:.100}: update dnn")
    return kind(**settings)


def of_numpy(value: Any) -> Any:
    """What `json.dumps` makes of NumPy's numbers and arrays: its `default`."""
    if isinstance(value, (np.number, np.bool_, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a model file stores numbers and names, got {value!r}")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
