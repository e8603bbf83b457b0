"""`mmedit patch diff`: the difference of two checkpoints as a patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o


def diff(
    base: Annotated[str, typer.Argument(help="Shipped name, local folder or cached Hub id.", show_default=False)],
    edited: Annotated[str, typer.Argument(help="The same model, edited; likewise.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Patch file to write.", show_default=False)],
    ignore: Annotated[list[str] | None, typer.Option(help="Pattern of other tensors that may differ, such as '*lm_head*'; may be given several times.")] = None,
    revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Save the rows of W_out in which two checkpoints differ as a patch on the first."""
    from mmedit.files import claimed
    from mmedit.patches.diff import diff as difference

    with claimed(output):
        patch = difference(base, edited, ignore=ignore or (), revision=revision)
        patch.save(output)
    if json:
        o.print_json({"patch": str(output), "digest": patch.digest, "neurons": [str(n) for n in patch.neurons]})
        return
    for site in patch.sites:
        o.say(f"{site}: {len(patch.units(site))} rows differ")
    o.say(f"saved {output} ({output.stat().st_size:,} bytes)")
