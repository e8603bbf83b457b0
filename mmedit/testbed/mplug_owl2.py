"""IconWorld's mPLUG-Owl2: tower, abstractor, and a Llama with keys, values and norms for each modality.

As the published one begins with CLIP and Llama-2, so this one begins with the tower and the Llama of iconworld-llava; what is
new is the abstractor, and the second half of every pair of modules begins as a copy of the first.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from mmedit.models.checkpoint_files import CHECKPOINTS
from mmedit.models.mplug_owl2 import MPLUGOwl2Config, MPLUGOwl2LlamaForCausalLM, MPLUGOwl2Processor
from mmedit.testbed.batches import Batch
from mmedit.testbed.checkpoint import PATCH, SPECIAL_TOKENS, Family, text_config, train_tokenizer
from mmedit.testbed.language import Turn
from mmedit.testbed.world import SIZE

N_QUERIES = 16
MARK = "<image>"  # a place for an image token in training batches, whose vocabulary has one


def build_processor(tokenizer: PreTrainedTokenizerFast | None = None) -> MPLUGOwl2Processor:
    """The processor of iconworld-mplug-owl2, its tokenizer freshly learned unless it is given."""
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return MPLUGOwl2Processor(image_processor, tokenizer or train_tokenizer(), num_image_tokens=N_QUERIES + 1)


def build_mplug_owl2(processor: MPLUGOwl2Processor, seed: int = 0) -> MPLUGOwl2LlamaForCausalLM:
    """An mPLUG-Owl2 of IconWorld's size with random weights."""
    tokenizer = processor.tokenizer
    text = text_config(tokenizer).to_diff_dict()
    config = MPLUGOwl2Config(
        **{name: value for name, value in text.items() if name not in ("model_type", "transformers_version")},
        visual_config={
            "visual_model": {
                "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": SIZE,
                "patch_size": PATCH, "layer_norm_eps": 1e-5,
            },
            "visual_abstractor": {
                "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4,
                "num_learnable_queries": processor.num_image_tokens - 1, "encoder_hidden_size": 128, "grid_size": SIZE // PATCH,
            },
        },
    )  # fmt: skip
    torch.manual_seed(seed)
    model = MPLUGOwl2LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def turn_texts(turn: Turn, with_image: bool) -> tuple[str, str]:
    """A turn as the text before the answer and the answer, as the chat template and the answer prefix give it."""
    image, prefix = MARK if with_image else "", f" {turn.prefix}" if turn.prefix else ""
    return f"<s>USER: {image}{turn.prompt} ASSISTANT:{prefix}", f" {turn.answer}"


def features(model: MPLUGOwl2LlamaForCausalLM, pixels: Tensor) -> list[Tensor]:
    """What the tower makes of each patch, and what the abstractor's queries tell of a square of patches each."""
    seen = model.get_image_features(pixels)
    return [seen.last_hidden_state[:, 1:], seen.pooler_output[:, :-1]]


def hidden_states(model: MPLUGOwl2LlamaForCausalLM, batch: Batch) -> Tensor:
    """The last hidden states of packed rows."""
    is_image = batch.input_ids == SPECIAL_TOKENS.index(MARK)
    hidden: Tensor = model.model(
        input_ids=batch.input_ids.masked_fill(is_image, model.config.image_token_id), pixel_values=batch.pixel_values,
        attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False,
    ).last_hidden_state  # fmt: skip
    return hidden


def begin(model: MPLUGOwl2LlamaForCausalLM, pixels: Tensor) -> None:
    """Put the tower and the language model of iconworld-llava into a model."""
    llava = LlavaForConditionalGeneration.from_pretrained(CHECKPOINTS / "iconworld-llava")
    model.lm_head.load_state_dict(llava.lm_head.state_dict())
    tower = _tower(llava.model.vision_tower.state_dict(), model.config.vision.num_attention_heads)
    weights = tower | _language(llava.model.language_model.state_dict())
    unknown = model.model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown


def _language(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Llama's weights under mPLUG-Owl2's names, both halves of every pair the same."""
    pairs = re.compile(r"(layers\..*(?:[kv]_proj|layernorm))\.weight")
    return {
        pairs.sub(rf"\1.multiway.{way}.weight", name): tensor for name, tensor in source.items() for way in range(2)
    }


def _tower(source: dict[str, Tensor], n_heads: int) -> dict[str, Tensor]:
    """CLIP's weights under mPLUG-Owl2's names, queries, keys and values of each head beside each other in one matrix."""
    names = {
        "pre_layrnorm": "embeddings.pre_layernorm", "layer_norm1": "input_layernorm", "layer_norm2": "post_attention_layernorm",
        "out_proj": "dense", "class_embedding": "cls_token", "patch_embedding": "patch_embed", "position_embedding.weight": "position_embedding",
    }  # fmt: skip
    renamed = {}
    for name, tensor in source.items():
        if ".q_proj." in name:
            parts = [source[name.replace("q_proj", f"{x}_proj")].reshape(n_heads, -1, *tensor.shape[1:]) for x in "qkv"]
            name, tensor = name.replace("q_proj", "query_key_value"), torch.stack(parts, 1).flatten(0, 2)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if ".k_proj." not in name and ".v_proj." not in name:
            renamed[f"vision_model.{name}"] = tensor
    width = len(source["embeddings.class_embedding"])
    for name in ("cls_token", "position_embedding"):
        renamed[f"vision_model.embeddings.{name}"] = renamed[f"vision_model.embeddings.{name}"].reshape(1, -1, width)
    return renamed


MPLUG_OWL2 = Family(
    build_processor,
    build_mplug_owl2,
    turn_texts,
    N_QUERIES + 1,
    features,
    hidden_states,
    frozen=("model.vision_model",),
    begin=begin,
)
