"""Loading a vision-language model by a shipped name, a folder or a Hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmedit.errors import MmeditError, ModelError
from mmedit.models.checkpoint_files import CHECKPOINTS, WEIGHTS, shard_names
from mmedit.models.llava_v1 import original_config
from mmedit.models.llava_v1 import read as read_original
from mmedit.models.vlm import VisionLanguageModel


def load(
    name: str | Path,
    device: str | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    vision_tower: str | Path | None = None,
) -> VisionLanguageModel:
    """Load a vision-language model.

    Args:
        name: a shipped name (`iconworld-llava`), a local folder, or a Hub id.
        device: `cpu`, `cuda`, …, or `auto` to spread the model over what there is (needs accelerate); the CPU when None.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: let code from the checkpoint run; never needed for the models in transformers.
        vision_tower: for a checkpoint in the original LLaVA format, a folder or Hub id of its CLIP; as its config.json names
            it when None.

    Returns:
        The model with its processor.

    Raises:
        ModelError: if there is no such model, or it is of a kind that cannot be loaded or edited.

    Example:
        >>> import mmedit
        >>> mmedit.load("iconworld-llava").architecture.n_layers
        6
    """
    source = resolve_name(str(name))
    try:
        original = original_config(source, revision)  # which transformers would take for an empty one of its own
        if original is not None:
            model, processor = read_original(
                source, original, name=str(name), revision=revision, vision_tower=vision_tower, device=device, dtype=dtype
            )  # fmt: skip
        elif vision_tower is not None:
            raise ModelError("only a LLaVA in its original format is told its vision_tower", where=name, do="leave it out")  # fmt: skip
        else:
            for index in Path(source).glob("*.index.json") if Path(source).is_dir() else ():
                if index.name in WEIGHTS:  # transformers would follow it out of the folder
                    shard_names(index)
            placement = {} if device is None else {"device_map": device}
            model, processor = _from_pretrained(source, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, **placement)  # fmt: skip
    except ImportError as error:
        raise ModelError(
            "this model needs a package that is not installed",
            where=name,
            got=str(error).strip(),
            do="install it; 'mmedit-vlm[vision]' brings torchvision, 'mmedit-vlm[sentencepiece]' the older tokenizers",
        ) from error
    except MmeditError:
        raise
    except Exception as error:  # what a stranger's folder makes transformers and torch raise can be anything
        got = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            "cannot load this model",
            where=name,
            got=got,
            do="check the name, the folder's files, and the network for a Hub id",
        ) from error
    return VisionLanguageModel(model, processor, str(name), revision)


def _from_pretrained(source: str, **options: Any) -> tuple[Any, Any]:
    """A model and its processor as transformers loads them."""
    shared = {name: options[name] for name in ("revision", "trust_remote_code")}
    config = AutoConfig.from_pretrained(source, **shared)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ModelError(
            "not a vision-language model",
            where=source,
            got=f"model_type {config.model_type!r}",
            expected="an image-text-to-text model of transformers",
        )
    processor = AutoProcessor.from_pretrained(source, **shared)
    return AutoModelForImageTextToText.from_pretrained(source, **options), processor


def shipped_models() -> list[str]:
    """The names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))


def resolve_name(name: str) -> str:
    """A name as transformers understands it: a folder or a Hub id."""
    if name in shipped_models():
        return str(CHECKPOINTS / name)
    path = Path(name)
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                "a folder without a checkpoint",
                where=path,
                got="no config.json",
                expected="config.json, weights and processor files",
            )
        return str(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.exists():
        return name
    raise ModelError(
        "no such model",
        got=repr(name),
        expected=f"a shipped name ({', '.join(shipped_models())}), a local folder, or a Hub id such as llava-hf/llava-1.5-7b-hf",
    )
