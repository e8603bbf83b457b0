"""Judging probes: what the unedited model says, what the edited one says, and whether that is right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from mmedit.cases import Probe
from mmedit.errors import PatchError
from mmedit.evaluation.answers import Bar, Baselines, free_answers
from mmedit.evaluation.chair import chair_scores
from mmedit.evaluation.forced import changing_scores, staying_scores
from mmedit.evaluation.metrics import all_replaced, is_replaced, says
from mmedit.models.vlm import Generation, VisionLanguageModel
from mmedit.patches.live import stack
from mmedit.patches.patch import Patch

METRICS = {
    "edit": "reliability", "related": "generality_image", "rephrased": "generality_text", "question": "generality_question",
    "portability": "portability", "unrelated": "locality_image", "text_only": "locality_text", "same_image": "locality_same_image",
}  # fmt: skip
"""What the share of right answers is called, for each kind of probe."""


@dataclass(frozen=True)
class State:
    """What is live while a model is judged.

    Args:
        patches: all that is live at once.
        swaps: for each source of the edit that is judged, in lower case, its target.
        others: the same for edits that are live beside it; neither what they change nor what they fail to change is held against
            this one.
    """

    patches: Sequence[Patch]
    swaps: Mapping[str, str]
    others: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeResult:
    """One probe before and after.

    Args:
        probe: the question.
        before: the unedited model's answer.
        after: the edited model's answer.
        expected: the right answer after the edit; None where the unedited model does not say the source, so that there is
            nothing to change.
        right: source gone and target there, or, where the edit shall change nothing, the same answer; None as above.
        scores: the value of each metric.
        weights: of those that are not plain means.
        case: the edit that it belongs to.
    """

    probe: Probe
    before: str
    after: str
    expected: str | None
    right: bool | None
    scores: Mapping[str, float]
    weights: Mapping[str, float] = field(default_factory=dict)
    case: str = ""


def judge(
    vlm: VisionLanguageModel, probes: Sequence[Probe], states: Sequence[State], baselines: Baselines,
    batch_size: int = 8, teacher_forcing: bool = True, bar: Bar | None = None,
) -> list[list[ProbeResult]]:  # fmt: skip
    """Ask probes of the unedited model once, and of each edited state once.

    Args:
        vlm: the model, with nothing live on it.
        probes: what is asked.
        states: what to put live in turn.
        baselines: what the unedited model says.
        batch_size: probes per batch.
        teacher_forcing: also compare what both predict on given answers, one more forward pass each.
        bar: told how many answers are done, `(len(states) + 1) * len(probes)` in all, and as many as the states have once more
            for teacher forcing.

    Returns:
        For each state the results in order of the probes.

    Raises:
        BaseMismatchError: if a patch is for another model.
        ImageError: if a picture cannot be read.
    """
    known = {word for probe in probes for word in probe.objects or ()}
    before = baselines.answers(probes, batch_size, bar)
    results = []
    for state in states:
        with stack(vlm, state.patches):
            after = free_answers(vlm, probes, batch_size, bar) if state.patches else before
        if not state.patches and bar is not None:
            bar.update(len(probes))
        results.append(
            [_judge(probe, old, new, state, known) for probe, old, new in zip(probes, before, after, strict=True)]
        )
    if not teacher_forcing:
        return results
    patches = [state.patches for state in states]
    kept = staying_scores(vlm, probes, [generation.ids for generation in before], patches, batch_size, bar)
    changed = [
        changing_scores(vlm, probes, [result.expected for result in of_state], state.patches, batch_size, bar)
        for state, of_state in zip(states, results, strict=True)
    ]
    return [
        [replace(result, scores={**result.scores, **a, **b}) for result, a, b in zip(*of_state, strict=True)]
        for of_state in zip(results, kept, changed, strict=True)
    ]


def _judge(probe: Probe, before: Generation, after: Generation, state: State, objects: Set[str]) -> ProbeResult:
    old, new, name = before.text.strip(), after.text.strip(), METRICS[probe.kind]
    scores: dict[str, float] = {}
    weights: dict[str, float] = {}
    if probe.changing:
        expected, right = _changed(probe, old, new, state)
        if expected is not None:
            exact = _plain(new) == _plain(expected) if probe.answer is not None else _as_expected(old, new, state)
            scores = {name: float(bool(right)), f"{name}_exact": float(exact)}
        return ProbeResult(probe, old, new, expected, right, scores)
    expected = all_replaced(old, state.others)
    stayed = is_replaced(old, new, {}, state.others)
    leaked = any(says(new, word) and not says(expected, word) and not says(old, word) for word in state.swaps.values())
    scores = {name: float(stayed), "leakage": float(leaked)}
    if probe.objects is not None:
        vocabulary = objects | state.swaps.keys() | {*state.swaps.values(), *state.others.values()}
        there = {*probe.objects, *(state.others.get(word.casefold(), word) for word in probe.objects)}
        more, weights = chair_scores(old, new, there, vocabulary)
        scores |= more
    return ProbeResult(probe, old, new, expected, stayed, scores, weights)


def _changed(probe: Probe, old: str, new: str, state: State) -> tuple[str | None, bool | None]:
    """The answer that the edit should give, and whether the target is there and no source is left."""
    if probe.answer is not None:
        return probe.answer, says(_plain(new), _plain(probe.answer))
    said = {source: target for source, target in state.swaps.items() if says(old, source)}
    if not said:
        return None, None
    expected = all_replaced(old, {**state.others, **state.swaps})
    if any(says(expected, source) for source in said):  # of an exchange, or of another edit: right to say
        return expected, _as_expected(old, new, state)
    gone = not any(says(new, source) for source in said)
    return expected, gone and all(says(new, target) for target in said.values())


def _as_expected(old: str, new: str, state: State) -> bool:
    return is_replaced(old, new, state.swaps, state.others)


def _plain(text: str) -> str:
    """Without case, punctuation at the ends and runs of spaces: how an answer of a data set is compared."""
    return re.sub(r"\s+", " ", text).strip(" .,;:!?\"'").casefold()


def swaps_of(patch: Patch) -> dict[str, str]:
    """For each source of a patch, in lower case, its target.

    Raises:
        PatchError: if the patch does not say.
    """
    if not patch.edits or any(not edit.get("source") or not edit.get("target") for edit in patch.edits):
        raise PatchError(
            "a patch that does not say what it swaps", got=patch.name, do="judge the edit that it was made from"
        )
    swaps = [
        pair for edit in patch.edits for pair in ((edit["source"], edit["target"]), *edit.get("forms", {}).items())
    ]
    return {source.casefold(): target for source, target in swaps}
