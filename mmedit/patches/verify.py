"""What a stranger wants to know of a patch file before using it: is it sound, does it fit, and what does it do?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmedit.errors import MmeditError, PatchError
from mmedit.models.architecture import architecture_of
from mmedit.neuron import Neuron
from mmedit.patches.format import MAX_FILE, MAX_HEADER, VERSION
from mmedit.patches.live import Stack
from mmedit.patches.patch import Patch

N_TOKENS, N_NEURONS = 3, 10  # told of each neuron, and neurons told of


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: of the check.
        ok: whether it went well; None if it could not be made.
        detail: what was found.
    """

    name: str
    ok: bool | None
    detail: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAILED", None: "unknown"}[self.ok]
        return f"{mark:<8} {self.name}: " + self.detail.replace("\n", "\n         ")


@dataclass(frozen=True)
class Verification:
    """What was found out about a patch file.

    Args:
        path: of the file.
        checks: what was looked at.
        words: what the patch does.
    """

    path: Path
    checks: tuple[Check, ...]
    words: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "checks": [asdict(c) for c in self.checks],
            "words": list(self.words),
        }

    def __str__(self) -> str:
        verdict = "all is well" if self.ok else "do not use this file"
        return "\n".join([*self.words, *map(str, self.checks), f"{self.path}: {verdict}"])


def verify(path: str | Path, vlm: Any = None) -> Verification:
    """Look at a patch file in every way in which it can be wrong.

    Args:
        path: of the file.
        vlm: the model that it shall be used on (a VisionLanguageModel or a bare transformers model); without one the base
            is not compared.

    Returns:
        The checks, and in words what the patch does. A file that cannot be read is a failed check, not an error.

    Example:
        >>> found = verify("no-such-patch.safetensors")
        >>> found.ok, found.checks[0].name
        (False, 'format')
    """
    path = Path(path)
    try:
        patch = Patch.load(path)
    except PatchError as error:
        return Verification(path, (Check("format", False, str(error)),), ("This cannot be read as a patch.",))
    checks = (*_content(patch, path), _names_what_it_changes(patch), _base(patch, vlm))
    fits = vlm is not None and checks[-1].ok is True
    return Verification(path, checks, (*_in_words(patch), *(_writes(patch, vlm) if fits else ())))


def _content(patch: Patch, path: Path) -> Iterator[Check]:
    """What `Patch.load` has seen to, and whether the patch does anything."""
    base, size = patch.base, path.stat().st_size
    yield Check("format", True, f"mmedit-patch, version {VERSION}: tensors and JSON, nothing that could run")
    yield Check("size", True, f"{size:,} bytes, below {MAX_FILE:,}; header below {MAX_HEADER:,}")
    yield Check(
        "shapes", True, f"fit {base.n_layers} layers, d_model {base.d_model}, d_ffn {base.d_ffn}; {extent(patch)}"
    )
    yield Check("numbers", True, "all are finite")
    parts = {site: patch.low_rank.get(site) or (patch.rows(site),) for site in patch.sites}
    still = [str(site) for site, factors in parts.items() if not all(bool(factor.any()) for factor in factors)]
    yield Check(
        "effect", not still, f"adds nothing but zeros to {', '.join(still)}" if still else "every site is changed"
    )


def extent(patch: Patch) -> str:
    """How much a patch changes, in words."""
    rows = [f"{len(patch.neurons)} rows of {len(patch.deltas)} W_out"] if patch.deltas else []
    return " and ".join(rows + [f"all of {site} by rank {len(right)}" for site, (_, right) in patch.low_rank.items()])


def _names_what_it_changes(patch: Patch) -> Check:
    """Are the changed neurons those that the metadata speak of?"""
    lists = [edit.get("neurons") for edit in patch.edits]
    if patch.low_rank or not lists or not all(isinstance(names, list) for names in lists):
        return Check("neurons", None, "the metadata do not list the neurons of every edit")
    named = {str(name) for names in lists for name in names or []}
    hidden = [str(neuron) for neuron in patch.neurons if str(neuron) not in named]
    found = (
        f"it also changes {', '.join(hidden[:N_NEURONS])}"
        if hidden
        else "changed are only those that the metadata name"
    )
    return Check("neurons", not hidden, found)


def _base(patch: Patch, vlm: Any) -> Check:
    """Does the model have the rows that the patch was made on?"""
    if vlm is None:
        return Check(
            "base", None, f"not compared; made on {patch.base.model}, revision {patch.base.revision}: give that model"
        )
    try:
        Stack.of(vlm).check(patch)
    except MmeditError as error:
        return Check("base", False, str(error))
    return Check("base", True, "the model's rows are those that the patch was made on")


def _in_words(patch: Patch) -> Iterator[str]:
    """What the patch claims to do, and how much it changes."""
    for edit in patch.edits:
        yield f"Claims to make {patch.base.model} say {edit['target']!r} where it says {edit['source']!r}."
    yield f"Changes {extent(patch)}; made {patch.created} by {patch.editor} of mmedit {patch.library_version}."
    for neuron, delta, base in _strongest(patch):
        yield f"{neuron}: Δw of length {float(delta.norm()):.3g} is added to a row of length {float(base.norm()):.3g}."


def _writes(patch: Patch, vlm: Any) -> Iterator[str]:
    """Which tokens the added rows write, read through the model's own unembedding."""
    tokenizer = getattr(vlm, "tokenizer", None)
    w_u = architecture_of(vlm).w_u
    for neuron, delta, _ in _strongest(patch):
        logits = (w_u @ delta.to(w_u.device, w_u.dtype)).float()
        most, least = (logits.topk(N_TOKENS, largest=up).indices.tolist() for up in (True, False))
        shown = [[tokenizer.decode([t]) if tokenizer else t for t in tokens] for tokens in (most, least)]
        up, down = (" ".join(map(repr, tokens)) for tokens in shown)
        yield f"{neuron}: while active it writes more {up} and less {down} than before (the other way round below 0)."


def _strongest(patch: Patch) -> list[tuple[Neuron, Tensor, Tensor]]:
    """The neurons whose rows are changed most, with Δw and w."""
    found = [
        (Neuron(site.layer, unit, site.expert), delta, base.float())
        for site, (units, rows) in patch.deltas.items()
        for unit, delta, base in zip(units.tolist(), rows, patch.base_rows[site], strict=True)
    ]
    return sorted(found, key=lambda item: -float(torch.linalg.vector_norm(item[1])))[:N_NEURONS]
