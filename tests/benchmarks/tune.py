"""Settings for the editors that mmedit compares Algorithm 1 with: `python tests/benchmarks/tune.py ROME`.

Every editor has the same effort: eight settings, the same validation swaps of IconWorld, one goal, which is the sum of
reliability, generality (other pictures, the whole caption as expected) and locality (pictures without the source). What is
not in an editor's grid is as its paper has it. The grids lie where two rounds of eight settings each, on four of the swaps
(`--n 4 --grid …`), did best: over layers, step sizes and limits. The best is shipped in
`hparams/<Editor>/iconworld-llava.yaml`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import Annotated, Any

import typer
from tqdm import tqdm

import mmedit
from mmedit.editors import EDITORS
from mmedit.evaluation.answers import Baselines
from mmedit.evaluation.bench import judged, report_of
from mmedit.testbed.benchmark import iconworld_cases

GRIDS: dict[str, dict[str, list[Any]]] = {
    "FT": {"layer": [5], "lr": [1e-3, 3e-3, 6e-3, 1e-2], "norm_constraint": [0.02, 0.05]},
    "LoRA": {"layers": [[5]], "lr": [1e-3, 2e-3, 5e-3, 1e-2], "rank": [4, 8]},
    "ROME": {"layer": [5], "ridge": [10.0, 100.0], "clamp_norm_factor": [2.0, 4.0], "v_lr": [0.5, 1.0], "n_unrelated": [32]},
    "MEMIT": {
        "layers": [[4, 5], [5]], "ridge": [10.0, 100.0], "v_lr": [0.5, 1.0],
        "clamp_norm_factor": [4.0], "mom2_update_weight": [0.1], "n_unrelated": [32],
    },
    "FiNE": {"last_layer": [0], "lr": [0.02, 0.05], "neuron_num": [5, 10], "gamma": [0.01, 0.1]},
}  # fmt: skip
"""What is tried for each editor: eight settings."""
GOAL = ("reliability", "generality_image_exact", "locality_image")
KINDS = ("edit", "related", "unrelated")


def main(
    editor: Annotated[str, typer.Argument(help=f"One of {', '.join(GRIDS)}.")],
    n: Annotated[int, typer.Option(help="Number of validation swaps.")] = 12,
    model: Annotated[str, typer.Option(help="Shipped name or folder.")] = "iconworld-llava",
    grid: Annotated[str, typer.Option(help="Other values to try, as JSON: {name: [values]}.")] = "",
) -> None:
    """Judge every setting of an editor's grid, and print them, the best last."""
    vlm = mmedit.load(model)
    cases = [
        replace(case, probes=tuple(probe for probe in case.probes if probe.kind in KINDS))
        for case in iconworld_cases(n, split="validation")
    ]
    tried = json.loads(grid) if grid else GRIDS[editor]
    known, rows = Baselines(vlm), []
    for values in tqdm(list(product(*tried.values())), desc=editor):
        settings = dict(zip(tried, values, strict=True))
        execute = EDITORS[editor].from_hparams(settings).execute
        found = [judged(vlm, case, execute, known, 0, 32, teacher_forcing=False) for case in cases]
        report = report_of(editor, model, found, 0.0)
        shares = [report.metrics[name].value for name in GOAL]
        rows.append((sum(shares), shares, report.info["seconds_per_edit"], settings))
    print(
        f"{editor} on {n} validation swaps\n{'sum':>7}" + "".join(f"{name:>24}" for name in (*GOAL, "seconds per edit"))
    )
    for total, shares, seconds, settings in sorted(rows, key=lambda row: row[0]):
        print(f"{total:7.4f}" + "".join(f"{share:24.4f}" for share in (*shares, seconds)) + f"  {json.dumps(settings)}")


if __name__ == "__main__":
    typer.run(main)
