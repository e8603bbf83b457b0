"""A soak: thousands of random operations on a live model, each compared bit for bit with a plain model of its weights.

The plain model is a dictionary: the rows of each W_out as they were, and what is live on them. What the weights must be is
base + Σ scale·delta in float32, added up in the order of the patches' digests, rounded to the model's type.
`MMEDIT_SOAK=20000` makes it longer.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_patch import bits, low_rank_patch, random_patch, same
from torch import nn

import mmedit
from mmedit.errors import PatchError, RequestError
from mmedit.models.architecture import WOut
from mmedit.sightings import sightings

N_OPERATIONS = int(os.environ.get("MMEDIT_SOAK", "2000"))
N_SHARED = 8  # patches that are drawn from; merges take the last places
SITES = tuple(mmedit.Site(layer) for layer in (0, 2, 3, 5))
SCALES = [1.0, 1.0, 0.5, -2.0, 0.1, 1e-3, 0.0]
INTERRUPTED = ("live.py", "base_rows.py", "rows.py", "interrupts.py", "contextlib.py", "merge.py", "format.py", "files.py")  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")  # fmt: skip


class Thrown(Exception):
    """What a callback throws."""


@dataclass(frozen=True)
class Plain:
    """A patch as the plain model knows it."""

    digest: str
    rows: dict[mmedit.Site, tuple[torch.Tensor, torch.Tensor]]


def plain(patch: mmedit.Patch) -> Plain:
    return Plain(patch.digest, {site: (patch.units(site), patch.rows(site).clone()) for site in patch.sites})


Live = dict[str, tuple[Plain, float]]


class Weights:
    """What the W_outs must be: their rows as they were, and what is live on them."""

    def __init__(self, vlm: mmedit.VisionLanguageModel) -> None:
        self.base = {site: vlm.architecture.w_out(site).matrix.clone() for site in SITES}
        self.live: Live = {}

    def expected(self, site: mmedit.Site) -> torch.Tensor:
        base, total = self.base[site], torch.zeros(self.base[site].shape)
        for patch, scale in sorted(self.live.values(), key=lambda item: (item[0].digest, item[1])):
            if site in patch.rows:
                units, rows = patch.rows[site]
                total[units] += scale * rows
        return (base.float() + total).to(base.dtype)


def interrupt_at(line: int) -> Callable[..., Any]:
    """A trace function that raises SIGINT before the n-th line executed in our files."""
    left = line

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(INTERRUPTED):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    return trace


class Soak:
    """A model that random things are done to, and the plain model beside it."""

    def __init__(self, vlm: mmedit.VisionLanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vlm, self.folder, self.monkeypatch = vlm, folder, monkeypatch
        self.random, self.done = random.Random(0), Counter[str]()
        self.stack, self.weights = mmedit.Stack.of(vlm), Weights(vlm)
        self.whole = low_rank_patch(vlm, 9)  # changes all of a W_out, which takes long: seldom drawn
        self.originals = [random_patch(vlm, seed) for seed in range(N_SHARED - 3)]
        self.patches = [*self.originals, *self.originals[:3]]
        self.picture = Image.new("RGB", (64, 64), "teal")

    def step(self) -> None:
        name = self.random.choices(list(OPERATIONS), [weight for weight, _ in OPERATIONS.values()])[0]
        OPERATIONS[name][1](self)
        self.done[name] += 1

    # -- what may be done; each tells the plain model

    def change(self) -> tuple[Callable[[], Any], Live]:
        """A push, pop or scale, and what is live after it."""
        live = dict(self.weights.live)
        what = self.random.choice(["push", "push", "pop", "scale"]) if live else "push"
        if what == "push" and len(live) < 8:
            patch = self.whole if self.random.random() < 0.04 else self.random.choice(self.patches)
            name, scale = f"p{self.random.randrange(10**6)}", self.scale()
            live[name] = plain(patch), scale
            return lambda: self.stack.push(patch, name, scale), live
        name, scale = self.random.choice(list(live)), self.scale()
        if what == "scale":
            live[name] = live[name][0], scale
            return lambda: self.stack.scale(name, scale), live
        del live[name]
        return lambda: self.stack.pop(name), live

    def scale(self) -> float:
        return self.random.choice(SCALES)

    def changed(self) -> None:
        """A push, pop or scale that is left in peace."""
        act, self.weights.live = self.change()
        act()

    def refused(self) -> None:
        """What must be refused, and leave everything as it is."""
        wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
            (PatchError, lambda: self.stack.pop("no such patch")),
            (RequestError, lambda: self.stack.push(self.originals[0], "bad", float("nan"))),
        ]
        if self.weights.live:
            name = self.random.choice(list(self.weights.live))
            wrong.append((PatchError, lambda: self.stack.push(self.originals[0], name)))
            wrong.append((RequestError, lambda: self.stack.scale(name, float("inf"))))
        error, act = self.random.choice(wrong)
        with pytest.raises(error):
            act()

    def within(self, end: Callable[[], None] = lambda: None) -> None:
        """Two more patches for the length of a block, in which others are pushed and popped."""
        before = dict(self.weights.live)
        digests = {patch.digest for patch, _ in before.values()}
        free = {p.digest: p for p in self.patches if p.digest not in digests}
        chosen = self.random.sample(list(free.values()), min(2, len(free)))
        scales = [self.scale() for _ in chosen]
        with mmedit.stack(self.vlm, chosen, scales):
            inside = {
                name: (plain(p), s) for name, p, s in zip(self.stack.names[len(before) :], chosen, scales, strict=True)
            }
            self.weights.live = {**before, **inside}
            self.compare()
            act, after = self.change()
            act()
            self.weights.live = {name: one for name, one in after.items() if name not in inside}
            end()

    def thrown_from_a_block(self) -> None:
        def end() -> None:
            raise Thrown

        with pytest.raises(Thrown):
            self.within(end)

    def thrown_while_writing(self) -> None:
        """The n-th write to a weight fails, as where memory or a device does: the change is undone."""
        (act, after), left, write = self.change(), self.random.randrange(4), WOut.write

        def failing(w_out: WOut, units: torch.Tensor, rows: torch.Tensor) -> None:
            nonlocal left
            write(w_out, units, rows)
            left -= 1
            if left == 0:
                raise Thrown

        with self.monkeypatch.context() as patched:
            patched.setattr(WOut, "write", failing)
            try:
                act()
            except Thrown:
                return
        self.weights.live = after

    def thrown_from_a_hook(self) -> None:
        """A forward hook of the user's throws in the middle of a caption, with one more patch live."""

        def throw(*_: Any) -> None:
            raise Thrown

        layers = list(self.vlm.architecture.layers.children())
        handle = self.random.choice(layers).register_forward_hook(throw)
        try:
            with pytest.raises(Thrown), self.originals[0].applied(self.vlm, self.scale()):
                self.vlm.generate(self.picture, max_new_tokens=2)
        finally:
            handle.remove()

    def thrown_while_located(self) -> None:
        def choose(*_: Any) -> Any:
            raise Thrown

        with self.monkeypatch.context() as patched:
            patched.setattr("mmedit.models.vlm.MAX_NEW_TOKENS", 2)
            patched.setattr(type(self.vlm).generate_batch, "__defaults__", (2,))
            with pytest.raises(Thrown):
                sightings(self.vlm, self.picture, choose)

    def interrupted(self) -> None:
        """Ctrl-C before some line of ours: the change has been made whole, or not at all."""
        before, (act, after) = self.weights.live, self.change()
        sys.settrace(interrupt_at(self.random.randint(1, 120)))
        try:
            act()
            self.weights.live = after
        except KeyboardInterrupt:
            sys.settrace(None)
            told = {name: entry.scale for name, entry in self.stack._entries.items()}
            states = [live for live in (before, after) if {name: scale for name, (_, scale) in live.items()} == told]
            assert states, f"neither before nor after: {told}"
            self.weights.live = states[0]
            self.done["really interrupted"] += 1
        finally:
            sys.settrace(None)

    def interrupted_block(self) -> None:
        """Ctrl-C before some line on the way into a block, in it, or out of it: what it brought is gone."""
        sys.settrace(interrupt_at(self.random.randint(1, 250)))
        try:
            with self.originals[1].applied(self.vlm, self.scale()):
                pass
        except KeyboardInterrupt:
            self.done["really interrupted"] += 1
        finally:
            sys.settrace(None)

    def merged(self) -> None:
        """Some of the originals become one; its rows are those of the plain sum or mean."""
        parts = self.random.sample(self.originals, self.random.choice([2, 3]))
        method, weights = self.random.choice(["sum", "mean"]), [self.random.choice([1.0, 0.5, 3.0]) for _ in parts]
        merged = mmedit.merge(parts, method, weights)
        shares = [w / sum(weights) for w in weights] if method == "mean" else weights
        for site, (units, rows) in merged.deltas.items():
            total = torch.zeros(512, 128)
            for part, share in sorted(zip(parts, shares, strict=True), key=lambda one: (one[0].digest, one[1])):
                total[part.units(site)] += share * part.rows(site)
            assert torch.equal(rows, total[units]) and total.any(1).sum() <= len(units)
        self.patches[self.random.randrange(len(self.originals), N_SHARED)] = merged

    def saved(self) -> None:
        self.random.choice(self.patches).save(self.file())

    def loaded(self) -> None:
        """A patch goes through a file: one that is written whole even where Ctrl-C comes, or not at all."""
        number = self.random.randrange(N_SHARED)
        patch, file = self.patches[number], self.file()
        before = file.read_bytes() if file.exists() else None
        sys.settrace(interrupt_at(self.random.randint(1, 90)))
        try:
            patch.save(file)
        except KeyboardInterrupt:
            sys.settrace(None)
            self.done["really interrupted"] += 1
            assert before is None or mmedit.Patch.load(file).sites
            patch.save(file)
        finally:
            sys.settrace(None)
        loaded = mmedit.Patch.load(file)
        assert loaded.digest == patch.digest
        self.patches[number] = loaded
        if number < len(self.originals):
            self.originals[number] = loaded

    def file(self) -> Path:
        return self.folder / f"{self.random.randrange(4)}.safetensors"

    def evaluated(self) -> None:
        """Judged by what it says, where nothing is live; otherwise refused."""
        judged = self.originals[0]
        if self.weights.live:
            with pytest.raises(RequestError):
                mmedit.evaluate(self.vlm, judged, unrelated=[self.picture], cache=False)
            return
        with self.monkeypatch.context() as patched:
            patched.setattr(type(self.vlm).generate_batch, "__defaults__", (2,))
            assert mmedit.evaluate(self.vlm, judged, unrelated=[self.picture], cache=False).metrics

    def cleared(self) -> None:
        self.stack.clear()
        self.weights.live = {}

    # -- what must hold

    def compare(self) -> None:
        """The bits of every W_out that a patch may touch, and what the stack says of itself."""
        assert {name: entry.scale for name, entry in self.stack._entries.items()} == {
            name: scale for name, (_, scale) in self.weights.live.items()
        }
        for site in SITES:
            matrix = self.vlm.architecture.w_out(site).matrix
            assert torch.equal(matrix, self.weights.expected(site)), f"{site} after {self.done}"

    def hooks(self) -> list[Any]:
        """The hooks on the model; transformers leaves some of its own there for good when vision states are asked for."""
        every = (hook for m in self.vlm.model.modules() for kind in HOOKS for hook in getattr(m, kind).values())
        return [hook for hook in every if not str(getattr(hook, "__module__", "")).startswith("transformers.")]

    def at_rest(self, before: dict[str, torch.Tensor]) -> int:
        """With everything out, every bit is as at the start; the bytes of all tensors that are alive."""
        self.cleared()
        assert same(before, bits(self.vlm.model)) and not len(self.stack._base) and not self.hooks()
        self.patches[len(self.originals) :] = self.originals[:3]
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # objects of others may complain about being looked at
            alive = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
        return sum(one.numel() * one.itemsize for one in alive if not isinstance(one, nn.Parameter))


OPERATIONS: dict[str, tuple[int, Callable[[Soak], None]]] = {
    "change": (300, Soak.changed), "refuse": (60, Soak.refused), "within": (80, Soak.within), "clear": (10, Soak.cleared),
    "throw from a block": (60, Soak.thrown_from_a_block), "throw while writing": (100, Soak.thrown_while_writing),
    "throw from a hook": (4, Soak.thrown_from_a_hook), "throw while located": (4, Soak.thrown_while_located),
    "interrupt": (150, Soak.interrupted), "interrupt a block": (100, Soak.interrupted_block),
    "merge": (40, Soak.merged), "save": (12, Soak.saved), "load": (30, Soak.loaded), "evaluate": (4, Soak.evaluated),
}  # fmt: skip


@pytest.fixture
def untraced() -> Iterator[None]:
    previous = sys.gettrace()
    yield
    sys.settrace(previous)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_operations_leave_the_weights_that_a_plain_model_says(
    untrained: mmedit.VisionLanguageModel, dtype: torch.dtype, untraced: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    untrained.model.to(dtype)
    soak, before, held = Soak(untrained, tmp_path, monkeypatch), bits(untrained.model), list[int]()
    for number in range(N_OPERATIONS // 2):
        soak.step()
        soak.compare()
        if number % (N_OPERATIONS // 8) == N_OPERATIONS // 8 - 1:
            held.append(soak.at_rest(before))
    assert len(held) == 4 and held[-1] <= held[0] + 2**16, f"bytes of tensors at rest: {held}"
    assert set(soak.done) >= set(OPERATIONS) and soak.done["really interrupted"] > N_OPERATIONS // 20, soak.done
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.safetensors" for n in range(4)]
