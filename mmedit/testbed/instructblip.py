"""IconWorld's InstructBLIP: a vision tower, a Q-Former that reads the instruction, and the language model of iconworld-llava.

As the published one begins with a trained tower and Vicuna, so this one begins with the tower and the Llama of
iconworld-llava; what is new is the Q-Former and the projection of its queries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlavaForConditionalGeneration,
)

from mmedit.models.checkpoint_files import CHECKPOINTS
from mmedit.testbed.batches import Batch
from mmedit.testbed.checkpoint import PATCH, Family, initialised, text_config, train_tokenizer
from mmedit.testbed.language import Turn
from mmedit.testbed.world import SIZE

N_QUERIES = 16


def build_processor() -> InstructBlipProcessor:
    """The processor of iconworld-instructblip; its Q-Former has a copy of the tokenizer."""
    tokenizer, qformer_tokenizer = (train_tokenizer() for _ in range(2))
    image_processor = BlipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    return InstructBlipProcessor(image_processor, tokenizer, qformer_tokenizer, num_query_tokens=N_QUERIES)


def build_instructblip(processor: InstructBlipProcessor, seed: int = 0) -> InstructBlipForConditionalGeneration:
    """An InstructBLIP of IconWorld's size with random weights."""
    tokenizer = processor.tokenizer
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE, patch_size=PATCH,
            hidden_act="quick_gelu", layer_norm_eps=1e-5, initializer_range=0.02,
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, cross_attention_frequency=1,
            max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        text_config=text_config(tokenizer), num_query_tokens=N_QUERIES, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model: InstructBlipForConditionalGeneration = initialised(InstructBlipForConditionalGeneration, config, seed)
    nn.init.normal_(model.query_tokens, std=0.1)  # transformers starts them at zero, where they are all alike
    return model


def turn_texts(turn: Turn, with_image: bool) -> tuple[str, str]:
    """A turn as the text before the answer and the answer: the bare instruction, the picture before the start token."""
    image, prefix = "<image>" if with_image else "", f" {turn.prefix}" if turn.prefix else ""
    return f"{image}<s>{turn.prompt}{prefix}", f" {turn.answer}"


def features(model: InstructBlipForConditionalGeneration, pixels: Tensor) -> list[Tensor]:
    """What the tower makes of each patch, and what the Q-Former's queries tell of it without an instruction."""
    seen = model.vision_model(pixels).last_hidden_state
    return [seen[:, 1:], queried(model, seen, None, None)]


def queried(model: Any, seen: Tensor, instructions: Tensor | None, mask: Tensor | None) -> Tensor:
    """The Q-Former's queries `[n, N_QUERIES, width]` after they looked at pictures `[n, tokens, width]`."""
    queries = model.query_tokens.expand(len(seen), -1, -1)
    if mask is not None:
        mask = torch.cat([mask.new_ones(queries.shape[:2]), mask], 1)
    told: Tensor = model.qformer(instructions, mask, query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
    return told[:, : queries.shape[1]]


def hidden_states(model: InstructBlipForConditionalGeneration, batch: Batch) -> Tensor:
    """The last hidden states; the tower sees each picture once, the Q-Former once per row, rows without a picture last."""
    seen = model.vision_model(batch.pixel_values).last_hidden_state[batch.seen]
    queries = model.language_projection(queried(model, seen, batch.instructions, batch.instruction_mask))
    embeddings = model.get_input_embeddings()(batch.input_ids)
    is_image = (batch.input_ids == model.config.image_token_id)[..., None]
    hidden: Tensor = model.language_model.model(
        inputs_embeds=embeddings.masked_scatter(is_image, queries.to(embeddings.dtype)), attention_mask=batch.mask,
        position_ids=batch.position_ids, use_cache=False,
    ).last_hidden_state  # fmt: skip
    return hidden


@torch.no_grad()
def begin(model: InstructBlipForConditionalGeneration, pixels: Tensor) -> None:
    """Put the tower and the language model of iconworld-llava into a model.

    CLIP's tower normalises what it has embedded and this one does not. The mean, the gain and the bias of that norm go into
    the embedding; for its division, which depends on the patch, stands the average over a sample of pictures.
    """
    llava = LlavaForConditionalGeneration.from_pretrained(CHECKPOINTS / "iconworld-llava")
    model.language_model.model.load_state_dict(llava.model.language_model.state_dict())
    model.language_model.lm_head.load_state_dict(llava.lm_head.state_dict())
    clip, ours = llava.model.vision_tower, model.vision_model.embeddings
    model.vision_model.encoder.load_state_dict(_encoder(clip.encoder.state_dict()))
    embedded, norm = clip.embeddings(pixels), clip.pre_layrnorm
    gain = norm.weight / embedded[:, 1:].std(-1).mean()
    patch, place = clip.embeddings.patch_embedding.weight, clip.embeddings.position_embedding.weight
    ours.patch_embedding.weight.copy_((patch - patch.mean(0)) * gain[:, None, None, None])
    ours.patch_embedding.bias.copy_(norm.bias)
    ours.position_embedding.copy_((place - place.mean(-1, keepdim=True)) * gain)
    ours.position_embedding[:, 0] = 0
    ours.class_embedding.copy_(norm(embedded[:1, :1]))


def _encoder(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's encoder layers under InstructBLIP's names, queries, keys and values in one matrix."""
    renamed = {}
    for name, tensor in source.items():
        if ".q_proj." in name:
            renamed[name.replace("q_proj", "qkv")] = torch.cat(
                [source[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            )
        elif ".k_proj." not in name and ".v_proj." not in name:
            renamed[name.replace("out_proj", "projection")] = tensor
    return renamed


INSTRUCTBLIP = Family(
    build_processor,
    build_instructblip,
    turn_texts,
    N_QUERIES,
    features,
    hidden_states,
    instructed=True,
    frozen=("vision_model",),
    begin=begin,
)
