"""The nouns of a caption, and the generated tokens that each of them begins in.

spaCy tags the words. Where its English model is not installed, rules do: each word gets a class, one letter, by word
lists and suffixes; then the classes that leave a choice are decided from left to right by what stands around them, for
English keeps its grammar in its word order. Lists and rules are data, `nouns_words.json`. Tokens are found by character
offsets, so that a noun that occurs twice, begins the text or follows a comma is found where it stands.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from mmedit.errors import MmeditError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from transformers import PreTrainedTokenizerBase

Pipeline = Literal["auto", "builtin", "en_core_web_sm"]
_MODEL = "en_core_web_sm"


@dataclass(frozen=True)
class Noun:
    """A noun in a text.

    Args:
        text: the word as the text has it; a word with hyphens is one word.
        start: offset of its first character.
        end: offset after its last character.

    Example:
        >>> find_nouns("A cat on a t-shirt", pipeline="builtin")
        [Noun(text='cat', start=2, end=5), Noun(text='t-shirt', start=11, end=18)]
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class NounToken:
    """A noun in a generated text and where its tokens are.

    Args:
        noun: with character offsets in the generated text.
        index: which of the generated ids the noun starts in, from 0.
        n_tokens: how many ids the noun spans.
    """

    noun: Noun
    index: int
    n_tokens: int


def find_nouns(text: str, pipeline: Pipeline = "auto") -> list[Noun]:
    """The common and proper nouns of a text.

    Args:
        text: a caption or an answer in English.
        pipeline: `"en_core_web_sm"`, spaCy's model; `"builtin"`, the rules; `"auto"`, the model if it is installed.

    Returns:
        Every noun in reading order; one that occurs twice is there twice.

    Raises:
        MmeditError: if the pipeline is unknown or not installed.

    Example:
        >>> [noun.text for noun in find_nouns("a red cat and a blue boat on the grass", pipeline="builtin")]
        ['cat', 'boat', 'grass']
    """
    doc = _load(pipeline)(re.sub("[\ud800-\udfff]", "\ufffd", text))  # half characters, which spaCy cannot read
    return [
        Noun(text[token.idx : token.idx + len(token)], token.idx, token.idx + len(token))
        for token in doc
        if token.pos_ in ("NOUN", "PROPN")
    ]


def noun_tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, pipeline: Pipeline = "auto") -> list[NounToken]:
    """The nouns of a generated text with the positions of their tokens.

    Args:
        ids: the newly generated token ids; special ones may be among them.
        tokenizer: that the ids belong to.
        pipeline: as in `find_nouns`.

    Returns:
        Every noun in reading order, with the index in `ids` of its first token.

    Raises:
        MmeditError: if the pipeline is unknown or not installed.
    """
    progress = _progress(ids, tokenizer)
    return [NounToken(n, *_tokens_of(progress, n.start, n.end)) for n in find_nouns(progress[0], pipeline)]


def tokens_between(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, start: int, end: int) -> tuple[int, int]:
    """The tokens of a stretch of a generated text.

    Args:
        ids: the generated token ids.
        tokenizer: that the ids belong to.
        start: offset of its first character.
        end: offset after its last character.

    Returns:
        The index in `ids` of the first token, and how many tokens there are.
    """
    return _tokens_of(_progress(ids, tokenizer), start, end)


def _tokens_of(progress: tuple[str, list[int], list[int]], start: int, end: int) -> tuple[int, int]:
    _, begun, complete = progress
    first = bisect_right(begun, start)
    return first, bisect_left(complete, end) - first + 1


def token_spans(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """The text of generated ids and the characters that each id adds to it.

    Args:
        ids: token ids; special ones may be among them.
        tokenizer: that the ids belong to; of any kind.

    Returns:
        The text without special tokens; for each id the (start, end) of its characters. The spans follow each other
        without gaps. A special token's is empty; a character whose bytes are several tokens counts for the first.
    """
    text, begun, _ = _progress(ids, tokenizer)
    return text, list(zip([0, *begun], begun, strict=False))


def _progress(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int], list[int]]:
    """The text, and after each id how many of its characters are begun and how many are complete."""
    ids, skip = [int(token) for token in ids], {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    prefixes = [str(tokenizer.decode(ids[: i + 1], **skip)) for i in range(len(ids))]
    text = prefixes[-1] if prefixes else ""
    begun, complete, done = [0], [], 0
    for prefix in prefixes:
        # A decoder shows a character's first bytes as U+FFFD, and some show whole ones before it so too: never go back.
        while done < len(text) and prefix[done : done + 1] == text[done]:
            done += 1
        complete.append(done)
        begun.append(max(begun[-1], min(len(text), done + prefix.startswith("\ufffd", done))))
    return text, begun[1:], complete


@cache
def _load(pipeline: Pipeline) -> Language:
    import spacy

    if pipeline not in get_args(Pipeline):
        raise MmeditError("no such noun pipeline", got=repr(pipeline), expected=" or ".join(get_args(Pipeline)))
    installed, model = spacy.util.is_package(_MODEL), pipeline == _MODEL
    if pipeline == "auto":
        return _load("en_core_web_sm" if installed else "builtin")
    if model and not installed:
        do = f"run `python -m spacy download {_MODEL}`, or choose the pipeline 'builtin' or 'auto'"
        raise MmeditError("spaCy's English model is not installed", expected=f"the package {_MODEL}", do=do)
    spacy.Language.component("mmedit_hyphens", func=_join_hyphenated)
    spacy.Language.component("mmedit_nouns", func=_tag)
    nlp = spacy.load(_MODEL, exclude=["parser", "ner", "lemmatizer"]) if model else spacy.blank("en")
    for component in ["mmedit_hyphens"] if model else ["mmedit_hyphens", "mmedit_nouns"]:
        nlp.add_pipe(component)
    return nlp


def _join_hyphenated(doc: Doc) -> Doc:
    """Make one token of words joined by hyphens, with the tag of the last, or of the first if that is a number."""
    from spacy.util import filter_spans

    matches = re.finditer(r"\w+(?:[-\u2010\u2011]\w+)+", doc.text)
    spans = [doc.char_span(*match.span(), alignment_mode="expand") for match in matches]
    with doc.retokenize() as retokenizer:
        for span in filter_spans(spans):
            tag = span[0].pos if span[0].pos_ == "NUM" else span[-1].pos
            retokenizer.merge(span, attrs={"POS": tag})
    return doc


class _Grammar(NamedTuple):
    """What `nouns_words.json` holds."""

    words: dict[str, str]  # the class of each listed word
    forms: list[tuple[str, str]]  # the class of the other words, by the first pattern that fits, else "n"
    rules: list[tuple[str, str, str, str]]  # open classes, what stands before, what follows, the class that they become
    tags: dict[str, str]  # spaCy's tag of each decided class


@cache
def _grammar() -> _Grammar:
    data = json.loads(resources.files("mmedit").joinpath("nouns_words.json").read_text("utf-8"))
    rows = json.loads(re.sub(r"{(\w+)}", lambda name: data["parts"][name[1]], json.dumps(data["rules"])))
    rules = [(classes, f"({before})$", after, becomes) for classes, before, after, becomes, _ in rows]
    words = {word: letter for letter, listed in data["classes"].items() for word in " ".join(listed["words"]).split()}
    tags = {letter: tag for tag, letters in data["tags"].items() for letter in letters}
    return _Grammar(words, data["forms"], rules, tags)


def _tag(doc: Doc) -> Doc:
    """Tag a text by rule."""
    tokens = [token for token in doc if not token.is_space]
    for token, letter in zip(tokens, _decide(_classes([token.text for token in tokens])), strict=True):
        token.pos_ = _grammar().tags[letter]
    return doc


def _classes(words: Sequence[str]) -> str:
    """The class of each word, nearly always by the word alone."""
    capitals = [word[0].isupper() for word in words if word[0].isalpha()]
    heading = 2 * sum(capitals[1:]) > len(capitals[1:])  # Where Every Word Has One, It Says Nothing
    found = "."
    for word in words:
        plain = word.lower().translate({0x2019: "'", 0x2010: "-", 0x2011: "-"})
        if not any(character.isalnum() for character in word):
            found += "," if word in ",()[]\"'" else "."
        elif plain == "'s" and found[-1] not in "rfyb":
            found += "d"  # possessive; after a pronoun it is a verb
        elif word[0].isupper() and found[-1] != "." and not heading and plain not in _grammar().words:
            found += "n"  # a name
        else:
            found += _class_of_compound(plain) if re.search(r"\w-\w", plain) else _class_of(plain)
    return found[1:]


def _class_of_compound(word: str) -> str:
    """The class of a word with hyphens."""
    parts = word.split("-")
    first, last = _class_of(parts[0]), _class_of(parts[-1])
    if first == "w" or last in "acebG":
        return "a"  # two-story, snow-covered, good-looking
    if len(parts) > 2 or last == "i" or first in "acibkeE":
        return "L"  # state-of-the-art, close-up, high-rise
    return "m" if last in "mMST" else "n"


@lru_cache(maxsize=4096)
def _class_of(word: str) -> str:
    """The class of a word in lower case."""
    words = _grammar().words
    if word in words:
        return words[word]
    for ending, stem in [("ies", "y"), ("es", ""), ("s", "")]:
        if word.endswith(ending) and (verb := words.get(word.removesuffix(ending) + stem)) in ("V", "W", "E"):
            return "S" if verb == "V" else "T"
    if comparative := re.fullmatch(r"(.+?)(.?)e(?:r|st)", word):
        stem, doubled = comparative.groups()
        if any(words.get(base) in ("a", "c") for base in (stem, stem + doubled, stem + doubled + "e", stem + "y")):
            return "a"
    return next((letter for form, letter in _grammar().forms if re.fullmatch(form, word, re.DOTALL)), "n")


def _decide(classes: str) -> str:
    """Decide the open classes from left to right: what stands before is decided, what follows may be open."""
    decided = ""
    for i, letter in enumerate(classes):
        becomes = (
            becomes
            for of, before, after, becomes in _grammar().rules
            if letter in of and re.search(before, decided) and re.match(after, classes[i + 1 :])
        )
        decided += next(becomes, letter)
    return decided
