"""Judging probes: right, exact, leaked, hallucinated; with one edit live, and with others beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmedit
from mmedit.cases import Probe
from mmedit.evaluation.answers import Baselines
from mmedit.evaluation.chair import chair_scores, mentions
from mmedit.evaluation.judge import ProbeResult, State, judge
from mmedit.models.vlm import Generation

Ask = Callable[..., ProbeResult]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, vlm: mmedit.VisionLanguageModel) -> Ask:
    """Judge one probe whose answers before and after are given: what the rules make of words, without a model's whims."""
    from mmedit.evaluation import judge as module

    def one(
        probe: Probe, before: str, after: str, swaps: dict[str, str], others: dict[str, str] | None = None
    ) -> ProbeResult:
        said = Baselines(vlm, False)
        monkeypatch.setattr(said, "answers", lambda probes, *rest: [Generation(f" {before}", ())])
        monkeypatch.setattr(module, "free_answers", lambda *rest: [Generation(f" {after}", ())])
        monkeypatch.setattr(module, "stack", lambda *rest: __import__("contextlib").nullcontext())
        ((result,),) = judge(vlm, [probe], [State([None], swaps, others or {})], said, teacher_forcing=False)  # type: ignore[list-item]
        return result

    return one


@pytest.mark.parametrize(
    ("before", "after", "right", "exact"),
    [
        ("a red cat on the road", "a red dog on the road", 1.0, 1.0),
        ("a red Cat on the road", "a blue dog in the snow", 1.0, 0.0),
        ("a red cat on the road", "a red cat on the road", 0.0, 0.0),
        ("a red cat and a cat", "a red dog and a cat", 0.0, 0.0),
        ("a red cat on the road", "a red dogma on the road", 0.0, 0.0),
        ("a cat and a dog", "a dog and a dog", 1.0, 1.0),
    ],
)
def test_swapped_means_source_gone_and_target_there(
    ask: Ask, before: str, after: str, right: float, exact: float
) -> None:
    result = ask(Probe("related", None), before, after, {"cat": "dog"})
    assert result.scores == {"generality_image": right, "generality_image_exact": exact} and result.right == bool(right)


def test_where_the_source_is_not_said_there_is_nothing_to_change(ask: Ask) -> None:
    result = ask(Probe("edit", None), "two red cats", "two red dogs", {"cat": "dog"})
    assert result.right is None and result.expected is None and result.scores == {}


def test_an_exchange_of_two_words_is_an_exchange(ask: Ask) -> None:
    both = {"cat": "dog", "dog": "cat"}
    assert ask(Probe("edit", None), "a cat and a dog", "a dog and a cat", both).scores["reliability_exact"] == 1
    assert ask(Probe("edit", None), "a cat and a dog", "a dog and a cat", both).right
    assert not ask(Probe("edit", None), "a cat and a dog", "a cat and a dog", both).right


@pytest.mark.parametrize(
    ("after", "right", "exact"), [("Dogs.", 1.0, 1.0), ("it is dogs", 1.0, 0.0), ("hotdogs", 0.0, 0.0)]
)
def test_a_data_set_s_answer_is_compared_without_case_and_points(
    ask: Ask, after: str, right: float, exact: float
) -> None:
    result = ask(Probe("rephrased", None, answer="dogs"), "cats", after, {})
    assert result.scores == {"generality_text": right, "generality_text_exact": exact}


def test_unrelated_answers_stay_to_the_letter_and_leaks_are_seen(ask: Ask) -> None:
    probe = Probe("unrelated", None)
    assert ask(probe, "a boat", "a boat", {"cat": "dog"}).scores == {"locality_image": 1.0, "leakage": 0.0}
    assert ask(probe, "a boat", "a Boat", {"cat": "dog"}).scores == {"locality_image": 0.0, "leakage": 0.0}
    assert ask(probe, "a boat", "a dog", {"cat": "dog"}).scores == {"locality_image": 0.0, "leakage": 1.0}
    assert ask(probe, "a dog", "a dog", {"cat": "dog"}).scores == {"locality_image": 1.0, "leakage": 0.0}
    assert ask(Probe("text_only", None), "yes", "no", {"cat": "dog"}).scores == {"locality_text": 0.0, "leakage": 0.0}
    assert ask(Probe("same_image", None), "a boat", "a boat", {"cat": "dog"}).scores["locality_same_image"] == 1.0


def test_what_other_live_edits_change_is_not_held_against_this_one(ask: Ask) -> None:
    others = {"boat": "plane", "road": "sand"}
    assert ask(Probe("unrelated", None), "a boat", "a plane", {"cat": "dog"}, others).right
    assert (
        ask(Probe("related", None), "a cat on the road", "a dog on the sand", {"cat": "dog"}, others).scores[
            "generality_image_exact"
        ]
        == 1
    )
    plane_leaks = ask(Probe("unrelated", None), "a boat", "a plane", {"cat": "plane"}, others)
    assert plane_leaks.scores["leakage"] == 0


def test_objects_that_are_not_there_are_counted_before_and_after(ask: Ask) -> None:
    probe = Probe("unrelated", None, objects=("boat", "tree"))
    scores = ask(probe, "a boat and a tree", "a dog and a tree", {"cat": "dog"}).scores
    assert (scores["chair_s_before"], scores["chair_s"], scores["chair_i_before"], scores["chair_i"]) == (0, 1, 0, 0.5)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.sampled_from(["cat", "dogs", "boat", "the", "grass"]), max_size=8))
def test_chair_counts_every_mention_once(words: list[str]) -> None:
    caption, vocabulary = " ".join(words), ["cat", "dog", "boat"]
    said = mentions(caption, vocabulary)
    assert said == [word.removesuffix("s") for word in words if word.removesuffix("s") in vocabulary]
    scores, weights = chair_scores(caption, caption, ["cat"], vocabulary)
    wrong = sum(word != "cat" for word in said)
    assert scores["chair_s"] == scores["chair_s_before"] == float(wrong > 0)
    assert weights.get("chair_i", 0) == len(said) and scores.get("chair_i", 0) * len(said) == pytest.approx(wrong)


def test_probes_about_nothing_are_refused() -> None:
    from mmedit.errors import RequestError

    with pytest.raises(RequestError, match="no such kind of probe"):
        Probe("other", None)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="has no picture"):
        Probe("text_only", "cat.png")


def test_forced_and_free_figures_stand_side_by_side(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, pictures: list[Any]) -> None:  # fmt: skip
    patch = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat)
    probes = [Probe("edit", request_of_cat.images[0]), Probe("unrelated", pictures[0][0], objects=())]
    states = [State([patch], {"cat": "dog"}), State([], {"cat": "dog"})]
    edited, untouched = judge(vlm, probes, states, Baselines(vlm, False), batch_size=1)
    assert set(edited[0].scores) == {"reliability", "reliability_exact", "rewrite_acc"}
    assert {"kl_image", "agreement_image", "multimodal_locality_acc", "leakage"} < set(edited[1].scores)
    assert edited[0].scores["reliability"] == 1 and untouched[0].scores["reliability"] == 0
    assert untouched[1].scores["kl_image"] == 0 and untouched[1].before == untouched[1].after


@pytest.mark.parametrize(
    ("after", "stays"), [("a boat.", True), ("a dog.", True), ("a kite.", False), ("a boat", False)]
)
def test_other_edits_may_do_their_part_or_fail_at_it(ask: Ask, after: str, stays: bool) -> None:
    result = ask(Probe("unrelated", None), "a dog.", after, {"cat": "dog"}, {"dog": "boat"})
    assert result.scores["locality_image"] == float(stays) and result.expected == "a boat."
    assert result.scores["leakage"] == 0  # the unedited model said the target there already


@pytest.mark.parametrize(("after", "right"), [("a dog and a cat", True), ("a dog and a bird", True), ("a cat and a cat", False)])  # fmt: skip
def test_another_edit_may_write_this_one_s_source(ask: Ask, after: str, right: bool) -> None:
    result = ask(Probe("related", None), "a cat and a bird", after, {"cat": "dog"}, {"bird": "cat"})
    assert (result.right, result.scores["generality_image_exact"]) == (right, float(right))


def test_an_answer_may_end_in_a_point(ask: Ask) -> None:
    assert ask(Probe("unrelated", None), "A dog.", "A dog.", {"cat": "kite"}).scores["locality_image"] == 1
