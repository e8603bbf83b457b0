"""mPLUG-Owl2 in the library: loading, prompts, pictures, locating, patches, baking, adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

import mmedit
from mmedit.errors import ModelError, RequestError
from mmedit.models.mplug_owl2 import MPLUGOwl2Config, MPLUGOwl2LlamaForCausalLM, MPLUGOwl2Processor, processing
from mmedit.requests import Prompt
from mmedit.testbed.mplug_owl2 import begin, build_mplug_owl2, build_processor

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
TOKENIZER = Path(__file__).parents[2] / "shared" / "fixtures" / "mplug_owl2" / "tokenizer"
Pictures = list[tuple[Image.Image, str, Any]]
SYSTEM = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, processor: LlavaProcessor) -> Path:
    """A checkpoint whose language model is that of iconworld-llava; it speaks, but what it sees means nothing to it."""
    path = tmp_path_factory.mktemp("mplug_owl2")
    ours = build_processor(processor.tokenizer)
    model = build_mplug_owl2(ours)
    begin(model, torch.empty(0))
    model.save_pretrained(path)
    ours.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def vlm(folder: Path) -> mmedit.VisionLanguageModel:
    return mmedit.load(folder)


@pytest.fixture(scope="module")
def seen(pictures: Pictures) -> list[Image.Image]:
    return [picture for picture, _, _ in pictures[:3]]


@pytest.fixture(scope="module")
def patch(vlm: mmedit.VisionLanguageModel, seen: list[Image.Image]) -> mmedit.Patch:
    """A swap of the first word that the model says of a picture."""
    word = vlm.caption(seen[:1])[0].split()[0]
    editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
    return editor.execute(vlm, mmedit.EditRequest(seen[:1], word, "dog"))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_folder_is_loaded_by_its_model_type(vlm: mmedit.VisionLanguageModel, seen: list[Image.Image]) -> None:
    assert isinstance(vlm.model, MPLUGOwl2LlamaForCausalLM) and isinstance(vlm.processor, MPLUGOwl2Processor)
    captions = vlm.caption(seen)
    assert all(captions) and captions == [caption for one in seen for caption in vlm.caption(one)]
    assert vlm.caption(None, "What kind of thing is a cat?") == ["an animal"]  # what its language model knows


def test_the_resolver_finds_what_locating_needs(vlm: mmedit.VisionLanguageModel, seen: list[Image.Image]) -> None:
    architecture = vlm.architecture
    assert sorted(architecture.w_outs) == [mmedit.Site(i) for i in range(6)]
    assert (architecture.d_model, architecture.d_ffn) == (128, 512)
    assert architecture.unembedding is vlm.model.lm_head and architecture.final_norm is vlm.model.model.norm
    ids = vlm.inputs(seen)["input_ids"]
    assert ((ids == architecture.image_token_id).sum(1) == 17).all()  # so image positions can be read off the inputs
    assert vlm.model.get_decoder() is vlm.model.model


def test_a_patch_is_applied_reverted_saved_baked_and_exported(
    vlm: mmedit.VisionLanguageModel, patch: mmedit.Patch, seen: list[Image.Image], folder: Path, tmp_path: Path
) -> None:
    before, said = weights(vlm.model), vlm.caption(seen)
    with patch.applied(vlm):
        edited, says = weights(vlm.model), vlm.caption(seen)
    assert vlm.caption(seen) == said != says
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(vlm.model).items())
    changed = {name for name, tensor in edited.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{site.layer}.mlp.down_proj.weight" for site in patch.sites}

    patch.save(tmp_path / "p.safetensors")
    again = mmedit.Patch.load(tmp_path / "p.safetensors")
    mmedit.bake(folder, [again], tmp_path / "baked")
    baked = mmedit.load(tmp_path / "baked")
    assert all(torch.equal(tensor, edited[name]) for name, tensor in weights(baked.model).items())
    assert baked.caption(seen) == says

    again.to_lora(tmp_path / "adapter", vlm)
    adapted = PeftModel.from_pretrained(mmedit.load(folder).model, str(tmp_path / "adapter")).merge_and_unload()
    assert all(torch.equal(tensor, edited[name]) for name, tensor in weights(adapted).items())


def test_bin_shards_are_baked_under_their_own_names(
    patch: mmedit.Patch, vlm: mmedit.VisionLanguageModel, folder: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(folder, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    shards = {name: f"pytorch_model-0000{1 + len(name) % 2}-of-00002.bin" for name in tensors}
    for shard in set(shards.values()):
        torch.save({name: tensor for name, tensor in tensors.items() if shards[name] == shard}, source / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    mmedit.bake(source, [patch], tmp_path / "baked")
    with patch.applied(vlm):
        wanted = weights(vlm.model)
    assert all(torch.equal(t, wanted[name]) for name, t in weights(mmedit.load(tmp_path / "baked").model).items())


@pytest.mark.skipif(not TOKENIZER.is_dir(), reason=f"the small sentencepiece model is not at {TOKENIZER}")
def test_a_checkpoint_laid_out_as_published_is_loaded(
    tmp_path: Path, seen: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.bin` weights, preprocessor_config.json, tokenizer.model, and nothing that names our processor."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    visual = {
        "visual_model": size | {"image_size": 28},
        "visual_abstractor": size | {"encoder_hidden_size": 32, "grid_size": 2},
    }
    model = MPLUGOwl2LlamaForCausalLM(MPLUGOwl2Config(vocab_size=340, visual_config=visual, **size))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, tmp_path / name)
    pil = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    named = {
        "image_processor_type": "SiglipImageProcessor"
    }  # the class, which decides who scales, is not left to the file
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pil.to_dict() | named))

    vlm = mmedit.load(tmp_path, dtype="float32")
    batch = vlm.inputs(seen)
    assert (batch["input_ids"] == -200).sum().item() == 3 * 65
    assert len(vlm.caption(seen)) == 3
    assert type(vlm.processor.image_processor) is CLIPImageProcessorPil

    def unreadable(*args: Any, **options: Any) -> Any:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreadable)
    with pytest.raises(ModelError, match="tiktoken"):
        mmedit.load(tmp_path)
    monkeypatch.setattr(processing, "is_sentencepiece_available", lambda: False)
    with pytest.raises(ModelError, match=r"pip install 'mmedit-vlm\[sentencepiece\]'"):
        mmedit.load(tmp_path)


def test_its_successor_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "mplug_owl2_1"}))
    with pytest.raises(ModelError, match="mplug_owl2_1"):
        mmedit.load(copy)


def test_prompts_are_the_familys_own(vlm: mmedit.VisionLanguageModel) -> None:
    assert vlm.render(None) == "USER: <|image|>Describe the image in few words. ASSISTANT: An image of"
    assert vlm.render(Prompt("What is it?"), with_image=False) == "USER: What is it? ASSISTANT:"
    user = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Same?"}]
    turns = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    text = vlm.processor.apply_chat_template(turns, add_generation_prompt=True)
    assert text == "USER: <|image|><|image|>Same? ASSISTANT: Yes.</s>USER: Why? ASSISTANT:"
    with pytest.raises(Exception, match="takes no system text"):
        vlm.processor.apply_chat_template(SYSTEM)


def test_prompts_become_ids_with_places_for_pictures(vlm: mmedit.VisionLanguageModel, seen: list[Image.Image]) -> None:
    ours, plain = vlm.processor, vlm.tokenizer
    text, image = "USER: <|image|>What is it? ASSISTANT:", [-200] * 17
    before, after = (plain(part, add_special_tokens=False).input_ids for part in text.split("<|image|>"))
    assert ours(seen[:1], text)["input_ids"] == [[1, *before, *image, *after]]
    assert ours(seen[:1], text, add_special_tokens=False)["input_ids"] == [[*before, *image, *after]]
    assert ours(seen[:1], f"<s>{text}", add_special_tokens=False)["input_ids"] == [[1, *before, *image, *after]]
    assert ours(seen[:1], "<|image|>a")["input_ids"][0][:18] == [*image, 1]  # so does the original
    batch = ours(seen[:2], [text, "x", f"{text} no"], padding=True)
    rows, mask = batch["input_ids"], batch["attention_mask"]
    assert {len(r) for r in rows} == {len(r) for r in mask} == {len(rows[2])}
    assert all([t for t, m in zip(r, ms, strict=True) if m] == one for r, ms, one in zip(rows, mask, ours(seen[:2], [text, "x", f"{text} no"])["input_ids"], strict=True))  # fmt: skip
    assert rows[1][-2:] == [1, *plain("x", add_special_tokens=False).input_ids] and mask[1][-2:] == [1, 1]
    right = ours(None, ["x", "a b c"], padding=True, padding_side="right")
    assert right["input_ids"][0][-1] == plain.pad_token_id and right["attention_mask"][0][-1] == 0
    with pytest.raises(RequestError, match="a video"):
        ours(seen[:1], text, videos=seen)
    for images, texts in ((None, text), (seen[:2], text), (seen[:1], "x")):
        with pytest.raises(RequestError, match="do not match"):
            ours(images, texts)


def test_a_whole_conversation_is_decoded_again(vlm: mmedit.VisionLanguageModel, seen: list[Image.Image]) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", "image": seen[0]}, {"type": "text", "text": "What is it?"}]}
    ]
    batch = vlm.processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(batch["input_ids"], vlm.inputs(seen[0], "What is it?")["input_ids"])
    assert torch.equal(batch["pixel_values"], vlm.inputs(seen[0], "What is it?")["pixel_values"])
    said = vlm.processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert said == ["USER: What is it? ASSISTANT:"]


@pytest.mark.parametrize("how", ["resize", "pad", "crop"])
def test_the_way_to_make_pictures_square_is_kept(vlm: mmedit.VisionLanguageModel, tmp_path: Path, how: Any) -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    ours = MPLUGOwl2Processor(vlm.processor.image_processor, vlm.tokenizer, image_aspect_ratio=how, num_image_tokens=3)
    ours.save_pretrained(tmp_path)
    again = MPLUGOwl2Processor.from_pretrained(tmp_path)
    assert (again.image_aspect_ratio, again.num_image_tokens) == (how, 3)
    wanted = ours(array, "<|image|>", return_tensors="pt")
    for name, tensor in again(array, "<|image|>", return_tensors="pt").items():
        assert torch.equal(tensor, wanted[name])
    cropped = vlm.processor.image_processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    assert torch.equal(wanted["pixel_values"], cropped) is (how == "crop")


def test_an_unknown_way_to_make_pictures_square_is_refused(vlm: mmedit.VisionLanguageModel) -> None:
    with pytest.raises(ModelError, match="resize, pad, crop"):
        MPLUGOwl2Processor(vlm.processor.image_processor, vlm.tokenizer, image_aspect_ratio="anyres")  # type: ignore[arg-type]
