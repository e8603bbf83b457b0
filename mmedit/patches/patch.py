"""A patch: the rows that an edit adds to W_out, the rows it was made on, and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmedit.errors import PatchError
from mmedit.neuron import Neuron, Site
from mmedit.patches.base import Base, Delta, Factors, check_factors, check_rows_given

if TYPE_CHECKING:
    from mmedit.patches.lora import LoraExport


@dataclass(frozen=True, eq=False)
class Patch:
    """An edit of some rows of W_out.

    Args:
        deltas: for each site the edited units, sorted int64 `[k]`, and the rows to add, float32 `[k, d_model]`.
        base_rows: for each site the rows that the edit was made on, in the model's type `[k, d_model]`.
        base: the model it was made on.
        editor: the method's name.
        hparams: the method's settings.
        low_rank: for sites whose edit is not row-sparse, float32 factors `[d_ffn, r]` and `[r, d_model]` of what to add.
        base_digests: for each of those sites, `matrix_digest` of the W_out that the edit was made on.
        edits: for each concept swap its source, target, token ids, prompt, image digests, neurons and scores.
        evaluation: what was measured of it, if anything.
        created: when, ISO 8601 in UTC.
        library_version: of the mmedit that made it.

    Raises:
        PatchError: if the tensors do not fit each other.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, _, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
        >>> patch = editor.execute(vlm, mmedit.EditRequest(picture, things[0].noun, "kite"))
        >>> with patch.applied(vlm):
        ...     "kite" in vlm.caption(picture)[0]
        True
    """

    deltas: Mapping[Site, Delta]
    base_rows: Mapping[Site, Tensor]
    base: Base
    editor: str = ""
    hparams: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Mapping[str, Any], ...] = ()
    evaluation: Mapping[str, Any] | None = None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    library_version: str = ""
    low_rank: Mapping[Site, Factors] = field(default_factory=dict)
    base_digests: Mapping[Site, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("deltas", "low_rank"):
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))
        if not self.sites or set(self.deltas) != set(self.base_rows) or set(self.low_rank) != set(self.base_digests):
            raise PatchError(
                "a patch changes at least one site and knows the base of each",
                got=f"deltas {_listed(self.deltas)}, base rows {_listed(self.base_rows)}, low-rank {_listed(self.low_rank)}, base digests {_listed(self.base_digests)}",
            )
        if set(self.deltas) & set(self.low_rank):
            raise PatchError(
                "a site is either row-sparse or low-rank", got=_listed(set(self.deltas) & set(self.low_rank))
            )
        for site in self.low_rank:
            check_factors(self.base, site, self.low_rank[site])
        for site in self.deltas:
            check_rows_given(self.base, site, self.deltas[site], self.base_rows[site])
        if not self.library_version:
            from mmedit import __version__

            object.__setattr__(self, "library_version", __version__)

    def __repr__(self) -> str:
        return f"Patch({self.name}, {len(self.neurons)} neurons, on {self.base.model})"

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sites that the patch edits, in order."""
        return tuple(sorted((*self.deltas, *self.low_rank)))

    def edits_site(self, site: Site) -> bool:
        """Whether the patch edits rows there."""
        return site in self.deltas or site in self.low_rank

    def units(self, site: Site) -> Tensor:
        """The units that the patch edits at a site, sorted int64 `[k]`; all of them where the edit is low-rank."""
        delta = self.deltas.get(site)
        return torch.arange(len(self.low_rank[site][0])) if delta is None else delta[0]

    def rows(self, site: Site) -> Tensor:
        """The rows to add at a site, float32 `[k, d_model]`, one for each of `units(site)`."""
        if site in self.deltas:
            return self.deltas[site][1]
        left, right = self.low_rank[site]
        return left @ right

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """The neurons of the row-sparse sites that the patch edits."""
        return tuple(
            Neuron(site.layer, unit, site.expert) for site, (units, _) in self.deltas.items() for unit in units.tolist()
        )

    @property
    def name(self) -> str:
        """What the patch does, in a few characters."""
        return ", ".join(f"{edit['source']}→{edit['target']}" for edit in self.edits) or self.digest[:12]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the units and rows: two patches with the same one change a model in the same way."""
        digest = hashlib.sha256()
        for site, (units, rows) in self.deltas.items():
            digest.update(
                f"{site}:{len(units)};".encode() + units.numpy().tobytes() + rows.contiguous().numpy().tobytes()
            )
        for site, factors in self.low_rank.items():
            digest.update(
                f"{site}:low rank;".encode() + b"".join(factor.contiguous().numpy().tobytes() for factor in factors)
            )
        return digest.hexdigest()

    def scaled(self, scale: float) -> Patch:
        """The same patch with every row multiplied.

        Example:
            >>> import torch
            >>> patch = Patch({Site(0): (torch.tensor([1]), torch.ones(1, 2))}, {Site(0): torch.zeros(1, 2)}, Base("m", None, "llava", 1, 2, 4, ""))
            >>> patch.scaled(0.5).deltas[Site(0)][1]
            tensor([[0.5000, 0.5000]])
        """
        deltas = {site: (units, rows * scale) for site, (units, rows) in self.deltas.items()}
        return replace(
            self, deltas=deltas, low_rank={s: (left * scale, right) for s, (left, right) in self.low_rank.items()}
        )

    def save(self, path: str | Path) -> None:
        """Write the patch as a safetensors file (format 1), which appears whole or not at all.

        Raises:
            OutputError: if it cannot be written.
        """
        from mmedit.patches.format import save_patch

        save_patch(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch, checking everything before any tensor is used.

        Raises:
            PatchError: if the file is missing, damaged, or not a patch.
        """
        from mmedit.patches.format import load_patch

        return load_patch(path)

    def to_lora(self, folder: str | Path, vlm: Any = None) -> LoraExport:
        """Write the patch as a PEFT LoRA adapter, which appears whole or not at all, and check that it does the same.

        `PeftModel.from_pretrained(model, folder).merge_and_unload()` then gives the weights of `apply` (only a −0.0 of the
        base may become 0.0), to rounding where the edit is low-rank. That is with PEFT's defaults: `safe_merge` and servers
        that cast adapters round Δw to the model's type first.

        Args:
            folder: to write; new, empty, or an adapter to be replaced.
            vlm: the base, a VisionLanguageModel or a bare transformers model, which is left as it is; loaded by the name
                that the patch holds when None.

        Returns:
            The adapter's rank and modules, and what the check measured.

        Raises:
            OutputError: if the folder holds other things or cannot be written.
            PatchError: if a layer has more edited neurons than an adapter can hold, the edit is of a fused expert, or the
                adapter does not do what the patch does.
            BaseMismatchError: if the model is not the one that the patch was made on.
            ModelError: if the model cannot be loaded, or its weights are quantised or offloaded.
        """
        from mmedit.patches.lora import to_lora

        return to_lora(self, folder, vlm)

    @classmethod
    def from_lora(cls, folder: str | Path, vlm: Any) -> Patch:
        """Read a PEFT LoRA adapter of W_outs as a patch: as rows where it touches no more of them than its rank.

        Args:
            folder: of the adapter.
            vlm: the base, a VisionLanguageModel or a bare transformers model; its rows become the patch's base rows.

        Returns:
            The patch; after `to_lora` the same one, under its edits' names.

        Raises:
            PatchError: if the adapter is damaged, is more than a plain LoRA, or changes other modules than W_outs.
            ModelError: if the model's weights are quantised or offloaded.
        """
        from mmedit.patches.lora import from_lora

        return from_lora(folder, vlm)

    def apply(self, vlm: Any, name: str | None = None, scale: float = 1.0) -> str:
        """Put the patch on a model: a push onto the model's stack.

        Args:
            vlm: a VisionLanguageModel or a bare transformers model; changed in place.
            name: to take it out by; the patch's own when None.
            scale: what the rows are multiplied with.

        Returns:
            The name under which it is live.

        Raises:
            BaseMismatchError: if the model is not the one that the patch was made on.
            PatchError: if the patch is live already.
            ModelError: if the weights are quantised or offloaded.
        """
        from mmedit.patches.live import stack_of

        return stack_of(vlm).push(self, name, scale)

    def revert(self, vlm: Any) -> None:
        """Take the patch out of a model again, bit for bit.

        Raises:
            PatchError: if the patch is not live on it.
        """
        from mmedit.patches.live import stack_of

        stack = stack_of(vlm)
        stack.pop(stack.name_of(self))

    def applied(self, vlm: Any, scale: float = 1.0) -> AbstractContextManager[Any]:
        """Have the patch live on a model for the length of a `with` block; takes it out on any exit.

        Args:
            vlm: a VisionLanguageModel or a bare transformers model, which the block is given; changed in place.
            scale: what the rows are multiplied with.

        Raises:
            BaseMismatchError: if the model is not the one that the patch was made on.
            ModelError: if the weights are quantised, offloaded, or compiled with freezing.
        """
        from mmedit.patches.live import applied

        return applied(vlm, self, scale)


def _listed(sites: Iterable[Site]) -> str:
    return ", ".join(map(str, sorted(sites))) or "none"
