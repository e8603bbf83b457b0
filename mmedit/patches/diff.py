"""The difference of two checkpoints as a patch, read a stretch at a time."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from mmedit.errors import BaseMismatchError, PatchError
from mmedit.models.checkpoint_files import Stored
from mmedit.neuron import Site
from mmedit.patches.base import Delta
from mmedit.patches.checkpoint import Checkpoint, StoredWOut, open_checkpoint
from mmedit.patches.format import MAX_FILE
from mmedit.patches.patch import Patch
from mmedit.patches.rows import BLOCK

STRETCH = 2**24  # bytes of a tensor that are read at a time
N_TOLD = 8  # tensors named in a message


def diff(
    base: str | Path, edited: str | Path, *, ignore: Iterable[str] = (), revision: str | None = None
) -> Patch:  # fmt: skip
    """The rows of W_out in which two checkpoints differ, as a patch on the first.

    Numbers are compared, not bytes, so the checkpoints may be stored in different types, files and generations of names.
    Put on `base`, the patch gives the rows of `edited`: exactly if those were made by a patch, else as nearly as float32
    rows can (a number that an edit made far smaller than it was keeps the rounding of what it was).

    Args:
        base: a shipped name, a local folder, or a Hub id that is in the local cache.
        edited: the same model with some rows of W_out edited; likewise.
        ignore: patterns (`*`, `?`) of names in memory of other tensors that may differ; `["*"]` for all of them.
        revision: of `base`, on the Hub.

    Returns:
        The patch.

    Raises:
        PatchError: if other tensors differ as well, nothing differs, or so many rows that it is no edit but a fine-tune.
        BaseMismatchError: if the checkpoints are of different models.
        ModelError: if a checkpoint is missing, damaged, unsafe or quantised.

    Example:
        >>> import mmedit
        >>> mmedit.diff("iconworld-llava", "iconworld-llava")
        Traceback (most recent call last):
        mmedit.errors.PatchError: the checkpoints have the same weights
        ...
    """
    ours, theirs, patterns = open_checkpoint(base, revision), open_checkpoint(edited), tuple(ignore)
    if isinstance(ignore, str):
        patterns = (ignore,)
    _check_same_model(ours, theirs)
    others = [name for name in _other_differences(ours, theirs) if not any(fnmatchcase(name, p) for p in patterns)]
    if others:
        raise PatchError(
            f"the checkpoints differ in {len(others)} tensors that are no W_out", where=edited,
            got=", ".join(others[:N_TOLD]) + (", …" if len(others) > N_TOLD else ""), expected="only rows of W_out",
            do="if these may be left as they are in the base, ignore them (ignore=[…], --ignore)",
        )  # fmt: skip
    deltas, base_rows = _edited_rows(ours, theirs)
    if not deltas:
        raise PatchError("the checkpoints have the same weights", where=edited, got="no row of W_out that differs from the base's")  # fmt: skip
    return Patch(deltas, base_rows, ours.base, "diff", {"edited": str(edited), "ignored": list(patterns)})


def _edited_rows(ours: Checkpoint, theirs: Checkpoint) -> tuple[dict[Site, Delta], dict[Site, Tensor]]:
    """For each site in which two checkpoints differ the units and deltas, and the base rows."""
    deltas: dict[Site, Delta] = {}
    base_rows: dict[Site, Tensor] = {}
    seen: set[str] = set()  # W_outs of tied layers are one tensor, which is told of once
    n_bytes = 0
    for site in sorted(ours.architecture.w_outs):
        base, edited = ours.w_out(site), theirs.w_out(site)
        if base.stored.name not in seen:
            units, rows, after = _differing(base, edited)
            n_bytes += rows.nbytes + rows.numel() * torch.float32.itemsize
            if n_bytes > MAX_FILE:
                raise PatchError("too many rows differ for a patch", where=str(site), got=f"more than {n_bytes / 1e9:.1f} GB", expected="an edit, not a fine-tune")  # fmt: skip
            if len(units):
                deltas[site], base_rows[site] = (units, after.float() - rows.float()), rows
            seen.add(base.stored.name)
    return deltas, base_rows


def _differing(base: StoredWOut, edited: StoredWOut) -> tuple[Tensor, Tensor, Tensor]:
    """The units whose rows differ, their rows in the base, and their rows in the edited checkpoint."""
    units, before, after = [], [], []
    for start in range(0, base.d_ffn, BLOCK):
        block = slice(start, min(start + BLOCK, base.d_ffn))
        ours, theirs = base.read(block), edited.read(block)
        places = (ours.float() != theirs.float()).any(1).nonzero().flatten()
        units.append(places + start)
        before.append(ours[places])
        after.append(theirs[places])
    return torch.cat(units), torch.cat(before), torch.cat(after)


def _check_same_model(ours: Checkpoint, theirs: Checkpoint) -> None:
    told = [
        (c.architecture.model_type, {site: (w.d_ffn, w.d_model) for site, w in c.architecture.w_outs.items()})
        for c in (ours, theirs)
    ]
    if told[0] != told[1]:
        a, b = (c.base for c in (ours, theirs))
        raise BaseMismatchError(
            "checkpoints of two different models", where=theirs.folder,
            got=f"{b.model_type}, {b.n_layers} layers, d_model {b.d_model}, d_ffn {b.d_ffn}",
            expected=f"{a.model_type}, {a.n_layers} layers, d_model {a.d_model}, d_ffn {a.d_ffn}",
        )  # fmt: skip


def _other_differences(ours: Checkpoint, theirs: Checkpoint) -> list[str]:
    """The names of tensors besides W_out that differ, or that only one checkpoint holds."""
    a, b = (_by_name(checkpoint) for checkpoint in (ours, theirs))
    return sorted(name for name in {*a, *b} if name not in a or name not in b or not _same(a[name], b[name]))


def _by_name(checkpoint: Checkpoint) -> dict[str, Stored]:
    """The tensors besides W_out, by their names in memory, or on disk where loading puts them together."""
    w_outs = {checkpoint.w_out(site).stored.name for site in checkpoint.architecture.w_outs}
    names = {disk: name if plain else disk for disk, (name, plain) in checkpoint.names.items() if disk not in w_outs}
    return {name: checkpoint.tensors[disk] for disk, name in names.items()}


def _same(a: Stored, b: Stored) -> bool:
    if a.shape != b.shape:
        return False
    step = max(1, STRETCH // max(1, a.n_columns * max(a.dtype.itemsize, b.dtype.itemsize)))
    for start in range(0, a.n_rows, step):
        rows = slice(start, min(start + step, a.n_rows))
        left, right = a.read(rows), b.read(rows)
        alike = left.dtype == right.dtype and torch.equal(left.view(torch.uint8), right.view(torch.uint8))
        if not alike and not torch.equal(left.double(), right.double()):
            return False
    return True
