"""Patches as PEFT LoRA adapters, and back.

A LoRA adds lora_B @ lora_A to a weight `[d_model, d_ffn]`, of which neuron i's output vector is column i. So a one-hot
row i of lora_A beside Δw_i as a column of lora_B adds exactly Δw_i, and nothing to any other neuron.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from mmedit.errors import PatchError
from mmedit.files import replacing
from mmedit.models.architecture import WOut, architecture_of, bare_model
from mmedit.patches.base import Base, matrix_digest
from mmedit.patches.checkpoint import names_in_memory
from mmedit.patches.format import are_edits, check_size, read_json
from mmedit.patches.hub import model_card
from mmedit.patches.live import Stack
from mmedit.patches.lora_check import check_adapter
from mmedit.patches.new_folder import new_folder
from mmedit.patches.patch import Patch

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM serves; it takes one per adapter."""
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
EDITS = "mmedit_edits"  # metadata of WEIGHTS that PEFT and vLLM pass over
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_OTHER_MATHS = (  # settings of PEFT with which a LoRA is more, or other, than scaling · lora_B @ lora_A
    "use_dora", "use_qalora", "use_bdlora", "rank_pattern", "alpha_pattern", "layer_replication", "arrow_config",
    "alora_invocation_tokens", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
MAX_CONFIG = 2**20  # bytes
Pair = tuple[Tensor, Tensor]  # lora_A [r, d_ffn], lora_B [d_model, r]


@dataclass(frozen=True)
class LoraExport:
    """What was written as an adapter, and what the check of it measured.

    Args:
        rank: of the adapter, the same for every module.
        target_modules: full paths of the modules that it changes.
        moved: how far the patch moves the logits of a short text, at most.
        off: how far the adapter's logits lie from the patch's there, at most.
    """

    rank: int
    target_modules: tuple[str, ...]
    moved: float
    off: float


def to_lora(patch: Patch, folder: str | Path, vlm: Any = None) -> LoraExport:
    """Write a patch as a PEFT adapter; see `Patch.to_lora`.

    Example:
        >>> import mmedit, tempfile
        >>> vlm, site, units = mmedit.load("iconworld-llava"), mmedit.Site(2), torch.tensor([7])
        >>> rows = Stack.of(vlm).base_rows(site, units)
        >>> patch = Patch({site: (units, torch.ones(1, 128))}, {site: rows}, Base.of(vlm))
        >>> folder = Path(tempfile.mkdtemp(), "adapter")
        >>> patch.to_lora(folder, vlm).target_modules
        ('model.language_model.layers.2.mlp.down_proj',)
        >>> Patch.from_lora(folder, vlm).digest == patch.digest
        True
    """
    rank = _rank(patch)
    with new_folder(folder) as part:
        if vlm is None:
            from mmedit.models.loading import load

            vlm = load(patch.base.model, revision=patch.base.revision)
        targets = _targets(patch, vlm)
        _write(patch, rank, targets, part, vlm)
        return LoraExport(rank, tuple(sorted(targets)), *check_adapter(patch, part, vlm))


def from_lora(folder: str | Path, vlm: Any) -> Patch:
    """Read a PEFT adapter as a patch; see `Patch.from_lora`."""
    folder, architecture, stack = Path(folder), architecture_of(vlm), Stack.of(vlm)
    paths = {w_out.name.removesuffix(".weight"): w_out for w_out in architecture.w_outs.values()}
    (rank, scaling), (pairs, edits) = _scaling(folder / CONFIG), _pairs(folder / WEIGHTS)
    deltas, low_rank, base_rows, base_digests = {}, {}, {}, {}
    for path, (a, b) in _named_as_today(pairs, paths, bare_model(vlm)).items():
        w_out = _target(paths, path, rank, a, b)
        architecture.require_editable(w_out.site)
        units = a.any(0).nonzero().flatten()
        if len(units) > len(a):
            used = a.any(1) & b.any(0)
            low_rank[w_out.site] = scaling * a[used].T.contiguous(), b[:, used].T.contiguous()
            base_digests[w_out.site] = matrix_digest(stack.base_rows(w_out.site, torch.arange(w_out.d_ffn)))
        elif len(units):
            deltas[w_out.site] = units, scaling * _rows(a[:, units], b)
            base_rows[w_out.site] = stack.base_rows(w_out.site, units)
    hparams = {"rank": rank, "scaling": scaling}
    return Patch(deltas, base_rows, Base.of(vlm), "LoRA", hparams, edits, low_rank=low_rank, base_digests=base_digests)


def _named_as_today(pairs: dict[str, Pair], paths: dict[str, WOut], model: Any) -> dict[str, Pair]:
    """The factors by the module paths of today; adapters from before transformers 5 have those of LLaVA's checkpoints."""
    old = [path for path in pairs if path not in paths]
    names = names_in_memory(model, [f"{path}.weight" for path in old])
    today = {path: names[f"{path}.weight"][0].removesuffix(".weight") for path in old}
    found = {today.get(path, path): pair for path, pair in pairs.items()}
    if len(found) < len(pairs):
        raise PatchError(
            "an adapter that names a module twice", got=", ".join(sorted(pairs))[:200], expected="each once"
        )
    return found


def _target(paths: dict[str, WOut], path: str, rank: int, a: Tensor, b: Tensor) -> WOut:
    """The W_out that an adapter's module path names, if the factors fit it."""
    if path not in paths:
        raise PatchError(
            "the adapter changes a module that is no W_out of this model", got=path[:200], expected=f"one like {next(iter(paths))}",
            do="give the model that the adapter was made for",
        )  # fmt: skip
    w_out = paths[path]
    got, expected = ([*a.shape], [*b.shape]), ([rank, w_out.d_ffn], [w_out.d_model, rank])
    if got != expected:
        raise PatchError("an adapter of the wrong shape", where=path, got=got, expected=expected)
    return w_out


def _scaling(path: Path) -> tuple[int, float]:
    """The rank, and what lora_B @ lora_A is multiplied with, from the adapter's configuration."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(f"more than {MAX_CONFIG} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in _OTHER_MATHS if config.get(key)] + ["bias"] * (config.get("bias", "none") != "none")
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if config["peft_type"] != "LORA" or other or rank < 1 or not math.isfinite(scaling):
            raise ValueError(f"peft_type {config['peft_type']}, {', '.join(other)}, scaling {scaling}")
    except (OSError, RecursionError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise PatchError(
            "not a plain LoRA adapter", where=path, got=f"{type(error).__name__}: {error}"[:200],
            expected="what PEFT writes for LoraConfig"
        ) from error  # fmt: skip
    return rank, scaling


def _pairs(path: Path) -> tuple[dict[str, Pair], tuple[dict[str, Any], ...]]:
    """lora_A `[r, in]` and lora_B `[out, r]` in float32 by module path, and the concept swaps if mmedit noted any."""
    check_size(path)
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            edits = read_json((file.metadata() or {}).get(EDITS, "[]"))
            for key in file.keys():  # noqa: SIM118 (not a dict)
                match = _KEY.fullmatch(key)
                part = file.get_slice(key)
                if not match or len(part.get_shape()) != 2 or part.get_dtype() not in ("F32", "F16", "BF16"):
                    raise PatchError("not a part of a plain LoRA adapter", where=path, got=key[:200])
                found.setdefault(match[1], {})[match[2]] = file.get_tensor(key).float()
        pairs = {name: (pair["A"], pair["B"]) for name, pair in found.items()}
    except (OSError, SafetensorError, RecursionError, LookupError, ValueError) as error:
        raise PatchError(
            "cannot read this adapter", where=path, got=str(error)[:200], expected="lora_A and lora_B of each module"
        ) from error  # fmt: skip
    return pairs, tuple(edits) if are_edits(edits) else ()


def _rows(a: Tensor, b: Tensor) -> Tensor:
    """What A `[r, k]` and B `[d_model, r]` add to k neurons, `[k, d_model]`; of a one-hot A the very columns of B."""
    one_hot = bool(((a != 0).sum(0) == 1).all()) and bool((a.amax(0) == 1).all())
    return (b[:, a.argmax(0)] if one_hot else b @ a).T.contiguous()


def _rank(patch: Patch) -> int:
    """The smallest rank of vLLM's list that holds every site."""
    needed = {
        site: len(patch.low_rank[site][1]) if site in patch.low_rank else len(patch.units(site)) for site in patch.sites
    }
    site = max(needed, key=lambda s: needed[s])
    if needed[site] > RANKS[-1]:
        raise PatchError(
            "too many neurons of one layer for an adapter", where=str(site), got=needed[site],
            expected=f"at most {RANKS[-1]}, the highest rank that vLLM serves", do="bake the patch into a checkpoint instead",
        )  # fmt: skip
    return next(rank for rank in RANKS if rank >= needed[site])


def _targets(patch: Patch, vlm: Any) -> dict[str, WOut]:
    """The edited W_outs by the module path under which PEFT finds them."""
    for site in patch.sites:
        if isinstance(site.expert, int):
            raise PatchError(
                "an expert of a fused mixture is no module of its own, which a LoRA adapter needs", where=str(site),
                do="bake the patch into a checkpoint instead",
            )  # fmt: skip
    Stack.of(vlm).check(patch)
    w_outs = (architecture_of(vlm).w_out(site) for site in patch.sites)
    return {w_out.name.removesuffix(".weight"): w_out for w_out in w_outs}


def _factors(patch: Patch, w_out: WOut) -> tuple[Tensor, Tensor]:
    """lora_A `[k, d_ffn]` and lora_B `[d_model, k]` of a site."""
    if w_out.site in patch.low_rank:
        left, right = patch.low_rank[w_out.site]
        return left.T, right.T
    units, rows = patch.deltas[w_out.site]
    a = torch.zeros(len(units), w_out.d_ffn)
    a[torch.arange(len(units)), units] = 1
    return a, rows.T


def _write(patch: Patch, rank: int, targets: dict[str, WOut], folder: Path, vlm: Any) -> None:
    """The three files of an adapter."""
    from peft import LoraConfig

    tensors = {}
    for path, w_out in targets.items():
        a, b = _factors(patch, w_out)
        tensors[_key(path, "A")] = pad(a, (0, 0, 0, rank - len(a))).contiguous()
        tensors[_key(path, "B")] = pad(b, (0, rank - len(a))).contiguous()
    with replacing(folder / WEIGHTS) as file:  # which sees to the permissions, too
        save_file(tensors, file, {"format": "pt", EDITS: json.dumps([dict(edit) for edit in patch.edits])})
    model = type(bare_model(vlm))
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(targets), base_model_name_or_path=patch.base.model, revision=patch.base.revision,
        fan_in_fan_out=all(isinstance(w_out.module, Conv1D) for w_out in targets.values()), inference_mode=True,
        auto_mapping={"base_model_class": model.__name__, "parent_library": model.__module__},
    ).to_dict()  # fmt: skip
    config["target_modules"] = sorted(targets)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(patch, library="peft"), encoding="utf-8")


def _key(path: str, factor: str) -> str:
    return f"base_model.model.{path}.lora_{factor}.weight"
