"""Writes LLaVAs in the format of their own code, from the format of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import mmedit

Model = LlavaForConditionalGeneration


def without_image_token(processor: LlavaProcessor) -> PreTrainedTokenizerFast:
    """IconWorld's tokenizer, whose vocabulary has another word where `<image>` was."""
    backend = processor.tokenizer.backend_tokenizer.to_str().replace("<image>", "<other>")
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend), **special)


def speaking(trained: mmedit.VisionLanguageModel, linear: bool, select: str = "default") -> Model:
    """A LLaVA with the language model and the tower of iconworld-llava, and a projector of one map or of two."""
    config = LlavaConfig.from_dict(trained.model.config.to_dict())
    config.projector_hidden_act, config.vision_feature_layer = "linear" if linear else "gelu", -2
    config.vision_feature_select_strategy = select
    torch.manual_seed(0)
    model: Model = LlavaForConditionalGeneration(config).eval()
    model.load_state_dict(trained.model.state_dict())
    if linear:
        last = model.model.multi_modal_projector.linear_2
        torch.nn.init.eye_(last.weight)
        torch.nn.init.zeros_(last.bias)
    return model


def original_names(model: Model) -> dict[str, torch.Tensor]:
    """The weights under the names of LLaVA's own code, without the tower."""
    linear, named = model.config.projector_hidden_act == "linear", {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (
            ("model.language_model.", "model."), ("model.multi_modal_projector.linear_1.", "model.mm_projector." if linear else "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "" if linear else "model.mm_projector.2."), ("model.vision_tower.", ""), ("lm_head.", "lm_head."),
        ):  # fmt: skip
            if name.startswith(ours) and theirs:
                named[name.replace(ours, theirs, 1)] = tensor.contiguous()
    for layer in range(model.config.text_config.num_hidden_layers):
        named[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as transformers 4.31 wrote it
    return named


def write_original(
    folder: Path, model: Model, tokenizer: PreTrainedTokenizerFast, shards: int = 0, **changes: Any
) -> Path:
    """Write a checkpoint with its tower in `clip_tower`; its weights as safetensors, or as so many `.bin` shards."""
    folder.mkdir(parents=True)
    vision, text = model.config.vision_config, model.config.text_config
    size = {"height": vision.image_size, "width": vision.image_size}
    model.model.vision_tower.save_pretrained(folder / "clip_tower")
    CLIPImageProcessorPil(size={"shortest_edge": vision.image_size}, crop_size=size).save_pretrained(folder / "clip_tower")  # fmt: skip
    tokenizer.save_pretrained(folder)
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act", "max_position_embeddings", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip
    config = {name: getattr(text, name) for name in kept} | {
        "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "transformers_version": "4.31.0", "torch_dtype": "float16",
        "rope_scaling": None, "pretraining_tp": 1, "tie_word_embeddings": False,
        "mm_hidden_size": vision.hidden_size, "mm_vision_tower": "clip_tower", "mm_vision_select_layer": model.config.vision_feature_layer,
        "mm_vision_select_feature": {"default": "patch", "full": "cls_patch"}[model.config.vision_feature_select_strategy],
        "mm_projector_type": "linear" if model.config.projector_hidden_act == "linear" else "mlp2x_gelu",
        "use_mm_proj": True, "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes))
    weights = original_names(model)
    if not shards:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder
    places = {name: f"pytorch_model-{1 + number % shards:05}-of-{shards:05}.bin" for number, name in enumerate(weights)}
    for place in set(places.values()):
        torch.save({name: tensor for name, tensor in weights.items() if places[name] == place}, folder / place)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
