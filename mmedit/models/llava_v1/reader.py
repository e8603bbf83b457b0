"""An original LLaVA checkpoint as a model and a processor of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AddedToken,
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)

from mmedit.errors import ModelError
from mmedit.models.llava_v1.conversations import chat_template, conversation, model_name
from mmedit.models.llava_v1.folders import config_of, folder_of, json_of, tower_folder
from mmedit.models.llava_v1.weights import EMBEDDING, fitted, language_weights, tower_weights

IMAGE_TOKEN = "<image>"
PROJECTORS = {"linear": "linear", "mlp2x_gelu": "gelu"}
"""What `mm_projector_type` may be, and the activation between the two maps of transformers' projector."""
SELECTED = {"patch": "default", "cls_patch": "full"}
"""What `mm_vision_select_feature` may be, and what transformers calls it."""
LATER = {"anyres", "anyres_max", "highres"}
RENAMED = {"torch_dtype", "dtype", "model_type", "architectures", "transformers_version", "_name_or_path", "vocab_size"}


def original_config(source: str, revision: str | None = None) -> dict[str, Any] | None:
    """The config.json of a checkpoint, if it is in the format of LLaVA's own code.

    Args:
        source: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.
    """
    config = config_of(source, revision)
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    own = str(config.get("model_type", "")).startswith("llava") and "mm_vision_tower" in config
    mine = own or any(kind.startswith(("LlavaLlama", "LlavaMPT", "LlavaMpt", "LlavaMistral")) for kind in kinds)
    return config if mine and "text_config" not in config else None


def read(
    source: str, config: Mapping[str, Any], *, name: str, revision: str | None = None, vision_tower: str | Path | None = None,
    device: str | None = None, dtype: str | torch.dtype = "auto",
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:  # fmt: skip
    """Load an original LLaVA as transformers' own.

    Args:
        source: its folder or Hub id.
        config: what `original_config` gave.
        name: what the user calls it; the conversation goes by it, as in LLaVA's own code.
        revision: branch, tag or commit on the Hub.
        vision_tower: the CLIP tower, a folder or a Hub id; as config.json names it when None.
        device: as for `mmedit.load`.
        dtype: as for `mmedit.load`; of the tower, too.

    Returns:
        The model and its processor.

    Raises:
        ModelError: if a part is missing or damaged, or this is a LLaVA of another kind.
    """
    _refuse_others(config, name)
    folder = folder_of(source, revision)
    language = language_weights(folder)
    if EMBEDDING not in language or language[EMBEDDING].dim() != 2:
        raise ModelError("this LLaVA has no language model", where=folder, got=f"{len(language)} other weights", expected="model.embed_tokens.weight", do="get the whole checkpoint")  # fmt: skip
    n_vocab = len(language[EMBEDDING])
    tokenizer = _tokenizer(folder, config, n_vocab)
    tower = tower_folder(config.get("mm_vision_tower"), vision_tower, folder)
    ours = llava_config(config, n_vocab, _tower_config(tower), tokenizer, folder)
    with torch.device("meta"):
        wanted = LlavaForConditionalGeneration(ours).state_dict()
    weights = fitted(language, tower_weights(tower), wanted, folder)
    placement = {} if device is None else {"device_map": device}
    kind = language["lm_head.weight"].dtype if dtype == "auto" else dtype
    model = LlavaForConditionalGeneration.from_pretrained(
        None, config=ours, state_dict=weights, dtype=kind, **placement
    )
    text = ours.text_config
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id,
        suppress_tokens=list(range(n_vocab, text.vocab_size)),
    )  # fmt: skip
    template = chat_template(conversation(name), bool(config.get("mm_use_im_start_end")))
    processor = LlavaProcessor(
        _image_processor(tower, config), tokenizer, patch_size=ours.vision_config.patch_size, chat_template=template,
        vision_feature_select_strategy=ours.vision_feature_select_strategy, num_additional_image_tokens=1,
    )  # fmt: skip
    return model, processor


def llava_config(
    config: Mapping[str, Any], n_vocab: int, tower: CLIPVisionConfig, tokenizer: Any, folder: Path
) -> LlavaConfig:
    """What transformers needs to know of an original LLaVA.

    Args:
        config: its config.json.
        n_vocab: rows of its embedding.
        tower: the configuration of its vision tower.
        tokenizer: its tokenizer, with `<image>`.
        folder: for messages.

    Raises:
        ModelError: for a projector or a choice of features that transformers' LLaVA has not, or values of a wrong kind.
    """
    projector = config.get("mm_projector_type", "linear")
    features = config.get("mm_vision_select_feature", "patch")
    if projector not in PROJECTORS or features not in SELECTED:
        raise ModelError("a LLaVA with a projector or features of another kind", where=folder / "config.json", got=f"{projector!r}, {features!r}", expected=f"one of {', '.join(PROJECTORS)}; one of {', '.join(SELECTED)}")  # fmt: skip
    if config.get("vocab_size", n_vocab) != n_vocab:
        raise ModelError("an embedding of another size than the configuration says", where=folder, got=f"{n_vocab} rows", expected=config["vocab_size"], do="get the checkpoint again")  # fmt: skip
    return _checked(
        folder, vision_config=tower, text_config=_llama(config, max(n_vocab, len(tokenizer)), folder),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), projector_hidden_act=PROJECTORS[projector],
        image_seq_length=(tower.image_size // tower.patch_size) ** 2 + (features == "cls_patch"),
        vision_feature_layer=config.get("mm_vision_select_layer", -2), vision_feature_select_strategy=SELECTED[features],
    )  # fmt: skip


def skeleton_config(config: Mapping[str, Any], folder: Path) -> LlavaConfig:
    """What the language model alone needs: for looking into a checkpoint's files without its tower and tokenizer.

    Args:
        config: its config.json.
        folder: for messages.

    Raises:
        ModelError: if the configuration has values of a wrong kind, or this is a LLaVA of another kind.
    """
    _refuse_others(config, str(folder))
    return _checked(folder, text_config=_llama(config, int(config.get("vocab_size", 32000)), folder))


def _llama(config: Mapping[str, Any], n_tokens: int, folder: Path) -> LlamaConfig:
    known = (set(LlamaConfig().to_dict()) | {"rope_theta", "rope_scaling"}) - RENAMED
    return _checked(folder, LlamaConfig, **{k: v for k, v in config.items() if k in known}, vocab_size=n_tokens)


def _checked(folder: Path, kind: Any = LlavaConfig, **values: Any) -> Any:
    """A configuration of these values, or a ModelError."""
    try:
        return kind(**values)
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        got = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError("cannot use this configuration", where=folder / "config.json", got=got, do="get the checkpoint again") from error  # fmt: skip


def _refuse_others(config: Mapping[str, Any], name: str) -> None:
    """Raise ModelError for what LLaVA's own code also writes, but v1 with a Llama is not."""
    kind, aspect = " ".join(map(str, config.get("architectures") or [config.get("model_type")])), config.get("image_aspect_ratio")  # fmt: skip
    if "mpt" in kind.lower() or conversation(name) == "mpt":
        raise ModelError("a LLaVA with an MPT decoder", where=name, got=kind, expected="a Llama decoder")
    if "mistral" in kind.lower() or aspect in LATER:
        raise ModelError("a LLaVA of version 1.6 in its original format", where=name, got=f"{kind}, pictures {aspect}", expected="version 1.0 to 1.5", do="use the same model from huggingface.co/llava-hf")  # fmt: skip
    if "delta" in model_name(name).lower().split("-"):
        raise ModelError("differences to LLaMA's weights, not a whole LLaVA", where=name, do="add them to LLaMA with LLaVA's own llava.model.apply_delta")  # fmt: skip


def _tower_config(folder: Path) -> CLIPVisionConfig:
    """The configuration of a CLIP's vision half.

    Raises:
        ModelError: if this is no CLIP.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        got = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError("cannot read this vision tower's configuration", where=folder, got=got, expected="a folder of a CLIP") from error  # fmt: skip
    vision = getattr(config, "vision_config", config)
    if not isinstance(vision, CLIPVisionConfig):
        raise ModelError("LLaVA's vision tower is a CLIP", where=folder, got=f"model_type {config.model_type!r}", expected="clip or clip_vision_model", do="give the tower that the model was trained with")  # fmt: skip
    return vision


def _image_processor(tower: Path, config: Mapping[str, Any]) -> Any:
    """CLIP's preprocessing, in Pillow as in the original code; only where the model was trained so, on a square of the mean colour."""
    padded = config.get("image_aspect_ratio") == "pad"
    try:
        kind = LlavaImageProcessorPil if padded else CLIPImageProcessorPil
        return kind.from_pretrained(tower, **({"do_pad": True} if padded else {}))
    except (OSError, ValueError) as error:
        raise ModelError("this vision tower does not say how pictures are prepared for it", where=tower, got=next(iter(str(error).splitlines()), ""), expected="preprocessor_config.json") from error  # fmt: skip


def _tokenizer(folder: Path, config: Mapping[str, Any], n_vocab: int) -> Any:
    """The checkpoint's tokenizer with `<image>` after everything that has a row.

    LLaVA tokenizes what stands before and after a picture by itself, so that a `▁` begins each part: `legacy` does the same.

    Raises:
        ModelError: if there is none, it cannot be read, or tokens of the prompt have no rows.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise ModelError("a checkpoint without a tokenizer", where=folder, expected="tokenizer.model or tokenizer.json", do="take them from the language model that it was trained from")  # fmt: skip
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, config=LlamaConfig(), legacy=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        got = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError("cannot read this tokenizer", where=folder, got=got, do="pip install 'mmedit-vlm[sentencepiece]' if tokenizer.model is all that there is") from error  # fmt: skip
    starts = json_of(folder / "tokenizer_config.json").get("add_bos_token", True)  # as transformers 4 had it
    if starts and tokenizer("").input_ids[:1] != [tokenizer.bos_token_id]:
        tokenizer.add_bos_token = True
    named = ["<im_patch>"] * bool(config.get("mm_use_im_patch_token", True)) + ["<im_start>", "<im_end>"] * bool(config.get("mm_use_im_start_end"))  # fmt: skip
    known = tokenizer.get_vocab()
    named = [token for token in named if token not in known]
    if len(tokenizer) + len(named) > n_vocab:
        if config.get("mm_use_im_start_end"):
            raise ModelError("tokens of this LLaVA's prompt have no rows", where=folder, got=f"{n_vocab} rows, {len(tokenizer)} tokens and {', '.join(named)}", do="get the checkpoint again")  # fmt: skip
        named = []  # <im_patch> stands in no prompt
    named += [f"<row_{row}>" for row in range(len(tokenizer) + len(named), n_vocab)]  # rows without a token
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in [*named, IMAGE_TOKEN]])
    return tokenizer
