"""ROME and MEMIT: their closed forms against solutions worked out in another way, and the second moments that they stand on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmedit
from mmedit.background import drawn_pictures
from mmedit.editors import MEMIT, ROME, MEMITHparams, ROMEHparams, statistics
from mmedit.editors.patching import modules_of
from mmedit.editors.statistics import second_moments
from mmedit.editors.teaching import at, divergence, lessons_of, logits_of
from mmedit.editors.values import _shifted, at_keys
from mmedit.errors import ModelError
from mmedit.models.forcing import answer_ids, forced
from mmedit.models.readout import Route
from mmedit.models.vlm import Generation
from mmedit.neuron import Site
from mmedit.rewrites import Rewrite, rewrites_of
from mmedit.trace import Trace

LAYER = 3


@pytest.fixture(scope="module")
def unrelated() -> list[Any]:
    return drawn_pictures(24)


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """δ as given, so that what is solved for does not hang on what was searched for."""
    delta = torch.randn(128, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("mmedit.editors.values.ValueEditor.shift", lambda *_: delta)
    return delta


def matrix_of(patch: mmedit.Patch, site: Site) -> Tensor:
    left, right = patch.low_rank[site]
    return left.double() @ right.double()


def keys_of(vlm: mmedit.VisionLanguageModel, request: mmedit.EditRequest, layer: int) -> tuple[Tensor, Tensor]:
    """o and the hidden state after a layer where the request's word is predicted, in each of its pictures."""
    lessons = lessons_of(vlm, rewrites_of(vlm, request))
    return at_keys(vlm, lessons, vlm.architecture.w_out(Site(layer)), layer)


def covariance(vlm: mmedit.VisionLanguageModel, unrelated: list[Any], layer: int, ridge: float) -> Tensor:
    c = second_moments(vlm, modules_of(vlm.architecture, [layer]), unrelated)[Site(layer)].double()
    return c + ridge * c.diag().mean() * torch.eye(len(c), dtype=torch.double)


def test_the_key_is_what_enters_w_out_where_mmedit_scores_neurons(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    keys, _ = keys_of(vlm, request_of_cat, LAYER)
    with Trace(vlm.architecture) as trace:
        said = vlm.generate(list(request_of_cat.images))[0]
    place = next(i for i, token in enumerate(said.ids) if vlm.tokenizer.decode([token]).strip() == "cat")
    assert torch.allclose(keys[0].float(), trace.at(Site(LAYER), place, 0), atol=1e-4)


@pytest.mark.parametrize("adjusted", [True, False])
def test_rome_gives_the_key_its_value_and_moves_the_rest_least(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, unrelated: list[Any], shifted: Tensor, adjusted: bool
) -> None:  # fmt: skip
    editor = ROME(ROMEHparams(layer=LAYER, mom2_adjustment=adjusted, ridge=0.1), unrelated)
    delta = matrix_of(editor.execute(vlm, request_of_cat), Site(LAYER))
    k = keys_of(vlm, request_of_cat, LAYER)[0][0]
    assert torch.allclose(k @ delta, shifted.double(), atol=1e-5)
    c = covariance(vlm, unrelated, LAYER, 0.1) if adjusted else torch.eye(512, dtype=torch.double)
    n = len(k)  # least of tr(ΔᵀCΔ) with kᵀΔ = δᵀ, by Lagrange's multipliers
    system = torch.zeros(n + 1, n + 1, dtype=torch.double)
    system[:n, :n], system[:n, n], system[n, :n] = c, k, k
    right = torch.zeros(n + 1, 128, dtype=torch.double)
    right[n] = shifted.double()
    least = torch.linalg.solve(system, right)[:n]
    assert torch.allclose(delta, least, atol=1e-5 * float(least.abs().max()))


def test_rome_writes_one_request_with_the_others_live_and_all_are_one_patch(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, pictures: Any
) -> None:
    other = next(p for p, caption, things in pictures if len(things) == 1 and "tree" in caption)
    first, second = mmedit.EditRequest(cat_file, "cat", "dog"), mmedit.EditRequest(other, "tree", "boat")
    editor = ROME.from_hparams("iconworld-llava").with_hparams(mom2_adjustment=False)
    together, one = editor.execute(vlm, [first, second]), editor.execute(vlm, first)
    with one.applied(vlm):
        two = editor.execute(vlm, second)
    alone = editor.execute(vlm, second)
    site = one.sites[0]
    for i in (0, 1):
        assert torch.equal(together.low_rank[site][i], torch.cat([p.low_rank[site][i] for p in (one, two)], 1 - i))
    assert two.digest != alone.digest, "the second is worked out with the first live"
    with together.applied(vlm):
        weight = vlm.architecture.w_out(site).matrix.clone()
    with mmedit.stack(vlm, [one, two]):
        assert torch.allclose(weight, vlm.architecture.w_out(site).matrix, atol=1e-6)


def test_the_key_of_several_pictures_is_their_mean(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, pictures: Any, shifted: Tensor
) -> None:
    second = next(p for p, caption, _ in pictures if " cat " in vlm.caption(p)[0])
    request = mmedit.EditRequest([cat_file, second], "cat", "dog")
    patch = ROME(ROMEHparams(layer=LAYER, mom2_adjustment=False)).execute(vlm, request)
    keys, _ = keys_of(vlm, request, LAYER)
    assert len(keys) == 2 and torch.allclose(keys.mean(0) @ matrix_of(patch, Site(LAYER)), shifted.double(), atol=1e-5)


def test_the_shift_says_the_target_and_stays_in_its_ball(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    editor, w_out = ROME.from_hparams("iconworld-llava"), vlm.architecture.w_out(Site(5))
    rewrites = rewrites_of(vlm, request_of_cat)
    lessons = lessons_of(vlm, rewrites)
    _, v = at_keys(vlm, lessons, w_out)
    size = float(v.mean(0).norm())
    short = editor.with_hparams(clamp_norm_factor=0.25).shift(vlm, lessons, w_out, size)
    assert float(short.norm()) == pytest.approx(0.25 * size, rel=1e-4)
    free = editor.shift(vlm, lessons, w_out, size)
    place = rewrites[0].places[0]
    for delta, target_is_said in ((short, False), (free, True)):
        hook = w_out.module.register_forward_hook(
            lambda m, args, output, delta=delta: torch.cat([output[:, :-1], output[:, -1:] + delta], 1)
        )
        try:
            logits = forced(vlm, list(request_of_cat.images), None, [rewrites[0].wanted[:place]])[0].logits[-1]
        finally:
            hook.remove()
        assert (int(logits.argmax()) == rewrites[0].wanted[place]) is target_is_said


def test_kl_keeps_what_the_answer_goes_on_with(untrained: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    """A layer below the last reaches later positions: the more KL counts, the less they change."""
    with torch.no_grad():
        for parameter in untrained.model.parameters():
            parameter.mul_(5)  # so that words matter to those after them
    wanted = (*answer_ids(untrained, None, "a red cat on the grass"), 2)
    (lesson,) = lessons_of(untrained, [Rewrite(cat_file, None, Generation("", ()), wanted, places=(1, 2))])
    w_out, changes = untrained.architecture.w_out(Site(1)), list[float]()
    with torch.no_grad():
        before = at(logits_of(untrained, lesson), lesson.others)
    for factor in (0.0, 100.0):
        hparams = ROMEHparams(layer=1, kl_factor=factor, v_weight_decay=0.0, v_num_grad_steps=20)
        delta = ROME(hparams).shift(untrained, [lesson], w_out, 10.0)
        with torch.no_grad(), _shifted(w_out, lesson, delta[None]):
            changes.append(float(divergence(at(logits_of(untrained, lesson), lesson.others), before)))
    assert changes[1] < changes[0] / 2 and changes[0] > 1e-4


def test_divergence_is_kl_of_now_from_before() -> None:
    now, before = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    p, q = torch.distributions.Categorical(logits=now), torch.distributions.Categorical(logits=before)
    assert float(divergence(now, before)) == pytest.approx(float(torch.distributions.kl_divergence(p, q).mean()))
    assert float(divergence(now[:0], before[:0])) == 0


def test_memit_with_one_layer_is_its_normal_equation(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, unrelated: list[Any], shifted: Tensor, pictures: Any
) -> None:
    """λ·tr(ΔᵀCΔ) + ‖KᵀΔ − R‖² is least, as QR finds it, for two requests at once."""
    weight, other = 3.0, next(p for p, caption, things in pictures if len(things) == 1 and "tree" in caption)
    requests = [mmedit.EditRequest(cat_file, "cat", "dog"), mmedit.EditRequest(other, "tree", "boat")]
    editor = MEMIT(MEMITHparams(layers=[LAYER], mom2_update_weight=weight, ridge=0.1), unrelated)
    delta = matrix_of(editor.execute(vlm, requests), Site(LAYER))
    keys = torch.cat([keys_of(vlm, request, LAYER)[0] for request in requests])
    root = torch.linalg.cholesky(weight * covariance(vlm, unrelated, LAYER, 0.1)).T
    residual = torch.cat([torch.zeros(512, 128, dtype=torch.double), shifted.double().expand(2, -1)])
    least = torch.linalg.lstsq(torch.cat([root, keys]), residual, driver="gels").solution
    assert torch.allclose(delta, least, atol=1e-5 * float(least.abs().max()))


def test_memit_spreads_what_is_missing_over_its_layers(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, unrelated: list[Any], shifted: Tensor
) -> None:
    """With a λ that hardly counts, each layer closes its share, and the hidden state after the last is what it shall be."""
    layers = [2, 3, 4]
    editor = MEMIT(MEMITHparams(layers=layers, mom2_update_weight=1e-9), unrelated)
    patch = editor.execute(vlm, request_of_cat)
    assert [site.layer for site in patch.sites] == layers
    _, h = keys_of(vlm, request_of_cat, 4)
    first = patch.low_rank[Site(2)]
    k = keys_of(vlm, request_of_cat, 2)[0][0].float()
    assert torch.allclose(k @ first[0] @ first[1], shifted / 3, atol=1e-3)
    lessons = lessons_of(vlm, rewrites_of(vlm, request_of_cat))
    with patch.applied(vlm):
        _, after = at_keys(vlm, lessons, vlm.architecture.w_out(Site(4)), 4)
    assert torch.allclose(after - h, shifted.double().expand_as(h), atol=1e-3)


def test_memit_refuses_w_outs_that_do_not_write_straight(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vlm.architecture.routes, Site(LAYER), Route(scale=0.5))
    with pytest.raises(ModelError, match="straight into the residual stream"):
        MEMIT(MEMITHparams(layers=[LAYER])).execute(vlm, request_of_cat)


def test_second_moments_are_the_mean_over_all_positions(vlm: mmedit.VisionLanguageModel) -> None:
    images, w_out = drawn_pictures(3), vlm.architecture.w_out(Site(LAYER))
    found = second_moments(vlm, [w_out], images, folder=False)[Site(LAYER)]
    seen: list[Tensor] = []
    hook = w_out.module.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].double()))
    try:
        for image in images:  # one position at a time, as the model generates
            vlm.generate([image])
    finally:
        hook.remove()
    o = torch.cat(seen)
    assert torch.allclose(found.double(), o.T @ o / len(o), atol=1e-4 * float(found.abs().max()))


def test_second_moments_are_kept_and_belong_to_one_model_and_its_pictures(
    vlm: mmedit.VisionLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_of_cat: mmedit.EditRequest
) -> None:
    images, w_outs = drawn_pictures(2), modules_of(vlm.architecture, [1, 2])
    first = second_moments(vlm, w_outs, images, folder=tmp_path)
    files = sorted((tmp_path / "moments").iterdir())
    assert len(files) == 2
    measured = statistics._measured
    asked: list[list[Site]] = []

    def watched(model: Any, missing: Any, *rest: Any) -> Any:
        asked.append([w_out.site for w_out in missing])
        return measured(model, missing, *rest)

    monkeypatch.setattr(statistics, "_measured", watched)
    again = second_moments(vlm, w_outs, images, folder=tmp_path)
    assert asked == [[]] and all(torch.equal(again[site], first[site]) for site in first)
    files[0].write_bytes(files[0].read_bytes()[:-100])  # cut off
    repaired = second_moments(vlm, w_outs, images, folder=tmp_path)
    assert len(asked[-1]) == 1 and all(torch.equal(repaired[site], first[site]) for site in first)
    second_moments(vlm, w_outs, images[:1], folder=tmp_path)
    assert len(asked[-1]) == 2, "other pictures"
    with mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat).applied(vlm):
        second_moments(vlm, w_outs, images, folder=tmp_path)
    assert len(asked[-1]) == 2, "another model"
    assert len(list((tmp_path / "moments").iterdir())) == 6


def test_second_moments_that_cannot_be_kept_are_told_and_used(vlm: mmedit.VisionLanguageModel, tmp_path: Path) -> None:
    (tmp_path / "moments").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="second moments are not kept"):
        found = second_moments(vlm, modules_of(vlm.architecture, [1]), drawn_pictures(1), folder=tmp_path)
    assert found[Site(1)].shape == (512, 512)


def test_a_user_s_pictures_count_and_stay_with_the_editor(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, unrelated: list[Any], shifted: Tensor
) -> None:
    hparams = ROMEHparams(layer=LAYER, n_unrelated=8)
    drawn, own = ROME(hparams), ROME(hparams, unrelated)
    assert own.with_hparams(ridge=0.5).unrelated is unrelated
    assert drawn.execute(vlm, request_of_cat).digest != own.execute(vlm, request_of_cat).digest
