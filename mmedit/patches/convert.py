"""Converting: a LLaVA in the format of its own code becomes a folder that transformers alone can load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mmedit.errors import ModelError
from mmedit.models.llava_v1 import conversation, original_config, read
from mmedit.models.loading import resolve_name
from mmedit.patches.bake import _check_outside
from mmedit.patches.new_folder import check_free, new_folder

SHARD = "5GB"  # of a weight file at most, so that a download can be taken up again


@dataclass(frozen=True)
class Converted:
    """What `convert` has written.

    Args:
        folder: the new checkpoint.
        conversation: which of LLaVA's conversations its chat template is.
        dtype: of its weights.
    """

    folder: Path
    conversation: str
    dtype: torch.dtype


def convert(
    source: str | Path, output: str | Path, *, vision_tower: str | Path | None = None, dtype: str | torch.dtype = "auto",
    revision: str | None = None,
) -> Converted:  # fmt: skip
    """Write an original LLaVA as a new folder of transformers, with its tower in it; it appears whole or not at all.

    The weights are mapped from the source's files while they are written, so that a large model needs little memory, unless it
    is given another type.

    Args:
        source: a folder or Hub id of a LLaVA v1.0 to v1.5 in the format of its own code.
        output: the folder to write: a new one, or an empty one; never inside the source.
        vision_tower: a folder or Hub id of its CLIP; as its config.json names it when None.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        revision: branch, tag or commit on the Hub.

    Returns:
        What was written.

    Raises:
        ModelError: if there is no such checkpoint, it is of another format, or a part of it is missing or damaged.
        OutputError: if the folder exists or cannot be written, or the disk is full.

    Example:
        >>> convert("iconworld-llava", "new")  # a folder of transformers already
        Traceback (most recent call last):
        mmedit.errors.ModelError: not a LLaVA in its original format...
    """
    check_free(output)
    found = resolve_name(str(source))
    config = original_config(found, revision)
    if config is None:
        raise ModelError("not a LLaVA in its original format", where=source, expected="a config.json that names an mm_vision_tower", do="load it as it is")  # fmt: skip
    if Path(found).is_dir():
        _check_outside(Path(output), Path(found).resolve())
    model, processor = read(found, config, name=str(source), revision=revision, vision_tower=vision_tower, dtype=dtype)
    with new_folder(output) as part:
        model.save_pretrained(part, max_shard_size=SHARD)
        processor.save_pretrained(part)
    return Converted(Path(output), conversation(str(source)), model.dtype)
