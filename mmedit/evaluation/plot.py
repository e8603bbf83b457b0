"""The figure of a comparison: generality against locality, a point with its intervals for each editor."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from mmedit.evaluation.report import EditReport

ACROSS, UP = "locality_image", "generality_image_exact"
LABELS = "locality (pictures without the source)", "generality, exact (other pictures of the source)"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
"""Okabe and Ito's, which are told apart without full colour vision, and grey."""
MARKERS = "os^DvP*X<>"
CORNER = 0.85
"""Editors of which both shares are so good are shown on a larger scale too, where others are not."""


def comparison_figure(reports: Sequence[EditReport], title: str = "") -> Any:
    """Draw reports as points of locality (across) and generality (up) with their 95 % intervals; the best is top right.

    Reports of as many edits at once share a panel. An editor has the same colour and mark in all of them, so that it is known
    without colours too.

    Args:
        reports: as `mmedit.evaluation.bench.report_of` makes them; those without one of the metrics are left out.
        title: above the panels.

    Returns:
        A matplotlib figure, drawn without a window.

    Raises:
        ImportError: if matplotlib, of the extra `analysis`, is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [report for report in reports if ACROSS in report.metrics and UP in report.metrics]
    counts = sorted({report.info.get("at_once", 1) for report in drawn}) or [1]
    editors = list(dict.fromkeys(editor_of(report) for report in drawn))
    good = [min(report.metrics[ACROSS].value, report.metrics[UP].value) >= CORNER for report in drawn]
    rows = 2 if any(good) and not all(good) else 1  # below, the corner of the good ones on a larger scale
    beside = 1.6 + 0.085 * max(map(len, editors), default=0)  # inches for the axis's label and the legend
    figure = Figure(figsize=(3.0 * len(counts) + beside, 0.8 + 3.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, len(counts), sharex="row", sharey="row", squeeze=False)
    marks: dict[str, Any] = {}
    for column, n in enumerate(counts):
        for axes in panels[:, column]:
            for report in drawn:
                if report.info.get("at_once", 1) == n:
                    editor = editor_of(report)
                    marks[editor] = _point(axes, report, editors.index(editor))
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0, column].margins(0.08)
        panels[0, column].set_title("one edit at a time" if n == 1 else f"{n} edits at once", fontsize=10)
        if rows == 2:
            edge = CORNER - 0.02, 1.01
            panels[1, column].set(xlim=edge, ylim=edge)
            panels[1, column].set_title("its upper right corner", fontsize=9)
    figure.supxlabel(LABELS[0], fontsize=10)
    figure.supylabel(LABELS[1], fontsize=10)
    figure.suptitle(title, fontsize=11)
    figure.legend([marks[editor] for editor in editors], editors, loc="outside right center", frameon=False)
    return figure


def png(figure: Any) -> bytes:
    """A figure as a PNG file."""
    figure.savefig(file := io.BytesIO(), format="png", dpi=160)
    return file.getvalue()


def _point(axes: Any, report: EditReport, number: int) -> Any:
    """A hollow mark, so that several in the same place can all be seen, with its intervals; returns the mark alone."""
    x, y = report.metrics[ACROSS], report.metrics[UP]
    x_error, y_error = ([[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]] for e in (x, y))
    mark, _, _ = axes.errorbar(
        x.value, y.value, xerr=x_error, yerr=y_error, fmt=MARKERS[number % len(MARKERS)], markersize=9, capsize=3,
        color=COLOURS[number % len(COLOURS)], markerfacecolor="none", markeredgewidth=1.8, elinewidth=1.1,
    )  # fmt: skip
    return mark


def editor_of(report: EditReport) -> str:
    """The name of a report's editor, without how many edits it made at once."""
    return str(report.info.get("editor", report.name))
