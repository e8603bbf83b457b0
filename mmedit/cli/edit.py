"""`mmedit edit`: a concept swap as a patch file."""

from __future__ import annotations

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
    model: o.Model = o.DEFAULT_MODEL, prompt: o.PromptText = None, prefix: o.Prefix = "",
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Swap one concept for another and save the edit as a patch."""
    from mmedit import EditRequest
    from mmedit.evaluation.metrics import is_swapped
    from mmedit.files import check_writable

    check_writable(output)
    given = {name: value for name, value in (("scorer", scorer), ("seed", seed)) if value is not None}
    values = o.choose_hparams(editor, hparams, model, **given)
    request = EditRequest(o.check_images(images), source, target, o.make_prompt(prompt, prefix))
    vlm = o.load_model(model, device, dtype, revision)
    method = o.make_editor(editor, values, vlm)
    patch = method.execute(vlm, request)
    before = vlm.caption(images, request.prompt)
    with patch.applied(vlm):
        after = vlm.caption(images, request.prompt)
    patch.save(output)
    swapped = [is_swapped(*pair, source, request.target) for pair in zip(before, after, strict=True)]
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
    o.say(
        f"{len(patch.neurons)} neurons changed: {' '.join(map(str, patch.neurons))}\nsaved {output} ({output.stat().st_size:,} bytes)"
    )
