"""`mmedit patch merge`: several patches become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o


def merge(
    files: Annotated[list[Path], typer.Argument(help="Patch files.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Patch file to write.", show_default=False)],
    method: Annotated[str, typer.Option(help="sum, mean, ties or dare.")] = "sum",
    weight: Annotated[list[float] | None, typer.Option(help="What the rows of a patch are multiplied with; once per patch, in their order. 1 when left out.")] = None,
    density: Annotated[float | None, typer.Option(help="Share of a patch's numbers that ties and dare keep; 0.2 and 0.1, as in their papers, when left out.")] = None,
    seed: Annotated[int, typer.Option(help="For what dare drops.")] = 0,
    json: o.Json = False,
) -> None:  # fmt: skip
    """Make one patch of several that were made on the same model."""
    from mmedit import Patch
    from mmedit import merge as merge_patches
    from mmedit.files import claimed

    with claimed(output):
        merged = merge_patches([Patch.load(file) for file in files], method, weight or None, density=density, seed=seed)
        merged.save(output)
    if json:
        o.print_json({
            "patch": str(output), "digest": merged.digest, "neurons": [str(neuron) for neuron in merged.neurons],
            "edits": [dict(edit) for edit in merged.edits], "hparams": dict(merged.hparams),
        })  # fmt: skip
        return
    o.say(
        f"{merged.name}\n{len(files)} patches merged by {method}: {len(merged.edits)} edits of {len(merged.neurons)} neurons"
    )
    o.say(f"saved {output} ({output.stat().st_size:,} bytes)")
