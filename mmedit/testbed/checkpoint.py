"""The unmodified transformers classes that the IconWorld checkpoints are made of: tokenizer, processor, model."""

from __future__ import annotations

import random

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

PATCH = 8  # pixels a side of one image token
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


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn the byte-pair tokenizer of IconWorld, in which the nouns of `SYLLABLES` take several tokens."""
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
        extra_special_tokens={"image_token": "<image>"}, padding_side="left", model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_processor() -> LlavaProcessor:
    """The processor of the IconWorld checkpoints, its tokenizer freshly learned."""
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return LlavaProcessor(
        image_processor=image_processor, tokenizer=train_tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def build_llava(processor: LlavaProcessor, seed: int = 0) -> LlavaForConditionalGeneration:
    """A LLaVA of IconWorld's size with random weights: CLIP tower, two-layer projector, gated Llama, untied unembedding."""
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE, patch_size=PATCH, projection_dim=128
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=512, tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-1, vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def turn_texts(turn: Turn, with_image: bool) -> tuple[str, str]:
    """A turn as the text before the answer and the answer, exactly as the chat template and the answer prefix give it."""
    image, prefix = "<image>\n" if with_image else "", f" {turn.prefix}" if turn.prefix else ""
    return f"USER: {image}{turn.prompt} ASSISTANT:{prefix}", f" {turn.answer}"
