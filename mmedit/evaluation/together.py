"""Edits at once: cases in groups, one patch made for each group, each case judged on its own probes.

Cases that swap the same word for the same other one, from pictures of their own, become one request with all of their
pictures. What the group's other edits change is not held against a case: its answers are expected to have those swaps too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mmedit.cases import EditCase
from mmedit.evaluation.answers import Baselines
from mmedit.evaluation.bench import Attempt, Execute, Outcome, made, of_case, size_of, wanted_swaps
from mmedit.evaluation.journal import Journal
from mmedit.evaluation.judge import State, judge, swaps_of
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.patch import Patch
from mmedit.processes import ALONE, Processes
from mmedit.requests import EditRequest

Group = tuple[EditCase, ...]


def groups_of(cases: Sequence[EditCase], n: int) -> list[Group]:
    """Put cases into groups of n in which no source has two targets.

    In order, each case goes into the first group that has room and in which none of its words is swapped for something else.
    Where the cases run out of other sources, groups stay smaller.

    Args:
        cases: the benchmark.
        n: how many edits at once, at least one.

    Example:
        >>> swaps = [("cat", "dog"), ("cat", "boat"), ("tree", "kite"), ("cat", "dog")]
        >>> cases = [EditCase(str(i), EditRequest(f"{i}.png", *swap), ()) for i, swap in enumerate(swaps)]
        >>> [[case.id for case in group] for group in groups_of(cases, 3)]
        [['0', '2', '3'], ['1']]
    """
    groups: list[list[EditCase]] = []
    targets: list[dict[str, str]] = []
    for case in cases:
        wanted = wanted_swaps(case)
        for group, taken in zip(groups, targets, strict=True):
            if len(group) < n and all(taken.get(source, target) == target for source, target in wanted.items()):
                break
        else:
            groups.append(group := [])
            targets.append(taken := {})
        group.append(case)
        taken |= wanted
    return [tuple(group) for group in groups]


def joined(cases: Sequence[EditCase]) -> dict[Any, EditRequest]:
    """The requests of some cases; those of the same swap are one, with the pictures of all.

    Returns:
        The requests by what is the same in them, `edit_of` each case.
    """
    requests: dict[Any, EditRequest] = {}
    for case in cases:
        first = requests.setdefault(edit_of(case), case.request)
        if first is not case.request:
            requests[edit_of(case)] = replace(first, images=(*first.images, *case.request.images))
    return requests


def edit_of(case: EditCase) -> Any:
    """What cases of one edit have in common; a case without a source is an edit of its own."""
    request = case.request
    if request.source is None:
        return case.id
    return request.source.casefold(), request.target, request.prompt, tuple(request.forms.items())


def together(
    vlm: VisionLanguageModel, groups: Sequence[Group], execute: Execute, *, journal: Journal | None = None, processes: Processes = ALONE,
    seed: int = 0, batch_size: int = 8, baselines: Baselines | None = None,
) -> Iterator[list[Outcome]]:  # fmt: skip
    """Make one patch for each group of cases and judge every case, those that the journal has not.

    Only free generation is judged: no forced answer says what is due to the other edits.

    Args:
        vlm: the model; the same at the end as at the start.
        groups: of cases, as from `groups_of`.
        execute: from a list of requests to a patch.
        journal: what is done already, and where to write what comes.
        processes: of which this one does its share of the groups.
        seed: what an editor draws at random follows from it and the group alone.
        batch_size: probes per batch.
        baselines: what the unedited model says.

    Yields:
        The outcomes of each group. A case whose request the editor refuses is a failure, and the patch is made without it.
    """
    known = baselines or Baselines(vlm)
    done = {tuple(line["cases"]): line["outcomes"] for line in journal.lines()} if journal else {}
    for group in processes.share(groups):
        ids = tuple(case.id for case in group)
        if ids in done:
            yield [Outcome.from_dict(line, case.probes) for line, case in zip(done[ids], group, strict=True)]
            continue
        found = _judged(vlm, group, execute, known, seed, batch_size)
        if journal:
            journal.write({"cases": ids, "outcomes": [outcome.to_dict() for outcome in found]})
        yield found


def _judged(
    vlm: VisionLanguageModel, group: Group, execute: Execute, baselines: Baselines, seed: int, batch_size: int
) -> list[Outcome]:
    """Make the patch of a group without those that cannot be made, and judge all."""
    attempt, failures = _made(vlm, group, execute, seed)
    kept = [case for case in group if case.id not in failures]
    swaps = _swaps(attempt.patch, kept)
    leaders: dict[Any, str] = {}
    found = []
    for case in group:
        leader = leaders.setdefault(edit_of(case), case.id)
        own = swaps.get(edit_of(case), wanted_swaps(case))
        others = {k: v for of_one in swaps.values() for k, v in of_one.items() if k not in own}
        state = State([attempt.patch] if attempt.patch else [], own, others)
        (results,) = judge(vlm, case.probes, [state], baselines, batch_size, teacher_forcing=False)
        outcome = Outcome(
            case.id, of_case(leader, results), attempt.seconds / len(group), failures.get(case.id), size_of(attempt.patch),
            attempt.peak_bytes, leader, max(1, len(kept)),
        )  # fmt: skip
        found.append(outcome)
    return found


def _made(
    vlm: VisionLanguageModel, group: Sequence[EditCase], execute: Execute, seed: int
) -> tuple[Attempt, dict[str, str]]:
    """The patch of a group, made again without those that the editor refuses, and why it refuses each of them."""
    attempt = _attempt(vlm, group, execute, seed)
    if attempt.failure is None:
        return attempt, {}
    failures = _failing(vlm, group, execute, seed, attempt.failure)
    kept = [case for case in group if case.id not in failures]
    if not kept:
        return attempt, failures
    again = _attempt(vlm, kept, execute, seed)
    return again, failures | {case.id: again.failure for case in kept if again.failure is not None}


def _failing(
    vlm: VisionLanguageModel, group: Sequence[EditCase], execute: Execute, seed: int, failure: str
) -> dict[str, str]:
    """Which cases of a group that cannot be made are to blame: those that fail alone, found by halving; all, if none does."""
    if len(group) == 1:
        return {group[0].id: failure}
    found: dict[str, str] = {}
    for half in (group[: len(group) // 2], group[len(group) // 2 :]):
        refused = _attempt(vlm, half, execute, seed).failure
        found |= _failing(vlm, half, execute, seed, refused) if refused is not None else {}
    return found or {case.id: failure for case in group}


def _attempt(vlm: VisionLanguageModel, cases: Sequence[EditCase], execute: Execute, seed: int) -> Attempt:
    return made(vlm, " ".join(case.id for case in cases), [*joined(cases).values()], execute, seed)


def _swaps(patch: Patch | None, kept: Sequence[EditCase]) -> dict[Any, dict[str, str]]:
    """What each edit of a patch swaps, by `edit_of` its cases: a patch has its edits in the order of the requests."""
    if patch is None:
        return {}
    edits = zip(joined(kept), patch.edits, strict=True)
    return {edit: swaps_of(replace(patch, edits=(one,))) for edit, one in edits}
