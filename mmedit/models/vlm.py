"""A vision-language model and its processor: build prompts, caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig

from mmedit.errors import MmeditError, RequestError
from mmedit.models.architecture import Architecture, architecture_of
from mmedit.models.devices import input_device
from mmedit.models.images import load_image
from mmedit.models.newline import end_instructions, without_newlines
from mmedit.models.probe import NOT_RUN, probe
from mmedit.models.prompts import render_prompt
from mmedit.models.qformer import straighten
from mmedit.models.vocabulary import leave_out
from mmedit.requests import Prompt, as_list, as_prompt

Prompts = str | Prompt | None | list[str | Prompt | None]
MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class Generation:
    """One answer: its new tokens up to, not including, the end token, and their text."""

    text: str
    ids: tuple[int, ...]


class VisionLanguageModel:
    """An unmodified transformers model with its processor.

    Args:
        model: the model, in evaluation mode.
        processor: its processor.
        name: what it was loaded from, for patches and messages.
        revision: the Hub revision, if there is one.

    Raises:
        ModelError: if its decoder layers, W_out or unembedding cannot be found.
    """

    def __init__(self, model: Any, processor: Any, name: str = "", revision: str | None = None) -> None:
        self.model, self.processor, self.name, self.revision = model.eval(), processor, name, revision
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.architecture: Architecture = architecture_of(model)
        leave_out(self.architecture.unembedding, self.architecture.n_vocab)
        if not self.architecture.routes:
            probe(model, self.architecture)
        if not self.architecture.routes or self.architecture.head is None:  # it may need a picture to run
            with suppress(*NOT_RUN, MmeditError):
                probe(model, self.architecture, self.inputs(Image.new("RGB", (64, 64)), "What is this?"))

    def __repr__(self) -> str:
        a = self.architecture
        return f"VisionLanguageModel({self.name!r}, {a.model_type}, {a.n_layers} layers, d_model {a.d_model}, d_ffn {a.d_ffn}, {self.model.dtype})"

    def inputs(self, images: Any, prompt: Prompts = None) -> Any:
        """The batch that `caption` hands to generate.

        Args:
            images: one picture or several (paths, PIL, arrays); None for text-only prompts.
            prompt: the instruction, or with an answer prefix a `Prompt`; the paper's caption prompt when None. A list
                holds one for each picture.

        Returns:
            The processor's batch on the model's device: `input_ids` and `attention_mask` `[n, length]`, padded on the
            left, `pixel_values`, …

        Raises:
            ImageError: if a picture cannot be read.
            RequestError: if there is no picture in the list, or not one prompt for each, or the family has no place for a
                prompt's system text or takes no prompt without a picture.
        """
        pictures = None if images is None else [load_image(image) for image in as_list(images)]
        if pictures is not None and not pictures:
            raise RequestError("no pictures given", got="an empty list", do="give at least one picture")
        prompts = prompt if isinstance(prompt, list) else [prompt] * (1 if pictures is None else len(pictures))
        if not prompts or (pictures is not None and len(prompts) != len(pictures)):
            got = f"{len(prompts)} prompts, {len(pictures or ())} pictures"
            raise RequestError("one prompt, or one for each picture", got=got)
        texts = [self.render(prompt, pictures is not None) for prompt in prompts]
        ends_lines = self.architecture.model_type == "paligemma"
        if ends_lines:
            texts = without_newlines(texts, pictures is not None)
        bos = self.tokenizer.bos_token
        options = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
        batch = self.processor(
            images=pictures, text=texts, return_tensors="pt", padding=True, padding_side="left", **options
        )
        if "qformer_input_ids" in batch:
            straighten(batch, pictures is not None)
        if ends_lines:
            end_instructions(batch, [bool(as_prompt(prompt).prefix) for prompt in prompts], self.tokenizer.pad_token_id)
        return batch.to(input_device(self.model), self.model.dtype)

    def reader(self, inputs: Any) -> Any:
        """What answers a batch that `inputs` made: the model, or for text alone the part of it that needs no picture."""
        path = self.architecture.family.text_model
        return self.model.get_submodule(path) if path and "pixel_values" not in inputs else self.model

    def render(self, prompt: str | Prompt | None, with_image: bool = True) -> str:
        """The whole text before the answer, as the model family was trained on it."""
        return render_prompt(self.processor, self.architecture.model_type, as_prompt(prompt), with_image)

    def generate(
        self, images: Any, prompt: str | Prompt | None = None, batch_size: int = 8, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[Generation]:
        """Answer a prompt about each picture by greedy search.

        Args:
            images: as for `inputs`.
            prompt: as for `inputs`.
            batch_size: pictures per batch; in float32 the answers do not depend on it.
            max_new_tokens: longest answer, in tokens.

        Returns:
            One generation per picture (one in all where `images` is None).

        Raises:
            ImageError: if a picture cannot be read.
            RequestError: for an empty list of pictures or a batch size below 1.
        """
        return [
            g
            for batch in batches(images, batch_size)
            for g in self.generate_batch(self.inputs(batch, prompt), max_new_tokens)
        ]

    def generate_batch(self, inputs: Any, max_new_tokens: int = MAX_NEW_TOKENS) -> list[Generation]:
        """Greedy search on a batch that `inputs` made; KV-cached, one call of generate."""
        config = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=self.tokenizer.pad_token_id, eos_token_id=sorted(self.end_ids),
            return_dict_in_generate=False,
        )  # fmt: skip
        with torch.inference_mode():
            ids = self.reader(inputs).generate(**inputs, generation_config=config)
        start = 1 if self.has_encoder else inputs["input_ids"].shape[1]
        return [self._generation(row[start:].tolist()) for row in ids]

    def caption(self, images: Any, prompt: str | Prompt | None = None, batch_size: int = 8) -> list[str]:
        """Caption pictures, or answer a question about each.

        Args:
            images: one picture or several (paths, PIL, arrays); None for a text-only prompt.
            prompt: the instruction; the paper's caption prompt ("Describe the image in few words." + "An image of") when None.
            batch_size: pictures per batch; in float32 the captions do not depend on it.

        Returns:
            The new text for each picture, without the prompt and its answer prefix.

        Raises:
            ImageError: if a picture cannot be read.
            RequestError: for an empty list of pictures or a batch size below 1.

        Example:
            >>> import mmedit
            >>> from mmedit.testbed import benchmark_pictures
            >>> picture, caption, things = list(benchmark_pictures(2))[1]
            >>> mmedit.load("iconworld-llava").caption([picture]) == [caption]
            True
        """
        return [generation.text.strip() for generation in self.generate(images, prompt, batch_size)]

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads the prompt, so that the decoder sees nothing but the answer."""
        configs = (self.model.config, getattr(self.model.config, "text_config", None))
        return any(getattr(config, "is_encoder_decoder", False) for config in configs)

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured, self.tokenizer.eos_token_id]
        return frozenset(token for token in ids if token is not None)

    def _generation(self, ids: list[int]) -> Generation:
        end = next((i for i, token in enumerate(ids) if token in self.end_ids), len(ids))
        kept = ids[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generation(text, tuple(kept))


def batches(images: Any, batch_size: int) -> Iterator[Any]:
    """Cut pictures into batches; None stays one text-only batch."""
    if batch_size < 1:
        raise RequestError("a batch holds at least one picture", got=f"batch_size={batch_size}", expected="1 or more")
    if images is None:
        yield None
        return
    pictures: Sequence[Any] = as_list(images)
    if not pictures:
        raise RequestError("no pictures given", got="an empty list", do="give at least one picture")
    for start in range(0, len(pictures), batch_size):
        yield pictures[start : start + batch_size]
