"""`mmedit bench`: a whole benchmark, for one editor or several side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmedit.cli import options as o

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmedit.cases import EditCase, Probe
    from mmedit.editors.base import Editor
    from mmedit.evaluation.answers import Baselines
    from mmedit.evaluation.report import EditReport
    from mmedit.models.vlm import VisionLanguageModel
    from mmedit.processes import Processes

MAIN = ("reliability", "generality_image", "generality_image_exact", "generality_text", "locality_image", "locality_text", "locality_same_image", "leakage", "kl_image")  # fmt: skip


def bench(
    benchmark: Annotated[str, typer.Argument(help="`iconworld`, or a file of records.", show_default=False)],
    editor: Annotated[list[str], typer.Option(help="Editing method, with settings of its own after a colon: MMNeurons:scorer=random. May be given several times.")] = ["MMNeurons"],  # noqa: B006
    format: Annotated[str | None, typer.Option(help="Of the file: mmedit, vlkeb, comprehendedit or mmke.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that the file's pictures are in; that of the file when left out.")] = None,
    rephrase_images: Annotated[Path | None, typer.Option(help="The same for rephrased pictures; as --images when left out.")] = None,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out records with a picture that is not there.")] = False,
    hparams: o.Hparams = None,
    limit: Annotated[int | None, typer.Option(help="Only the first edits.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of what editors draw at random.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Probes per batch.", min=1)] = 32,
    sequential: Annotated[bool, typer.Option("--sequential", help="Keep all edits live; judge each again after 1, 10, 100 … further ones.")] = False,
    teacher_forcing: Annotated[bool, typer.Option(help="Also KL, agreement and EasyEdit's accuracies.")] = True,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the results as they come; the same command goes on where it stopped.")] = None,
    cache: Annotated[bool, typer.Option(help="Keep the unedited model's answers for later runs.")] = True,
    export: Annotated[Path | None, typer.Option(help="Instead of running it, write the benchmark in MMEdit's format to this new folder.")] = None,
    model: o.Model = o.DEFAULT_MODEL, device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Run a benchmark: make every edit by itself, judge it on its own probes, take it out again."""
    from mmedit.errors import RequestError
    from mmedit.evaluation.answers import Baselines
    from mmedit.processes import Processes

    cases = _cases(benchmark, format, limit, images=images, rephrase_images=rephrase_images, skip_missing=skip_missing)
    if export is not None:
        from mmedit.evaluation.export import export_mmedit

        answers = None if benchmark == "iconworld" else _said_by(o.load_model(model, device, dtype, revision))
        export_mmedit(cases, export, answers)
        o.say(f"{len(cases)} edits written to {export}")
        return
    chosen = [(text, _hparams(text, hparams, model)) for text in editor]
    processes = Processes.launched()
    if sequential and processes.count > 1:
        raise RequestError(
            "edits that pile up cannot be split", got=f"{processes.count} processes", do="run one process"
        )
    vlm = o.load_model(model, device or processes.device, dtype, revision)
    editors = [(text, o.make_editor(text.partition(":")[0], values, vlm)) for text, values in chosen]
    baselines = Baselines(vlm, cache)
    settings = {
        "benchmark": benchmark,
        "model": model,
        "seed": seed,
        "teacher_forcing": teacher_forcing,
        "fingerprint": baselines.mark,
    }
    common = (vlm, cases, baselines, processes, output, settings, batch_size)
    if sequential:
        curves = [_pile_up(name, method, *common) for name, method in editors]
        o.print_json([part for part, _ in curves]) if json else o.say("\n".join(text for _, text in curves))
        return
    reports = [_each(name, method, *common) for name, method in editors]
    if processes.main:
        _show(reports, output, json)


def _cases(benchmark: str, format: str | None, limit: int | None, **options: Any) -> Sequence[EditCase]:
    """The edits of a benchmark; says which records of a file are left out."""
    from mmedit.data.benchmarks import FORMATS, load_cases
    from mmedit.errors import RequestError
    from mmedit.testbed.benchmark import iconworld_cases

    if benchmark == "iconworld":
        return iconworld_cases(limit)
    if format is None:
        raise RequestError("a file has a format", got=benchmark, expected=f"--format {' | '.join(FORMATS)}; or the benchmark iconworld")  # fmt: skip
    loaded = load_cases(benchmark, format, **options)
    if loaded.skipped:
        o.say(f"{benchmark}: {loaded}", err=True)
    return loaded.cases[:limit]


def _said_by(vlm: VisionLanguageModel) -> Callable[[Probe], str]:
    """What the model says to a probe."""
    return lambda probe: vlm.caption(probe.image, probe.prompt)[0]


def _hparams(text: str, hparams: str | None, model: str) -> dict[str, Any]:
    """The hyperparameters of an editor from `NAME` or `NAME:key=value,key=value`."""
    import re

    from omegaconf import OmegaConf

    from mmedit.errors import HparamsError

    name, _, given = text.partition(":")
    pairs = re.split(r",(?![^\[]*\])", given) if given else []  # not between the brackets of a list
    if any(not re.fullmatch(r"\s*\w+\s*=.*", pair) for pair in pairs):
        raise HparamsError("settings of an editor are key=value", where=text, got=given, expected="MMNeurons:scorer=random,lr=0.001")  # fmt: skip
    values: Any = OmegaConf.to_container(OmegaConf.from_dotlist(pairs), resolve=False)
    return o.choose_hparams(name, hparams, model, **values)


def _each(
    name: str, method: Editor, vlm: VisionLanguageModel, cases: Sequence[EditCase], baselines: Baselines,
    processes: Processes, output: Path | None, settings: dict[str, Any], batch_size: int,
) -> EditReport:  # fmt: skip
    """The report of one editor, each edit by itself."""
    from contextlib import nullcontext
    from dataclasses import asdict

    from tqdm import tqdm

    from mmedit.evaluation.bench import Outcome, outcomes, report_of
    from mmedit.evaluation.journal import Journal

    began = time.perf_counter()
    header = {**settings, "editor": name, "hparams": asdict(method.hparams)}
    with Journal(output, _file_name(name), header, processes.index) if output else nullcontext() as journal:
        found = outcomes(
            vlm, cases, method.execute, journal=journal, processes=processes, seed=settings["seed"],
            batch_size=batch_size, teacher_forcing=settings["teacher_forcing"], baselines=baselines,
        )  # fmt: skip
        own = list(tqdm(found, desc=name, unit="edit", total=len(processes.share(cases)), disable=not processes.main))
    probes = {case.id: case.probes for case in cases}
    gathered = [
        Outcome.from_dict(line, probes[line["case"]]) for line in processes.gather([one.to_dict() for one in own])
    ]
    order = {case.id: i for i, case in enumerate(cases)}
    gathered.sort(key=lambda outcome: order[outcome.case])
    return report_of(name, vlm.name, gathered, time.perf_counter() - began)


def _pile_up(
    name: str, method: Editor, vlm: VisionLanguageModel, cases: Sequence[EditCase], baselines: Baselines,
    processes: Processes, output: Path | None, settings: dict[str, Any], batch_size: int,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """The retention curve of one editor, as plain JSON values and in words."""
    from contextlib import nullcontext
    from dataclasses import asdict

    from tqdm import tqdm

    from mmedit.evaluation.journal import Journal
    from mmedit.evaluation.sequential import SHOWN, curve, draw_curve, retention, write_curve

    label = f"{_file_name(name)}-sequential"
    header = {
        **settings,
        "editor": name,
        "hparams": asdict(method.hparams),
        "sequential": True,
        "cases": [case.id for case in cases],
    }
    folder = output / f"{label}-patches" if output else None
    with Journal(output, label, header) if output else nullcontext() as journal:
        found = retention(
            vlm,
            cases,
            method.execute,
            journal=journal,
            folder=folder,
            seed=settings["seed"],
            batch_size=batch_size,
            baselines=baselines,
        )
        made = list(tqdm(found, desc=f"{name}, sequential", unit="judged"))
    if output:
        write_curve(made, output / f"{label}.csv")
        try:
            draw_curve(made, output / f"{label}.png", f"{name} on {vlm.name}")
        except ImportError:
            o.say("the curve is not drawn: pip install 'mmedit-vlm[analysis]' for matplotlib", err=True)
    points = curve(made)
    rows = [
        {"further_edits": gap, "edits": edits, "superseded": gone, "metrics": {k: vars(e) for k, e in metrics.items()}}
        for gap, (metrics, edits, gone) in points.items()
    ]
    lost = len(cases) - sum(one.gap == 0 for one in made)
    lines = [f"{name} on {vlm.name}, all edits live; {lost} of {len(cases)} could not be made"]
    for gap, (metrics, edits, gone) in points.items():
        shown = ", ".join(f"{k} {metrics[k]}" for k in SHOWN if k in metrics)
        lines.append(f"  after {gap} further edits ({edits} edits, {gone} superseded): {shown}")
    return {"editor": name, "model": vlm.name, "n_edits": len(cases), "failures": lost, "retention": rows}, "\n".join(
        lines
    )


def _show(reports: Sequence[EditReport], output: Path | None, json: bool) -> None:
    from mmedit.evaluation.report import summary

    plain = [
        {
            "editor": report.name, "model": report.model, **{k: v for k, v in report.info.items() if k != "failures"},
            "not_said": report.not_said, "failures": len(report.info["failures"]),
            "metrics": {name: vars(e) for name, e in report.metrics.items()},
        }
        for report in reports
    ]  # fmt: skip
    if output:
        from mmedit.evaluation.page import write_report

        for report in reports:
            report.to_csv(output / f"{_file_name(report.name)}.csv")
            report.to_json(output / f"{_file_name(report.name)}.json")
        write_report(output / "report.html", reports)
    if json:
        o.print_json(plain[0] if len(plain) == 1 else plain)
        return
    for report in reports:
        o.say(f"{report}\n{report.info['n_edits']} edits in {report.info['seconds']:.0f} s, {len(report.info['failures'])} could not be made\n")  # fmt: skip
    if len(reports) > 1:
        o.say(summary(reports, MAIN))


def _file_name(editor: str) -> str:
    return "".join(c if c.isalnum() or c in "-_=" else "_" for c in editor)
