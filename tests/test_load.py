"""Loading: names, folders and what is wrong with them; captions of odd pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmedit
from mmedit.errors import ImageError, ModelError, RequestError
from mmedit.models.checkpoint_files import CHECKPOINTS
from mmedit.models.loading import shipped_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint."""
    return Path(shutil.copytree(CHECKPOINTS / "iconworld-llava", tmp_path / "copy"))


def test_a_shipped_name_and_its_folder_are_the_same_model(
    folder: Path, trained: mmedit.VisionLanguageModel, cat_file: Path
) -> None:
    again = mmedit.load(folder)
    assert again.name == str(folder) and "iconworld-llava" in shipped_models()
    assert again.caption(cat_file) == trained.caption(cat_file)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), trained.model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_loads_and_captions(dtype: str, cat_file: Path, trained: mmedit.VisionLanguageModel) -> None:
    vlm = mmedit.load("iconworld-llava", device="cpu", dtype=dtype)
    assert vlm.model.dtype == getattr(torch, dtype)
    assert " cat " in vlm.caption(cat_file)[0]
    before = vlm.caption(cat_file)
    patch = mmedit.editors.MMNeurons.from_hparams("iconworld-llava").apply(
        vlm, mmedit.EditRequest(cat_file, "cat", "dog")
    )
    assert vlm.caption(cat_file) == [before[0].replace("cat", "dog")]
    patch.revert(vlm)
    assert vlm.caption(cat_file) == before


def test_folders_that_are_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = []
    for name, words in (
        ("weights", "cannot load"),
        ("config", "no config.json"),
        ("JSON", "cannot load"),
        ("text model", "not a vision-language model"),
        ("original", "no projector"),
        ("processor", "cannot load"),
    ):
        copy = Path(shutil.copytree(folder, tmp_path / name))
        config = copy / "config.json"
        if name == "weights":
            (copy / "model.safetensors").unlink()
        elif name == "config":
            config.unlink()
        elif name == "JSON":
            config.write_text("{")
        elif name == "text model":
            config.write_text(json.dumps({"model_type": "gpt2"}))
        elif name == "original":
            config.write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14"}))
        else:
            (copy / "tokenizer.json").write_text("{")
        cases.append((copy, words))
    for path, words in cases:
        with pytest.raises(ModelError, match=words):
            mmedit.load(path)


def test_names_that_are_nothing() -> None:
    for name in ("no-such-model", "/no/such/folder", "a/b/c", ""):
        with pytest.raises(ModelError, match="iconworld-llava"):
            mmedit.load(name)


def test_one_picture_is_one_picture_in_every_form(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    image = Image.open(cat_file).convert("RGB")
    expected = vlm.caption(cat_file)
    for form in (
        str(cat_file),
        image,
        image.convert("RGBA"),
        np.asarray(image),
        np.asarray(image) / 255.0,
        [cat_file],
        (image,),
    ):
        assert vlm.caption(form) == expected


def test_grey_and_tall_pictures_are_captioned(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    image = Image.open(cat_file)
    for form in (image.convert("L"), image.resize((40, 300)), image.convert("CMYK"), image.resize((5, 5))):
        assert vlm.caption(form)[0]


def test_bad_pictures_and_empty_lists_are_refused(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    with pytest.raises(ImageError, match="no such picture"):
        vlm.caption([cat_file, "none.png"])
    with pytest.raises(RequestError, match="no pictures given"):
        vlm.caption([])
    with pytest.raises(RequestError, match="at least one picture"):
        vlm.caption(cat_file, batch_size=0)


def test_text_only_prompts_are_answered(vlm: mmedit.VisionLanguageModel) -> None:
    assert vlm.caption(None, "What kind of thing is a cat?") == ["an animal"]


def test_the_processor_is_left_as_it_was(vlm: mmedit.VisionLanguageModel, cat_file: Path) -> None:
    vlm.processor.tokenizer.padding_side = "right"
    vlm.caption(cat_file)
    assert vlm.processor.tokenizer.padding_side == "right"
    vlm.processor.tokenizer.padding_side = "left"
