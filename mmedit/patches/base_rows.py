"""The rows of one model as they were before any patch, remembered for as long as patches touch them.

Row by row, and with the names of the patches that touch each: so a change costs what it moves, however much is live.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mmedit.models.architecture import Architecture, WOut
from mmedit.neuron import Expert, Site
from mmedit.patches.patch import Patch
from mmedit.patches.rows import Entry, edited_rows

T = TypeVar("T")


class Kept(NamedTuple):
    """A row as it was before any patch, and the names of the patches that touch it now."""

    row: Tensor
    users: frozenset[str]


class Step(NamedTuple):
    """What a change of patches does to one weight: units, their rows before and after, and what to remember of each."""

    w_out: WOut
    units: Tensor
    before: Tensor
    after: Tensor
    kept: Mapping[int, Kept]


class BaseRows:
    """The base rows of a model under its patches; its length is the number of rows remembered.

    Sites whose W_outs are tied share one weight. All that concerns it is kept at the first of them, its home.

    Args:
        architecture: of the model.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self._kept: dict[Site, dict[int, Kept]] = {}
        weights: dict[tuple[str, Expert], list[Site]] = {}
        for site, w_out in sorted(architecture.w_outs.items()):
            weights.setdefault((w_out.name, site.expert), []).append(site)
        self._tied = {sites[0]: sites for sites in weights.values()}
        self._home = {site: home for home, sites in self._tied.items() for site in sites}

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def rows(self, site: Site, units: Tensor) -> Tensor:
        """The unpatched rows of a site `[k, d_model]`, whether patches are live on them or not."""
        rows, kept = self._architecture.w_out(site).rows(units), self._kept.get(self._home[site], {})
        for i, unit in enumerate(units.tolist()) if kept else ():
            if unit in kept:
                rows[i] = kept[unit].row
        return rows

    def steps(self, before: Mapping[str, Entry], after: Mapping[str, Entry]) -> list[Step]:
        """What it takes to have other patches live; nothing is changed yet.

        Args:
            before: the entries that are live, by name.
            after: those that shall be.

        Returns:
            One step for each weight that an entry touches which is not in both.
        """
        changed = {name for name in before.keys() | after.keys() if before.get(name) is not after.get(name)}
        moved = {name: [e for e in (before.get(name), after.get(name)) if e] for name in changed}
        homes = {self._home[site] for entries in moved.values() for entry in entries for site in entry.patch.sites}
        return [self._step(home, moved, after) for home in sorted(homes)]

    def remember(self, step: Step) -> None:
        """Keep the base of the rows that patches touch after a step, forget that of the others."""
        kept = self._kept.setdefault(self._home[step.w_out.site], {})
        kept.update(step.kept)
        for unit in [unit for unit, row in step.kept.items() if not row.users]:
            del kept[unit]
        if not kept:
            del self._kept[self._home[step.w_out.site]]

    def _step(self, home: Site, moved: Mapping[str, list[Entry]], after: Mapping[str, Entry]) -> Step:
        w_out, kept, users = self._architecture.w_out(home), self._kept.get(home, {}), dict[int, set[str]]()
        for name, entries in moved.items():
            for entry in entries:
                for unit in {u for part in self._at(home, entry) for u in part.patch.units(home).tolist()}:
                    others = kept[unit].users - moved.keys() if unit in kept else ()
                    users.setdefault(unit, set(others)).update([name] if entry is after.get(name) else [])
        units = torch.tensor(sorted(users))
        base, touching = self.rows(home, units), set().union(*users.values())
        rows = edited_rows(home, units, base, [part for name in touching for part in self._at(home, after[name])])
        remembered = {unit: Kept(base[i], frozenset(users[unit])) for i, unit in enumerate(sorted(users))}
        return Step(w_out, units, w_out.rows(units), rows, remembered)

    def _at(self, home: Site, entry: Entry) -> list[Entry]:
        """An entry as seen from a weight's home: one for each of its tied sites that the patch names."""
        patch = entry.patch
        sites = [site for site in self._tied[home] if site in patch.deltas or site in patch.low_rank]
        return [entry if site == home else Entry(_moved(patch, site, home), entry.scale) for site in sites]


def _moved(patch: Patch, site: Site, home: Site) -> Patch:
    """One site of a patch, as if it were another."""

    def only(part: Mapping[Site, T]) -> dict[Site, T]:
        return {home: part[site]} if site in part else {}

    return replace(
        patch, deltas=only(patch.deltas), base_rows=only(patch.base_rows),
        low_rank=only(patch.low_rank), base_digests=only(patch.base_digests),
    )  # fmt: skip
