"""What patches make of rows of W_out: checked against their base, then `round(base + Σ scale·delta)`.

The live stack and the baker both compute rows here, so that baking and applying give the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from mmedit.errors import BaseMismatchError
from mmedit.models.architecture import Architecture
from mmedit.neuron import Neuron, Site
from mmedit.patches.patch import Patch

BLOCK = 1024
"""Units multiplied out at a time; fixed, because a product's last bits may depend on how many rows it has."""


@dataclass(frozen=True)
class Entry:
    """A patch and what its rows are multiplied with."""

    patch: Patch
    scale: float


def units_of(entries: Iterable[Entry]) -> dict[Site, list[int]]:
    """The units that some patches touch, by site, in order."""
    units: dict[Site, set[int]] = {}
    for entry in entries:
        for site in entry.patch.sites:
            units.setdefault(site, set()).update(entry.patch.units(site).tolist())
    return {site: sorted(found) for site, found in units.items()}


def check_model(patch: Patch, architecture: Architecture) -> None:
    """Raise unless a model is of the size that the patch was made for and has its units.

    Raises:
        BaseMismatchError: if the number of layers or d_model is another.
        RequestError: if it has no such layer or unit.
    """
    if patch.base.d_model != architecture.d_model or patch.base.n_layers != architecture.n_layers:
        got = f"{architecture.n_layers} layers, d_model {architecture.d_model}"
        raise BaseMismatchError(
            "a patch for another model",
            where=patch.name,
            got=got,
            expected=f"{patch.base.model}: {patch.base.n_layers} layers, d_model {patch.base.d_model}",
            do="load the model that the patch names",
        )
    for site in patch.sites:
        last = int(patch.units(site)[-1])
        if last >= architecture.w_out(site).d_ffn:
            architecture.check(Neuron(site.layer, last, site.expert))


def check_rows(patch: Patch, site: Site, pieces: Iterable[Tensor]) -> None:
    """Raise unless a model's unpatched rows are the patch's base, in whichever of the two types holds fewer numbers.

    Args:
        patch: what is to be put on the model.
        site: where.
        pieces: the rows of `patch.units(site)`, in order, `[k, d_model]` in one piece or several.

    Raises:
        BaseMismatchError: if they are other rows.
    """
    if site in patch.low_rank:
        digest = hashlib.sha256()
        for rows in pieces:
            digest.update(rows.float().contiguous().numpy().tobytes())
        if digest.hexdigest() != patch.base_digests[site]:
            _refuse(patch, str(site), "a W_out of another digest")
        return
    every, start = patch.base_rows[site], 0
    for rows in pieces:
        base = every if rows.shape == every.shape else every[start : start + len(rows)]
        if not _same(base, rows):
            off = (base.float() - rows.float()).abs().amax(1)
            worst = int(off.argmax())
            neuron = Neuron(site.layer, int(patch.units(site)[start + worst]), site.expert)
            _refuse(patch, str(neuron), f"a W_out row that is off by up to {float(off[worst]):.3g}")
        start += len(rows)


def edited_rows(site: Site, units: Tensor, base: Tensor, entries: Iterable[Entry]) -> Tensor:
    """round(base + Σ scale·delta) for some units of a site, summed in fp32 in an order of the patches' own.

    Args:
        site: whose rows.
        units: sorted int64 `[k]`.
        base: their unpatched rows `[k, d_model]`, in the model's type.
        entries: the patches; those that do not touch a unit leave its row as it is.

    Returns:
        The rows `[k, d_model]`, in the type of `base`.

    Example:
        >>> from mmedit.patches.base import Base
        >>> site, base = Site(0), torch.zeros(2, 2)
        >>> patch = Patch({site: (torch.tensor([5]), torch.ones(1, 2))}, {site: base[:1]}, Base("m", None, "llava", 1, 2, 8, ""))
        >>> edited_rows(site, torch.tensor([3, 5]), base, [Entry(patch, 0.5)])
        tensor([[0.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    ours = sorted((e for e in entries if e.patch.edits_site(site)), key=lambda e: (e.patch.digest, e.scale))
    parts = [(entry.scale, *_delta(entry.patch, site, units)) for entry in ours]
    if all(places is None for _, places, _ in parts):
        total = sum(rows if scale == 1 else scale * rows for scale, _, rows in parts)  # from 0, so never −0.0
        return (base.float() + total).to(base.dtype) if parts else base
    total, touched = torch.zeros(base.shape), torch.zeros(len(units), dtype=torch.bool)
    for scale, some, rows in parts:
        places = slice(None) if some is None else some
        total[places] += scale * rows
        touched[places] = True
    return torch.where(touched[:, None], (base.float() + total).to(base.dtype), base)


def _same(base: Tensor, rows: Tensor) -> bool:
    """Whether rows are equal in whichever of their two types holds fewer numbers."""
    if base.dtype == rows.dtype:
        return torch.equal(base, rows)
    return bool(((base.to(rows.dtype) == rows).all(1) | (rows.to(base.dtype) == base).all(1)).all())


def _delta(patch: Patch, site: Site, units: Tensor) -> tuple[Tensor | None, Tensor]:
    """Places in `units` that the patch edits, None for all of them, and the rows it adds there."""
    if site in patch.low_rank:
        left, right = patch.low_rank[site]
        blocks = units // BLOCK
        products = [
            (left[b * BLOCK : (b + 1) * BLOCK] @ right)[units[blocks == b] - b * BLOCK]
            for b in sorted(set(blocks.tolist()))
        ]
        return None, torch.cat(products)
    edited, rows = patch.deltas[site]
    if torch.equal(edited, units):
        return None, rows
    ours = torch.isin(edited, units)
    return torch.searchsorted(units, edited[ours]), rows[ours]


def _refuse(patch: Patch, where: str, got: str) -> NoReturn:
    raise BaseMismatchError(
        "a patch for another model", where=where, got=got,
        expected=f"the weights of {patch.base.model or 'its base'}, revision {patch.base.revision}",
        do="load that model and revision, without other changes to its weights",
    )  # fmt: skip
