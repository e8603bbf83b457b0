"""Shared by all tests: the shipped model, tiny untrained ones, and pictures."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaProcessor

import mmedit
from mmedit.testbed import Thing, benchmark_pictures
from mmedit.testbed.checkpoint import build_llava, build_processor

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background job, in which tests of Ctrl-C would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test finds answers in the user's cache, or leaves any there."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMEDIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def trained() -> mmedit.VisionLanguageModel:
    """The shipped LLaVA; whoever edits it must revert."""
    return mmedit.load("iconworld-llava")


@pytest.fixture
def vlm(trained: mmedit.VisionLanguageModel) -> Iterator[mmedit.VisionLanguageModel]:
    """The shipped LLaVA, and a check that the test left its weights as they were."""
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    yield trained
    after = trained.model.state_dict()
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert not changed, f"the test left {changed} changed"


@pytest.fixture(scope="session")
def processor() -> LlavaProcessor:
    return build_processor()


@pytest.fixture
def untrained(processor: LlavaProcessor) -> mmedit.VisionLanguageModel:
    """A LLaVA with random weights, the test's own to change."""
    return mmedit.VisionLanguageModel(build_llava(processor), processor, "untrained")


@pytest.fixture(scope="session")
def pictures() -> list[tuple[Image.Image, str, tuple[Thing, ...]]]:
    """The first 48 benchmark pictures with captions and things."""
    return list(benchmark_pictures(48))


@pytest.fixture(scope="session")
def two_things(
    trained: mmedit.VisionLanguageModel, pictures: list[tuple[Image.Image, str, tuple[Thing, ...]]]
) -> tuple[Image.Image, str, str, str]:
    """A picture with two things that the shipped model names, its caption and both nouns."""
    for picture, caption, things in pictures:
        nouns = [thing.noun for thing in things]
        if (
            len({*nouns}) == 2
            and all(noun in caption.split() for noun in nouns)
            and trained.caption(picture) == [caption]
        ):
            return picture, caption, nouns[0], nouns[1]
    raise AssertionError("the shipped model names two things in none of 48 pictures")


@pytest.fixture(scope="session")
def cat_file(tmp_path_factory: pytest.TempPathFactory, trained: mmedit.VisionLanguageModel) -> Path:
    """A picture file in which the shipped model says `cat`."""
    from mmedit.testbed.world import render, scene

    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    for number in range(20):
        picture, _ = render(scene("benchmark", 5000 + number, include="cat", arrangement="one"))
        if " cat " in trained.caption(picture)[0]:
            picture.save(path)
            return path
    raise AssertionError("the shipped model says cat about none of 20 pictures of cats")


@pytest.fixture
def request_of_cat(cat_file: Path) -> mmedit.EditRequest:
    return mmedit.EditRequest(cat_file, "cat", "dog")
