"""Locating all nouns of a caption against plain generation of the same caption: `python tests/benchmarks/locating.py`.

The limit is generation itself: what is added is one copy of the last position for each W_out and token, one read of each W_out,
and the words of the best 100 neurons of each noun: some 2 ms for a noun, whatever the model. At most 1.05 times the time, which a
model must take 0.1 s to caption for: `small` is within, iconworld-llava, which says its six tokens in 40 ms, is not (1.2). And
less than 2 % of the weights' memory, which is measured where 2 % is far above a page.
"""

from __future__ import annotations

from collections.abc import Iterator

from geometries import GEOMETRIES, locate, shorten
from timing import MIB, Row, at_most, in_turn, medians, on_gpu, peak, run, times_of

import mmedit
from mmedit.testbed import benchmark_pictures


def measure(vlm: mmedit.VisionLanguageModel, repeats: int) -> Iterator[Row]:
    """Time, and memory where the model is large enough."""
    random = vlm.name.removeprefix("LLaVA, ") in GEOMETRIES
    if random:
        shorten(vlm)
    picture, gpu, quick = list(benchmark_pictures(2))[1][0], on_gpu(vlm), 1 if random else 5
    ways = {"generate": lambda: vlm.generate(picture), "locate": lambda: locate(vlm, picture)}
    runs = in_turn(ways, repeats if random else 6 * repeats, gpu, quick)
    said, nouns = len(vlm.generate(picture)[0].ids), len(locate(vlm, picture))
    yield at_most(
        f"locate / generate, time, {vlm.name}", times_of(runs, "locate", "generate"), 1.05,
        seconds=medians(runs), caption_tokens=said, nouns=nouns,
    )  # fmt: skip
    weights = sum(parameter.nbytes for parameter in vlm.model.parameters())
    if weights > 500 * MIB:
        taken = {name: peak(way, gpu) for name, way in ways.items()}
        extra = max(0.0, taken["locate"] - taken["generate"])
        detail = {"weights_mib": weights / MIB, "peak_mib": {name: size / MIB for name, size in taken.items()}}
        yield at_most(f"locate - generate, peak memory / weights, {vlm.name}", extra / weights, 0.02, **detail)


if __name__ == "__main__":
    run(measure, "locate / generate", __doc__)
