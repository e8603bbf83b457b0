"""`mmedit patch stack-check`: what patches do to each other when they are live together."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o


def stack_check(
    files: Annotated[list[Path], typer.Argument(help="Patch files, two or more.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Shipped name, local folder or Hub id of the model that they are for: also checks that they fit it and tells what each does to the others' margins.")] = None,
    device: o.Device = None, dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Compare patches pair by pair: shared neurons, cosine of their deltas, contradictions and chains.

    A margin is logit(target) − logit(source) where an edit's source is said. "−1.20 of +6.50" reads: the edit itself moves
    its margin by +6.50, the other patch by −1.20; to first order, without the final norm, and through the neurons that
    both edit only.
    """
    from mmedit import Patch
    from mmedit.patches.conflicts import conflicts, table

    patches = [Patch.load(file) for file in files]
    found = conflicts(patches, None if model is None else o.load_model(model, device, dtype, revision))
    if json:
        pairs = combinations(map(str, files), 2)
        o.print_json([{"files": pair, **conflict.to_dict()} for pair, conflict in zip(pairs, found, strict=True)])
        return
    o.say(table(found))
