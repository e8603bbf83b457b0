"""The figures of the study: readable in print and without colour vision, axes labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmedit.analysis.specificity import Heatmap
from mmedit.analysis.survey import METHODS
from mmedit.evaluation.intervals import Estimate
from mmedit.files import replacing
from mmedit.printable import printable

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P")


def new(columns: int = 1, width: float = 6.0, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """An empty figure with some axes side by side, drawn without a window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=160)


def draw_layers(counts: Mapping[int, Mapping[int, int]], title: str) -> Figure:
    """Fig. 2: unique top-k neurons of each layer, a line for each k."""
    figure, (axes,) = new()
    for (k, by_layer), colour, marker in zip(counts.items(), COLOURS, MARKERS, strict=False):
        axes.plot(list(by_layer), list(by_layer.values()), color=colour, marker=marker, markersize=4, label=f"k = {k}")
    axes.set(xlabel="decoder layer", ylabel="unique neurons", title=title)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    return figure


def draw_curves(
    curves: Mapping[str, Mapping[int, Estimate]], x_label: str, y_label: str, title: str, log: bool = True
) -> Figure:
    """Shares with their intervals against k or N, a line for each method."""
    figure, (axes,) = new()
    _curves(axes, curves, log)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.legend(fontsize=8)
    return figure


def draw_cross_image(found: Mapping[str, Mapping[tuple[int, int], Estimate]], title: str) -> Figure:
    """Figs. 4 and 6: neurons common to N pictures, a panel for each k."""
    ks = sorted({k for of_method in found.values() for k, _ in of_method})
    figure, axes = new(len(ks), width=3.4 * max(1, len(ks)), height=3.6)
    for one, k in zip(axes, ks, strict=True):
        curves = {m: {n: e for (kk, n), e in of_method.items() if kk == k} for m, of_method in found.items()}
        _curves(one, curves, log=False)
        one.set(xlabel="pictures, N", title=f"k = {k}")
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("share of neurons in common")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _curves(axes: Axes, curves: Mapping[str, Mapping[int, Estimate]], log: bool) -> None:
    for (method, points), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        x, e = list(points), list(points.values())
        axes.plot(
            x, [one.value for one in e], color=colour, marker=marker, markersize=4, label=METHODS.get(method, method)
        )
        axes.fill_between(x, [one.low for one in e], [one.high for one in e], color=colour, alpha=0.15, linewidth=0)
    if log:
        axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)


def draw_heatmap(heatmap: Heatmap, title: str) -> Figure:
    """Figs. 5 and 7: how much each concept's best neuron contributes to each concept."""
    figure = Figure(figsize=(1.8 + 0.55 * len(heatmap.neurons), 1.6 + 0.38 * len(heatmap.words)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = axes.imshow(heatmap.scores, cmap="cividis", aspect="auto")
    axes.set_xticks(
        range(len(heatmap.neurons)), [str(neuron) for neuron in heatmap.neurons], rotation=60, ha="right", fontsize=8
    )
    words = [printable(word) for word in heatmap.words]
    axes.set_yticks(range(len(words)), words, fontsize=8, parse_math=False)  # a caption may say `$`
    axes.set(xlabel="best neuron of each concept", ylabel="concept", title=title)
    figure.colorbar(shown, ax=axes, label="contribution score")
    return figure


def draw_shares(groups: Mapping[str, Mapping[str, Estimate]], y_label: str, title: str) -> Figure:
    """Shares with their intervals as bars: for each group one of each kind."""
    figure, (axes,) = new()
    kinds: Sequence[Any] = list(dict.fromkeys(kind for bars in groups.values() for kind in bars))
    width = 0.8 / max(1, len(kinds))
    for i, (kind, colour, hatch) in enumerate(zip(kinds, COLOURS, ("", "//", "..", "xx", "--", "++"), strict=False)):
        at = [place + (i - (len(kinds) - 1) / 2) * width for place, bars in enumerate(groups.values()) if kind in bars]
        e = [bars[kind] for bars in groups.values() if kind in bars]
        errors = [[one.value - one.low for one in e], [one.high - one.value for one in e]]
        errors = [[max(0.0, value) for value in side] for side in errors]
        axes.bar(
            at,
            [one.value for one in e],
            width * 0.92,
            yerr=errors,
            capsize=2,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=str(kind),
        )
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set(ylabel=y_label, title=title, ylim=(0, 1.05))
    axes.legend(fontsize=8)
    return figure
