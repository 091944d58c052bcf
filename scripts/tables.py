"""Medians, quartiles and ratios of the benchmarks, and their formatting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Figures = dict[str, Any]


def quartiles(values: Any) -> np.ndarray:
    return np.percentile(values, [25, 50, 75])


def middle(values: Any) -> Figures:
    low, median, high = quartiles(values)
    return {"median": float(median), "quartiles": [float(low), float(high)]}


def ratio(times: Sequence[float], ours: Sequence[float]) -> np.ndarray:
    """The ratios within each round."""
    return np.array(times) / np.array(ours)


def summary(times: dict[str, list[float]], to: Sequence[str] = ("dnn", "dnn, plain")) -> dict[str, Figures]:
    """By name: median, quartiles, and the median over rounds of the ratio to each name in `to` that was timed."""
    return {
        name: middle(values)
        | {f"by {ours}": float(np.median(ratio(values, times[ours]))) for ours in to if ours in times}
        for name, values in times.items()
    }


def spread(values: Any) -> str:
    low, median, high = quartiles(values)
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def number(value: float) -> str:
    """Four significant digits, or all digits before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def time_in_words(figures: Figures | None) -> str:
    if figures is None:
        return "-"
    low, high = figures["quartiles"]
    return f"{number(figures['median'])} [{number(low)} {number(high)}]"


def ratio_in_words(figures: Figures) -> str:
    low, high = figures["quartiles"]
    return f"{figures['median']:.3f} [{low:.3f} {high:.3f}]"


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  " + "  ".join([first.strip().ljust(widths[0]), *rest])


def name_of(row: Figures) -> str:
    dtype = ", float64" if row["dtype"] == "float64" else ""
    return f"{row['network']}, {row['batch']}, {row['optimizer']}{dtype}"
