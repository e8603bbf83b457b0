"""Evaluating 8 patches on 64 pictures against a loop over patches and pictures: `python tests/benchmarks/evaluating.py`.

The loop asks for one patch and one picture at a time, as one writes it by hand: the unedited model's answer, the edited one's, and
what both predict on it. The patches are Algorithm 1's, and the picture of each edit is among the pictures; nothing is kept on disk on
either side. What one call saves is the unedited model's answers for all patches but the first, half of all, and what batches save
(`batching.py`); a second figure is of one call with batches of one, which saves only the first. At least 4 times faster with the same
numbers: every answer, and every score to 1e-4.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from timing import Row, at_least, in_turn, medians, on_gpu, run, times_of

import mmedit
from mmedit.editors import MMNeurons
from mmedit.evaluation.judge import ProbeResult
from mmedit.testbed import benchmark_pictures
from mmedit.testbed.benchmark import swap_cases
from mmedit.testbed.world import render

N_PATCHES, N_PICTURES = 8, 64


def same(one: ProbeResult, other: ProbeResult) -> bool:
    """Whether two results say the same."""
    if any(getattr(one, name) != getattr(other, name) for name in ("before", "after", "expected", "right")):
        return False
    return one.scores.keys() == other.scores.keys() and all(
        abs(score - other.scores[name]) < 1e-4 for name, score in one.scores.items()
    )


def measure(vlm: mmedit.VisionLanguageModel, repeats: int, n_patches: int = N_PATCHES, n_pictures: int = N_PICTURES) -> Iterator[Row]:  # fmt: skip
    """Time of each way, and whether the numbers are the same."""
    requests = [
        mmedit.EditRequest(render(c.edit)[0], c.source, c.target) for c in swap_cases("benchmark", n_patches, 1, 1)
    ]
    patches = [MMNeurons.from_hparams("iconworld-llava").execute(vlm, request) for request in requests]
    others = [picture for picture, _, _ in benchmark_pictures(n_pictures - n_patches)]
    pictures = others + [image for request in requests for image in request.images]
    found: dict[str, list[list[ProbeResult]]] = {}

    def at_once(name: str, batch_size: int) -> None:
        reports = mmedit.evaluate(vlm, patches, unrelated=pictures, batch_size=batch_size, cache=False)
        found[name] = [list(report.results) for report in reports]

    def loop() -> None:
        ask = partial(mmedit.evaluate, vlm, cache=False, batch_size=1)
        found["loop"] = [[ask(patch, unrelated=[picture]).results[0] for picture in pictures] for patch in patches]

    ways = {
        "one call": partial(at_once, "one call", 32), "one call, batches of 1": partial(at_once, "batches of 1", 1), "loop": loop,
    }  # fmt: skip
    runs = in_turn(ways, repeats, on_gpu(vlm), warm=False)
    pairs = [pair for a, b in zip(found["one call"], found["loop"], strict=True) for pair in zip(a, b, strict=True)]
    agree = sum(same(a, b) for a, b in pairs)
    ratio = times_of(runs, "loop", "one call")
    detail = {
        "seconds": medians(runs),
        "same_numbers": f"{agree} of {len(pairs)}",
        "changed": sum(not a.right for a, _ in pairs),
    }
    row = at_least(f"loop / evaluate, {n_patches} patches on {n_pictures} pictures, {vlm.name}", ratio, 4, **detail)
    yield row if agree == len(pairs) else Row(row.name, ratio, 4, False, row.detail)
    yield Row(f"   in batches of 1 / evaluate, {vlm.name}", times_of(runs, "one call, batches of 1", "one call"))


if __name__ == "__main__":
    run(measure, "evaluate", __doc__, ("iconworld-llava",), repeats=1, n_patches=2, n_pictures=4)
