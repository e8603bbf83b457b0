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
from mmedit.evaluation.memory import peak_memory
from mmedit.evaluation.report import EditReport
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.patch import Patch
from mmedit.processes import ALONE, Processes

Execute = Callable[[VisionLanguageModel, Any], Patch]
"""From one request, or a list of them, to a patch."""


@dataclass(frozen=True)
class Outcome:
    """One edit of a benchmark.

    Args:
        case: its id.
        results: its probes, before and after.
        seconds: of locating and solving; of several edits at once, its share.
        failure: why no edit could be made; its probes are then judged on the model without it.
        patch_bytes: the size of its patch's changed rows.
        peak_bytes: memory that making the patch needed at its peak.
        edit: of several cases that are one edit, the first; itself when empty.
        at_once: how many cases its patch was made for.
    """

    case: str
    results: tuple[ProbeResult, ...]
    seconds: float
    failure: str | None = None
    patch_bytes: int = 0
    peak_bytes: int = 0
    edit: str = ""
    at_once: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain JSON values, without its probes, which the benchmark has."""
        return {**vars(self), "results": [plain_result(result) for result in self.results]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], probes: Sequence[Probe]) -> Outcome:
        """What `to_dict` gave, with the probes of the same benchmark."""
        edit = values.get("edit") or values["case"]
        results = tuple(
            ProbeResult(probe, case=edit, **result) for probe, result in zip(probes, values["results"], strict=True)
        )
        return cls(**{**values, "results": results})


def plain_result(result: ProbeResult) -> dict[str, Any]:
    """One probe's result as JSON values, without what the benchmark has."""
    return {name: value for name, value in vars(result).items() if name not in ("probe", "case")}


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
    attempt = made(vlm, case.id, case.request, execute, seed)
    patch = attempt.patch
    state = State([patch], swaps_of(patch)) if patch else State([], wanted_swaps(case))
    (results,) = judge(vlm, case.probes, [state], baselines, batch_size, teacher_forcing)
    return Outcome(
        case.id, of_case(case.id, results), attempt.seconds, attempt.failure, size_of(patch), attempt.peak_bytes
    )


@dataclass(frozen=True)
class Attempt:
    """What came of making a patch.

    Args:
        patch: None where there is none.
        failure: why there is none.
        seconds: that it took.
        peak_bytes: memory that it needed at its peak, above what was in use before.
    """

    patch: Patch | None
    failure: str | None
    seconds: float
    peak_bytes: int


def made(vlm: VisionLanguageModel, name: str, requests: Any, execute: Execute, seed: int) -> Attempt:
    """Make a patch; what is drawn at random follows from seed and name alone."""
    patch = failure = None
    torch.manual_seed(hash_of(seed, name))
    began = time.perf_counter()
    on_cuda = any(parameter.is_cuda for parameter in vlm.model.parameters())
    with peak_memory(on_cuda) as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a word of several tokens, a weak neuron: the figures show what comes of it
        try:
            patch = execute(vlm, requests)
        except MmeditError as error:
            failure = str(error)
    return Attempt(patch, failure, time.perf_counter() - began, peak.above)


def wanted_swaps(case: EditCase) -> dict[str, str]:
    """For each source of a case, in lower case, its target: what its patch would swap."""
    return {source.casefold(): target for source, target in case.request.swaps.items()}


def size_of(patch: Patch | None) -> int:
    """Bytes of what a patch adds to the weights."""
    if patch is None:
        return 0
    parts = [rows for _, rows in patch.deltas.values()] + [part for pair in patch.low_rank.values() for part in pair]
    return sum(part.numel() * part.element_size() for part in parts)


def of_case(case: str, results: Iterable[ProbeResult]) -> tuple[ProbeResult, ...]:
    """Results that know the edit which they belong to."""
    return tuple(replace(result, case=case) for result in results)


def hash_of(seed: int, text: str) -> int:
    """A seed of its own for each case, the same in every process."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(f"{seed} {text}".encode(), digest_size=7).digest(), "big")


def report_of(editor: str, model: str, found: Sequence[Outcome], seconds: float, at_once: int = 1) -> EditReport:
    """The report of a benchmark: every probe of every edit, intervals from resampling edits.

    Args:
        editor: its name.
        model: its name.
        found: all outcomes.
        seconds: that the run took.
        at_once: how many edits were to be made at once; how many there were on average is `edits_per_patch`.
    """
    n = max(1, len(found))
    name = editor if at_once == 1 else f"{editor}, {at_once} at once"
    info = {
        "editor": editor,
        "n_edits": len(found),
        "at_once": at_once,
        "edits_per_patch": sum(outcome.at_once for outcome in found) / n,
        "seconds": seconds,
        "seconds_per_edit": sum(outcome.seconds for outcome in found) / n,
        "peak_bytes": max((outcome.peak_bytes for outcome in found), default=0),
        "patch_bytes": sum(outcome.patch_bytes for outcome in found) / n,
        "failures": {outcome.case: outcome.failure for outcome in found if outcome.failure},
    }
    return EditReport(name, model, tuple(result for outcome in found for result in outcome.results), info)
