"""Editors side by side: what an edit does, what it breaks and what it costs, as one table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mmedit.evaluation.report import EditReport, aligned
from mmedit.files import write_text

MEASURES = ("reliability", "generality_image", "generality_image_exact", "locality_image", "locality_text", "leakage")
COSTS = {"seconds_per_edit": "s per edit", "peak_bytes": "memory", "patch_bytes": "patch"}
"""Of a report's info, with their headings."""


def comparison(reports: Sequence[EditReport]) -> list[list[str]]:
    """The table of some benchmark reports: a heading, then a row for each.

    Args:
        reports: as `mmedit.evaluation.bench.report_of` makes them.

    Returns:
        The cells: name, metrics with their 95 % intervals, seconds per edit, memory that making a patch needs at its peak above
        what was in use before, and the size of a patch.
    """
    rows = [["", *MEASURES, *COSTS.values()]]
    for report in reports:
        metrics = [str(report.metrics[name]) if name in report.metrics else "–" for name in MEASURES]
        seconds, peak, size = (report.info[name] for name in COSTS)
        rows.append([report.name, *metrics, f"{seconds:.3g}", bytes_text(peak), bytes_text(size)])
    return rows


def comparison_text(reports: Sequence[EditReport]) -> str:
    """The same as lines of text in columns."""
    return aligned(comparison(reports))


def write_comparison(path: str | Path, reports: Sequence[EditReport]) -> None:
    """Write the same as CSV, figures in full: three columns for each metric, bytes and seconds as numbers.

    Raises:
        OutputError: if it cannot be written.
    """
    counts = ("at_once", "edits_per_patch", "n_edits")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    writer.writerow(["report", "model", *counts, "failures", *ends, *COSTS])
    for report in reports:
        estimates = [report.metrics.get(name) for name in MEASURES]
        figures = [figure for e in estimates for figure in ((e.value, e.low, e.high) if e else ("", "", ""))]
        told = [report.info[name] for name in counts], [report.info[name] for name in COSTS]
        writer.writerow([report.name, report.model, *told[0], len(report.info["failures"]), *figures, *told[1]])
    write_text(path, text.getvalue())


def bytes_text(size: float) -> str:
    """A size in the unit in which it is easily read.

    Example:
        >>> bytes_text(512), bytes_text(20480), bytes_text(3.5 * 2**30)
        ('512 B', '20.0 KiB', '3.5 GiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
