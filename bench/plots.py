"""A picture of each scenario: the median of the first measure, and the range of the rounds."""

from __future__ import annotations

import statistics
from pathlib import Path

from .report import AGAIN, TITLES, Results

__all__ = ["draw"]

_OURS = ("memory", "embedded", "redis")


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Write NAME.png and NAME.svg for every scenario; returns the PNGs' paths, seen from the folder's parent."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "trunkline"  # the same figures give the same file
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for scenario in results.rounds:
        key, found = results.measured(scenario)
        found = {name: values for name, values in found.items() if name != AGAIN}
        if not found:
            continue
        names = list(found)
        medians = [statistics.median(found[name]) for name in names]
        spread = [
            [median - min(found[name]) for name, median in zip(names, medians, strict=True)],
            [max(found[name]) - median for name, median in zip(names, medians, strict=True)],
        ]
        colours = ["#1f6f8b" if name in _OURS or "relay" in name else "#b8b8b8" for name in names]
        figure, axes = pyplot.subplots(figsize=(7.5, 0.9 + 0.42 * len(names)), layout="constrained")
        bars = axes.barh(names, medians, xerr=spread, color=colours, ecolor="#444444", capsize=2, height=0.7)
        axes.bar_label(
            bars, [f"{median:,.0f}" if median >= 100 else f"{median:.3g}" for median in medians], padding=6
        )
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set_xlabel(key + (" (more is better)" if key.endswith("/s") else " (less is better)"))
        axes.set_title(TITLES[scenario], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        for kind in ("png", "svg"):
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(folder / f"{scenario}.{kind}", dpi=120, metadata=metadata)
        pyplot.close(figure)
        pictures[scenario] = f"{folder.name}/{scenario}.png"
    return pictures
