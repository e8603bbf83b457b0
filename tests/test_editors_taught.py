"""Editors that learn by gradient descent, FT, LoRA and FiNE, what they are taught, and Noise, which learns nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

import mmedit
from mmedit.analysis import perturb
from mmedit.editors import FT, FiNE, FiNEHparams, FTHparams, LoRA, LoRAHparams, Noise, NoiseHparams, lora
from mmedit.editors.fine import repetition, targets
from mmedit.editors.patching import patch_of
from mmedit.editors.teaching import Lesson, added, at, descend, lessons_of, logits_of, zeros
from mmedit.errors import ModelError
from mmedit.models.forcing import forced
from mmedit.neuron import Site
from mmedit.rewrites import rewrites_of


def lessons_about(vlm: mmedit.VisionLanguageModel, *requests: mmedit.EditRequest, batch_size: int = 8) -> list[Lesson]:
    return lessons_of(vlm, [rewrite for request in requests for rewrite in rewrites_of(vlm, request)], batch_size)


@pytest.fixture
def requests(vlm: mmedit.VisionLanguageModel, cat_file: Path, pictures: Any) -> list[mmedit.EditRequest]:
    """Answers of different lengths, one of them with a word of several tokens, and a question."""
    tree = next(p for p, caption, things in pictures if len(things) == 1 and "tree" in caption)
    return [
        mmedit.EditRequest(cat_file, "cat", "dog"), mmedit.EditRequest(tree, "tree", "lighthouse"),
        mmedit.EditRequest(cat_file, None, "blue", "What colour is the cat?"),
    ]  # fmt: skip


def taught_by_hand(vlm: mmedit.VisionLanguageModel, request: mmedit.EditRequest) -> tuple[Tensor, float]:
    """−log p of each taught token, by an inference of its own for each, and their mean."""
    (rewrite,) = rewrites_of(vlm, request)
    losses = []
    for place in rewrite.places:
        (made,) = forced(vlm, [rewrite.image], rewrite.prompt, [rewrite.wanted[:place]])
        losses.append(-made.logits[-1].log_softmax(-1)[rewrite.wanted[place]])
    return torch.stack(losses), float(torch.stack(losses).mean())


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_loss_is_of_the_wanted_tokens_alone_and_every_answer_counts_the_same(
    vlm: mmedit.VisionLanguageModel, requests: list[mmedit.EditRequest], batch_size: int
) -> None:
    lessons = lessons_about(vlm, *requests, batch_size=batch_size)
    assert len(lessons) == (3 if batch_size == 1 else 2), "one for each prompt"
    assert sum(lesson.share for lesson in lessons) == pytest.approx(1)
    by_hand = [taught_by_hand(vlm, request) for request in requests]
    with torch.no_grad():
        found = [lesson.loss(logits_of(vlm, lesson)) for lesson in lessons]
    assert torch.allclose(torch.cat(found), torch.cat([losses for losses, _ in by_hand]), atol=1e-4)
    total = sum(
        float(lesson.share * lesson.per_answer(loss).mean()) for lesson, loss in zip(lessons, found, strict=True)
    )
    assert total == pytest.approx(sum(mean for _, mean in by_hand) / 3, rel=1e-4)


def test_places_are_told_apart(vlm: mmedit.VisionLanguageModel, requests: list[mmedit.EditRequest]) -> None:
    (lesson,) = lessons_about(vlm, requests[0])
    (rewrite,) = rewrites_of(vlm, requests[0])
    start = lesson.window - len(rewrite.wanted)
    assert lesson.keys.tolist() == [[0, start + rewrite.places[0]]]
    assert lesson.prefix.tolist() == [[0, i] for i in range(start + rewrite.places[0])]
    taught, others = ({tuple(place) for place in places.tolist()} for places in (lesson.taught, lesson.others))
    assert not taught & others and taught | others == {(0, start + i) for i in range(len(rewrite.wanted))}
    text = vlm.inputs(list(requests[0].images))["input_ids"][0]
    assert start + 1 == len(text) - 1 - int((text == vlm.architecture.image_token_id).nonzero().max()), (
        "all text after the picture"
    )


def test_rows_that_are_added_by_hooks_are_those_of_the_patch(
    vlm: mmedit.VisionLanguageModel, requests: list[mmedit.EditRequest]
) -> None:
    torch.manual_seed(0)
    lesson = lessons_about(vlm, requests[0], requests[1])[0]
    whole, rows, units = torch.randn(512, 128) / 30, torch.randn(3, 128), torch.tensor([4, 7, 300])
    changes = {Site(2): (None, whole), Site(4): (units, rows)}
    matrix = torch.zeros(512, 128).index_add(0, units, rows)
    patch = patch_of(vlm, Noise(), [], whole={Site(2): whole, Site(4): matrix})
    assert torch.equal(patch.deltas[Site(4)][0], units) and torch.equal(patch.deltas[Site(2)][1], whole)
    with torch.no_grad():
        before = logits_of(vlm, lesson)
        with added(vlm.architecture, changes):
            hooked = logits_of(vlm, lesson)
        with patch.applied(vlm):
            live = logits_of(vlm, lesson)
    places = torch.cat([lesson.taught, lesson.others])  # what is padding is of no account
    assert torch.allclose(at(hooked, places), at(live, places), atol=1e-3)
    assert not torch.allclose(at(before, places), at(live, places), atol=1e-1)


def test_gradients_are_those_of_finite_differences(
    vlm: mmedit.VisionLanguageModel, requests: list[mmedit.EditRequest]
) -> None:
    (lesson,) = lessons_about(vlm, requests[0])
    delta, way = (
        zeros(vlm.architecture.w_out(Site(3)), 2),
        torch.randn(2, 128, generator=torch.Generator().manual_seed(0)),
    )
    units = torch.tensor([5, 9])

    def loss_at(step: float) -> Tensor:
        with added(vlm.architecture, {Site(3): (units, delta + step * way)}):
            return lesson.loss(logits_of(vlm, lesson)).mean()

    (slope,) = torch.autograd.grad(loss_at(0.0), delta)
    with torch.no_grad():
        differences = (float(loss_at(0.05)) - float(loss_at(-0.05))) / 0.1
    assert float((slope * way).sum()) == pytest.approx(differences, rel=0.02, abs=1e-4)


def test_edits_are_made_where_gradients_are_off(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    editor = FiNE.from_hparams("iconworld-llava").with_hparams(epochs=3)
    digest = editor.execute(vlm, request_of_cat).digest
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert editor.execute(vlm, request_of_cat).digest == digest


@given(steps=st.integers(0, 6), learnt_at=st.integers(0, 6))
@settings(deadline=None, max_examples=20)
def test_descent_ends_when_all_lessons_are_learnt_or_the_steps_are_done(
    trained: mmedit.VisionLanguageModel, steps: int, learnt_at: int
) -> None:
    x, seen, projected = torch.tensor([3.0], requires_grad=True), [0], [0]

    def objective(lesson: Any) -> tuple[Tensor, bool]:
        seen[0] += 1
        return (x * lesson).sum() ** 2, seen[0] > 2 * learnt_at

    def project() -> None:
        projected[0] += 1
        x.clamp_(2.9, 3.0)

    descend(trained, [x], objective, [1.0, 2.0], 0.5, steps, project)  # type: ignore[list-item]
    assert projected[0] == min(steps, learnt_at) and float(x.detach()) == pytest.approx(
        2.9 if min(steps, learnt_at) else 3.0
    )


@pytest.mark.parametrize("limit", [0.001, 0.004, None])
def test_fine_tuning_moves_no_number_further_than_its_limit(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, limit: float | None
) -> None:
    patch = FT(FTHparams(layer=4, lr=3e-3, num_steps=4, norm_constraint=limit)).execute(vlm, request_of_cat)
    (site,) = patch.sites
    greatest = float(patch.deltas[site][1].abs().max())
    assert site == Site(4) and (greatest == pytest.approx(limit) if limit else greatest > 0.005)


def test_fine_tuning_lowers_the_loss_of_all_requests(
    vlm: mmedit.VisionLanguageModel, requests: list[mmedit.EditRequest]
) -> None:
    patch = FT.from_hparams("iconworld-llava").execute(vlm, requests)
    before = [taught_by_hand(vlm, request)[1] for request in requests]
    lessons = lessons_about(vlm, *requests, batch_size=1)
    with patch.applied(vlm), torch.no_grad():
        after = [float(lesson.loss(logits_of(vlm, lesson)).mean()) for lesson in lessons]
    assert all(now < then / 2 for now, then in zip(after, before, strict=True))


@pytest.mark.parametrize("layers", [[5], None])
def test_the_patch_of_lora_is_what_the_adapter_did(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, monkeypatch: pytest.MonkeyPatch, layers: list[int] | None
) -> None:  # fmt: skip
    (lesson,), read, with_adapter = lessons_about(vlm, request_of_cat), lora.factors_of, list[Tensor]()

    def watched(layer: Any) -> Any:
        for module in vlm.model.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout.eval()
        with torch.no_grad():
            with_adapter.append(logits_of(vlm, lesson))
        return read(layer)

    monkeypatch.setattr(lora, "factors_of", watched)
    with torch.no_grad():
        before = logits_of(vlm, lesson)
    patch = LoRA(LoRAHparams(layers=layers, num_steps=5, rank=3, lora_alpha=7.0)).execute(vlm, request_of_cat)
    assert len(with_adapter) == len(patch.sites) == (1 if layers else 6)
    assert all(left.shape[1] == 3 for left, _ in patch.low_rank.values())
    with patch.applied(vlm), torch.no_grad():
        live = logits_of(vlm, lesson)
    assert torch.allclose(live, with_adapter[0], atol=1e-3)
    assert not torch.allclose(live, before, atol=1e-1)


def test_lora_has_a_seed(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest) -> None:
    editor = LoRA(LoRAHparams(layers=[5], num_steps=2))
    digests = [editor.with_hparams(seed=seed).execute(vlm, request_of_cat).digest for seed in (0, 0, 1)]
    without = [editor.with_hparams(lora_dropout=share).execute(vlm, request_of_cat).digest for share in (0.0, 0.1)]
    assert digests[0] == digests[1] == without[1] and len({*digests, *without}) == 3


def test_a_model_with_an_adapter_of_its_own_is_refused(
    trained: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    model = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), copy.deepcopy(trained.model), "mine")
    with pytest.raises(ModelError, match="has an adapter already\n  got: mine"):
        LoRA(LoRAHparams(layers=[5])).execute(mmedit.VisionLanguageModel(model, trained.processor), request_of_cat)


def test_fine_changes_the_rows_of_the_located_neurons_and_no_others(
    vlm: mmedit.VisionLanguageModel, cat_file: Path
) -> None:
    editor, layers = FiNE(FiNEHparams(last_layer=2, neuron_num=4, epochs=2, gamma=0.0)), [0, 1, 2, 3]
    one = editor.execute(vlm, mmedit.EditRequest(cat_file, "cat", "dog"))
    best = mmedit.locate_word(vlm, cat_file, "cat", layers=layers, k=4)  # the token that is said is the source's
    assert one.neurons == tuple(sorted(best.neurons))
    assert editor.locate(vlm, mmedit.EditRequest(cat_file, "cat", "dog")).neurons == best.neurons
    several = editor.execute(vlm, mmedit.EditRequest(cat_file, "cat", "lighthouse"))
    located = several.edits[0]["located"]
    assert len(located) == len(vlm.tokenizer(" lighthouse", add_special_tokens=False).input_ids)
    assert {str(neuron) for neuron in several.neurons} == {neuron for group in located for neuron in group}
    assert all(neuron.layer in layers for neuron in several.neurons)


def test_fine_stops_when_the_target_is_probable_enough(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    editor = FiNE.from_hparams("iconworld-llava").with_hparams(lr=0.01)  # small steps, so as not to go far beyond
    lessons = lessons_about(vlm, request_of_cat)

    def probability(prob: float) -> float:
        with editor.with_hparams(early_stop_prob=prob).execute(vlm, request_of_cat).applied(vlm), torch.no_grad():
            return float((-lessons[0].loss(logits_of(vlm, lessons[0]))).exp().min())

    low, high = probability(0.3), probability(0.95)
    assert 0.3 < low < high and high > 0.95


def test_the_penalties_of_fine_hold_back(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest) -> None:
    editor = FiNE.from_hparams("iconworld-llava").with_hparams(epochs=8, early_stop_prob=0.999)
    sizes = [
        float(next(iter(editor.with_hparams(gamma=g).execute(vlm, request_of_cat).deltas.values()))[1].norm())
        for g in (0.0, 100.0)
    ]
    assert sizes[1] < sizes[0] / 2


def test_repetition_is_of_the_word_where_it_has_just_been_said(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    (lesson,) = lessons_about(vlm, mmedit.EditRequest(cat_file, "cat", "lighthouse"))
    logits = torch.zeros(1, lesson.window, len(vlm.tokenizer))
    row, after = lesson.taught[-1].tolist()
    for tokens, place, expected in (
        ([], after, None),
        ([lesson.wanted[0]], after, 0.9),
        ([lesson.wanted[0]], after - 1, None),
    ):
        given = logits.clone()
        if tokens:
            n = logits.shape[-1] - 1
            given[row, place, tokens[0]] = torch.tensor(0.9 / 0.1 * n).log()  # p = 0.9
        p = expected or 1 / logits.shape[-1]
        assert float(repetition(lesson, given)) == pytest.approx(-float(torch.log1p(torch.tensor(-p))), rel=1e-3)


def test_a_single_place_is_a_target() -> None:
    assert targets((3, 4, 5, 9, 10)) == [3, 4, 9] and targets((2,)) == [2]


def test_noise_is_the_paper_s_perturbation(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, cat_file: Path
) -> None:
    editor = Noise(NoiseHparams(sigma=0.5, neurons_per_edit=5, seed=3))
    patch = editor.execute(vlm, request_of_cat)
    best = mmedit.locate_word(vlm, cat_file, "cat", k=5).neurons
    assert patch.neurons == tuple(sorted(best))
    assert (
        patch.digest
        == perturb.noise(vlm, best, 0.5, seed=3).digest
        != editor.with_hparams(seed=4).execute(vlm, request_of_cat).digest
    )
    drawn = torch.cat(
        [rows for _, rows in editor.with_hparams(neurons_per_edit=400).execute(vlm, request_of_cat).deltas.values()]
    )
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01) and float(drawn.std()) == pytest.approx(0.5, rel=0.01)


def test_noise_of_several_requests_is_independent_and_adds_up(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    editor = Noise(NoiseHparams(seed=7))
    both = editor.execute(vlm, [request_of_cat, request_of_cat])
    first, second = (editor.with_hparams(seed=seed).execute(vlm, request_of_cat) for seed in (7, 8))
    assert first.neurons == second.neurons == both.neurons
    for site in both.sites:
        assert torch.allclose(both.deltas[site][1], first.deltas[site][1] + second.deltas[site][1])
