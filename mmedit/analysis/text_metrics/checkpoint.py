"""Loading a text model for a metric, so that a wrong checkpoint is refused instead of scored with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer
from transformers.utils import logging

from mmedit.errors import ModelError, RequestError


def load_text_model(
    auto_class: Any,
    name: str | Path,
    device: str | None = None,
    revision: str | None = None,
    n_layers: int | None = None,
) -> tuple[Any, Any]:
    """A tokenizer and a model in evaluation mode.

    Args:
        auto_class: the class of transformers that loads it, such as `AutoModel`.
        name: a local folder or a Hub id.
        device: where the model goes; the CPU when None.
        revision: branch, tag or commit on the Hub.
        n_layers: how many layers to load, from the first; all when None.

    Returns:
        The tokenizer and the model.

    Raises:
        ModelError: if it cannot be loaded, has fewer layers, lacks weights or has no fast tokenizer.
    """
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if n_layers is not None:
            if not 1 <= n_layers <= config.num_hidden_layers:
                expected = f"1 to {config.num_hidden_layers}"
                raise ModelError("no such layer in this encoder", where=name, got=n_layers, expected=expected)
            config.num_hidden_layers = n_layers
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        if isinstance(tokenizer, GPT2Tokenizer | RobertaTokenizer):  # they write the first word otherwise than the rest
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, add_prefix_space=True)
        with _no_load_report():
            model, info = auto_class.from_pretrained(name, config=config, revision=revision, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        got = next(iter(str(error).strip().splitlines()), type(error).__name__)
        do = "check the name, the folder's files, and the network for a Hub id"
        raise ModelError("cannot load this text model", where=name, got=got, do=do) from error
    lacking = sorted(
        key for key in info["missing_keys"] if "pooler" not in key or "Classification" in type(model).__name__
    )
    if lacking:
        got = f"no weights for {', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}"
        expected = f"all weights of {type(model).__name__}"
        raise ModelError("a checkpoint of another kind of model", where=name, got=got, expected=expected)
    if not tokenizer.is_fast:
        raise ModelError(
            "this tokenizer does not tell words apart", where=name, expected="a fast tokenizer (tokenizer.json)"
        )
    return tokenizer, model.to(device or "cpu").eval()


def longest(tokenizer: Any, config: Any) -> int | None:
    """The most tokens that a model takes; None where there is no limit.

    A tokenizer that does not know says 1e30, which the tokenizers library cannot hold (bert_score#205). The model's own
    number then counts, less 2: RoBERTa's begin after the padding id.
    """
    if tokenizer.model_max_length < 1e6:
        return int(tokenizer.model_max_length)
    positions = getattr(config, "max_position_embeddings", None)
    return None if positions is None or positions < 3 else positions - 2


def check_pairs(candidates: Sequence[str], references: Sequence[str]) -> None:
    """Raise RequestError unless there is one reference for each candidate."""
    for texts, name in ((candidates, "candidates"), (references, "references")):
        if isinstance(texts, str):
            raise RequestError("a metric takes lists of texts", where=name, got=repr(texts), expected="a list of texts")
    if len(candidates) != len(references):
        got = f"{len(candidates)} candidates and {len(references)} references"
        raise RequestError("a metric compares texts in pairs", got=got, expected="as many of one as of the other")


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Layers left out on purpose need no table of them; weights that lack are looked for by `load_text_model`."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
