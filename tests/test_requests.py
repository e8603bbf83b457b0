"""What a user may ask for, and what is refused with which words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmedit.errors import RequestError
from mmedit.requests import CAPTION_PROMPT, EditRequest, Prompt, as_list, as_prompt

law = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy

PICTURES = ["cat.png", Path("cat.png"), Image.new("RGB", (2, 2)), np.zeros((2, 2, 3), np.uint8)]
WORDS = st.text(min_size=1).filter(str.strip)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: type(picture).__name__)
def test_one_picture_is_a_list_of_one_and_a_list_stays_a_list(picture: Any) -> None:
    assert len(as_list(picture)) == 1 and as_list(picture)[0] is picture
    for several in ([picture, picture], (picture, picture)):
        assert [id(image) for image in as_list(several)] == [id(picture)] * 2
    assert EditRequest(picture, "cat", "dog").images[0] is picture


def test_as_list_makes_a_new_list() -> None:
    given_list = ["cat.png"]
    as_list(given_list).append("dog.png")
    assert given_list == ["cat.png"]


def test_the_caption_prompt_is_the_default_and_a_string_has_no_prefix() -> None:
    assert as_prompt(None) == CAPTION_PROMPT and CAPTION_PROMPT.text and CAPTION_PROMPT.prefix
    assert as_prompt("What is this?") == Prompt("What is this?", "")
    assert as_prompt(prompt := Prompt("What is this?", "It is")) is prompt


@law
@given(source=WORDS, target=WORDS)
def test_words_are_kept_but_for_the_spaces_around_them(source: str, target: str) -> None:
    if source.strip().casefold() == target.strip().casefold():
        with pytest.raises(RequestError, match="same word"):
            EditRequest("cat.png", source, target)
    else:
        request = EditRequest("cat.png", f" {source}\n", target)
        assert (request.source, request.target) == (source.strip(), target.strip())
        assert EditRequest(request.images, request.source, request.target) == request


@pytest.mark.parametrize("images", [[], (), None, [None], ["cat.png", None]], ids=repr)
def test_a_request_without_a_picture_is_refused(images: Any) -> None:
    with pytest.raises(RequestError, match="at least one picture") as caught:
        EditRequest(images, "cat", "dog")
    assert "images=" in str(caught.value) and caught.value.do


@pytest.mark.parametrize(
    ("name", "word"),
    [(name, word) for name in ("source", "target") for word in ("", " \n", 7, b"cat")] + [("target", None)],
)
def test_a_word_that_is_none_is_refused_by_name(name: str, word: Any) -> None:
    with pytest.raises(RequestError, match=f"the {name} of a concept swap is a word") as caught:
        EditRequest("cat.png", **{"source": "cat", "target": "dog", name: word})
    assert caught.value.got == repr(word)


@pytest.mark.parametrize("target", ["cat", "Cat", " cat "])
def test_a_word_is_not_swapped_with_itself(target: str) -> None:
    with pytest.raises(RequestError, match="same word") as caught:
        EditRequest("cat.png", "cat", target)
    assert caught.value.do == "choose another target"


@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("prompt", [None, "What is this?", Prompt("What is this?", "It is")])
def test_from_dict_reads_what_the_constructor_takes_and_ignores_the_harness_s_keys(key: str, prompt: Any) -> None:
    values = {key: ["a.png", "b.png"], "source": "cat", "target": "dog", "case_id": 3}
    values |= {} if prompt is None else {"prompt": prompt}
    assert EditRequest.from_dict(values) == EditRequest(["a.png", "b.png"], "cat", "dog", prompt)


@pytest.mark.parametrize("missing", [["source"], ["target"], ["images"], ["source", "target", "images"]])
def test_from_dict_names_exactly_the_missing_fields(missing: list[str]) -> None:
    values = {"source": "cat", "target": "dog", "images": "cat.png", "case_id": 3}
    kept = {name: value for name, value in values.items() if name not in missing}
    with pytest.raises(RequestError, match="lacks fields") as caught:
        EditRequest.from_dict(kept)
    assert caught.value.expected == f"also {', '.join(missing)}"
    assert str(sorted(kept)) in str(caught.value)


def test_a_question_may_come_without_a_source_a_caption_may_not() -> None:
    request = EditRequest.from_dict({"image": "cat.png", "prompt": "What is this?", "target": "a dog"})
    assert request == EditRequest("cat.png", None, "a dog", "What is this?")
    with pytest.raises(RequestError, match="lacks fields"):
        EditRequest.from_dict({"image": "cat.png", "target": "a dog"})
