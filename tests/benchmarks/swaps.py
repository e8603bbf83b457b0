"""How well Algorithm 1 swaps concepts on IconWorld: `python tests/benchmarks/swaps.py` (README's table).

For each swap one edit picture, 16 other pictures with the source and 32 without it. Counted on whole captions: swapped
is the old caption with the word replaced and nothing else changed, unchanged is the same caption. The control edits as
many random neurons with the same settings. `--tune` tries settings on the validation pictures instead.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterable
from itertools import product
from typing import Annotated, Any

import typer
from tqdm import tqdm

import mmedit
from mmedit.editors import MMNeurons, MMNeuronsHparams
from mmedit.errors import RequestError
from mmedit.evaluation.metrics import is_swapped
from mmedit.hparams import hparams_for
from mmedit.testbed.benchmark import SwapCase, swap_cases
from mmedit.testbed.world import Scene, render

warnings.filterwarnings("ignore", message=".*only the first.*")

NEURONS, STEPS = [5, 7, 10, 20, 30], [1e-4, 1.5e-4, 2e-4, 2.5e-4, 3e-4, 4e-4]  # that --tune tries


class Captions:
    """Captions of scenes by the unedited model, each made once."""

    def __init__(self, vlm: mmedit.VisionLanguageModel, scenes: Iterable[Scene]) -> None:
        self.vlm = vlm
        listed = list(dict.fromkeys(scenes))
        self.pictures = {scene: render(scene)[0] for scene in listed}
        self.before = dict(zip(listed, self.after(listed), strict=True))

    def after(self, scenes: list[Scene]) -> list[str]:
        """Captions of scenes by the model as it is now."""
        return self.vlm.caption([self.pictures[scene] for scene in scenes], batch_size=64)


def one_token(vlm: mmedit.VisionLanguageModel, case: SwapCase) -> bool:
    """Whether source and target take one token each."""
    words = [vlm.tokenizer(f" {word}", add_special_tokens=False).input_ids for word in (case.source, case.target)]
    return all(len(ids) == 1 for ids in words)


def outcome(captions: Captions, case: SwapCase, editor: MMNeurons, control: bool = False) -> dict[str, Any]:
    """What one swap does to its pictures, and whether source and target take one token each."""
    vlm, scenes = captions.vlm, [case.edit, *case.related, *case.unrelated]
    result: dict[str, Any] = {"source": case.source, "target": case.target, "one_token": one_token(vlm, case)}
    rng = random.Random(f"{case.source} {case.target}")
    chosen = (
        [
            mmedit.Neuron(rng.randrange(vlm.architecture.n_layers), rng.randrange(vlm.architecture.d_ffn))
            for _ in range(editor.hparams.neurons_per_edit)
        ]
        if control
        else None
    )
    try:
        patch = editor.execute(
            vlm, mmedit.EditRequest(captions.pictures[case.edit], case.source, case.target), neurons=chosen
        )
        with patch.applied(vlm):
            after = captions.after(scenes)
    except RequestError:  # the model does not name the source in the edit picture: a failed swap
        after = [captions.before[scene] for scene in scenes]
    swapped = [
        is_swapped(captions.before[scene], now, case.source, case.target)
        for scene, now in zip(scenes, after, strict=True)
    ]
    same = [captions.before[scene] == now for scene, now in zip(scenes, after, strict=True)]
    n = len(case.related)
    return result | {
        "edit": [swapped[0]],
        "related": swapped[1 : 1 + n],
        "unrelated": same[1 + n :],
        "related_same": same[1 : 1 + n],
    }


def shares(outcomes: list[dict[str, Any]]) -> dict[str, float]:
    """Reliability, generality and locality over some swaps."""
    parts = {"reliability": "edit", "generality": "related", "locality": "unrelated", "related_same": "related_same"}
    counted = {name: [case for o in outcomes for case in o[key]] for name, key in parts.items()}
    return {"swaps": len(outcomes)} | {
        name: round(sum(cases) / len(cases), 4) for name, cases in counted.items() if cases
    }


def tune(vlm: mmedit.VisionLanguageModel, n: int, neurons: list[int], steps: list[float]) -> None:
    """Print the shares of every setting on the validation pictures, over words of one token, best last."""
    cases = [case for case in swap_cases("validation", n, 12, 24) if one_token(vlm, case)]
    captions = Captions(vlm, (scene for case in cases for scene in (case.edit, *case.related, *case.unrelated)))
    found = []
    for k, lr in tqdm(list(product(neurons, steps)), desc="settings"):
        editor = MMNeurons(MMNeuronsHparams(neurons_per_edit=k, lr=lr, beta=0.0))
        s = shares([outcome(captions, case, editor) for case in cases])
        found.append((s["reliability"] + s["generality"] + s["locality"], k, lr, s))
    for total, k, lr, s in sorted(found, key=lambda item: item[0]):
        print(f"{total:.4f}  neurons_per_edit={k} lr={lr:g}  {s}")


def main(
    n: Annotated[int, typer.Option(help="Number of swaps.")] = 60,
    model: Annotated[str, typer.Option(help="Shipped name or folder.")] = "iconworld-llava",
    hparams: Annotated[
        str | None, typer.Option(help="Shipped name, file or auto; those of the model when left out.")
    ] = None,
    tune_instead: Annotated[bool, typer.Option("--tune", help="Try settings on validation pictures.")] = False,
    neurons: Annotated[list[int], typer.Option(help="For --tune: neurons per edit to try.")] = NEURONS,
    lr: Annotated[list[float], typer.Option(help="For --tune: steps to try.")] = STEPS,
    file: Annotated[str | None, typer.Option("--json", help="Write every case to this file.")] = None,
) -> None:
    """Measure swaps on the benchmark pictures."""
    vlm = mmedit.load(model)
    if tune_instead:
        return tune(vlm, n, neurons, lr)
    editor = MMNeurons.from_hparams(hparams or hparams_for(model, "MMNeurons"), vlm)
    print(editor)
    cases = swap_cases("benchmark", n)
    captions = Captions(vlm, (scene for case in cases for scene in (case.edit, *case.related, *case.unrelated)))
    edited = [outcome(captions, case, editor) for case in tqdm(cases, desc="swaps")]
    control = [outcome(captions, case, editor, control=True) for case in tqdm(cases, desc="random neurons")]
    print(f"{'':<34}{'swaps':>6}{'edit picture':>14}{'other pictures':>16}{'unrelated same':>16}")
    rows = {
        "words of one token": [o for o in edited if o["one_token"]],
        "words of several tokens": [o for o in edited if not o["one_token"]],
        "as many random neurons instead": control,
    }
    for name, outcomes in rows.items():
        s = shares(outcomes)
        print(f"{name:<34}{s['swaps']:>6}{s['reliability']:>14.3f}{s['generality']:>16.3f}{s['locality']:>16.3f}")
    print(
        f"captions of the source's pictures that random neurons leave as they are: {shares(control)['related_same']:.3f}"
    )
    if file:
        mmedit.files.write_text(file, json.dumps({"edited": edited, "control": control}))


if __name__ == "__main__":
    typer.run(main)
