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
from mmedit.neuron import Site
from mmedit.patches.bin_files import rewrite_bin, rewrite_index, safetensors_name
from mmedit.patches.checkpoint import Checkpoint, StoredWOut, open_checkpoint, spans
from mmedit.patches.checkpoint_files import stored_tensors
from mmedit.patches.new_folder import Link, check_free, new_folder, place
from mmedit.patches.patch import Patch
from mmedit.patches.rows import Entry, check_model, check_rows, edited_rows, units_of


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
    for entry in entries:
        check_model(entry.patch, checkpoint.architecture)
        for site in entry.patch.sites:
            w_out, parts = checkpoint.w_out(site), spans(entry.patch.units(site))
            check_rows(entry.patch, site, (w_out.read(span)[places] for span, places in parts))
    units = {site: torch.tensor(numbers) for site, numbers in units_of(entries).items()}
    rows = _rows(checkpoint, units)
    with new_folder(output) as part:
        _fill(part, checkpoint, {checkpoint.w_out(site).stored.file for site in units}, link)
        for site, numbers in units.items():
            _edit(part, checkpoint.w_out(site), site, numbers, entries)
    return Baked(Path(output), rows, tuple(str(path.relative_to(checkpoint.folder)) for path in checkpoint.left_out))


def _rows(checkpoint: Checkpoint, units: dict[Site, Tensor]) -> dict[str, int]:
    """How many rows of each tensor change; a tensor that tied layers share cannot be told whose rows it takes."""
    rows: dict[str, int] = {}
    for site, numbers in units.items():
        name = checkpoint.w_out(site).stored.name
        if name in rows:
            raise ModelError("two edited layers share one W_out", where=f"{site}, {name}", do="load the model, apply the patch and save it with save_pretrained")  # fmt: skip
        rows[name] = len(numbers)
    return rows


def _fill(part: Path, checkpoint: Checkpoint, changing: set[Path], link: Link) -> None:
    """Put every file of the checkpoint into the new folder, unedited."""
    copy: Link = "copy" if link == "hard" else link  # a file that changes, or is small, is never a second name
    for source in checkpoint.others:
        target = part / source.relative_to(checkpoint.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        place(source, target, copy)
    for source in tqdm(checkpoint.shards, desc="weight files", disable=None, leave=False):
        if source.suffix == ".bin":
            rewrite_bin(source, part / safetensors_name(source.name))
        else:
            place(source, part / source.name, copy if source in changing else link)
    if checkpoint.index and checkpoint.index.name.startswith("pytorch_"):
        rewrite_index(checkpoint.index, part / safetensors_name(checkpoint.index.name))
    elif checkpoint.index:
        place(checkpoint.index, part / checkpoint.index.name, copy)


def _edit(part: Path, source: StoredWOut, site: Site, units: Tensor, entries: Sequence[Entry]) -> None:
    """Write the edited rows of a site into the copy of its file, and read them back."""
    name = source.stored.file.name
    file = part / (safetensors_name(name) if source.stored.file.suffix == ".bin" else name)
    target = StoredWOut(stored_tensors(file)[source.stored.name], source.by_unit)
    for span, places in spans(units):
        rows = source.read(span)
        rows[places] = edited_rows(site, places + span.start, rows[places], entries)
        if not bool(torch.isfinite(rows[places]).all()):
            raise PatchError("the edited rows are too large for the file's type", where=f"{site}, {source.stored.name}", got=source.stored.dtype, do="choose smaller scales, or bake a float32 checkpoint")  # fmt: skip
        target.write(span, rows)
        if not torch.equal(_bits(target.read(span)), _bits(rows)):
            raise OutputError("what was written does not read back", where=file, got=f"other rows of {site}", do="check the disk")  # fmt: skip


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
