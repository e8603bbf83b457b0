"""Mmns (one backward pass) against contribution scores, in one run: `python tests/benchmarks/scorers.py`.

For each model one picture is captioned once, and words of its caption are scored by either method in turn. Prints a table
and one JSON line for each row: seconds (median; on a CPU those of this process, so that other work does not count) and the
peak of memory over what was taken before. The limit of contribution is one read of every W_out; that of Mmns a forward
and a backward pass over prompt and caption.

`--swaps N` instead edits N swaps of IconWorld's benchmark with neurons of each scorer, counted as `swaps.py` does.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from geometries import GEOMETRIES, random_llava
from swaps import Captions, outcome, shares
from tqdm import tqdm

import mmedit
from mmedit.concepts import Occurrence
from mmedit.editors import MMNeurons
from mmedit.models.vlm import Generation
from mmedit.scorers import SCORERS, as_scorer
from mmedit.sightings import Sighting, sightings
from mmedit.testbed import benchmark_pictures
from mmedit.testbed.benchmark import swap_cases

MIB = 2**20
N_WORDS = (1, 3)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes: of the processors, or by the clock where a GPU works."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def peak(work: Callable[[], object]) -> float:
    """How many bytes it takes at its peak, over what was taken before: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed would be taken again without a trace
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def status(name: str) -> float:
    """A size of this process in bytes, as the kernel has it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024


def words(n: int) -> Callable[[int, Generation], list[Occurrence]]:
    """The tokens 1, 3, 5 … of a caption, as if each were a word: random weights say no nouns."""
    return lambda number, said: [Occurrence("word", 0, i, said.ids[i], 1) for i in range(1, 2 * n, 2)]


def compare(vlm: mmedit.VisionLanguageModel, n: int, repeats: int) -> dict[str, object]:
    """Time and memory of both methods on n words of one caption."""
    picture = list(benchmark_pictures(2))[1][0]
    seen: list[Sighting] = []
    captioning = seconds(lambda: seen.extend(sightings(vlm, picture, words(n))))
    row: dict[str, object] = {
        "model": vlm.name,
        "words": n,
        "caption_tokens": len(seen[0].generation.ids),
        "caption_s": captioning,
    }
    ways = {name: as_scorer(name) for name in ("contribution", "attribution")}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, scorer in ways.items():
            taken = seconds(lambda scorer=scorer: scorer.scores(vlm, seen))
            times[name] += [taken] if number else []  # the first warms up
    for name, scorer in ways.items():
        row[f"{name}_s"] = statistics.median(times[name])
        row[f"{name}_mib"] = peak(lambda scorer=scorer: scorer.scores(vlm, seen)) / MIB
    row["ratio"] = statistics.median(times["attribution"]) / statistics.median(times["contribution"])
    return row


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


def main(
    model: Annotated[list[str] | None, typer.Option(help=f"Shipped name, or {', '.join(GEOMETRIES)}.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each, after one to warm up.")] = 5,
    device: Annotated[str, typer.Option(help="Of the models with random weights.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the models with random weights.")] = "float32",
    n_swaps: Annotated[int | None, typer.Option("--swaps", help="Edit as many swaps instead.")] = None,
) -> None:
    """Measure Mmns against contribution scores."""
    warnings.filterwarnings("ignore", message=".*only the first.*")
    if n_swaps:
        return swaps(n_swaps)
    print(
        f"{'model':<28}{'words':>6}{'caption s':>11}{'contribution s':>16}{'MiB':>7}{'Mmns s':>9}{'MiB':>7}{'times':>8}"
    )
    for name in model or ["iconworld-llava", "small"]:
        vlm = random_llava(name, device, getattr(torch, dtype)) if name in GEOMETRIES else mmedit.load(name)
        for n in N_WORDS:
            row = compare(vlm, n, repeats)
            print(
                f"{vlm.name:<28}{n:>6}{row['caption_s']:>11.2f}{row['contribution_s']:>16.4f}{row['contribution_mib']:>7.0f}"
                f"{row['attribution_s']:>9.3f}{row['attribution_mib']:>7.0f}{row['ratio']:>8.0f}"
            )
            print(json.dumps({"name": "contribution against Mmns", **row}))


if __name__ == "__main__":
    typer.run(main)
