"""Teacher forcing: what a model predicts at each token of an answer that is given, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mmedit.models.prompts import answer_gap
from mmedit.models.vlm import VisionLanguageModel
from mmedit.requests import Prompt, as_prompt


@dataclass(frozen=True)
class Forced:
    """The logits of one prompt and its answer.

    Args:
        logits: after each position of the prompt and the answer `[length, n_vocab]`, without padding.
        ids: the answer `[n]`; the last n rows but one, and the one before them, predict it.
    """

    logits: Tensor
    ids: Tensor

    @property
    def answer(self) -> Tensor:
        """The logits that predict the answer's tokens `[n, n_vocab]`."""
        return self.logits[-1 - len(self.ids) : -1]


def answer_ids(
    vlm: VisionLanguageModel, prompt: str | Prompt | None, answer: str, with_image: bool = True
) -> list[int]:
    """The tokens of an answer where it stands after its prompt.

    Args:
        vlm: whose tokenizer and prompt text they are.
        prompt: as for `vlm.caption`.
        answer: the text.
        with_image: whether the prompt stands beside a picture.

    Returns:
        Its tokens, without an end token.

    Example:
        >>> import mmedit
        >>> vlm = mmedit.load("iconworld-llava")
        >>> vlm.tokenizer.convert_ids_to_tokens(answer_ids(vlm, None, "a cat"))
        ['Ġa', 'Ġcat']
    """
    asked, text = as_prompt(prompt), vlm.render(prompt, with_image)
    spaced = "" if text[-1:].isspace() else " "
    gap = "" if asked.no_space else spaced if asked.prefix else answer_gap(vlm.processor, text)
    joined = text + gap + answer
    alone, whole = (vlm.tokenizer(t, add_special_tokens=False).input_ids for t in (text, joined))
    shared = next((i for i, pair in enumerate(zip(alone, whole, strict=False)) if pair[0] != pair[1]), len(alone))
    return list(whole[shared:])


def forced(vlm: VisionLanguageModel, images: Any, prompt: Any, answers: Sequence[Sequence[int]]) -> list[Forced]:
    """What the model predicts after a prompt and at each token of a given answer.

    Args:
        vlm: the model.
        images: pictures, one for each answer; None for text-only prompts.
        prompt: as for `vlm.inputs`.
        answers: the tokens of each answer.

    Returns:
        The logits of each, in one batch and one forward pass.

    Raises:
        ImageError: if a picture cannot be read.
        RequestError: if there are not as many pictures as prompts.
    """
    inputs, spans = forced_inputs(vlm, images, prompt, answers)
    with torch.inference_mode():
        logits = vlm.reader(inputs)(**inputs).logits
    return [
        Forced(row[first:last], torch.tensor(answer, dtype=torch.long, device=row.device))
        for row, (first, last), answer in zip(logits, spans, answers, strict=True)
    ]


def forced_inputs(
    vlm: VisionLanguageModel, images: Any, prompt: Any, answers: Sequence[Sequence[int]]
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """What a decoder is given for prompts and their answers in one pass.

    Args:
        vlm: the model.
        images: as for `forced`.
        prompt: as for `vlm.inputs`.
        answers: as for `forced`.

    Returns:
        The inputs, and for each answer from which position to which its prompt and the answer go.
    """
    batch = vlm.inputs(images, prompt)
    longest = max(map(len, answers))
    ids = torch.full((len(answers), longest), vlm.tokenizer.pad_token_id, device=batch["input_ids"].device)
    given = torch.zeros_like(ids)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)], given[row, : len(answer)] = torch.tensor(answer, dtype=torch.long), 1
    if vlm.has_encoder:
        start = torch.full_like(ids[:, :1], _decoder_start(vlm))
        inputs = dict(batch) | {"decoder_input_ids": torch.cat([start, ids], 1)}
        spans = [(0, 1 + len(answer)) for answer in answers]
    else:
        inputs, length = with_answers(batch, ids, given, vlm.architecture.model_type), batch["input_ids"].shape[1]
        prompts = batch["attention_mask"].sum(1).tolist()
        spans = [(length - n, length + len(answer)) for n, answer in zip(prompts, answers, strict=True)]
    return inputs, spans


def _decoder_start(vlm: VisionLanguageModel) -> int:
    """The token that a decoder's answers begin with, by whichever configuration has it."""
    places = (vlm.model.generation_config, vlm.model.config, getattr(vlm.model.config, "text_config", None))
    found = (getattr(place, "decoder_start_token_id", None) for place in places)
    return next(int(number) for number in found if number is not None)


def dictated(vlm: VisionLanguageModel, images: Any, prompt: Any, answers: Sequence[Sequence[int]]) -> list[Forced]:
    """The same as `forced`, but token by token, as the model generates: a `Trace` around it records each step.

    Args:
        vlm: the model.
        images: as for `forced`.
        prompt: as for `vlm.inputs`.
        answers: as for `forced`.

    Returns:
        The logits that predict each answer's tokens and what follows its last, `[n + 1, n_vocab]`, after one call of generate.

    Raises:
        ImageError: if a picture cannot be read.
        RequestError: if there are not as many pictures as prompts.
    """
    inputs, steps = vlm.inputs(images, prompt), 1 + max(map(len, answers))
    config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=steps, min_new_tokens=steps, pad_token_id=vlm.tokenizer.pad_token_id,
        eos_token_id=None, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    dictate = LogitsProcessorList([_Dictate(answers, vlm.tokenizer.pad_token_id)])
    with torch.inference_mode():
        made = vlm.reader(inputs).generate(**inputs, generation_config=config, logits_processor=dictate)
    logits = torch.stack(made.logits, 1)
    return [
        Forced(row[: len(ids) + 1], torch.tensor(ids, dtype=torch.long, device=row.device))
        for row, ids in zip(logits, answers, strict=True)
    ]


class _Dictate(LogitsProcessor):  # type: ignore[misc]
    """Leaves generate no choice but the next token of each answer, and padding after its end."""

    def __init__(self, answers: Sequence[Sequence[int]], pad: int) -> None:
        self.answers, self.pad, self.step = answers, pad, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, -torch.inf)
        for row, ids in zip(only, self.answers, strict=True):
            row[ids[self.step] if self.step < len(ids) else self.pad] = 0
        self.step += 1
        return only


def with_answers(inputs: Any, ids: Tensor, given: Tensor, model_type: str) -> dict[str, Any]:
    """The inputs of a decoder for prompts and their answers, as they stand while the model generates.

    Args:
        inputs: what `vlm.inputs` made of n prompts.
        ids: the answers, padded on the right `[n, m]`.
        given: 1 for each token of an answer, 0 for padding `[n, m]`.
        model_type: config.model_type.

    Returns:
        The same inputs with everything that goes by position as much longer.
    """
    kinds = {
        "attention_mask": given,
        "token_type_ids": given * (model_type == "paligemma"),
        "mm_token_type_ids": given * 0,
        "moe_mm_token_type_ids": given * 0,
    }
    grown = {"input_ids": ids} | kinds
    joined = {name: torch.cat([inputs[name], grown[name].to(inputs[name])], 1) for name in grown if name in inputs}
    return dict(inputs) | joined
