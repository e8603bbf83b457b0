"""`mmedit edit`: a concept swap as a patch file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o


def edit(
    images: o.Images,
    source: Annotated[str, typer.Option(help="Word that the model says now.", show_default=False)],
    target: Annotated[str, typer.Option(help="Word that it shall say instead.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Patch file to write.", show_default=False)],
    editor: Annotated[str, typer.Option(help="Editing method.")] = "MMNeurons",
    hparams: o.Hparams = None,
    scorer: Annotated[str | None, typer.Option(help="What to choose neurons by, in place of what the hyperparameters say: contribution, activation, attribution or random.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random neurons, in place of what the hyperparameters say.")] = None,
    also: Annotated[list[str] | None, typer.Option(help="Another form of the source with its target, such as cats=dogs. May be given several times.")] = None,
    unrelated: Annotated[Path | None, typer.Option(help="Folder of pictures that the edit is not about, for the methods that look at some; drawings when left out.")] = None,
    model: o.Model = o.DEFAULT_MODEL, prompt: o.PromptText = None, prefix: o.Prefix = "",
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Swap one concept for another and save the edit as a patch."""
    from mmedit import EditRequest
    from mmedit.data.pictures import read_pictures
    from mmedit.editors.unrelated import UnrelatedEditor
    from mmedit.errors import RequestError
    from mmedit.evaluation.metrics import all_replaced
    from mmedit.files import claimed

    with claimed(output):
        given = {name: value for name, value in (("scorer", scorer), ("seed", seed)) if value is not None}
        values = o.choose_hparams(editor, hparams, model, **given)
        forms = _forms(also or ())
        request = EditRequest(o.check_images(images), source, target, o.make_prompt(prompt, prefix), forms)
        pictures = None if unrelated is None else [found.image for found in read_pictures(unrelated)]
        vlm = o.load_model(model, device, dtype, revision)
        method = o.make_editor(editor, values, vlm)
        if pictures is not None:
            if not isinstance(method, UnrelatedEditor):
                raise RequestError("this method looks at no unrelated pictures", got=editor, do="leave --unrelated out")
            method.unrelated = pictures
        patch = method.execute(vlm, request)
        before = vlm.caption(images, request.prompt)
        with patch.applied(vlm):
            after = vlm.caption(images, request.prompt)
        patch.save(output)
    swapped = [new == all_replaced(old, request.swaps) != old for old, new in zip(before, after, strict=True)]
    if json:
        captions = [
            {"image": str(i), "before": b, "after": a, "swapped": s}
            for i, b, a, s in zip(images, before, after, swapped, strict=True)
        ]
        o.print_json(
            {
                "patch": str(output),
                "digest": patch.digest,
                "neurons": [str(n) for n in patch.neurons],
                "captions": captions,
            }
        )
        return
    for image, old, new, done in zip(images, before, after, swapped, strict=True):
        o.say(f"{image}\n  before: {old}\n  after:  {new}{'' if done else '   (not the swap that was asked for)'}")
    whole = f"all of {', '.join(map(str, patch.low_rank))} changed" if patch.low_rank else ""
    rows = f"{len(patch.neurons)} neurons changed: {' '.join(map(str, patch.neurons[:50]))}" if patch.deltas else ""
    o.say(f"{whole}{rows}{' …' if len(patch.neurons) > 50 else ''}\nsaved {output} ({output.stat().st_size:,} bytes)")


def _forms(given: Sequence[str]) -> dict[str, str]:
    """`cats=dogs` as a mapping."""
    from mmedit.errors import RequestError

    pairs = [text.partition("=") for text in given]
    for source, sign, target in pairs:
        if not (source and sign and target):
            raise RequestError(
                "--also takes a form and its target", got=f"{source}{sign}{target}", expected="cats=dogs"
            )
    return {source: target for source, _, target in pairs}
