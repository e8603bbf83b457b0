"""Algorithm 1 in closed form against its 1000 steps by autograd: `python tests/benchmarks/solving.py`.

Five neurons, as in the paper, in float64, of the model's width. The limit is a few passes over five rows: with rows this short it is
the dozen calls into PyTorch that take the time. At least 1000 times faster; the largest difference is in the detail, as a part of the
longest row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from timing import Row, at_least, in_turn, medians, show, times_of

from mmedit.editors.descent import descend, descended

WIDTHS = {"iconworld-llava": 128, "small": 1024, "7b": 4096, "13b": 5120}
LR, EPOCHS, BETA = 1e-3, 1000, 4.0


def measure(name: str, repeats: int) -> Iterator[Row]:
    """Time of both for one width."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(5, WIDTHS[name], dtype=torch.float64, generator=generator)
    lengths = BETA * torch.tensor([0.5, 0.9, 2.0, 4.0, 8.0])  # some below β, some above
    g *= (lengths / g.norm(dim=1))[:, None]
    ways = {
        "closed form": lambda: descended(g, LR, EPOCHS, BETA),
        "1000 steps": lambda: descend(g, LR, EPOCHS, BETA),
    }
    runs = in_turn(ways, repeats, times={"closed form": 1000, "1000 steps": 1})
    one, other = (way() for way in ways.values())
    off = float((one - other).norm(dim=1).max() / other.norm(dim=1).max())
    yield at_least(
        f"1000 steps of autograd / closed form, d_model {WIDTHS[name]}", times_of(runs, "1000 steps", "closed form"), 1000,
        seconds=medians(runs), difference=off,
    )  # fmt: skip


def rows(quick: bool) -> Iterator[Row]:
    """A row for each width."""
    for name in list(WIDTHS)[: 1 if quick else None]:
        yield from measure(name, 1 if quick else 5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    show(rows("--quick" in sys.argv))
