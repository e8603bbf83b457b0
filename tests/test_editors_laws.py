"""What holds for every editor beside Algorithm 1: the model is left as it was, the patch is the edit, and the edit works."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import mmedit
from mmedit import editors
from mmedit.editors import EDITORS
from mmedit.errors import HparamsError, ModelError, RequestError
from mmedit.hparams import FOLDER

NAMES = ("FT", "LoRA", "ROME", "MEMIT", "FiNE", "Noise")
TAUGHT = NAMES[:-1]
WITH_TARGET = pytest.mark.parametrize("name", TAUGHT)
ALL = pytest.mark.parametrize("name", NAMES)


def editor_of(name: str) -> editors.Editor:
    return EDITORS[name].from_hparams("iconworld-llava")


def state_of(model: Any) -> dict[str, Any]:
    """All that an editor could leave behind in a model."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "parameters": [(name, id(p), p.requires_grad, p.grad is None, p._version) for name, p in model.named_parameters()],
        "attributes": sorted(model.__dict__), "config": model.config.to_dict(), "generation": model.generation_config.to_dict(),
        "random": torch.get_rng_state().tolist(), "gradients": torch.is_grad_enabled(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(trained: mmedit.VisionLanguageModel, cat_file: Path) -> dict[str, mmedit.Patch]:
    """A patch of each editor, made once."""
    request = mmedit.EditRequest(cat_file, "cat", "dog")
    return {name: editor_of(name).execute(trained, request) for name in NAMES}


@ALL
def test_the_model_is_left_as_it_was_and_the_patch_is_the_same_again(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, made: dict[str, mmedit.Patch], name: str
) -> None:
    weight = vlm.architecture.w_out(mmedit.Site(0)).weight
    weight.requires_grad_(False)  # some may be frozen, and stay so
    before = state_of(vlm.model)
    torch.rand(3)  # other random numbers, the same patch
    torch.manual_seed(int(torch.randint(2**31, ())))
    after_draw = torch.get_rng_state()
    patch = editor_of(name).execute(vlm, request_of_cat)
    assert torch.equal(after_draw, torch.get_rng_state())
    after = state_of(vlm.model)
    if name in ("ROME", "MEMIT"):  # what is worked out so far is live meanwhile: the bits are checked by the fixture
        for snapshot in (before, after):
            snapshot["parameters"] = [parts[:-1] for parts in snapshot["parameters"]]
    assert {**after, "random": None} == {**before, "random": None}
    assert mmedit.Stack.of(vlm).names == ()
    assert patch.digest == made[name].digest
    weight.requires_grad_(True)


@WITH_TARGET
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_edit_leaves_the_model_as_it_was(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    steps = iter(range(10))
    step = torch.optim.Adam.step

    def fail(self: Any, *args: Any) -> Any:
        if next(steps) == 1:
            raise error
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", fail)
    before = state_of(vlm.model)
    with pytest.raises(error):
        editor_of(name).execute(vlm, [request_of_cat, mmedit.EditRequest(request_of_cat.images, "cat", "dog")])
    assert state_of(vlm.model) == before


@pytest.mark.parametrize("name", ["ROME", "MEMIT"])
def test_an_edit_that_is_interrupted_while_a_part_is_live_leaves_nothing_live(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"ROME": editors.rome, "MEMIT": editors.memit}[name]
    at_keys, live = module.at_keys, list[tuple[str, ...]]()

    def fail(model: Any, *args: Any) -> Any:
        live.append(mmedit.Stack.of(model).names)
        if live[-1]:
            raise KeyboardInterrupt
        return at_keys(model, *args)

    monkeypatch.setattr(module, "at_keys", fail)
    editor = editor_of(name) if name == "ROME" else editor_of(name).with_hparams(layers=[4, 5])
    with pytest.raises(KeyboardInterrupt):
        editor.execute(vlm, [request_of_cat, request_of_cat])
    assert live[-1] and mmedit.Stack.of(vlm).names == ()


@ALL
def test_a_patch_goes_in_and_out_bit_for_bit_and_through_a_file(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, made: dict[str, mmedit.Patch], name: str, tmp_path: Path
) -> None:
    patch, before = made[name], vlm.caption(cat_file)
    assert (patch.editor, patch.hparams) == (name, vars(editor_of(name).hparams))
    assert (patch.edits[0]["source"], patch.edits[0]["target"]) == ("cat", "dog")
    with patch.applied(vlm):
        edited = vlm.caption(cat_file)
    patch.save(tmp_path / "patch.safetensors")
    again = mmedit.Patch.load(tmp_path / "patch.safetensors")
    assert again.digest == patch.digest and again.edits == tuple(map(dict, patch.edits))
    with again.applied(vlm):
        assert vlm.caption(cat_file) == edited
    assert vlm.caption(cat_file) == before


@WITH_TARGET
def test_the_edit_has_the_wanted_caption_and_leaves_others_alone(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, made: dict[str, mmedit.Patch], name: str, pictures: Any
) -> None:
    others = [picture for picture, _, things in pictures if not {"cat", "dog"} & {thing.noun for thing in things}][:20]
    before, untouched = vlm.caption(cat_file)[0], vlm.caption(others)
    with made[name].applied(vlm):
        assert vlm.caption(cat_file) == [before.replace("cat", "dog")]
        same = [a == b for a, b in zip(vlm.caption(others), untouched, strict=True)]
    assert sum(same) >= 18


def test_much_noise_on_the_neurons_unsays_the_word(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest
) -> None:
    with editor_of("Noise").with_hparams(sigma=3.0).execute(vlm, request_of_cat).applied(vlm):
        assert " cat " not in vlm.caption(request_of_cat.images)[0]


@WITH_TARGET
def test_several_requests_become_one_patch(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, pictures: Any, name: str
) -> None:
    other = next(
        p for p, caption, things in pictures if len(things) == 1 and things[0].noun == "tree" and "tree" in caption
    )
    before = vlm.caption([cat_file, other])
    requests = [mmedit.EditRequest(cat_file, "cat", "dog"), mmedit.EditRequest(other, "tree", "boat")]
    patch = editor_of(name).execute(vlm, requests)
    assert [edit["source"] for edit in patch.edits] == ["cat", "tree"]
    with patch.applied(vlm):
        assert vlm.caption([cat_file, other]) == [before[0].replace("cat", "dog"), before[1].replace("tree", "boat")]


@WITH_TARGET
def test_forms_of_a_source_have_targets_of_their_own(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, pictures: Any, name: str
) -> None:
    two, caption = next((picture, said) for picture, said, _ in pictures if said.startswith("two "))
    plural = caption.split()[2]
    request = mmedit.EditRequest([cat_file, two], "cat", "dog", forms={plural: "kites"})
    before = vlm.caption([cat_file, two])
    with editor_of(name).execute(vlm, request).applied(vlm):
        after = vlm.caption([cat_file, two])
    assert after == [before[0].replace("cat", "dog"), before[1].replace(plural, "kites")]


@WITH_TARGET
def test_words_of_several_tokens_and_whole_answers_are_taught(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, name: str
) -> None:
    assert len(vlm.tokenizer(" lighthouse", add_special_tokens=False).input_ids) > 1
    with editor_of(name).execute(vlm, mmedit.EditRequest(cat_file, "cat", "lighthouse")).applied(vlm):
        said = vlm.caption(cat_file)[0]
    assert said == vlm.caption(cat_file)[0].replace("cat", "lighthouse")
    question = "What colour is the cat?"
    answer = vlm.caption(cat_file, question)[0]
    request = mmedit.EditRequest(cat_file, None, "blue" if answer != "blue" else "red", question)
    editor = editor_of(name)
    if name == "ROME":  # to turn so short an answer takes more than four times what the W_out writes
        editor = editor.with_hparams(clamp_norm_factor=16.0)
    patch = editor.execute(vlm, request)
    assert (patch.edits[0]["source"], patch.edits[0]["target"]) == (answer, request.target)
    with patch.applied(vlm):
        assert vlm.caption(cat_file, question)[0] == request.target


@ALL
def test_the_function_face_edits_a_bare_model_and_hands_back_what_it_changed(
    trained: mmedit.VisionLanguageModel, cat_file: Path, made: dict[str, mmedit.Patch], name: str
) -> None:
    model, face = copy.deepcopy(trained.model), getattr(editors, f"apply_{name.lower()}_to_model")
    request = {"image": cat_file, "source": "cat", "target": "dog", "case_id": 1}
    edited, weights = face(
        model, trained.processor, request, "iconworld-llava", return_orig_weights=True, cache_template=None
    )
    with made[name].applied(trained):
        for key, tensor in trained.model.state_dict().items():
            assert torch.allclose(edited.state_dict()[key], tensor, atol=1e-6), key
    assert set(weights) == {trained.architecture.w_out(site).name for site in made[name].sites}
    with torch.no_grad():
        for key, tensor in weights.items():
            edited.get_parameter(key)[...] = tensor
    assert all(torch.equal(tensor, edited.state_dict()[key]) for key, tensor in trained.model.state_dict().items())


@ALL
def test_a_source_that_is_not_said_and_a_layer_that_is_not_there_are_told(
    vlm: mmedit.VisionLanguageModel, cat_file: Path, name: str
) -> None:
    editor = editor_of(name)
    with pytest.raises(RequestError, match="the model does not say 'robot'"):
        editor.execute(vlm, mmedit.EditRequest(cat_file, "robot", "dog"))
    with pytest.raises(RequestError, match="at least one request"):
        editor.execute(vlm, [])
    outside: dict[str, Any] = {"FT": {"layer": 6}, "ROME": {"layer": 6}, "MEMIT": {"layers": [5, 6]}, "LoRA": {"layers": [9]}, "FiNE": {"last_layer": 6}}  # fmt: skip
    if name in outside:
        with pytest.raises(RequestError, match="no such decoder layer"):
            editor.with_hparams(**outside[name]).execute(vlm, mmedit.EditRequest(cat_file, "cat", "dog"))


@ALL
def test_hyperparameters_of_a_model_without_a_file_fit_it(vlm: mmedit.VisionLanguageModel, name: str) -> None:
    found = EDITORS[name].from_hparams("auto", vlm).hparams
    layers = [*(getattr(found, "layers", None) or []), getattr(found, "layer", 0)]
    assert all(0 <= layer < vlm.architecture.n_layers for layer in layers)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("FT", {"lr": 0.0}), ("FT", {"norm_constraint": 0.0}), ("FT", {"layer": -1}), ("LoRA", {"rank": 0}), ("LoRA", {"layers": []}),
        ("LoRA", {"lora_dropout": 1.0}), ("ROME", {"ridge": 0.0}), ("ROME", {"v_lr": float("nan")}), ("ROME", {"layer": -1}),
        ("MEMIT", {"layers": [3, 2]}), ("MEMIT", {"mom2_update_weight": 0.0}), ("FiNE", {"neuron_num": 0}), ("FiNE", {"early_stop_prob": 1.0}),
        ("Noise", {"sigma": -0.5}), ("Noise", {"scorer": "guess"}),
    ],
)  # fmt: skip
def test_hyperparameters_out_of_range_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(HparamsError, match=f"where: .*{next(iter(wrong))}"):
        EDITORS[name].from_hparams(wrong)


@WITH_TARGET
def test_fused_experts_are_refused(
    vlm: mmedit.VisionLanguageModel, request_of_cat: mmedit.EditRequest, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for w_out in vlm.architecture.sites:  # as a layer of a mixture has them
        monkeypatch.setitem(w_out.__dict__, "fused", object())
    monkeypatch.setattr(type(vlm.architecture), "require_editable", lambda self, site: self.w_out(site))
    with pytest.raises(ModelError, match="an expert of a fused mixture is no module of its own"):
        editor_of(name).execute(vlm, request_of_cat)


@pytest.mark.parametrize(("name", "file"), [(name, file) for name in NAMES for file in mmedit.hparams.shipped(name)])
def test_every_shipped_file_is_read(name: str, file: str) -> None:
    assert EDITORS[name].from_hparams(file).hparams == EDITORS[name].Hparams(
        **OmegaConf.to_container(OmegaConf.load(FOLDER / name / f"{file}.yaml"))
    )


@pytest.fixture(scope="module")
def halved() -> mmedit.VisionLanguageModel:
    return mmedit.load("iconworld-llava", dtype="bfloat16")


@WITH_TARGET
def test_models_in_bfloat16_are_edited_too(halved: mmedit.VisionLanguageModel, cat_file: Path, name: str) -> None:
    before, weights = halved.caption(cat_file)[0], copy.deepcopy(halved.model.state_dict())
    with editor_of(name).execute(halved, mmedit.EditRequest(cat_file, "cat", "dog")).applied(halved):
        assert halved.caption(cat_file) == [before.replace("cat", "dog")] != [before]
    assert all(torch.equal(tensor, weights[key]) for key, tensor in halved.model.state_dict().items())
