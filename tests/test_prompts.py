"""Prompts are what each family's own chat template makes of them, and an answer goes on from there.

The templates below are written anew, in one style, to give the text that the published ones give; where that was read stands
beside each. SmolVLM's is transformers' own.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import PaliGemmaProcessor, SiglipImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE as SMOLVLM

import mmedit
from mmedit.data.own_format import _prompt
from mmedit.data.records import Options, Record
from mmedit.errors import RequestError
from mmedit.models.forcing import answer_ids
from mmedit.models.prompts import FAMILY_TEXTS, answer_gap, render_prompt
from mmedit.requests import CAPTION_PROMPT, Prompt
from mmedit.testbed.checkpoint import train_tokenizer

TEXT, PREFIX, SYSTEM, ANSWER = "What is this?", "An image of", "Be brief.", "a cat"
PICTURE = Image.new("RGB", (30, 30), "red")


def chat(
    image: str, user: tuple[str, str], assistant: tuple[str, str], asks: str, system: str = "", begin: str = ""
) -> str:
    """A chat template: what a picture is, what stands around each role's text, and what asks for an answer."""
    parts = "{%- for p in m['content'] -%}{{- IMAGE if p['type'] == 'image' else p['text'] -}}{%- endfor -%}"
    around = {"user": user, "assistant": assistant}
    turns = "".join(
        f"{{%- if m['role'] == '{role}' -%}}{{{{- {before!r} -}}}}{parts}{{{{- {after!r} -}}}}{{%- endif -%}}"
        for role, (before, after) in around.items()
    )
    refused = "{{- raise_exception('only user and assistant') -}}"
    told = f"{{%- if m['role'] == 'system' -%}}{system or refused}{{%- endif -%}}"
    return (
        f"{{%- set IMAGE = {image!r} -%}}{begin}{{%- for m in messages -%}}{told}{turns}{{%- endfor -%}}"
        f"{{%- if add_generation_prompt -%}}{{{{- {asks!r} -}}}}{{%- endif -%}}"
    )


def told(before: str, after: str) -> str:
    return f"{{{{- {before!r} ~ m['content'][0]['text'] ~ {after!r} -}}}}"


@dataclass(frozen=True)
class Family:
    """A chat template, the text that it makes of a question about a picture, and what else is known of it.

    Args:
        source: where the published template's text was read.
        template: one that makes the same text.
        image: what stands for a picture.
        asked: the text before the answer, where `@` is the picture.
        system: the same with a system text; None where there is no place for one.
        gap: what stands before the answer.
    """

    source: str
    template: str
    image: str
    asked: str
    system: str | None
    gap: str = ""


IM = ("<|im_start|>user\n", "<|im_end|>\n"), ("<|im_start|>assistant\n", "<|im_end|>\n")
IM_SYSTEM = told("<|im_start|>system\n", "<|im_end|>\n")
QWEN_DEFAULT = "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}"
GEMMA_FIRST = "{%- set first = messages[0]['content'][0]['text'] ~ '\\n\\n' if messages[0]['role'] == 'system' else '' -%}{{- bos_token ~ '<start_of_turn>user\\n' ~ first -}}"
FAMILIES = {
    "llava-1.5": Family(
        "huggingface.co/llava-hf/llava-1.5-13b-hf processor_config.json",
        chat("<image>\n", ("USER: ", " "), ("ASSISTANT: ", " "), "ASSISTANT:", told("", "")), "<image>\n",
        "USER: @What is this? ASSISTANT:", "Be brief.USER: @What is this? ASSISTANT:", " ",
    ),
    "llava-1.6-mistral": Family(
        "huggingface.co/llava-hf/bakLlava-v1-hf chat_template.json; transformers' docs, model_doc/llava_next",
        chat("<image>\n", ("[INST] ", " [/INST]"), (" ", "</s>"), ""), "<image>\n", "[INST] @What is this? [/INST]", None, " ",
    ),
    "llava-onevision": Family(
        "huggingface.co/llava-hf/llava-interleave-qwen-0.5b-hf README",
        chat("<image>\n", ("<|im_start|>user ", "<|im_end|>"), ("<|im_start|>assistant\n", "<|im_end|>"), "<|im_start|>assistant\n", told("<|im_start|>system ", "<|im_end|>")),
        "<image>\n", "<|im_start|>user @What is this?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>system Be brief.<|im_end|><|im_start|>user @What is this?<|im_end|><|im_start|>assistant\n",
    ),
    "qwen2.5-vl": Family(
        "huggingface.co/optimum-intel-internal-testing/tiny-random-qwen2.5-vl chat_template.json",
        chat("<|vision_start|><|image_pad|><|vision_end|>", *IM, "<|im_start|>assistant\n", IM_SYSTEM, QWEN_DEFAULT), "<|vision_start|><|image_pad|><|vision_end|>",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n@What is this?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n@What is this?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "internvl3": Family(
        "transformers, src/transformers/models/internvl/convert_internvl_weights_to_hf.py",
        chat("<IMG_CONTEXT>\n", *IM, "<|im_start|>assistant\n", IM_SYSTEM), "<IMG_CONTEXT>\n",
        "<|im_start|>user\n@What is this?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n@What is this?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "smolvlm": Family(
        "transformers.models.smolvlm.processing_smolvlm", SMOLVLM, "<image>",
        "<|im_start|>User:@What is this?<end_of_utterance>\nAssistant:",
        "<|im_start|>System: Be brief.<end_of_utterance>\nUser:@What is this?<end_of_utterance>\nAssistant:", " ",
    ),
    "idefics3": Family(
        "huggingface.co/HuggingFaceM4/Idefics3-8B-Llama3 processor_config.json",
        SMOLVLM.replace("<|im_start|>", "<|begin_of_text|>"), "<image>",
        "<|begin_of_text|>User:@What is this?<end_of_utterance>\nAssistant:",
        "<|begin_of_text|>System: Be brief.<end_of_utterance>\nUser:@What is this?<end_of_utterance>\nAssistant:", " ",
    ),
    "gemma-3": Family(
        "huggingface.co/DimensionSTP/gemma-3-4b-it-Ko-Reasoning chat_template.json",
        chat("<start_of_image>", ("", "<end_of_turn>\n"), ("<start_of_turn>model\n", "<end_of_turn>\n"), "<start_of_turn>model\n", "{#- said above -#}", GEMMA_FIRST), "<start_of_image>",
        "<s><start_of_turn>user\n@What is this?<end_of_turn>\n<start_of_turn>model\n",
        "<s><start_of_turn>user\nBe brief.\n\n@What is this?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "answers that follow a token": Family(
        "as microsoft/Phi-4-multimodal-instruct has them: <|user|>…<|end|><|assistant|>",
        chat("<|image_1|>", ("<|user|>", "<|end|>"), ("<|assistant|>", "<|end|>"), "<|assistant|>", told("<|system|>", "<|end|>")), "<|image_1|>",
        "<|user|>@What is this?<|end|><|assistant|>", "<|system|>Be brief.<|end|><|user|>@What is this?<|end|><|assistant|>",
    ),
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request: Any) -> Family:
    return FAMILIES[request.param]


def with_template(vlm: mmedit.VisionLanguageModel, template: str | None) -> Any:
    processor = copy.copy(vlm.processor)
    processor.chat_template = template
    return processor


@pytest.mark.parametrize("with_image", [True, False])
def test_a_prompt_is_the_template_s_own_text_and_the_answer_prefix(
    family: Family, with_image: bool, trained: mmedit.VisionLanguageModel
) -> None:
    processor = with_template(trained, family.template)
    own = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}] * with_image + [{"type": "text", "text": TEXT}]}],
        add_generation_prompt=True, tokenize=False,
    )  # fmt: skip
    expected = family.asked.replace("@", family.image if with_image else "")
    if not with_image and family.template in (SMOLVLM, FAMILIES["idefics3"].template):
        expected = expected.replace("User:", "User: ")
    assert own == expected == render_prompt(processor, "llava", Prompt(TEXT), with_image)
    assert render_prompt(processor, "llava", Prompt(TEXT, PREFIX), with_image) == own + family.gap + PREFIX
    assert answer_gap(processor, own) == family.gap


def test_an_answer_prefix_stands_where_the_template_puts_answers(
    family: Family, trained: mmedit.VisionLanguageModel
) -> None:
    """The published conversation with an answer in it begins with the prompt and its prefix."""
    processor = with_template(trained, family.template)
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TEXT}]},
        {"role": "assistant", "content": [{"type": "text", "text": f"{PREFIX} {ANSWER}"}]},
    ]
    whole = processor.apply_chat_template(turns, tokenize=False)
    assert whole.startswith(render_prompt(processor, "llava", Prompt(TEXT, PREFIX), True) + " " + ANSWER)


def test_a_system_text_stands_where_the_template_has_it_or_is_refused(
    family: Family, trained: mmedit.VisionLanguageModel
) -> None:
    processor, prompt = with_template(trained, family.template), Prompt(TEXT, PREFIX, system=SYSTEM)
    if family.system is None:
        with pytest.raises(RequestError, match="no place for a system text") as error:
            render_prompt(processor, "llava", prompt, True)
        assert "only user and assistant" in str(error.value) and SYSTEM in str(error.value)
    else:
        expected = family.system.replace("@", family.image) + family.gap + PREFIX
        assert render_prompt(processor, "llava", prompt, True) == expected


@pytest.mark.parametrize("template", ["{{ messages[-1]['content'][-1]['text'] }}", "{{ messages[0]['content'] }}: {{ messages[-1]['content'][-1]['text'] }}"])  # fmt: skip
def test_a_template_that_leaves_the_system_text_out_or_prints_its_parts_is_not_taken_at_its_word(
    template: str, trained: mmedit.VisionLanguageModel
) -> None:
    processor = with_template(trained, template)
    assert render_prompt(processor, "llava", Prompt(TEXT), False).endswith(TEXT)
    with pytest.raises(RequestError, match="no place for a system text"):
        render_prompt(processor, "llava", Prompt(TEXT, system=SYSTEM), False)


def test_a_template_that_fails_without_a_system_text_fails_as_it_does(trained: mmedit.VisionLanguageModel) -> None:
    with pytest.raises(TemplateError, match="not today"):
        render_prompt(with_template(trained, "{{ raise_exception('not today') }}"), "llava", Prompt(TEXT), True)


@pytest.mark.parametrize(("model_type", "asked"), [
    ("llava", "USER: @\nWhat is this? ASSISTANT:"), ("vipllava", "USER: @\nWhat is this? ASSISTANT:"), ("paligemma", "@What is this?\n"),
    ("instructblip", "What is this?"), ("blip-2", "Question: What is this? Answer:"), ("another", "@\nWhat is this?"),
])  # fmt: skip
def test_families_without_a_template_have_their_own_text_and_no_place_for_a_system(
    model_type: str, asked: str, trained: mmedit.VisionLanguageModel
) -> None:
    processor = with_template(trained, None)
    for with_image in (True, False):
        text = asked.replace("@", "<image>") if with_image else asked.replace("@\n", "").replace("@", "")
        assert render_prompt(processor, model_type, Prompt(TEXT), with_image) == text
        gap = "" if text.endswith("\n") else " "
        assert render_prompt(processor, model_type, Prompt(TEXT, PREFIX), with_image) == text + gap + PREFIX
        with pytest.raises(RequestError, match=f"no place for a system text.*\n.*{model_type}"):
            render_prompt(processor, model_type, Prompt(TEXT, system=SYSTEM), with_image)
    assert FAMILY_TEXTS.keys() >= {"llava", "paligemma"}


@pytest.mark.parametrize("text", ["What does <image> mean?", "Is {} a set?", "{0} {image}"])
def test_what_the_user_writes_is_not_read_as_part_of_the_frame(text: str, trained: mmedit.VisionLanguageModel) -> None:
    for model_type in ("llava", "paligemma", "blip-2"):
        assert text in render_prompt(with_template(trained, None), model_type, Prompt(text), False)


def test_the_prompt_goes_on_with_the_tokens_of_its_prefix_and_begins_once(
    family: Family, vlm: mmedit.VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlm.processor, "chat_template", family.template.replace(repr(family.image), repr("<image>")))
    for images, system in ((PICTURE, ""), (None, ""), (PICTURE, SYSTEM)):
        if system and family.system is None:
            continue
        bare, begun = Prompt(TEXT, system=system), Prompt(TEXT, PREFIX, system=system)
        asked, ids = (vlm.inputs(images, prompt).input_ids[0].tolist() for prompt in (bare, begun))
        assert ids == asked + answer_ids(vlm, bare, PREFIX, images is not None)
        assert ids.count(vlm.tokenizer.bos_token_id) == 1 and ids[0] == vlm.tokenizer.bos_token_id
        assert vlm.tokenizer.decode(ids).endswith(family.gap + PREFIX)
        then = answer_ids(vlm, begun, ANSWER, images is not None)
        assert vlm.tokenizer.decode(ids + then).endswith(f"{PREFIX} {ANSWER}")


def test_shipped_models_speak_as_they_were_trained_and_take_a_system_text_where_their_template_does(
    vlm: mmedit.VisionLanguageModel,
) -> None:
    assert vlm.render(None) == f"USER: <image>\n{CAPTION_PROMPT.text} ASSISTANT: {CAPTION_PROMPT.prefix}"
    assert vlm.render(Prompt(TEXT, system=SYSTEM)).endswith(f"{SYSTEM}</s>USER: <image>\n{TEXT} ASSISTANT:")
    for name in ("iconworld-instructblip", "iconworld-mplug-owl2"):
        with pytest.raises(RequestError, match="no place for a system text"):
            mmedit.load(name).caption(PICTURE, Prompt(TEXT, system=SYSTEM))


def test_a_prompt_is_read_back_with_its_system_text_and_files_of_before_without() -> None:
    options = Options(Path(), Path())
    for prompt in (Prompt(TEXT), Prompt(TEXT, PREFIX, system=SYSTEM)):
        assert Prompt(**asdict(prompt)) == prompt
        assert _prompt(Record({"prompt": asdict(prompt)}, "here", "1", options)) == prompt
    before = {"prompt": {"text": TEXT, "prefix": ""}}
    assert _prompt(Record(before, "here", "1", options)) == Prompt(TEXT)


@pytest.fixture(scope="module")
def paligemma() -> mmedit.VisionLanguageModel:
    """A tiny PaliGemma with its own processor and IconWorld's tokenizer."""
    sys.path.insert(0, str(Path(__file__).parent / "matrix"))
    try:
        from tiny import tiny_model
    finally:
        sys.path.pop(0)
    tokenizer = train_tokenizer(image_token="<image>")
    pictures = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pictures.image_seq_length = 4
    n, image = len(tokenizer), tokenizer.convert_tokens_to_ids("<image>")
    model = tiny_model(
        "paligemma",
        {"text_config": {"vocab_size": n}, "image_token_id": image, "image_token_index": image, "vocab_size": n},
    )
    return mmedit.VisionLanguageModel(model, PaliGemmaProcessor(pictures, tokenizer), "tiny")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of its processor in transformers
def test_paligemma_s_instruction_ends_in_a_newline_and_its_answer_prefix_in_none(
    paligemma: mmedit.VisionLanguageModel,
) -> None:
    prompts: list[str | Prompt | None] = [TEXT, Prompt("Say in few words what this is.", PREFIX)]
    batch = paligemma.inputs([PICTURE] * 2, prompts)
    texts = [
        paligemma.tokenizer.decode(ids[mask == 1])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    image = "<image>" * 4 + "<s>"
    assert texts == [f"{image}{TEXT}\n", f"{image}Say in few words what this is.\n{PREFIX}"]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == paligemma.tokenizer.pad_token_id).all()
    assert torch.equal(batch["attention_mask"], batch["attention_mask"].sort(dim=1).values) and "labels" not in batch
    together = paligemma.model(**batch).logits[:, -1]
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(
            paligemma.model(**paligemma.inputs(PICTURE, prompt)).logits[0, -1], together[row], rtol=1e-3, atol=1e-4
        )
    with pytest.raises(RequestError, match="pictures only"):
        paligemma.caption(None, TEXT)
