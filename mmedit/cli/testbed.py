"""`mmedit testbed …`: the checkpoints of IconWorld, trained and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli import options as o

app = typer.Typer(no_args_is_help=True)


@app.callback()
def root() -> None:
    """The checkpoints of IconWorld."""


@app.command("train")
def train(
    name: Annotated[str, typer.Argument(help="A checkpoint, such as iconworld-instructblip.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="Folder for the state and, in `checkpoint`, the model.", show_default=False),
    ],
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
) -> None:
    """Train a checkpoint as the shipped one was; run again to resume."""
    from mmedit.testbed.train import settings_of
    from mmedit.testbed.train import train as stages

    for stage in stages(name, out, settings_of(name), device):
        o.say(f"{stage} done", err=True)
    o.say(out / "checkpoint")


@app.command("measure")
def measure(
    model: Annotated[str, typer.Argument(help="Shipped name or folder.", show_default=False)],
    n: Annotated[int, typer.Option(help="Pictures.", min=1)] = 1000,
    split: Annotated[str, typer.Option(help="validation or benchmark.")] = "benchmark",
    device: o.Device = None,
) -> None:
    """Count a checkpoint's right captions and answers on pictures that it was not trained on; prints JSON."""
    from dataclasses import asdict

    from mmedit.testbed.measure import measure as scores

    o.print_json(asdict(scores(o.load_model(model, device, "auto", None), split, n)))
