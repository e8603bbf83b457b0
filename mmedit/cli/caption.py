"""`mmedit caption`: what a model says about pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from mmedit.cli import options as o


def caption(
    images: o.Images, model: o.Model = o.DEFAULT_MODEL, prompt: o.PromptText = None, prefix: o.Prefix = "",
    batch_size: Annotated[int, typer.Option(help="Pictures per batch.")] = 8,
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Caption pictures, or answer --prompt about each."""
    o.check_images(images)
    vlm = o.load_model(model, device, dtype, revision)
    captions = vlm.caption(images, o.make_prompt(prompt, prefix), batch_size)
    if json:
        o.print_json([{"image": str(image), "caption": text} for image, text in zip(images, captions, strict=True)])
        return
    for image, text in zip(images, captions, strict=True):
        o.say(f"{image}: {text}")
