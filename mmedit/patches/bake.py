"""Baking: a checkpoint folder and patches become a new checkpoint folder.

What a patch does not touch is copied without being looked at; in the rest only the edited rows are read and written. So
baking costs about what copying the folder costs, and no memory to speak of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

from mmedit.errors import ModelError, OutputError, PatchError, RequestError
from mmedit.models.checkpoint_files import stored_tensors
from mmedit.neuron import Site
from mmedit.patches.bin_files import rewrite_bin, rewrite_index, safetensors_name
from mmedit.patches.checkpoint import Checkpoint, StoredWOut, open_checkpoint
from mmedit.patches.new_folder import check_free, new_folder
from mmedit.patches.patch import Patch
from mmedit.patches.placing import Link, place
from mmedit.patches.rows import BLOCK, Entry, check_model, check_rows, edited_rows, units_of


@dataclass(frozen=True)
class Baked:
    """What `bake` has written.

    Args:
        folder: the new checkpoint.
        rows: for each changed tensor, by its name on disk, how many neurons' rows were written.
        left_out: weights in other formats that the source folder holds beside those that transformers loads; they are
            not edited, so they are not copied.
    """

    folder: Path
    rows: dict[str, int]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """The units of one W_out that patches edit."""

    site: Site
    w_out: StoredWOut
    units: Tensor


def bake(
    model: str | Path, patches: Sequence[Patch], output: str | Path, *, scales: Sequence[float] | None = None,
    link: Link = "copy", revision: str | None = None,
) -> Baked:  # fmt: skip
    """Write a checkpoint with patches in it, as a new folder that appears whole or not at all.

    Shard names, index, configuration, processor and tokenizer stay as they are; `.bin` weights become safetensors. The
    edited rows are what `patch.apply` makes of the loaded model, bit for bit, if it is loaded in the type of the file.
    If the file's type is narrower than the one that the model is loaded in, the sum is rounded to the file's type, so
    that the baked rows are those of the live model rounded once.

    Args:
        model: a shipped name, a local folder, or a Hub id that is in the local cache.
        patches: what to put in; their order does not matter.
        output: the folder to write: a new one, or an empty one; never inside the source.
        scales: what each patch's rows are multiplied with; 1 when None.
        link: for the files that do not change: `copy`, `reflink` (share blocks, where the file system can), or `hard`
            (unchanged weight files become second names of the source's; never write into them).
        revision: branch, tag or commit on the Hub.

    Returns:
        What was written.

    Raises:
        BaseMismatchError: if the checkpoint is not the one that a patch was made on.
        ModelError: if the checkpoint is missing, damaged, unsafe or quantised.
        OutputError: if the folder exists or cannot be written, or the disk is full.
        PatchError: if there are no patches, one is given twice, or the file's type cannot hold the edited rows.
        RequestError: if there is not one finite scale for each patch.

    Example:
        >>> import tempfile, mmedit
        >>> from mmedit.patches.checkpoint import open_checkpoint
        >>> base, site, units = open_checkpoint("iconworld-llava"), mmedit.Site(2), torch.tensor([7])
        >>> rows = base.w_out(site).read(slice(7, 8))
        >>> patch = mmedit.Patch({site: (units, torch.ones(1, 128))}, {site: rows}, base.base)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mmedit.bake("iconworld-llava", [patch], f"{folder}/edited").rows
        {'language_model.model.layers.2.mlp.down_proj.weight': 1}
    """
    entries = _entries(patches, scales)
    if link not in get_args(Link):
        raise OutputError("no such kind of link", got=repr(link), expected=f"one of {', '.join(get_args(Link))}")
    check_free(output)
    checkpoint = open_checkpoint(model, revision)
    _check_outside(Path(output), checkpoint.folder)
    changes = _changes(checkpoint, entries)
    with new_folder(output) as part:
        _copy_others(part, checkpoint, link)
        for shard in tqdm(checkpoint.shards, desc="weight files", disable=None, leave=False):
            ours = [change for change in changes if change.w_out.stored.file == shard]
            file = _copy_shard(part, shard, ours, link)
            for change in ours:
                _edit(file, change, entries)
    rows = {change.w_out.stored.name: len(change.units) for change in changes}
    return Baked(Path(output), rows, tuple(str(path.relative_to(checkpoint.folder)) for path in checkpoint.left_out))


def _changes(checkpoint: Checkpoint, entries: Sequence[Entry]) -> list[Change]:
    """What the patches change, after a look at whether the checkpoint is the one that they were made on."""
    for entry in entries:
        check_model(entry.patch, checkpoint.architecture)
        for site in entry.patch.sites:
            w_out, units = checkpoint.w_out(site), entry.patch.units(site)
            check_rows(entry.patch, site, map(w_out.rows, torch.split(units, BLOCK)))
    changes = [Change(s, checkpoint.w_out(s), torch.tensor(units)) for s, units in units_of(entries).items()]
    names = [change.w_out.stored.name for change in changes]
    twice = {name for name in names if names.count(name) > 1}
    if twice:  # tied layers; `apply` adds up what is meant for each
        raise ModelError("edited layers that share one W_out", where=", ".join(sorted(twice)), do="load the model, apply the patches and save it with save_pretrained")  # fmt: skip
    return changes


def _copy_others(part: Path, checkpoint: Checkpoint, link: Link) -> None:
    """Put all but the weights into the new folder; these files are small, so none becomes a second name."""
    copy: Link = "copy" if link == "hard" else link
    for source in checkpoint.others:
        target = part / source.relative_to(checkpoint.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        place(source, target, copy)
    if checkpoint.index and checkpoint.index.name.startswith("pytorch_"):
        rewrite_index(checkpoint.index, part / safetensors_name(checkpoint.index.name))
    elif checkpoint.index:
        place(checkpoint.index, part / checkpoint.index.name, copy)


def _copy_shard(part: Path, shard: Path, changes: Sequence[Change], link: Link) -> Path:
    """Put a weight file into the new folder as safetensors, ready to be edited."""
    if shard.suffix == ".bin":
        rewrite_bin(shard, part / safetensors_name(shard.name))
        return part / safetensors_name(shard.name)
    edited = [change.w_out.stored.extent for change in changes]  # which `_edit` writes
    place(shard, part / shard.name, "copy" if edited and link == "hard" else link, edited)
    return part / shard.name


def _edit(file: Path, change: Change, entries: Sequence[Entry]) -> None:
    """Write an edited W_out over its copy in a file, and read the edited rows back."""
    source, units = change.w_out, change.units
    target = StoredWOut(stored_tensors(file)[source.stored.name], source.by_unit)
    rows = torch.cat([_edited(change, part, entries) for part in torch.split(units, BLOCK)])
    source.write_to(target.stored, units, rows)
    read = torch.cat([target.rows(part) for part in torch.split(units, BLOCK)])
    if not torch.equal(_bits(read), _bits(rows)):
        raise OutputError("what was written does not read back", where=file, got=f"other rows of {change.site}", do="check the disk")  # fmt: skip


def _edited(change: Change, units: Tensor, entries: Sequence[Entry]) -> Tensor:
    """The edited rows of some units."""
    stored = change.w_out.stored
    rows = edited_rows(change.site, units, change.w_out.rows(units), entries)
    if not bool(torch.isfinite(rows).all()):
        raise PatchError("the edited rows are too large for the file's type", where=f"{change.site}, {stored.name}", got=stored.dtype, do="choose smaller scales, or bake a float32 checkpoint")  # fmt: skip
    return rows


def _bits(rows: Tensor) -> Tensor:
    return rows.contiguous().view(torch.uint8)


def _entries(patches: Sequence[Patch], scales: Sequence[float] | None) -> list[Entry]:
    """The patches with their scales.

    Raises:
        PatchError: if there are none, or one is given twice.
        RequestError: if there is not one finite scale for each patch.
    """
    if isinstance(patches, Patch):
        patches = [patches]
    factors = [1.0] * len(patches) if scales is None else [float(scale) for scale in scales]
    if not patches:
        raise PatchError("no patches to bake", got="an empty list", do="give at least one")
    if len(factors) != len(patches) or not all(map(math.isfinite, factors)):
        raise RequestError("one finite scale for each patch", got=f"{factors} for {len(patches)} patches")
    twice = {p.name for p in patches if sum(q.digest == p.digest for q in patches) > 1}
    if twice:
        raise PatchError("the same patch twice", got=", ".join(twice), do="give it once, with a scale")
    return [Entry(patch, factor) for patch, factor in zip(patches, factors, strict=True)]


def _check_outside(output: Path, source: Path) -> None:
    if output.resolve().is_relative_to(source):
        raise OutputError("the new folder would lie inside the checkpoint", where=output, got=source, do="choose a place outside it")  # fmt: skip
