"""An edited model beside the unedited one: the same answers as `applied`, and not a byte of the other touched."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

import mmedit
from mmedit.errors import BaseMismatchError
from mmedit.patches.base import matrix_digest
from mmedit.patches.view import edited_view


@pytest.fixture
def patch(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest) -> mmedit.Patch:
    return mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat)


@pytest.fixture
def low_rank(vlm: mmedit.VisionLanguageModel, patch: mmedit.Patch) -> mmedit.Patch:
    """A patch of two whole W_outs, one of which the row-sparse patch does not touch."""
    draw = torch.Generator().manual_seed(0)
    sites = [mmedit.Site(1), mmedit.Site(3)]
    factors = {
        site: (torch.randn(512, 2, generator=draw) * 0.02, torch.randn(2, 128, generator=draw)) for site in sites
    }
    digests = {site: matrix_digest(vlm.architecture.w_out(site).matrix) for site in sites}
    return replace(patch, deltas={}, base_rows={}, low_rank=factors, base_digests=digests)


@pytest.mark.parametrize("kind", ["patch", "low_rank"])
def test_a_view_does_what_applied_does(
    kind: str, vlm: mmedit.VisionLanguageModel, pictures: list[Any], request: pytest.FixtureRequest
) -> None:
    edit: mmedit.Patch = request.getfixturevalue(kind)
    shown = [picture for picture, _, _ in pictures[:12]]
    batch = vlm.inputs(shown[:3])
    with edit.applied(vlm), torch.no_grad():
        logits, said = vlm.model(**batch).logits, vlm.caption(shown)
    view = edited_view(vlm, edit)
    with torch.no_grad():
        assert torch.equal(view(**batch).logits, logits)
        assert not torch.equal(vlm.model(**batch).logits, logits)
    assert mmedit.VisionLanguageModel(view, vlm.processor).caption(shown) == said
    assert type(view) is type(vlm.model) and view.config == vlm.model.config and view.device == vlm.model.device


@pytest.mark.parametrize("kind", ["patch", "low_rank"])
def test_all_but_the_patched_tensors_are_shared(
    kind: str, vlm: mmedit.VisionLanguageModel, request: pytest.FixtureRequest
) -> None:
    edit: mmedit.Patch = request.getfixturevalue(kind)
    view, own = edited_view(vlm, edit), {vlm.architecture.w_out(site).name for site in edit.sites}
    theirs = dict(vlm.model.named_parameters()) | dict(vlm.model.named_buffers())
    ours = dict(view.named_parameters()) | dict(view.named_buffers())
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] is not theirs[name]} == own
    assert not {id(module) for module in view.modules()} & {id(module) for module in vlm.model.modules()}
    edit.revert(view)
    assert all(torch.equal(ours[name], theirs[name]) for name in own)


def test_a_view_of_another_model_is_refused(untrained: mmedit.VisionLanguageModel, patch: mmedit.Patch) -> None:
    with pytest.raises(BaseMismatchError):
        edited_view(untrained, patch)


def test_both_run_at_once(vlm: mmedit.VisionLanguageModel, patch: mmedit.Patch, pictures: list[Any]) -> None:
    shown = [picture for picture, _, things in pictures if "cat" in {thing.noun for thing in things}]
    edited = mmedit.VisionLanguageModel(edited_view(vlm, patch), vlm.processor)
    alone = {name: each.caption(shown) for name, each in (("base", vlm), ("view", edited))}
    assert alone["base"] != alone["view"]
    together: dict[str, list[list[str]]] = {"base": [], "view": []}

    def run(name: str, each: mmedit.VisionLanguageModel) -> None:
        for _ in range(4):
            together[name].append(each.caption(shown))

    threads = [threading.Thread(target=run, args=pair) for pair in (("base", vlm), ("view", edited))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {name: [said] * 4 for name, said in alone.items()}


def test_a_view_that_is_let_go_is_freed(vlm: mmedit.VisionLanguageModel, patch: mmedit.Patch) -> None:
    known = weakref.ref(edited_view(vlm, patch))
    gc.collect()
    assert known() is None
