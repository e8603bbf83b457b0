"""A patch: the rows that an edit adds to W_out, the rows it was made on, and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmedit.errors import PatchError
from mmedit.models.architecture import architecture_of, bare_model
from mmedit.neuron import Neuron, Site

Delta = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Base:
    """The model that a patch was made on.

    Args:
        model: what it was loaded from.
        revision: of the Hub repository, if any.
        model_type: its config.model_type.
        n_layers: decoder layers.
        d_model: width of the residual stream.
        d_ffn: hidden units per feed-forward network.
        config_digest: SHA-256 of its configuration.
    """

    model: str
    revision: str | None
    model_type: str
    n_layers: int
    d_model: int
    d_ffn: int
    config_digest: str

    @classmethod
    def of(cls, vlm: Any) -> Base:
        """Describe a VisionLanguageModel or a bare transformers model."""
        architecture, config = architecture_of(vlm), bare_model(vlm).config
        config_json = config.to_json_string(use_diff=False)  # type: ignore[union-attr, operator]
        lines = [
            line
            for line in config_json.splitlines()
            if not any(f'"{key}"' in line for key in ("_name_or_path", "transformers_version", "dtype"))
        ]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        name = getattr(vlm, "name", "") or getattr(config, "_name_or_path", "")
        return cls(
            name,
            getattr(vlm, "revision", None),
            architecture.model_type,
            architecture.n_layers,
            architecture.d_model,
            architecture.d_ffn,
            digest,
        )


@dataclass(frozen=True, eq=False)
class Patch:
    """An edit of some rows of W_out.

    Args:
        deltas: for each site the edited units, sorted int64 `[k]`, and the rows to add, float32 `[k, d_model]`.
        base_rows: for each site the rows that the edit was made on, in the model's type `[k, d_model]`.
        base: the model it was made on.
        editor: the method's name.
        hparams: the method's settings.
        edits: for each concept swap its source, target, token ids, prompt, image digests, neurons and scores.
        evaluation: what was measured of it, if anything.
        created: when, ISO 8601 in UTC.
        library_version: of the mmedit that made it.

    Raises:
        PatchError: if the tensors do not fit each other.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, _, things = next(benchmark_pictures(1))
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "deltas", {site: self.deltas[site] for site in sorted(self.deltas)})
        if not self.deltas or set(self.deltas) != set(self.base_rows):
            raise PatchError(
                "a patch changes at least one site and has base rows for each",
                got=f"deltas {list(map(str, self.deltas))}, base {list(map(str, self.base_rows))}",
            )
        for site in self.deltas:
            self._check_site(site)
        if not self.library_version:
            from mmedit import __version__

            object.__setattr__(self, "library_version", __version__)

    def _check_site(self, site: Site) -> None:
        units, rows = self.deltas[site]
        base = self.base_rows[site]
        shape = (len(units), self.base.d_model) if units.dim() == 1 else None
        if units.dtype != torch.int64 or not len(units) or shape is None:
            raise PatchError(
                "the units of a site are a non-empty list of int64",
                where=str(site),
                got=f"{units.dtype} {list(units.shape)}",
            )
        if rows.dtype != torch.float32 or tuple(rows.shape) != shape or tuple(base.shape) != shape:
            raise PatchError(
                "a patch's rows have the wrong shape or type",
                where=str(site),
                got=f"delta {rows.dtype} {list(rows.shape)}, base {list(base.shape)}",
                expected=f"delta torch.float32 {list(shape)}, base {list(shape)}",
            )
        if base.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise PatchError(
                "base rows have a type that no model has",
                where=str(site),
                got=base.dtype,
                expected="float32, bfloat16 or float16",
            )
        if site.layer >= self.base.n_layers or not bool((units[1:] > units[:-1]).all()) or int(units[0]) < 0:
            raise PatchError(
                "a patch's units are sorted, distinct and inside the model",
                where=str(site),
                got=units.tolist()[:8],
                expected=f"layer below {self.base.n_layers}",
            )
        if site.expert is None and int(units[-1]) >= self.base.d_ffn:
            raise PatchError(
                "a patch's units are inside the model",
                where=str(site),
                got=int(units[-1]),
                expected=f"below {self.base.d_ffn}",
            )
        if not bool(torch.isfinite(rows).all()) or not bool(torch.isfinite(base).all()):
            raise PatchError(
                "a patch holds only finite numbers",
                where=str(site),
                got="NaN or infinity",
                do="make the edit again with a smaller step",
            )

    def __repr__(self) -> str:
        return f"Patch({self.name}, {len(self.neurons)} neurons, on {self.base.model})"

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """The neurons that the patch edits."""
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
        return digest.hexdigest()

    def scaled(self, scale: float) -> Patch:
        """The same patch with every row multiplied.

        Example:
            >>> import torch
            >>> patch = Patch({Site(0): (torch.tensor([1]), torch.ones(1, 2))}, {Site(0): torch.zeros(1, 2)}, Base("m", None, "llava", 1, 2, 4, ""))
            >>> patch.scaled(0.5).deltas[Site(0)][1]
            tensor([[0.5000, 0.5000]])
        """
        return replace(self, deltas={site: (units, rows * scale) for site, (units, rows) in self.deltas.items()})

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

    @contextmanager
    def applied(self, vlm: Any, scale: float = 1.0) -> Iterator[Any]:
        """Have the patch live on a model for the length of a `with` block; takes it out on any exit.

        Raises:
            BaseMismatchError: if the model is not the one that the patch was made on.
        """
        from mmedit.patches.live import stack_of

        stack = stack_of(vlm)
        name = stack.free_name(self)
        try:
            stack.push(self, name, scale)
            yield vlm
        finally:
            if name in stack.names:
                stack.pop(name)
