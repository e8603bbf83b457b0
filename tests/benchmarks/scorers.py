"""Mmns (one backward pass) against contribution scores, in one run: `python tests/benchmarks/scorers.py`.

For each model one picture is captioned once, and words of its caption are scored by either method in turn. Reported, without a
target: how many times as long Mmns takes, with the seconds of both and the peak of memory over what was taken before. The limit of
contribution is one read of every W_out; that of Mmns a forward and a backward pass over prompt and caption.

`--swaps N` instead edits N swaps of IconWorld's benchmark with neurons of each scorer, counted as `swaps.py` does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial

from geometries import shorten, words
from swaps import Captions, outcome, shares
from timing import MIB, Row, in_turn, medians, on_gpu, peak, run, times_of
from tqdm import tqdm

import mmedit
from mmedit.editors import MMNeurons
from mmedit.scorers import SCORERS, as_scorer
from mmedit.sightings import sightings
from mmedit.testbed import benchmark_pictures
from mmedit.testbed.benchmark import swap_cases

N_WORDS = (1, 3)


def measure(vlm: mmedit.VisionLanguageModel, repeats: int) -> Iterator[Row]:
    """Time and memory of both methods, for each number of words of one caption."""
    picture, gpu = list(benchmark_pictures(2))[1][0], on_gpu(vlm)
    shorten(vlm)
    for n in N_WORDS:
        seen = sightings(vlm, picture, words(n))
        ways = {name: partial(as_scorer(name).scores, vlm, seen) for name in ("contribution", "attribution")}
        runs = in_turn(ways, repeats, gpu)
        memory = {name: round(peak(way, gpu) / MIB, 1) for name, way in ways.items()}
        yield Row(
            f"Mmns / contribution, {n} word{'s' * (n > 1)}, {vlm.name}", times_of(runs, "attribution", "contribution"),
            detail={"seconds": medians(runs), "peak_mib": memory, "caption_tokens": len(seen[0].generation.ids)},
        )  # fmt: skip


def swaps(n: int) -> None:
    """Print what edits do with the neurons of each scorer."""
    vlm = mmedit.load("iconworld-llava")
    cases, editor = swap_cases("benchmark", n), MMNeurons.from_hparams("iconworld-llava")
    captions = Captions(vlm, (scene for case in cases for scene in (case.edit, *case.related, *case.unrelated)))
    print(f"{'neurons by':<14}{'swaps':>6}{'edit picture':>14}{'other pictures':>16}{'unrelated same':>16}")
    for name in SCORERS:
        method = editor.with_hparams(scorer=name)
        found = shares([outcome(captions, case, method) for case in tqdm(cases, desc=name, leave=False)])
        print(
            f"{name:<14}{found['swaps']:>6}{found['reliability']:>14.3f}{found['generality']:>16.3f}{found['locality']:>16.3f}"
        )
        print(json.dumps({"name": f"swaps by {name}", **found}))


if __name__ == "__main__":
    if "--swaps" in sys.argv:
        swaps(int(sys.argv[sys.argv.index("--swaps") + 1]))
    else:
        run(measure, "Mmns / contribution", __doc__)
