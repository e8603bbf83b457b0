"""LLaVAs of real sizes with random weights: for time and memory, where what is said does not matter."""

from __future__ import annotations

import copy

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import mmedit
from mmedit.testbed.checkpoint import build_processor

GEOMETRIES = {
    "small": (1024, 24, 16, 2816, 224),  # 0.35 B in the language model and 0.3 B in the tower
    "7b, 3 layers": (4096, 3, 32, 11008, 336),
    "7b": (4096, 32, 32, 11008, 336),
    "13b": (5120, 40, 40, 13824, 336),
}
"""d_model, layers, heads, d_ffn, pixels a side."""


def random_llava(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> mmedit.VisionLanguageModel:
    """A LLaVA with a CLIP-L tower and a vocabulary of 32000; IconWorld's tokenizer names the first few of its tokens."""
    d_model, n_layers, n_heads, d_ffn, side = GEOMETRIES[name]
    processor: LlavaProcessor = copy.copy(build_processor())
    size = {"height": side, "width": side}
    processor.image_processor, processor.patch_size = (
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size),
        14,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=side, patch_size=14, projection_dim=768
        ),
        text_config=LlamaConfig(
            vocab_size=32000, hidden_size=d_model, intermediate_size=d_ffn, num_hidden_layers=n_layers, num_attention_heads=n_heads,
            tie_word_embeddings=False,
        ),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=(side // 14) ** 2,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return mmedit.VisionLanguageModel(model, processor, f"LLaVA, {name}")
