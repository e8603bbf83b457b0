"""LLaVA in its original format: against the numbers of the original code, and as part of the library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from original_llava import original_names, speaking, without_image_token, write_original
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

import mmedit
from mmedit.errors import ModelError
from mmedit.models.llava_v1 import conversation, folders
from mmedit.models.llava_v1.conversations import chat_template
from mmedit.patches.convert import convert
from mmedit.requests import Prompt

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
needs_numbers = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"the reference numbers are not at {FIXTURES}")
TOLERANCE = 1e-3  # of the fixture's README; what is seen is 1e-5
Pictures = list[tuple[Image.Image, str, Any]]
NAME = "llava-llama-2-tiny"
SYSTEM = "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language."
CHAT = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions."


@pytest.fixture(scope="module")
def seen(pictures: Pictures) -> list[Image.Image]:
    return [picture for picture, _, _ in pictures[:3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained: mmedit.VisionLanguageModel) -> Path:
    """An original checkpoint with a projector of one map, that speaks, though what it sees means nothing to it."""
    path = tmp_path_factory.mktemp("original") / NAME
    return write_original(path, speaking(trained, linear=True), without_image_token(trained.processor))


@pytest.fixture(scope="module")
def vlm(folder: Path) -> mmedit.VisionLanguageModel:
    return mmedit.load(folder)


@pytest.fixture(scope="module")
def converted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(folder, tmp_path_factory.mktemp("converted") / "new").folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / NAME))


def logits_of(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


@needs_numbers
def test_the_numbers_of_the_original_code(tmp_path: Path) -> None:
    path, vocabulary = tmp_path / NAME, {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 131)}
    shutil.copytree(FIXTURES / "llava_v1", path, copy_function=shutil.copyfile)
    path.chmod(0o755)  # the fixture cannot be written to
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(path)
    vlm, new = mmedit.load(path), convert(path, tmp_path / "new").folder
    stored, expected = load_file(path / "inputs.safetensors"), load_file(path / "outputs.safetensors")
    image = [vlm.model.config.image_token_id] * 16
    ids = [token for t in stored["input_ids"][0].tolist() for token in (image if t == -200 else [t])]
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": stored["pixel_values"]}
    alone = AutoModelForImageTextToText.from_pretrained(new).eval()
    assert logits_of(vlm.model, inputs).shape == expected["logits"].shape
    for model in (vlm.model, mmedit.load(new).model, alone):
        assert (logits_of(model, inputs)[..., :131] - expected["logits"]).abs().max() < TOLERANCE
        features = torch.stack(model.get_image_features(pixel_values=stored["pixel_values"]).pooler_output)
        assert (features - expected["image_features"]).abs().max() < TOLERANCE


@pytest.mark.parametrize(("linear", "shards", "select"), [(True, 3, "default"), (False, 0, "default"), (False, 2, "full")])  # fmt: skip
def test_both_projectors_all_files_and_the_converted_folder_give_the_same_logits(
    linear: bool, shards: int, select: str, trained: mmedit.VisionLanguageModel, tmp_path: Path, seen: list[Image.Image]
) -> None:
    model = speaking(trained, linear, select)
    path = write_original(tmp_path / NAME, model, without_image_token(trained.processor), shards)
    vlm = mmedit.load(path)
    inputs = vlm.inputs(seen)
    is_image = inputs["input_ids"] == vlm.model.config.image_token_id
    assert (is_image.sum(1) == 64 + (select == "full")).all()
    expected = logits_of(model, dict(inputs) | {"input_ids": inputs["input_ids"].masked_fill(is_image, 4)})
    assert torch.equal(logits_of(vlm.model, inputs), expected)
    new = convert(path, tmp_path / "new").folder
    alone = AutoModelForImageTextToText.from_pretrained(new).eval()
    assert torch.equal(logits_of(alone, inputs)[..., :519], expected)
    ours = AutoProcessor.from_pretrained(new)(images=seen, text=[vlm.render(None)] * 3, return_tensors="pt")
    assert all(torch.equal(ours[name], inputs[name]) for name in inputs)


def test_a_tower_that_was_trained_on_counts_and_later_names_are_known(
    folder: Path, copy: Path, vlm: mmedit.VisionLanguageModel, seen: list[Image.Image]
) -> None:
    tower = {f"model.vision_tower.vision_tower.vision_model.{n}": 2 * t for n, t in vlm.model.model.vision_tower.state_dict().items()}  # fmt: skip
    save_file(load_file(copy / "model.safetensors") | tower, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "llava_llama"}))
    ours, theirs = mmedit.load(copy).model.model.vision_tower.state_dict(), vlm.model.model.vision_tower.state_dict()
    assert all(torch.equal(ours[name], 2 * theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_whole_model_has_the_type_of_its_language_model(copy: Path, dtype: str) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}, copy / "model.safetensors")
    for vlm, kind in ((mmedit.load(copy), dtype), (mmedit.load(copy, dtype="float32", device="cpu"), "float32")):
        assert {parameter.dtype for parameter in vlm.model.parameters()} == {getattr(torch, kind)}
    assert str(convert(copy, copy.parent / "new").dtype) == f"torch.{dtype}"


def test_conversations_go_by_the_name() -> None:
    for name, expected in {
        "liuhaotian/llava-llama-2-13b-chat-lightning-preview": "llava_llama_2", "/models/LLaVA-v1.5-7b/": "llava_v1", "liuhaotian/LLaVA-7b-v0": "llava_v0",
        "runs/llava-llama-2-13b/checkpoint-500": "llava_llama_2", "llava-llama-2-v1": "llava_llama_2", "my-v1-mpt": "llava_v1", "LLaVA-Lightning-MPT": "mpt",
        "v1/llava": "llava_v0", "/cache/models--liuhaotian--llava-v1-7b/snapshots/0123abc": "llava_v1",
    }.items():  # fmt: skip
        assert conversation(name) == expected, name


TEXTS = {
    "llava_llama_2": (f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n<image>\nWhy? [/INST]", " It is. </s><s>[INST] Is it? [/INST]"),
    "llava_v1": (f"{CHAT} USER: <image>\nWhy? ASSISTANT:", " It is.</s>USER: Is it? ASSISTANT:"),
    "llava_v0": (f"{CHAT}###Human: <image>\nWhy?###Assistant:", " It is.###Human: Is it?###Assistant:"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_conversations_are_those_of_the_original_code(kind: str, vlm: mmedit.VisionLanguageModel) -> None:
    first, then = TEXTS[kind]
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}
    more = [asked, {"role": "assistant", "content": "It is."}, {"role": "user", "content": "Is it?"}]

    def said(turns: list[dict[str, Any]], start_end: bool = False) -> str:
        template = chat_template(kind, start_end)
        return str(
            vlm.processor.apply_chat_template(turns, chat_template=template, add_generation_prompt=True, tokenize=False)
        )

    assert said([asked]) == first and said(more) == first + then
    assert said([asked], start_end=True) == first.replace("<image>", "<im_start><image><im_end>")
    kind_words = [{"role": "system", "content": "Be kind."}, asked]
    assert said(kind_words) == first.replace(SYSTEM, "Be kind.").replace(CHAT, "Be kind.")


def test_prompts_end_as_the_paper_has_them(vlm: mmedit.VisionLanguageModel, trained: mmedit.VisionLanguageModel) -> None:  # fmt: skip
    head = f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n"
    assert vlm.render(None) == head + "<image>\nDescribe the image in few words. [/INST]An image of"
    assert vlm.render(Prompt("What is it?"), with_image=False) == head + "What is it? [/INST]"
    assert trained.render(None).endswith("ASSISTANT: An image of")


@needs_numbers
def test_a_picture_parts_the_text_as_in_the_original_code(vlm: mmedit.VisionLanguageModel, copy: Path, trained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:  # fmt: skip
    """There every part is tokenized by itself, so that each begins with sentencepiece's mark of a word."""
    spoken = FIXTURES / "mplug_owl2" / "tokenizer" / "tokenizer.model"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    shutil.copyfile(spoken, copy / "tokenizer.model")
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spoken))
    new = convert(copy, tmp_path / "new").folder
    for ours in (mmedit.load(copy), mmedit.load(new)):
        before, after = ours.render(None).split("<image>")
        image = [ours.model.config.image_token_id] * 64
        got = ours.inputs(Image.new("RGB", (64, 64)))["input_ids"][0].tolist()
        assert got == [1, *pieces.encode(before), *image, *pieces.encode(after)]
        assert image[0] == 519 and len(ours.tokenizer) == 520  # after every row that the checkpoint has


def test_pictures_are_scaled_and_cropped_and_padded_only_where_trained_so(vlm: mmedit.VisionLanguageModel, copy: Path) -> None:  # fmt: skip
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": "pad"}))
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    canvas = Image.new("RGB", (160, 160), tuple(int(255 * value) for value in mean))
    canvas.paste(picture, (0, 35))
    cut = picture.resize((113, 64), Image.Resampling.BICUBIC).crop((24, 0, 88, 64))
    for one, expected in ((vlm, cut), (mmedit.load(copy), canvas.resize((64, 64), Image.Resampling.BICUBIC))):
        values = (np.asarray(expected) / 255 - mean) / np.array([0.26862954, 0.26130258, 0.27577711])
        got = one.inputs(picture)["pixel_values"][0].permute(1, 2, 0).numpy()
        assert np.abs(got - values).max() < 1e-5


def test_the_row_of_the_image_token_is_no_word(
    vlm: mmedit.VisionLanguageModel, converted: Path, seen: list[Image.Image]
) -> None:
    image = vlm.model.config.image_token_id
    assert image == 519 and vlm.model.lm_head.weight.shape == (520, 128) and not vlm.model.lm_head.weight[519].any()
    for one in (vlm, mmedit.load(converted)):
        assert one.architecture.w_u.shape == (519, 128)
        assert logits_of(one.model, one.inputs(seen)).shape[-1] == 519
        again = mmedit.VisionLanguageModel(one.model, one.processor)  # a second one changes nothing
        assert logits_of(again.model, again.inputs(seen)).shape[-1] == 519
    ranking = mmedit.locate_word(vlm, seen[0], vlm.caption(seen[0])[0].split()[0], k=20, n_tokens=519)
    assert all(len(neuron.tokens) == 519 and "<image>" not in neuron.tokens for neuron in ranking)


def test_the_image_token_is_never_said(copy: Path, tmp_path: Path, seen: list[Image.Image]) -> None:
    """Even where every word is less likely than what zeros give."""
    weights = load_file(copy / "model.safetensors")
    n, d_model = weights["lm_head.weight"].shape
    weights["lm_head.weight"] = -torch.arange(1.0, n + 1)[:, None].expand(n, d_model).contiguous()
    save_file(weights, copy / "model.safetensors")
    new = convert(copy, tmp_path / "new").folder
    alone = AutoModelForImageTextToText.from_pretrained(new).eval()
    models = [one.model for one in (mmedit.load(copy), mmedit.load(new))]
    inputs = mmedit.load(copy).inputs(seen)
    for model in (*models, alone):
        model.model.language_model.norm.register_forward_hook(lambda module, args, output: torch.ones_like(output))
        said = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, -3:]
        assert (said == 0).all()  # the first token; -1 times d_model is the greatest logit of a word
    assert (logits_of(alone, inputs)[..., 519] == 0).all()


def test_weights_are_those_of_the_checkpoint_and_can_be_saved(vlm: mmedit.VisionLanguageModel, trained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:  # fmt: skip
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    again = mmedit.load(tmp_path)
    state = vlm.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())
    expected = original_names(speaking(trained, linear=True))
    assert torch.equal(state["lm_head.weight"][:519], expected["lm_head.weight"])


@pytest.mark.parametrize("onto", ["original", "original in shards", "converted"])
def test_a_patch_is_made_applied_reverted_saved_and_baked(
    onto: str, folder: Path, converted: Path, trained: mmedit.VisionLanguageModel, seen: list[Image.Image], tmp_path: Path,
) -> None:  # fmt: skip
    shards = tmp_path / "shards" / NAME
    if onto == "original in shards":
        write_original(shards, speaking(trained, linear=True), without_image_token(trained.processor), shards=3)
    source = {"original": folder, "converted": converted}.get(onto, shards)
    vlm = mmedit.load(source)
    before, said = {n: t.clone() for n, t in vlm.model.state_dict().items()}, vlm.caption(seen)
    editor = mmedit.editors.MMNeurons.from_hparams("iconworld-llava")
    patch = editor.execute(vlm, mmedit.EditRequest(seen[:1], said[0].split()[1], "dog"))
    patch.save(tmp_path / "p.safetensors")
    again = mmedit.Patch.load(tmp_path / "p.safetensors")
    with again.applied(vlm):
        edited, says = {n: t.clone() for n, t in vlm.model.state_dict().items()}, vlm.caption(seen)
    assert vlm.caption(seen) == said != says and "dog" in says[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in vlm.model.state_dict().items())
    (tmp_path / "baked").mkdir()
    mmedit.bake(source, [again], tmp_path / "baked" / NAME)
    baked = mmedit.load(tmp_path / "baked" / NAME)
    assert all(torch.equal(tensor, edited[name]) for name, tensor in baked.model.state_dict().items())
    assert baked.caption(seen) == says
    found = mmedit.diff(source, tmp_path / "baked" / NAME)
    assert found.sites == again.sites
    again.apply(mmedit.load({"converted": folder}.get(onto, converted)))  # a patch of one fits the other


class Hub:
    """Stands for huggingface_hub's two functions: a folder per repository, and what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, list[tuple[Any, ...]]()

    def file(self, repo: str, name: str, *, revision: str | None = None) -> str:
        self.asked.append((repo, name, revision))
        if not (self.root / repo / name).is_file():
            raise LocalEntryNotFoundError("no network, and not in the cache")
        return str(self.root / repo / name)

    def snapshot(self, repo: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        self.asked.append((repo, *allow_patterns, revision))
        if not (self.root / repo).is_dir():
            raise LocalEntryNotFoundError("no network, and not in the cache")
        return str(self.root / repo)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(folders, "hf_hub_download", stand_in.file)
    monkeypatch.setattr(folders, "snapshot_download", stand_in.snapshot)
    return stand_in


def test_a_hub_id_is_looked_into_before_transformers_is_asked(
    hub: Hub, folder: Path, trained: mmedit.VisionLanguageModel, vlm: mmedit.VisionLanguageModel, seen: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of the tower's files only the config is left to transformers, of the model's nothing."""
    original = write_original(hub.root / "owner" / NAME, speaking(trained, linear=True), without_image_token(trained.processor), shards=2, mm_vision_tower="open/clip")  # fmt: skip
    shutil.move(original / "clip_tower", hub.root / "open" / "clip")
    configs = AutoConfig.from_pretrained

    def watched(path: Any, *args: Any, **options: Any) -> Any:
        assert Path(path) == hub.root / "open" / "clip", f"transformers was asked for {path}"
        return configs(path, *args, **options)

    monkeypatch.setattr(AutoConfig, "from_pretrained", watched)
    ours = mmedit.load(f"owner/{NAME}", revision="main")
    assert ours.name == f"owner/{NAME}" and ours.revision == "main"
    assert hub.asked[0] == (f"owner/{NAME}", "config.json", "main")
    asked = [call for call in hub.asked[1:] if call[0] == f"owner/{NAME}"]
    assert asked and all(call[-1] == "main" and not {"*.safetensors", "*.bin"} & set(call) for call in asked)
    assert ("open/clip", "*.json", "tokenizer.model", "model*.safetensors", "model*.safetensors.index.json", None) in hub.asked  # fmt: skip
    assert ours.caption(seen) == vlm.caption(seen) and ours.render(None) == vlm.render(None)


def test_a_folder_of_the_hub_cache_consists_of_links(folder: Path, vlm: mmedit.VisionLanguageModel, tmp_path: Path, seen: list[Image.Image]) -> None:  # fmt: skip
    """They lead to the repository's own blobs, and the name stands in another place; links to elsewhere are refused."""
    blobs = shutil.copytree(folder, tmp_path / f"models--owner--{NAME}" / "blobs")
    snapshot = blobs.parent / "snapshots" / "0123abc"
    (snapshot / "clip_tower").mkdir(parents=True)
    for file in (path for path in blobs.rglob("*") if path.is_file()):
        (snapshot / file.relative_to(blobs)).symlink_to(file)
    ours = mmedit.load(snapshot, device="auto")
    assert ours.caption(seen) == vlm.caption(seen) and ours.render(None) == vlm.render(None)
    shutil.move(blobs / "model.safetensors", tmp_path / "elsewhere")
    (blobs / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="a link that leaves"):
        mmedit.load(snapshot)


def test_the_users_tower_counts_over_the_named_one(
    folder: Path, copy: Path, hub: Hub, tmp_path: Path, seen: list[Image.Image]
) -> None:
    shutil.move(copy / "clip_tower", tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="vision_tower="):
        mmedit.load(copy)
    assert mmedit.load(copy, vision_tower=tmp_path / "elsewhere").caption(seen) == mmedit.load(folder).caption(seen)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"mm_vision_tower": str(tmp_path / "elsewhere")}))
    assert mmedit.load(copy).caption(seen) == mmedit.load(folder).caption(seen)
    with pytest.raises(ModelError, match="cannot get this checkpoint from the Hub"):
        mmedit.load(copy, vision_tower="openai/no-such-clip")
    with pytest.raises(ModelError, match="original format is told its vision_tower"):
        mmedit.load("iconworld-llava", vision_tower=tmp_path / "elsewhere")


def change(**values: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        config = json.loads((path / "config.json").read_text()) | values
        (path / "config.json").write_text(json.dumps(config))

    return write


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        edit(tensors)
        save_file(tensors, path / "model.safetensors")

    return write


def only_adapter(path: Path) -> None:
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")


def outside(path: Path) -> None:
    (path / "model.safetensors").rename(path.parent / "model.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "../model.safetensors"}}))  # fmt: skip


def pickled(path: Path) -> None:
    (path / "model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.zeros(2), "run": shutil.rmtree}, path / "pytorch_model.bin")


def remove(*names: str) -> Callable[[Path], None]:
    return lambda path: [(path / name).unlink() for name in names] and None


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tower": (lambda path: shutil.rmtree(path / "clip_tower"), "vision tower is not here"),
    "no tower named": (change(mm_vision_tower=None), "vision tower is not here"),
    "a tower of another kind": (lambda path: (path / "clip_tower" / "config.json").write_text('{"model_type": "siglip_vision_model"}'), "vision tower is a CLIP"),
    "a tower that says nothing": (remove("clip_tower/preprocessor_config.json"), "how pictures are prepared"),
    "a tower without weights": (remove("clip_tower/model.safetensors"), "without weights"),
    "no projector": (weights(lambda w: [w.pop(n) for n in list(w) if "mm_projector" in n]), "no projector"),
    "no language model": (weights(lambda w: [w.pop(n) for n in list(w) if "mm_projector" not in n]), "no language model"),
    "a layer missing": (weights(lambda w: w.pop("model.layers.1.mlp.up_proj.weight")), "weights are missing"),
    "no unembedding": (weights(lambda w: w.pop("lm_head.weight")), "weights are missing"),
    "image_newline": (weights(lambda w: w.update({"model.image_newline": torch.zeros(128)})), "does not have"),
    "a projector for another tower": (weights(lambda w: w.update({"model.mm_projector.weight": torch.zeros(128, 64)})), "another shape"),
    "another vocabulary": (change(vocab_size=32000), "another size"),
    "another width": (change(hidden_size=64), "another shape"),
    "a word for a number": (change(hidden_size="wide"), "cannot use this configuration"),
    "an unknown projector": (change(mm_projector_type="identity"), "mlp2x_gelu"),
    "unknown features": (change(mm_vision_select_feature="cls"), "cls_patch"),
    "only an adapter": (only_adapter, "beside a base model"),
    "no weights": (remove("model.safetensors"), "without weights"),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "without a tokenizer"),
    "a broken tokenizer": (lambda path: (path / "tokenizer.json").write_text("{"), "cannot read this tokenizer"),
    "tokens without rows": (change(mm_use_im_start_end=True), "have no rows"),
    "MPT": (change(architectures=["LlavaMPTForCausalLM"], model_type="llava_mpt"), "MPT decoder"),
    "version 1.6": (change(image_aspect_ratio="anyres"), "version 1.6"),
    "Mistral": (change(architectures=["LlavaMistralForCausalLM"]), "version 1.6"),
    "an index that leaves the folder": (outside, "damaged checkpoint"),
    "a pickle": (pickled, "cannot read this weight file"),
    "cut off": (lambda path: (path / "model.safetensors").write_bytes(b"12"), "cannot read this weight file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_missing_or_of_another_kind_is_told(case: str, copy: Path, hub: Hub) -> None:
    damage, words = BROKEN[case]
    damage(copy)
    with pytest.raises(ModelError, match=words):
        mmedit.load(copy)
    with pytest.raises(ModelError, match=words):
        convert(copy, copy.parent / "new")
    assert [path.name for path in copy.parent.iterdir() if path.name not in ("model.safetensors",)] == [NAME]
    assert not hub.asked


@pytest.mark.parametrize("name", ["LLaVA-Lightning-MPT-7B-preview", "LLaVA-7b-delta-v1"])
def test_names_that_say_that_it_is_another(name: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"MPT decoder|differences to LLaMA"):
        mmedit.load(shutil.copytree(folder, tmp_path / name))


def test_start_and_end_tokens_have_the_rows_that_the_original_gives_them(trained: mmedit.VisionLanguageModel, tmp_path: Path) -> None:  # fmt: skip
    model = speaking(trained, linear=True)
    model.resize_token_embeddings(522, mean_resizing=False)
    flags = {"mm_use_im_patch_token": True, "mm_use_im_start_end": True}
    path = write_original(tmp_path / NAME, model, without_image_token(trained.processor), **flags)
    vlm = mmedit.load(path)
    ids = vlm.tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>", "<image>"])
    assert ids == [519, 520, 521, 522] and vlm.architecture.n_vocab == 522
    row = vlm.inputs(Image.new("RGB", (64, 64)))["input_ids"][0].tolist()
    first = row.index(520)
    assert row[first : first + 66] == [520, *[522] * 64, 521]


def test_other_folders_are_left_to_transformers(hub: Hub, converted: Path, copy: Path) -> None:
    with pytest.raises(ModelError, match="not a LLaVA in its original format"):
        convert(converted, copy.parent / "new")
    (copy / "config.json").write_text(json.dumps({"model_type": "gpt2", "mm_vision_tower": "clip_tower"}))
    with pytest.raises(ModelError, match="not a vision-language model"):
        mmedit.load(copy)
    mmedit.load("iconworld-llava")
    assert not hub.asked


def test_the_new_folder_is_whole_or_not_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    for inside in (folder / "new", folder):
        with pytest.raises(mmedit.errors.OutputError):
            convert(folder, inside)
    monkeypatch.setattr("transformers.LlavaProcessor.save_pretrained", full)
    with pytest.raises(mmedit.errors.OutputError, match="No space left"):
        convert(folder, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_patch_leaves_the_mapped_files_alone(folder: Path, seen: list[Image.Image]) -> None:
    before = (folder / "model.safetensors").read_bytes()
    vlm = mmedit.load(folder)
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            parameter.zero_()
    assert (folder / "model.safetensors").read_bytes() == before
