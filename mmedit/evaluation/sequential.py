"""Edits that pile up: all of a benchmark live at once, and each judged again after 1, 10, 100 … further ones.

Each edit is made on the model as the earlier ones left it. What other live edits change is not held against an edit; where a
later one has the same source, the earlier is superseded, which is counted apart.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmedit.cases import EditCase
from mmedit.evaluation.answers import Baselines
from mmedit.evaluation.bench import Execute, made, of_case, plain_result
from mmedit.evaluation.intervals import Estimate
from mmedit.evaluation.journal import Journal
from mmedit.evaluation.judge import ProbeResult, State, judge, swaps_of
from mmedit.evaluation.report import EditReport
from mmedit.files import make_folder, write_text
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.live import stack
from mmedit.patches.patch import Patch

SHOWN = ("reliability", "generality_image", "locality_image")


@dataclass(frozen=True)
class Retained:
    """One edit, judged after some further ones.

    Args:
        gap: how many further edits are live.
        case: the edit.
        results: its probes, before any edit and now.
        superseded: whether a further edit has the same source.
    """

    gap: int
    case: str
    results: tuple[ProbeResult, ...]
    superseded: bool


def gaps_below(n: int) -> list[int]:
    """0, 1, 10, 100 … below the number of edits.

    Example:
        >>> gaps_below(50)
        [0, 1, 10]
    """
    return [gap for gap in (0, *(10**power for power in range(9))) if gap < n]


def retention(
    vlm: VisionLanguageModel, cases: Sequence[EditCase], execute: Execute, *, journal: Journal | None = None, folder: str | Path | None = None,
    seed: int = 0, batch_size: int = 8, baselines: Baselines | None = None,
) -> Iterator[Retained]:  # fmt: skip
    """Make edits one after the other, and judge again those that 1, 10, 100 … others have followed.

    Args:
        vlm: the model; the same at the end as at the start.
        cases: the edits, in order.
        execute: from a request to a patch.
        journal: what is done already, and where to write what comes.
        folder: where the patches are kept, so that a later run goes on with them.
        seed: what an editor draws at random follows from it and the case alone.
        batch_size: probes per batch.
        baselines: what the unedited model says.

    Yields:
        Every edit at every gap, in order of steps. An edit that could not be made is left out.
    """
    known, gaps = baselines or Baselines(vlm), gaps_below(len(cases))
    lines = {(line["step"], line["gap"]): line for line in journal.lines()} if journal else {}
    kept = make_folder(folder) if folder else None
    live: dict[int, Patch] = {}
    for step, case in enumerate(cases):
        patch = _patch(vlm, case, execute, seed, list(live.values()), kept / f"{step:06}.safetensors" if kept else None)
        if patch is not None:
            live[step] = patch
        for gap in gaps:
            tested = step - gap
            if tested not in live:
                continue
            if (step, gap) not in lines:
                judged = _judge(vlm, cases[tested], tested, live, known, batch_size)
                line = {"step": step, "gap": gap, **judged}
                if journal:
                    journal.write(line)
                lines[step, gap] = line
            yield _retained(lines[step, gap], cases[tested])


def _patch(
    vlm: VisionLanguageModel, case: EditCase, execute: Execute, seed: int, live: Sequence[Patch], file: Path | None
) -> Patch | None:
    if file is not None and file.is_file():
        return Patch.load(file)
    with stack(vlm, live):
        patch = made(vlm, case.id, case.request, execute, seed).patch
    if patch is not None and file is not None:
        patch.save(file)
    return patch


def _judge(
    vlm: VisionLanguageModel, case: EditCase, number: int, live: dict[int, Patch], baselines: Baselines, batch_size: int
) -> dict[str, Any]:
    own = swaps_of(live[number])
    others = {k: v for other, patch in live.items() if other != number for k, v in swaps_of(patch).items()}
    later = {source for other, patch in live.items() if other > number for source in swaps_of(patch)}
    state = State(list(live.values()), own, {k: v for k, v in others.items() if k not in own})
    (results,) = judge(vlm, case.probes, [state], baselines, batch_size, teacher_forcing=False)
    return {"superseded": bool(own.keys() & later), "results": [plain_result(result) for result in results]}


def _retained(line: dict[str, Any], case: EditCase) -> Retained:
    results = [ProbeResult(p, **r) for p, r in zip(case.probes, line["results"], strict=True)]
    return Retained(line["gap"], case.id, of_case(case.id, results), line["superseded"])


def curve(found: Sequence[Retained]) -> dict[int, tuple[dict[str, Estimate], int, int]]:
    """For each gap the metrics over the edits that are not superseded, how many these are, and how many are."""
    points = {}
    for gap in sorted({one.gap for one in found}):
        at = [one for one in found if one.gap == gap]
        lasting = [one for one in at if not one.superseded]
        results = tuple(replace(result) for one in lasting for result in one.results)
        points[gap] = EditReport("", "", results).metrics, len(lasting), len(at) - len(lasting)
    return points


def write_curve(found: Sequence[Retained], path: str | Path) -> None:
    """Write the curve as CSV: a row for each gap and metric.

    Raises:
        OutputError: if it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["further_edits", "metric", "value", "low", "high", "n", "edits", "superseded"])
    for gap, (metrics, edits, superseded) in curve(found).items():
        for name, e in metrics.items():
            writer.writerow([gap, name, e.value, e.low, e.high, e.n, edits, superseded])
    write_text(path, text.getvalue())


def draw_curve(found: Sequence[Retained], path: str | Path, title: str = "") -> None:
    """Draw the curve as PNG: reliability, generality and locality against the number of further edits.

    Raises:
        OutputError: if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mmedit.files import replacing

    points = curve(found)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    styles = zip(SHOWN, ("o-", "s--", "^:"), ("#0072b2", "#d55e00", "#009e73"), strict=True)  # Okabe and Ito's colours
    for name, style, colour in styles:
        at = [(place, metrics[name]) for place, (metrics, _, _) in enumerate(points.values()) if name in metrics]
        if at:
            x, e = [place for place, _ in at], [one for _, one in at]
            axes.plot(x, [one.value for one in e], style, color=colour, label=name.replace("_", " "))
            axes.fill_between(x, [one.low for one in e], [one.high for one in e], color=colour, alpha=0.15, linewidth=0)
    labels = [f"{gap}\n({edits} edits)" for gap, (_, edits, _) in points.items()]
    axes.set_xticks(range(len(points)), labels)
    axes.set(xlabel="further edits live", ylabel="share of probes", ylim=(-0.02, 1.02), title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=150)
