"""Editing methods, one file each; every one turns a request into a Patch."""

from mmedit.editors.base import Editor as Editor
from mmedit.editors.mm_neurons import MMNeurons as MMNeurons
from mmedit.editors.mm_neurons import MMNeuronsHparams as MMNeuronsHparams
from mmedit.editors.mm_neurons import apply_mm_neurons_to_model as apply_mm_neurons_to_model

EDITORS: dict[str, type[Editor]] = {"MMNeurons": MMNeurons}
"""Every editor by the name that the command line and the hparams folders use."""
