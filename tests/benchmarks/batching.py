"""Locating 32 pictures in a batch against 32 single calls: `python tests/benchmarks/batching.py`.

The limit on a CPU is arithmetic, of which a batch saves none; what it saves is the overhead of each step of generation, and on a GPU
reading the weights for each picture. At least 4 times faster with iconworld-llava on a CPU (it is about 4: a third of the batch's time
is ranking, 2 ms a noun, which a batch does not save), 6 times with `7b` on a GPU; the neurons are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from geometries import locate, shorten
from timing import GPU, Row, at_least, in_turn, medians, on_gpu, run, times_of

import mmedit
from mmedit.testbed import benchmark_pictures

N = 32


def measure(vlm: mmedit.VisionLanguageModel, repeats: int, n: int = N) -> Iterator[Row]:
    """Time of both, and how many rankings have the same best five neurons."""
    if on_gpu(vlm):
        shorten(vlm)
    pictures = [picture for picture, _, _ in benchmark_pictures(n)]
    found: dict[str, list[mmedit.NeuronRanking]] = {}

    def together() -> None:
        found["batch"] = locate(vlm, pictures, batch_size=n)

    def single() -> None:
        found["single"] = [ranking for picture in pictures for ranking in locate(vlm, picture)]

    runs = in_turn({"batch": together, "single": single}, repeats, on_gpu(vlm))
    same = [a.neurons[:5] == b.neurons[:5] for a, b in zip(found["batch"], found["single"], strict=True)]
    yield at_least(
        f"locate, {n} single calls / a batch of {n}, {vlm.name}", times_of(runs, "single", "batch"), 6 if on_gpu(vlm) else 4,
        seconds=medians(runs), nouns=len(same), same_best_five=sum(same) / len(same),
    )  # fmt: skip


if __name__ == "__main__":
    run(measure, "locate in a batch", __doc__, ("iconworld-llava", GPU[0]), repeats=3, n=4)
