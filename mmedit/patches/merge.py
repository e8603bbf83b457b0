"""Several patches become one: `sum`, `mean`, TIES (Yadav et al. 2023, arXiv 2306.01708), DARE (Yu et al. 2023, arXiv 2311.03099).

A patch's delta is its task vector, w·Δ once weighted: only the rows that it touches, all others are 0. So

- `sum` is Σ wᵢ·Δᵢ, the bits that a stack of the patches with the weights as scales adds;
- `mean` is Σ wᵢ·Δᵢ / Σ wᵢ, the mean of the edited checkpoints: a row that one of n patches touches moves by 1/n;
- `ties` trims every patch to the `density` of its stored numbers that are largest in magnitude (all sites together, the
  zeros of untouched rows not counted), elects for each number the sign of Σ, and takes the mean of those that agree with it;
- `dare` keeps each stored number with probability `density`, rescales it by 1/density, and sums.

TIES and DARE were made for fine-tunes, which share all their weights. Where only one patch touches a row there is nothing
to elect or to average with: TIES then only trims the edit and DARE only makes it noisier. They are of use for patches with
many shared rows; `mmedit patch stack-check` counts these.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmedit.errors import BaseMismatchError, PatchError, RequestError
from mmedit.neuron import Neuron, Site
from mmedit.patches.base import Factors
from mmedit.patches.patch import Patch
from mmedit.patches.rows import Entry, edited_rows

DENSITIES: dict[str, float | None] = {"sum": None, "mean": None, "ties": 0.2, "dare": 0.1}
"""The share of numbers that each method keeps by default: what its paper recommends, where it leaves any out."""


def merge(
    patches: Iterable[Patch], method: str = "sum", weights: Sequence[float] | None = None,
    *, density: float | None = None, seed: int = 0,
) -> Patch:  # fmt: skip
    """Make one patch of several, which keeps the provenance of every edit.

    The rows do not depend on the order of the patches. TIES' λ is 1: push the result with another scale for another λ.

    Args:
        patches: made on the same base.
        method: `sum`, `mean`, `ties` or `dare`, as the module says.
        weights: what the rows of each are multiplied with before all else; 1 when None.
        density: the share of a patch's numbers that `ties` and `dare` keep; 0.2 and 0.1, as in their papers, when None.
        seed: for what `dare` drops.

    Returns:
        The patch; `hparams` holds the settings and the names, digests and settings of the parts, `edits` all their edits.

    Raises:
        BaseMismatchError: if the patches were made on different weights.
        PatchError: if a patch is low-rank where the method needs rows.
        RequestError: if there is no patch, no such method, or a setting is out of range.

    Example:
        >>> from mmedit.patches.base import Base
        >>> base, rows = Base("m", None, "llava", 1, 2, 4, ""), torch.zeros(1, 2)
        >>> a, b = (Patch({Site(0): (torch.tensor([unit]), rows + unit)}, {Site(0): rows}, base) for unit in (1, 3))
        >>> merge([a, b]).deltas[Site(0)]
        (tensor([1, 3]), tensor([[1., 1.],
                [3., 3.]]))
    """
    chosen = list(patches)
    weights, density = _settings(chosen, method, weights, density)
    base_rows, digests = common_base(chosen)
    shares = [weight / sum(weights) for weight in weights] if method == "mean" else weights
    parts = [Entry(_thinned(patch, method, density, seed), share) for patch, share in zip(chosen, shares, strict=True)]
    parts.sort(key=lambda part: (part.patch.digest, part.scale))
    combine = _elected if method == "ties" else _summed
    return Patch(
        {site: (units, combine(site, units, _at(site, parts))) for site, (units, _) in base_rows.items()},
        {site: rows for site, (_, rows) in base_rows.items()},
        next((patch.base for patch in chosen if patch.base.weights), chosen[0].base),  # one that tells models apart
        "merge",
        {"method": method, "weights": weights, "density": density, "seed": seed, "parts": list(map(_origin, chosen))},
        tuple(edit for patch in chosen for edit in patch.edits),
        low_rank={site: _factors(site, _at(site, parts)) for site in digests},
        base_digests=digests,
    )


def common_base(patches: Sequence[Patch]) -> tuple[dict[Site, tuple[Tensor, Tensor]], dict[Site, str]]:
    """The weights that several patches were made on.

    Rows of a checkpoint loaded in float32 and in a shorter type are the same where they are once rounded to that type.

    Returns:
        For the row-sparse sites the units and their base rows; for sites where a patch is low-rank the digest of the W_out.

    Raises:
        BaseMismatchError: if there is no such base.
    """
    for patch in patches[1:]:
        for field in ("model_type", "n_layers", "d_model", "d_ffn"):
            got, expected = getattr(patch.base, field), getattr(patches[0].base, field)
            if got != expected:
                raise _mismatch(patch, f"{field} {got}", f"{expected}, as for {patches[0].name}")
    marks = {patch.base.weights.partition(":")[0]: patch for patch in patches if patch.base.weights}
    for patch in patches:
        same_type = marks.get(patch.base.weights.partition(":")[0], patch)
        if same_type.base.weights != patch.base.weights:
            raise _mismatch(patch, "another unembedding or final norm", f"those of the model of {same_type.name}")
    digests: dict[Site, str] = {}
    for patch in patches:
        for site, digest in patch.base_digests.items():
            if digests.setdefault(site, digest) != digest:
                raise _mismatch(patch, f"another W_out at {site}", "that of the other patches")
    shorter = {rows.dtype for patch in patches for rows in patch.base_rows.values()} - {torch.float32}
    if len(shorter) > 1:
        raise _mismatch(patches[0], " and ".join(sorted(map(str, shorter))), "patches made in one type, or in float32")
    sites = sorted({site for patch in patches for site in patch.deltas} - set(digests))
    return {site: _rows_at(site, patches, next(iter(shorter), torch.float32)) for site in sites}, digests


def _rows_at(site: Site, patches: Sequence[Patch], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The units that some patches edit at a site, and the rows that all of them were made on."""
    here = [(patch, patch.units(site), patch.base_rows[site].to(dtype)) for patch in patches if site in patch.deltas]
    units = torch.tensor(sorted({unit for _, edited, _ in here for unit in edited.tolist()}))
    rows = torch.empty(len(units), patches[0].base.d_model, dtype=dtype)
    for _, edited, theirs in here:
        rows[torch.searchsorted(units, edited)] = theirs
    for patch, edited, theirs in here:
        other = (theirs != rows[torch.searchsorted(units, edited)]).any(1)
        if bool(other.any()):
            neuron = Neuron(site.layer, int(edited[other][0]), site.expert)
            raise _mismatch(patch, f"another row at {neuron}", "that of the other patches")
    return units, rows


def _mismatch(patch: Patch, got: str, expected: str) -> BaseMismatchError:
    return BaseMismatchError(
        "the patches were made on different weights", where=f"{patch.name} (on {patch.base.model})", got=got,
        expected=expected, do="make the edits on one model, of one revision and type",
    )  # fmt: skip


def _settings(
    patches: Sequence[Patch], method: str, weights: Sequence[float] | None, density: float | None
) -> tuple[list[float], float | None]:
    """Weights and density, checked and filled in."""
    if not patches:
        raise RequestError("nothing to merge", got="no patches", expected="one patch or more")
    if method not in DENSITIES:
        raise RequestError("no such method of merging", got=repr(method), expected=", ".join(DENSITIES))
    filled = [1.0] * len(patches) if weights is None else [float(weight) for weight in weights]
    if len(filled) != len(patches) or not all(map(math.isfinite, filled)):
        raise RequestError("one finite weight for each patch", got=filled, expected=f"{len(patches)} numbers")
    if method == "mean" and sum(filled) == 0:
        raise RequestError("the weights of a mean add up to 0", got=filled)
    default = DENSITIES[method]
    if density is not None and (default is None or not 0 < density <= 1):
        raise RequestError(f"no density for {method}", got=density, expected="above 0, at most 1, with ties or dare")
    return filled, default if density is None else density


def _origin(patch: Patch) -> dict[str, object]:
    return {"name": patch.name, "digest": patch.digest, "editor": patch.editor, "hparams": dict(patch.hparams)}


def _at(site: Site, parts: Iterable[Entry]) -> list[Entry]:
    return [part for part in parts if site in part.patch.deltas or site in part.patch.low_rank]


def _thinned(patch: Patch, method: str, density: float | None, seed: int) -> Patch:
    """The numbers of a patch that a method keeps: the largest (TIES), or some at random, rescaled (DARE)."""
    if density is None:
        return patch
    if patch.low_rank:
        raise PatchError(
            f"{method} needs rows, and this patch is low-rank", where=patch.name,
            got=", ".join(map(str, patch.low_rank)), do="merge with sum or mean",
        )  # fmt: skip
    if method == "ties":
        sizes = torch.cat([rows.abs().flatten() for _, rows in patch.deltas.values()])
        least = sizes.kthvalue(len(sizes) - max(1, round(density * len(sizes))) + 1).values
        thin = {site: torch.where(rows.abs() >= least, rows, 0) for site, (_, rows) in patch.deltas.items()}
    else:
        number = int.from_bytes(hashlib.sha256(f"{seed}:{patch.digest}".encode()).digest()[:7], "big")
        draw = torch.Generator().manual_seed(number)  # the patch's own: the order of patches does not matter
        thin = {
            site: torch.where(torch.rand(rows.shape, generator=draw) < density, rows / density, 0)
            for site, (_, rows) in patch.deltas.items()
        }
    return replace(patch, deltas={site: (units, thin[site]) for site, (units, _) in patch.deltas.items()})


def _summed(site: Site, units: Tensor, parts: Sequence[Entry]) -> Tensor:
    """Σ w·Δ, with the bits of a stack."""
    if len(parts) == 1:
        return parts[0].scale * parts[0].patch.rows(site)  # as it is, down to −0.0
    return edited_rows(site, units, torch.zeros(len(units), parts[0].patch.base.d_model), parts)


def _elected(site: Site, units: Tensor, parts: Sequence[Entry]) -> Tensor:
    """Of each number, the mean of the w·Δ that have the sign of their sum (TIES, equations in its section 4)."""
    total = torch.zeros(len(units), parts[0].patch.base.d_model)
    sign, voters = edited_rows(site, units, total, parts).sign(), torch.zeros_like(total)
    for part in parts:
        edited, rows = part.patch.deltas[site]
        place, vote = torch.searchsorted(units, edited), part.scale * rows
        agrees = vote.sign() == sign[place]
        total[place] += torch.where(agrees, vote, 0)
        voters[place] += agrees
    return total / voters.clamp(min=1)


def _factors(site: Site, parts: Sequence[Entry]) -> Factors:
    """Σ w·Δ where a part is low-rank: the factors side by side, those of rows being unit vectors and the rows."""
    d_ffn = next(len(part.patch.low_rank[site][0]) for part in parts if site in part.patch.low_rank)
    factors = [
        part.patch.low_rank[site]
        if site in part.patch.low_rank
        else ((torch.arange(d_ffn)[:, None] == part.patch.units(site)).float(), part.patch.rows(site))
        for part in parts
    ]
    lefts = [part.scale * left for part, (left, _) in zip(parts, factors, strict=True)]
    return torch.cat(lefts, 1), torch.cat([right for _, right in factors])
