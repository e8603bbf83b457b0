"""Two ways of doing one thing, timed in turn in one run, so that other work on the machine hits both alike.

A script of this folder hands `run` a function from a model to rows, and the models. Every row is printed as a line of a table and as
a JSON line with the fields of `Row`, which `all.py` gathers. Times on a CPU are of the process, one thread, so that waiting for
others does not count; on a GPU they are by the clock.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from geometries import GEOMETRIES, random_llava

import mmedit

MIB = 2**20
CPU, GPU = ("iconworld-llava", "small"), ("7b", "13b")
Runs = dict[str, list[float]]
Measure = Callable[..., "Iterator[Row]"]


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        name: what is measured, on what.
        ratio: the figure; None where it was not measured.
        target: its limit; None where the figure is only reported.
        met: whether it is within; None where there is nothing to say.
        detail: what it was made of.
    """

    name: str
    ratio: float | None
    target: float | None = None
    met: bool | None = None
    detail: dict[str, Any] | None = None

    def __str__(self) -> str:
        if self.ratio is None:
            return f"{self.name:<66}   skipped: {(self.detail or {}).get('skipped', '')}"
        limit = (
            ""
            if self.target is None
            else f"{(self.detail or {}).get('wanted', '')} {self.target:g}: {'met' if self.met else 'MISSED'}"
        )
        return f"{self.name:<66}{self.ratio:>11.4g}   {limit}"


def at_most(name: str, ratio: float, target: float, **detail: Any) -> Row:
    """A figure with an upper limit."""
    return Row(name, ratio, target, ratio <= target, {"wanted": "at most", **detail})


def at_least(name: str, ratio: float, target: float, **detail: Any) -> Row:
    """A figure with a lower limit."""
    return Row(name, ratio, target, ratio >= target, {"wanted": "at least", **detail})


def seconds(work: Callable[[], object], on_gpu: bool = False, times: int = 1) -> float:
    """How long one piece of work takes, done several times over."""
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    for _ in range(times):
        work()
    if on_gpu:
        torch.cuda.synchronize()
    return (clock() - start) / times


def in_turn(
    ways: dict[str, Callable[[], object]], repeats: int, on_gpu: bool = False, times: int | dict[str, int] = 1, warm: bool = True
) -> Runs:  # fmt: skip
    """Time ways of doing one thing in turn, forwards and backwards by rounds, after a round to warm up.

    Args:
        ways: by name.
        repeats: rounds.
        on_gpu: whether a GPU does the work.
        times: how often each is done in a round, for what takes microseconds; in a dict, once where it is left out.
        warm: whether to do each once before; not for what takes minutes.

    Returns:
        The seconds of each, one for each round.
    """
    runs: Runs = {name: [] for name in ways}
    often = times if isinstance(times, dict) else dict.fromkeys(ways, times)
    for work in ways.values() if warm else ():
        work()
    for number in range(repeats):
        gc.collect()  # or the garbage of one would be the other's work
        for name in list(ways)[:: -1 if number % 2 else 1]:
            runs[name].append(seconds(ways[name], on_gpu, often.get(name, 1)))
    return runs


def times_of(runs: Runs, name: str, other: str) -> float:
    """How many times as long one way takes as the other: the median over rounds."""
    return statistics.median(a / b for a, b in zip(runs[name], runs[other], strict=True))


def medians(runs: Runs) -> dict[str, float]:
    """The median seconds of each way, to four digits."""
    return {name: float(f"{statistics.median(values):.4g}") for name, values in runs.items()}


def peak(work: Callable[[], object], on_gpu: bool = False) -> float:
    """How many bytes work takes at its peak, over what was taken before: of the GPU, or of the process."""
    if on_gpu:
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


def load(name: str, dtype: torch.dtype = torch.float32) -> mmedit.VisionLanguageModel:
    """A shipped model, or one of `GEOMETRIES`: the large ones in half precision on the GPU."""
    if name in GPU:
        return random_llava(name, "cuda", torch.float16)
    return random_llava(name, "cpu", dtype) if name in GEOMETRIES else mmedit.load(name)


def on_gpu(vlm: mmedit.VisionLanguageModel) -> bool:
    """Whether a model is on a GPU."""
    return bool(vlm.model.device.type == "cuda")


def rows_of(
    measure: Measure, what: str, models: Sequence[str], repeats: int, dtype: torch.dtype = torch.float32, **sizes: int
) -> Iterator[Row]:
    """The rows of every model that this machine can hold, and a row that says why for each of the others."""
    for name in models:
        if name in GPU and not torch.cuda.is_available():
            yield Row(f"{what}, {name}", None, detail={"skipped": "needs a CUDA GPU"})
        else:
            yield from measure(load(name, dtype), repeats, **sizes)
            gc.collect()


def show(rows: Iterator[Row]) -> list[Row]:
    """Print rows as they come, each as a line of a table and as JSON."""
    found = []
    for row in rows:
        print(row)
        print(json.dumps(asdict(row)), flush=True)
        found.append(row)
    return found


def run(
    measure: Measure, what: str, doc: str, models: Sequence[str] = CPU + GPU, repeats: int = 5,
    dtype: torch.dtype = torch.float32, **smallest: int,
) -> None:  # fmt: skip
    """The command line of a script.

    Args:
        measure: from a model and the number of rounds to rows; other sizes are keywords.
        what: is measured.
        doc: the script's docstring.
        models: that it measures by default.
        repeats: rounds, by default.
        dtype: of random weights on a CPU.
        smallest: sizes for `--quick`.
    """

    def main(
        model: Annotated[list[str] | None, typer.Option(help=f"Shipped name, or {', '.join(GEOMETRIES)}.")] = None,
        repeats: Annotated[int, typer.Option(help="Rounds, after one to warm up.")] = repeats,
        threads: Annotated[int, typer.Option(help="For PyTorch on a CPU.")] = 1,
        quick: Annotated[bool, typer.Option(help="The smallest model alone, one round.")] = False,
    ) -> None:
        torch.set_num_threads(threads)
        warnings.filterwarnings("ignore", message=".*only the first.*")
        load = f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}"
        print(f"{what}: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}, {load}")
        if quick:
            show(rows_of(measure, what, models[:1], 1, dtype, **smallest))
        else:
            show(rows_of(measure, what, model or models, repeats, dtype))

    main.__doc__ = doc.split("\n")[0]
    typer.run(main)
