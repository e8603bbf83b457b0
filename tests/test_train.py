"""Training: every family goes through the same stages, resumes where it stopped, and begins with the parts that it says."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import cosine_similarity, layer_norm
from typer.testing import CliRunner

import mmedit
from mmedit.cli import app
from mmedit.errors import RequestError
from mmedit.testbed.batches import BatchMaker
from mmedit.testbed.checkpoint import N_PATCHES
from mmedit.testbed.instructblip import INSTRUCTBLIP
from mmedit.testbed.seeing import PatchHeads, PatchLabels
from mmedit.testbed.train import FAMILIES, SETTINGS, TrainSettings, run_stage, settings_of, train
from mmedit.testbed.world import NOUNS, Scene

TINY = TrainSettings(
    pictures=2,
    question_pictures=1,
    fact_rows=1,
    tower_steps=1,
    caption_steps=2,
    steps=1,
    lookup_steps=1,
    question_steps=1,
    warmup=1,
)
STAGES = ["tower", "captions", "model", "lookup", "questions"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "checkpoint" / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


class Run(NamedTuple):
    """A whole run of a few steps, made by the command."""

    name: str
    out: Path
    seeds: list[int]  # of the scenes in the order in which they were drawn


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out, seeds, scenes = tmp_path_factory.mktemp(request.param), [], BatchMaker.scenes

    def drawn(maker: BatchMaker, step: int) -> list[Scene]:
        found = scenes(maker, step)
        seeds.extend(scene.seed for scene in found)
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SETTINGS, request.param, TINY)
        patched.setattr(BatchMaker, "scenes", drawn)
        done = CliRunner().invoke(app, ["testbed", "train", request.param, "-o", str(out)])
    assert done.exit_code == 0 and done.stdout == f"{out / 'checkpoint'}\n"
    return Run(request.param, out, seeds)


def test_a_run_ends_in_a_small_checkpoint_that_loads(run: Run) -> None:
    name, out, _ = run
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float16}
    vlm = mmedit.load(out / "checkpoint")
    assert vlm.model.dtype == torch.float32 and vlm.architecture.n_layers == 6
    stages = {path.stem: torch.load(path, weights_only=True)["module"] for path in out.glob("*.pt")}
    assert set(stages) == set(STAGES)
    saved = vlm.model.state_dict()
    assert all(torch.equal(saved[key], tensor.half().float()) for key, tensor in stages["questions"].items())
    for key, tensor in stages["tower"].items():
        path = key.removeprefix("0.")
        if path in saved and path.startswith(FAMILIES[name].frozen):
            assert torch.equal(saved[path], tensor.half().float()), "frozen after the first stage"
        if path in saved and path.endswith("down_proj.weight"):
            assert not torch.equal(saved[path], tensor.half().float()), "trained in the later ones"


@pytest.mark.parametrize("run", ["iconworld-instructblip"], indirect=True)  # one family is enough
def test_a_run_that_was_stopped_ends_like_one_that_was_not(run: Run, tmp_path: Path) -> None:
    name, whole, _ = run
    for stage in train(name, tmp_path, TINY, "cpu"):
        if stage == "captions":
            break
    assert not (tmp_path / "checkpoint").exists()
    assert list(train(name, tmp_path, TINY, "cpu")) == STAGES
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(tmp_path).items())


@pytest.mark.parametrize("run", ["iconworld-instructblip"], indirect=True)  # one family is enough
def test_a_checkpoint_is_measured_by_the_command(run: Run) -> None:
    measured = CliRunner().invoke(app, ["testbed", "measure", str(run.out / "checkpoint"), "--n", "2"])
    assert measured.exit_code == 0
    scores = json.loads(measured.stdout)
    assert scores["pictures"] == scores["questions"] == 2 and scores["captions_right"] == 0 and scores["facts"] > 100


def test_no_picture_comes_twice(run: Run) -> None:
    """Except those of the first step, a sample of which is looked at before."""
    sample, rest = run.seeds[: TINY.pictures], run.seeds[TINY.pictures :]
    assert rest[: TINY.pictures] == sample and len(set(rest)) == len(rest)
    assert len(rest) == 3 * TINY.pictures + 3 * TINY.question_pictures


def test_a_stage_that_was_stopped_midway_ends_like_one_that_was_not(tmp_path: Path) -> None:
    def module() -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(3, 1)

    def loss(module: nn.Linear, step: int) -> torch.Tensor:
        return (module(torch.tensor([step % 7, step % 3, 1.0])) - step % 5).square().sum()

    def until_150(step: int) -> torch.Tensor:
        if step == 150:
            raise KeyboardInterrupt
        return loss(stopped, step)

    settings, ends = TrainSettings(bf16=False), []
    whole, stopped, resumed = module(), module(), module()
    (tmp_path / "whole").mkdir()
    run_stage("stage", whole, lambda step: loss(whole, step), 300, settings, tmp_path / "whole", "cpu")
    with pytest.raises(KeyboardInterrupt):
        run_stage("stage", stopped, until_150, 300, settings, tmp_path, "cpu")
    run_stage("stage", resumed, lambda step: loss(resumed, ends.append(step) or step), 300, settings, tmp_path, "cpu")
    assert ends == list(range(100, 300)) and torch.equal(whole.weight, resumed.weight)
    assert not torch.equal(whole.weight, stopped.weight)


def test_stages_of_no_steps_are_left_out(tmp_path: Path) -> None:
    settings = TrainSettings(pictures=2, tower_steps=1, caption_steps=0, steps=0, lookup_steps=0, question_steps=0)
    assert list(train("iconworld-llava", tmp_path, settings, "cpu")) == ["tower"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint",
        "tower.jsonl",
        "tower.pt",
        "training.json",
    ]


def test_a_token_answers_for_a_square_of_patches() -> None:
    """Heads that know the answer have no loss, and only where the token is that of the patch."""
    labels = torch.randint(0, 1 + len(NOUNS), (1, N_PATCHES))
    heads = PatchHeads(16, 16)
    assert heads.side == 2
    by_token = heads._by_token(labels)[0]
    for row, column in product(range(8), repeat=2):
        assert by_token[row // 2 * 4 + column // 2, row % 2 * 2 + column % 2] == labels[0, row * 8 + column]
    with torch.no_grad():
        for layer in (heads.nouns, heads.colours, heads.grounds):
            layer.weight.zero_()
            layer.bias.zero_()
        told = torch.nn.functional.one_hot(by_token, 1 + len(NOUNS)).float() * 100  # token, patch, noun
        heads.nouns.weight.copy_(told.flatten(1).T)
        nothing = PatchLabels(labels, torch.zeros_like(labels), torch.zeros(1, dtype=torch.long))
        known = heads(torch.eye(16)[None], nothing)
        assert known < heads(torch.eye(16)[None].roll(1, 1), nothing) - 1
        assert torch.isclose(known, torch.tensor(7.0).log() + 0.1 * torch.tensor(6.0).log(), atol=1e-4)


def test_instructblip_begins_with_the_tower_and_the_language_of_llava(trained: mmedit.VisionLanguageModel) -> None:
    processor = INSTRUCTBLIP.build_processor()
    model = INSTRUCTBLIP.build_model(processor, 0).eval()
    pixels, _ = BatchMaker(INSTRUCTBLIP, processor, 4, 0).labelled(7)
    llava, ids = trained.model, torch.arange(5, 25)[None]
    with torch.inference_mode():
        theirs = layer_norm(llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1], (128,))
        before = layer_norm(model.vision_model(pixels).last_hidden_state, (128,))
        INSTRUCTBLIP.begin(model, pixels)
        after = layer_norm(model.vision_model(pixels).last_hidden_state, (128,))
        assert cosine_similarity(before, theirs, dim=-1).mean() < 0.3
        assert cosine_similarity(after, theirs, dim=-1).mean() > 0.98
        assert torch.equal(model.language_model(ids).logits, llava(ids).logits)


def test_only_what_is_known_can_be_trained() -> None:
    with pytest.raises(RequestError, match=r"(?s)'iconworld-gpt'.*iconworld-instructblip"):
        settings_of("iconworld-gpt")
