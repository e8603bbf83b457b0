"""`mmedit patch verify`: what a stranger wants to know of a patch before using it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o


def verify(
    file: Annotated[Path, typer.Argument(help="Patch file.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Also compare it with this model: shipped name, local folder or Hub id.")] = None,
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Check a patch file and say what it does; exit code 0 if all is well, 2 if not."""
    from mmedit.patches.verify import verify as look_at

    vlm = None if model is None else o.load_model(model, device, dtype, revision)
    found = look_at(file, vlm)
    if json:
        o.print_json(found.to_dict())
    else:
        o.say(found)
    if not found.ok:
        raise typer.Exit(2)
