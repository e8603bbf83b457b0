"""Comparing what two models predict on the same text: KL, agreement, and EasyEdit's five accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmedit.cases import Probe
from mmedit.evaluation.answers import Bar, batches_of, model_inputs
from mmedit.models.forcing import Forced, answer_ids, forced
from mmedit.models.vlm import VisionLanguageModel
from mmedit.patches.live import stack
from mmedit.patches.patch import Patch

Ids = Sequence[int]

TOP = 10  # ranks that EasyEdit compares
ACCURACY = {
    "edit": "rewrite_acc",
    "rephrased": "rephrase_acc",
    "related": "image_rephrase_acc",
    "portability": "portability_acc",
}
"""EasyEdit's names for the token accuracy of a target, for each kind of probe."""

LOCALITY = {"text_only": ("locality_acc", 1), "unrelated": ("multimodal_locality_acc", TOP)}
"""EasyEdit's names for locality, and the ranks that it compares."""

SUFFIX = {"unrelated": "image", "text_only": "text", "same_image": "same_image"}


@dataclass(frozen=True)
class Prediction:
    """What of one forward pass is compared.

    Args:
        top: the best ten tokens after every position of prompt and answer `[length, 10]`, best first.
        answer: log-probabilities at each token of the answer and after its last `[n + 1, n_vocab]`, float64.
        ids: the answer `[n]`.
    """

    top: Tensor
    answer: Tensor
    ids: Tensor

    @classmethod
    def of(cls, made: Forced) -> Prediction:
        """Keep the compared part of a forward pass."""
        answer = made.logits[-1 - len(made.ids) :].double().log_softmax(-1)
        return cls(made.logits.topk(min(TOP, made.logits.shape[-1])).indices, answer, made.ids)


def token_accuracy(edited: Prediction) -> float:
    """The share of the answer's tokens that are the model's first choice; EasyEdit's rewrite, rephrase and image-rephrase accuracy.

    Example:
        >>> even = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.5, 0.5]]).log()
        >>> token_accuracy(Prediction(torch.zeros(3, 2), even, torch.tensor([0, 0])))
        0.5
    """
    return (edited.answer[:-1].argmax(-1) == edited.ids).double().mean().item()


def kl(base: Prediction, edited: Prediction) -> float:
    """KL(base ‖ edited) of the next-token distributions, in nats, a mean over the answer's tokens and its end.

    Example:
        >>> p, q = (torch.tensor([[x, 1 - x]], dtype=torch.double).log() for x in (0.5, 0.25))
        >>> none = torch.tensor([], dtype=torch.long)
        >>> round(kl(Prediction(none, p, none), Prediction(none, q, none)), 4)
        0.1438
    """
    terms = base.answer.exp() * (base.answer - edited.answer)
    return torch.where(base.answer.exp() > 0, terms, 0.0).sum(-1).mean().item()


def agreement(base: Prediction, edited: Prediction) -> float:
    """The share of the answer's positions, its end included, at which both models choose the same token."""
    return (base.answer.argmax(-1) == edited.answer.argmax(-1)).double().mean().item()


def top_agreement(base: Prediction, edited: Prediction, k: int) -> float:
    """EasyEdit's locality: over all positions, prompt included, and the first k ranks, the share that hold the same token.

    Rank by rank, not as sets: two tokens that change places count as two differences. `locality_acc` is k = 1 on
    text-only prompts, `multimodal_locality_acc` k = 10 on pictures.

    Example:
        >>> none = torch.tensor([])
        >>> a, b = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [4, 3]])
        >>> top_agreement(Prediction(a, none, none), Prediction(b, none, none), 2)
        0.5
    """
    return (base.top[:, :k] == edited.top[:, :k]).double().mean().item()


def staying_scores(
    vlm: VisionLanguageModel, probes: Sequence[Probe], answers: Sequence[Ids], states: Sequence[Sequence[Patch]], batch_size: int,
    bar: Bar | None = None,
) -> list[list[dict[str, float]]]:  # fmt: skip
    """How far each state is from the unedited model on the probes whose answers shall stay.

    KL and agreement are taken on the unedited model's own answer; EasyEdit's locality on the data set's, where there is one.

    Args:
        vlm: the model, with nothing live on it.
        probes: all probes; those that the edit shall change get no scores.
        answers: the tokens of the unedited model's answer to each.
        states: what to put live in turn.
        batch_size: probes per batch; the logits of one batch are held at a time.
        bar: told how many probes are done, in each state.

    Returns:
        For each state the scores of each probe.
    """
    scores: list[list[dict[str, float]]] = [[{} for _ in probes] for _ in states]
    texts = [(i, answers[i], False) for i, probe in enumerate(probes) if not probe.changing]
    texts += [
        (i, tuple(_ids(vlm, probe, probe.answer)), True)
        for i, probe in enumerate(probes)
        if probe.kind in LOCALITY and probe.answer
    ]
    for batch in batches_of([probes[i] for i, _, _ in texts], batch_size):
        chosen = [texts[n] for n in batch]
        base = _predict(vlm, probes, chosen)
        for scored, patches in zip(scores, states, strict=True):
            with stack(vlm, patches):
                edited = _predict(vlm, probes, chosen)
            for (i, _, given), old, new in zip(chosen, base, edited, strict=True):
                kind = probes[i].kind
                if not given:
                    scored[i][f"kl_{SUFFIX[kind]}"] = kl(old, new)
                    scored[i][f"agreement_{SUFFIX[kind]}"] = agreement(old, new)
                if kind in LOCALITY and given == bool(probes[i].answer):
                    name, k = LOCALITY[kind]
                    scored[i][name] = top_agreement(old, new, k)
        if bar is not None:
            bar.update(len(states) * sum(not given for _, _, given in chosen))
    return scores


def changing_scores(
    vlm: VisionLanguageModel, probes: Sequence[Probe], expected: Sequence[str | None], patches: Sequence[Patch], batch_size: int,
    bar: Bar | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """EasyEdit's token accuracies of the expected answers, where the edit shall change them; arguments as above."""
    scores: list[dict[str, float]] = [{} for _ in probes]
    texts = [
        (i, tuple(_ids(vlm, probe, text)), True)
        for i, (probe, text) in enumerate(zip(probes, expected, strict=True))
        if probe.kind in ACCURACY and text
    ]
    with stack(vlm, patches):
        for batch in batches_of([probes[i] for i, _, _ in texts], batch_size):
            chosen = [texts[n] for n in batch]
            for (i, _, _), edited in zip(chosen, _predict(vlm, probes, chosen), strict=True):
                scores[i] = {ACCURACY[probes[i].kind]: token_accuracy(edited)}
            if bar is not None:
                bar.update(len(chosen))
    if bar is not None:
        bar.update(sum(probe.changing for probe in probes) - len(texts))
    return scores


def _ids(vlm: VisionLanguageModel, probe: Probe, text: str) -> list[int]:
    return answer_ids(vlm, probe.prompt, text, probe.image is not None)


def _predict(
    vlm: VisionLanguageModel, probes: Sequence[Probe], texts: Sequence[tuple[int, Ids, bool]]
) -> list[Prediction]:
    """What the model, as it is now, predicts on the answers given to some probes."""
    made = forced(vlm, *model_inputs([probes[i] for i, _, _ in texts]), [ids for _, ids, _ in texts])
    return [Prediction.of(one) for one in made]
