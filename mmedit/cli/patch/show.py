"""`mmedit patch show`: what a patch does, to which model, and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmedit.cli import options as o


def show(file: Annotated[Path, typer.Argument(help="Patch file.", show_default=False)], json: o.Json = False) -> None:
    """Print what a patch does, to which model, and where it came from."""
    from mmedit import Patch

    patch = Patch.load(file)
    described = describe(patch)
    if json:
        o.print_json(described)
        return
    base = described["base"]
    o.say(f"{patch.name}\n  file     {file} ({file.stat().st_size:,} bytes)\n  digest   {patch.digest}")
    o.say(
        f"  base     {base['model'] or 'unnamed'}{' @ ' + base['revision'] if base['revision'] else ''} ({base['model_type']}, {base['n_layers']} layers, d_model {base['d_model']}, d_ffn {base['d_ffn']})"
    )
    o.say(f"  made     {patch.created} by {patch.editor} of mmedit {patch.library_version}")
    o.say(f"  hparams  {', '.join(f'{key}={value}' for key, value in patch.hparams.items())}")
    for row in described["neurons"]:
        o.say(f"  {row['neuron']:<12} ‖Δw‖ {row['delta_norm']:.4g}   ‖w‖ {row['base_norm']:.4g}")


def describe(patch: Any) -> dict[str, Any]:
    """A patch as plain JSON values, without its rows."""
    from dataclasses import asdict

    from mmedit.neuron import Neuron

    neurons = [
        {
            "neuron": str(Neuron(site.layer, unit, site.expert)),
            "delta_norm": float(delta.norm()),
            "base_norm": float(base.float().norm()),
        }
        for site, (units, rows) in patch.deltas.items()
        for unit, delta, base in zip(units.tolist(), rows, patch.base_rows[site], strict=True)
    ]
    return {
        "name": patch.name, "digest": patch.digest, "base": asdict(patch.base), "editor": patch.editor, "hparams": dict(patch.hparams),
        "edits": [dict(edit) for edit in patch.edits], "evaluation": patch.evaluation, "created": patch.created,
        "library_version": patch.library_version, "neurons": neurons,
    }  # fmt: skip
