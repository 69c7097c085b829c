"""Results as PNG files. Needs matplotlib; without it there are none."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results import (
    CHUNKS,
    CPU,
    FIRST_CHUNK,
    IDLING,
    P50,
    P99,
    PSS,
    START,
    THROUGHPUT,
    Figure,
    Results,
    WorkInfo,
)
from benchmarks.spread import significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# file -> the figure it shows
_BARS = {
    "requests_per_s.png": THROUGHPUT,
    "latency_p50.png": P50,
    "latency_p99.png": P99,
    "cpu_per_request.png": CPU,
    "memory.png": PSS,
    "first_chunk.png": FIRST_CHUNK,
    "chunks_per_s.png": CHUNKS,
    "start.png": START,
    "idling.png": IDLING,
}
_GROWTH = (THROUGHPUT, P99, CPU, PSS)
_COLUMNS = 3


def can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write(results: Results, folder: Path) -> list[str]:
    """The names of the files written; those without any figure are left out."""
    import matplotlib

    matplotlib.use("Agg")
    written = []
    works = [work for work in results.works if not work.is_growth]
    for name, figure in _BARS.items():
        shown = [work for work in works if _has(results, work, figure)]
        if shown:
            _bars(results, shown, figure, folder / name)
            written.append(name)
    for family in dict.fromkeys(work.family for work in results.works if work.is_growth):
        growing = [work for work in results.works if work.family == family]
        if len(growing) > 1 and any(_has(results, work, THROUGHPUT) for work in growing):
            name = f"growth_{family}.png"
            _lines(results, growing, folder / name)
            written.append(name)
    return written


def _has(results: Results, work: WorkInfo, figure: Figure) -> bool:
    return figure in work.figures and any(
        results.spread(work.id, server, figure.attribute) for server in results.servers
    )


def _colours(results: Results) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = colormaps["tab10"]
    return {server: palette(number % 10) for number, server in enumerate(results.servers)}


def _bars(results: Results, works: Sequence[WorkInfo], figure: Figure, path: Path) -> None:
    """Small multiples: one panel per work, one bar per server, whiskers from lowest to highest."""
    from matplotlib import pyplot

    columns = min(_COLUMNS, len(works))
    rows = -(-len(works) // columns)
    height = 0.9 + 0.32 * len(results.servers)
    picture, axes = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, height * rows), squeeze=False, layout="constrained"
    )
    colours = _colours(results)
    for axis, work in zip(axes.flat, works, strict=False):
        _bar_panel(axis, results, work, figure, colours)
    for axis in axes.flat[len(works) :]:
        axis.set_visible(False)
    better = "longer is better" if figure.is_more_better else "shorter is better"
    picture.suptitle(f"{figure.title}: median, lowest, highest ({better})", fontsize=11)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)


def _bar_panel(
    axis: Axes, results: Results, work: WorkInfo, figure: Figure, colours: dict[str, Any]
) -> None:
    names, spreads = [], []
    for server in results.servers:
        spread = results.spread(work.id, server, figure.attribute)
        if spread is not None:
            names.append(server)
            spreads.append(spread)
    places = range(len(names))
    medians = [spread.median for spread in spreads]
    whiskers = [
        [spread.median - spread.low for spread in spreads],
        [spread.high - spread.median for spread in spreads],
    ]
    axis.barh(
        places,
        medians,
        xerr=whiskers,
        color=[colours[name] for name in names],
        capsize=2,
        height=0.7,
    )
    for place, spread in zip(places, spreads, strict=True):
        axis.annotate(
            f" {significant(spread.median)}", (spread.high, place), va="center", fontsize=7
        )
    axis.set_yticks(places, names, fontsize=8)
    axis.invert_yaxis()
    axis.set_title(f"{work.id}: {work.title}", fontsize=7)
    axis.tick_params(axis="x", labelsize=7)
    axis.margins(x=0.2)
    axis.set_xlim(left=0)


def _lines(results: Results, works: Sequence[WorkInfo], path: Path) -> None:
    """One panel per figure, one line per server over the size that grows."""
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(
        1, len(_GROWTH), figsize=(4 * len(_GROWTH), 3.2), layout="constrained"
    )
    colours = _colours(results)
    for axis, figure in zip(axes, _GROWTH, strict=True):
        for server in results.servers:
            points = [
                (work.x, spread)
                for work in works
                if (spread := results.spread(work.id, server, figure.attribute))
            ]
            if points:
                sizes, spreads = zip(*points, strict=True)
                axis.plot(
                    sizes,
                    [spread.median for spread in spreads],
                    marker="o",
                    label=server,
                    color=colours[server],
                )
                axis.fill_between(
                    sizes,
                    [spread.low for spread in spreads],
                    [spread.high for spread in spreads],
                    color=colours[server],
                    alpha=0.15,
                )
        axis.set_xscale("log")
        axis.set_xticks([work.x for work in works], [str(work.x) for work in works])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_title(figure.title, fontsize=9)
    axes[0].legend(fontsize=8)
    picture.suptitle(f"growth: {works[0].family}", fontsize=11)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
