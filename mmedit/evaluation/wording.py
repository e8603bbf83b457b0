"""What reports call kinds of probes, metrics and verdicts, in plain words."""

from __future__ import annotations

from mmedit.evaluation.judge import METRICS, ProbeResult

KINDS = {
    "edit": ("The edit's pictures", "The edit was made from these. The source shall be gone and the target there."),
    "related": ("Other pictures with a source", "They were not used for the edit and shall be swapped too."),
    "rephrased": ("Other prompts", "The edit's pictures under other prompts that make the model name the source. The swap shall hold there too."),
    "question": ("Questions", "The source is their answer. It shall be the target."),
    "portability": ("Consequences", "Questions whose answer follows from the edit."),
    "unrelated": ("Unrelated pictures", "They show no source. Their captions shall stay, word for word."),
    "text_only": ("Prompts without a picture", "The answers shall stay, word for word."),
    "same_image": ("Other things in the same pictures", "Questions about something else in pictures with a source. The answers shall stay, word for word."),
}  # fmt: skip
"""For each kind of probe a heading and what the edit shall do there."""

HEADLINE = (*METRICS.values(), "leakage")

EXACT = "the same, and no other word of the answer changed"
BEFORE = "the same of the unedited model"
GROUPS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("What the edit shall change", "Of the answers in which the unedited model says the source, the share in which the source is gone and the target there.", {
        "reliability": "on the pictures that the edit was made from", "reliability_exact": EXACT,
        "generality_image": "on other pictures with a source", "generality_image_exact": EXACT,
        "generality_text": "under other prompts", "generality_text_exact": EXACT,
        "generality_question": "questions whose answer is the source", "generality_question_exact": EXACT,
        "portability": "questions whose answer follows from the edit", "portability_exact": EXACT,
    }),
    ("What it shall leave alone", "The share of answers that are the same, word for word, as without the edit.", {
        "locality_image": "on pictures without a source", "locality_text": "to prompts without a picture",
        "locality_same_image": "about other things in pictures with a source",
        "leakage": "the share of answers that say the target and did not before",
    }),
    ("How far predictions move", "Both models read the unedited model's own answer. Agreement is the share of tokens on which their first choices are the same, KL the mean divergence of their next-token distributions in nats.", {
        f"{name}_{kind}": text
        for kind, text in (("image", "on unrelated pictures"), ("text", "on prompts without a picture"), ("same_image", "about other things in the same pictures"))
        for name in ("agreement", "kl")
    }),
    ("Objects that are not there", "CHAIR after Rohrbach et al. (2018), on unrelated pictures whose objects are known: the share of captions, and of objects named, with an object that the picture does not show.", {
        "chair_s": "captions, after the edit", "chair_s_before": BEFORE, "chair_i": "objects named, after the edit", "chair_i_before": BEFORE,
    }),
    ("EasyEdit's numbers", "MMEdit's five numbers, and portability, by EasyEdit's names and formulas. The model reads the right answer token by token and is asked for the next one only, so that these say less of what it would write by itself. Accuracies are the share of the answer's tokens that are its first choice. Localities compare its best tokens with the unedited model's, rank by rank, at all positions, the prompt's too.", {
        "rewrite_acc": "target, on the edit's pictures", "rephrase_acc": "target, under other prompts", "image_rephrase_acc": "target, on other pictures",
        "locality_acc": "best token, on prompts without a picture", "multimodal_locality_acc": "ten best tokens, on unrelated pictures",
        "portability_acc": "answers that follow from the edit",
    }),
)  # fmt: skip
"""Metrics in groups, each with a heading, a sentence and the names that belong to it."""


def lower_is_better(metric: str) -> bool:
    """Whether a good edit has little of it."""
    return metric.startswith(("leakage", "kl_", "chair_"))


def verdict(result: ProbeResult) -> str:
    """What became of one probe, in a few words.

    Example:
        >>> from mmedit.cases import Probe
        >>> verdict(ProbeResult(Probe("related", "cat.png"), "a cat", "a cat", "a dog", False, {}))
        'not swapped'
    """
    if result.right is None:
        return "source not said"
    if not result.probe.changing:
        return "unchanged" if result.right else "says the target" if result.scores.get("leakage") else "changed"
    right, wrong = ("swapped", "not swapped") if result.probe.answer is None else ("right", "wrong")
    if not result.right:
        return wrong
    exact = result.scores.get(f"{METRICS[result.probe.kind]}_exact", 1.0)
    return right if exact else f"{right}, more changed"
