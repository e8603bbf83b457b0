"""Thousands of broken inputs of every kind that strangers give: each is read, or refused by an error of ours, quickly.

Hyperparameter files, benchmark files, checkpoint indexes, pictures and captions; the patch files are in test_fuzz_patch.py.
`MMEDIT_FUZZ=10` makes it ten times longer.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import sys
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import LlavaProcessor

import mmedit
from mmedit.concepts import occurrences, require_occurrences
from mmedit.data.benchmarks import FORMATS, load_cases
from mmedit.errors import DataError, HparamsError, ImageError, MmeditError, ModelError, RequestError
from mmedit.evaluation.metrics import all_replaced
from mmedit.models.checkpoint_files import weight_files
from mmedit.models.images import load_image
from mmedit.nouns import find_nouns, noun_tokens
from mmedit.printable import printable

TIMES = int(os.environ.get("MMEDIT_FUZZ", "1"))
SLOWEST = 5.0  # seconds of this process for one input
VALUES: list[Any] = [None, True, 0, -1, 1, 2**63, 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "x", "auto", "1", "é\u0301", "\x00", "\x1b[2J", "\u202e", "\ud800", "a" * 70_000, [], {}, [None], [[]], {"": None}, {"a": {"b": [1]}}, "../x.png", "${oc.env:HOME}", "cat.png", "?"]  # fmt: skip


def survives(act: Callable[[], Any], allowed: type[MmeditError] | tuple[type[MmeditError], ...], what: object) -> str:
    """Do it; `read`, or the error's name. Anything but the errors that are allowed is a failure that shows the input."""
    began = time.process_time()
    try:
        act()
        outcome = "read"
    except allowed as error:
        assert str(error) and printable(error, keep="\n")
        outcome = type(error).__name__
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}\nfor {str(what)[:2000]!r}") from error
    took = time.process_time() - began
    assert took < SLOWEST, f"{took:.1f} s for {str(what)[:2000]!r}"
    return outcome


def mangled(data: bytes, r: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, inserted or replaced by noise."""
    kind = r.randrange(6)
    at, end = sorted((r.randrange(len(data) + 1), r.randrange(len(data) + 1)))
    if kind == 0:
        out = bytearray(data)
        for _ in range(r.choice([1, 1, 2, 8, 64])):
            out[r.randrange(len(out))] = r.randrange(256)
        return bytes(out)
    return [data[:at], data[:at] + data[end:], data[:at] + r.randbytes(r.randrange(1, 40)) + data[at:], data[:end] + data[at:], r.randbytes(r.randrange(300))][kind - 1]  # fmt: skip


def changed(value: Any, r: random.Random) -> Any:
    """A JSON value with something in it replaced, left out or added."""
    value = copy.deepcopy(value)
    inner = value
    while isinstance(inner, dict | list) and inner:
        key = r.choice(list(inner)) if isinstance(inner, dict) else r.randrange(len(inner))
        if not isinstance(inner[key], dict | list) or r.random() < 0.3:
            kind = r.random()
            if kind < 0.15:
                del inner[key]
            elif kind < 0.3 and isinstance(inner, dict):
                inner[r.choice(["new", "", "mmedit", "\x00", "port_new", "1"])] = r.choice(VALUES)
            else:
                inner[key] = r.choice(VALUES)
            return value
        inner = inner[key]
    return r.choice(VALUES)


# --- hyperparameters --------------------------------------------------------------------------------------------------

YAML = ["a: &x [*x]", "? {a: b}", "!!python/object/apply:os.getcwd []", "&a [*a, *a]", "lr: ${lr}", "- 1", "lr: 1e", "lr: 0x_", "lr: .inf", "lr: !!float nan", "{", "'", "\t", "lr: 2001-01-01", "lr: 1:2", "a: &a x\nb: &b [*a,*a]", "lr: [1", "%YAML 9.9\n---\nlr: 1", "--- 1\n--- 2", "lr: 1\nlr: 2", "? [a]\n: 1", "1: 2", "null: 1", "~", "<<: {lr: 1}", "lr: !!binary x", "lr: !!set {a}", "lr: !!timestamp x", "layers: [1, a]", "layers: {0: 1}"]  # fmt: skip


def test_hyperparameter_files(tmp_path: Path) -> None:
    r, outcomes = random.Random(0), Counter[str]()
    editors = [mmedit.editors.MMNeurons, mmedit.editors.EDITORS["Margin"]]
    files = [path.read_bytes() for path in sorted((Path(mmedit.editors.__file__).parent.parent / "hparams" / "MMNeurons").glob("*.yaml"))]  # fmt: skip
    text, path = max(files, key=len), tmp_path / "h.yaml"
    for number in range(750 * TIMES):
        kind, editor = number % 3, r.choice(editors)
        if kind == 0:
            content = mangled(text, r)
        elif kind == 1:
            content = (r.choice(YAML) + "\n" + r.choice([*YAML, "lr: 1.0"])).encode()
        else:
            names = [*editor.Hparams.__dataclass_fields__, "new"]
            content = "\n".join(f"{n}: {json.dumps(r.choice(VALUES))}" for n in r.sample(names, 2)).encode()
        path.write_bytes(content)
        outcomes[survives(lambda e=editor: e.from_hparams(path), HparamsError, content)] += 1
        values = {r.choice(names if kind == 2 else ["lr"]): r.choice(VALUES)}
        outcomes[survives(lambda e=editor, v=values: e.from_hparams(v), HparamsError, values)] += 1
    assert outcomes["read"] > 20 and outcomes["HparamsError"] > 500, outcomes


# --- benchmark files --------------------------------------------------------------------------------------------------

RECORD = {"src": "What is this?", "pred": "cat", "rephrase": "What do you see?", "alt": "dog", "image": "cat.png", "image_rephrase": "cat.png", "loc": "Who?", "loc_ans": "x", "m_loc": "cat.png", "m_loc_q": "What?", "m_loc_a": "black"}  # fmt: skip
PORT = {"port_new": [{"port_type": "1-hop", "Q&A": {"Question": "What?", "Answer": "dog"}}]}
PROMPT = {"text": "What?", "prefix": "", "no_space": False, "system": ""}
OWN = {"mmedit": {"version": 1, "id": "a", "images": [{"image": "cat.png"}], "source": "cat", "target": "dog", "prompt": PROMPT, "probes": [{"kind": "unrelated", "image": "cat.png", "prompt": PROMPT, "answer": None, "objects": ["cat"], "label": ""}]}}  # fmt: skip


def test_benchmark_files(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    r, outcomes, path = random.Random(1), Counter[str](), tmp_path / "f.json"
    whole = [[RECORD], [RECORD | PORT], [RECORD | OWN], [RECORD, RECORD | {"alt": "kite"}]]
    for number in range(3000 * TIMES):
        value = r.choice(whole)
        for _ in range(r.choice([1, 1, 2, 3])):
            value = changed(value, r)
        content = json.dumps(value).encode()
        if number % 4 == 0:
            content = mangled(content, r)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        name, skip = r.choice([*FORMATS, "mmedit", "mmedit"]), r.random() < 0.3
        outcomes[
            survives(lambda n=name, s=skip: load_cases(path, n, skip_missing=s), (DataError, ImageError), content)
        ] += 1
    assert outcomes["read"] > 100 and outcomes["DataError"] > 1000, outcomes


# --- checkpoint indexes -----------------------------------------------------------------------------------------------


def test_checkpoint_indexes(tmp_path: Path) -> None:
    r, outcomes, path = random.Random(2), Counter[str](), tmp_path / "model.safetensors.index.json"
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes(b"")
    index = {"metadata": {"total_size": 3}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    names = ["../x.safetensors", "model-1.safetensors", "/etc/x.safetensors", "x" * 300 + ".safetensors", ".safetensors", "..", "\x00.safetensors", "\ud800.safetensors", "model-1.bin", "a\\b.safetensors", "model-1.safetensors/"]  # fmt: skip
    for number in range(3000 * TIMES):
        value = changed(index, r)
        if number % 3 == 0:
            value = {"weight_map": {"a": r.choice(names), "b": r.choice([*names, *VALUES])}}
        content = json.dumps(value).encode()
        if number % 3 == 1:
            content = r.choice([mangled(content, r), b"[" * 100_000, b'{"weight_map":' * 50_000, b"\xff\xfe", b""])
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        outcomes[survives(lambda: weight_files(tmp_path), ModelError, content)] += 1
    assert outcomes["read"] > 100 and outcomes["ModelError"] > 1000, outcomes


# --- pictures ---------------------------------------------------------------------------------------------------------


@cache
def pictures() -> dict[str, bytes]:
    """Whole pictures of every kind that Pillow writes, animated ones among them."""
    made, r = {}, random.Random(3)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "F", "CMYK"):
        picture = Image.effect_noise((24, 16), 90).convert("RGB").convert(mode if mode not in ("I;16", "F") else "L")
        picture = picture.convert(mode) if mode in ("I;16", "F") else picture
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO"):
            several = [picture.copy() for _ in range(2)] if kind in ("PNG", "GIF", "WEBP", "TIFF") and r.random() < 0.5 else []  # fmt: skip
            file = io.BytesIO()
            try:
                picture.save(file, kind, **({"save_all": True, "append_images": several} if several else {}))
            except (OSError, ValueError, KeyError):
                continue  # not every kind holds every mode
            made[f"{mode} {kind}{' animated' if several else ''}"] = file.getvalue()
    return made


@pytest.mark.filterwarnings("ignore")  # what Pillow says of broken tags
def test_pictures(tmp_path: Path) -> None:
    r, outcomes, path = random.Random(4), Counter[str](), tmp_path / "picture"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = pictures()
        assert len(whole) > 30 and any("animated" in name for name in whole)
        for number in range(4000 * TIMES):
            name = r.choice(list(whole))
            content = mangled(whole[name], r) if number % 20 else r.choice([b"", whole[name][:1], whole[name]])
            if number % 10 == 1:  # sizes that nothing can hold
                out = bytearray(whole[name])
                at = r.randrange(min(40, len(out) - 4))
                out[at : at + 4] = r.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\xff\xff"])
                content = bytes(out)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            outcomes[survives(lambda: load_image(path), ImageError, (name, content))] += 1
    assert outcomes["read"] > 300 and outcomes["ImageError"] > 1000, outcomes


# --- captions ---------------------------------------------------------------------------------------------------------


@cache
def characters() -> dict[str, list[str]]:
    """Up to 300 characters of every Unicode category."""
    r, found = random.Random(5), dict[str, list[str]]()
    for code in range(sys.maxunicode + 1):
        found.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    return {category: r.sample(every, min(300, len(every))) for category, every in sorted(found.items())}


def caption(r: random.Random, categories: list[str]) -> str:
    words = ["a", "cat", "cats", "the", "on", "red", "sand", "Cat", "CAT", "dog", "two", "and"]
    parts = []
    for _ in range(r.randrange(8)):
        parts.append(r.choice(words) if r.random() < 0.6 else "".join(r.choice(characters()[r.choice(categories)]) for _ in range(r.randrange(1, 5))))  # fmt: skip
    return r.choice([" ", " ", ""]).join(parts)


def test_captions(processor: LlavaProcessor) -> None:
    r, outcomes, tokenizer = random.Random(6), Counter[str](), processor.tokenizer
    categories = list(characters())
    assert len(categories) == 30  # Cs, half characters, among them
    for number in range(2500 * TIMES):
        text, word = caption(r, [categories[number % 30], r.choice(categories)]), r.choice(["cat", "cats", "ca", "", caption(r, categories)])  # fmt: skip

        def look(text: str = text, word: str = word) -> None:
            for noun in find_nouns(text):
                assert text[noun.start : noun.start + len(noun.text)] == noun.text
            if any(unicodedata.category(c) == "Cs" for c in text + word):
                return  # no tokenizer makes half a character
            ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
            noun_tokens(ids, tokenizer)
            if word:
                found = occurrences(ids, word, tokenizer)
                assert all(0 <= one.index < len(ids) and one.n_tokens > 0 for one in found)
                all_replaced(text, {word: "dog"})
                require_occurrences(ids, word, tokenizer, "picture 0")

        outcomes[survives(look, RequestError, (text, word))] += 1
        outcomes[survives(lambda w=word, t=text: mmedit.EditRequest("cat.png", w, t), RequestError, (word, text))] += 1
    assert outcomes["read"] > 500 and outcomes["RequestError"] > 500, outcomes


# --- what was found ---------------------------------------------------------------------------------------------------


def test_a_source_in_capitals_is_replaced() -> None:
    """`mmedit edit --source Cat` ended in a KeyError where the caption said `cat`."""
    assert all_replaced("the CAT and a cat", {"Cat": "dog"}) == "the dog and a dog"
    assert all_replaced("the ſand", {"sand": "grass"}) in ("the grass", "the ſand")  # re takes ſ for s, casefold too


def test_a_text_with_half_a_character_has_nouns() -> None:
    """A list in JSON may hold them, and spaCy cannot read them."""
    assert [noun.text for noun in find_nouns("a cat \ud800 on the sand", "builtin")] == ["cat", "sand"]
    assert "cat" in [noun.text for noun in find_nouns("a cat \udaaa on the sand")]


def test_a_mapping_in_place_of_a_list_is_told() -> None:
    with pytest.raises(HparamsError, match="wrong type"):
        mmedit.editors.EDITORS["Margin"].from_hparams({"layers": {"": None}})


def test_a_shard_with_an_endless_name_is_told(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "x" * 300 + ".safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="damaged checkpoint"):
        weight_files(tmp_path)
