"""Merging: the laws of sum and mean, what TIES and DARE are by their papers, provenance, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_patch import DTYPES, bits, low_rank_patch, random_patch, same

import mmedit
from mmedit.errors import BaseMismatchError, PatchError, RequestError
from mmedit.patches.base import Base
from mmedit.patches.merge import DENSITIES
from mmedit.testbed.checkpoint import build_llava

BASE = Base("m", None, "llava", 3, 4, 32, "")
ROWS = torch.randn(
    3, 32, 4, generator=torch.Generator().manual_seed(0)
)  # the weights that all patches here are made on
METHODS = tuple(DENSITIES)
number = st.floats(-8, 8, width=32)


@st.composite
def patches(
    draw: st.DrawFn, layers: tuple[int, ...] = (0, 2), units: tuple[int, ...] = tuple(range(6))
) -> mmedit.Patch:
    """Patches of a small model, with rows in common now and then."""
    deltas = {}
    for layer in draw(st.lists(st.sampled_from(layers), min_size=1, unique=True)):
        edited = sorted(draw(st.lists(st.sampled_from(units), min_size=1, max_size=3, unique=True)))
        rows = draw(st.lists(st.lists(number, min_size=4, max_size=4), min_size=len(edited), max_size=len(edited)))
        deltas[mmedit.Site(layer)] = torch.tensor(edited), torch.tensor(rows)
    base = {site: ROWS[site.layer][edited] for site, (edited, _) in deltas.items()}
    return mmedit.Patch(
        deltas, base, BASE, "test", {"lr": 1}, ({"source": draw(st.sampled_from("abc")), "target": "t"},)
    )


weights = st.sampled_from([1.0, 0.5, -1.0, 0.1, 3.0])


def exact(chosen: list[mmedit.Patch], scales: list[float]) -> dict[tuple[mmedit.Site, int], torch.Tensor]:
    """Σ scale·delta of each row in float64."""
    rows: dict[tuple[mmedit.Site, int], torch.Tensor] = {}
    for patch, scale in zip(chosen, scales, strict=True):
        for site, (units, deltas) in patch.deltas.items():
            for unit, row in zip(units.tolist(), deltas, strict=True):
                rows[site, unit] = rows.get((site, unit), torch.zeros(4, dtype=torch.float64)) + scale * row.double()
    return rows


def by_row(patch: mmedit.Patch) -> dict[tuple[mmedit.Site, int], torch.Tensor]:
    return {
        (s, u): row for s, (units, rows) in patch.deltas.items() for u, row in zip(units.tolist(), rows, strict=True)
    }


def near(merged: mmedit.Patch, chosen: list[mmedit.Patch], scales: list[float]) -> bool:
    """Whether merged rows are the exact sums to float32 rounding."""
    rows, true = by_row(merged), exact(chosen, scales)
    sizes = exact(
        [dataclasses.replace(p, deltas={s: (u, d.abs()) for s, (u, d) in p.deltas.items()}) for p in chosen],
        [abs(s) for s in scales],
    )
    bound = len(chosen) * 2.0**-23
    return rows.keys() == true.keys() and all(
        bool(((rows[k] - true[k]).abs() <= bound * sizes[k] + 1e-40).all()) for k in true
    )


# --- laws ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(patches())
def test_a_merge_of_one_is_itself(patch: mmedit.Patch) -> None:
    for method in ("sum", "mean"):
        merged = mmedit.merge([patch], method)
        assert merged.digest == patch.digest and merged.edits == patch.edits
        assert all(torch.equal(merged.base_rows[site], rows) for site, rows in patch.base_rows.items())
    for method in ("ties", "dare"):
        rows = by_row(mmedit.merge([patch], method, density=1.0))
        assert all(torch.equal(rows[key], row) for key, row in by_row(patch).items())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(patches(), weights), min_size=2, max_size=4), st.randoms(), st.sampled_from(METHODS))
def test_the_rows_do_not_depend_on_the_order(drawn: list[tuple[mmedit.Patch, float]], order: Any, method: str) -> None:
    shuffled = order.sample(drawn, len(drawn))
    if method == "mean" and abs(sum(weight for _, weight in drawn)) < 1e-3:
        return
    one, two = (mmedit.merge([p for p, _ in pairs], method, [w for _, w in pairs]) for pairs in (drawn, shuffled))
    rows, others = by_row(one), by_row(two)
    assert rows.keys() == others.keys()
    if method == "mean":  # the sum of the weights is rounded in their order
        assert all(torch.allclose(rows[key], others[key], rtol=1e-5, atol=1e-6) for key in rows)
    else:
        assert one.digest == two.digest
    assert sorted(map(str, one.edits)) == sorted(map(str, two.edits))


@settings(deadline=None, max_examples=40)
@given(st.lists(patches(), min_size=3, max_size=3), st.lists(weights, min_size=3, max_size=3))
def test_sum_is_the_exact_sum_to_rounding_however_it_is_bracketed(
    chosen: list[mmedit.Patch], scales: list[float]
) -> None:
    a, b, c = chosen
    assert near(mmedit.merge(chosen, weights=scales), chosen, scales)
    left = mmedit.merge([mmedit.merge([a, b], weights=scales[:2]), c], weights=[1.0, scales[2]])
    right = mmedit.merge([a, mmedit.merge([b, c], weights=scales[1:])], weights=[scales[0], 1.0])
    assert near(left, chosen, scales) and near(right, chosen, scales)


@settings(deadline=None, max_examples=40)
@given(patches(units=(0, 1, 2)), patches(units=(3, 4, 5)), patches(layers=(1,)))
def test_sum_of_disjoint_patches_is_associative_bit_for_bit(a: mmedit.Patch, b: mmedit.Patch, c: mmedit.Patch) -> None:
    bracketed = [mmedit.merge([mmedit.merge([a, b]), c]), mmedit.merge([a, mmedit.merge([b, c])])]
    assert {merged.digest for merged in bracketed} == {mmedit.merge([a, b, c]).digest}


@settings(deadline=None, max_examples=40)
@given(st.lists(patches(), min_size=1, max_size=4))
def test_mean_is_the_sum_of_shares(chosen: list[mmedit.Patch]) -> None:
    assert near(mmedit.merge(chosen, "mean"), chosen, [1 / len(chosen)] * len(chosen))
    scales = [float(n + 1) for n in range(len(chosen))]
    assert near(mmedit.merge(chosen, "mean", scales), chosen, [scale / sum(scales) for scale in scales])


@settings(deadline=None, max_examples=6)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4, unique=True), weights, st.sampled_from(DTYPES))
def test_a_sum_is_the_stack_bit_for_bit(processor: Any, seeds: list[int], weight: float, dtype: torch.dtype) -> None:
    """With rows in common or without, on every model type."""
    model = build_llava(processor).to(dtype)
    before, chosen = bits(model), [random_patch(model, seed) for seed in seeds]
    scales = [weight * (n + 1) for n in range(len(seeds))]
    merged = mmedit.merge(chosen, weights=scales)
    with mmedit.stack(model, chosen, scales):
        stacked = bits(model)
    with merged.applied(model):
        assert same(stacked, bits(model))
    assert same(before, bits(model)) and not same(before, stacked)


# --- TIES and DARE ---------------------------------------------------------------------------------------------------


def made(rows: dict[int, list[float]], **edit: Any) -> mmedit.Patch:
    """A patch of some units of layer 0."""
    units = torch.tensor(sorted(rows))
    deltas = torch.tensor([rows[unit] for unit in units.tolist()])
    edits = ({"source": "a", "target": "b", **edit},)
    return mmedit.Patch({mmedit.Site(0): (units, deltas)}, {mmedit.Site(0): ROWS[0][units]}, BASE, "test", {}, edits)


def test_ties_by_hand() -> None:
    a, b = made({1: [4.0, -1.0, 2.0, 0.5], 3: [1.0, 1.0, 1.0, 1.0]}), made({1: [-3.0, -2.0, 2.5, 0.0]})
    elected = mmedit.merge([a, b], "ties", density=1.0)
    assert torch.equal(elected.deltas[mmedit.Site(0)][0], torch.tensor([1, 3]))
    assert torch.equal(elected.deltas[mmedit.Site(0)][1], torch.tensor([[4.0, -1.5, 2.25, 0.5], [1.0, 1.0, 1.0, 1.0]]))
    outvoted = mmedit.merge([a, b], "ties", [1.0, 2.0], density=1.0).deltas[mmedit.Site(0)][1][0]
    assert torch.equal(outvoted, torch.tensor([-6.0, -2.5, 3.5, 0.5]))
    trimmed = mmedit.merge([a, b], "ties", density=0.5).deltas[mmedit.Site(0)][
        1
    ]  # of a: 4 of 8, the ties with 1 all stay
    assert torch.equal(trimmed, torch.tensor([[4.0, -1.0, 2.25, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    least = mmedit.merge([a], "ties", density=1e-6).deltas[mmedit.Site(0)][1]
    assert least.flatten().tolist() == [4.0] + [0.0] * 7, "one number stays"
    even = mmedit.merge([made({1: [1.0, 0, 0, 0]}), made({1: [-1.0, 0, 0, 0]})], "ties", density=1.0)
    assert even.deltas[mmedit.Site(0)][1].abs().max() == 0


@settings(deadline=None, max_examples=40)
@given(patches(), st.floats(0.05, 1))
def test_ties_keeps_the_largest_numbers_of_a_patch(patch: mmedit.Patch, density: float) -> None:
    rows, kept = (
        torch.cat([r for _, r in p.deltas.values()]).flatten()
        for p in (patch, mmedit.merge([patch], "ties", density=density))
    )
    assert torch.equal(kept[kept != 0], rows[kept != 0])
    dropped, n_kept = rows[kept == 0].abs(), max(1, round(density * len(rows)))
    assert (kept != 0).sum() >= min(n_kept, int((rows != 0).sum()))
    if len(dropped) and (kept != 0).any():
        assert dropped.max() <= kept[kept != 0].abs().min()
    if len(rows.abs().unique()) == len(rows):
        assert (rows.abs() >= rows.abs().sort(descending=True).values[n_kept - 1]).sum() == n_kept


def test_the_defaults_are_those_of_the_papers() -> None:
    wide = dataclasses.replace(BASE, d_model=5000)
    rows = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1))
    patch = mmedit.Patch({mmedit.Site(0): (torch.tensor([2]), rows)}, {mmedit.Site(0): torch.zeros(1, 5000)}, wide)
    ties, dare = (mmedit.merge([patch], method) for method in ("ties", "dare"))
    assert (ties.deltas[mmedit.Site(0)][1] != 0).sum() == 1000 and ties.hparams["density"] == 0.2
    kept = dare.deltas[mmedit.Site(0)][1]
    assert 400 < (kept != 0).sum() < 600 and dare.hparams["density"] == 0.1 and dare.hparams["seed"] == 0
    assert torch.equal(kept[kept != 0], (rows / 0.1)[kept != 0])


def test_dare_is_seeded_and_right_on_average() -> None:
    a, b = made({1: [4.0, -1.0, 2.0, 0.5]}), made({1: [1.0, 2.0, 3.0, 4.0], 2: [1.0, 1.0, 1.0, 1.0]})
    draws = [mmedit.merge([a, b], "dare", density=0.5, seed=seed) for seed in range(400)]
    assert draws[7].digest == mmedit.merge([a, b], "dare", density=0.5, seed=7).digest
    assert len({draw.digest for draw in draws}) > 300
    mean = torch.stack([draw.deltas[mmedit.Site(0)][1] for draw in draws]).mean(0)
    assert (mean - mmedit.merge([a, b]).deltas[mmedit.Site(0)][1]).abs().max() < 0.9  # 3σ of the largest number


# --- low-rank --------------------------------------------------------------------------------------------------------


def test_low_rank_patches_add_up(untrained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    before, site = bits(untrained.model), mmedit.Site(2)
    chosen = [low_rank_patch(untrained, 1), low_rank_patch(untrained, 2), random_patch(untrained, 3, layers=(2, 4))]
    merged = mmedit.merge(chosen, weights=[1.0, -0.5, 2.0])
    assert merged.low_rank[site][0].shape == (512, 3 + 3 + 4) and set(merged.deltas) == {mmedit.Site(4)}
    assert merged.digest == mmedit.merge(chosen[::-1], weights=[2.0, -0.5, 1.0]).digest
    merged.save(tmp_path / "m.safetensors")
    with mmedit.stack(untrained, chosen, [1.0, -0.5, 2.0]):
        stacked = untrained.architecture.w_out(site).matrix.clone()
    with mmedit.Patch.load(tmp_path / "m.safetensors").applied(untrained):
        assert torch.allclose(stacked, untrained.architecture.w_out(site).matrix, rtol=1e-5, atol=1e-5)
    assert same(before, bits(untrained.model))
    assert mmedit.merge(chosen[:1]).digest == chosen[0].digest
    half, whole = (mmedit.merge(chosen[:2], "mean", w).rows(site) for w in (None, [1.0, 0.0]))
    assert torch.allclose(half, (chosen[0].rows(site) + chosen[1].rows(site)) / 2, atol=1e-5)
    assert torch.allclose(whole, chosen[0].rows(site), atol=1e-5)
    for method in ("ties", "dare"):
        with pytest.raises(PatchError, match=rf"{method} needs rows[\s\S]*L2[\s\S]*sum or mean"):
            mmedit.merge(chosen, method)


# --- provenance and bases --------------------------------------------------------------------------------------------


def test_every_edit_keeps_its_provenance(tmp_path: Path) -> None:
    a, b, c = (made({unit: [1.0] * 4}, source=name) for unit, name in enumerate("abc"))
    inner = mmedit.merge([a, b], "mean", [1, 3])
    merged = mmedit.merge([inner, c], "ties", density=0.7, seed=5)
    merged.save(tmp_path / "m.safetensors")
    again = mmedit.Patch.load(tmp_path / "m.safetensors")
    assert again.editor == "merge" and [edit["source"] for edit in again.edits] == ["a", "b", "c"]
    assert {key: again.hparams[key] for key in ("method", "weights", "density", "seed")} == {
        "method": "ties", "weights": [1.0, 1.0], "density": 0.7, "seed": 5,
    }  # fmt: skip
    parts = again.hparams["parts"]
    assert [(part["name"], part["digest"]) for part in parts] == [(inner.name, inner.digest), (c.name, c.digest)]
    assert [part["digest"] for part in parts[0]["hparams"]["parts"]] == [a.digest, b.digest]
    assert parts[0]["hparams"]["weights"] == [1.0, 3.0] and json.dumps(dict(merged.hparams))
    elsewhere = dataclasses.replace(b, base=dataclasses.replace(BASE, model="a copy of m"))
    assert mmedit.merge([a, elsewhere]).base == a.base


@pytest.mark.parametrize(("field", "value"), [("n_layers", 4), ("d_ffn", 64), ("model_type", "qwen2_vl")])
def test_patches_of_other_models_are_refused(field: str, value: Any) -> None:
    a, b = made({1: [1.0] * 4}), made({2: [1.0] * 4}, source="c")
    other = dataclasses.replace(b, base=dataclasses.replace(BASE, **{field: value}))
    with pytest.raises(BaseMismatchError, match=rf"different weights[\s\S]*c→b[\s\S]*{field} {value}[\s\S]*as for a→b"):
        mmedit.merge([a, other])


def test_patches_of_other_weights_are_refused(untrained: mmedit.VisionLanguageModel) -> None:
    a, b = made({1: [1.0] * 4, 2: [1.0] * 4}), made({2: [1.0] * 4, 5: [1.0] * 4})
    mmedit.merge([a, b])
    rows = b.base_rows[mmedit.Site(0)].clone()
    rows[0, 3] += 1e-3
    with pytest.raises(BaseMismatchError, match=r"L0\.U2\b[\s\S]*one model"):
        mmedit.merge([a, dataclasses.replace(b, base_rows={mmedit.Site(0): rows})])
    with pytest.raises(BaseMismatchError, match=r"L0\.U2\b"):  # the first of two
        mmedit.merge([b, dataclasses.replace(b, base_rows={mmedit.Site(0): rows + 1})])
    low = low_rank_patch(untrained, 1)
    with pytest.raises(BaseMismatchError, match="another W_out at L2"):
        mmedit.merge([low, dataclasses.replace(low, base_digests={mmedit.Site(2): "0" * 64})])


def test_bases_loaded_in_other_types_are_one_base(processor: Any) -> None:
    models = {dtype: build_llava(processor).to(dtype) for dtype in DTYPES}
    full, brain, half = (random_patch(model, seed) for seed, model in enumerate(models.values()))
    merged = mmedit.merge([full, brain])
    assert {rows.dtype for rows in merged.base_rows.values()} == {torch.bfloat16}
    for dtype in (torch.float32, torch.bfloat16):
        before = bits(models[dtype])
        with merged.applied(models[dtype]):
            assert not same(before, bits(models[dtype]))
        assert same(before, bits(models[dtype]))
    with pytest.raises(BaseMismatchError, match=r"torch.bfloat16 and torch.float16"):
        mmedit.merge([full, brain, half])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patches": []}, "nothing to merge"),
        ({"method": "slerp"}, "sum, mean, ties, dare"),
        ({"weights": [1.0]}, "one finite weight"),
        ({"weights": [1.0, float("nan")]}, "one finite weight"),
        ({"method": "mean", "weights": [1.0, -1.0]}, "add up to 0"),
        ({"density": 0.5}, "no density for sum"),
        ({"method": "ties", "density": 0.0}, "above 0"),
        ({"method": "dare", "density": 1.5}, "at most 1"),
        ({"method": "dare", "density": float("nan")}, "at most 1"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        mmedit.merge(**{"patches": [made({1: [1.0] * 4}), made({2: [1.0] * 4})], **arguments})


def test_patches_of_two_checkpoints_of_one_shape_do_not_merge(processor: Any) -> None:
    """Not even where they edit other rows, so that no base row could tell."""
    models = [mmedit.VisionLanguageModel(build_llava(processor, seed), processor, f"model {seed}") for seed in (0, 1)]
    patches = []
    for unit, vlm in enumerate(models):
        site, units = mmedit.Site(1), torch.tensor([unit])
        rows = mmedit.Stack.of(vlm).base_rows(site, units)
        patches.append(mmedit.Patch({site: (units, torch.ones(1, 128))}, {site: rows}, Base.of(vlm)))
    with pytest.raises(BaseMismatchError, match="another unembedding"):
        mmedit.merge(patches)
    unmarked = dataclasses.replace(
        patches[1], base=dataclasses.replace(patches[1].base, weights="")
    )  # as older files are
    for pair in ([patches[0], unmarked], [unmarked, patches[0]]):
        merged = mmedit.merge(pair)
        assert merged.neurons == tuple(mmedit.Neuron(1, unit) for unit in (0, 1))
        assert merged.base == patches[0].base, "the mark is kept"
