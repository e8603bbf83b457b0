"""`mmedit patch to-lora`: a patch as a PEFT adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o


def to_lora(
    file: Annotated[Path, typer.Argument(help="Patch file.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; new or empty.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="The patch's base: shipped name, local folder or Hub id; the one that the patch names when left out.")] = None,
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Write a patch as a PEFT LoRA adapter, and check that it does the same."""
    from dataclasses import asdict

    from mmedit import Patch
    from mmedit.patches.new_folder import check_free

    patch = Patch.load(file)
    check_free(output)
    name, at = (patch.base.model, revision or patch.base.revision) if model is None else (model, revision)
    done = patch.to_lora(output, o.load_model(name, device, dtype, at))
    if json:
        o.print_json({"adapter": str(output), **asdict(done)})
        return
    o.say(f"{patch.name}: rank {done.rank}, modules: {len(done.target_modules)}")
    o.say(f"checked: the patch moves the logits of a short text by up to {done.moved:.3g}, and the adapter does so to within {done.off:.1g}")  # fmt: skip
    o.say(f"saved {output}")
