"""Hyperparameters for a model: which file is for it, and what is derived from the model where none is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import mmedit
from mmedit.cli import options
from mmedit.editors import EDITORS, MMNeurons, MMNeuronsHparams, auto
from mmedit.editors.auto import OVERTURN, algorithm1_hparams
from mmedit.errors import HparamsError, ModelError, RequestError
from mmedit.hparams import AUTO, CHECKPOINTS, hparams_for, read_values, shipped
from mmedit.models.forcing import forced
from mmedit.models.loading import shipped_models
from mmedit.models.readout import Route
from mmedit.models.vlm import VisionLanguageModel
from mmedit.requests import CAPTION_PROMPT
from mmedit.testbed.benchmark import swap_cases
from mmedit.testbed.world import render

HUB = {
    "llava-hf/llava-1.5-7b-hf": "llava-1.5-7b",
    "llava-hf/llava-1.5-13b-hf": "llava-1.5-13b",
    "liuhaotian/llava-llama-2-13b-chat-lightning-preview": "llava-llama2-13b",
    "llava-hf/llava-v1.6-mistral-7b-hf": "llava-next",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava-onevision",
    "Salesforce/instructblip-vicuna-7b": "instructblip-vicuna-7b",
    "MAGAer13/mplug-owl2-llama2-7b": "mplug-owl2",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2.5-vl-3b",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2.5-vl-7b",
    "Qwen/Qwen3-VL-4B-Instruct": "qwen3-vl-4b",
    "OpenGVLab/InternVL3-8B-hf": "internvl3",
    "HuggingFaceTB/SmolVLM-Instruct": "smolvlm",
    "google/paligemma-3b-mix-224": "paligemma",
    "google/gemma-3-4b-it": "gemma-3-4b",
    "HuggingFaceM4/Idefics3-8B-Llama3": "idefics3",
}
PAPER = {"neurons_per_edit": 5, "lr": 1e-3, "epochs": 1000, "beta": 4.0}  # appendix B.3


@pytest.fixture(scope="module")
def derived(trained: VisionLanguageModel) -> MMNeuronsHparams:
    return algorithm1_hparams(trained)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four drawings, where it is not about how good the step is."""
    monkeypatch.setattr(auto, "NOUNS", auto.NOUNS[:4])


@pytest.mark.parametrize(("hub_id", "name"), HUB.items())
def test_hub_ids_and_folders_of_that_name_find_their_file(hub_id: str, name: str) -> None:
    for model in (hub_id, Path("/models") / Path(hub_id).name, name, f"runs/{name}/"):
        assert hparams_for(model, "MMNeurons") == name


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_has_a_file_of_its_own_with_numbers(name: str) -> None:
    assert hparams_for(name, "MMNeurons") == name
    assert AUTO not in read_values(MMNeuronsHparams, name, "MMNeurons").values()


@pytest.mark.parametrize("model", ["somebody/llava-1.5-7b-hf-of-their-own", "gemma-3-27b-it", "", "/"])
def test_a_model_that_no_file_is_for_gets_auto(model: str) -> None:
    assert hparams_for(model, "MMNeurons") == AUTO


def test_a_checkpoint_is_in_the_table_once_and_every_name_there_is_a_file() -> None:
    listed = [model for models in CHECKPOINTS.values() for model in models.split()]
    assert len(set(listed)) == len(listed) and not set(listed) & set(CHECKPOINTS)
    assert set(CHECKPOINTS) <= set(shipped("MMNeurons")) and {*HUB.values()} <= set(shipped("MMNeurons"))


@pytest.mark.parametrize("name", shipped("MMNeurons"))
def test_a_file_holds_numbers_that_are_known_or_none_and_says_what_was_not_run(name: str) -> None:
    text, values = (Path(mmedit.hparams.__file__).parent / "MMNeurons" / f"{name}.yaml").read_text(), read_values(MMNeuronsHparams, name, "MMNeurons")  # fmt: skip
    tuned_here = name in shipped_models()
    assert ("tests/benchmarks/swaps.py --tune" in text) is tuned_here
    assert (" not run on the published weights" in f" {text.lower()}") is not tuned_here
    if values["lr"] == AUTO:
        assert values["beta"] == AUTO and "derived from the model" in text
    elif not tuned_here:
        assert values == PAPER and "appendix B.3" in text


def test_lr_is_far_past_the_tie_and_lr_over_overturn_is_about_there(
    vlm: VisionLanguageModel, derived: MMNeuronsHparams
) -> None:
    """What lr is made of, seen on the edited model: where the target comes to lead in the place of the source."""
    past: dict[float, int] = {0.1: 0, 1.0: 0, OVERTURN: 0}
    for swap in swap_cases("validation", 8):
        picture = render(swap.edit)[0]
        ids = vlm.generate(picture)[0].ids
        for share in past:
            editor = MMNeurons(dataclasses.replace(derived, lr=share * derived.lr / OVERTURN))
            patch = editor.execute(vlm, mmedit.EditRequest(picture, swap.source, swap.target))
            source, target = (patch.edits[0][f"{role}_token_id"] for role in ("source", "target"))
            with patch.applied(vlm):
                logits = forced(vlm, [picture], CAPTION_PROMPT, [ids])[0].answer[ids.index(source)]
            past[share] += bool(logits[target] > logits[source])
    assert past[0.1] == 0 and 1 <= past[1.0] <= 6 and past[OVERTURN] >= 7, past


@pytest.mark.usefixtures("few")
def test_a_model_whose_activations_are_twice_as_great_gets_a_quarter_of_the_step(
    untrained: VisionLanguageModel, trained: VisionLanguageModel
) -> None:
    """Twice the up projection and half of W_out is the same model to everybody else."""
    untrained.model.load_state_dict(trained.model.state_dict())
    before = algorithm1_hparams(untrained).lr
    with torch.no_grad():
        for w_out in untrained.architecture.sites:
            mlp = untrained.model.get_submodule(w_out.path.rpartition(".")[0])
            mlp.up_proj.weight.mul_(2)
            mlp.down_proj.weight.mul_(0.5)
    assert algorithm1_hparams(untrained).lr == pytest.approx(before / 4, rel=0.02)


@pytest.mark.usefixtures("few")
def test_a_model_whose_unembedding_is_twice_as_great_gets_half_of_the_step(
    untrained: VisionLanguageModel, trained: VisionLanguageModel
) -> None:
    """Its logits are twice as far apart, and an edit moves rows by twice as much, to twice the effect."""
    untrained.model.load_state_dict(trained.model.state_dict())
    before = algorithm1_hparams(untrained).lr
    with torch.no_grad():
        untrained.architecture.unembedding.weight.mul_(2)
    assert algorithm1_hparams(untrained).lr == pytest.approx(before / 2, rel=0.02)


@pytest.mark.usefixtures("few")
def test_a_scale_between_w_outs_and_the_logits_is_folded_in(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = algorithm1_hparams(vlm)
    monkeypatch.setattr(vlm.architecture, "routes", dict.fromkeys(vlm.architecture.w_outs, Route(scale=0.5)))
    after = algorithm1_hparams(vlm)
    assert (before.final_norm, after.final_norm) == ("ignore", "fold")
    assert algorithm1_hparams(vlm, scorer="activation").final_norm == "ignore"  # which looks at no logits
    assert algorithm1_hparams(vlm, final_norm="ignore").lr == pytest.approx(2 * before.lr, rel=0.02)


@pytest.mark.usefixtures("few")
def test_what_is_given_stays_and_lr_follows_from_it(vlm: VisionLanguageModel) -> None:
    assert algorithm1_hparams(vlm, lr=0.5, beta=1.0) == MMNeuronsHparams(lr=0.5, beta=1.0)
    by_k = [algorithm1_hparams(vlm, neurons_per_edit=k).lr for k in (1, 5, 20)]
    assert by_k[0] > by_k[1] > by_k[2]
    half = algorithm1_hparams(vlm, epochs=500, scorer="random")  # a scorer's step is that of all
    assert half.lr == pytest.approx(2 * by_k[1], rel=0.02)
    assert half == MMNeuronsHparams(lr=half.lr, beta=0.0, epochs=500, scorer="random")


@pytest.mark.usefixtures("few")
def test_a_beta_that_leaves_no_step_is_refused(vlm: VisionLanguageModel) -> None:
    with pytest.raises(HparamsError, match="linear"):
        algorithm1_hparams(vlm, penalty="squared_l2", beta=1.0)
    with pytest.raises(HparamsError, match="smaller beta"):
        algorithm1_hparams(vlm, beta=1e9, epochs=2)
    assert algorithm1_hparams(vlm, penalty="squared_l2").beta == 0


def test_a_model_that_names_nothing_is_refused_with_its_captions(untrained: VisionLanguageModel) -> None:
    with torch.no_grad():
        untrained.architecture.unembedding.weight.zero_()  # it says its first token for ever
    with pytest.raises(ModelError, match="names too few things"):
        algorithm1_hparams(untrained)


@pytest.mark.usefixtures("few")
def test_auto_in_a_file_is_filled_in_from_the_model_and_needs_one(vlm: VisionLanguageModel, tmp_path: Path) -> None:
    all_of_it = MMNeurons.from_hparams(AUTO, vlm).hparams
    (tmp_path / "mine.yaml").write_text("lr: auto\nbeta: 0.0\nneurons_per_edit: 5\nseed: 3\n")
    assert MMNeurons.from_hparams(tmp_path / "mine.yaml", vlm).hparams == dataclasses.replace(all_of_it, seed=3)
    for source in (AUTO, tmp_path / "mine.yaml", {"lr": AUTO}, "qwen2.5-vl-7b"):
        with pytest.raises(HparamsError, match="derives hyperparameters from a model"):
            MMNeurons.from_hparams(source)
    with pytest.raises(HparamsError, match="unknown hyperparameter"):
        MMNeurons.from_hparams({"learning_rate": AUTO}, vlm)
    with pytest.raises(HparamsError, match="neurons_per_edit"):
        MMNeurons.from_hparams({"lr": AUTO, "neurons_per_edit": 0}, vlm)


def test_the_command_line_takes_the_user_s_then_the_model_s_then_auto() -> None:
    def choose(*args: str | None) -> dict[str, object]:
        return options.choose_hparams("MMNeurons", *args)  # type: ignore[arg-type]

    assert choose(None, "iconworld-llava")["lr"] == 3e-4
    assert choose("llava-llama2-13b", "iconworld-llava") == PAPER
    assert set(choose(None, "models/my-own-vlm").values()) == set(choose(AUTO, "iconworld-llava").values()) == {AUTO}
    mixed = options.choose_hparams("MMNeurons", None, "google/gemma-3-4b-it", scorer="random", final_norm="ignore")
    assert mixed["lr"] == AUTO and mixed["scorer"] == "random"
    with pytest.raises(HparamsError, match="scorer"):
        options.choose_hparams("MMNeurons", AUTO, "iconworld-llava", scorer="best")
    with pytest.raises(RequestError, match="no such editor"):
        options.choose_hparams("ROMEO", None, "iconworld-llava")


def test_what_was_derived_is_said_on_stderr_and_what_was_given_is_not(
    vlm: VisionLanguageModel, derived: MMNeuronsHparams, capsys: pytest.CaptureFixture[str]
) -> None:
    editor = options.make_editor("MMNeurons", read_values(MMNeuronsHparams, AUTO, "MMNeurons"), vlm)
    assert editor.hparams == derived
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and f"lr={derived.lr}" in err and "beta=0.0" in err
    options.make_editor("MMNeurons", options.choose_hparams("MMNeurons", None, "iconworld-llava"), vlm)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_has_hyperparameters_for_any_model(name: str, vlm: VisionLanguageModel) -> None:
    editor = EDITORS[name].from_hparams(AUTO, vlm)
    assert isinstance(editor.hparams, editor.Hparams)
