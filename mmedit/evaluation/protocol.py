"""Judging edits on a user's own pictures and prompts, always against the unedited model.

The unedited model is asked once for all patches, and what it said is kept on disk: K patches on N pictures cost (K + 1)·N
answers, and N less the next time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from mmedit.cases import Kind, Probe
from mmedit.data.pictures import read_pictures
from mmedit.errors import RequestError
from mmedit.evaluation.answers import Bar, Baselines
from mmedit.evaluation.judge import State, judge, swaps_of
from mmedit.evaluation.report import EditReport
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.live import Stack
from mmedit.patches.patch import Patch
from mmedit.requests import EditRequest, Prompt, as_list, as_prompt


@overload
def evaluate(
    vlm: VisionLanguageModel, patches: Patch, *, requests: Any = ..., related: Any = ..., unrelated: Any = ...,
    text_only: Any = ..., rephrased: Any = ..., same_image: Any = ..., prompt: str | Prompt | None = ..., batch_size: int = ...,
    teacher_forcing: bool = ..., cache: str | Path | bool | None = ..., bar: Bar | None = ...,
) -> EditReport: ...  # fmt: skip


@overload
def evaluate(
    vlm: VisionLanguageModel, patches: Sequence[Patch], *, requests: Any = ..., related: Any = ..., unrelated: Any = ...,
    text_only: Any = ..., rephrased: Any = ..., same_image: Any = ..., prompt: str | Prompt | None = ..., batch_size: int = ...,
    teacher_forcing: bool = ..., cache: str | Path | bool | None = ..., bar: Bar | None = ...,
) -> list[EditReport]: ...  # fmt: skip


def evaluate(
    vlm: VisionLanguageModel, patches: Patch | Sequence[Patch], *, requests: Any = (), related: Any = (), unrelated: Any = (),
    text_only: Any = (), rephrased: Any = (), same_image: Any = (), prompt: str | Prompt | None = None, batch_size: int = 8,
    teacher_forcing: bool = True, cache: str | Path | bool | None = None, bar: Bar | None = None,
) -> EditReport | list[EditReport]:  # fmt: skip
    """Judge patches one by one: what they change, on which other pictures and prompts, and what they break.

    Args:
        vlm: the model, with no patch live on it.
        patches: one or several; their edits say what the sources and targets are.
        requests: the requests that the edits were made from, or their pictures alone: reliability.
        related: other pictures with a source, in any form that `read_pictures` takes: generality over pictures.
        unrelated: pictures without one: locality, leakage, KL; and object hallucination where a list gives their objects.
        text_only: prompts asked without a picture: locality over text.
        rephrased: other prompts that make the model name the source, asked about the requests' pictures: generality over text.
        same_image: prompts about something else in the requests' pictures: locality within a picture.
        prompt: for the pictures, as for `vlm.caption`.
        batch_size: probes per batch.
        teacher_forcing: also measure KL, agreement and EasyEdit's accuracies, by one more forward pass per probe.
        cache: the folder in which the unedited model's answers are kept; a folder of the user's when None, nowhere when False.
        bar: a tqdm bar, told how many answers are done.

    Returns:
        A report for a single patch, else one for each.

    Raises:
        BaseMismatchError: if a patch is for another model.
        ImageError: if a picture cannot be read.
        PatchError: if a patch does not say what it swaps.
        RequestError: if there is nothing to judge, or a patch is live already, so that there is no unedited model.

    Example:
        >>> import mmedit
        >>> from mmedit.testbed import benchmark_pictures
        >>> vlm = mmedit.load("iconworld-llava")
        >>> (tree, _, _), (boat, _, _) = list(benchmark_pictures(6))[1::4]
        >>> request = mmedit.EditRequest(tree, "tree", "boat")
        >>> patch = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request)
        >>> report = mmedit.evaluate(vlm, patch, requests=request, unrelated=[boat], cache=False)
        >>> print(report.metrics["reliability"], report.metrics["locality_image"].n)
        1.000 [1.000, 1.000] 1
    """
    listed = [patches] if isinstance(patches, Patch) else list(patches)
    swaps = [swaps_of(patch) for patch in listed]
    edited = _edited(requests, prompt)
    probes = edited + _pictured("related", related, prompt) + _pictured("unrelated", unrelated, prompt)
    probes += [Probe("text_only", None, as_prompt(question)) for question in as_list(text_only)]
    probes += [replace(probe, kind="rephrased", prompt=as_prompt(q)) for probe in edited for q in as_list(rephrased)]
    probes += [replace(probe, kind="same_image", prompt=as_prompt(q)) for probe in edited for q in as_list(same_image)]
    if (prompted := list(as_list(rephrased)) + list(as_list(same_image))) and not edited:
        raise RequestError(
            "prompts about the requests' pictures, but no request",
            got=prompted[0],
            do="give requests, or their pictures",
        )
    live = Stack.of(vlm).names
    if live or not probes or not listed:
        got = f"live patches {list(live)}" if live else f"{len(probes)} probes, {len(listed)} patches"
        raise RequestError(
            "nothing to judge, or nothing to judge it against", got=got,
            expected="an unedited model, patches, and pictures or prompts",
        )  # fmt: skip
    states = [State([patch], swap) for patch, swap in zip(listed, swaps, strict=True)]
    results = judge(vlm, probes, states, Baselines(vlm, cache), batch_size, teacher_forcing, bar)
    reports = [EditReport(patch.name, vlm.name, tuple(r)) for patch, r in zip(listed, results, strict=True)]
    return reports[0] if isinstance(patches, Patch) else reports


def _edited(requests: Any, prompt: str | Prompt | None) -> list[Probe]:
    """The pictures that edits were made from, each with its prompt."""
    found = []
    for given in as_list(requests):
        if isinstance(given, EditRequest):
            ask = given.prompt if given.prompt is not None else prompt
            found += _pictured("edit", list(given.images), ask)
        else:
            found += _pictured("edit", [given], prompt)
    return found


def _pictured(kind: Kind, pictures: Any, prompt: str | Prompt | None) -> list[Probe]:
    return [
        Probe(kind, picture.image, as_prompt(prompt), objects=picture.objects, label=picture.label)
        for picture in read_pictures(pictures)
    ]
