"""Locating all nouns of a caption against plain generation of the same caption: `python tests/benchmarks/locating.py`.

The limit is generation itself: what is added is a hook on every W_out at every token, one read of each W_out, and for the best 100 neurons
of each noun one product with W_U, whose greatest entries are their words. At most 1.05 times the time, which a model must take some 0.2 s to
caption for. `small` is within (1.00 to 1.06 in single rounds: ranking, words and all, is 0.13 s of 5 s). iconworld-llava, which says its six
tokens in 35 ms, is not (1.19): hooks that do nothing are 1.03 already, what PyTorch takes to call them; recording, finding the nouns, scoring
and sorting make it 1.12, and the neurons' words, which `n_tokens=0` leaves out, the rest.

And less than 2 % of the weights' memory, which is measured where 2 % is far above a page. By PyTorch's own count locating takes 0.25 MiB more
than generating at its peak (68.6 MiB on `small`): what scoring and words take (16 MiB) comes when generation has given its own back. The
process is seen to vary by tens of MiB from one time to the next, by what malloc keeps, so the median of three is taken.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator

from geometries import GEOMETRIES, locate, shorten
from timing import MIB, Row, at_most, in_turn, medians, on_gpu, peak, run, times_of

import mmedit
from mmedit.testbed import benchmark_pictures

N_PEAKS = 3  # of each: what malloc keeps from one time to the next moves a peak by tens of MiB


def measure(vlm: mmedit.VisionLanguageModel, repeats: int) -> Iterator[Row]:
    """Time, and memory where the model is large enough."""
    random = vlm.name.removeprefix("LLaVA, ") in GEOMETRIES
    if random:
        shorten(vlm)
    picture, gpu, quick = list(benchmark_pictures(2))[1][0], on_gpu(vlm), 1 if random else 5
    ways = {
        "generate": lambda: vlm.generate(picture),
        "locate": lambda: locate(vlm, picture),
        "without words": lambda: locate(vlm, picture, n_tokens=0),
    }
    runs = in_turn(ways, repeats if random else 6 * repeats, gpu, quick)
    said, nouns = len(vlm.generate(picture)[0].ids), len(locate(vlm, picture))
    yield at_most(
        f"locate / generate, time, {vlm.name}", times_of(runs, "locate", "generate"), 1.05,
        seconds=medians(runs), caption_tokens=said, nouns=nouns,
    )  # fmt: skip
    yield Row(f"   without the neurons' words (n_tokens=0), {vlm.name}", times_of(runs, "without words", "generate"))
    weights = sum(parameter.nbytes for parameter in vlm.model.parameters())
    if weights > 500 * MIB:
        taken: dict[str, list[float]] = {"generate": [], "locate": []}
        for _ in range(N_PEAKS):
            for name, peaks in taken.items():
                gc.collect()
                peaks.append(peak(ways[name], gpu))
        extra = max(0.0, statistics.median(taken["locate"]) - statistics.median(taken["generate"]))
        detail = {"weights_mib": weights / MIB, "peak_mib": {k: [size / MIB for size in v] for k, v in taken.items()}}
        yield at_most(f"locate - generate, peak memory / weights, {vlm.name}", extra / weights, 0.02, **detail)


if __name__ == "__main__":
    run(measure, "locate / generate", __doc__)
