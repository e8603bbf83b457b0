"""The rows of one model as they were before any patch, remembered for as long as patches touch them.

Row by row, and with the patches that touch each: so a change costs what it moves, however much is live.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mmedit.models.architecture import Architecture, WOut
from mmedit.neuron import Expert, Site
from mmedit.patches.patch import Patch
from mmedit.patches.rows import Entry, check_rows, edited_rows

T = TypeVar("T")
Users = dict[tuple[str, Site], Entry]  # by name and site: tied W_outs may be touched twice under one name


class Kept(NamedTuple):
    """A row as it was before any patch, and the entries that touch it now, as seen from their weight."""

    row: Tensor
    users: Users


@dataclass(eq=False)
class Weight:
    """One W_out under patches.

    Args:
        w_out: to read and write it.
        sites: where it is; several if W_outs are tied. All is computed as if at the first.
        kept: the base rows of the units that patches touch.
    """

    w_out: WOut
    sites: list[Site] = field(default_factory=list)
    kept: dict[int, Kept] = field(default_factory=dict)

    def unpatched(self, units: list[int], rows: Tensor) -> Tensor:
        """The base of rows `[k, d_model]` that were read from the model."""
        if self.kept.keys().isdisjoint(units):
            return rows
        kept = self.kept
        base = [kept[unit].row if unit in kept else rows[i] for i, unit in enumerate(units)]
        return torch.stack(base).to(rows.dtype)

    def users_but(self, names: Container[str], unit: int) -> Users:
        """The entries that touch a unit's row, but for those of some names."""
        kept = self.kept.get(unit)
        return {key: entry for key, entry in kept.users.items() if key[0] not in names} if kept else {}

    def parts(self, entries: Mapping[str, Entry | None]) -> Users:
        """Entries as seen from here: one for each of the sites that their patches name."""
        found, home = Users(), self.sites[0]
        for name, entry in entries.items():
            for site in self.sites:
                if entry is not None and entry.patch.edits_site(site):
                    found[name, site] = entry if site is home else Entry(_moved(entry.patch, site, home), entry.scale)
        return found

    def check(self, patch: Patch, units: Tensor, base: Tensor) -> None:
        """Raise BaseMismatchError unless a patch was made on these base rows `[k, d_model]` of some units."""
        for site in self.sites:
            if patch.edits_site(site):
                ours = patch.units(site)  # some of these, or all
                check_rows(patch, site, [base if len(ours) == len(units) else base[torch.searchsorted(units, ours)]])


class Step(NamedTuple):
    """What a change of patches does to one weight: units, their rows before and after, and what to remember from then on."""

    weight: Weight
    units: Tensor
    before: Tensor
    after: Tensor
    kept: Mapping[int, Kept]

    def do(self) -> None:
        """Write the rows as they shall be."""
        self.weight.w_out.write(self.units, self.after)

    def undo(self) -> None:
        """Write the rows as they were."""
        self.weight.w_out.write(self.units, self.before)

    def remember(self) -> None:
        """Keep the base of the rows that patches touch now, forget that of the others."""
        for unit in self.units.tolist():
            self.weight.kept.pop(unit, None)
        self.weight.kept.update(self.kept)


class BaseRows:
    """The base rows of a model under its patches; its length is the number of rows remembered.

    Args:
        architecture: of the model.
    """

    def __init__(self, architecture: Architecture) -> None:
        weights: dict[tuple[str, Expert], Weight] = {}
        self._at: dict[Site, Weight] = {}
        for site, w_out in sorted(architecture.w_outs.items()):
            self._at[site] = weight = weights.setdefault((w_out.name, site.expert), Weight(w_out))
            weight.sites.append(site)

    def __len__(self) -> int:
        return sum(len(weight.kept) for site, weight in self._at.items() if site == weight.sites[0])

    def rows(self, site: Site, units: Tensor) -> Tensor:
        """The unpatched rows of a site `[k, d_model]`, whether patches are live on them or not."""
        weight = self._at[site]
        rows = weight.w_out.rows(units)
        return weight.unpatched(units.tolist(), rows) if weight.kept else rows

    @torch.no_grad()
    def steps(self, live: Mapping[str, Entry], changes: Mapping[str, Entry | None]) -> list[Step]:
        """What it takes to have other entries under some names; nothing is changed yet.

        Args:
            live: the entries that are live, by name.
            changes: those that shall be, by the names that change; None for one that goes.

        Returns:
            One step for each weight that a changed entry touches.

        Raises:
            BaseMismatchError: if the patch of a new entry was made on other rows.
        """
        before = {name: live[name] for name in changes if name in live}
        moved = (entry for entry in (*before.values(), *changes.values()) if entry)
        weights = dict.fromkeys(self._at[site] for entry in moved for site in entry.patch.sites)
        return [_step(weight, before, changes) for weight in weights]


def _step(weight: Weight, before: Mapping[str, Entry], after: Mapping[str, Entry | None]) -> Step:
    """What becomes of a weight where entries, by name, are to be others."""
    home, old, new = weight.sites[0], weight.parts(before), weight.parts(after)
    units = _union([entry.patch.units(home) for entry in (*old.values(), *new.values())])
    users = {unit: weight.users_but(after, unit) for unit in units.tolist()}
    for key, part in new.items():
        for unit in part.patch.units(home).tolist():
            users[unit][key] = part
    rows = weight.w_out.rows(units)
    base, touching = weight.unpatched(list(users), rows), {k: e for each in users.values() for k, e in each.items()}
    for name, entry in after.items():
        if entry is not None and name not in before:
            weight.check(entry.patch, units, base)
    pairs = zip(users, base.unbind(), strict=True) if touching else ()
    kept = {unit: Kept(row, users[unit]) for unit, row in pairs if users[unit]}
    return Step(weight, units, rows, edited_rows(home, units, base, touching.values()), kept)


def _union(units: Iterable[Tensor]) -> Tensor:
    """All units of several sorted lists, sorted."""
    first, *others = units
    return torch.unique(torch.cat([first, *others])) if others else first


def _moved(patch: Patch, site: Site, home: Site) -> Patch:
    """One site of a patch, as if it were another."""

    def only(part: Mapping[Site, T]) -> dict[Site, T]:
        return {home: part[site]} if site in part else {}

    return replace(
        patch, deltas=only(patch.deltas), base_rows=only(patch.base_rows),
        low_rank=only(patch.low_rank), base_digests=only(patch.base_digests),
    )  # fmt: skip
