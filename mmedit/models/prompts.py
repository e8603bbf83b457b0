"""From a prompt to the text that a model family was trained on."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from mmedit.errors import RequestError
from mmedit.requests import Prompt

FAMILY_TEXTS = {
    "llava": "USER: <image>\n{} ASSISTANT:",
    "vipllava": "USER: <image>\n{} ASSISTANT:",
    "instructblip": "{}",
    "blip-2": "Question: {} Answer:",
    "paligemma": "<image>{}\n",
}
"""What surrounds an instruction, for checkpoints without a chat template, by config.model_type."""

NO_SPACE = "{#- an answer follows without a space -#}"
"""What a chat template says of itself where the words that an answer is made to begin with follow it directly."""


def render_prompt(processor: Any, model_type: str, prompt: Prompt, with_image: bool) -> str:
    """The whole text before the answer.

    Args:
        processor: the model's processor; its chat template decides where it has one.
        model_type: config.model_type, for checkpoints without a template.
        prompt: the instruction, the answer prefix and the system text.
        with_image: whether one picture stands before the instruction.

    Returns:
        Text that ends in the answer prefix, with no space after it; before it what `answer_gap` says.

    Raises:
        RequestError: if there is a system text and the model family has no place for one.
    """
    if getattr(processor, "chat_template", None):
        system = [_turn("system", prompt.system)] if prompt.system else []
        text = _rendered(processor, [*system, _turn("user", prompt.text, with_image)], prompt.system)
    elif prompt.system:
        raise _no_place(prompt.system, f"models of type {model_type!r} without a chat template")
    else:
        frame = FAMILY_TEXTS.get(model_type, "<image>\n{}" if hasattr(processor, "image_token") else "{}")
        text = (frame if with_image else frame.replace("<image>\n", "").replace("<image>", "")).format(prompt.text)
    if not prompt.prefix:
        return text
    close = prompt.no_space or NO_SPACE in (getattr(processor, "chat_template", None) or "")
    return text + ("" if close else answer_gap(processor, text)) + prompt.prefix


def answer_gap(processor: Any, text: str) -> str:
    """What stands between a prompt and its answer: what the chat template's own turns have there, or else a space.

    Args:
        processor: the model's processor.
        text: the whole text before the answer, without an answer prefix.

    Returns:
        White space; nothing after a text that ends in some.
    """
    if not text or text[-1].isspace():
        return ""
    if not getattr(processor, "chat_template", None):
        return " "
    asked = _rendered(processor, [_turn("user", "?")])
    try:
        told = processor.apply_chat_template([_turn("user", "?"), _turn("assistant", "!")], tokenize=False)
    except (TemplateError, TypeError):  # it takes no answers, or not in parts
        return " "
    gap, answered, _ = told.removeprefix(asked).partition("!")
    return gap if answered and told.startswith(asked) and not gap.strip() else " "


def _turn(role: str, text: str, with_image: bool = False) -> dict[str, Any]:
    """One message of a conversation."""
    return {"role": role, "content": [{"type": "image"}] * with_image + [{"type": "text", "text": text}]}


def _rendered(processor: Any, turns: list[dict[str, Any]], system: str = "") -> str:
    """The template's text for a conversation whose next turn is the answer; RequestError where the system text is not in it."""
    try:
        text = str(processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    except (TemplateError, TypeError) as error:
        if system:
            raise _no_place(system, f"this model's chat template: {error}") from error
        raise
    if system.strip() not in text or (system and str(turns[0]["content"]) in text):
        raise _no_place(system, "this model's chat template, which leaves it out")
    return text


def _no_place(system: str, where: str) -> RequestError:
    return RequestError("no place for a system text", where=where, got=repr(system), do="put it in front of the instruction")  # fmt: skip
