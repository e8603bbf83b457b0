"""Teacher forcing, and the figures taken from it, against slower ways to the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmedit
from mmedit.cases import Probe
from mmedit.evaluation.forced import (
    Prediction,
    agreement,
    changing_scores,
    kl,
    staying_scores,
    token_accuracy,
    top_agreement,
)
from mmedit.models.forcing import answer_ids, forced
from mmedit.requests import CAPTION_PROMPT, Prompt

WORDS = ["a", "red", "cat", "lighthouse", "cacti", "on", "the", "snow", "yes"]


def plain_logits(vlm: mmedit.VisionLanguageModel, image: Any, prompt: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """One unpadded sequence through the model."""
    batch = vlm.inputs(image, prompt)
    whole = torch.cat([batch["input_ids"], torch.tensor([ids], dtype=torch.long)], 1)
    pixels = {} if image is None else {"pixel_values": batch["pixel_values"]}
    with torch.inference_mode():
        return vlm.model(input_ids=whole, attention_mask=torch.ones_like(whole), **pixels).logits[0]


def test_forced_logits_are_those_of_each_sequence_by_itself(
    vlm: mmedit.VisionLanguageModel, pictures: list[Any]
) -> None:
    images = [picture for picture, _, _ in pictures[:3]]
    prompts: list[Any] = [None, "What is the ground?", Prompt("Give a short caption.", "A photo of")]
    answers = [(265, 386), (), (264, 403, 283, 2)]
    for row, image, prompt, ids in zip(forced(vlm, images, prompts, answers), images, prompts, answers, strict=True):
        alone = plain_logits(vlm, image, prompt, ids)
        assert row.logits.shape == alone.shape and row.answer.shape[0] == len(ids)
        torch.testing.assert_close(row.logits, alone, atol=2e-4, rtol=1e-4)
    for row, question in zip(forced(vlm, None, ["Is a cat a toy?", "What do red and blue make?"], [(3, 4), (5,)]), ("Is a cat a toy?", "What do red and blue make?"), strict=True):  # fmt: skip
        torch.testing.assert_close(
            row.logits, plain_logits(vlm, None, question, tuple(row.ids.tolist())), atol=2e-4, rtol=1e-4
        )


def test_what_was_generated_is_the_first_choice_at_every_token_and_the_end_after_it(
    vlm: mmedit.VisionLanguageModel, pictures: list[Any]
) -> None:
    images = [picture for picture, _, _ in pictures[:8]]
    said = vlm.generate(images)
    for row, generation in zip(forced(vlm, images, None, [g.ids for g in said]), said, strict=True):
        assert token_accuracy(Prediction.of(row)) == 1.0
        assert int(row.logits[-1].argmax()) in vlm.end_ids
        assert tuple(answer_ids(vlm, None, generation.text.strip())) == generation.ids


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    prefix=st.sampled_from(["", "An image of", "It is\n"]),
)
def test_the_tokens_of_an_answer_follow_those_of_its_prompt(
    trained: mmedit.VisionLanguageModel, words: list[str], prefix: str
) -> None:
    prompt, answer = Prompt("Describe.", prefix), " ".join(words)
    text = trained.render(prompt)
    before = trained.tokenizer(text, add_special_tokens=False).input_ids
    after = answer_ids(trained, prompt, answer)
    joined = trained.tokenizer.decode(before + after, clean_up_tokenization_spaces=False)
    assert joined == text + ("" if text[-1].isspace() else " ") + answer


def easyedit_locality(base: torch.Tensor, post: torch.Tensor, k: int) -> float:
    """EasyEdit's lines, trainer/MultimodalTrainer.py, in its order."""
    top_base = torch.topk(torch.nn.functional.softmax(base, dim=-1), k=k, dim=-1).indices
    top_post = torch.topk(torch.nn.functional.softmax(post, dim=-1), k=k, dim=-1).indices
    return float(sum(top_post.reshape(-1) == top_base.reshape(-1)) / top_post.reshape(-1).shape[0])


def easyedit_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """EasyEdit's token accuracy, trainer/utils: predictions shifted by one, masked to the target."""
    predicted = logits[:-1].argmax(-1)[-len(labels) :]
    return float((predicted == labels).sum() / len(labels))


def test_easyedit_s_five_numbers_are_its_own_formulas(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, pictures: list[Any]
) -> None:
    patch = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat).scaled(4.0)
    image, fact = pictures[3][0], Prompt("Is a cat a toy?")
    probes = [
        Probe("edit", request_of_cat.images[0]), Probe("unrelated", image, answer="a grey mouse"), Probe("text_only", None, fact, answer="no"),
        Probe("unrelated", image), Probe("related", image),
    ]  # fmt: skip
    before = [vlm.generate(probe.image, probe.prompt)[0].ids for probe in probes]
    (kept,) = staying_scores(vlm, probes, before, [[patch]], 2)
    changed = changing_scores(vlm, probes, ["a red dog", None, None, None, None], [patch], 2)
    texts = {
        0: tuple(answer_ids(vlm, None, "a red dog")), 1: tuple(answer_ids(vlm, None, "a grey mouse")),
        2: tuple(answer_ids(vlm, fact, "no", with_image=False)), 3: before[3],
    }  # fmt: skip
    base = {i: plain_logits(vlm, probes[i].image, probes[i].prompt, ids) for i, ids in texts.items()}
    with patch.applied(vlm):
        post = {i: plain_logits(vlm, probes[i].image, probes[i].prompt, ids) for i, ids in texts.items()}
    assert changed[0] == {"rewrite_acc": pytest.approx(easyedit_accuracy(post[0], torch.tensor(texts[0])))}
    assert changed[1:] == [{}] * 4
    assert kept[1]["multimodal_locality_acc"] == pytest.approx(easyedit_locality(base[1], post[1], 10), abs=0.02)
    assert kept[3]["multimodal_locality_acc"] == pytest.approx(easyedit_locality(base[3], post[3], 10), abs=0.02)
    assert kept[2]["locality_acc"] == pytest.approx(easyedit_locality(base[2], post[2], 1))
    assert kept[1]["multimodal_locality_acc"] < 1 and kept[0] == kept[4] == {}


def test_kl_is_torch_s_and_agreement_counts_the_end(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, pictures: list[Any]) -> None:  # fmt: skip
    patch = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat).scaled(8.0)
    image, ids = request_of_cat.images[0], vlm.generate(request_of_cat.images)[0].ids
    probe = Probe("unrelated", image)
    (scores,) = staying_scores(vlm, [probe], [ids], [[patch]], 8)
    old = plain_logits(vlm, image, None, ids)[-len(ids) - 1 :].double().log_softmax(-1)
    with patch.applied(vlm):
        new = plain_logits(vlm, image, None, ids)[-len(ids) - 1 :].double().log_softmax(-1)
    wanted = torch.nn.functional.kl_div(new, old, log_target=True, reduction="none").sum(-1).mean().item()
    assert scores[0]["kl_image"] == pytest.approx(wanted, rel=1e-3) and wanted > 0.01
    same = (old.argmax(-1) == new.argmax(-1)).double().mean().item()
    assert scores[0]["agreement_image"] == pytest.approx(same) and same < 1


def test_an_edit_of_nothing_changes_no_figure(vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, pictures: list[Any]) -> None:  # fmt: skip
    patch = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").execute(vlm, request_of_cat).scaled(0.0)
    probes = [Probe("unrelated", pictures[0][0]), Probe("text_only", None, Prompt("Is a cat a toy?"))]
    (scores,) = staying_scores(vlm, probes, [(265, 386), (4,)], [[patch]], 8)
    assert scores[0] == {"kl_image": 0.0, "agreement_image": 1.0, "multimodal_locality_acc": 1.0}
    assert scores[1] == {"kl_text": 0.0, "agreement_text": 1.0, "locality_acc": 1.0}


def made(logits: torch.Tensor, ids: list[int]) -> Prediction:
    from mmedit.models.forcing import Forced

    return Prediction.of(Forced(logits, torch.tensor(ids, dtype=torch.long)))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_divergence_is_never_negative_and_impossible_tokens_do_no_harm(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(4, 12, generator=g) * 5 for _ in range(2))
    a[:, 0] = b[:, 0] = float("-inf")  # as a model that masks tokens has it
    p, q = made(a, [1, 2]), made(b, [1, 2])
    assert kl(p, q) >= 0 and kl(p, p) == 0 and agreement(p, p) == 1 == top_agreement(p, p, 10)


def test_the_caption_prompt_is_that_of_the_paper() -> None:
    assert Prompt("Describe the image in few words.", "An image of") == CAPTION_PROMPT
