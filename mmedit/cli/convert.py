"""`mmedit convert`: a LLaVA in its original format as a folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o


def convert(
    source: Annotated[str, typer.Argument(help="Local folder or Hub id of a LLaVA v1.0 to v1.5.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.", show_default=False)],
    vision_tower: Annotated[str | None, typer.Option(help="Folder or Hub id of its CLIP; as the checkpoint names it when left out.")] = None,
    dtype: o.Dtype = "auto", revision: o.Revision = None, json: o.Json = False,
) -> None:  # fmt: skip
    """Write a LLaVA in the format of its own code as a new folder that transformers alone can load."""
    o.quiet(dtype)
    from mmedit.patches.convert import convert as write

    converted = write(source, output, vision_tower=vision_tower, dtype=dtype, revision=revision)
    kind = str(converted.dtype).removeprefix("torch.")
    if json:
        o.print_json({"folder": str(converted.folder), "conversation": converted.conversation, "dtype": kind})
        return
    o.say(f"conversation {converted.conversation}, by the name of {source}; {kind}")
    o.say(f"wrote {converted.folder}")
