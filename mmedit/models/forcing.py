"""Teacher forcing: what a model predicts at each token of an answer that is given, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmedit.models.vlm import VisionLanguageModel
from mmedit.requests import Prompt


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
    text = vlm.render(prompt, with_image)
    joined = text + ("" if not text or text[-1].isspace() else " ") + answer
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
    batch = vlm.inputs(images, prompt)
    longest = max(map(len, answers))
    ids = torch.full((len(answers), longest), vlm.tokenizer.pad_token_id, device=batch["input_ids"].device)
    given = torch.zeros_like(ids)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)], given[row, : len(answer)] = torch.tensor(answer, dtype=torch.long), 1
    if vlm.model.config.is_encoder_decoder:
        start = torch.full_like(ids[:, :1], vlm.model.generation_config.decoder_start_token_id)
        inputs = dict(batch) | {"decoder_input_ids": torch.cat([start, ids], 1)}
        spans = [(0, 1 + len(answer)) for answer in answers]
    else:
        inputs, length = with_answers(batch, ids, given, vlm.architecture.model_type), batch["input_ids"].shape[1]
        prompts = batch["attention_mask"].sum(1).tolist()
        spans = [(length - n, length + len(answer)) for n, answer in zip(prompts, answers, strict=True)]
    with torch.inference_mode():
        logits = vlm.reader(inputs)(**inputs).logits
    return [
        Forced(row[first:last], torch.tensor(answer, dtype=torch.long, device=row.device))
        for row, (first, last), answer in zip(logits, spans, answers, strict=True)
    ]


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
