"""Scoring alone, of 1 and of 4 nouns, against reading every W_out once: `python tests/benchmarks/scoring.py`.

The reading is a plain sum over the same weights, the least that any method which looks at all of them can take. The limit is 2 times
that for 1 noun, and on a CPU 4 times for 4 nouns; scoring is one thin product per layer. `small` is at 1.3. Some ten calls into
PyTorch for each layer, 20 µs, come on top, which iconworld-llava cannot hide: its six W_outs are read in 30 µs, and the six products
alone take 40 µs for one noun and 100 µs for three. It is at 7 and 10 to 12.
"""

from __future__ import annotations

from collections.abc import Iterator

from geometries import GEOMETRIES, shorten, words
from timing import MIB, Row, at_most, in_turn, medians, on_gpu, run, times_of

import mmedit
from mmedit.scorers import as_scorer
from mmedit.sightings import sightings
from mmedit.testbed import benchmark_pictures

N_NOUNS = (1, 4)


def measure(vlm: mmedit.VisionLanguageModel, repeats: int) -> Iterator[Row]:
    """Time of scoring for each number of nouns."""
    shorten(vlm)
    picture, gpu, scorer = list(benchmark_pictures(2))[1][0], on_gpu(vlm), as_scorer("contribution")
    seen = sightings(vlm, picture, words(3))
    seen = (2 * seen)[: max(N_NOUNS)]  # a short caption has no 4 words; the fourth is the first again
    matrices = [vlm.architecture.w_out(site).matrix for site in seen[0].activations]
    ways = {"read": lambda: [matrix.sum() for matrix in matrices]} | {
        f"{n}": lambda n=n: scorer.scores(vlm, seen[:n]) for n in N_NOUNS
    }
    small = vlm.name.removeprefix("LLaVA, ") not in GEOMETRIES
    runs = in_turn(ways, 2 * repeats, gpu, 100 if small else 2)
    size = sum(matrix.nbytes for matrix in matrices) / MIB
    for n in N_NOUNS:
        yield at_most(
            f"scoring {n} noun{'s' * (n > 1)} / reading W_out, {vlm.name}", times_of(runs, str(n), "read"),
            2 if n == 1 or gpu else 4, seconds=medians(runs), w_out_mib=size,
        )  # fmt: skip


if __name__ == "__main__":
    run(measure, "scoring / reading W_out", __doc__)
