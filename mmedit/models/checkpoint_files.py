"""The weight files of a checkpoint folder: which there are, what is in them, and reading parts of a tensor.

Nothing outside the folder is ever opened, nothing is unpickled, and only the numbers asked for are read.
"""

from __future__ import annotations

import json
import mmap as mmap_module
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from mmap import ALLOCATIONGRANULARITY, MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmedit.errors import ModelError
from mmedit.files import write_all

CHECKPOINTS = Path(__file__).parent.parent / "testbed" / "checkpoints"  # shipped with the package
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What transformers looks for, in its order."""
OTHER_FORMATS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz"}
POPULATE = getattr(mmap_module, "MAP_POPULATE", 0)  # Linux: all pages at once, not one fault for each few
MAX_NAME = 128  # characters of a shard's name; file systems hold 255 bytes
NOT_THE_MODEL = {".git", ".cache"}  # version control and download notes
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a weight file, seen as a matrix: its first dimension by all the others.

    Args:
        file: the file.
        name: the tensor's name there.
        dtype: of its numbers; a type that torch lacks is seen as bytes.
        shape: in the file.
        offset: where its numbers begin, in bytes; None in a `.bin`.
    """

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int | None

    @property
    def n_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def n_columns(self) -> int:
        return prod(self.shape[1:])

    @property
    def extent(self) -> tuple[int, int]:
        """Its stretch of the file: the first byte, and the one after the last."""
        assert self.offset is not None, "in a .bin, tensors lie in pieces of their own"
        return self.offset, self.offset + self.n_rows * self.n_columns * self.dtype.itemsize

    def read(self, rows: slice, columns: slice | Tensor | None = None) -> Tensor:
        """Some rows of the matrix, or of these some columns, which may be numbers `[k]`; copied. A slice has a start and a stop.

        Raises:
            ModelError: if the file cannot be read or has become shorter.
        """
        chosen = slice(None) if columns is None else columns
        if self.offset is None:
            return load_bin(self.file)[self.name].reshape(self.n_rows, self.n_columns)[rows, chosen].clone()
        n_rows, size = rows.stop - rows.start, self.n_columns * self.dtype.itemsize
        first = self.offset + rows.start * size
        skipped = first % ALLOCATIONGRANULARITY
        try:
            with self.file.open("rb") as file:  # unmapped when the last view of it goes
                mapped = mmap(file.fileno(), skipped + n_rows * size, MAP_SHARED | POPULATE, PROT_READ, offset=first - skipped)  # fmt: skip
            numbers = np.frombuffer(mapped, np.uint8, n_rows * size, skipped)
        except (OSError, ValueError) as error:  # a file that has become too short is a ValueError
            _cannot_read(self.file, error)
        every = numbers.view(f"u{self.dtype.itemsize}").reshape(n_rows, self.n_columns)  # of any type: only moved
        part = every.take(columns.numpy(), axis=1) if isinstance(columns, Tensor) else every[:, columns or slice(None)].copy()  # fmt: skip
        return torch.from_numpy(part.view(np.uint8)).view(self.dtype)

    def write(self, rows: slice, block: Tensor) -> None:
        """Overwrite whole rows of the matrix in the file."""
        size = self.n_columns * self.dtype.itemsize
        with self.file.open("r+b", buffering=0) as file:
            data = block.contiguous().view(torch.uint8).numpy().data.cast("B")
            write_all(file.fileno(), data, self.extent[0] + rows.start * size)

    def stretches(self, n_bytes: int) -> Iterator[slice]:
        """Cut the rows of the matrix into parts of about so many bytes."""
        step = max(1, n_bytes // max(1, self.n_columns * self.dtype.itemsize))
        for start in range(0, self.n_rows, step):
            yield slice(start, min(start + step, self.n_rows))


def weight_files(folder: Path) -> tuple[list[Path], Path | None]:
    """The files that transformers loads from a folder, in order, and their index if there is one.

    Raises:
        ModelError: if there are none, one is missing, or the index names a file outside the folder.
    """
    chosen = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if chosen is None:
        raise ModelError("a folder without weights", where=folder, expected=f"one of {', '.join(WEIGHTS)}")
    inside(chosen, folder)
    if chosen.suffix != ".json":
        return [chosen], None
    names = shard_names(chosen)
    for name in names:
        if not (folder / name).is_file():
            raise ModelError("a shard is missing", where=folder / name, expected=f"{len(names)} shards that {chosen.name} names", do="download the checkpoint again")  # fmt: skip
        inside(folder / name, folder)
    return [folder / name for name in names], chosen


def shard_names(index: Path) -> list[str]:
    """The shards that an index names, which are all in its own folder.

    Raises:
        ModelError: if it is damaged, names none, or names a file in another folder.
    """
    suffix = ".bin" if ".bin." in index.name else ".safetensors"
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _damaged(index, f"{type(error).__name__}: {error}", "an index with a weight_map")
    for name in names:
        fits = (
            isinstance(name, str) and len(name) < MAX_NAME and Path(name).name == name and Path(name).suffix == suffix
        )
        if not fits or "\\" in name:
            _damaged(index, f"a shard called {name!r}"[:200], f"the name of a {suffix} file in the same folder")
    if not names:
        _damaged(index, "no shards", "an index that names shards")
    return names


def other_files(folder: Path, weights: list[Path]) -> tuple[list[Path], list[Path]]:
    """What else is in a folder: the files that belong to the checkpoint, and weights in other formats.

    Raises:
        ModelError: if a link leaves the folder, or something is neither a file nor a folder.
    """
    kept: list[Path] = []
    left_out: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - NOT_THE_MODEL)
        for path in sorted(Path(place, name) for name in [*folders, *names]):
            if (path.is_dir() and not path.is_symlink()) or path in weights:
                continue
            if not stat.S_ISREG(inside(path, folder).stat().st_mode):
                raise ModelError("a checkpoint consists of files and folders", where=path, do="move it out of the folder")  # fmt: skip
            (left_out if path.suffix in OTHER_FORMATS or path.name in WEIGHTS else kept).append(path)
    return kept, left_out


def inside(path: Path, folder: Path) -> Path:
    """The file that a path of a folder stands for, links followed; they may not leave the folder.

    In the Hugging Face cache, whose snapshots are links to blobs, they may not leave the repository's cache folder. Those
    of a shipped checkpoint are the installer's (an editable install may consist of links), and may lead anywhere.

    Raises:
        ModelError: if one does, or leads nowhere.
    """
    root = folder.resolve()
    for place in (root, *root.parents):  # of a snapshot, the folder itself or one in it
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
            root = place.parent.parent
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError up to Python 3.12
        _cannot_read(path, error)
    if not real.is_relative_to(root) and folder.resolve().parent != CHECKPOINTS.resolve():
        raise ModelError("a link that leaves the checkpoint's folder", where=path, got=real, expected=f"a file inside {root}", do="put the file itself there")  # fmt: skip
    return real


def stored_tensors(file: Path) -> dict[str, Stored]:
    """The tensors of a weight file, by name; only its header is read.

    Raises:
        ModelError: if it is damaged, cut off, or a `.bin` with more than tensors in it.
    """
    if file.suffix == ".bin":
        return {name: Stored(file, name, tensor.dtype, tuple(tensor.shape), None) for name, tensor in load_bin(file).items()}  # fmt: skip
    try:
        with safe_open(file, framework="pt"):  # checks that types, shapes and offsets agree and fill the file
            pass
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            header: dict[str, Any] = json.loads(opened.read(length))
    except (OSError, SafetensorError, ValueError, struct.error, RecursionError) as error:
        _cannot_read(file, error)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
            if dtype is None:
                dtype, shape = torch.uint8, (last - first,)
            found[name] = Stored(file, name, dtype, shape, 8 + length + first)
    return found


def load_bin(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin`, mapped, not read; nothing in it is executed.

    Raises:
        ModelError: if it holds anything but tensors, or was written by torch before 1.6.
    """
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        _cannot_read(file, error, "load it with transformers and save it again with save_pretrained")
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) and isinstance(n, str) for n, t in tensors.items()):  # fmt: skip
        _damaged(file, "something else", "tensors by name")
    return tensors


def mapped(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, mapped, not read.

    Raises:
        ModelError: if it is damaged, cut off, or a `.bin` with more than tensors in it.
    """
    if file.suffix == ".bin":
        return load_bin(file)
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        _cannot_read(file, error)
    return tensors


def _cannot_read(file: Path, error: Exception, do: str = "get the file again") -> NoReturn:
    got = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
    raise ModelError("cannot read this weight file", where=file, got=got, do=do) from error


def _damaged(file: Path, got: str, expected: str) -> NoReturn:
    raise ModelError("a damaged checkpoint", where=file, got=got[:200], expected=expected, do="get the file again")
