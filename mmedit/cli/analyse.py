"""`mmedit analyse`: the tables and figures of Pan et al., on a model and pictures of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o

NAMES = "layers, tokens, sensitivity, region-invariance, cross-image, specificity, focus, perturb, swap, or all"


def analyse(
    name: Annotated[str, typer.Argument(help=f"{NAMES}.", show_default=False)],
    pictures: Annotated[list[str], typer.Argument(help="`iconworld`, or pictures, folders, globs, CSV or JSONL lists.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for tables, figures and report; the same command goes on where it stopped.")] = Path("mmedit-study"),
    n: Annotated[int | None, typer.Option("-n", help="So many of the pictures, a seeded sample; of IconWorld 200 when left out.", min=1)] = None,
    sbu: Annotated[bool, typer.Option("--sbu", help="PICTURES is the list file of SBU Captions: fetch a sample of -n pictures, 1000 when left out.")] = False,
    k: Annotated[int, typer.Option("-k", help="Neurons to keep for each concept and method.", min=1)] = 1000,
    method: Annotated[list[str] | None, typer.Option(help="Scorer: contribution, activation (Base), attribution (Mmns), random. All when left out.")] = None,
    encoder: Annotated[str | None, typer.Option(help="For BERTScore and MoverScore: folder or Hub id of an encoder.")] = None,
    bleurt: Annotated[str | None, typer.Option(help="Folder or Hub id of a BLEURT checkpoint.")] = None,
    editor: Annotated[str, typer.Option(help="Editing method, for swap.")] = "MMNeurons",
    hparams: o.Hparams = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    model: o.Model = o.DEFAULT_MODEL, prompt: o.PromptText = None, prefix: o.Prefix = "",
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Repeat an analysis of the paper, or all of them, and write tables, figures and a page."""
    o.need("matplotlib", "the figures of the study", "analysis")
    from dataclasses import asdict

    from mmedit.analysis.analyses import ANALYSES
    from mmedit.analysis.picture_sets import picture_set
    from mmedit.analysis.study import Study
    from mmedit.errors import RequestError
    from mmedit.processes import Processes
    from mmedit.scorers import SCORERS

    if name != "all" and name not in ANALYSES:
        raise RequestError("no such analysis", got=repr(name), expected=NAMES)
    unknown = [scorer for scorer in method or () if scorer not in SCORERS]
    if unknown:
        raise RequestError("no such scorer", got=repr(unknown[0]), expected=", ".join(SCORERS))
    asked, values = o.make_prompt(prompt, prefix), o.choose_hparams(editor, hparams, model)
    processes = Processes.launched()
    if sbu:
        fetched = _fetch(pictures, output, n, seed) if processes.main else []
        pictures = processes.gather(fetched)  # the others wait for the pictures
    chosen = picture_set(pictures, None if sbu else n, seed)
    vlm = o.load_model(model, device or processes.device, dtype, revision)
    if processes.main and name in ("swap", "all"):
        values = asdict(o.make_editor(editor, values, vlm).hparams)
    options = {} if method is None else {"methods": tuple(method)}
    study = Study(
        vlm, chosen, output, k=k, prompt=asked, seed=seed, editor=editor, hparams=values, encoder=encoder, bleurt=bleurt,
        processes=processes, progress=True, **options,
    )  # fmt: skip
    sections = study.run(None if name == "all" else [name])
    if not processes.main:
        return
    if json:
        tables = {t.name: {"head": t.head, "rows": [list(row) for row in t.rows]} for s in sections for t in s.tables}
        o.print_json({"report": str(study.path("report.html")), "tables": tables})
        return
    for section in sections:
        files = [study.path(f"{table.name}.csv") for table in section.tables] + [path for path, _ in section.figures]
        o.say(f"{section.title}: {section.refused or ', '.join(path.name for path in files)}")
    o.say(f"report: {study.path('report.html')}")


def _fetch(pictures: list[str], output: Path, n: int | None, seed: int) -> list[str]:
    """The files of a sample of SBU Captions."""
    from mmedit.data.sbu import download_sbu
    from mmedit.errors import RequestError

    if len(pictures) != 1:
        raise RequestError(
            "--sbu takes one list file", got=f"{len(pictures)} places", expected="SBU_captioned_photo_dataset_urls.txt"
        )
    report = download_sbu(pictures[0], output / "sbu", 1000 if n is None else n, seed)
    o.say(report, err=True)
    return [str(picture.path) for picture in report.pictures]
