"""Reading `hparams/<Editor>/<model>.yaml`, which holds values only: no paths, no code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmedit.errors import HparamsError

FOLDER = Path(__file__).parent
AUTO = "auto"
"""In place of a value: it is derived from the model."""
CHECKPOINTS = {
    "llava-1.5-7b": "llava-1.5-7b-hf llava-v1.5-7b",
    "llava-1.5-13b": "llava-1.5-13b-hf llava-v1.5-13b",
    "llava-llama2-13b": "llava-llama-2-13b-chat-lightning-preview",
    "llava-next": "llava-v1.6-mistral-7b-hf llava-v1.6-vicuna-7b-hf llava-v1.6-vicuna-13b-hf llava-v1.6-34b-hf llama3-llava-next-8b-hf",
    "llava-onevision": "llava-onevision-qwen2-0.5b-ov-hf llava-onevision-qwen2-7b-ov-hf llava-onevision-qwen2-7b-si-hf",
    "mplug-owl2": "mplug-owl2-llama2-7b",
    "qwen2.5-vl-3b": "qwen2.5-vl-3b-instruct",
    "qwen2.5-vl-7b": "qwen2.5-vl-7b-instruct",
    "qwen3-vl-4b": "qwen3-vl-4b-instruct",
    "internvl3": "internvl3-1b-hf internvl3-2b-hf internvl3-8b-hf internvl3-14b-hf internvl3-38b-hf internvl3-78b-hf",
    "smolvlm": "smolvlm-instruct smolvlm-256m-instruct smolvlm-500m-instruct smolvlm-base",
    "paligemma": "paligemma-3b-mix-224 paligemma-3b-mix-448 paligemma-3b-pt-224 paligemma-3b-pt-448 paligemma-3b-pt-896",
    "gemma-3-4b": "gemma-3-4b-it",
    "idefics3": "idefics3-8b-llama3",
}  # fmt: skip
"""Which published checkpoints a file is for, by the last part of their Hub ids in small letters, beside its own name."""
H = TypeVar("H")


def read_values(schema: type[H], source: str | Path | Mapping[str, Any], editor: str) -> dict[str, Any]:
    """The hyperparameters that a source gives, checked by the schema.

    Args:
        schema: the editor's frozen dataclass.
        source: a shipped name (`iconworld-llava`), the path of a YAML file, a mapping, or `auto` for all.
        editor: the editor's name, which is its folder of shipped files.

    Returns:
        Values by name; `auto` where one is to be derived from the model.

    Raises:
        HparamsError: if there is no such file, it is not YAML, or a key is unknown, of the wrong type or out of range.

    Example:
        >>> from mmedit.editors import MMNeuronsHparams
        >>> read_values(MMNeuronsHparams, "llava-llama2-13b", "MMNeurons")
        {'neurons_per_edit': 5, 'lr': 0.001, 'epochs': 1000, 'beta': 4.0}
        >>> read_values(MMNeuronsHparams, {"neurons_per_edit": 7, "lr": "auto"}, "MMNeurons")
        {'neurons_per_edit': 7, 'lr': 'auto'}
    """
    names = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    where: object = "the given hyperparameters"
    if source == AUTO:
        return dict.fromkeys(names, AUTO)
    if isinstance(source, Mapping):
        values: Any = dict(source)
    else:
        where = _find(str(source), editor)
        values = _read(where)
    derived = {name: AUTO for name in names if isinstance(values, dict) and values.get(name) == AUTO}
    given = {name: value for name, value in values.items() if name not in derived} if derived else values
    checked = from_mapping(schema, given, where)
    return {name: derived.get(name) or getattr(checked, name) for name in values}


def _read(path: Path) -> Any:
    """What a YAML file holds."""
    try:
        loaded = OmegaConf.load(path)
        return OmegaConf.to_container(
            loaded, resolve=False
        )  # never resolves `${…}`: a file must not reach the environment
    except Exception as error:  # the YAML parser has many
        raise HparamsError("not a YAML file", where=path, got=str(error).splitlines()[0]) from error


def from_mapping(schema: type[H], values: Any, where: object) -> H:
    """Hyperparameters from a mapping, checked by the schema; `where` names it in errors.

    Raises:
        HparamsError: if a key is unknown, of the wrong type or out of range.
    """
    if not isinstance(values, dict):
        raise HparamsError(
            "hyperparameters are a mapping",
            where=where,
            got=type(values).__name__,
            expected="lines such as `lr: 0.001`",
        )
    known = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in known:
            raise HparamsError(
                "unknown hyperparameter", where=where, got=repr(key), expected=f"one of {', '.join(known)}"
            )
        if isinstance(value, str) and "${" in value:
            raise HparamsError(
                "hyperparameters are plain values",
                where=f"{where}, key {key}",
                got=repr(value),
                expected="no interpolation",
            )
    try:
        checked = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except HparamsError as error:
        raise HparamsError(
            error.what, where=f"{where}, key {error.where}", got=error.got, expected=error.expected
        ) from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:  # plain ones for a mapping in place of a list
        key = getattr(error, "full_key", None) or "?"
        raise HparamsError(
            "a hyperparameter of the wrong type",
            where=f"{where}, key {key}",
            got=next(iter(str(error).splitlines()), type(error).__name__),
        ) from error
    assert isinstance(checked, schema)
    return checked


def shipped(editor: str) -> list[str]:
    """The names of an editor's shipped hyperparameter files."""
    return sorted(path.stem for path in (FOLDER / editor).glob("*.yaml"))


def hparams_for(model: str | Path, editor: str) -> str:
    """The name of the shipped hyperparameters that are for a model.

    Args:
        model: a shipped name, a local folder or a Hub id; its last part counts.
        editor: the editor's name.

    Returns:
        The file's name, or `auto` where no file is for the model.

    Example:
        >>> hparams_for("llava-hf/llava-1.5-7b-hf", "MMNeurons"), hparams_for("somebody/model-of-their-own", "MMNeurons")
        ('llava-1.5-7b', 'auto')
    """
    label = Path(model).name.lower()
    return next((name for name in shipped(editor) if label in (name, *CHECKPOINTS.get(name, "").split())), AUTO)


def _find(source: str, editor: str) -> Path:
    if source in shipped(editor):
        return FOLDER / editor / f"{source}.yaml"
    path = Path(source)
    if not path.is_file():
        names = ", ".join(shipped(editor)) or "none"
        raise HparamsError(
            "no such hyperparameters",
            got=repr(source),
            expected=f"a shipped name ({names}), the path of a YAML file, or auto",
        )
    return path
