"""What locating takes beside the weights: `python tests/benchmarks/memory.py`.

One picture is captioned, then captioned again with three of its words located, in a LLaVA with random weights in bfloat16.
Prints the peak of memory of either over what was taken before, and that of ranking alone. What locating must keep is one copy
of what enters each W_out for each new token; `kept` is how much that is.
"""

from __future__ import annotations

import json
from typing import Annotated

import torch
import typer
from geometries import GEOMETRIES, random_llava, words
from timing import MIB, on_gpu, peak

from mmedit.locate import rank
from mmedit.sightings import Sighting, sightings
from mmedit.testbed import benchmark_pictures

N_WORDS = 3


def main(
    model: Annotated[str, typer.Option(help=", ".join(GEOMETRIES))] = "7b, 3 layers",
    device: Annotated[str, typer.Option(help="Where it is.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of its weights.")] = "bfloat16",
    max_new_tokens: Annotated[int, typer.Option(help="Longest caption.")] = 12,
) -> None:
    """Measure the memory of locating against that of captioning."""
    torch.manual_seed(0)
    vlm = random_llava(model, device, getattr(torch, dtype))
    generate, picture = vlm.generate_batch, list(benchmark_pictures(2))[1][0]
    vlm.generate_batch = lambda inputs, most=max_new_tokens: generate(inputs, most)  # type: ignore[method-assign]
    weights = sum(parameter.nbytes for parameter in vlm.model.parameters())
    vlm.generate_batch(vlm.inputs(picture), 2)  # warms up
    seen: list[Sighting] = []
    gpu = on_gpu(vlm)

    def locate() -> None:
        seen[:] = sightings(vlm, picture, words(N_WORDS))
        rank(vlm, [[sighting] for sighting in seen])

    row = {
        "model": vlm.name, "dtype": dtype, "weights_mib": weights / MIB,
        "captioning_mib": peak(lambda: vlm.generate_batch(vlm.inputs(picture)), gpu) / MIB, "locating_mib": peak(locate, gpu) / MIB,
        "ranking_mib": peak(lambda: rank(vlm, [[sighting] for sighting in seen]), gpu) / MIB,
        "kept_mib": (len(seen[0].generation.ids) + N_WORDS) * sum(o.nbytes for o in seen[0].activations.values()) / MIB,
    }  # fmt: skip
    row["extra_mib"] = row["locating_mib"] - row["captioning_mib"]
    print(json.dumps({"name": "memory of locating", **row}))


if __name__ == "__main__":
    typer.run(main)
