"""Rewrites: the wanted tokens, where they must be taught, and what the model says there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmedit
from mmedit.background import Background, drawn_pictures
from mmedit.errors import RequestError
from mmedit.evaluation.metrics import all_replaced
from mmedit.models.forcing import dictated, forced
from mmedit.rewrites import by_form, rewrites_of
from mmedit.sightings import source_sightings
from mmedit.steps import leads_of, steps_of
from mmedit.testbed.benchmark import iconworld_cases
from mmedit.trace import Trace

CASES = iconworld_cases(8, "validation")
SHIPPED = ["iconworld-llava", "iconworld-instructblip", "iconworld-mplug-owl2"]


@pytest.mark.parametrize("name", SHIPPED)
def test_dictation_predicts_what_teacher_forcing_does(name: str, cat_file: Path) -> None:
    vlm = mmedit.load(name)
    pictures = [cat_file, CASES[0].request.images[0]]
    answers = [g.ids for g in vlm.generate(pictures)]
    answers[0] = answers[0][:2]  # of different lengths
    for slow, quick in zip(dictated(vlm, pictures, None, answers), forced(vlm, pictures, None, answers), strict=True):
        assert torch.allclose(slow.logits, quick.logits[-1 - len(quick.ids) :], atol=1e-4)
        assert torch.allclose(slow.answer, quick.answer, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_wanted_is_the_caption_with_the_word_replaced(vlm: mmedit.VisionLanguageModel, case: mmedit.EditCase) -> None:
    request = case.request
    (rewrite,) = rewrites_of(vlm, request)
    said = rewrite.generation.text
    assert request.source is not None
    assert vlm.tokenizer.decode(rewrite.wanted[:-1]) == said.replace(request.source, request.target)
    assert rewrite.wanted[-1] in vlm.end_ids
    word = vlm.tokenizer.decode([rewrite.wanted[place] for place in rewrite.places[:-1]]).strip()
    assert word == request.target


def test_edits_made_together_stand_in_each_others_answers(
    vlm: mmedit.VisionLanguageModel, two_things: tuple[Any, str, str, str]
) -> None:
    """What another edit swaps is swapped in the wanted answer too, so that no two edits wish for opposites; taught is one's own."""
    picture, caption, one, other = two_things
    requests = [mmedit.EditRequest(picture, one, "kite"), mmedit.EditRequest(picture, other, "car")]
    answers = [rewrites_of(vlm, request, among=requests)[0] for request in requests]
    assert answers[0].wanted == answers[1].wanted
    said = vlm.tokenizer.decode(answers[0].wanted[:-1]).strip()
    assert said == all_replaced(caption, {one: "kite", other: "car"})
    for rewrite, new in zip(answers, ("kite", "car"), strict=True):
        assert vlm.tokenizer.decode([rewrite.wanted[place] for place in rewrite.places[:-1]]).strip() == new
    (alone,) = rewrites_of(vlm, requests[0])
    assert vlm.tokenizer.decode(alone.wanted[:-1]).strip() == all_replaced(caption, {one: "kite"})


def test_of_two_sources_that_overlap_ones_own_is_swapped(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    """Where another edit's source is a part of one's own, or the other way round, no word is swapped twice."""
    (caption,) = vlm.caption([cat_file])
    colour = caption.split()[1]
    whole, part = mmedit.EditRequest(cat_file, f"{colour} cat", "kite"), mmedit.EditRequest(cat_file, "cat", "dog")
    wanted = [rewrites_of(vlm, request, among=[whole, part])[0].wanted[:-1] for request in (whole, part)]
    assert vlm.tokenizer.decode(wanted[0]).strip() == caption.replace(f"{colour} cat", "kite")
    assert vlm.tokenizer.decode(wanted[1]).strip() == caption.replace("cat", "dog")
    beside = mmedit.EditRequest(cat_file, caption.split()[-1], "boat")
    (both,) = rewrites_of(vlm, beside, among=[part, beside, whole])
    assert "kite" in vlm.tokenizer.decode(both.wanted), "of two others that overlap, the longer"


def test_steps_are_what_the_model_would_say(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    """The first step is the sighting of the source; the rival is the source, and the margins are those of one forward pass."""
    request = mmedit.EditRequest(cat_file, "cat", "lighthouse")
    (rewrite,) = rewrites_of(vlm, request)
    first, *further = steps_of(vlm, [rewrite])[0]
    (seen,) = source_sightings(vlm, cat_file, "cat")
    assert first.rival == seen.occurrence.token_id
    assert first.margin < 0 < min(step.margin for step in further)
    for site, o in first.activations.items():
        assert torch.allclose(o, seen.activations[site], atol=1e-5)
    leads = leads_of(vlm, [rewrite])[0]
    for step in (first, *further):
        assert abs(float(leads.margins[step.place]) - step.margin) < 1e-3
        assert int(leads.rivals[step.place]) == step.rival


def test_a_direction_says_how_a_row_moves_the_margin(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    """In the last layer a small change of a row moves the margin by o · (Δ · u), with the final norm's scale held."""
    from mmedit.editors import MMNeurons
    from mmedit.editors.base import make_patch

    (rewrite,) = rewrites_of(vlm, mmedit.EditRequest(cat_file, "cat", "dog"))
    step = steps_of(vlm, [rewrite])[0][0]
    site = mmedit.Site(5)
    unit = int(step.activations[site].abs().argmax())
    delta = torch.randn(1, 128, generator=torch.Generator().manual_seed(1)) * 2e-3
    norm = vlm.architecture.final_norm
    x = step.norms[norm]
    delta -= (delta @ x)[:, None] * x / (x @ x)  # along the stream itself the norm's scale would change
    patch = make_patch(vlm, MMNeurons(), [mmedit.Neuron(5, unit)], delta, [{"source": "cat", "target": "dog"}])
    before = leads_of(vlm, [rewrite])[0].margins[step.place]
    with patch.applied(vlm):
        moved = leads_of(vlm, [rewrite])[0].margins[step.place] - before
    predicted = step.activations[site][unit] * (delta[0] @ step.direction(vlm)[site])
    assert abs(float(moved - predicted)) < 0.02 * abs(float(predicted)) + 5e-5


def test_an_answer_without_a_source_differs_from_its_first_new_token_on(
    vlm: mmedit.VisionLanguageModel, cat_file: Path
) -> None:
    said = vlm.caption([cat_file])[0]
    (rewrite,) = rewrites_of(vlm, mmedit.EditRequest(cat_file, None, said.replace("cat", "dog")))
    assert vlm.tokenizer.decode(rewrite.wanted[:-1]).strip() == said.replace("cat", "dog")
    assert rewrite.places == tuple(range(rewrite.places[0], len(rewrite.wanted)))
    with pytest.raises(RequestError, match="gives this answer already"):
        rewrites_of(vlm, mmedit.EditRequest(cat_file, None, said))


def test_forms_are_replaced_each_by_its_own(vlm: mmedit.VisionLanguageModel, pictures: list) -> None:  # type: ignore[type-arg]
    """A caption with the plural counts where the plural is named as a form, and only there."""
    found = next((p, c, t) for p, c, t in pictures if c.startswith("two "))
    picture, caption, things = found
    noun, plural = things[0].noun, caption.split()[2]
    with pytest.raises(RequestError, match="does not say"):
        rewrites_of(vlm, mmedit.EditRequest(picture, noun, "kite"))
    request = mmedit.EditRequest(picture, noun, "kite", forms={plural: "kites"})
    (rewrite,) = rewrites_of(vlm, request)
    assert vlm.tokenizer.decode(rewrite.wanted[:-1]).strip() == caption.replace(plural, "kites")
    (part,) = by_form(vlm, request)
    assert (part.source, part.target, part.images) == (plural, "kites", (picture,))
    patch = mmedit.editors.Margin.from_hparams("iconworld-llava").execute(vlm, request)
    with patch.applied(vlm):
        assert vlm.caption([picture]) == [caption.replace(plural, "kites")]


def test_forms_are_words_of_a_source(cat_file: Path) -> None:
    for source, forms in ((None, {"cats": "dogs"}), ("cat", {"cats": ""})):
        with pytest.raises(RequestError, match="forms are words"):
            mmedit.EditRequest(cat_file, source, "dog", forms=forms)


def test_a_background_knows_where_a_word_is_said(vlm: mmedit.VisionLanguageModel) -> None:
    background = Background(vlm, drawn_pictures(8), questions=["What is more than one cat called?"])
    everywhere = background.outside([])
    assert len(everywhere) == sum(len(a.generation.ids) for a in background.answers)
    assert background.answers[-1].image is None
    word = background.answers[0].generation.text.split()[-1]
    n_tokens = len(vlm.tokenizer(f" {word}", add_special_tokens=False).input_ids)
    said = sum(a.generation.text.split().count(word) for a in background.answers)
    assert said > 0
    assert len(everywhere) - len(background.outside([word])) == said * n_tokens
    assert all(word not in a.generation.text.split() for a in background.without([word]))


def test_background_activations_are_those_of_generation(vlm: mmedit.VisionLanguageModel) -> None:
    background = Background(vlm, drawn_pictures(3), batch_size=2)
    site, place = mmedit.Site(4), 2
    with Trace(vlm.architecture) as trace:
        vlm.generate_batch(vlm.inputs(drawn_pictures(3)[:1]))
    got = background.activations([mmedit.Neuron(4, u) for u in range(512)], torch.tensor([place]))[0]
    assert torch.allclose(got, trace.at(site, place, 0), atol=0.02, rtol=0.01)
    assert torch.allclose(background.power(site, torch.tensor([place])), got.square(), rtol=1e-5)


def test_the_answers_that_hear_a_change_most_come_first(vlm: mmedit.VisionLanguageModel) -> None:
    background = Background(vlm, drawn_pictures(6))
    neuron = mmedit.Neuron(3, 11)
    order = background.loudest([neuron], torch.ones(1, 128), background.answers, 6)
    o = background.activations([neuron], background.outside([]))[:, 0].abs()
    parts = o.split([len(a.generation.ids) for a in background.answers])
    peaks = {id(a): float(part.max()) for a, part in zip(background.answers, parts, strict=True)}
    assert [peaks[id(a)] for a in order] == sorted(peaks.values(), reverse=True)
    assert np.isfinite(list(peaks.values())).all()
