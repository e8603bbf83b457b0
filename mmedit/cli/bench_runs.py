"""What `mmedit bench` runs: edits one by one, several at once, or piling up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedit.cli import options as o

if TYPE_CHECKING:
    from mmedit.cases import EditCase
    from mmedit.editors.base import Editor
    from mmedit.evaluation.answers import Baselines
    from mmedit.evaluation.bench import Outcome
    from mmedit.evaluation.journal import Journal
    from mmedit.evaluation.report import EditReport
    from mmedit.models.vlm import VisionLanguageModel
    from mmedit.processes import Processes


@dataclass(frozen=True)
class Run:
    """What the runs of one command have in common.

    Args:
        vlm: the model.
        baselines: what it says unedited.
        processes: that share the work.
        output: the folder for results; None for nowhere.
        settings: what decides the results.
        batch_size: probes per batch.
    """

    vlm: VisionLanguageModel
    baselines: Baselines
    processes: Processes
    output: Path | None
    settings: dict[str, Any]
    batch_size: int

    def journal(self, label: str, name: str, method: Editor, **more: Any) -> AbstractContextManager[Journal | None]:
        """Where the results of one editor are kept as they come."""
        from mmedit.evaluation.journal import Journal

        if self.output is None:
            return nullcontext()
        header = {**self.settings, "editor": name, "hparams": asdict(method.hparams), **more}
        return Journal(self.output, label, header, self.processes.index)


def each(run: Run, name: str, method: Editor, cases: Sequence[EditCase], at_once: int = 1) -> EditReport:
    """The report of one editor, with so many edits at once, in every process."""
    from tqdm import tqdm

    from mmedit.evaluation.bench import outcomes, report_of
    from mmedit.evaluation.together import groups_of, together

    began, own = time.perf_counter(), list[Any]()
    common: dict[str, Any] = {"processes": run.processes, "seed": run.settings["seed"], "batch_size": run.batch_size, "baselines": run.baselines}  # fmt: skip
    bar: dict[str, Any] = {"desc": name if at_once == 1 else f"{name}, {at_once} at once", "disable": not run.processes.main}  # fmt: skip
    if at_once == 1:
        with run.journal(file_name(name), name, method) as journal:
            forcing = run.settings["teacher_forcing"]
            found = outcomes(run.vlm, cases, method.execute, journal=journal, teacher_forcing=forcing, **common)
            own += tqdm(found, unit="edit", total=len(run.processes.share(cases)), **bar)
    else:
        groups = groups_of(cases, at_once)
        with run.journal(f"{file_name(name)}-{at_once}-at-once", name, method, at_once=at_once) as journal:
            patches = together(run.vlm, groups, method.execute, journal=journal, **common)
            for made in tqdm(patches, unit="patch", total=len(run.processes.share(groups)), **bar):
                own += made
    return report_of(name, run.vlm.name, _gathered(run, own, cases), time.perf_counter() - began, at_once)


def _gathered(run: Run, own: Sequence[Outcome], cases: Sequence[EditCase]) -> list[Outcome]:
    """The outcomes of all processes, in order of cases."""
    from mmedit.evaluation.bench import Outcome

    probes = {case.id: case.probes for case in cases}
    lines = run.processes.gather([one.to_dict() for one in own])
    order = {case.id: i for i, case in enumerate(cases)}
    return sorted((Outcome.from_dict(line, probes[line["case"]]) for line in lines), key=lambda one: order[one.case])


def pile_up(run: Run, name: str, method: Editor, cases: Sequence[EditCase]) -> tuple[dict[str, Any], str]:
    """The retention curve of one editor, as plain JSON values and in words."""
    from tqdm import tqdm

    from mmedit.evaluation.sequential import SHOWN, curve, draw_curve, retention, write_curve

    label = f"{file_name(name)}-sequential"
    folder = run.output / f"{label}-patches" if run.output else None
    with run.journal(label, name, method, sequential=True, cases=[case.id for case in cases]) as journal:
        found = retention(
            run.vlm, cases, method.execute, journal=journal, folder=folder, seed=run.settings["seed"],
            batch_size=run.batch_size, baselines=run.baselines,
        )  # fmt: skip
        made = list(tqdm(found, desc=f"{name}, sequential", unit="judged"))
    if run.output:
        write_curve(made, run.output / f"{label}.csv")
        try:
            draw_curve(made, run.output / f"{label}.png", f"{name} on {run.vlm.name}")
        except ImportError:
            o.say("the curve is not drawn: pip install 'mmedit-vlm[analysis]' for matplotlib", err=True)
    points = curve(made)
    rows = [
        {"further_edits": gap, "edits": edits, "superseded": gone, "metrics": {k: vars(e) for k, e in metrics.items()}}
        for gap, (metrics, edits, gone) in points.items()
    ]
    lost = len(cases) - sum(one.gap == 0 for one in made)
    lines = [f"{name} on {run.vlm.name}, all edits live; {lost} of {len(cases)} could not be made"]
    for gap, (metrics, edits, gone) in points.items():
        shown = ", ".join(f"{k} {metrics[k]}" for k in SHOWN if k in metrics)
        lines.append(f"  after {gap} further edits ({edits} edits, {gone} superseded): {shown}")
    told = {"editor": name, "model": run.vlm.name, "n_edits": len(cases), "failures": lost, "retention": rows}
    return told, "\n".join(lines)


def file_name(editor: str) -> str:
    """A name for files from what the user called an editor."""
    return "".join(c if c.isalnum() or c in "-_=" else "_" for c in editor)
