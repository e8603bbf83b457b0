"""The weights of an original LLaVA under transformers' names; they are mapped from their files, not read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmedit.errors import ModelError
from mmedit.models.checkpoint_files import WEIGHTS, mapped, weight_files

NAMES = (
    (r"model\.mm_projector\.(0\.)?(?=weight$|bias$)", "model.multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"model\.vision_tower\.(vision_tower\.)?(vision_model\.)?", "model.vision_tower."),
    (r"model\.(?=embed_tokens\.|layers\.|norm\.)", "model.language_model."),
)
"""Beginnings of names, and what they are in transformers; all others are the same."""
COMPUTED = re.compile(r"rotary_emb\.inv_freq$|position_ids$")  # buffers that older libraries kept
EMBEDDING, UNEMBEDDING = "model.language_model.embed_tokens.weight", "lm_head.weight"
IDENTITY = "model.multi_modal_projector.linear_2"


def name_in_memory(name: str) -> str:
    """What a tensor of an original checkpoint is called in transformers' LLaVA.

    Example:
        >>> name_in_memory("model.layers.3.mlp.down_proj.weight"), name_in_memory("model.mm_projector.bias")
        ('model.language_model.layers.3.mlp.down_proj.weight', 'model.multi_modal_projector.linear_1.bias')
    """
    for pattern, ours in NAMES:
        name, found = re.subn(f"^{pattern}", ours, name)
        if found:
            break
    return name


def language_weights(folder: Path) -> dict[str, Tensor]:
    """Everything in the weight files of a checkpoint, under transformers' names.

    Raises:
        ModelError: if there are no such files, they are damaged, or are not those of a whole model with a projector.
    """
    if not any((folder / name).exists() for name in WEIGHTS):
        adapter = next((f.name for f in folder.iterdir() if re.match(r"adapter_|non_lora_|mm_projector", f.name)), None)
        if adapter:
            raise ModelError(
                "only what was trained beside a base model, not a whole LLaVA", where=folder, got=adapter, expected=f"one of {', '.join(WEIGHTS)}",
                do="merge it into its base model with LLaVA's own scripts/merge_lora_weights.py",
            )  # fmt: skip
    weights = {name_in_memory(name): tensor for name, tensor in tensors(folder).items()}
    if not any(name.startswith("model.multi_modal_projector.") for name in weights):
        raise ModelError(
            "this LLaVA has no projector", where=folder, expected="model.mm_projector.weight, or .0.weight and .2.weight, among its weights",
            do="get the whole checkpoint; one that was trained before its projector was joined to it cannot be used",
        )  # fmt: skip
    return weights


def tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors that transformers would load from a folder, but for computed ones."""
    files, _ = weight_files(folder)
    return {n: t for file in files for n, t in mapped(file).items() if not COMPUTED.search(n)}


def tower_weights(folder: Path) -> dict[str, Tensor]:
    """The vision half of a CLIP, under transformers' names."""
    return {f"model.vision_tower.{name.removeprefix('vision_model.')}": t for name, t in tensors(folder).items()}


def fitted(language: Mapping[str, Tensor], tower: Mapping[str, Tensor], wanted: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:  # fmt: skip
    """Exactly the weights that a model has: with rows of zeros for added tokens, and an identity where a projector has one map.

    Args:
        language: the checkpoint's weights; where it has its own tower (that was trained on), this counts.
        tower: the tower's.
        wanted: the model's parameters, without numbers.
        folder: of the checkpoint, for messages.

    Raises:
        ModelError: if a weight is missing, of another shape, or one too many.
    """
    # some versions of transformers keep the prefix
    nested = any(name.startswith("model.vision_tower.vision_model.") for name in wanted)

    def ours(name: str) -> str:
        return name.replace("model.vision_tower.", "model.vision_tower.vision_model.", 1) if nested else name

    given = {ours(name): tensor for name, tensor in tower.items() if ours(name) in wanted}
    given |= {ours(name): tensor for name, tensor in language.items()}
    like = given[UNEMBEDDING] if UNEMBEDDING in given else next(iter(given.values()))
    for name in (EMBEDDING, UNEMBEDDING):
        if name in given and given[name].dim() == 2:
            rows = len(wanted[name]) - len(given[name])
            given[name] = torch.cat([given[name], given[name].new_zeros(max(0, rows), given[name].shape[1])])
    if f"{IDENTITY}.weight" not in given:
        d_model = len(wanted[f"{IDENTITY}.bias"])
        given[f"{IDENTITY}.weight"] = torch.eye(d_model, dtype=like.dtype)
        given[f"{IDENTITY}.bias"] = torch.zeros(d_model, dtype=like.dtype)
    _check_names("weights are missing", set(wanted) - set(given), folder)
    _check_names("weights that LLaVA v1 does not have", set(given) - set(wanted), folder)
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape or not tensor.is_floating_point():
            raise ModelError(
                "a weight of another shape or kind than the configuration says", where=f"{folder}, {name}",
                got=f"{tensor.dtype} {list(tensor.shape)}", expected=list(wanted[name].shape), do="get the checkpoint again",
            )  # fmt: skip
    return given


def _check_names(what: str, names: set[str], folder: Path) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(what, where=folder, got=", ".join(sorted(names)[:3]) + more, expected="a Llama, a projector of one or two maps, and a CLIP tower", do="get the whole checkpoint, and the tower that it was trained with")  # fmt: skip
