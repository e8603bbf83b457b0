"""`mmedit bench`: a whole benchmark, for one editor or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmedit.cli import options as o

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmedit.cases import EditCase, Probe
    from mmedit.evaluation.report import EditReport
    from mmedit.models.vlm import VisionLanguageModel

AT_ONCE = """How many edits to make as one patch. May be given several times: 1, 10, 100. Cases go into groups in which no word
has two targets; those of the same swap are one request with all of their pictures. More than 20 at once on iconworld, which has 20
nouns, are the same swaps seen in several pictures: 100 are all 20 nouns, each swapped from 5 pictures."""


def bench(
    benchmark: Annotated[str, typer.Argument(help="`iconworld`, or a file of records.", show_default=False)],
    editor: Annotated[list[str], typer.Option(help="Editing method, with settings of its own after a colon: MMNeurons:scorer=random. May be given several times.")] = ["MMNeurons"],  # noqa: B006
    at_once: Annotated[list[int], typer.Option(help=AT_ONCE, min=1)] = [1],  # noqa: B006
    format: Annotated[str | None, typer.Option(help="Of the file: mmedit, vlkeb, comprehendedit or mmke.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that the file's pictures are in; that of the file when left out.")] = None,
    rephrase_images: Annotated[Path | None, typer.Option(help="The same for rephrased pictures; as --images when left out.")] = None,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out records with a picture that is not there.")] = False,
    hparams: Annotated[list[str] | None, typer.Option(help="As for `mmedit edit`, for all editors; EDITOR=… for one of them. May be given several times.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first edits.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of what editors draw at random.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Probes per batch.", min=1)] = 32,
    sequential: Annotated[bool, typer.Option("--sequential", help="Keep all edits live; judge each again after 1, 10, 100 … further ones.")] = False,
    teacher_forcing: Annotated[bool, typer.Option(help="Also KL, agreement and EasyEdit's accuracies, for single edits.")] = True,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the results as they come; the same command goes on where it stopped.")] = None,
    cache: Annotated[bool, typer.Option(help="Keep the unedited model's answers for later runs.")] = True,
    export: Annotated[Path | None, typer.Option(help="Instead of running it, write the benchmark in MMEdit's format to this new folder.")] = None,
    model: o.Model = o.DEFAULT_MODEL, device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Run a benchmark: make every edit by itself, or several at once, judge each on its own probes, take it out again."""
    from mmedit.cli.bench_runs import Run, each, pile_up
    from mmedit.errors import RequestError
    from mmedit.evaluation.answers import Baselines
    from mmedit.processes import Processes

    if sequential and set(at_once) != {1}:
        raise RequestError("--sequential makes edits one after the other", got=f"--at-once {max(at_once)}", do="leave one of them out")  # fmt: skip
    cases = _cases(benchmark, format, limit, images=images, rephrase_images=rephrase_images, skip_missing=skip_missing)
    if export is not None:
        from mmedit.evaluation.export import export_mmedit

        answers = None if benchmark == "iconworld" else _said_by(o.load_model(model, device, dtype, revision))
        export_mmedit(cases, export, answers)
        o.say(f"{len(cases)} edits written to {export}")
        return
    chosen = {text: _hparams(text, hparams or [], model) for text in editor}
    processes = Processes.launched()
    if sequential and processes.count > 1:
        raise RequestError(
            "edits that pile up cannot be split", got=f"{processes.count} processes", do="run one process"
        )
    vlm = o.load_model(model, device or processes.device, dtype, revision)
    editors = {text: o.make_editor(text.partition(":")[0], values, vlm) for text, values in chosen.items()}
    baselines = Baselines(vlm, cache)
    settings = {
        "benchmark": benchmark,
        "model": model,
        "seed": seed,
        "teacher_forcing": teacher_forcing,
        "fingerprint": baselines.mark,
    }
    run = Run(vlm, baselines, processes, output, settings, batch_size)
    if sequential:
        curves = [pile_up(run, name, method, cases) for name, method in editors.items()]
        o.print_json([part for part, _ in curves]) if json else o.say("\n".join(text for _, text in curves))
        return
    reports = []
    for n in dict.fromkeys(at_once):
        seen = _seen_more(cases, n) if benchmark == "iconworld" else cases
        reports += [each(run, name, method, seen, n) for name, method in editors.items()]
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


def _seen_more(cases: Sequence[EditCase], n: int) -> Sequence[EditCase]:
    """IconWorld's cases, each seen in as many pictures as it takes for n edits of its 20 nouns at once."""
    from math import ceil

    from mmedit.testbed import NOUNS
    from mmedit.testbed.benchmark import iconworld_cases

    pictures = ceil(n / len(NOUNS))
    return iconworld_cases(len(cases), pictures=pictures) if pictures > 1 else cases


def _said_by(vlm: VisionLanguageModel) -> Callable[[Probe], str]:
    """What the model says to a probe."""
    return lambda probe: vlm.caption(probe.image, probe.prompt)[0]


def _hparams(text: str, hparams: Sequence[str], model: str) -> dict[str, Any]:
    """The hyperparameters of an editor from `NAME` or `NAME:key=value,key=value`."""
    import re

    from omegaconf import OmegaConf

    from mmedit.errors import HparamsError

    name, _, given = text.partition(":")
    pairs = re.split(r",(?![^\[]*\])", given) if given else []  # not between the brackets of a list
    if any(not re.fullmatch(r"\s*\w+\s*=.*", pair) for pair in pairs):
        raise HparamsError("settings of an editor are key=value", where=text, got=given, expected="MMNeurons:scorer=random,lr=0.001")  # fmt: skip
    values: Any = OmegaConf.to_container(OmegaConf.from_dotlist(pairs), resolve=False)
    return o.choose_hparams(name, _source(name, hparams), model, **values)


def _source(editor: str, hparams: Sequence[str]) -> str | None:
    """Where an editor's hyperparameters come from: what is given for it, or else for all."""
    from mmedit.editors import EDITORS
    from mmedit.errors import HparamsError

    sources: dict[str, str] = {}
    for text in hparams:
        name, equals, source = text.partition("=")
        key, value = (name, source) if equals and name in EDITORS else ("", text)
        if sources.setdefault(key, value) != value:
            what = f"two sources of hyperparameters for {key or 'all editors'}"
            raise HparamsError(what, got=f"{sources[key]}, {value}", expected="one for all, and EDITOR=… for others")
    return sources.get(editor, sources.get(""))


def _show(reports: Sequence[EditReport], output: Path | None, json: bool) -> None:
    from mmedit.evaluation.comparison import comparison_text

    plain = [
        {
            **{k: v for k, v in report.info.items() if k != "failures"}, "model": report.model, "not_said": report.not_said,
            "failures": len(report.info["failures"]), "metrics": {name: vars(e) for name, e in report.metrics.items()},
        }
        for report in reports
    ]  # fmt: skip
    if output:
        _write(reports, output)
    if json:
        o.print_json(plain[0] if len(plain) == 1 else plain)
        return
    for report in reports:
        o.say(f"{report}\n{report.info['n_edits']} edits in {report.info['seconds']:.0f} s, {len(report.info['failures'])} could not be made\n")  # fmt: skip
    if len(reports) > 1:
        o.say(comparison_text(reports))


def _write(reports: Sequence[EditReport], output: Path) -> None:
    """The files of each report, a page for each number of edits at once, and, of several, the comparison."""
    from mmedit.cli.bench_runs import file_name
    from mmedit.evaluation.comparison import write_comparison
    from mmedit.evaluation.page import write_report
    from mmedit.evaluation.plot import comparison_figure, png
    from mmedit.files import replacing

    plot = b""
    if len(reports) > 1:
        write_comparison(output / "comparison.csv", reports)
        try:
            plot = png(comparison_figure(reports, reports[0].model))
        except ImportError:
            o.say("the comparison is not drawn: pip install 'mmedit-vlm[analysis]' for matplotlib", err=True)
        else:
            with replacing(output / "comparison.png") as part:
                part.write_bytes(plot)
    for report in reports:
        n = report.info["at_once"]
        label = file_name(report.info["editor"]) + ("" if n == 1 else f"-{n}-at-once")
        report.to_csv(output / f"{label}.csv")
        report.to_json(output / f"{label}.json")
    for n in dict.fromkeys(report.info["at_once"] for report in reports):
        page = output / ("report.html" if n == 1 else f"report-{n}-at-once.html")
        shown = [report for report in reports if report.info["at_once"] == n]
        title = f"{len(shown)} methods side by side" if len(shown) > 3 else None
        write_report(page, shown, title, compared=reports if len(reports) > 1 else (), plot=plot)
