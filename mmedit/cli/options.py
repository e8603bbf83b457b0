"""Options that several commands share, and what they do with them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmedit.printable import json_text, printable

if TYPE_CHECKING:
    from mmedit.editors.base import Editor
    from mmedit.models.vlm import VisionLanguageModel
    from mmedit.requests import Prompt

Images = Annotated[list[Path], typer.Argument(help="Pictures.", show_default=False)]
Model = Annotated[str, typer.Option(help="Shipped name, local folder or Hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …, or auto to spread the model.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for the checkpoint's own.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
PromptText = Annotated[
    str | None, typer.Option("--prompt", help="Instruction; the paper's caption prompt when left out.")
]
Prefix = Annotated[str, typer.Option(help="Words that the answer to --prompt begins with.")]
Hparams = Annotated[
    str | None,
    typer.Option(
        help="Shipped name, YAML file, or auto to derive them from the model; those shipped for the model when left out, or else auto."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DEFAULT_MODEL = "iconworld-llava"


def load_model(model: str, device: str | None, dtype: str, revision: str | None) -> VisionLanguageModel:
    """Load a model without transformers' own progress bars and notes."""
    from mmedit.models.loading import load

    quiet(dtype)
    return load(model, device=device, dtype=dtype, revision=revision)


def quiet(dtype: str) -> None:
    """Silence transformers' own progress bars and notes; raise ModelError for a dtype that there is not."""
    from transformers.utils import logging as transformers_logging

    from mmedit.errors import ModelError

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("torch").setLevel(logging.ERROR)
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ModelError("no such dtype", got=dtype, expected="auto, float32, bfloat16 or float16")


def make_prompt(text: str | None, prefix: str) -> Prompt | None:
    """The prompt that the options describe."""
    from mmedit.errors import RequestError
    from mmedit.requests import Prompt

    if text is None and prefix:
        raise RequestError("--prefix goes with --prompt", got=f"--prefix {prefix!r} alone", do="give --prompt too")
    return None if text is None else Prompt(text, prefix)


def choose_hparams(editor: str, hparams: str | None, model: str, **chosen: Any) -> dict[str, Any]:
    """The hyperparameters of an editor: the user's, or else those shipped for the model, or else `auto`, with some chosen.

    They are checked here, before a model is loaded; HparamsError and RequestError say what is wrong.
    """
    from mmedit.editors import EDITORS
    from mmedit.errors import RequestError
    from mmedit.hparams import hparams_for, read_values

    if editor not in EDITORS:
        raise RequestError("no such editor", got=repr(editor), expected=f"one of {', '.join(EDITORS)}")
    schema, source = EDITORS[editor].Hparams, hparams_for(model, editor) if hparams is None else hparams
    return read_values(schema, read_values(schema, source, editor) | chosen, editor)


def make_editor(editor: str, values: dict[str, Any], vlm: VisionLanguageModel) -> Editor:
    """The editor with what `choose_hparams` gave; says on stderr what was derived from the model."""
    from dataclasses import asdict

    from mmedit.editors import EDITORS
    from mmedit.hparams import AUTO

    method = EDITORS[editor].from_hparams(values, vlm)
    if AUTO in values.values():
        default, found = asdict(EDITORS[editor].Hparams()), asdict(method.hparams)
        derived = [f"{name}={found[name]}" for name in values if values[name] == AUTO and found[name] != default[name]]
        say(f"hyperparameters of {editor} from the model itself: {', '.join(derived) or 'its defaults'}", err=True)
    return method


def check_images(images: list[Path]) -> list[Path]:
    """Raise ImageError for the first picture that cannot be read, before a model is loaded."""
    from mmedit.models.images import load_image

    for image in images:
        load_image(image)
    return images


@contextmanager
def claimed(outputs: Sequence[Path | None], inputs: Iterable[str | Path] = ()) -> Iterator[None]:
    """Be the only one to write some files, from before anything long is begun; each is given once, and none is also read."""
    from mmedit.errors import OutputError
    from mmedit.files import claimed as claim

    seen = [Path(path).resolve() for path in inputs]
    with ExitStack() as held:
        for output in (output for output in outputs if output is not None):
            held.enter_context(claim(output))
            if output.resolve() in seen:
                raise OutputError(
                    "this file is given twice", where=output, do="choose another name for what is written"
                )
            seen.append(output.resolve())
        yield


def say(text: object, err: bool = False) -> None:
    """Print lines in which nothing can make the terminal do anything: captions and names come from strangers."""
    typer.echo(printable(text, keep="\n"), err=err)


def print_json(value: Any) -> None:
    """Print a result as JSON on stdout."""
    say(json_text(value))


def need(package: str, what: str, extra: str) -> None:
    """Raise RequestError unless a package that comes with an extra is installed."""
    from importlib.util import find_spec

    from mmedit.errors import RequestError

    if find_spec(package) is None:
        raise RequestError(f"{what} need {package}", got="not installed", do=f"pip install 'mmedit-vlm[{extra}]'")
