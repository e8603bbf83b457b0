"""`mmedit eval`: what patches do and what they leave alone, on the user's own pictures and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmedit.cli import options as o
from mmedit.printable import printable

if TYPE_CHECKING:
    from mmedit.data.pictures import Pictured
    from mmedit.evaluation.judge import ProbeResult
    from mmedit.evaluation.report import EditReport

Pictures = list[str] | None
Prompts = list[str] | None
LISTED = 20  # wrong answers of one patch


def evaluate(
    patches: Annotated[list[Path], typer.Argument(help="Patch files.", show_default=False)],
    edited: Annotated[Pictures, typer.Option(help="Pictures that the edit was made from. This and the next two take a file, a folder, a glob, or a CSV or JSONL list, and can be given again.")] = None,
    related: Annotated[Pictures, typer.Option(help="Others that show the source.")] = None,
    unrelated: Annotated[Pictures, typer.Option(help="Others that do not.")] = None,
    text_only: Annotated[Prompts, typer.Option(help="A prompt without a picture, whose answer shall stay.")] = None,
    rephrased: Annotated[Prompts, typer.Option(help="Another prompt that makes the model name the source, asked about the edited pictures.")] = None,
    same_image: Annotated[Prompts, typer.Option(help="A prompt about something else in the edited pictures, whose answer shall stay.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write an HTML page with the pictures; several patches side by side.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every answer as a row.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers per batch.")] = 8,
    teacher_forcing: Annotated[bool, typer.Option(help="Also measure KL, agreement and EasyEdit's numbers, in one more forward pass per answer.")] = True,
    cache: Annotated[bool, typer.Option(help="Keep the unedited model's answers for the next time.")] = True,
    model: o.Model = o.DEFAULT_MODEL, prompt: o.PromptText = None, prefix: o.Prefix = "",
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Judge patches on pictures and prompts, each answered with and without the edit."""
    from dataclasses import replace

    from tqdm import tqdm

    from mmedit import Patch
    from mmedit import evaluate as judge
    from mmedit.data.pictures import read_pictures

    with o.claimed([page, csv], [*patches, *(edited or ()), *(related or ()), *(unrelated or ())]):
        loaded, ask = [Patch.load(file) for file in patches], o.make_prompt(prompt, prefix)
        pictures = {
            name: read_pictures(places or [])
            for name, places in (("requests", edited), ("related", related), ("unrelated", unrelated))
        }
        prompts = {"text_only": text_only or [], "rephrased": rephrased or [], "same_image": same_image or []}
        n_asked = _how_many(pictures, prompts)
        o.check_images([picture.image for group in pictures.values() for picture in group])
        vlm = o.load_model(model, device, dtype, revision)
        passes = 1 + len(loaded) * (2 if teacher_forcing else 1)
        with tqdm(total=n_asked * passes, desc="answers", unit="answer", disable=None, leave=False) as bar:
            reports = judge(
                vlm, loaded, **pictures, **prompts, prompt=ask, batch_size=batch_size, teacher_forcing=teacher_forcing,
                cache=None if cache else False, bar=bar,
            )  # fmt: skip
        if len({report.name for report in reports}) < len(reports):  # of the same swap: told apart by their files
            reports = [replace(r, name=f"{r.name} ({file})") for r, file in zip(reports, patches, strict=True)]
        if json:
            o.print_json([report.to_dict() for report in reports])
        else:
            _show(reports)
        _write(reports, page, csv)


def _how_many(pictures: Mapping[str, Sequence[Pictured]], prompts: Mapping[str, Sequence[str]]) -> int:
    """How many questions each model is asked; RequestError where there is none, or no picture for it to be about."""
    from mmedit.errors import RequestError

    about_edited = len(prompts["rephrased"]) + len(prompts["same_image"])
    alone = len(pictures["related"]) + len(pictures["unrelated"]) + len(prompts["text_only"])
    n_edited = len(pictures["requests"])
    if not n_edited and (about_edited or not alone):
        got = "prompts about edited pictures alone" if about_edited else "neither pictures nor prompts"
        raise RequestError("no pictures to ask about", got=got, do="give --edited, or only --related, --unrelated and --text-only")  # fmt: skip
    return n_edited * (1 + about_edited) + alone


def _show(reports: Sequence[EditReport]) -> None:
    """Every metric and the wrong answers of each patch, then the patches side by side."""
    from mmedit.evaluation.report import summary
    from mmedit.evaluation.wording import HEADLINE

    for report in reports:
        wrong = [result for result in report.results if result.right is False]
        o.say("\n".join([str(report), *map(_told, wrong[:LISTED])]))
        if len(wrong) > LISTED:
            o.say(f"  and {len(wrong) - LISTED} more, which --page or --csv has")
        o.say("")
    if len(reports) > 1:
        o.say(summary(reports, [name for name in HEADLINE if any(name in report.metrics for report in reports)]))


def _told(result: ProbeResult) -> str:
    """One answer in a few lines."""
    from mmedit.evaluation.report import picture_label
    from mmedit.evaluation.wording import verdict
    from mmedit.requests import CAPTION_PROMPT

    probe = result.probe
    asked = [] if probe.prompt == CAPTION_PROMPT else [repr(probe.prompt.text)]
    lines = {"before": result.before, "after": result.after, "expected": result.expected}
    if result.expected == result.before:
        del lines["expected"]
    return "\n".join(
        [f"  {verdict(result)}: {', '.join([*filter(None, [picture_label(probe.image)]), *asked])}"]
        + [f"    {name + ':':<9} {printable(text)}" for name, text in lines.items()]
    )


def _write(reports: Sequence[EditReport], page: Path | None, csv: Path | None) -> None:
    from mmedit.evaluation.page import write_report
    from mmedit.evaluation.report import write_csv

    if csv is not None:
        write_csv(csv, reports)
    if page is not None:
        write_report(page, reports)
