"""The stack of a live model: the same bits for every order, the base bits at the end, on any exit; and what it refuses."""

from __future__ import annotations

import dataclasses
import importlib
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_patch import DTYPES, bits, low_rank_patch, random_patch, same
from torch import nn

import mmedit
from mmedit.errors import BaseMismatchError, ModelError, PatchError, RequestError
from mmedit.models.architecture import Architecture, WOut, architecture_of
from mmedit.patches import base_rows
from mmedit.patches.entries import Entries
from mmedit.patches.interrupts import uninterrupted
from mmedit.patches.live import stack_of
from mmedit.testbed.checkpoint import build_llava

SITES = tuple(mmedit.Site(layer) for layer in (0, 3, 5))
Model = mmedit.VisionLanguageModel


def matrices(model: Any, sites: tuple[mmedit.Site, ...] = SITES) -> dict[str, torch.Tensor]:
    """The W_outs that `random_patch` edits: all that a patch may change."""
    return {str(site): architecture_of(model).w_out(site).weight.detach().clone() for site in sites}


def expected(before: torch.Tensor, site: mmedit.Site, live: dict[str, tuple[mmedit.Patch, float]]) -> torch.Tensor:
    """round(base + Σ scale·delta), the sum in the order of the digests."""
    total = torch.zeros(before.T.shape)
    for patch, scale in sorted(live.values(), key=lambda item: (item[0].digest, item[1])):
        units, rows = patch.deltas[site]
        total[units] += scale * rows
    return (before.T.float() + total).to(before.dtype).T


# --- the context manager ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stack_takes_out_exactly_what_it_put_in(untrained: Model, dtype: torch.dtype) -> None:
    untrained.model.to(dtype)
    before, plain = bits(untrained.model), matrices(untrained)
    a, b, c = (random_patch(untrained, seed) for seed in range(3))
    scaled = {"a": (a, 1.0), "b": (b, 0.5), "c": (c, -2.0)}
    a.apply(untrained)
    with_a = bits(untrained.model)
    with mmedit.stack(untrained, [b, c], scales=[0.5, -2.0]) as live:
        assert live is mmedit.Stack.of(untrained) and live.names == ("s0→t0", "s1→t1", "s2→t2")
        in_order = bits(untrained.model)
        for site in SITES:
            assert torch.equal(untrained.architecture.w_out(site).weight, expected(plain[str(site)], site, scaled))
    assert same(with_a, bits(untrained.model)) and live.names == ("s0→t0",)
    with mmedit.stack(untrained, (patch for patch in [c, b]), scales=[-2.0, 0.5]):
        assert same(in_order, bits(untrained.model))
    a.revert(untrained)
    with mmedit.stack(untrained, []) as live:
        assert live.names == ()
    assert same(before, bits(untrained.model)) and not live._base


def test_what_is_done_by_hand_inside_the_block_is_respected(untrained: Model) -> None:
    before = bits(untrained.model)
    a, b, c = (random_patch(untrained, seed) for seed in range(3))
    with mmedit.stack(untrained, [a, b]) as live:
        live.pop("s0→t0")
        live.scale("s1→t1", 3.0)
        live.push(c)
        live.push(a, name="s0→t0", scale=2.0)  # ours again: it goes
    assert live.names == ("s2→t2",)
    with c.applied(untrained):
        pass
    live.clear()
    with mmedit.stack(untrained, [a]) as live:
        live.pop("s0→t0")
        live.push(b, name="s0→t0")  # another patch under our name: it stays
    assert live.pop("s0→t0") is b
    assert same(before, bits(untrained.model))


def test_all_or_nothing(untrained: Model, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_patch(untrained, 0), random_patch(untrained, 1)
    stranger = random_patch(build_llava(processor, seed=1), 2)
    before, live, writes = bits(untrained.model), stack_of(untrained), []
    write = WOut.write
    monkeypatch.setattr(WOut, "write", lambda self, *rows: (writes.append(self.site), write(self, *rows))[1])
    with pytest.raises(BaseMismatchError), mmedit.stack(untrained, [a, b, stranger]):
        raise AssertionError("the block is not entered")
    assert not writes and live.names == ()
    for wrong in ([a, a], [a, dataclasses.replace(a, edits=())]):
        with pytest.raises(PatchError, match="live already"), mmedit.stack(untrained, wrong):
            pass
    for scales in ([1.0], [1.0, float("nan")], [float("inf"), 1.0]):
        with pytest.raises(RequestError, match="scale"), mmedit.stack(untrained, [a, b], scales):
            pass
    assert not writes and live.names == () and same(before, bits(untrained.model))
    live.push(a)
    with pytest.raises(RequestError, match="finite number"):
        live.scale("s0→t0", float("nan"))
    live.clear()
    assert same(before, bits(untrained.model))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_exit_takes_everything_out(untrained: Model, error: type[BaseException]) -> None:
    before, patches = bits(untrained.model), [random_patch(untrained, seed) for seed in range(3)]
    with pytest.raises(error), mmedit.stack(untrained, patches):
        raise error
    assert same(before, bits(untrained.model)) and stack_of(untrained).names == ()


# --- laws ------------------------------------------------------------------------------------------------------------

step = st.tuples(st.sampled_from(["push", "pop", "scale"]), st.integers(0, 4), st.sampled_from([1.0, 0.3, -2.0]))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(step, max_size=14), dtype=st.sampled_from(DTYPES))
def test_weights_are_always_the_rounded_sum(
    processor: Any, steps: list[tuple[str, int, float]], dtype: torch.dtype
) -> None:
    model = build_llava(processor).to(dtype)
    patches, before = [random_patch(model, seed) for seed in range(5)], matrices(model)
    everything, live, held = bits(model), stack_of(model), dict[str, tuple[mmedit.Patch, float]]()
    for what, number, scale in steps:
        name = str(number)
        if what == "push" and name not in held:
            live.push(patches[number], name, scale)
            held[name] = patches[number], scale
        elif what == "pop" and name in held:
            assert live.pop(name) is held.pop(name)[0]
        elif what == "scale" and name in held:
            live.scale(name, scale)
            held[name] = patches[number], scale
        for site in SITES:
            assert torch.equal(architecture_of(model).w_out(site).weight, expected(before[str(site)], site, held))
            units = torch.arange(24)
            assert torch.equal(live.base_rows(site, units), before[str(site)].T[units])
    assert live.names == tuple(held)
    live.clear()
    assert same(everything, bits(model)) and not live._base


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_does_not_matter_beside_a_low_rank_patch(untrained: Model, dtype: torch.dtype) -> None:
    untrained.model.to(dtype)
    before, patches = bits(untrained.model), [low_rank_patch(untrained, 20), random_patch(untrained, 21, layers=(2, 4))]
    seen = []
    for order in (patches, patches[::-1]):
        with mmedit.stack(untrained, order[:1]), mmedit.stack(untrained, order[1:]):
            seen.append(bits(untrained.model))
    assert same(*seen) and not same(before, seen[0])
    assert same(before, bits(untrained.model))


@pytest.mark.parametrize("leave", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_tied_weights_are_one_weight(processor: Any, leave: tuple[int, ...]) -> None:
    model = build_llava(processor).to(torch.bfloat16)
    layers, one, three = model.model.language_model.layers, mmedit.Site(1), mmedit.Site(3)
    layers[3].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    before, live = bits(model), stack_of(model)
    patches = [random_patch(model, seed, layers=sites) for seed, sites in enumerate([(1,), (3,), (1, 3)])]
    matrix = architecture_of(model).w_out(one).matrix.clone()
    total = torch.zeros(matrix.shape)
    for patch in patches:
        live.push(patch)
        for units, rows in patch.deltas.values():
            total[units] += rows
    off = (architecture_of(model).w_out(three).matrix.float() - (matrix.float() + total)).abs()
    assert off.max() < 0.05 < total.abs().max()  # to bf16 rounding: the digests order the sum
    assert torch.equal(live.base_rows(three, torch.arange(24)), matrix[:24])
    touched = {unit for patch in patches for units, _ in patch.deltas.values() for unit in units.tolist()}
    assert len(live._base) == len(touched), "a row is kept once"
    for number in leave:
        live.pop(patches[number].name)
    assert same(before, bits(model)) and not live._base


def test_a_check_looks_at_the_unpatched_rows_and_changes_nothing(untrained: Model) -> None:
    live, patch, other = stack_of(untrained), random_patch(untrained, 1), random_patch(untrained, 2)
    live.push(other)
    assert len(live._base) == len(other.neurons)
    before = bits(untrained.model)
    live.check(patch)
    last = patch.sites[-1]
    unit = int(patch.units(last)[0])
    moved = dataclasses.replace(patch, base_rows={s: rows + (s == last) for s, rows in patch.base_rows.items()})
    with pytest.raises(BaseMismatchError, match=rf"L5\.U{unit}\b"):
        live.check(moved)
    assert same(before, bits(untrained.model)) and live.names == (other.name,)
    live.clear()


def test_a_stack_has_a_state_that_its_order_does_not_change(untrained: Model) -> None:
    live, patches = stack_of(untrained), [random_patch(untrained, seed) for seed in range(3)]
    states = []
    for order in ((0, 1, 2), (2, 0, 1)):
        for number in order:
            live.push(patches[number], scale=number + 1.0)
        states.append(live.state)
        live.clear()
    assert states[0] == states[1] == tuple(sorted((patch.digest, n + 1.0) for n, patch in enumerate(patches)))
    assert live.state == ()


def test_each_weight_is_rounded_to_its_own_type(untrained: Model) -> None:
    """As where a device map spreads the layers: nothing takes type or device from another layer."""
    for site, dtype in zip(SITES, DTYPES, strict=True):
        untrained.architecture.w_out(site).module.to(dtype)
    before, patch = matrices(untrained), random_patch(untrained, 0)
    with patch.applied(untrained):
        for site in SITES:
            weight = untrained.architecture.w_out(site).weight
            assert torch.equal(weight, expected(before[str(site)], site, {"p": (patch, 1.0)}))
    assert same(before, matrices(untrained))


def test_a_push_costs_what_it_moves(untrained: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many patches live, a further one looks at its own rows and at the patches that touch these."""
    live, seen, edited = stack_of(untrained), [], base_rows.edited_rows
    many = [random_patch(untrained, seed, layers=(0, 5)) for seed in range(40)]
    alone, overlapping = random_patch(untrained, 50, layers=(3,)), random_patch(untrained, 51, n_units=1, layers=(0,))
    for patch in many:
        live.push(patch)

    def watched(site: mmedit.Site, units: torch.Tensor, base: torch.Tensor, entries: Any) -> torch.Tensor:
        seen.append((site, len(units), len(base), {entry.patch.name for entry in entries}))
        return edited(site, units, base, entries)

    def all_names(self: Entries) -> Iterator[str]:
        raise AssertionError("what is live is looked through")

    monkeypatch.setattr(base_rows, "edited_rows", watched)
    monkeypatch.setattr(Entries, "__iter__", all_names)
    live.push(alone)
    live.pop(alone.name)
    live.push(overlapping)
    unit = overlapping.units(SITES[0])
    touching = {patch.name for patch in many if torch.isin(unit, patch.units(SITES[0])).all()}
    assert 0 < len(touching) < 20
    assert seen == [
        (mmedit.Site(3), 4, 4, {alone.name}),
        (mmedit.Site(3), 4, 4, set()),
        (mmedit.Site(0), 1, 1, {*touching, overlapping.name}),
    ]
    with alone.applied(untrained, 2.0):
        pass
    alone.apply(untrained)
    live.scale(live.name_of(alone), 0.5)
    alone.revert(untrained)
    monkeypatch.undo()
    live.clear()


def test_a_patch_is_found_under_its_first_name(untrained: Model) -> None:
    patch, live = random_patch(untrained, 0), stack_of(untrained)
    with pytest.raises(PatchError, match="not live"):
        live.name_of(patch)
    for name in "abc":
        live.push(patch, name)
    live.scale("a", 0.5)
    for name in "abc":
        assert live.name_of(dataclasses.replace(patch, edits=())) == name
        patch.revert(untrained)
    with pytest.raises(PatchError, match="not live"):
        patch.revert(untrained)
    patch.apply(untrained)  # under its own name, which it may have again
    patch.revert(untrained)


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def slow_write(monkeypatch: pytest.MonkeyPatch) -> None:
    write = WOut.write

    def slowly(self: WOut, units: torch.Tensor, rows: torch.Tensor) -> None:
        write(self, units, rows)
        time.sleep(0.02)

    monkeypatch.setattr(WOut, "write", slowly)


def test_ctrl_c_in_the_middle_of_writing_waits_for_the_end(untrained: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real SIGINT, sent by another thread between two writes of a push, and of a pop."""
    before, patch, live = bits(untrained.model), random_patch(untrained, 0), stack_of(untrained)
    with patch.applied(untrained):
        after = bits(untrained.model)
    slow_write(monkeypatch)
    for change, names, state in [
        (lambda: live.push(patch), ("s0→t0",), after),
        (lambda: live.pop("s0→t0"), (), before),
    ]:
        sender = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            sender.start()
            change()
            time.sleep(1)
        sender.join()
        assert live.names == names and same(state, bits(untrained.model))


def test_ctrl_c_at_any_moment_leaves_whole_patches(untrained: Model) -> None:
    generator, live = random.Random(0), stack_of(untrained)
    before, patch = matrices(untrained), random_patch(untrained, 0)
    with patch.applied(untrained):
        after = matrices(untrained)
    for _ in range(60):
        sender = threading.Timer(generator.uniform(0, 0.004), os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            sender.start()
            live.push(patch)
            time.sleep(1)
        sender.join()
        assert same(after if live.names else before, matrices(untrained))
        live.clear()
        assert same(before, matrices(untrained)) and not live._base


def interrupting(at: int, files: tuple[str, ...]) -> tuple[Callable[..., Any], list[int]]:
    """A trace function that raises SIGINT before the given line executed in these files."""
    lines = [0]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if Path(frame.f_code.co_filename).name not in files:
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == at:
                signal.raise_signal(signal.SIGINT)
        return trace

    return trace, lines


@pytest.fixture
def untraced() -> Iterator[None]:
    previous = sys.gettrace()
    yield
    sys.settrace(previous)


WITH_BLOCKS: dict[str, Callable[[Model, mmedit.Patch], Any]] = {
    "stack": lambda vlm, patch: mmedit.stack(vlm, [patch]),
    "applied": lambda vlm, patch: patch.applied(vlm),
}


@pytest.mark.parametrize("kind", WITH_BLOCKS)
def test_ctrl_c_at_every_line_of_a_with_block(untrained: Model, untraced: None, kind: str) -> None:
    """Wherever one Ctrl-C lands, going in or out, in the end the patches are out and the rows as they were."""
    files = ("live.py", "base_rows.py", "rows.py", "entries.py", "interrupts.py", "contextlib.py")
    patch, before, live = random_patch(untrained, 0, layers=(3,)), matrices(untrained), stack_of(untrained)
    at, interrupted = 1, 0
    while True:
        trace, lines = interrupting(at, files)
        try:
            sys.settrace(trace)
            with WITH_BLOCKS[kind](untrained, patch):
                pass
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(None)
        assert live.names == () and not live._base, f"line {at}"
        assert same(before, matrices(untrained)), f"line {at}"
        if lines[0] < at:
            break
        at += 1
    assert interrupted == at - 1 > 50


@pytest.mark.parametrize("kind", WITH_BLOCKS)
def test_ctrl_c_at_random_moments_takes_everything_out(untrained: Model, kind: str) -> None:
    """Real signals, while blocks are entered and left one after the other."""
    generator, live = random.Random(1), stack_of(untrained)
    before, patch = matrices(untrained), random_patch(untrained, 0)
    for _ in range(150):
        sender = threading.Timer(generator.uniform(0, 0.006), os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            sender.start()
            while True:
                with WITH_BLOCKS[kind](untrained, patch):
                    pass
        sender.join()
        assert live.names == () and not live._base and same(before, matrices(untrained))


def test_ctrl_c_goes_to_whoever_handles_it() -> None:
    heard: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with uninterrupted(), uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert not heard
        assert heard == [signal.SIGINT]
        with pytest.raises(ValueError, match="ours"), uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("ours")
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGINT, previous)
    thread = threading.Thread(target=lambda: uninterrupted().__enter__())  # only the main thread may set handlers
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is previous


# --- what it refuses -------------------------------------------------------------------------------------------------


class Packed(nn.Parameter):
    """As bitsandbytes' Params4bit: a packed parameter, whose storage may even be of a float type."""


class Wrapped(torch.Tensor):
    """As torchao's weights: a subclass of Tensor that says it has the dtype of the original."""


def down(vlm: Any, layer: int = 3) -> Any:
    return vlm.model.model.language_model.layers[layer].mlp.down_proj


def pack(dtype: torch.dtype) -> Callable[[Model], None]:
    def quantise(vlm: Model) -> None:
        down(vlm).weight = Packed(torch.zeros(128 * 256, 1, dtype=dtype), requires_grad=False)

    return quantise


def retype(dtype: torch.dtype) -> Callable[[Model], None]:
    def convert(vlm: Model) -> None:
        down(vlm).weight = nn.Parameter(down(vlm).weight.detach().to(dtype), requires_grad=False)

    return convert


def wrap(vlm: Model) -> None:
    down(vlm).weight = nn.Parameter(down(vlm).weight.detach().as_subclass(Wrapped), requires_grad=False)


def offload(vlm: Model) -> None:
    pytest.importorskip("accelerate").cpu_offload(down(vlm), execution_device=torch.device("cpu"))


class Replacement(nn.Module):
    """As torch.ao's and GPTQ's Linear: a module of its own, whose weight is not a tensor."""

    def weight(self) -> torch.Tensor:
        return torch.zeros(128, 512)


def replace(vlm: Model) -> None:
    vlm.model.model.language_model.layers[3].mlp.down_proj = Replacement()


UNEDITABLE: dict[str, tuple[Callable[[Model], None], str]] = {
    "bitsandbytes 4 bit": (pack(torch.uint8), r"quantised[^\n]*Packed of torch.uint8"),
    "bitsandbytes 4 bit in a float type": (pack(torch.bfloat16), r"quantised[^\n]*Packed of torch.bfloat16"),
    "8 bit": (retype(torch.int8), r"quantised[^\n]*torch.int8"),
    "float8": (retype(torch.float8_e4m3fn), r"quantised[^\n]*float8"),
    "float64": (retype(torch.float64), r"is torch.float64[^\n]*cannot be edited"),
    "torchao": (wrap, r"quantised or sharded \(Wrapped"),
    "offloaded": (offload, r"offloaded"),
    "replaced": (replace, r"replaced by a [\w.]*Replacement"),
}


@pytest.mark.parametrize("case", UNEDITABLE)
def test_weights_that_cannot_be_edited_are_refused_with_a_way_out(untrained: Model, case: str) -> None:
    spoil, words = UNEDITABLE[case]
    patches, live = (
        [random_patch(untrained, 0, layers=(0,)), random_patch(untrained, 1, layers=(3,))],
        stack_of(untrained),
    )
    spoil(untrained)
    before = matrices(untrained, SITES[:1])
    with pytest.raises(ModelError, match=words) as caught, mmedit.stack(untrained, patches):
        pass
    assert "layers.3.mlp.down_proj" in str(caught.value)
    assert case == "float64" or "PEFT adapter (patch.to_lora)" in str(caught.value)
    assert live.names == () and same(before, matrices(untrained, SITES[:1]))
    with mmedit.stack(untrained, patches[:1]):  # the other layers are as good as ever
        assert live.names == ("s0→t0",)


def test_a_model_loaded_quantised_is_refused(processor: Any) -> None:
    model = build_llava(processor)
    patch = random_patch(model, 0, layers=(3,))
    packed = build_llava(processor)
    for layer in packed.model.language_model.layers:
        layer.mlp.down_proj.weight = Packed(torch.zeros(128 * 256, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match=r"quantised[\s\S]*to_lora"):
        patch.apply(packed)
    for layer in model.model.language_model.layers:
        layer.mlp.down_proj = Replacement()
    with pytest.raises(ModelError, match=r"quantised and cannot be read[\s\S]*to_lora"):
        Architecture(model)


# --- torch.compile ---------------------------------------------------------------------------------------------------


def test_a_compiled_model_has_the_stack_of_the_model_and_sees_edits(untrained: Model) -> None:
    mlp, hidden = untrained.model.model.language_model.layers[5].mlp, torch.randn(1, 3, 128)
    patch = random_patch(untrained, 0)
    plain = mlp(hidden)
    with patch.applied(untrained):
        edited = mlp(hidden)
    wrapper = torch.compile(untrained.model, backend="eager")
    assert stack_of(wrapper) is stack_of(untrained)
    mlp.compile(backend="eager")
    assert torch.equal(mlp(hidden), plain)
    with mmedit.stack(wrapper, [patch]):
        assert torch.equal(mlp(hidden), edited) and not torch.equal(edited, plain)
    assert torch.equal(mlp(hidden), plain)


FREEZING = {"options": {"freezing": True}}


@pytest.fixture(scope="session")
def inductor() -> Any:
    """Inductor's configuration; importing inductor warns of torch's own use of TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._inductor.compile_fx")
    return importlib.import_module("torch._inductor.config")


def test_weights_baked_into_a_compiled_graph_are_refused(untrained: Model, inductor: Any) -> None:
    model, patch = untrained.model, random_patch(untrained, 0, layers=(3,))
    layers = model.model.language_model.layers
    model.model.vision_tower.compile(**FREEZING)
    layers[2].mlp.compile(**FREEZING)
    with mmedit.stack(untrained, [patch]):  # other parts of the model may be frozen
        pass
    ways: list[Callable[[], Any]] = [
        lambda: layers[3].mlp.compile(**FREEZING),
        lambda: model.compile(**FREEZING),
        lambda: setattr(model, "forward", torch.compile(model.forward, **FREEZING)),
        lambda: setattr(model, "_compiled_call", torch.compile(model.__call__, **FREEZING)),  # as generate() does
        lambda: setattr(model.model, "language_model", torch.compile(model.model.language_model, **FREEZING)),
    ]
    for compile_it in ways:
        state = {module: dict(vars(module)) for module in (model, model.model, layers[3].mlp)}
        modules = dict(model.model._modules)
        compile_it()
        with pytest.raises(ModelError, match=r"compiled with freezing[\s\S]*without freezing"):
            patch.apply(untrained)
        for module, kept in state.items():
            vars(module).clear()
            vars(module).update(kept)
        model.model._modules.update(modules)
    with mmedit.stack(untrained, [patch]):
        pass
    frozen = torch.compile(model, **FREEZING)
    with pytest.raises(ModelError, match="freezing"):
        patch.apply(frozen)
    with pytest.raises(ModelError, match="freezing"):  # once it is known, under any name of the model
        patch.apply(untrained)
    del frozen


def test_the_global_flag_counts_for_what_is_compiled(untrained: Model, inductor: Any) -> None:
    patch, mlp = random_patch(untrained, 0, layers=(3,)), untrained.model.model.language_model.layers[3].mlp
    with inductor.patch(freezing=True), patch.applied(untrained):  # nothing is compiled
        pass
    mlp.compile(backend="eager")
    with inductor.patch(freezing=True), patch.applied(untrained):  # not by inductor
        pass
    mlp.compile()
    with patch.applied(untrained):
        pass
    with inductor.patch(freezing=True), pytest.raises(ModelError, match="freezing"):
        patch.apply(untrained)
