"""What stack-check says of two patches: shared neurons, cosine, relation, and what each does to the other's margin."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from test_merge import made, patches
from test_patch import low_rank_patch, random_patch

import mmedit
from mmedit.errors import BaseMismatchError, PatchError, RequestError
from mmedit.patches.conflicts import Conflict, conflicts, table
from mmedit.patches.live import stack_of


def swap(source: str, target: str, unit: int = 1) -> mmedit.Patch:
    return made({unit: [1.0, 0.0, 0.0, 0.0]}, source=source, target=target)


@pytest.mark.parametrize(
    ("first", "second", "relation"),
    [
        (("cat", "dog"), ("dog", "cat"), "contradiction"),
        (("cat", "dog"), ("Dog", "CAT"), "contradiction"),
        (("cat", "dog"), ("dog", "bird"), "chain"),
        (("dog", "bird"), ("cat", "dog"), "chain"),
        (("cat", "dog"), ("cat", "bird"), "same source"),
        (("cat", "dog"), ("cat", "dog"), "same source"),
        (("cat", "dog"), ("bird", "dog"), "none"),
        (("cat", "dog"), ("car", "boat"), "none"),
    ],
)
def test_relations(first: tuple[str, str], second: tuple[str, str], relation: str) -> None:
    assert conflicts([swap(*first, unit=1), swap(*second, unit=2)])[0].relation == relation


def test_of_merged_patches_the_gravest_relation_counts() -> None:
    merged = mmedit.merge([swap("cat", "bird", 1), swap("dog", "cat", 2), swap("car", "boat", 3)])
    assert conflicts([merged, swap("cat", "dog", 4)])[0].relation == "contradiction"
    assert conflicts([swap("boat", "tree", 4), merged])[0].relation == "chain"
    unnamed = dataclasses.replace(merged, edits=())
    assert conflicts([unnamed, swap("cat", "dog", 4)])[0].relation == "none"


@settings(deadline=None, max_examples=40)
@given(patches(), patches())
def test_shared_neurons_and_cosine_are_those_of_the_dense_deltas(a: mmedit.Patch, b: mmedit.Patch) -> None:
    found, dense = conflicts([a, b])[0], []
    for patch in (a, b):
        whole = torch.zeros(3, 32, 4, dtype=torch.float64)
        for site, (units, rows) in patch.deltas.items():
            whole[site.layer, units] = rows.double()
        dense.append(whole.flatten())
    sizes = float(dense[0].norm() * dense[1].norm())
    expected = float(dense[0] @ dense[1]) / sizes if sizes else 0.0
    assert found.shared == tuple(sorted(set(a.neurons) & set(b.neurons)))
    assert found.cosine == pytest.approx(expected, abs=1e-9) and -1 <= found.cosine <= 1
    assert found.shared or found.cosine == 0
    back = conflicts([b, a])[0]
    assert (back.shared, back.relation, back.first, back.second) == (found.shared, found.relation, b.name, a.name)
    assert found.gains == found.changes == (None, None)


def test_low_rank_patches_are_compared_as_they_are(untrained: mmedit.VisionLanguageModel) -> None:
    a, b = low_rank_patch(untrained, 1), random_patch(untrained, 2, layers=(2,))
    found = conflicts([a, b])[0]
    site, units = mmedit.Site(2), b.units(mmedit.Site(2))
    assert found.shared == b.neurons
    dot = (a.rows(site)[units] * b.rows(site)).sum()
    sizes = torch.cat([a.rows(s).flatten() for s in a.sites]).norm() * b.rows(site).norm()
    assert found.cosine == pytest.approx(float(dot / sizes), rel=1e-4)
    assert conflicts([a, a])[0].cosine == pytest.approx(1.0)


# --- margins ---------------------------------------------------------------------------------------------------------


def recorded(vlm: Any, seed: int, source_id: int, target_id: int, **edit: Any) -> mmedit.Patch:
    """A random patch of 4 neurons of layer 5 that says with which activations."""
    patch = random_patch(vlm, seed, layers=(5,))
    said = {
        **patch.edits[0], "source_token_id": source_id, "target_token_id": target_id,
        "neurons": [str(neuron) for neuron in patch.neurons[::-1]], "activations": [0.5, -1.0, 2.0, 3.0],
    }  # fmt: skip
    return dataclasses.replace(patch, edits=({**said, **edit},))


def test_margins_are_those_of_a_last_layer_without_norm(untrained: mmedit.VisionLanguageModel) -> None:
    """Σ o·Δw·(v1 − v0), computed here from whole matrices: W_out with and without the other patch."""
    a, b = recorded(untrained, 0, 300, 301), recorded(untrained, 1, 302, 303)
    found, w_out, w_u = (
        conflicts([a, b], untrained)[0],
        untrained.architecture.w_out(mmedit.Site(5)),
        untrained.architecture.w_u,
    )
    assert 0 < len(found.shared) < 4
    for own, gain, change, other in (
        (a, found.gains[0], found.changes[0], b),
        (b, found.gains[1], found.changes[1], a),
    ):
        edit, o = own.edits[0], torch.zeros(512)
        for neuron, activation in zip(edit["neurons"], edit["activations"], strict=True):
            o[mmedit.Neuron.parse(neuron).unit] = activation
        direction = w_u[edit["target_token_id"]] - w_u[edit["source_token_id"]]
        base = o @ w_out.matrix @ direction
        for patch, told in ((own, gain), (other, change)):
            with patch.applied(untrained):
                assert told == pytest.approx(float(o @ w_out.matrix @ direction - base), rel=1e-3, abs=1e-4)
    assert conflicts([b, a], untrained.model)[0].changes == found.changes[::-1]


def test_margins_of_disjoint_patches_are_zero_and_of_unrecorded_ones_unknown(
    untrained: mmedit.VisionLanguageModel,
) -> None:
    a, far = recorded(untrained, 0, 300, 301), random_patch(untrained, 1, layers=(0,))
    found = conflicts([a, far], untrained)[0]
    assert found.changes == (0.0, None) and found.gains[1] is None and found.gains[0] != 0
    assert conflicts([a, far])[0].changes == (None, None)


def test_of_several_edits_the_one_that_is_harmed_most_is_told(untrained: mmedit.VisionLanguageModel) -> None:
    a, b, c = recorded(untrained, 0, 300, 301), recorded(untrained, 1, 302, 303), recorded(untrained, 2, 304, 305)
    singles = [conflicts([patch, c], untrained)[0].changes[0] for patch in (a, b)]
    assert conflicts([mmedit.merge([a, b]), c], untrained)[0].changes[0] == min(s for s in singles if s is not None)


def test_a_low_rank_patch_moves_margins_too(untrained: mmedit.VisionLanguageModel) -> None:
    low = low_rank_patch(untrained, 1)
    edit = {"source_token_id": 300, "target_token_id": 301, "neurons": ["L2.U7", "L2.U9"], "activations": [1.0, -2.0]}
    a = dataclasses.replace(random_patch(untrained, 2, layers=(2,)), edits=({"source": "a", "target": "b", **edit},))
    rows, w_u = low.rows(mmedit.Site(2)), untrained.architecture.w_u
    told = conflicts([a, low], untrained)[0].changes[0]
    assert told == pytest.approx(float((rows[7] - 2 * rows[9]) @ (w_u[301] - w_u[300])), rel=1e-3)


@pytest.mark.parametrize(
    "damage",
    [
        {"neurons": ["L5.Ux"]}, {"neurons": 3}, {"activations": ["warm"]}, {"activations": [1.0]}, {"activations": None},
        {"source_token_id": "cat"}, {"target_token_id": 10**6}, {"target_token_id": -1}, {"activations": [float("nan")] * 4},
    ],
)  # fmt: skip
def test_damaged_edits_are_refused(untrained: mmedit.VisionLanguageModel, damage: dict[str, Any]) -> None:
    a, b = recorded(untrained, 0, 300, 301, **damage), recorded(untrained, 1, 302, 303)
    with pytest.raises(PatchError, match="damaged"):
        conflicts([b, a], untrained)


def test_what_cannot_be_compared_is_refused(untrained: mmedit.VisionLanguageModel, processor: Any) -> None:
    a, b = random_patch(untrained, 0), random_patch(untrained, 1)
    with pytest.raises(RequestError, match="two patches"):
        conflicts([a])
    with pytest.raises(BaseMismatchError, match="different weights"):
        conflicts([a, swap("cat", "dog")])
    other = mmedit.testbed.checkpoint.build_llava(processor, seed=1)
    with pytest.raises(BaseMismatchError, match="another model"):
        conflicts([a, b], other)
    assert stack_of(untrained).names == ()


def test_records_are_plain_json_and_a_table(untrained: mmedit.VisionLanguageModel) -> None:
    found = conflicts(
        [recorded(untrained, 0, 300, 301), recorded(untrained, 1, 302, 303), random_patch(untrained, 2)], untrained
    )
    assert [(c.first, c.second) for c in found] == [("s0→t0", "s1→t1"), ("s0→t0", "s2→t2"), ("s1→t1", "s2→t2")]
    plain = json.loads(json.dumps(found[0].to_dict()))
    assert plain["shared"] == [str(n) for n in found[0].shared] and plain["changes"] == list(found[0].changes)
    assert set(plain) == {field.name for field in dataclasses.fields(Conflict)}
    lines = table(found).splitlines()
    assert len(lines) == 4 and lines[0].split()[:4] == ["patches", "shared", "cosine", "relation"]
    assert (
        lines[1].startswith("s0→t0 | s1→t1") and f"{found[0].changes[0]:+.2f} of {found[0].gains[0]:+.2f}" in lines[1]
    )
    assert lines[2].endswith("unknown")


# --- the shipped model -----------------------------------------------------------------------------------------------


def test_two_edits_of_the_shipped_model(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest) -> None:
    """One source, two targets: the same neurons, and each spoils part of the other's margin; merged they are the stack."""
    editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
    to_dog = editor.execute(vlm, request_of_cat)
    to_boat = editor.execute(vlm, mmedit.EditRequest(request_of_cat.images, "cat", "boat"))
    assert to_dog.edits[0]["activations"] == list(editor.locate(vlm, request_of_cat).activations[:5])
    found = conflicts([to_dog, to_boat], vlm)[0]
    assert found.relation == "same source" and found.shared == to_dog.neurons == to_boat.neurons
    assert all(gain is not None and gain > 0 for gain in found.gains)
    o, (v0, v1, v2) = torch.tensor(to_dog.edits[0]["activations"]), (vlm.architecture.w_u[to_dog.edits[0]["source_token_id"]],
        vlm.architecture.w_u[to_dog.edits[0]["target_token_id"]], vlm.architecture.w_u[to_boat.edits[0]["target_token_id"]])  # fmt: skip
    assert (found.changes[0] > 0) == bool((v2 - v0) @ (v1 - v0) > 0)  # type: ignore[operator]
    assert o.abs().min() > 0
    base = vlm.caption(request_of_cat.images)
    merged = mmedit.merge([to_dog, to_boat])
    with mmedit.stack(vlm, [to_dog, to_boat]):
        both = {str(site): vlm.architecture.w_out(site).matrix.clone() for site in merged.sites}
        together = vlm.caption(request_of_cat.images)
    with merged.applied(vlm):
        assert all(torch.equal(both[str(site)], vlm.architecture.w_out(site).matrix) for site in merged.sites)
        assert vlm.caption(request_of_cat.images) == together
    assert vlm.caption(request_of_cat.images) == base and together != base
    assert [edit["target"] for edit in merged.edits] == ["dog", "boat"]
