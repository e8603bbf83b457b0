"""Patches on a live model: one stack per model, weights always `round(base + Σ scale·delta)`.

Only the patched rows are ever touched; where a patch is low-rank, that is the whole W_out. The base rows are kept as they
were, so the last pop gives back the exact bytes, and the sum is taken in an order that depends on the patches alone, so
the order of pushing them does not matter. Every change is whole or not at all: an error in the middle puts back what was
there, and Ctrl-C is held back until it is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmedit.errors import PatchError, RequestError
from mmedit.models.architecture import Architecture, architecture_of, bare_model
from mmedit.neuron import Site
from mmedit.patches.base_rows import BaseRows
from mmedit.patches.entries import Entries
from mmedit.patches.interrupts import uninterrupted
from mmedit.patches.patch import Patch
from mmedit.patches.rows import Entry, check_model, check_rows

T = TypeVar("T")


class Stack:
    """The patches that are live on one model, by name; each can be taken out again, in any order.

    A model has one stack, `Stack.of(vlm)`; `mmedit.stack` fills it for the length of a `with` block.

    Args:
        architecture: of the model.

    Example:
        >>> import mmedit
        >>> from mmedit.patches.base import Base
        >>> vlm = mmedit.load("iconworld-llava")
        >>> live, site, units = mmedit.Stack.of(vlm), mmedit.Site(2), torch.tensor([7])
        >>> patch = mmedit.Patch({site: (units, torch.ones(1, 128))}, {site: live.base_rows(site, units)}, Base.of(vlm))
        >>> live.push(patch, name="one", scale=0.5), live.names
        ('one', ('one',))
        >>> live.scale("one", 2.0)
        >>> live.pop("one") is patch, live.names
        (True, ())
    """

    def __init__(self, architecture: Architecture) -> None:
        self._architecture, self._base = architecture, BaseRows(architecture)
        self._entries = Entries()

    @classmethod
    def of(cls, vlm: Any) -> Stack:
        """The one stack of a VisionLanguageModel or a bare transformers model."""
        model, architecture = bare_model(vlm), architecture_of(vlm)
        if model not in _stacks:
            _stacks[model] = cls(architecture)
        return _stacks[model]

    def __repr__(self) -> str:
        return f"Stack({', '.join(f'{name} ×{entry.scale:g}' for name, entry in self._entries.items()) or 'empty'})"

    @property
    def names(self) -> tuple[str, ...]:
        """The live patches, in the order in which they were pushed."""
        return tuple(self._entries)

    @property
    def state(self) -> tuple[tuple[str, float], ...]:
        """The digest and scale of each live patch, in any order of pushing the same."""
        return tuple(sorted((entry.patch.digest, entry.scale) for entry in self._entries.values()))

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
            RequestError: if the scale is not a finite number.
            ModelError: if the weights are quantised, offloaded, or compiled with freezing.
        """
        name, entry = self._admit(patch, name, scale, self._entries)
        self._become({name: entry})
        return name

    def pop(self, name: str) -> Patch:
        """Take a patch out of the model; the others stay.

        Raises:
            PatchError: if no patch of this name is live.
        """
        patch = self._entry(name).patch
        self._become({name: None})
        return patch

    def scale(self, name: str, scale: float) -> None:
        """Change what a live patch's rows are multiplied with.

        Raises:
            PatchError: if no patch of this name is live.
            RequestError: if the scale is not a finite number.
        """
        self._become({name: _entry(self._entry(name).patch, scale)})

    def clear(self) -> None:
        """Take every patch out."""
        self._become(dict.fromkeys(self._entries))

    def name_of(self, patch: Patch) -> str:
        """The name under which a patch is live.

        Raises:
            PatchError: if it is not.
        """
        name = self._entries.name_of(patch)
        if name is None:
            raise PatchError(
                "this patch is not live on this model", got=patch.name, expected=f"one of {list(self.names)}"
            )
        return name

    def check(self, patch: Patch) -> None:
        """Raise what `push` would raise, unless the model's unpatched rows are those that the patch was made on."""
        self._check_weights(patch)
        for site in patch.sites:
            check_rows(patch, site, [self.base_rows(site, patch.units(site))])

    def base_rows(self, site: Site, units: Tensor) -> Tensor:
        """The unpatched rows of a site `[k, d_model]`, whether patches are live on them or not."""
        return self._base.rows(site, units)

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise PatchError("no such live patch", got=name, expected=f"one of {list(self.names)}")
        return self._entries[name]

    def _check_weights(self, patch: Patch) -> None:
        """Raise what `push` would raise, whatever the model's rows are."""
        check_model(patch, self._architecture)
        self._architecture.all_editable(patch.sites)

    def _admit(self, patch: Patch, name: str | None, scale: float, taken: Entries) -> tuple[str, Entry]:
        """The name and the entry of a patch beside others; raises what `push` raises, but for rows that are not its base."""
        if name is None and taken.name_of(patch) is not None:
            raise PatchError(
                "this patch is live already", got=patch.name, do="revert it first, or push it under another name"
            )
        if name in taken:
            raise PatchError("a patch of this name is live already", got=name, do="choose another name")
        self._check_weights(patch)
        return _free_name(patch, taken) if name is None else name, _entry(patch, scale)

    def _become(self, changes: Mapping[str, Entry | None]) -> None:
        """Have other entries live under some names, None for none, or, if anything goes wrong on the way, leave all as it is."""
        steps = self._base.steps(self._entries, changes)
        with uninterrupted(), torch.no_grad():
            try:
                for step in steps:
                    step.do()
            except BaseException:
                for step in steps:
                    step.undo()
                raise
            self._entries.update(changes)
            for step in steps:
                step.remember()


_stacks: WeakKeyDictionary[nn.Module, Stack] = WeakKeyDictionary()


def stack_of(vlm: Any) -> Stack:
    """The one stack of a VisionLanguageModel or a bare transformers model."""
    return Stack.of(vlm)


@contextmanager
def stack(vlm: Any, patches: Iterable[Patch], scales: Sequence[float] | None = None) -> Iterator[Stack]:
    """Have several patches live on a model for the length of a `with` block.

    On any exit exactly these are taken out again; patches that were live before stay. If one of them cannot be put on
    the model, none is.

    Args:
        vlm: a VisionLanguageModel or a bare transformers model; changed in place.
        patches: what to put there; the order does not matter.
        scales: what the rows of each are multiplied with; 1 when None.

    Yields:
        The model's stack.

    Raises:
        BaseMismatchError: if the model's rows are not those that a patch was made on.
        PatchError: if a patch is live already, or comes twice.
        RequestError: if there is not one finite scale for each patch.
        ModelError: if the weights are quantised, offloaded, or compiled with freezing.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> picture, _, things = list(benchmark_pictures(2))[1]
        >>> vlm = mmedit.load("iconworld-llava")
        >>> editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
        >>> patches = [editor.execute(vlm, mmedit.EditRequest(picture, things[0].noun, word)) for word in ("kite", "drum")]
        >>> with mmedit.stack(vlm, patches, scales=[1.0, 0.5]) as live:
        ...     len(live.names)
        2
        >>> live.names
        ()
    """
    live, chosen = Stack.of(vlm), list(patches)
    if scales is not None and len(scales) != len(chosen):
        raise RequestError("one scale for each patch", got=f"{len(scales)} scales, {len(chosen)} patches")
    taken, ours = Entries(live._entries), {}
    for patch, scale in zip(chosen, scales or [1.0] * len(chosen), strict=True):
        name, ours[name] = live._admit(patch, None, scale, taken)
        taken.update({name: ours[name]})
    yield from _while_live(live, ours, live)


@contextmanager
def applied(vlm: Any, patch: Patch, scale: float) -> Iterator[Any]:
    """Have one patch live for the length of a `with` block; see `Patch.applied`."""
    live = Stack.of(vlm)
    name, entry = live._admit(patch, _free_name(patch, live._entries), scale, live._entries)
    yield from _while_live(live, {name: entry}, vlm)


def _while_live(live: Stack, ours: Mapping[str, Entry], given: T) -> Iterator[T]:
    """The body of a context manager that has some entries live, gives a value, and takes them out on any exit."""
    try:
        try:
            live._become(ours)
            yield given
        finally:
            _take_out(live, ours)
    finally:
        _take_out(live, ours)  # again, for a Ctrl-C on the threshold of the first; else nothing is left to do


def _take_out(live: Stack, ours: Mapping[str, Entry]) -> None:
    """Pop those of some patches that are still live, whatever their scale is by now."""
    with uninterrupted():
        live._become({n: None for n, e in ours.items() if n in live._entries and live._entries[n].patch is e.patch})


def _entry(patch: Patch, scale: float) -> Entry:
    if not math.isfinite(scale):
        raise RequestError("the scale of a patch is a finite number", where=patch.name, got=scale)
    return Entry(patch, scale)


def _free_name(patch: Patch, taken: Entries) -> str:
    """The patch's name, with a number where it is taken."""
    names = (patch.name if n == 1 else f"{patch.name} ({n})" for n in count(1))
    return next(name for name in names if name not in taken)
