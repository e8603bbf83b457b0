"""A checkpoint on disk: which tensor of which file is which W_out of the model.

The model is built from its configuration without weights, and the names on disk are turned into the model's own by
transformers' rules for loading, so that every family and every generation of names is found that transformers loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from mmedit.errors import ModelError
from mmedit.models.architecture import Architecture
from mmedit.models.checkpoint_files import Stored, inside, other_files, stored_tensors, weight_files
from mmedit.models.llava_v1 import name_in_memory, original_config, skeleton_config
from mmedit.models.loading import resolve_name
from mmedit.neuron import Site
from mmedit.patches.base import Base
from mmedit.patches.rows import BLOCK

STRETCH = 2**21  # bytes of a W_out that are rewritten at a time; few, so that the same memory serves for all


@dataclass(frozen=True)
class StoredWOut:
    """A W_out in a weight file, seen as `[d_ffn, d_model]`.

    Args:
        stored: the tensor.
        by_unit: whether the numbers of a unit lie side by side, or W_out is stored transposed.
    """

    stored: Stored
    by_unit: bool

    @property
    def d_ffn(self) -> int:
        return self.stored.n_rows if self.by_unit else self.stored.n_columns

    def read(self, units: slice) -> Tensor:
        """Rows `[k, d_model]`, copied, in the file's type."""
        if self.by_unit:
            return self.stored.read(units)
        return self.stored.read(slice(0, self.stored.n_rows), units).T

    def rows(self, units: Tensor) -> Tensor:
        """The rows `[k, d_model]` of some units, sorted `[k]`; copied, in the file's type."""
        if self.by_unit:
            return torch.cat([self.stored.read(span)[places] for span, places in spans(units)])
        return self.stored.read(slice(0, self.stored.n_rows), units).T

    def write_to(self, target: Stored, units: Tensor, rows: Tensor) -> None:
        """Write this W_out, with other rows for some units, over that of another file; a stretch at a time."""
        for part in self.stored.stretches(STRETCH):
            block = self.stored.read(part)
            if self.by_unit:
                ours = (units >= part.start) & (units < part.stop)
                block[units[ours] - part.start] = rows[ours]
            else:
                block[:, units] = rows[:, part].T
            target.write(part, block)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint folder, looked into but not loaded.

    Args:
        name: what was asked for.
        revision: of the Hub repository, if any.
        folder: where it is.
        model: the model that it is of, without weights.
        shards: its weight files.
        index: their index, if there is one.
        others: its other files.
        left_out: weights in other formats beside it.
        tensors: what the weight files hold, by name on disk.
    """

    name: str
    revision: str | None
    folder: Path
    model: Any
    shards: tuple[Path, ...]
    index: Path | None
    others: tuple[Path, ...]
    left_out: tuple[Path, ...]
    tensors: dict[str, Stored]

    @cached_property
    def architecture(self) -> Architecture:
        return Architecture(self.model)

    @cached_property
    def base(self) -> Base:
        """The description that a patch made on this checkpoint carries."""
        return replace(Base.of(self.model), model=self.name, revision=self.revision)

    @cached_property
    def names(self) -> dict[str, tuple[str, bool]]:
        """For each name on disk the name in memory, and whether the tensor is loaded as it is."""
        if original_config(str(self.folder)) is not None:
            return {disk: (name_in_memory(disk), True) for disk in self.tensors}
        return names_in_memory(self.model, self.tensors)

    def w_out(self, site: Site) -> StoredWOut:
        """Where a W_out is.

        Raises:
            ModelError: if it is not stored as one unquantised tensor.
        """
        w_out = self.architecture.w_out(site)
        aliases = {name for name, p in self.model.named_parameters(remove_duplicate=False) if p is w_out.weight}
        found = [disk for disk, (name, _) in self.names.items() if name in aliases]
        if len(found) != 1 or not self.names[found[0]][1] or len(self.tensors[found[0]].shape) != 2:
            got = "nothing of that name" if not found else f"{', '.join(found)[:200]}, put together in loading"
            raise ModelError(
                f"the W_out of {site} is not stored as one tensor", where=self.folder, got=got,
                expected=f"{w_out.name} in one piece, under any name that transformers knows",
                do="load the model, apply the patch and save it with save_pretrained",
            )  # fmt: skip
        stored = self.tensors[found[0]]
        if stored.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ModelError(
                f"the W_out of {site} is quantised", where=f"{stored.file}, {stored.name}", got=stored.dtype,
                expected="float32, bfloat16 or float16", do="use the unquantised checkpoint",
            )  # fmt: skip
        if stored.shape != tuple(w_out.weight.shape):
            raise ModelError(
                "a tensor of another shape than the configuration says", where=f"{stored.file}, {stored.name}",
                got=list(stored.shape), expected=list(w_out.weight.shape), do="get the checkpoint again",
            )  # fmt: skip
        return StoredWOut(stored, by_unit=w_out.matrix.stride(1) == 1)


def open_checkpoint(name: str | Path, revision: str | None = None) -> Checkpoint:
    """Look into a checkpoint.

    Args:
        name: a shipped name, a local folder, or a Hub id that is in the local cache.
        revision: branch, tag or commit on the Hub.

    Returns:
        What it holds; no weight has been read.

    Raises:
        ModelError: if there is no such checkpoint, or it is damaged, incomplete, unsafe or of no known kind.

    Example:
        >>> checkpoint = open_checkpoint("iconworld-llava")
        >>> checkpoint.w_out(Site(0)).stored.name
        'language_model.model.layers.0.mlp.down_proj.weight'
    """
    folder = _folder(str(name), revision)
    shards, index = weight_files(folder)
    others, left_out = other_files(folder, [*shards, *([index] if index else [])])
    original = original_config(str(folder))
    if original:  # its tower may lie in the folder
        tower = [path for path in left_out if folder / str(original.get("mm_vision_tower")) in path.parents]
        others, left_out = [*others, *tower], [path for path in left_out if path not in tower]
    model = _skeleton(folder)
    tensors: dict[str, Stored] = {}
    for shard in shards:
        for stored in stored_tensors(shard).values():
            if stored.name in tensors:
                raise ModelError("a tensor that two shards hold", where=shard, got=stored.name, do="get the checkpoint again")  # fmt: skip
            tensors[stored.name] = stored
    return Checkpoint(str(name), revision, folder, model, tuple(shards), index, tuple(others), tuple(left_out), tensors)


def spans(units: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Cut sorted units into parts of one block each: the stretch that a part spans, and its units counted from there."""
    for block in sorted(set((units // BLOCK).tolist())):
        part = units[units // BLOCK == block]
        first, last = int(part[0]), int(part[-1])
        yield slice(first, last + 1), part - first


def _folder(name: str, revision: str | None) -> Path:
    """The folder of a shipped name, a local folder or a Hub id."""
    found = resolve_name(name)
    if Path(found).is_dir():
        return Path(found).resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(found, revision=revision, local_files_only=True)).resolve()
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            "this checkpoint is not in the local cache", where=name, got=next(iter(str(error).splitlines()), ""),
            do=f"download it first: hf download {name}",
        ) from error  # fmt: skip


def _skeleton(folder: Path) -> Any:
    """The model without weights."""
    inside(folder / "config.json", folder)
    original = original_config(str(folder))
    try:
        config: Any = skeleton_config(original, folder) if original else AutoConfig.from_pretrained(folder, trust_remote_code=False)  # fmt: skip
        if type(config) not in AutoModelForImageTextToText._model_mapping:
            raise ModelError("not a vision-language model", where=folder, got=f"model_type {config.model_type!r}", expected="an image-text-to-text model of transformers")  # fmt: skip
        if getattr(config, "transformers_weights", None):
            raise ModelError("a checkpoint whose configuration names its weight files", where=folder / "config.json", got=config.transformers_weights, do="remove transformers_weights from it")  # fmt: skip
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError) as error:
        got = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise ModelError("cannot build this model from its configuration", where=folder, got=got) from error


def names_in_memory(model: Any, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """For each name on disk the name in memory, and whether the tensor is loaded as it is, by transformers' rules for loading."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules, ours, prefix = get_model_conversion_mapping(model), model.state_dict(), model.base_model_prefix
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    found = {}
    for disk in names:
        name, converter = rename_source_key(disk, renamings, converters, prefix, ours)
        if name not in ours and disk in ours:  # as in loading: a name that is right already stays
            name, converter = rename_source_key(disk, [], [], prefix, ours)
        found[disk] = name, converter is None
    return found
