"""The figure of a comparison: generality against locality, a point with its intervals for each editor."""

from __future__ import annotations

import io
from collections.abc import Sequence

from mmedit.evaluation.report import EditReport

ACROSS, UP = "locality_image", "generality_image_exact"
LABELS = "locality: answers about other pictures that stay", "generality: answers about other pictures\nof the source that are exactly as expected"  # fmt: skip
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
MARKERS = "os^DvP*X<>"


def comparison_figure(reports: Sequence[EditReport], title: str = "") -> bytes:
    """Draw reports as points of locality (across) and generality (up) with their 95 % intervals; the best is top right.

    Reports of as many edits at once share a panel. An editor has the same colour and mark in all of them, so that it is known
    without colours too.

    Args:
        reports: as `mmedit.evaluation.bench.report_of` makes them; those without one of the metrics are left out.
        title: above the panels.

    Returns:
        A PNG file.

    Raises:
        ImportError: if matplotlib, of the extra `analysis`, is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [report for report in reports if ACROSS in report.metrics and UP in report.metrics]
    counts = sorted({report.info.get("at_once", 1) for report in drawn}) or [1]
    editors = list(dict.fromkeys(editor_of(report) for report in drawn))
    figure = Figure(figsize=(3.2 * len(counts) + 2.4, 4.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(counts), sharex=True, sharey=True, squeeze=False)[0]
    known = {}
    for axes, n in zip(panels, counts, strict=True):
        for report in drawn:
            if report.info.get("at_once", 1) != n:
                continue
            number, (x, y) = editors.index(editor_of(report)), (report.metrics[ACROSS], report.metrics[UP])
            x_error, y_error = ([[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]] for e in (x, y))
            known[number] = axes.errorbar(
                x.value, y.value, xerr=x_error, yerr=y_error, fmt=MARKERS[number % len(MARKERS)], markersize=8, capsize=3,
                color=COLOURS[number % len(COLOURS)], markeredgecolor="white", elinewidth=1.4, alpha=0.9,
            )  # fmt: skip
        axes.set(title="one edit at a time" if n == 1 else f"{n} edits at once")
        axes.margins(0.08)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(LABELS[0], fontsize=10)
    panels[0].set_ylabel(LABELS[1])
    figure.suptitle(title)
    figure.legend([known[n] for n in range(len(editors))], editors, loc="outside right center", frameon=False)
    canvas.print_png(png := io.BytesIO())
    return png.getvalue()


def editor_of(report: EditReport) -> str:
    """The name of a report's editor, without how many edits it made at once."""
    return str(report.info.get("editor", report.name))
