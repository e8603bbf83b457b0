"""How time grows: nouns scored, pictures located in, patches in a stack, layers looked at: `python tests/benchmarks/growth.py`.

The figure is the exponent of the growth over the last factor of four, where what is paid once no longer counts: 1 is linear, 0 not at
all. At most 1.1, of which 0.1 is for the clock. `--plot FILE` draws all points with a line of linear growth. Patches are pushed one by one,
and popped. Where each has neurons of its own, a push costs the same however many are live. The other row has five random neurons of 2560
for each: of 1000 of them two touch a row on average, and their sum is taken anew at each push and pop. This work grows with them, so
that this row is above the limit.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from applying import patch_of
from geometries import words
from timing import Row, at_most, in_turn, show

import mmedit
from mmedit.locate import rank
from mmedit.patches.base import Base
from mmedit.sightings import sightings
from mmedit.testbed import benchmark_pictures

SIZES = {
    "nouns": (1, 2, 4, 8, 16, 32),
    "pictures": (1, 4, 16, 64, 256),
    "patches": (1, 4, 16, 63, 250, 1000),
    "patches that share rows": (1, 4, 16, 63, 250, 1000),
    "layers": (1, 2, 4, 6),
}
Way = Callable[[int], object]


def ways_of(vlm: mmedit.VisionLanguageModel, largest: dict[str, int]) -> dict[str, Way]:
    """What grows, as functions of how many there are."""
    pictures = [picture for picture, _, _ in benchmark_pictures(max(largest["pictures"], 2))]
    seen = [[sighting] for sighting in sightings(vlm, pictures[:16], words(2))][: largest["nouns"]]
    apart = [patch_apart(vlm, number) for number in range(largest["patches"])]
    sharing = [patch_of(vlm, seed) for seed in range(largest["patches that share rows"])]

    def stacked(patches: list[mmedit.Patch], n: int) -> None:
        live = mmedit.Stack.of(vlm)
        names = [live.push(patch, name=str(number)) for number, patch in enumerate(patches[:n])]
        for name in names:
            live.pop(name)

    return {
        "nouns": lambda n: rank(vlm, (seen * n)[:n]),
        "pictures": lambda n: mmedit.locate_nouns(vlm, pictures[:n], batch_size=32),
        "patches": lambda n: stacked(apart, n),
        "patches that share rows": lambda n: stacked(sharing, n),
        "layers": lambda n: rank(vlm, [[s] for s in sightings(vlm, pictures[1], words(2), layers=range(n))]),
    }


def patch_apart(vlm: mmedit.VisionLanguageModel, number: int, n: int = 3) -> mmedit.Patch:
    """One of many patches of n neurons, each in another layer, none of which another patch has."""
    live, n_layers = mmedit.Stack.of(vlm), vlm.architecture.n_layers
    places = [divmod(number * n + place, n_layers) for place in range(n)]
    units = {mmedit.Site(layer): torch.tensor([unit]) for unit, layer in places}
    deltas = {site: (chosen, torch.full((1, vlm.architecture.d_model), 0.01)) for site, chosen in units.items()}
    return mmedit.Patch(deltas, {site: live.base_rows(site, units[site]) for site in units}, Base.of(vlm), "benchmark")


def points(way: Way, sizes: tuple[int, ...], repeats: int) -> list[float]:
    """The median seconds for each size; small ones are done more often."""
    often = {str(n): max(1, sizes[-1] // (4 * n)) for n in sizes}
    runs = in_turn({str(n): lambda n=n: way(n) for n in sizes}, repeats, times=often)
    return [statistics.median(runs[str(n)]) for n in sizes]


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """The slope in logarithms between the last size and the first that is at most a quarter of it."""
    first = max((i for i, n in enumerate(sizes) if 3.9 * n <= sizes[-1]), default=0)
    return math.log(seconds[-1] / seconds[first]) / math.log(sizes[-1] / sizes[first])


def measure(vlm: mmedit.VisionLanguageModel, repeats: int, sizes: dict[str, tuple[int, ...]], plotted: Path | None = None) -> Iterator[Row]:  # fmt: skip
    """A row for all that grows."""
    ways, curves = ways_of(vlm, {name: values[-1] for name, values in sizes.items()}), {}
    for name, values in sizes.items():
        seconds = points(ways[name], values, repeats)
        curves[name] = values, seconds
        yield at_most(
            f"growth with {name}, {values[0]} to {values[-1]}: exponent, {vlm.name}", exponent(values, seconds), 1.1,
            seconds={n: float(f"{s:.4g}") for n, s in zip(values, seconds, strict=True)},
        )  # fmt: skip
    if plotted:
        plot(curves, plotted)


def plot(curves: dict[str, Any], file: Path) -> None:
    """Draw the times of all that grows, with lines of linear growth through the last points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(3.2 * len(curves), 3), layout="constrained")
    for axis, (name, (sizes, seconds)) in zip(axes, curves.items(), strict=True):
        axis.loglog(sizes, seconds, "o-", label="measured")
        axis.loglog(sizes, [seconds[-1] * n / sizes[-1] for n in sizes], ":", color="gray", label="linear")
        axis.set(xlabel=name, ylabel="seconds")
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.xaxis.minorticks_off()
    axes[0].legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main(
    repeats: Annotated[int, typer.Option(help="Rounds, after one to warm up.")] = 3,
    plotted: Annotated[Path | None, typer.Option("--plot", help="Draw to this file.")] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes, one round.")] = False,
) -> None:
    """Measure how time grows."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*only the first.*")
    sizes = {name: values[:3] for name, values in SIZES.items()} if quick else SIZES
    show(measure(mmedit.load("iconworld-llava"), 1 if quick else repeats, sizes, plotted))


if __name__ == "__main__":
    typer.run(main)
