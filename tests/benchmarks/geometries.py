"""LLaVAs of real sizes with random weights: for time and memory, where what is said does not matter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

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
from mmedit.concepts import Occurrence
from mmedit.locate import rank
from mmedit.models.vlm import Generation
from mmedit.nouns import noun_tokens
from mmedit.sightings import sightings
from mmedit.testbed.checkpoint import build_processor

GEOMETRIES = {
    "small": (1024, 24, 16, 2816, 224),  # 0.35 B in the language model and 0.3 B in the tower
    "7b, 3 layers": (4096, 3, 32, 11008, 336),
    "7b, 12 layers": (4096, 12, 32, 11008, 336),  # 2.7 B and the tower: what 24 GiB hold twice in bfloat16
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


def shorten(vlm: mmedit.VisionLanguageModel, n: int = 12) -> None:
    """Have answers end after n tokens: random weights never end one."""
    generate = vlm.generate_batch
    vlm.generate_batch = lambda inputs, most=n: generate(inputs, min(most, n))  # type: ignore[method-assign]


def words(n: int) -> Callable[[int, Generation], list[Occurrence]]:
    """The tokens 1, 3, 5 … of a caption, as if each were a word: random weights say no nouns."""
    return lambda number, said: [Occurrence("word", 0, i, said.ids[i], 1) for i in range(1, 2 * n, 2)]


def locate(
    vlm: mmedit.VisionLanguageModel, images: Any, batch_size: int = 8, n: int = 3, n_tokens: int = 10
) -> list[mmedit.NeuronRanking]:
    """Rank neurons for all nouns of each caption; where weights are random, for n tokens after a search for nouns in vain."""
    if vlm.name.startswith("LLaVA, "):

        def choose(number: int, said: Generation) -> list[Occurrence]:
            noun_tokens(said.ids, vlm.tokenizer)
            return words(n)(number, said)

        return rank(vlm, [[seen] for seen in sightings(vlm, images, choose, batch_size=batch_size)], n_tokens=n_tokens)
    rankings = mmedit.locate_nouns(vlm, images, batch_size=batch_size, n_tokens=n_tokens)
    return [ranking for found in rankings for ranking in found]
