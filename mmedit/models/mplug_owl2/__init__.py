"""mPLUG-Owl2, which transformers does not have: its Auto classes know it once this package is imported."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmedit.models.mplug_owl2.config import MPLUGOwl2Config as MPLUGOwl2Config
from mmedit.models.mplug_owl2.model import MPLUGOwl2LlamaForCausalLM as MPLUGOwl2LlamaForCausalLM
from mmedit.models.mplug_owl2.processing import MPLUGOwl2Processor as MPLUGOwl2Processor

AutoConfig.register(MPLUGOwl2Config.model_type, MPLUGOwl2Config, exist_ok=True)
AutoModelForImageTextToText.register(MPLUGOwl2Config, MPLUGOwl2LlamaForCausalLM, exist_ok=True)
AutoProcessor.register(MPLUGOwl2Config, MPLUGOwl2Processor, exist_ok=True)
