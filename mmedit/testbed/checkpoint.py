"""What the IconWorld checkpoints share: the tokenizer, the language model's size, and what a family has to say; and LLaVA."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmedit.testbed.language import Turn, captions, facts, questions
from mmedit.testbed.world import SIZE, scene

if TYPE_CHECKING:
    from torch import Tensor

    from mmedit.testbed.batches import Batch

PATCH = 8  # pixels a side of one image token
N_PATCHES = (SIZE // PATCH) ** 2
N_VOCAB = 528
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
SYLLABLES = {
    "lorry": "lor-ry",
    "lorries": "lor-ries",
    "cactus": "cac-tus",
    "cacti": "cac-ti",
    "mushroom": "mush-room",
    "lighthouse": "light-house",
    "robot": "ro-bot",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What sets one IconWorld checkpoint apart from another; everything else about its training is the same."""

    build_processor: Callable[[], Any]
    build_model: Callable[[Any, int], Any]
    """From a processor and a seed, a model with random weights."""
    turn_texts: Callable[[Turn, bool], tuple[str, str]]
    """A turn, with a picture or without, as the text before the answer, start token included, and the answer."""
    n_image_tokens: int
    """Per picture, in the language model's input."""
    features: Callable[[Any, Tensor], list[Tensor]]
    """From a model and pixels, what must tell the things apart: each `[n, tokens, width]`, a token for a square of patches."""
    hidden_states: Callable[[Any, Batch], Tensor]
    """From a model and a batch, the last hidden states `[rows, length, d_model]`."""
    instructed: bool = False
    """Whether the image tokens depend on the instruction, so that exchanges about one picture cannot share them."""
    frozen: tuple[str, ...] = ()
    """Paths of the modules that are not trained any more after the first stage."""
    begin: Callable[[Any, Tensor], None] = lambda model, pixels: None
    """Put in the weights that training does not begin at random; the pixels are a sample of the world."""


def train_tokenizer(**named_tokens: str) -> PreTrainedTokenizerFast:
    """Learn the byte-pair tokenizer of IconWorld, in which the nouns of `SYLLABLES` take several tokens.

    Args:
        named_tokens: special tokens that shall be attributes of the tokenizer.
    """
    texts = [f" {turn.prompt} {turn.answer}" for turn in facts() for _ in range(5)]
    for number in range(3000):
        drawn = scene("train", number)
        for turn in (*captions(drawn), *questions(drawn, random.Random(number))):
            texts.append(f"USER: {turn.prompt} ASSISTANT: {turn.prefix} {turn.answer}")
    for word, syllables in SYLLABLES.items():  # merges never cross a hyphen, so that these words stay split
        texts = [text.replace(word, syllables) for text in texts]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens=named_tokens, padding_side="left", model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def text_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The language model of the IconWorld checkpoints: a gated Llama, untied unembedding."""
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=512, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def initialised(kind: type[Any], config: Any, seed: int) -> Any:
    """A model of a class with random weights that knows when an answer ends."""
    torch.manual_seed(seed)
    model = kind(config)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model


def build_processor() -> LlavaProcessor:
    """The processor of iconworld-llava, its tokenizer freshly learned."""
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return LlavaProcessor(
        image_processor=image_processor, tokenizer=train_tokenizer(image_token="<image>"), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def build_llava(processor: LlavaProcessor, seed: int = 0) -> LlavaForConditionalGeneration:
    """A LLaVA of IconWorld's size with random weights: CLIP tower, two-layer projector, Llama."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE, patch_size=PATCH, projection_dim=128
        ),
        text_config=text_config(processor.tokenizer),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=N_PATCHES,
        vision_feature_layer=-1, vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    model: LlavaForConditionalGeneration = initialised(LlavaForConditionalGeneration, config, seed)
    return model


def turn_texts(turn: Turn, with_image: bool) -> tuple[str, str]:
    """A turn as the text before the answer and the answer, exactly as the chat template and the answer prefix give it."""
    image, prefix = "<image>\n" if with_image else "", f" {turn.prefix}" if turn.prefix else ""
    return f"<s>USER: {image}{turn.prompt} ASSISTANT:{prefix}", f" {turn.answer}"


def llava_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> list[Tensor]:
    """What the projector sees of each patch."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return [states[model.config.vision_feature_layer][:, 1:]]


def llava_hidden_states(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """The last hidden states of packed rows."""
    hidden: Tensor = model.model(
        input_ids=batch.input_ids, pixel_values=batch.pixel_values, attention_mask=batch.mask, position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state  # fmt: skip
    return hidden


LLAVA = Family(build_processor, build_llava, turn_texts, N_PATCHES, llava_features, llava_hidden_states)
