"""Baking a 4 GB LLaVA against `cp -r` of the same folder: wall time, and peak memory against an idle mmedit.

    python tests/benchmarks/bake.py [--folder DIR] [--repeats 5] [--cold]

The checkpoint has LLaVA-1.5-7B's widths and names in bfloat16 and 7 of its 32 layers, in shards of 1 GB. One patch is of
the paper's size, 5 neurons; a heavy one changes 5 rows in every layer. Imports are not counted. Baking puts everything on the disk before the folder appears, `cp` does not; so there is a
second row for `cp -r` followed by `sync`. Runs take turns; before each, dirty pages are written out and the source is read
once (or, with --cold, the page cache is dropped, which takes root).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

import mmedit
from mmedit.patches.checkpoint import open_checkpoint

N_LAYERS, SHARD, MIB = 7, 10**9, 2**20
TARGET_RATIO, TARGET_MEMORY = 1.2, 400
ON_DISK = (("model.language_model.", "language_model.model."), ("lm_head", "language_model.lm_head"), ("model.", ""))
CHILD = """
import sys, time, resource, json
import torch, mmedit, mmedit.patches.bake as b, mmedit.patches.checkpoint, huggingface_hub
from transformers import CLIPVisionModel, LlamaModel, LlavaForConditionalGeneration, conversion_mapping
patch = mmedit.Patch.load(sys.argv[1])
seconds = 0.0
if len(sys.argv) > 2:
    start = time.perf_counter()
    mmedit.bake(sys.argv[2], [patch], sys.argv[3])
    seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([seconds, peak / 1024]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder beside the current one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each run (needs root)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder or Path.cwd(), prefix="bake-benchmark-") as folder:
        source, target = Path(folder, "llava"), Path(folder, "out")
        size = make_checkpoint(source)
        ways: dict[str, Callable[[], float]] = {
            "cp -r": lambda: copy(source, target),
            "cp -r, sync": lambda: copy(source, target, sync=True),
        }
        peaks = []
        for name, n_rows, layers in (("bake, 5 rows", 1, range(2, 7)), ("bake, 5 a layer", 5, range(N_LAYERS))):
            file = Path(folder, f"{name}.safetensors")
            make_patch(source, n_rows, layers).save(file)

            def bake(file: Path = file) -> float:
                seconds, peak = child(file, source, target)
                peaks.append(peak)
                return seconds

            ways[name] = bake
        idle, runs = child(file)[1], {name: list[float]() for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                settle(source, options.cold)
                runs[name].append(way())
                shutil.rmtree(target)
        report(size, runs, max(peaks) - idle, idle, options.cold)


def report(size: int, runs: dict[str, list[float]], memory: float, idle: float, cold: bool) -> None:
    """A table, and one JSON line for each claim."""
    medians = {name: statistics.median(seconds) for name, seconds in runs.items()}
    print(f"{size / 1e9:.2f} GB, {'cold' if cold else 'warm'} cache, {len(runs['cp -r'])} repeats")
    print(f"{'':<16} {'median s':>9} {'min s':>7} {'max s':>7} {'GB/s':>6}")
    for name, seconds in runs.items():
        print(f"{name:<16} {medians[name]:>9.2f} {min(seconds):>7.2f} {max(seconds):>7.2f} {size / 1e9 / medians[name]:>6.2f}")  # fmt: skip
    print(f"peak memory of a bake: {memory:.0f} MiB over an idle mmedit's {idle:.0f} MiB")
    for name, other in itertools.product(list(runs)[2:], list(runs)[:2]):
        ratio = medians[name] / medians[other]
        detail = {"bytes": size, "cache": "cold" if cold else "warm", "seconds": runs}
        print(json.dumps({"name": f"{name} / {other}", "ratio": round(ratio, 3), "target": TARGET_RATIO, "met": ratio <= TARGET_RATIO, "detail": detail}))  # fmt: skip
    print(json.dumps({"name": "bake, MiB over idle", "ratio": round(memory, 1), "target": TARGET_MEMORY, "met": memory <= TARGET_MEMORY, "detail": {"idle": idle}}))  # fmt: skip


def make_checkpoint(folder: Path) -> int:
    """Write the synthetic checkpoint; its size in bytes."""
    tower = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14, projection_dim=768)  # fmt: skip
    text = LlamaConfig(vocab_size=32064, num_hidden_layers=N_LAYERS, tie_word_embeddings=False)
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=32000, tie_word_embeddings=False, dtype="bfloat16")  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    config.save_pretrained(folder)
    shards = list(cut_into_shards({n: tuple(t.shape) for n, t in model.state_dict().items()}))
    weight_map, noise = {}, torch.empty(32064 * 4096, dtype=torch.bfloat16).normal_(0, 0.02)
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: noise[: torch.Size(shape).numel()].reshape(shape).clone() for name, shape in shapes.items()}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))  # fmt: skip
    return total


def cut_into_shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Tensors by their names on disk, in parts of about SHARD bytes."""
    part: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        old, new = next((pair for pair in ON_DISK if name.startswith(pair[0])), ("", ""))
        part[new + name.removeprefix(old)] = shape
        size += 2 * torch.Size(shape).numel()
        if size > SHARD:
            yield part
            part, size = {}, 0
    yield part


def make_patch(folder: Path, n_rows: int, layers: Iterable[int]) -> mmedit.Patch:
    """A few rows of some layers."""
    checkpoint = open_checkpoint(folder)
    deltas, base = {}, {}
    for site in map(mmedit.Site, layers):
        units = torch.randperm(11008)[:n_rows].sort().values
        deltas[site] = units, torch.randn(n_rows, 4096) * 0.01
        base[site] = torch.cat([checkpoint.w_out(site).read(slice(u, u + 1)) for u in units.tolist()])
    return mmedit.Patch(deltas, base, checkpoint.base, "benchmark")


def child(*arguments: Path) -> tuple[float, float]:
    """Seconds and peak MiB of a bake, or of an idle process that has imported the same, in a process of its own."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", CHILD, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def copy(source: Path, target: Path, sync: bool = False) -> float:
    """Seconds of `cp -r`, with what it wrote on the disk if asked for."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    if sync:
        subprocess.run(["sync", *(path for path in target.iterdir())], check=True)
    return time.perf_counter() - start


def settle(source: Path, cold: bool) -> None:
    """Nothing left to write, and the source's pages all in memory, or none."""
    os.sync()
    if cold:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    else:
        for path in source.iterdir():
            with path.open("rb", buffering=0) as file:
                while file.read(64 * MIB):
                    pass


if __name__ == "__main__":
    main()
