"""Margin: the target gets the source's lead, other answers keep theirs, and the model is left as it was."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import mmedit
from mmedit.editors import Margin, MarginHparams, MMNeurons
from mmedit.errors import HparamsError, RequestError
from mmedit.evaluation.metrics import all_replaced
from mmedit.rewrites import rewrites_of
from mmedit.steps import leads_of
from mmedit.testbed.benchmark import iconworld_cases

CASES = iconworld_cases(8, "validation")
SHIPPED = ["iconworld-llava", "iconworld-instructblip", "iconworld-mplug-owl2"]


@pytest.fixture(scope="module")
def editor() -> Margin:
    """One editor, so that the background is worked out once."""
    return Margin(MarginHparams(n_unrelated=32))


def test_the_target_leads_by_what_was_asked_for(vlm: mmedit.VisionLanguageModel, editor: Margin) -> None:
    request = CASES[0].request
    (rewrite,) = rewrites_of(vlm, request)
    before = leads_of(vlm, [rewrite])[0].margins[rewrite.places[0]]
    patch = editor.execute(vlm, request)
    with patch.applied(vlm):
        leads = leads_of(vlm, [rewrite])[0]
    assert (leads.margins > 0).all(), "the whole answer is said"
    assert patch.edits[0]["lead"] == pytest.approx(float(leads.margins[rewrite.places[0]]), abs=1e-3)
    source = patch.edits[0]["source_token_id"]
    if int(leads.rivals[rewrite.places[0]]) == source:
        assert float(leads.margins[rewrite.places[0]]) == pytest.approx(-1.2 * float(before), rel=0.06)


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.id)
def test_a_swap_holds_and_leaves_the_rest(
    vlm: mmedit.VisionLanguageModel, editor: Margin, case: mmedit.EditCase
) -> None:
    """On a picture of the edit, on others and on those without the source; counted over few, so with room for one miss."""
    probes = [p for p in case.probes if p.kind in ("edit", "related", "unrelated")]
    before = vlm.caption([p.image for p in probes], batch_size=32)
    patch = editor.execute(vlm, case.request)
    with patch.applied(vlm):
        after = vlm.caption([p.image for p in probes], batch_size=32)
    assert case.request.source is not None
    expected = [all_replaced(text, {case.request.source: case.request.target}) for text in before]
    assert after[0] == expected[0]
    assert sum(a != e for a, e in zip(after, expected, strict=True)) <= 1


@pytest.mark.parametrize("name", SHIPPED)
def test_on_every_architecture(name: str) -> None:
    vlm = mmedit.load(name)
    request = CASES[1].request
    before = {key: value.clone() for key, value in vlm.model.state_dict().items()}
    (said,) = vlm.caption(request.images)
    patch = Margin(MarginHparams(n_unrelated=12)).execute(vlm, request)
    assert all(torch.equal(value, before[key]) for key, value in vlm.model.state_dict().items())
    with patch.applied(vlm):
        assert vlm.caption(request.images) == [said.replace(str(request.source), request.target)]


def test_several_requests_are_one_patch(vlm: mmedit.VisionLanguageModel, editor: Margin) -> None:
    requests = [case.request for case in CASES[:4]]
    before = [vlm.caption(request.images)[0] for request in requests]
    patch = editor.execute(vlm, requests)
    assert [(edit["source"], edit["target"]) for edit in patch.edits] == [(r.source, r.target) for r in requests]
    with patch.applied(vlm):
        after = [vlm.caption(request.images)[0] for request in requests]
    assert after == [text.replace(str(r.source), r.target) for text, r in zip(before, requests, strict=True)]


@pytest.mark.parametrize("method", ["Margin", "FiNE"])
def test_edits_whose_pictures_show_each_others_words(
    vlm: mmedit.VisionLanguageModel, editor: Margin, two_things: tuple[Any, str, str, str], method: str
) -> None:
    """Both words of one picture are swapped at once, also where one's target is the other's source."""
    picture, caption, first, second = two_things
    requests = [mmedit.EditRequest(picture, first, second), mmedit.EditRequest(picture, second, "kite")]
    made_by = editor if method == "Margin" else mmedit.editors.FiNE.from_hparams("iconworld-llava")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch = made_by.execute(vlm, requests)
    with patch.applied(vlm):
        assert vlm.caption([picture]) == [all_replaced(caption, {first: second, second: "kite"})]


@pytest.mark.parametrize("method", ["Margin", "MMNeurons"])
def test_a_word_of_several_tokens_leaves_no_stray_piece(
    vlm: mmedit.VisionLanguageModel, editor: Margin, two_things: tuple[Any, str, str, str], method: str
) -> None:
    """A target that the model never says: its second token must be taught at its own place."""
    request = CASES[2].request
    words = [(str(request.source), "lightbot"), (str(request.source), "rocat")][: 2 if method == "Margin" else 1]
    used: Margin | MMNeurons = editor if method == "Margin" else MMNeurons.from_hparams("iconworld-llava")
    for source, target in words:
        (said,) = vlm.caption(request.images)
        patch = used.execute(vlm, mmedit.EditRequest(request.images, source, target))
        with patch.applied(vlm):
            assert vlm.caption(request.images) == [said.replace(source, target)]


def test_a_source_of_several_tokens_is_gone_whole(vlm: mmedit.VisionLanguageModel, editor: Margin) -> None:
    from mmedit.testbed.world import render, scene

    picture = render(scene("validation", 777, include="lighthouse", arrangement="one"))[0]
    (said,) = vlm.caption([picture])
    assert "lighthouse" in said
    for used in (editor, MMNeurons.from_hparams("iconworld-llava")):
        with used.execute(vlm, mmedit.EditRequest(picture, "lighthouse", "cat")).applied(vlm):
            assert vlm.caption([picture]) == [said.replace("lighthouse", "cat")]


def test_a_target_that_begins_as_the_source_does(
    vlm: mmedit.VisionLanguageModel, editor: Margin, cat_file: Path
) -> None:
    """Algorithm 1 refuses it; here the tokens after the first are taught."""
    (said,) = vlm.caption([cat_file])
    with editor.execute(vlm, mmedit.EditRequest(cat_file, "cat", "cat-house")).applied(vlm):
        assert vlm.caption([cat_file]) == [said.replace("cat", "cat-house")]


def test_an_answer_without_a_source(vlm: mmedit.VisionLanguageModel, editor: Margin, cat_file: Path) -> None:
    prompt = "What is this?"
    with editor.execute(vlm, mmedit.EditRequest(cat_file, None, "a blue kite", prompt)).applied(vlm):
        assert vlm.caption([cat_file], prompt) == ["a blue kite"]


def test_pictures_of_ones_own_are_the_background(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, tmp_path: Path
) -> None:
    own = [case.probes[-9].image for case in CASES[:3]]
    editor = Margin(MarginHparams(), unrelated=own, questions=["What is grass?"])
    assert len(editor.background(vlm).answers) == 4
    kept = editor.background(vlm)
    assert editor.background(vlm) is kept
    editor.questions = ()
    assert len(editor.background(vlm).answers) == 3, "others are asked anew"
    editor.unrelated = own[:2]
    assert len(editor.background(vlm).answers) == 2
    editor.unrelated, editor.questions = own, ["What is grass?"]
    changed = editor.with_hparams(neurons_per_edit=3)
    assert changed.unrelated is own
    patch = changed.execute(vlm, mmedit.EditRequest(cat_file, "cat", "dog"))
    assert len(patch.neurons) == 3
    patch.save(tmp_path / "p.safetensors")
    assert mmedit.Patch.load(tmp_path / "p.safetensors").digest == patch.digest


def test_on_top_of_another_edit(vlm: mmedit.VisionLanguageModel, editor: Margin) -> None:
    """The background is that of the model as it is, and the patch is made on the unpatched rows."""
    first, second = CASES[0].request, CASES[3].request
    plain = editor.background(vlm)
    with editor.execute(vlm, first).applied(vlm):
        assert editor.background(vlm) is not plain
        above = editor.execute(vlm, second)
    above.apply(vlm)
    above.revert(vlm)


def test_what_cannot_be_asked_for(vlm: mmedit.VisionLanguageModel, editor: Margin, cat_file: Path) -> None:
    request = mmedit.EditRequest(cat_file, "cat", "dog")
    with pytest.raises(RequestError, match="at least one request"):
        editor.execute(vlm, [])
    with pytest.raises(RequestError, match="same source for different targets"):
        editor.execute(vlm, [request, mmedit.EditRequest(cat_file, "cat", "boat")])
    with pytest.raises(RequestError, match="does not say 'robot'"):
        editor.execute(vlm, mmedit.EditRequest(cat_file, "robot", "dog"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("neurons_per_edit", 0),
        ("margin", 0.0),
        ("margin", float("nan")),
        ("keep", 1.5),
        ("firmness", 0.0),
        ("layers", [-1]),
        ("rounds", 0),
    ],
)
def test_hyperparameters_out_of_range(name: str, value: object) -> None:
    with pytest.raises(HparamsError) as caught:
        MarginHparams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.where == name


def test_layers_are_kept_to(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    patch = Margin(MarginHparams(n_unrelated=8, layers=[4])).execute(vlm, mmedit.EditRequest(cat_file, "cat", "dog"))
    assert {site.layer for site in patch.sites} == {4}


def test_a_model_that_will_not_be_taught_is_said_so(untrained: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    said = untrained.caption([cat_file])[0]
    request = mmedit.EditRequest(cat_file, None, "a cat on a boat", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Margin(MarginHparams(n_unrelated=2, neurons_per_edit=1, rounds=1)).execute(untrained, request)
    assert said != "a cat on a boat"
    (told,) = [w for w in caught if "answers are not as wanted" in str(w.message)]
    assert told.filename == __file__, "the user's line, not the library's"
