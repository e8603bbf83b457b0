"""What came out of judging: every metric with its interval, and every probe; as a table, JSON, CSV or a page."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmedit.evaluation.intervals import Estimate, estimate
from mmedit.evaluation.judge import ProbeResult
from mmedit.files import write_text
from mmedit.printable import json_text, printable


@dataclass(frozen=True)
class EditReport:
    """What an edit, or a set of edits, does and what it leaves alone.

    Args:
        name: of the patch, or of the editor and its benchmark.
        model: what it was judged on.
        results: every probe, before and after.
        info: anything else worth keeping: settings, seconds, failures.
    """

    name: str
    model: str
    results: tuple[ProbeResult, ...]
    info: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """Every metric that the probes give, by name.

        Intervals are from resampling edits where there are several, else single probes.
        """
        cases = {result.case for result in self.results}
        names = dict.fromkeys(name for result in self.results for name in result.scores)
        found = {}
        for name in names:
            scored = [(i, result) for i, result in enumerate(self.results) if name in result.scores]
            values = [result.scores[name] for _, result in scored]
            groups = [result.case if len(cases) > 1 else i for i, result in scored]
            weights = [result.weights.get(name, 1.0) for _, result in scored]
            found[name] = estimate(values, groups, weights)
        return found

    @property
    def not_said(self) -> int:
        """Probes that the edit should change but in which the unedited model does not say the source: they count nowhere."""
        return sum(result.right is None for result in self.results)

    def __str__(self) -> str:
        rows = [(name, *str(e).split(" ", 1), str(e.n)) for name, e in self.metrics.items()]
        table = [("metric", "value", "95 % interval", "n"), *rows]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}"
            for row in table
        ]
        if self.not_said:
            lines.append(
                f"{self.not_said} more: the unedited model does not say the source there, so nothing can be swapped"
            )
        return "\n".join([f"{self.name} on {self.model}", *lines])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "name": self.name, "model": self.model, **self.info,
            "metrics": {name: vars(e) for name, e in self.metrics.items()},
            "not_said": self.not_said, "cases": [row_of(result) for result in self.results],
        }  # fmt: skip

    def to_json(self, path: str | Path) -> None:
        """Write the report as JSON; null for a figure that is of no probe.

        Raises:
            OutputError: if the file cannot be written.
        """
        write_text(path, json_text(self.to_dict()) + "\n")

    def to_csv(self, path: str | Path) -> None:
        """Write every probe as a row, with a column for each metric.

        Raises:
            OutputError: if the file cannot be written.
        """
        write_csv(path, [self])

    def to_html(self, path: str | Path) -> None:
        """Write one page with the pictures, the captions before and after, and every metric.

        Raises:
            OutputError: if the file cannot be written.
        """
        from mmedit.evaluation.page import write_report

        write_report(path, [self])


def row_of(result: ProbeResult) -> dict[str, Any]:
    """One probe as plain JSON values."""
    probe = result.probe
    return {
        "case": result.case, "kind": probe.kind, "picture": picture_label(probe.image, probe.label),
        "prompt": probe.prompt.text, "prefix": probe.prompt.prefix, "answer": probe.answer,
        "before": result.before, "after": result.after, "expected": result.expected, "right": result.right,
        "scores": dict(result.scores),
    }  # fmt: skip


def picture_label(image: Any, label: str = "") -> str:
    """What to call a picture: its label, its path, or just that."""
    named = label or (str(image) if isinstance(image, str | os.PathLike) else "" if image is None else "a picture")
    return printable(named)


def write_csv(path: str | Path, reports: Sequence[EditReport]) -> None:
    """Write every probe of some reports as a row, with the report's name and a column for each metric.

    Raises:
        OutputError: if the file cannot be written.
    """
    metrics = list(dict.fromkeys(name for report in reports for name in report.metrics))
    rows = [(report.name, row_of(result)) for report in reports for result in report.results]
    columns = [name for name in rows[0][1] if name != "scores"] if rows else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["report", *columns, *metrics])
    for name, row in rows:
        writer.writerow([name, *(row[column] for column in columns), *(row["scores"].get(m, "") for m in metrics)])
    write_text(path, text.getvalue())


def summary(reports: Sequence[EditReport], names: Sequence[str]) -> str:
    """Several reports side by side: a row for each, a column for each metric.

    Args:
        reports: of the same probes.
        names: the metrics to show.
    """
    table = [["", *names]] + [
        [report.name, *(str(report.metrics[name]) if name in report.metrics else "" for name in names)]
        for report in reports
    ]
    return aligned(table)


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, in columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )
