"""One picture's concept swapped for several targets, and what other pictures with the concept are called then (Pan et al., Tables 6, 7, 12)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from mmedit.analysis.survey import Surveyed
from mmedit.cases import Probe
from mmedit.data.pictured import Pictured
from mmedit.editors import Editor
from mmedit.errors import RequestError
from mmedit.evaluation.answers import Baselines
from mmedit.evaluation.bench import made
from mmedit.evaluation.journal import Journal
from mmedit.evaluation.judge import State, judge, swaps_of
from mmedit.models.vlm import VisionLanguageModel
from mmedit.requests import EditRequest, Prompt, as_prompt


@dataclass(frozen=True)
class Swapped:
    """What one picture is called after an edit.

    Args:
        source: the word that was replaced.
        target: by which.
        label: what to call the picture.
        number: of the picture in its set.
        edited: whether the edit was made from it.
        before: its caption without the edit.
        after: its caption with it.
        right: whether the source is gone and the target there; None where the model does not say the source.
    """

    source: str
    target: str
    label: str
    number: int
    edited: bool
    before: str
    after: str
    right: bool | None


@dataclass(frozen=True)
class Plan:
    """Which concept of which picture is swapped for what, and the pictures that it is tested on."""

    source: str
    targets: tuple[str, ...]
    edit: int
    tests: tuple[int, ...]


def plan_swaps(
    found: Sequence[Surveyed], objects: Collection[str] | None = None, n_sources: int = 5, n_targets: int = 3, n_tests: int = 8
) -> list[Plan]:  # fmt: skip
    """The commonest concepts, each from the first picture that has it, for the next commonest ones.

    Args:
        found: the survey.
        objects: only these words; all concepts when None.
        n_sources: how many concepts are swapped.
        n_targets: for how many others each.
        n_tests: other pictures with the concept, at most.

    Raises:
        RequestError: if fewer than two concepts stand in two captions.
    """
    of_word: dict[str, list[int]] = {}
    for surveyed in found:
        for concept in surveyed.concepts:
            of_word.setdefault(concept.word.casefold(), []).append(surveyed.number)
    allowed = of_word.keys() if objects is None else {word.casefold() for word in objects}
    common = sorted(
        (w for w in of_word if len(of_word[w]) > 1 and w in allowed), key=lambda word: (-len(of_word[word]), word)
    )
    if len(common) < 2:
        raise RequestError(
            "too few concepts to swap", got=f"{len(common)} concepts in two captions", expected="2 or more"
        )
    plans = []
    for i, source in enumerate(common[:n_sources]):
        targets = tuple((common[i + 1 :] + common[:i])[:n_targets])
        first, *others = of_word[source]
        plans.append(Plan(source, targets, first, tuple(others[:n_tests])))
    return plans


def swap(
    vlm: VisionLanguageModel, pictures: Sequence[Pictured], plans: Sequence[Plan], editor: Editor, *,
    prompt: str | Prompt | None = None, batch_size: int = 8, cache: bool = True, journal: Journal | None = None,
) -> Iterator[Swapped]:  # fmt: skip
    """Make every edit by itself, caption its picture and the test pictures, and take it out again.

    Args:
        vlm: the model; the same at the end as at the start.
        pictures: the picture set.
        plans: from `plan_swaps`, or of your own.
        editor: how the edits are made.
        prompt: as for `vlm.caption`.
        batch_size: pictures per batch.
        cache: keep the unedited captions for later runs.
        journal: what is done already, and where to write what comes.

    Yields:
        For each edit its pictures, the edit's own first.

    An edit that cannot be made, as one of words that begin with the same token, leaves its captions as they are.
    """
    baselines = Baselines(vlm, cache)
    done = {(line["source"], line["target"]): line["pictures"] for line in journal.lines()} if journal else {}
    for plan in plans:
        numbers = (plan.edit, *plan.tests)
        probes = [Probe("related", pictures[n].image, as_prompt(prompt), label=pictures[n].label) for n in numbers]
        for target in plan.targets:
            if (plan.source, target) not in done:
                request = EditRequest([pictures[plan.edit].image], plan.source, target, prompt)
                patch = made(vlm, f"{plan.source} {target}", request, editor.execute, seed=0).patch
                state = State([patch], swaps_of(patch)) if patch else State([], {plan.source: target})
                (results,) = judge(vlm, probes, [state], baselines, batch_size, False)
                rows = [
                    vars(Swapped(plan.source, target, r.probe.label, n, n == plan.edit, r.before, r.after, r.right))
                    for n, r in zip(numbers, results, strict=True)
                ]
                done[plan.source, target] = rows
                if journal:
                    journal.write({"source": plan.source, "target": target, "pictures": rows})
            yield from (Swapped(**row) for row in done[plan.source, target])
