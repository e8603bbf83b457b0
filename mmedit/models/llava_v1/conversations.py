"""The texts that LLaVA v1.0.2 puts around a query (llava/conversation.py there), as chat templates."""

from __future__ import annotations

from pathlib import Path

from mmedit.models.prompts import NO_SPACE

_HUMAN = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions."  # fmt: skip
_VISION = "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language."  # fmt: skip
_SAID = (  # what a message says: its pictures, then its text
    "{%- macro said(message) -%}{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{- IMAGE ~ '\\n' -}}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}"
    "{%- set given = messages[0]['role'] == 'system' -%}{%- set system = said(messages[0]) if given else SYSTEM -%}"
    "{%- set turns = messages[1:] if given else messages -%}"
)
_TURNS = {
    "llava_llama_2": NO_SPACE + _SAID + (
        "{%- for message in turns -%}{%- if message['role'] == 'user' -%}"
        "{{- ('[INST] <<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' if loop.first else '<s>[INST] ') ~ said(message) ~ ' [/INST]' -}}"
        "{%- else -%}{{- ' ' ~ said(message) ~ ' </s>' -}}{%- endif -%}{%- endfor -%}"
    ),
    "llava_v1": _SAID + (
        "{{- system ~ ' ' -}}{%- for message in turns -%}"
        "{{- 'USER: ' ~ said(message) ~ ' ' if message['role'] == 'user' else 'ASSISTANT: ' ~ said(message) ~ '</s>' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
    ),
    "llava_v0": _SAID + (
        "{{- system ~ '###' -}}{%- for message in turns -%}"
        "{{- ('Human: ' if message['role'] == 'user' else 'Assistant: ') ~ said(message) ~ '###' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
    ),
}  # fmt: skip
_SYSTEM = {"llava_llama_2": _VISION, "llava_v1": _HUMAN, "llava_v0": _HUMAN}


def model_name(name: str) -> str:
    """A checkpoint's own name in a path or Hub id, as LLaVA's `get_model_name_from_path` has it.

    Example:
        >>> model_name("liuhaotian/llava-v1-7b"), model_name("runs/llava-v1-7b/checkpoint-200/")
        ('llava-v1-7b', 'llava-v1-7b_checkpoint-200')
    """
    parts = Path(name).absolute().parts
    if "snapshots" in parts[-2:-1] and parts[-3].startswith("models--"):  # a folder of the Hugging Face cache
        return parts[-3].split("--")[-1]
    return f"{parts[-2]}_{parts[-1]}" if parts[-1].startswith("checkpoint-") else parts[-1]


def conversation(name: str) -> str:
    """Which conversation a checkpoint of that name was trained with, by the rule of LLaVA's `run_llava.py`.

    Args:
        name: a path or Hub id; only its last part counts.

    Returns:
        `llava_llama_2`, `llava_v1`, `mpt`, or for all other names `llava_v0`.

    Example:
        >>> conversation("liuhaotian/llava-llama-2-13b-chat-lightning-preview"), conversation("llava-v1.5-7b")
        ('llava_llama_2', 'llava_v1')
    """
    lower = model_name(name).lower()
    rules = {"llama-2": "llava_llama_2", "v1": "llava_v1", "mpt": "mpt"}
    return next((conversation for part, conversation in rules.items() if part in lower), "llava_v0")


def chat_template(conversation: str, start_end: bool = False) -> str:
    """A conversation as a chat template; the start token is left to the tokenizer.

    Args:
        conversation: `llava_llama_2`, `llava_v1` or `llava_v0`.
        start_end: whether `<im_start>` and `<im_end>` stand around a picture (`mm_use_im_start_end`).
    """
    image = "<im_start><image><im_end>" if start_end else "<image>"
    return f'{{%- set IMAGE = "{image}" -%}}{{%- set SYSTEM = "{_SYSTEM[conversation]}" -%}}' + _TURNS[conversation]
