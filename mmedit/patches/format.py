"""Patch files, format 1: a safetensors file whose tensors are rows and whose metadata is JSON.

Everything is checked against the header before a tensor is read, so a stranger's file costs no more than its size.
"""

from __future__ import annotations

import json
import re
import struct
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmedit.errors import PatchError
from mmedit.files import replacing
from mmedit.neuron import Expert, Site
from mmedit.patches.base import Base
from mmedit.patches.patch import Patch

FORMAT, VERSION = "mmedit-patch", "1"
MAX_HEADER = 2 * 2**20  # bytes; Python objects made of JSON take up to 50 times its size
MAX_FILE = 4 * 2**30  # bytes
MAX_DEPTH = 32  # of JSON, so that whoever walks through it may be recursive
_KEY = re.compile(r"layers\.(\d{1,5})(?:\.experts\.(\d{1,5})|\.(shared))?\.w_out\.(units|delta|base|left|right)")
_DTYPES = {"units": {"I64"}, "delta": {"F32"}, "base": {"F32", "BF16", "F16"}, "left": {"F32"}, "right": {"F32"}}
_ROW_SPARSE, _LOW_RANK = {"units", "delta", "base"}, {"left", "right"}


def save_patch(patch: Patch, path: str | Path) -> None:
    """Write a patch; see `Patch.save`."""
    tensors: dict[str, Tensor] = {}
    for site, (units, rows) in patch.deltas.items():
        tensors |= {
            f"{site.key}.w_out.units": units,
            f"{site.key}.w_out.delta": rows,
            f"{site.key}.w_out.base": patch.base_rows[site],
        }
    for site, (left, right) in patch.low_rank.items():
        tensors |= {f"{site.key}.w_out.left": left, f"{site.key}.w_out.right": right}
    metadata = {
        "format": FORMAT, "format_version": VERSION, "library_version": patch.library_version, "base": asdict(patch.base), "editor": patch.editor,
        "hparams": dict(patch.hparams), "edits": [dict(edit) for edit in patch.edits], "created": patch.created,
    }  # fmt: skip
    if patch.low_rank:
        metadata["base_digests"] = {site.key: digest for site, digest in patch.base_digests.items()}
    if patch.evaluation is not None:
        metadata["evaluation"] = dict(patch.evaluation)
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in metadata.items()
    }
    with replacing(path) as part:
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, part, texts)  # none shared
        check_size(part)


def load_patch(path: str | Path) -> Patch:
    """Read a patch; see `Patch.load`."""
    path = Path(path)
    try:
        check_size(path)
        with safe_open(path, framework="pt") as file:
            metadata = _metadata(file.metadata() or {}, path)
            sites = _sites(file, path)
            read = {s: {part: file.get_tensor(f"{s.key}.w_out.{part}") for part in parts} for s, parts in sites.items()}
        rows = {site: parts for site, parts in read.items() if "units" in parts}
        deltas = {site: (parts["units"], parts["delta"]) for site, parts in rows.items()}
        low_rank = {site: (parts["left"], parts["right"]) for site, parts in read.items() if "left" in parts}
        digests = metadata.pop("base_digests")
        return Patch(
            deltas,
            {site: parts["base"] for site, parts in rows.items()},
            low_rank=low_rank,
            base_digests={site: digests[site.key] for site in low_rank if site.key in digests},
            **metadata,
        )
    except PatchError as error:
        if error.where is None or str(path) not in str(error.where):
            error.where = path if error.where is None else f"{path}, {error.where}"
        raise
    except (OSError, SafetensorError, RecursionError, MemoryError, ValueError) as error:
        raise PatchError(
            "cannot read this patch",
            where=path,
            got=str(error)[:200],
            expected="a file written by Patch.save",
            do="get the file again",
        ) from error


def check_size(path: Path) -> None:
    """Raise PatchError unless this is a file whose header and size are those of a safetensors file, and bearable."""
    if not path.is_file():
        raise PatchError("no such patch", got="a folder" if path.is_dir() else "nothing there", do="check the path")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else None
    if header is None or header > size - 8:
        raise PatchError(
            "not a patch, or one that was cut off",
            got=f"{size} bytes, of which the header claims {header}",
            expected="a safetensors file",
            do="get the file again",
        )
    if header > MAX_HEADER or size > MAX_FILE:
        raise PatchError(
            "too large for a patch",
            got=f"{size:,} bytes with a header of {header:,}",
            expected=f"at most {MAX_FILE:,} with a header of {MAX_HEADER:,}",
        )


def _metadata(texts: dict[str, str], path: Path) -> dict[str, Any]:
    """The metadata as arguments of Patch."""
    if texts.get("format") != FORMAT:
        raise PatchError("not an mmedit patch", where=path, got=f"format {texts.get('format')!r}", expected=FORMAT)
    if texts.get("format_version") != VERSION:
        raise PatchError(
            "a patch of another format version",
            where=path,
            got=texts.get("format_version"),
            expected=VERSION,
            do="update mmedit",
        )
    try:
        values = {key: read_json(texts[key]) for key in ("base", "hparams", "edits")}
        evaluation = read_json(texts["evaluation"]) if "evaluation" in texts else None
        digests = read_json(texts.get("base_digests", "{}"))
        base, types = {"weights": "", **values["base"]}, {field.name: field.type for field in fields(Base)}
        wrong = [key for key, kind in types.items() if not _fits(base[key], str(kind))]
    except (KeyError, TypeError, ValueError) as error:
        raise PatchError(
            "a patch with damaged metadata", where=path, got=f"{type(error).__name__}: {error}"[:200]
        ) from error
    if wrong or set(base) - set(types):
        raise PatchError(
            "a patch with a damaged description of its base", where=path, got=wrong or sorted(set(base) - set(types))
        )
    if (
        not are_edits(values["edits"])
        or not isinstance(values["hparams"], dict)
        or not isinstance(evaluation, dict | None)
        or not _are_texts(digests)
    ):
        raise PatchError(
            "a patch with damaged metadata",
            where=path,
            got="edits, hparams, evaluation or digests of another form, or words with control characters",
        )
    names = {key: texts.get(key, "") for key in ("editor", "created", "library_version")}
    if not _are_lines([*names.values(), base["model"], base["revision"] or "", base["model_type"], base["weights"]]):
        raise PatchError(
            "a patch whose names hold control characters", where=path, expected="names in one printed line"
        )
    names["library_version"] = names["library_version"] or "unknown"
    return {
        "base": Base(**base), "hparams": values["hparams"], "edits": tuple(values["edits"]), "evaluation": evaluation, "base_digests": digests,
        **names,
    }  # fmt: skip


def read_json(text: str) -> Any:
    """The value of a stranger's JSON text; ValueError where it is nested deeply, or holds half a character, which cannot be printed."""
    value = json.loads(text)
    if _is_deep(value, MAX_DEPTH):
        raise ValueError(f"JSON that is nested more than {MAX_DEPTH} deep")
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _is_deep(value: Any, left: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (left == 0 or any(_is_deep(item, left - 1) for item in inner))


def _are_lines(texts: Iterable[str]) -> bool:
    """Whether texts can be shown in a terminal without moving its cursor or worse."""
    return not any(unicodedata.category(character) == "Cc" for text in texts for character in text)


def are_edits(value: Any) -> bool:
    """Whether a JSON value is a list of concept swaps, whose words can be shown."""
    return isinstance(value, list) and all(
        isinstance(e, dict)
        and isinstance(e.get("source"), str)
        and isinstance(e.get("target"), str)
        and _are_lines((e["source"], e["target"]))
        for e in value
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _fits(value: Any, kind: str) -> bool:
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    return isinstance(value, str) or (value is None and "None" in kind)


def _sites(file: Any, path: Path) -> dict[Site, set[str]]:
    """The sites of a file, each with all its tensors, of the right types and of plausible shapes."""
    parts: dict[Site, set[str]] = {}
    for key in file.keys():  # noqa: SIM118 (not a dict)
        found = _KEY.fullmatch(key)
        if not found:
            raise PatchError(
                "a tensor that does not belong in a patch",
                where=path,
                got=key[:200],
                expected="layers.N.w_out.units, .delta, .base, .left or .right",
            )
        layer, expert, shared, part = found.groups()
        which: Expert = "shared" if shared else None if expert is None else int(expert)
        described = file.get_slice(key)
        if described.get_dtype() not in _DTYPES[part]:
            raise PatchError(
                "a tensor of the wrong type",
                where=f"{path}, {key}",
                got=described.get_dtype(),
                expected=" or ".join(sorted(_DTYPES[part])),
            )
        parts.setdefault(Site(int(layer), which), set()).add(part)
    for site, present in parts.items():
        if present not in (_ROW_SPARSE, _LOW_RANK):
            raise PatchError(
                "a site without all its tensors",
                where=f"{path}, {site}",
                got=sorted(present),
                expected=f"{sorted(_ROW_SPARSE)} or {sorted(_LOW_RANK)}",
            )
    return parts
