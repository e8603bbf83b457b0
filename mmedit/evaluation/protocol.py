"""Judging edits: captions before and after, on the edit's pictures, related ones and unrelated ones.

The baseline is always the unedited model, captioned once for all patches: K patches on N pictures cost (K + 1)·N captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmedit.errors import PatchError, RequestError
from mmedit.evaluation.metrics import all_replaced, says
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.live import Stack
from mmedit.patches.patch import Patch
from mmedit.requests import Prompt, as_list

METRICS = {"edit": "reliability", "related": "generality", "unrelated": "locality"}
"""What the share of right captions is called, for each kind of picture."""


@dataclass(frozen=True)
class CaseResult:
    """One picture under one patch.

    Args:
        kind: `edit` (the edit was made from it), `related` (it shows a source) or `unrelated`.
        picture: as it was given.
        before: the unedited model's caption.
        after: the edited model's.
        right: the old caption with every source replaced and nothing else changed; for unrelated pictures, the old caption.
        leaked: a target stands in the new caption of an unrelated picture that had none.
    """

    kind: str
    picture: Any
    before: str
    after: str
    right: bool
    leaked: bool


@dataclass(frozen=True)
class EditReport:
    """What a patch does and what it leaves alone, counted on whole captions.

    Args:
        patch: its name.
        cases: every picture.
    """

    patch: str
    cases: tuple[CaseResult, ...]

    def counts(self) -> dict[str, tuple[int, int]]:
        """For each metric how many pictures are right, of how many; `leakage` counts the unrelated ones that are not."""
        kinds = {name: [case.right for case in self.cases if case.kind == kind] for kind, name in METRICS.items()}
        kinds["leakage"] = [case.leaked for case in self.cases if case.kind == "unrelated"]
        return {name: (sum(right), len(right)) for name, right in kinds.items() if right}

    def __str__(self) -> str:
        shares = [f"{name} {right / n:.3f} ({right} of {n})" for name, (right, n) in self.counts().items()]
        return f"{self.patch}: {', '.join(shares)}"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        shares = {name: {"share": right / n, "count": right, "of": n} for name, (right, n) in self.counts().items()}
        return {"patch": self.patch, **shares, "cases": [asdict(c) | {"picture": str(c.picture)} for c in self.cases]}


def evaluate(
    vlm: VisionLanguageModel, patches: Patch | Sequence[Patch], *, edited: Any = (), related: Any = (), unrelated: Any = (),
    prompt: str | Prompt | None = None, batch_size: int = 8,
) -> list[EditReport]:  # fmt: skip
    """Judge patches one by one by free generation, against the unedited model.

    Args:
        vlm: the model, with no patch live on it.
        patches: one or several; their edits say what the sources and targets are.
        edited: the pictures that the edits were made from.
        related: other pictures with a source.
        unrelated: pictures without one.
        prompt: as for `vlm.caption`.
        batch_size: pictures per batch.

    Returns:
        One report per patch.

    Raises:
        BaseMismatchError: if a patch is for another model.
        ImageError: if a picture cannot be read.
        PatchError: if a patch does not say what it swaps.
        RequestError: if there are no pictures, or a patch is live already, so that there is no unedited model.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> vlm = mmedit.load("iconworld-llava")
        >>> (tree, _, _), *others = list(benchmark_pictures(4))[1:]
        >>> editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
        >>> patch = editor.execute(vlm, mmedit.EditRequest(tree, "tree", "boat"))
        >>> print(mmedit.evaluate(vlm, patch, edited=[tree])[0])
        tree→boat: reliability 1.000 (1 of 1)
    """
    listed = [patches] if isinstance(patches, Patch) else list(patches)
    swaps = [_swaps(patch) for patch in listed]
    kinds = zip(METRICS, (edited, related, unrelated), strict=True)
    pictures = [(kind, picture) for kind, given in kinds for picture in as_list(given)]
    live = Stack.of(vlm).names
    if live or not pictures or not listed:
        got = f"live patches {list(live)}" if live else f"{len(pictures)} pictures, {len(listed)} patches"
        raise RequestError(
            "nothing to judge, or nothing to judge it against",
            got=got,
            expected="an unedited model, patches and pictures",
        )

    def captions() -> list[str]:
        return vlm.caption([picture for _, picture in pictures], prompt, batch_size)

    before, reports = captions(), []
    for patch, swap in zip(listed, swaps, strict=True):
        with patch.applied(vlm):
            after = captions()
        cases = [_judge(*given, old, new, swap) for given, old, new in zip(pictures, before, after, strict=True)]
        reports.append(EditReport(patch.name, tuple(cases)))
    return reports


def _judge(kind: str, picture: Any, before: str, after: str, swaps: Mapping[str, str]) -> CaseResult:
    wanted = all_replaced(before, swaps)
    if kind == "unrelated":
        leaked = any(says(after, target) and not says(before, target) for target in swaps.values())
        return CaseResult(kind, picture, before, after, after == before, leaked)
    return CaseResult(kind, picture, before, after, wanted != before and after == wanted, leaked=False)


def _swaps(patch: Patch) -> dict[str, str]:
    if not patch.edits:
        raise PatchError(
            "a patch that does not say what it swaps", got=patch.name, do="judge the edit that it was made from"
        )
    return {edit["source"].casefold(): edit["target"] for edit in patch.edits}
