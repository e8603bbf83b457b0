"""`mmedit eval`: what patches do and what they leave alone, on the user's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmedit.cli import options as o

if TYPE_CHECKING:
    from mmedit.evaluation.page import Group
    from mmedit.evaluation.protocol import EditReport

Pictures = list[Path] | None
VERDICTS = {
    "edit": ("swapped", "not swapped"),
    "related": ("swapped", "not swapped"),
    "unrelated": ("unchanged", "changed"),
}


def evaluate(
    patches: Annotated[list[Path], typer.Argument(help="Patch files.", show_default=False)],
    edited: Annotated[Pictures, typer.Option(help="Picture, or folder of pictures, that the edit was made from.")] = None,
    related: Annotated[Pictures, typer.Option(help="Others that show the source.")] = None,
    unrelated: Annotated[Pictures, typer.Option(help="Others that do not.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write an HTML page with the pictures, about a single patch.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures per batch.")] = 8,
    model: o.Model = o.DEFAULT_MODEL, prompt: o.PromptText = None, prefix: o.Prefix = "",
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Judge patches on pictures: reliability, generality, locality, leakage, on whole captions."""
    from mmedit import Patch
    from mmedit import evaluate as judge
    from mmedit.data.folders import picture_files
    from mmedit.errors import RequestError
    from mmedit.files import check_writable

    if page is not None:
        if len(patches) > 1:
            raise RequestError(
                "a page is about one patch", got=f"{len(patches)} patches", do="leave out --page, or give one patch"
            )
        check_writable(page)
    loaded = [Patch.load(file) for file in patches]
    files = {
        name: picture_files(given or ())
        for name, given in (("edited", edited), ("related", related), ("unrelated", unrelated))
    }
    o.check_images([file for group in files.values() for file in group])
    vlm = o.load_model(model, device, dtype, revision)
    reports = judge(vlm, loaded, prompt=o.make_prompt(prompt, prefix), batch_size=batch_size, **files)
    if page is not None:
        _write(page, reports[0], vlm.name)
    if json:
        o.print_json([report.to_dict() for report in reports])
        return
    for report in reports:
        typer.echo(report)
        for case in report.cases:
            if not case.right:
                typer.echo(
                    f"  {VERDICTS[case.kind][1]}: {case.picture}\n    before: {case.before}\n    after:  {case.after}"
                )


def _write(page: Path, report: EditReport, model: str) -> None:
    from mmedit.evaluation.page import write_page

    figures = [(f"{right} of {n}", name) for name, (right, n) in report.counts().items()]
    write_page(page, report.patch, f"{model}, judged on whole captions", figures, _groups(report))


def _groups(report: EditReport) -> Sequence[Group]:
    from mmedit.evaluation.page import Case, Group

    texts = {
        "edit": ("The pictures that the edit was made from", "Every source shall be replaced, and nothing else."),
        "related": ("Other pictures with a source", "They were not used for the edit, and shall be swapped too."),
        "unrelated": ("Unrelated pictures", "Their captions shall stay."),
    }
    cases = {
        kind: [
            Case(c.picture, c.before, c.after, c.right, VERDICTS[kind][not c.right])
            for c in report.cases
            if c.kind == kind
        ]
        for kind in texts
    }
    return [Group(*texts[kind], found) for kind, found in cases.items() if found]
