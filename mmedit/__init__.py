"""Find and edit the neurons with which a multi-modal LLM names what it sees.

Public names are imported on first use, so that `import mmedit` is fast and does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmedit import editors as editors
    from mmedit import hparams as hparams
    from mmedit import testbed as testbed
    from mmedit.errors import MmeditError as MmeditError
    from mmedit.evaluation.protocol import evaluate as evaluate
    from mmedit.locate import locate_nouns as locate_nouns
    from mmedit.locate import locate_word as locate_word
    from mmedit.models.loading import load as load
    from mmedit.models.vlm import VisionLanguageModel as VisionLanguageModel
    from mmedit.neuron import Neuron as Neuron
    from mmedit.neuron import NeuronRanking as NeuronRanking
    from mmedit.neuron import Site as Site
    from mmedit.patches.bake import bake as bake
    from mmedit.patches.convert import convert as convert
    from mmedit.patches.diff import diff as diff
    from mmedit.patches.live import Stack as Stack
    from mmedit.patches.live import stack as stack
    from mmedit.patches.merge import merge as merge
    from mmedit.patches.patch import Patch as Patch
    from mmedit.requests import EditRequest as EditRequest
    from mmedit.requests import Prompt as Prompt

_MODULES = {
    "MmeditError": "mmedit.errors",
    "evaluate": "mmedit.evaluation.protocol",
    "locate_nouns": "mmedit.locate",
    "locate_word": "mmedit.locate",
    "VisionLanguageModel": "mmedit.models.vlm",
    "load": "mmedit.models.loading",
    "Neuron": "mmedit.neuron",
    "NeuronRanking": "mmedit.neuron",
    "Site": "mmedit.neuron",
    "bake": "mmedit.patches.bake",
    "convert": "mmedit.patches.convert",
    "diff": "mmedit.patches.diff",
    "Stack": "mmedit.patches.live",
    "stack": "mmedit.patches.live",
    "merge": "mmedit.patches.merge",
    "Patch": "mmedit.patches.patch",
    "EditRequest": "mmedit.requests",
    "Prompt": "mmedit.requests",
}
_SUBPACKAGES = ("editors", "hparams", "testbed")

__all__ = [*_MODULES, *_SUBPACKAGES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"mmedit.{name}")
    else:
        raise AttributeError(f"module 'mmedit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
