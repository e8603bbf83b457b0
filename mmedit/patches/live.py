"""Patches on a live model: one stack per model, weights always `round(base + Σ scale·delta)`.

Only the patched rows are ever touched. The base rows are kept as they were, so the last pop gives back the exact bytes,
and the sum is taken in an order that depends on the patches alone, so the order of pushing them does not matter.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmedit.errors import BaseMismatchError, PatchError
from mmedit.models.architecture import Architecture, architecture_of, bare_model
from mmedit.neuron import Neuron, Site
from mmedit.patches.patch import Patch, matrix_digest


@dataclass(frozen=True)
class Entry:
    """A live patch and what its rows are multiplied with."""

    patch: Patch
    scale: float


class Stack:
    """The patches that are live on one model, by name.

    Args:
        architecture: of that model.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self._entries: dict[str, Entry] = {}
        self._base: dict[Site, dict[int, Tensor]] = {}  # rows as they were before any patch, while a patch touches them

    def __repr__(self) -> str:
        return f"Stack({', '.join(f'{name} ×{entry.scale:g}' for name, entry in self._entries.items()) or 'empty'})"

    @property
    def names(self) -> tuple[str, ...]:
        """The live patches, in the order in which they were pushed."""
        return tuple(self._entries)

    def push(self, patch: Patch, name: str | None = None, scale: float = 1.0) -> str:
        """Put a patch on the model.

        Args:
            patch: what to put there.
            name: to pop it by; the patch's own when None.
            scale: what its rows are multiplied with.

        Returns:
            The name.

        Raises:
            BaseMismatchError: if the model's rows are not those that the patch was made on.
            PatchError: if the name is taken, or the patch is live already and no other name is given.
            ModelError: if the weights are quantised or offloaded.
        """
        if name is None and any(entry.patch.digest == patch.digest for entry in self._entries.values()):
            raise PatchError(
                "this patch is live already", got=patch.name, do="revert it first, or push it under another name"
            )
        name = self.free_name(patch) if name is None else name
        if name in self._entries:
            raise PatchError("a patch of this name is live already", got=name, do="choose another name")
        self._check(patch)
        self._become({**self._entries, name: Entry(patch, scale)})
        return name

    def pop(self, name: str) -> Patch:
        """Take a patch out of the model; the others stay.

        Raises:
            PatchError: if no patch of this name is live.
        """
        entry = self._entry(name)
        self._become({other: entry for other, entry in self._entries.items() if other != name})
        return entry.patch

    def scale(self, name: str, scale: float) -> None:
        """Change what a live patch's rows are multiplied with.

        Raises:
            PatchError: if no patch of this name is live.
        """
        self._become({**self._entries, name: Entry(self._entry(name).patch, scale)})

    def clear(self) -> None:
        """Take every patch out."""
        self._become({})

    def name_of(self, patch: Patch) -> str:
        """The name under which a patch is live.

        Raises:
            PatchError: if it is not.
        """
        for name, entry in self._entries.items():
            if entry.patch.digest == patch.digest:
                return name
        raise PatchError("this patch is not live on this model", got=patch.name, expected=f"one of {list(self.names)}")

    def free_name(self, patch: Patch) -> str:
        """The patch's name, with a number where it is taken."""
        names = (patch.name if n == 1 else f"{patch.name} ({n})" for n in range(1, len(self._entries) + 2))
        return next(name for name in names if name not in self._entries)

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise PatchError("no such live patch", got=name, expected=f"one of {list(self.names)}")
        return self._entries[name]

    def _check(self, patch: Patch) -> None:
        """Raise unless the model's unpatched rows are the patch's base rows."""
        architecture = self._architecture
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
            units = patch.units(site)
            architecture.check(Neuron(site.layer, int(units[-1]), site.expert))
            architecture.require_editable(site)
            self._check_rows(patch, site, units, self.base_rows(site, units))

    def _check_rows(self, patch: Patch, site: Site, units: Tensor, live: Tensor) -> None:
        """Compare a site's unpatched rows with the patch's base, in whichever of the two types holds fewer numbers."""
        if site in patch.low_rank:
            where, gap = str(site), "a W_out of another digest"
            fits = matrix_digest(live) == patch.base_digests[site]
        else:
            base = patch.base_rows[site]
            same = (base.to(live.dtype) == live).all(1) | (live.to(base.dtype) == base).all(1)
            off = (base.float() - live.float()).abs().amax(1)
            worst = int(off.argmax())
            where = str(Neuron(site.layer, int(units[worst]), site.expert))
            gap = f"a W_out row that is off by up to {float(off[worst]):.3g}"
            fits = bool(same.all())
        if not fits:
            raise BaseMismatchError(
                "a patch for another model", where=where, got=gap,
                expected=f"the weights of {patch.base.model or 'its base'}, revision {patch.base.revision}",
                do="load that model and revision, without other changes to its weights",
            )  # fmt: skip

    def base_rows(self, site: Site, units: Tensor) -> Tensor:
        """The unpatched rows of a site `[k, d_model]`, whether patches are live on them or not."""
        rows = self._architecture.w_out(site).rows(units)
        for i, unit in enumerate(units.tolist()):
            kept = self._base.get(site, {}).get(unit)
            if kept is not None:
                rows[i] = kept
        return rows

    def _become(self, entries: dict[str, Entry]) -> None:
        """Make the model have these patches, or, if anything goes wrong on the way, leave it as it is."""
        after = _units(entries.values())
        changed = [name for name in {*self._entries, *entries} if self._entries.get(name) != entries.get(name)]
        moved = _units(entry for name in changed for entry in (self._entries.get(name), entries.get(name)) if entry)
        base = {
            site: {
                **self._base.get(site, {}),
                **dict(zip(units, self.base_rows(site, torch.tensor(units)), strict=True)),
            }
            for site, units in moved.items()
        }
        rows = {site: self._sum(site, units, base[site], entries.values()) for site, units in moved.items()}
        old = {site: self._architecture.w_out(site).rows(torch.tensor(units)) for site, units in moved.items()}
        kept = {site: {u: base.get(site, self._base.get(site, {}))[u] for u in units} for site, units in after.items()}
        with _uninterrupted():
            try:
                self._write(moved, rows)
            except BaseException:
                self._write(moved, old)
                raise
            self._entries, self._base = entries, kept

    def _sum(self, site: Site, units: list[int], base: dict[int, Tensor], entries: Iterable[Entry]) -> Tensor:
        """round(base + Σ scale·delta) for some units of a site, summed in fp32 in an order of the patches' own."""
        rows, wanted = torch.stack([base[unit] for unit in units]), torch.tensor(units)
        total, touched = torch.zeros(rows.shape), torch.zeros(len(units), dtype=torch.bool)
        for entry in sorted(entries, key=lambda e: (e.patch.digest, e.scale)):
            if site in entry.patch.sites:
                edited = entry.patch.units(site)
                ours = torch.isin(edited, wanted)
                place = torch.searchsorted(wanted, edited[ours])
                total[place] += entry.scale * entry.patch.rows(site)[ours]
                touched[place] = True
        return torch.where(touched[:, None], (rows.float() + total).to(rows.dtype), rows)

    def _write(self, moved: dict[Site, list[int]], rows: dict[Site, Tensor]) -> None:
        with torch.no_grad():
            for site, units in moved.items():
                self._architecture.w_out(site).write(torch.tensor(units), rows[site])


_stacks: WeakKeyDictionary[nn.Module, Stack] = WeakKeyDictionary()


def stack_of(vlm: Any) -> Stack:
    """The one stack of a VisionLanguageModel or a bare transformers model."""
    model = bare_model(vlm)
    if model not in _stacks:
        _stacks[model] = Stack(architecture_of(model))
    return _stacks[model]


def _units(entries: Iterable[Entry]) -> dict[Site, list[int]]:
    """The units that some patches touch, by site, in order."""
    units: dict[Site, set[int]] = {}
    for entry in entries:
        for site in entry.patch.sites:
            units.setdefault(site, set()).update(entry.patch.units(site).tolist())
    return {site: sorted(found) for site, found in units.items()}


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done, so that rows and bookkeeping change together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        raise KeyboardInterrupt
