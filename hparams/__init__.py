"""Reading `hparams/<Editor>/<model>.yaml` into an editor's frozen dataclass. Values only: no paths, no code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmedit.errors import HparamsError

FOLDER = Path(__file__).parent
H = TypeVar("H")


def load_hparams(schema: type[H], source: str | Path, editor: str) -> H:
    """Read hyperparameters.

    Args:
        schema: the editor's frozen dataclass.
        source: a shipped name (`iconworld-llava`) or the path of a YAML file.
        editor: the editor's name, which is its folder of shipped files.

    Returns:
        The validated hyperparameters.

    Raises:
        HparamsError: if there is no such file, it is not YAML, or a key is unknown, of the wrong type or out of range.

    Example:
        >>> from mmedit.editors.mm_neurons import MMNeuronsHparams
        >>> load_hparams(MMNeuronsHparams, "llava-1.5-7b", "MMNeurons").neurons_per_edit
        5
    """
    path = _find(str(source), editor)
    try:
        loaded = OmegaConf.load(path)
        values = OmegaConf.to_container(
            loaded, resolve=False
        )  # never resolves `${…}`: a file must not reach the environment
    except Exception as error:  # the YAML parser has many
        raise HparamsError("not a YAML file", where=path, got=str(error).splitlines()[0]) from error
    return from_mapping(schema, values, path)


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
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise HparamsError(
            "a hyperparameter of the wrong type", where=f"{where}, key {key}", got=str(error).splitlines()[0]
        ) from error
    assert isinstance(checked, schema)
    return checked


def shipped(editor: str) -> list[str]:
    """The names of an editor's shipped hyperparameter files."""
    return sorted(path.stem for path in (FOLDER / editor).glob("*.yaml"))


def _find(source: str, editor: str) -> Path:
    if source in shipped(editor):
        return FOLDER / editor / f"{source}.yaml"
    path = Path(source)
    if not path.is_file():
        names = ", ".join(shipped(editor)) or "none"
        raise HparamsError(
            "no such hyperparameters", got=repr(source), expected=f"a shipped name ({names}) or the path of a YAML file"
        )
    return path
