"""Patches by name, and by what they do: none is looked for among all the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmedit.patches.patch import Patch
from mmedit.patches.rows import Entry


class Entries(Mapping[str, Entry]):
    """Entries by name, in the order in which they came.

    Args:
        entries: those to begin with.

    Example:
        >>> import torch
        >>> from mmedit.neuron import Site
        >>> from mmedit.patches.base import Base
        >>> delta, base = {Site(0): (torch.tensor([5]), torch.ones(1, 2))}, {Site(0): torch.zeros(1, 2)}
        >>> patch = Patch(delta, base, Base("m", None, "llava", 1, 2, 8, ""))
        >>> entries = Entries({"a": Entry(patch, 1.0), "b": Entry(patch, 0.5)})
        >>> entries.update({"a": None, "c": Entry(patch, 2.0)})
        >>> list(entries), entries.name_of(patch)
        (['b', 'c'], 'b')
    """

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self._entries: dict[str, Entry] = {}
        self._names: dict[str, dict[str, None]] = {}  # of the entries with a digest; a dict keeps their order
        self.update(entries or {})

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def name_of(self, patch: Patch) -> str | None:
        """The first name under which a patch is here; None if it is not."""
        return next(iter(self._names.get(patch.digest, ())), None)

    def update(self, changes: Mapping[str, Entry | None]) -> None:
        """Have other entries under some names; None for none. An entry of the same patch keeps its place."""
        for name, entry in changes.items():
            before = self._entries.get(name)
            if before is not None and (entry is None or entry.patch.digest != before.patch.digest):
                del self._entries[name], self._names[before.patch.digest][name]
                if not self._names[before.patch.digest]:
                    del self._names[before.patch.digest]
            if entry is not None:
                self._entries[name] = entry
                self._names.setdefault(entry.patch.digest, {})[name] = None
