"""Editing methods, one file each; every one turns a request into a Patch."""

from mmedit.editors.base import Editor as Editor
from mmedit.editors.fine import FiNE as FiNE
from mmedit.editors.fine import FiNEHparams as FiNEHparams
from mmedit.editors.fine import apply_fine_to_model as apply_fine_to_model
from mmedit.editors.ft import FT as FT
from mmedit.editors.ft import FTHparams as FTHparams
from mmedit.editors.ft import apply_ft_to_model as apply_ft_to_model
from mmedit.editors.lora import LoRA as LoRA
from mmedit.editors.lora import LoRAHparams as LoRAHparams
from mmedit.editors.lora import apply_lora_to_model as apply_lora_to_model
from mmedit.editors.margin import Margin as Margin
from mmedit.editors.margin import MarginHparams as MarginHparams
from mmedit.editors.margin import apply_margin_to_model as apply_margin_to_model
from mmedit.editors.memit import MEMIT as MEMIT
from mmedit.editors.memit import MEMITHparams as MEMITHparams
from mmedit.editors.memit import apply_memit_to_model as apply_memit_to_model
from mmedit.editors.mm_neurons import MMNeurons as MMNeurons
from mmedit.editors.mm_neurons import MMNeuronsHparams as MMNeuronsHparams
from mmedit.editors.mm_neurons import apply_mm_neurons_to_model as apply_mm_neurons_to_model
from mmedit.editors.noise import Noise as Noise
from mmedit.editors.noise import NoiseHparams as NoiseHparams
from mmedit.editors.noise import apply_noise_to_model as apply_noise_to_model
from mmedit.editors.rome import ROME as ROME
from mmedit.editors.rome import ROMEHparams as ROMEHparams
from mmedit.editors.rome import apply_rome_to_model as apply_rome_to_model

EDITORS: dict[str, type[Editor]] = {
    "MMNeurons": MMNeurons, "Margin": Margin, "FT": FT, "LoRA": LoRA, "ROME": ROME, "MEMIT": MEMIT, "FiNE": FiNE, "Noise": Noise,
}  # fmt: skip
"""Every editor by the name that the command line and the hparams folders use."""
