"""`pytorch_model*.bin` weights, written again as safetensors, a few tensors at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch

from mmedit.models.checkpoint_files import DTYPES, Stored, load_bin, stored_tensors

GROUP = 2**26  # bytes of a `.bin` that are mapped at a time, or one tensor


def safetensors_name(name: str) -> str:
    """What transformers calls a weight file or an index of this name in safetensors.

    Example:
        >>> safetensors_name("pytorch_model-00001-of-00002.bin"), safetensors_name("pytorch_model.bin.index.json")
        ('model-00001-of-00002.safetensors', 'model.safetensors.index.json')
    """
    return name.removeprefix("pytorch_").replace(".bin", ".safetensors")


def rewrite_bin(source: Path, target: Path) -> None:
    """Write the tensors of a `.bin` as a safetensors file.

    Raises:
        ModelError: if the `.bin` cannot be read safely.
        OSError: if the file cannot be written.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors = sorted(stored_tensors(source).values(), key=lambda t: (-t.dtype.itemsize, t.name))  # so all are aligned
    ends, header = 0, {"__metadata__": {"format": "pt"}}
    for stored in tensors:
        start, ends = ends, ends + _n_bytes(stored)
        header[stored.name] = {"dtype": names[stored.dtype], "shape": list(stored.shape), "data_offsets": [start, ends]}  # type: ignore[dict-item]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for group in _groups(tensors):
            mapped = load_bin(source)  # anew for each group, so that what was read before can leave the memory
            for stored in group:
                file.write(mapped[stored.name].contiguous().reshape(-1).view(torch.uint8).numpy().data)


def rewrite_index(source: Path, target: Path) -> None:
    """Write the index of `.bin` shards for the safetensors files that take their place."""
    index = json.loads(source.read_bytes())
    index["weight_map"] = {name: safetensors_name(file) for name, file in index["weight_map"].items()}
    target.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _groups(tensors: list[Stored]) -> Iterator[list[Stored]]:
    """Runs of tensors of about GROUP bytes."""
    begins = 0
    numbered = []
    for stored in tensors:
        numbered.append((begins // GROUP, stored))
        begins += _n_bytes(stored)
    for _, group in groupby(numbered, key=lambda pair: pair[0]):
        yield [stored for _, stored in group]


def _n_bytes(stored: Stored) -> int:
    return stored.n_rows * stored.n_columns * stored.dtype.itemsize
