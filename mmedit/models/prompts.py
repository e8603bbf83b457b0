"""From a prompt to the text that a model family was trained on."""

from __future__ import annotations

from typing import Any

from mmedit.requests import Prompt

FAMILY_TEXTS = {
    "llava": "USER: <image>\n{} ASSISTANT:",
    "vipllava": "USER: <image>\n{} ASSISTANT:",
    "instructblip": "{}",
    "blip-2": "Question: {} Answer:",
}
"""What surrounds an instruction, for checkpoints without a chat template, by config.model_type."""


def render_prompt(processor: Any, model_type: str, prompt: Prompt, with_image: bool) -> str:
    """The whole text before the answer.

    Args:
        processor: the model's processor; its chat template decides where it has one.
        model_type: config.model_type, for checkpoints without a template.
        prompt: the instruction and the answer prefix.
        with_image: whether one picture stands before the instruction.

    Returns:
        Text that ends in the answer prefix, with no space after it.
    """
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * with_image + [{"type": "text", "text": prompt.text}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    else:
        text = FAMILY_TEXTS.get(model_type, "<image>\n{}" if hasattr(processor, "image_token") else "{}").format(
            prompt.text
        )
        text = text if with_image else text.replace("<image>\n", "")
    if not prompt.prefix:
        return str(text)
    return f"{text}{'' if text[-1:].isspace() or not text else ' '}{prompt.prefix}"
