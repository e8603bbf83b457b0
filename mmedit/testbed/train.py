"""Train an IconWorld checkpoint from scratch: `python -m mmedit.testbed.train --out runs/iconworld-llava`.

First the vision tower learns to name what each of its patches shows (its heads are thrown away), then the whole model
learns to caption and to answer. To look a thing up by its name it learns from colours alone, within minutes; among other
questions it had not after an hour. Last, it is asked everything.
Every stage saves its state as it goes, and the same command resumes where it stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from tqdm import trange
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mmedit.testbed.batches import IGNORED, BatchMaker, colours, many_questions, patch_labels, pixel_values
from mmedit.testbed.checkpoint import build_llava, build_processor
from mmedit.testbed.world import COLOURS, GROUNDS, NOUNS, render


@dataclass(frozen=True)
class TrainSettings:
    """What decides the result of a training run, apart from rounding."""

    seed: int = 0
    pictures: int = 48  # per step
    fact_rows: int = 3  # rows of ten text-only exchanges, per step
    tower_steps: int = 2000
    steps: int = 4000
    lookup_steps: int = 300
    question_steps: int = 1000
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    bf16: bool = True  # autocast of the matrix products; the weights stay float32


def tower_loss(
    model: LlavaForConditionalGeneration, heads: nn.ModuleList, maker: BatchMaker, step: int, device: str
) -> Tensor:
    """Cross-entropy of what each patch shows: thing, colour, and the ground of the whole picture."""
    scenes = maker.scenes(step)
    pixels = pixel_values(maker.processor, [render(drawn)[0] for drawn in scenes]).to(device)
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[
        model.config.vision_feature_layer
    ][:, 1:]
    noun, colour, ground = (label.to(device) for label in patch_labels(scenes))
    of_noun, of_colour, of_ground = (
        head(x) for head, x in zip(heads, (features, features, features.mean(1)), strict=True)
    )
    loss = nn.functional.cross_entropy
    return (
        loss(of_noun.flatten(0, 1), noun.flatten())
        + loss(of_colour.flatten(0, 1), colour.flatten())
        + 0.1 * loss(of_ground, ground)
    )


def answer_loss(model: LlavaForConditionalGeneration, maker: BatchMaker, step: int, device: str) -> Tensor:
    """Cross-entropy of the answers' tokens and nothing else."""
    batch = maker.batch(step).to(device)
    hidden = model.model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        attention_mask=batch.mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    asked = batch.labels != IGNORED
    return nn.functional.cross_entropy(model.lm_head(hidden[asked]), batch.labels[asked])


def run_stage(
    name: str,
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    n_steps: int,
    settings: TrainSettings,
    out: Path,
    device: str,
) -> None:
    """Optimise one stage with AdamW, warm-up and linear decay to zero; resumes from `out/<name>.pt`."""
    optimizer = torch.optim.AdamW(
        module.parameters(), settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / settings.warmup, 1 - i / n_steps))
    state_file, start, log = out / f"{name}.pt", 0, out / f"{name}.jsonl"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start = state["step"]
    recent = math.nan
    for step in (bar := trange(start, n_steps, initial=start, total=n_steps, desc=name)):
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=settings.bf16):
            loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent = loss.item() if math.isnan(recent) else 0.98 * recent + 0.02 * loss.item()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{recent:.4f}")
        if (step + 1) % 100 == 0 or step + 1 == n_steps:
            with log.open("a") as file:
                file.write(json.dumps({"step": step + 1, "loss": recent, "time": time.time()}) + "\n")
            state = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
            }
            torch.save(state, part := state_file.with_suffix(".part"))
            part.replace(state_file)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Path) -> None:
    """Write the checkpoint: weights in half precision, to be computed with in single (`dtype` in config.json)."""
    half = build_llava(processor)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out)
    processor.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(out: Path, settings: TrainSettings, device: str) -> Iterator[str]:
    """Run the stages and save the checkpoint in `out`, yielding the name of each stage when it is done."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "training.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
    processor = build_processor()
    model = build_llava(processor, settings.seed).to(device).train()
    width = model.config.vision_config.hidden_size
    heads = nn.ModuleList(nn.Linear(width, n) for n in (1 + len(NOUNS), 1 + len(COLOURS), len(GROUNDS))).to(device)
    tower = nn.ModuleList([model.model.vision_tower, heads])
    plain = BatchMaker(processor, settings.pictures, settings.fact_rows)
    paired = BatchMaker(processor, settings.pictures, 0, colours, ("beside", "above"))
    asking = BatchMaker(processor, settings.pictures, settings.fact_rows, many_questions)

    def answers(maker: BatchMaker, first: int) -> Callable[[int], Tensor]:
        return lambda step: answer_loss(model, maker, first + step, device)

    ends = list(accumulate((settings.tower_steps, settings.steps, settings.lookup_steps)))  # new pictures at each stage
    stages: list[tuple[str, nn.Module, Callable[[int], Tensor], int]] = [
        ("tower", tower, lambda step: tower_loss(model, heads, plain, step, device), settings.tower_steps),
        ("model", model, answers(plain, ends[0]), settings.steps),
        ("lookup", model, answers(paired, ends[1]), settings.lookup_steps),
        ("questions", model, answers(asking, ends[2]), settings.question_steps),
    ]
    for name, module, loss_at, n_steps in stages:
        run_stage(name, module, loss_at, n_steps, settings, out, device)
        yield name
    save(model, processor, out / "checkpoint")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the state, the log and the finished checkpoint.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the first weights.")] = 0,
    tower_steps: Annotated[int, typer.Option(help="Steps of the tower's warm-up.")] = TrainSettings.tower_steps,
    steps: Annotated[int, typer.Option(help="Steps of the whole model.")] = TrainSettings.steps,
    lookup_steps: Annotated[int, typer.Option(help="Steps on colours alone.")] = TrainSettings.lookup_steps,
    question_steps: Annotated[int, typer.Option(help="Steps with all questions.")] = TrainSettings.question_steps,
    pictures: Annotated[int, typer.Option(help="Pictures per step.")] = TrainSettings.pictures,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = TrainSettings.bf16,
) -> None:
    """Train IconWorld's LLaVA from scratch; run again to resume."""
    settings = TrainSettings(
        seed=seed, tower_steps=tower_steps, steps=steps, lookup_steps=lookup_steps, question_steps=question_steps,
        pictures=pictures, bf16=bf16,
    )  # fmt: skip
    for stage in train(out, settings, device):
        typer.echo(f"{stage} done")


if __name__ == "__main__":
    typer.run(main)
