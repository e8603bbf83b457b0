"""The EasyEdit bridge, under a harness that calls and scores as EasyEdit does; and under the real one, where it is installed."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easyedit_harness import OWN_RULES, MultimodalEditor, open_llava, open_qwen
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mmedit
from mmedit.bridges import easyedit
from mmedit.cases import EditCase, Probe
from mmedit.data.benchmarks import load_cases
from mmedit.editors import EDITORS, apply_mm_neurons_to_model
from mmedit.errors import HparamsError, ImageError, RequestError
from mmedit.evaluation.export import export_mmedit
from mmedit.models.forcing import answer_ids
from mmedit.testbed.world import render, scene

PROMPTS = ["What is on the left?", "What is above?"]
TARGETS = [" dog", "house"]  # one as IconWorld writes it, one with no space before it
LOCALITY = {"prompt": ["Is a boat alive?"] * 2, "ground_truth": [" no"] * 2}


@pytest.fixture
def algorithms() -> dict[str, Any]:
    table: dict[str, Any] = dict.fromkeys(sorted(OWN_RULES))
    easyedit.register(table)
    return table


@pytest.fixture
def model(trained: mmedit.VisionLanguageModel) -> Any:
    return copy.deepcopy(trained.model)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three pictures with a cat on the left, and one without a cat."""
    folder = tmp_path_factory.mktemp("easyedit")
    beside = [scene("benchmark", 3000 + i, include="cat", arrangement="beside") for i in range(20)]
    drawn = [shown for shown in beside if shown.things[0].noun == "cat"][:3]
    drawn.append(scene("benchmark", 3100, exclude=("cat",)))
    for i, shown in enumerate(drawn):
        render(shown)[0].save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(4)]


@pytest.fixture
def harness(
    model: Any, trained: mmedit.VisionLanguageModel, algorithms: dict[str, Any]
) -> Callable[..., MultimodalEditor]:
    def make(mode: str = "auto", editor: str = "MMNeurons", settings: Any = None) -> MultimodalEditor:
        hp = easyedit.hparams((model, trained.processor), "cpu", editor, settings, mode)  # type: ignore[arg-type]
        return MultimodalEditor(hp, algorithms)

    return make


def edit(editor: MultimodalEditor, files: list[str], **options: Any) -> tuple[list[dict[str, Any]], Any, Any]:
    """Two requests with all that EasyEdit judges them on."""
    vision = {"image": [files[3]] * 2, "prompt": ["What is the ground?"] * 2, "ground_truth": [" grass"] * 2}
    return editor.edit(
        PROMPTS, TARGETS, files[:2], rephrase_prompts=["What is on the right?"] * 2, rephrase_image=[files[2]] * 2,
        locality_inputs={"text": LOCALITY, "vision": vision}, **options,
    )  # fmt: skip


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before: dict[str, torch.Tensor], model: Any) -> bool:
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def opened(path: str) -> Image.Image:
    """A picture whose file is closed again."""
    with Image.open(path) as image:
        image.load()
    return image


def request(files: list[str], **changes: Any) -> dict[str, Any]:
    return {"prompt": PROMPTS[0], "target": TARGETS[0], "image": opened(files[0]), "file_type": "image", **changes}


# What is taught is what is scored


@settings(deadline=None, max_examples=60)
@given(
    prompt=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=30).filter(str.strip),
    target=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=12).filter(str.strip),
)  # fmt: skip
def test_the_text_taught_is_the_text_scored(trained: mmedit.VisionLanguageModel, prompt: str, target: str) -> None:
    hp = easyedit.hparams((trained.model, trained.processor))
    image = Image.new("RGB", (64, 64))
    scored = MultimodalEditor(hp, {hp.alg_name: None}).inputs(prompt, target, image).input_ids[0].tolist()
    taught = easyedit.request_of({"prompt": prompt, "target": target, "image": image})
    before = trained.inputs(image, taught.prompt).input_ids[0].tolist()
    answer = answer_ids(trained, taught.prompt, taught.target)
    assert scored[-len(answer) :] == answer and scored[: len(before)] == before[: len(scored) - len(answer)]
    assert len(before) + len(answer) == len(scored)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # as EasyEdit reads them
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "rotated"])
@pytest.mark.parametrize("vis_tok", [open_llava, open_qwen])
def test_the_pixels_taught_are_the_pixels_scored(
    trained: mmedit.VisionLanguageModel, files: list[str], tmp_path: Path, mode: str, vis_tok: Callable[[str], Any]
) -> None:
    path, picture = tmp_path / "picture.png", opened(files[0])
    if mode == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(path, exif=exif)
        assert opened(str(path)).getexif()[0x0112] == 6
    else:
        fading = np.tile(np.linspace(0, 255, picture.width, dtype=np.uint8), (picture.height, 1))
        picture.putalpha(Image.fromarray(fading))
        picture.convert(mode).save(path)
    hp = easyedit.hparams((trained.model, trained.processor))
    scored = MultimodalEditor(hp, {hp.alg_name: None}).inputs("What?", "x", vis_tok(str(path))).pixel_values
    taught = easyedit.request_of({"prompt": "What?", "target": "x", "image": vis_tok(str(path))})
    assert torch.equal(trained.inputs(list(taught.images)).pixel_values, scored)


# Under EasyEdit's three ways of calling


def test_a_view_is_judged_against_the_unedited_model(harness: Any, files: list[str], model: Any) -> None:
    before, editor = weights(model), harness()
    unedited = [editor._score(model, request(files, image=opened(file), prompt=prompt, target=target))
                for file, prompt, target in zip(files, PROMPTS, TARGETS, strict=False)]  # fmt: skip
    metrics, edited, weights_copy = edit(editor, files)
    assert [one["pre"]["rewrite_acc"] for one in metrics] == [one["rewrite_acc"] for one in unedited] == [0, 0]
    assert [one["post"]["rewrite_acc"] for one in metrics] == [1, 1]
    assert [one["post"]["image_rephrase_acc"] for one in metrics] == [1, 1]
    assert all(0.3 < one["post"]["multimodal_locality_acc"] < 1 for one in metrics), "damage is seen"
    assert weights_copy == {} and edited is not model and same(before, model)
    asked = request(files, image=opened(files[1]), prompt=PROMPTS[1], target=TARGETS[1])
    assert editor._score(edited, asked)["rewrite_acc"] == 1, "what edit() returns is still edited"


def test_in_place_is_restored_bit_for_bit_and_judged_against_itself(harness: Any, files: list[str], model: Any) -> None:
    before = weights(model)
    metrics, edited, weights_copy = edit(harness("in_place"), files)
    assert edited is model and same(before, model)
    assert weights_copy and all(torch.equal(before[name], tensor) for name, tensor in weights_copy.items())
    assert set(weights_copy) <= dict(model.named_parameters()).keys()
    for one in metrics:  # EasyEdit's own way in this mode: "pre" is the edited model
        assert one["pre"]["rewrite_acc"] == one["post"]["rewrite_acc"] == 1
        assert one["post"]["locality_acc"] == one["post"]["multimodal_locality_acc"] == 1


def test_both_modes_make_the_same_edit(harness: Any, files: list[str], model: Any) -> None:
    _, view, _ = edit(harness("view"), files)
    seen = weights(view)
    editor = harness("in_place")
    editor._restore = lambda edited, weights_copy: None
    editor.edit(PROMPTS[1:], TARGETS[1:], files[1:2])
    assert same(seen, model)


def test_sequential_edits_pile_up(harness: Any, files: list[str], model: Any) -> None:
    before, alone = weights(model), []
    for i in range(2):
        harness().edit(PROMPTS[i : i + 1], TARGETS[i : i + 1], files[i : i + 1], sequential_edit=True)
        alone.append(weights(model))
        model.load_state_dict(before)
    metrics, edited, _ = edit(harness(), files, sequential_edit=True)
    assert [(one["pre"]["rewrite_acc"], one["post"]["rewrite_acc"]) for one in metrics] == [(0, 1), (0, 1)]
    assert edited is model and not same(alone[1], model)
    for name, tensor in model.state_dict().items():  # what the first edit changed is not as it was
        assert not ((alone[0][name] != before[name]) & (tensor == before[name])).any()


def test_edits_of_a_data_set_do_not_pile_up(harness: Any, files: list[str], model: Any) -> None:
    before = weights(model)
    requests = [request(files, image=opened(files[i]), prompt=PROMPTS[i], target=TARGETS[i], pred="", cond="") for i in (0, 1)]  # fmt: skip
    metrics, edited, weights_copy = harness().edit_dataset(requests)
    assert [(one["pre"]["rewrite_acc"], one["post"]["rewrite_acc"]) for one in metrics] == [(0, 1), (0, 1)]
    assert edited is not model and weights_copy == {} and same(before, model)


# Requests in every form, and in none


def edited_by(requests: Any, model: Any, processor: Any, mode: str = "view") -> dict[str, torch.Tensor]:
    hp = easyedit.hparams((model, processor), mode=mode)  # type: ignore[arg-type]
    return weights(easyedit.apply_mm_neurons(copy.deepcopy(model), processor, requests, hp)[0])


def test_every_form_of_a_request_makes_the_same_edit(
    model: Any, trained: mmedit.VisionLanguageModel, files: list[str]
) -> None:
    picture = opened(files[0])
    forms = [request(files), [request(files)], request(files, image=files[0]), request(files, image=Path(files[0])),
             request(files, image=[picture.convert("RGB")]), request(files, image=picture.convert("RGBA")),
             {"prompt": PROMPTS[0], "target": TARGETS[0], "image": picture}]  # fmt: skip
    first, *others = [edited_by(form, model, trained.processor) for form in forms]
    assert any(not torch.equal(first[name], tensor) for name, tensor in model.state_dict().items())
    assert all(all(torch.equal(first[name], other[name]) for name in first) for other in others)


def test_several_requests_become_one_edit(model: Any, trained: mmedit.VisionLanguageModel, files: list[str]) -> None:
    requests = [
        request(files),
        request(files, image=opened(files[1]), prompt="What is the ground?", target=" robot"),
    ]
    hp = easyedit.hparams((model, trained.processor))
    view, _ = easyedit.apply_mm_neurons(model, trained.processor, requests, hp)
    edited = mmedit.VisionLanguageModel(view, trained.processor)
    assert [edited.caption(files[i], r["prompt"])[0] for i, r in enumerate(requests)] == ["dog", "robot"]


def test_a_request_with_a_source_is_a_swap(model: Any, trained: mmedit.VisionLanguageModel, files: list[str]) -> None:
    hp = easyedit.hparams((model, trained.processor))
    asked = request(files, source="cat", target="dog")
    view, _ = easyedit.apply_mm_neurons(
        model, trained.processor, asked | {"prompt": "Is there a cat?", "source": "yes", "target": "no"}, hp
    )
    assert mmedit.VisionLanguageModel(view, trained.processor).caption(files[0], "Is there a cat?") == ["no"]
    assert easyedit.request_of(asked).source == "cat"


@pytest.mark.parametrize("mode", ["view", "in_place"])
def test_what_the_model_says_already_is_not_edited(harness: Any, files: list[str], model: Any, mode: str) -> None:
    before = weights(model)
    metrics, edited, weights_copy = harness(mode).edit(PROMPTS[:1], [" cat"], files[:1])
    assert edited is model and weights_copy == {} and same(before, model)
    assert metrics[0]["pre"] == metrics[0]["post"] == {"rewrite_acc": 1}


def test_a_prompt_is_kept_to_the_letter(trained: mmedit.VisionLanguageModel, files: list[str], tmp_path: Path) -> None:
    prompts = [mmedit.Prompt("What is it?", "An image of", no_space=bare) for bare in (False, True)]
    assert [trained.render(prompt)[-17:] for prompt in prompts] == [
        " ASSISTANT: An image of"[-17:],
        "ISTANT:An image of"[-17:],
    ]
    requests = [
        mmedit.EditRequest(files[0], None, " dog ", mmedit.Prompt("What is it?", no_space=bare))
        for bare in (False, True)
    ]
    assert [request.target for request in requests] == ["dog", " dog "]
    kinds = ("edit", "rephrased", "related", "unrelated")
    probes = [Probe(kind, files[0], requests[1].prompt) for kind in kinds] + [
        Probe("text_only", None, requests[1].prompt)
    ]  # type: ignore[arg-type]
    written = export_mmedit([EditCase("0", requests[1], tuple(probes))], tmp_path / "cases", lambda probe: "a cat")
    (case,) = load_cases(written, "mmedit").cases
    assert (case.request.prompt, case.request.target) == (requests[1].prompt, " dog ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "lacks fields"), ({"target": None}, "lacks fields"), ({"image": None}, "lacks fields"),
        ({"image": []}, "one still picture"), ({"image": [Image.new("RGB", (8, 8))] * 2}, "one still picture"),
        ({"image": np.zeros((2, 8, 8, 3), np.uint8), "file_type": "video"}, "one still picture"), ({"target": "  "}, "is a word"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_meant(files: list[str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        easyedit.request_of(request(files, **changes))


def test_a_broken_picture_is_an_image_error(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(Path(files[0]).read_bytes()[:200])
    with Image.open(tmp_path / "broken.png") as broken, pytest.raises(ImageError, match="cannot read"):
        easyedit.request_of(request(files, image=broken))


# What EasyEdit reads


def test_hparams_are_what_easyedit_reads(trained: mmedit.VisionLanguageModel) -> None:
    hp = easyedit.hparams("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "cuda:1")
    assert "llava-onevision" in hp.model_name and (hp.device, hp.dtype) == ("cuda:1", torch.float32)
    assert not hasattr(hp, "batch_size")
    hp.dtype = torch.bfloat16  # EasyEdit sets it
    half = copy.deepcopy(trained.model).to(torch.bfloat16)
    assert easyedit.hparams((half, trained.processor)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "wrong", [{"editor": "Nothing"}, {"mode": "both"}, {"settings": {"speed": 1}}, {"settings": "nobody"}]
)
def test_hparams_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(HparamsError):
        easyedit.hparams("llava-onevision", **wrong)


def test_hparams_of_another_algorithm_are_refused(
    model: Any, trained: mmedit.VisionLanguageModel, files: list[str]
) -> None:
    hp = easyedit.hparams((model, trained.processor))
    hp.alg_name = "mmedit.Other"
    for wrong in (hp, types.SimpleNamespace(alg_name="mmedit.MMNeurons"), "iconworld-llava"):
        with pytest.raises(HparamsError, match="another algorithm"):
            easyedit.apply_mm_neurons(model, trained.processor, request(files), wrong)


def test_derived_settings_are_derived_once_and_from_the_unedited_model(
    monkeypatch: pytest.MonkeyPatch, harness: Any, files: list[str], trained: mmedit.VisionLanguageModel, model: Any
) -> None:
    kind, states = EDITORS["MMNeurons"], []

    def auto(vlm: mmedit.VisionLanguageModel, **given: Any) -> Any:
        states.append(same(weights(trained.model), vlm.model))
        return kind.from_hparams("iconworld-llava").hparams

    monkeypatch.setattr(kind, "auto", auto)
    editor = harness(settings="auto")
    metrics, _, _ = edit(editor, files, sequential_edit=True)
    assert states == [True] and [one["post"]["rewrite_acc"] for one in metrics] == [1, 1]


def test_every_editor_has_a_name_of_its_own(algorithms: dict[str, Any]) -> None:
    ours = set(algorithms) - OWN_RULES
    assert ours == {f"mmedit.{name}" for name in EDITORS} and all(algorithms[name] is None for name in OWN_RULES)
    functions = {
        name for name in dir(easyedit) if name.startswith("apply_") and name not in ("apply_of", "apply_to_model")
    }
    assert len(functions) == len(EDITORS) and "apply_mm_neurons" in functions
    assert {getattr(easyedit, name) for name in functions} == {algorithms[name] for name in ours}
    with pytest.raises(AttributeError, match="apply_nothing"):
        _ = easyedit.apply_nothing


def test_registering_fills_easyedits_own_table_and_takes_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    table: dict[str, Any] = {}
    module = types.SimpleNamespace(ALG_MULTIMODAL_DICT=table)
    for name, part in (
        ("easyeditor", types.SimpleNamespace()),
        ("easyeditor.util", types.SimpleNamespace()),
        ("easyeditor.util.alg_dict", module),
    ):
        monkeypatch.setitem(sys.modules, name, part)  # type: ignore[arg-type]
    assert easyedit.register() == easyedit.register() == tuple(table)
    with pytest.raises(RequestError, match="has this name"):
        easyedit.register({"mmedit.MMNeurons": print})
    monkeypatch.setitem(sys.modules, "easyeditor.util.alg_dict", None)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="cannot be imported"):
        easyedit.register()


def test_the_harness_knows_no_unknown_weight(harness: Any) -> None:
    with pytest.raises(LookupError):
        harness()._restore(None, {"nothing.weight": torch.zeros(1)})


# Nothing is left behind


def traces(model: Any, processor: Any) -> dict[str, Any]:
    """All that an edit could leave on a model beside its weights."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": [module.training for module in model.modules()], "hooks": [len(getattr(m, kind)) for m in model.modules() for kind in hooks],
        "modules": [id(module) for module in model.modules()], "parameters": [id(tensor) for tensor in model.parameters()],
        "grad": [(tensor.requires_grad, tensor.grad is None) for tensor in model.parameters()], "live": mmedit.Stack.of(model).names,
        "config": model.config.to_json_string(use_diff=False), "generation": model.generation_config.to_json_string(use_diff=False),
        "padding": (processor.tokenizer.pad_token, processor.tokenizer.padding_side), "instance": sorted(vars(model)),
        "forward": [vars(module).get("forward") for module in model.modules()],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "view") for name in EDITORS), ("MMNeurons", "in_place"), ("LoRA", "in_place")]
)
@pytest.mark.filterwarnings("ignore")  # what other methods have to say of their settings is not the point here
def test_nothing_is_left_behind(
    name: str, mode: str, harness: Any, files: list[str], model: Any, trained: mmedit.VisionLanguageModel
) -> None:
    model.train()
    model.model.vision_tower.eval()  # as it is often frozen
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    model.config.use_cache = model.generation_config.use_cache = True
    editor = harness(mode, name, {"n_unrelated": 8} if name == "Margin" else None)
    editor._score(model, request(files))  # transformers puts hooks of its own on a model that runs for the first time
    before, found = weights(model), traces(model, trained.processor)
    swap = request(files, source="cat", target="dog")
    edited, weights_copy = editor.apply_algo(model, trained.processor, [swap], editor.hparams)
    assert not same(before, edited)
    editor._restore(edited, weights_copy)
    assert same(before, model) and traces(model, trained.processor) == found
    with pytest.raises(RequestError):
        editor.apply_algo(model, trained.processor, [request(files, source="submarine")], editor.hparams)
    assert same(before, model) and traces(model, trained.processor) == found


def test_a_padding_token_that_was_lent_is_taken_back(
    model: Any, trained: mmedit.VisionLanguageModel, files: list[str]
) -> None:
    processor = copy.deepcopy(trained.processor)
    processor.tokenizer.pad_token = None
    hp = easyedit.hparams((model, processor))
    easyedit.apply_mm_neurons(model, processor, request(files), hp)
    assert processor.tokenizer.pad_token is None


@pytest.mark.parametrize("ends", ["well", "no such word", "interrupted", "bad hyperparameters"])
def test_the_face_of_rome_leaves_modes_and_padding_as_they_were(
    model: Any, trained: mmedit.VisionLanguageModel, files: list[str], ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes of the edit."""
    mmedit.VisionLanguageModel(model, trained.processor).caption(
        files[0]
    )  # transformers puts hooks of its own on a model
    processor = copy.deepcopy(trained.processor)
    processor.tokenizer.pad_token = None
    model.train()
    model.model.vision_tower.eval()  # as it is often frozen
    before, found = weights(model), traces(model, processor)
    wanted = mmedit.EditRequest(files[0], "submarine" if ends == "no such word" else "cat", "dog")
    hp = {"epochs": -1} if ends == "bad hyperparameters" else "iconworld-llava"

    def edit() -> Any:
        return apply_mm_neurons_to_model(model, processor, wanted, hp, return_orig_weights=True)

    if ends == "well":
        edited, originals = edit()
        assert edited is model and not same(before, model)
        with torch.no_grad():
            for name, original in originals.items():
                model.get_parameter(name).copy_(original)
    else:
        errors = {"no such word": RequestError, "interrupted": KeyboardInterrupt, "bad hyperparameters": HparamsError}

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        if ends == "interrupted":
            monkeypatch.setattr(mmedit.Stack, "push", interrupt)
        with pytest.raises(errors[ends]):
            edit()
    assert same(before, model) and traces(model, processor) == found


@pytest.mark.filterwarnings("ignore")
def test_under_the_real_easyedit(
    model: Any, trained: mmedit.VisionLanguageModel, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same edits where EasyEdit is on PYTHONPATH; its numbers and those of our harness are then the same."""
    real = pytest.importorskip("easyeditor", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)  # it writes logs
    table: dict[str, Any] = {}
    easyedit.register(table)
    easyedit.register()
    before, metrics = weights(model), {}
    for mode in ("view", "in_place"):
        hp = easyedit.hparams((model, trained.processor), mode=mode)  # type: ignore[arg-type]
        ours = edit(MultimodalEditor(hp, table), files)[0]
        editor = real.MultimodalEditor.from_hparams(hp)
        hp.model_name = editor.model_name = "llava-onevision"  # whose branch fits every processor of transformers
        editor.vis_tok = lambda path, **_: Image.open(path)
        metrics[mode] = edit(editor, files)[0]
        for mine, its in zip(ours, metrics[mode], strict=True):
            assert {k: float(v) for k, v in its["post"].items() if k.endswith("_acc")} == pytest.approx(mine["post"])
        assert same(before, model)
    assert [float(one["pre"]["rewrite_acc"]) for one in metrics["view"]] == [0, 0]
