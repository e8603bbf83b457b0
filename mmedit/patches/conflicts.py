"""What patches do to each other when they are live together, told from the files alone, pair by pair."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from mmedit.errors import PatchError, RequestError
from mmedit.models.architecture import architecture_of
from mmedit.neuron import Neuron
from mmedit.patches.live import Stack
from mmedit.patches.merge import common_base
from mmedit.patches.patch import Patch

RELATIONS = ("contradiction", "chain", "same source", "none")
"""From the gravest: cat→dog with dog→cat; cat→dog with dog→bird; cat→dog with cat→bird; none of these."""
RECORDED = {"neurons", "activations", "source_token_id", "target_token_id"}
"""What an edit must have recorded for a margin to be told."""


@dataclass(frozen=True)
class Conflict:
    """How two patches stand to each other.

    A margin is logit(target) − logit(source) where an edit's source is predicted. Its change is told to first order and,
    as in the paper's contribution score, without the final norm: Σ o·Δw·(v1 − v0), so it is to be read beside the gain,
    not as logits. It covers shared neurons only, those whose activation `o` the edit recorded: what the other patch does
    through other neurons, or by changing activations in later layers, is not in it. Of several edits in a patch, the
    numbers are those of the one that the other patch harms most.

    Args:
        first: name of one patch.
        second: name of the other.
        shared: the neurons that both edit.
        cosine: of their deltas, over the rows of both; 0 if they share no neuron.
        relation: one of `RELATIONS`, from the edits' sources and targets.
        gains: what the first does to its own margin, and the second to its own; None without a model or activations.
        changes: what the second does to the margin of the first, and the first to that of the second.
    """

    first: str
    second: str
    shared: tuple[Neuron, ...]
    cosine: float
    relation: str
    gains: tuple[float | None, float | None] = (None, None)
    changes: tuple[float | None, float | None] = (None, None)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            **asdict(self),
            "shared": list(map(str, self.shared)),
            "gains": list(self.gains),
            "changes": list(self.changes),
        }


def conflicts(patches: Iterable[Patch], vlm: Any = None) -> list[Conflict]:
    """Compare each pair of patches.

    Args:
        patches: made on the same base.
        vlm: the VisionLanguageModel or bare transformers model that they are for, whose unembedding gives the margins;
            without it `gains` and `changes` are unknown.

    Returns:
        One record per pair, in the order of `itertools.combinations`.

    Raises:
        BaseMismatchError: if the patches were made on different weights, or not on the model's.
        PatchError: if what an edit says of its neurons is damaged.
        RequestError: if there are fewer than two patches.

    Example:
        >>> from mmedit.neuron import Site
        >>> from mmedit.patches.base import Base
        >>> base, units, zeros = Base("m", None, "llava", 1, 2, 4, ""), torch.tensor([1]), torch.zeros(1, 2)
        >>> there = Patch({Site(0): (units, torch.tensor([[1.0, 0.0]]))}, {Site(0): zeros}, base, edits=({"source": "cat", "target": "dog"},))
        >>> back = Patch({Site(0): (units, torch.tensor([[-2.0, 0.0]]))}, {Site(0): zeros}, base, edits=({"source": "dog", "target": "cat"},))
        >>> found = conflicts([there, back])[0]
        >>> found.relation, found.cosine, [str(neuron) for neuron in found.shared]
        ('contradiction', -1.0, ['L0.U1'])
    """
    chosen = list(patches)
    if len(chosen) < 2:
        raise RequestError("nothing to compare", got=f"{len(chosen)} patches", expected="two patches or more")
    common_base(chosen)
    for patch in chosen if vlm is not None else ():
        Stack.of(vlm).check(patch)
    return [_compare(a, b, None if vlm is None else architecture_of(vlm).w_u) for a, b in combinations(chosen, 2)]


def table(found: Sequence[Conflict]) -> str:
    """Records as text, one line each."""
    pairs = [f"{c.first} | {c.second}" for c in found]
    width = max(map(len, ["patches", *pairs]))
    lines = [f"{'patches':<{width}}  shared  cosine  relation       margin of first      margin of second"]
    for pair, c in zip(pairs, found, strict=True):
        first, second = map(_margin_text, c.gains, c.changes)
        lines.append(f"{pair:<{width}}  {len(c.shared):>6}  {c.cosine:>6.2f}  {c.relation:<13}  {first:<19}  {second}")
    return "\n".join(lines)


def _margin_text(gain: float | None, change: float | None) -> str:
    return "unknown" if gain is None or change is None else f"{change:+.2f} of {gain:+.2f}"


def _compare(a: Patch, b: Patch, w_u: Tensor | None) -> Conflict:
    shared, dot = [], 0.0
    for site in sorted(set(a.sites) & set(b.sites)):
        ours, theirs = torch.isin(a.units(site), b.units(site)), torch.isin(b.units(site), a.units(site))
        shared += [Neuron(site.layer, unit, site.expert) for unit in a.units(site)[ours].tolist()]
        dot += float((a.rows(site)[ours].double() * b.rows(site)[theirs].double()).sum())
    sizes = _norm(a) * _norm(b)
    gains, changes = zip(_margins(a, b, w_u), _margins(b, a, w_u), strict=True)
    cosine = max(-1.0, min(1.0, dot / sizes)) if sizes else 0.0
    return Conflict(a.name, b.name, tuple(shared), cosine, _relation(a, b), gains, changes)


def _norm(patch: Patch) -> float:
    return math.hypot(*(float(patch.rows(site).double().norm()) for site in patch.sites))


def _relation(a: Patch, b: Patch) -> str:
    """The gravest relation between an edit of one patch and an edit of the other."""
    swaps = ([(edit["source"].casefold(), edit["target"].casefold()) for edit in patch.edits] for patch in (a, b))
    found = {"none"}
    for (source, target), (source_b, target_b) in product(*swaps):
        onward, backward = target == source_b, target_b == source
        found.add("contradiction" if onward and backward else "chain" if onward or backward else "none")
        found.add("same source" if source == source_b else "none")
    return min(found, key=RELATIONS.index)


def _margins(patch: Patch, other: Patch, w_u: Tensor | None) -> tuple[float | None, float | None]:
    """What a patch and another one do to the margin of its edit, or of that of its edits which the other harms most."""
    if w_u is None:
        return None, None
    told = [(_change(e, other, w_u), _change(e, patch, w_u)) for e in patch.edits if e.keys() >= RECORDED]
    change, gain = min(told, default=(None, None))
    return gain, change


def _change(edit: Mapping[str, Any], patch: Patch, w_u: Tensor) -> float:
    """Σ o·Δw·(v1 − v0) over the neurons of an edit that a patch edits."""
    try:
        neurons, activations = list(map(Neuron.parse, edit["neurons"])), list(map(float, edit["activations"]))
        v0, v1 = (w_u[_index(edit[f"{role}_token_id"], len(w_u))].double().cpu() for role in ("source", "target"))
        rows = [_row(patch, neuron) for neuron in neurons]
        terms = [
            o * float(row.double() @ (v1 - v0)) for o, row in zip(activations, rows, strict=True) if row is not None
        ]
        if not all(map(math.isfinite, terms)):
            raise ValueError("an activation that is not finite")
    except (RequestError, TypeError, ValueError, IndexError) as error:
        raise PatchError("an edit with damaged neurons", where=edit["source"], got=str(error)) from error
    return math.fsum(terms)


def _index(token_id: Any, n_vocab: int) -> int:
    if not 0 <= operator.index(token_id) < n_vocab:
        raise IndexError(f"token {token_id}, where the vocabulary has {n_vocab}")
    return int(token_id)


def _row(patch: Patch, neuron: Neuron) -> Tensor | None:
    """What a patch adds to the row of a neuron, if it edits it."""
    if neuron.site in patch.low_rank:
        left, right = patch.low_rank[neuron.site]
        return left[neuron.unit] @ right
    units, rows = patch.deltas.get(neuron.site, (torch.tensor([]), torch.tensor([])))
    return next(iter(rows[units == neuron.unit]), None)
