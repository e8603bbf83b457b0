"""A whole benchmark: each edit made by itself, judged on its own probes, taken out again."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmedit.cases import EditCase, Probe
from mmedit.errors import MmeditError
from mmedit.evaluation.answers import Baselines
from mmedit.evaluation.journal import Journal
from mmedit.evaluation.judge import ProbeResult, State, judge, swaps_of
from mmedit.evaluation.report import EditReport
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.patch import Patch
from mmedit.processes import ALONE, Processes
from mmedit.requests import EditRequest

Execute = Callable[[VisionLanguageModel, EditRequest], Patch]


@dataclass(frozen=True)
class Outcome:
    """One edit of a benchmark.

    Args:
        case: its id.
        results: its probes, before and after.
        seconds: of locating and solving.
        failure: why no edit could be made; its probes are then judged on the unedited model.
        patch_bytes: the size of its changed rows.
    """

    case: str
    results: tuple[ProbeResult, ...]
    seconds: float
    failure: str | None = None
    patch_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain JSON values, without its probes, which the benchmark has."""
        results = [{k: v for k, v in vars(result).items() if k not in ("probe", "case")} for result in self.results]
        return {**vars(self), "results": results}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], probes: Sequence[Probe]) -> Outcome:
        """What `to_dict` gave, with the probes of the same benchmark."""
        results = tuple(
            ProbeResult(probe, case=values["case"], **result)
            for probe, result in zip(probes, values["results"], strict=True)
        )
        return cls(**{**values, "results": results})


def outcomes(
    vlm: VisionLanguageModel, cases: Sequence[EditCase], execute: Execute, *, journal: Journal | None = None, processes: Processes = ALONE,
    seed: int = 0, batch_size: int = 8, teacher_forcing: bool = True, baselines: Baselines | None = None,
) -> Iterator[Outcome]:  # fmt: skip
    """Make and judge the edits of a benchmark, those that the journal has not.

    Args:
        vlm: the model; the same at the end as at the start.
        cases: the benchmark.
        execute: from a request to a patch.
        journal: what is done already, and where to write what comes.
        processes: of which this one does its share.
        seed: what an editor draws at random follows from it and the case alone.
        batch_size: probes per batch.
        teacher_forcing: as for `mmedit.evaluate`.
        baselines: what the unedited model says.

    Yields:
        The outcomes, those of the journal first.
    """
    known = baselines or Baselines(vlm)
    done: dict[str, Any] = {line["case"]: line for line in journal.lines()} if journal else {}
    for case in processes.share(cases):
        if case.id in done:
            yield Outcome.from_dict(done[case.id], case.probes)
            continue
        outcome = judged(vlm, case, execute, known, seed, batch_size, teacher_forcing)
        if journal:
            journal.write(outcome.to_dict())
        yield outcome


def judged(
    vlm: VisionLanguageModel, case: EditCase, execute: Execute, baselines: Baselines, seed: int, batch_size: int, teacher_forcing: bool
) -> Outcome:  # fmt: skip
    """Make one edit and judge it."""
    patch, seconds, failure = made(vlm, case, execute, seed)
    request = case.request
    swaps = swaps_of(patch) if patch else {request.source.casefold(): request.target} if request.source else {}
    state = State([patch] if patch else [], swaps)
    (results,) = judge(vlm, case.probes, [state], baselines, batch_size, teacher_forcing)
    return Outcome(case.id, of_case(case, results), seconds, failure, size_of(patch) if patch else 0)


def made(
    vlm: VisionLanguageModel, case: EditCase, execute: Execute, seed: int
) -> tuple[Patch | None, float, str | None]:
    """The patch of a case, the seconds that it took, and otherwise why there is none."""
    torch.manual_seed(hash_of(seed, case.id))
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a word of several tokens, a weak neuron: the figures show what comes of it
            patch, failure = execute(vlm, case.request), None
    except MmeditError as error:
        patch, failure = None, str(error)
    return patch, time.perf_counter() - began, failure


def size_of(patch: Patch) -> int:
    """Bytes of what a patch adds to the weights."""
    parts = [rows for _, rows in patch.deltas.values()] + [part for pair in patch.low_rank.values() for part in pair]
    return sum(part.numel() * part.element_size() for part in parts)


def of_case(case: EditCase, results: Iterable[ProbeResult]) -> tuple[ProbeResult, ...]:
    """Results that know the edit which they belong to."""
    return tuple(replace(result, case=case.id) for result in results)


def hash_of(seed: int, text: str) -> int:
    """A seed of its own for each case, the same in every process."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(f"{seed} {text}".encode(), digest_size=7).digest(), "big")


def report_of(name: str, model: str, found: Sequence[Outcome], seconds: float) -> EditReport:
    """The report of a benchmark: every probe of every edit, intervals from resampling edits."""
    failures = {outcome.case: outcome.failure for outcome in found if outcome.failure}
    info = {
        "n_edits": len(found),
        "seconds": seconds,
        "seconds_per_edit": sum(outcome.seconds for outcome in found) / max(1, len(found)),
        "patch_bytes": sum(outcome.patch_bytes for outcome in found) / max(1, len(found)),
        "failures": failures,
    }
    return EditReport(name, model, tuple(result for outcome in found for result in outcome.results), info)
