"""`mmedit bake`: a full edited checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o


def bake(
    model: Annotated[str, typer.Argument(help="Shipped name, local folder or cached Hub id.", show_default=False)],
    patches: Annotated[list[Path], typer.Argument(help="Patch files.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.", show_default=False)],
    scale: Annotated[list[float] | None, typer.Option(help="What a patch's rows are multiplied with; once for each patch.")] = None,
    link: Annotated[str, typer.Option(help="For files that do not change: copy, reflink or hard.")] = "copy",
    revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Write a checkpoint with patches in it, as a new folder that appears whole or not at all."""
    from mmedit import Patch
    from mmedit.patches.bake import bake as write

    baked = write(model, [Patch.load(file) for file in patches], output, scales=scale or None, link=link, revision=revision)  # type: ignore[arg-type]  # fmt: skip
    if json:
        o.print_json({"folder": str(baked.folder), "rows": baked.rows, "left_out": list(baked.left_out)})
        return
    for name, n_rows in baked.rows.items():
        o.say(f"{name}: {n_rows} rows")
    for name in baked.left_out:
        o.say(f"left out {name}: unedited weights in another format", err=True)
    o.say(f"wrote {baked.folder}")
