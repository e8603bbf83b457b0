"""Applying a patch and reverting it against what peers do: `python tests/benchmarks/applying.py`.

A patch of five neurons, each in another layer, so that as many W_outs as possible are edited. ROME, MEMIT and EasyEdit copy the edited
weights and copy them back; others load the whole model's state again. Random weights are in bfloat16, as checkpoints are. On a small model
the limit is some 130 calls of PyTorch and the Python around them, to read, check, add and write the rows of five weights: 0.6 ms. On a large one it
is memory: a neuron's row is a column of the weight, so that each of its numbers is a cache line and a page of its own, 2.2 ms for five
rows of 4096. At least 10 times faster is missed on iconworld-llava (0.4), which is copied in 0.3 ms, and on `small` (6), whose edited W_outs are
27 MiB; with 7B's widths it is 196. At least 1000 times faster than loading the state is missed throughout: 6, 163, and 255 for 5.6 GiB.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import CPU, GPU, MIB, Row, at_least, in_turn, medians, on_gpu, run, times_of

import mmedit
from mmedit.patches.base import Base

N = 5


def patch_of(vlm: mmedit.VisionLanguageModel, seed: int = 0, n: int = N) -> mmedit.Patch:
    """A patch of random rows, each neuron in another layer as far as there are layers."""
    a, generator = vlm.architecture, torch.Generator().manual_seed(seed)
    deltas, base = {}, {}
    for number in range(min(n, a.n_layers)):
        site = mmedit.Site(number * a.n_layers // min(n, a.n_layers))
        units = torch.randint(a.d_ffn, (1,), generator=generator)
        deltas[site] = units, 0.01 * torch.randn(1, a.d_model, generator=generator)
        base[site] = mmedit.Stack.of(vlm).base_rows(site, units)
    return mmedit.Patch(deltas, base, Base.of(vlm), "benchmark")


def measure(vlm: mmedit.VisionLanguageModel, repeats: int) -> Iterator[Row]:
    """Time of the three ways, which all leave the model as it was."""
    patch, gpu, edited = patch_of(vlm), on_gpu(vlm), []
    for site in patch.sites:
        edited.append(vlm.architecture.w_out(site))
    whole = {name: tensor.clone() for name, tensor in vlm.model.state_dict().items()}

    def live() -> None:
        patch.apply(vlm)
        patch.revert(vlm)

    def copies() -> None:
        with torch.no_grad():
            before = [w_out.weight.clone() for w_out in edited]
            for w_out in edited:
                units, rows = patch.deltas[w_out.site]
                w_out.write(units, w_out.rows(units).float() + rows)
            for w_out, weight in zip(edited, before, strict=True):
                w_out.weight.copy_(weight)

    def state() -> None:
        with torch.no_grad():
            for w_out in edited:
                units, rows = patch.deltas[w_out.site]
                w_out.write(units, w_out.rows(units).float() + rows)
        vlm.model.load_state_dict(whole)

    ways = {"apply and revert": live, "copy the edited W_outs": copies, "load_state_dict": state}
    runs = in_turn(ways, 2 * repeats, gpu, {"apply and revert": 50, "copy the edited W_outs": 5})
    sizes = {
        "edited_mib": sum(w.weight.nbytes for w in edited) / MIB,
        "model_mib": sum(t.nbytes for t in whole.values()) / MIB,
    }
    for name, target in (("copy the edited W_outs", 10), ("load_state_dict", 1000)):
        ratio = times_of(runs, name, "apply and revert")
        yield at_least(f"{name} / apply + revert, {vlm.name}", ratio, target, seconds=medians(runs), **sizes)


if __name__ == "__main__":
    run(measure, "apply + revert", __doc__, (*CPU, "7b, 12 layers", *GPU), dtype=torch.bfloat16)
