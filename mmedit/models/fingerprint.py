"""One short string for all that decides a model's answers: weights, settings, processor, library."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers
from torch import Tensor

from mmedit.models.vlm import VisionLanguageModel

CHUNK = 1 << 24  # values moved and hashed at a time


def fingerprint(vlm: VisionLanguageModel) -> str | None:
    """A digest of a model and its processor, equal only where every weight has the same bits.

    Args:
        vlm: the model, as it is now: live patches count.

    Returns:
        Hexadecimal digits, or None where weights are elsewhere (offloaded) and cannot be read.

    Example:
        >>> import mmedit
        >>> vlm = mmedit.load("iconworld-llava")
        >>> fingerprint(vlm) == fingerprint(vlm)
        True
    """
    state: dict[str, Any] = vlm.model.state_dict()
    if any(not isinstance(tensor, Tensor) or tensor.is_meta for tensor in state.values()):
        return None
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
        digests = list(pool.map(_digest, state.values()))
    whole = hashlib.blake2b(digest_size=16)
    for name, digest in zip(state, digests, strict=True):
        whole.update(f"{name} {digest}\n".encode())
    settings = (vlm.model.config, vlm.model.generation_config, vlm.processor)
    for part in (
        *(setting.to_json_string() for setting in settings if hasattr(setting, "to_json_string")),
        _tokenizer(vlm), vlm.model.device.type, torch.__version__, transformers.__version__,
    ):  # fmt: skip
        whole.update(part.encode())
    return whole.hexdigest()


def _tokenizer(vlm: VisionLanguageModel) -> str:
    backend = getattr(vlm.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr(sorted(vlm.tokenizer.get_vocab().items()))
    kept: dict[str, Any] = json.loads(backend.to_str())
    return json.dumps(
        {k: v for k, v in kept.items() if k not in ("padding", "truncation")}
    )  # these are set anew by each call


def _digest(tensor: Tensor) -> str:
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    flat = tensor.detach().contiguous().view(-1)
    for start in range(0, len(flat), CHUNK):
        digest.update(flat[start : start + CHUNK].cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
