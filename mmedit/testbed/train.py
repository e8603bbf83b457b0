"""Train an IconWorld checkpoint: `python -m mmedit.testbed.train iconworld-llava --out runs/iconworld-llava`.

First what the model sees learns to name what each patch shows (the heads for it are thrown away), then the model learns to
caption and to answer. To look a thing up by its name it learns from colours alone, within minutes; among other questions it
had not after an hour. Last, it is asked everything. Every stage saves its state as it goes, and the same command resumes
where it stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from tqdm import trange

from mmedit.errors import RequestError
from mmedit.testbed.batches import IGNORED, BatchMaker, colours, many_questions, one_caption
from mmedit.testbed.checkpoint import LLAVA, Family
from mmedit.testbed.instructblip import INSTRUCTBLIP
from mmedit.testbed.mplug_owl2 import MPLUG_OWL2
from mmedit.testbed.seeing import PatchHeads, PatchLabels

FAMILIES = {"iconworld-llava": LLAVA, "iconworld-instructblip": INSTRUCTBLIP, "iconworld-mplug-owl2": MPLUG_OWL2}
"""What can be trained, by name."""


@dataclass(frozen=True)
class TrainSettings:
    """What decides the result of a training run, apart from rounding."""

    seed: int = 0
    pictures: int = 48  # per step, up to the captions
    question_pictures: int = 48  # per step, where there are questions
    fact_rows: int = 3  # rows of ten text-only exchanges, per step
    tower_steps: int = 2000
    caption_steps: int = 0
    steps: int = 4000
    lookup_steps: int = 300
    question_steps: int = 1000
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    bf16: bool = True  # autocast of the matrix products; the weights stay float32


FROM_LLAVA = TrainSettings(
    question_pictures=24, fact_rows=1, tower_steps=800, caption_steps=1000, steps=600, lookup_steps=0, question_steps=0
)  # fmt: skip
SETTINGS = {
    "iconworld-llava": TrainSettings(), "iconworld-instructblip": FROM_LLAVA,
    "iconworld-mplug-owl2": replace(FROM_LLAVA, tower_steps=600, caption_steps=500),
}  # fmt: skip
"""With which settings each is trained; those that begin with the parts of iconworld-llava need less."""


def settings_of(name: str) -> TrainSettings:
    """The settings of a checkpoint.

    Raises:
        RequestError: if there is no such checkpoint.
    """
    if name not in SETTINGS:
        raise RequestError("no such checkpoint to train", got=repr(name), expected=", ".join(SETTINGS))
    return SETTINGS[name]


def seeing_loss(family: Family, model: Any, heads: nn.ModuleList, maker: BatchMaker, step: int, device: str) -> Tensor:
    """How badly what the model sees tells the things and colours apart, summed over the places where it must."""
    pixels, labels = maker.labelled(step)
    labels = PatchLabels(*(label.to(device) for label in labels))
    seen = family.features(model, pixels.to(device))
    return torch.stack([head(features, labels) for head, features in zip(heads, seen, strict=True)]).sum()


def answer_loss(family: Family, model: Any, maker: BatchMaker, step: int, device: str) -> Tensor:
    """Cross-entropy of the answers' tokens and nothing else."""
    batch = maker.batch(step).to(device)
    logits = model.get_output_embeddings()(family.hidden_states(model, batch))
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)


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


def save(family: Family, model: Any, processor: Any, out: Path) -> None:
    """Write the checkpoint: weights in half precision, to be computed with in single (`dtype` in config.json)."""
    half = family.build_model(processor, 0)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out)
    processor.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    for part in (config, *(value for key, value in config.items() if key.endswith("_config"))):
        part["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(name: str, out: Path, settings: TrainSettings, device: str) -> Iterator[str]:
    """Run the stages and save the checkpoint in `out`, yielding the name of each stage when it is done."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "training.json").write_text(json.dumps({"name": name, **asdict(settings)}, indent=2) + "\n")
    family = FAMILIES[name]
    processor = family.build_processor()
    model = family.build_model(processor, settings.seed)
    captioning = BatchMaker(family, processor, settings.pictures, 0, one_caption)
    plain = BatchMaker(family, processor, settings.question_pictures, settings.fact_rows)
    paired = BatchMaker(family, processor, settings.question_pictures, 0, colours, ("beside", "above"))
    asking = BatchMaker(family, processor, settings.question_pictures, settings.fact_rows, many_questions)
    pixels, _ = captioning.labelled(0)
    family.begin(model, pixels)
    with torch.no_grad():
        heads = nn.ModuleList(PatchHeads(*features.shape[1:]) for features in family.features(model, pixels[:1]))
    model, heads = model.to(device).train(), heads.to(device)
    model.set_attn_implementation("eager")  # rows are short: the fused kernel's backward takes twice the time on a CPU

    def seeing(step: int) -> Tensor:
        return seeing_loss(family, model, heads, captioning, step, device)

    def answers(maker: BatchMaker, seen: int) -> Callable[[int], Tensor]:
        first = -(-seen // maker.pictures)
        return lambda step: answer_loss(family, model, maker, first + step, device)

    s = settings
    lengths = (s.tower_steps, s.caption_steps, s.steps, s.lookup_steps, s.question_steps)
    pictures = (s.pictures, s.pictures, s.question_pictures, s.question_pictures, s.question_pictures)
    seen = list(accumulate(n * each for n, each in zip(lengths, pictures, strict=True)))  # new pictures at each stage
    stages: list[tuple[str, nn.Module, Callable[[int], Tensor]]] = [
        ("tower", nn.ModuleList([model, heads]), seeing),
        ("captions", model, answers(captioning, seen[0])),
        ("model", model, answers(plain, seen[1])),
        ("lookup", model, answers(paired, seen[2])),
        ("questions", model, answers(asking, seen[3])),
    ]
    for (stage, module, loss_at), n_steps in zip(stages, lengths, strict=True):
        if stage != "tower":
            for path in family.frozen:
                model.get_submodule(path).requires_grad_(False)
        if n_steps:
            run_stage(stage, module, loss_at, n_steps, settings, out, device)
            yield stage
    save(family, model, processor, out / "checkpoint")


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(FAMILIES)}.")],
    out: Annotated[Path, typer.Option(help="Folder for the state, the log and the finished checkpoint.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    seed: Annotated[int | None, typer.Option(help="Of the first weights.")] = None,
    tower_steps: Annotated[int | None, typer.Option(help="Steps of learning to see.")] = None,
    caption_steps: Annotated[int | None, typer.Option(help="Steps on captions alone.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps on captions and questions.")] = None,
    lookup_steps: Annotated[int | None, typer.Option(help="Steps on colours alone.")] = None,
    question_steps: Annotated[int | None, typer.Option(help="Steps with all questions.")] = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures per step, up to the captions.")] = None,
    question_pictures: Annotated[int | None, typer.Option(help="Pictures per step, where there are questions.")] = None,
    bf16: Annotated[bool | None, typer.Option(help="Matrix products in bfloat16.")] = None,
) -> None:
    """Train an IconWorld checkpoint, with the settings of the shipped one where no others are given; run again to resume."""
    given: dict[str, Any] = {
        "seed": seed, "tower_steps": tower_steps, "caption_steps": caption_steps, "steps": steps, "lookup_steps": lookup_steps,
        "question_steps": question_steps, "pictures": pictures, "question_pictures": question_pictures, "bf16": bf16,
    }  # fmt: skip
    chosen = {key: value for key, value in given.items() if value is not None}
    for stage in train(name, out, replace(settings_of(name), **chosen), device):
        typer.echo(f"{stage} done")


if __name__ == "__main__":
    typer.run(main)
