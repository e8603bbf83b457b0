"""What EasyEdit's MultimodalEditor does around an algorithm, written from notes on the real one (zjunlp/EasyEdit 14cea82).

Its ways that look like mistakes are its own and kept: the default mode takes "pre" from a model that was edited already,
`sequential_edit` hands over a bare request and `train_ds=None`, and neither that nor `edit_dataset` restores anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

OWN_RULES = {"KN", "GRACE", "WISE", "DEFER", "LoRA", "QLoRA", "DPO", "MELO", "IKE"}
"""Algorithms that EasyEdit restores in ways of their own, by name."""


def open_llava(path: str) -> Any:
    """A picture as the LLaVA-OneVision branch has it: opened, not read, in its own mode."""
    return Image.open(path)


def open_qwen(path: str) -> Any:
    """A picture as the Qwen-VL branch has it: a list of one, in RGB, both sides multiples of 28."""
    image = Image.open(path).convert("RGB")
    width, height = (max(28, round(side / 28) * 28) for side in image.size)
    return [image.resize((width, height))]


class MultimodalEditor:
    """EasyEdit's editor for a pair (model, processor).

    Args:
        hparams: the object that EasyEdit's `from_hparams` is given.
        algorithms: its `ALG_MULTIMODAL_DICT`.
        vis_tok: how a path becomes a picture.
    """

    def __init__(self, hparams: Any, algorithms: Mapping[str, Any], vis_tok: Callable[[str], Any] = open_llava) -> None:
        self.hparams, self.alg_name, self.vis_tok = hparams, hparams.alg_name, vis_tok
        self.apply_algo = algorithms[hparams.alg_name]
        if not hasattr(hparams, "dtype"):
            hparams.dtype = torch.float32
        self.model, self.tok = hparams.model_name
        self.model.to(hparams.device)

    def edit(
        self, prompts: Sequence[str], targets: Sequence[str], image: Sequence[str], *, rephrase_prompts: Sequence[str] | None = None,
        rephrase_image: Sequence[str] | None = None, locality_inputs: Mapping[str, Any] | None = None,
        keep_original_weight: bool = False, sequential_edit: bool = False,
    ) -> tuple[list[dict[str, Any]], Any, Any]:  # fmt: skip
        """Metrics, the last edited model, and its weights_copy."""
        if hasattr(self.hparams, "batch_size"):
            self.hparams.batch_size = 1
        requests = self._requests(prompts, targets, image, rephrase_prompts, rephrase_image, locality_inputs or {})
        common = {"copy": False, "return_orig_weights": True, "keep_original_weight": keep_original_weight}
        found = []
        before = [self._score(self.model, request) for request in requests] if sequential_edit else []
        for i, request in enumerate(requests):
            if sequential_edit:
                edited, weights_copy = self.apply_algo(
                    self.model, self.tok, request, self.hparams, **common, train_ds=None
                )
                found.append(_compared({"case_nums": i, "post": self._score(edited, request), "pre": before[i]}))
            else:
                edited, weights_copy = self.apply_algo(self.model, self.tok, [request], self.hparams, **common)
                post, pre = self._score(edited, request), self._score(self.model, request)
                found.append(_compared({"case_id": i, "post": post, "pre": pre}))
                self._restore(edited, weights_copy)
        return found, edited, weights_copy

    def edit_dataset(self, requests: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], Any, Any]:
        """The same for requests that a data set has made; nothing is restored between them."""
        found = []
        for i, request in enumerate(requests):
            pre = self._score(self.model, request)
            edited, weights_copy = self.apply_algo(
                self.model, self.tok, [request], self.hparams, copy=False, return_orig_weights=True, keep_original_weight=False
            )  # fmt: skip
            found.append(_compared({"case_id": i, "post": self._score(edited, request), "pre": pre}))
        return found, edited, weights_copy

    def _requests(
        self, prompts: Sequence[str], targets: Sequence[str], image: Sequence[str], rephrase_prompts: Sequence[str] | None,
        rephrase_image: Sequence[str] | None, locality: Mapping[str, Any],
    ) -> list[dict[str, Any]]:  # fmt: skip
        columns: dict[str, Sequence[Any]] = {
            "prompt": prompts, "target": targets, "image": [self.vis_tok(path) for path in image], "file_type": ["image"] * len(prompts),
        }  # fmt: skip
        if rephrase_prompts is not None:
            columns["rephrase_prompt"] = rephrase_prompts
        if rephrase_image is not None:
            columns["image_rephrase"] = [self.vis_tok(path) for path in rephrase_image]
        if "text" in locality:
            columns |= {f"locality_{name}": values for name, values in locality["text"].items()}
        if "vision" in locality:
            seen = dict(locality["vision"])
            seen["image"] = [self.vis_tok(path) for path in seen["image"]]
            columns |= {f"multimodal_locality_{name}": values for name, values in seen.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def inputs(self, prompt: str, target: str, image: Any) -> Any:
        """What is scored: the chat template and the target, with nothing in between and no end token."""
        content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": prompt}]
        chat = self.tok.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        pictures = {} if image is None else {"images": image if isinstance(image, list) else [image]}
        batch = self.tok(text=[chat + target], return_tensors="pt", **pictures)
        return batch.to(self.hparams.device, self.hparams.dtype)

    def _score(self, model: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        target, image = request["target"], request["image"]
        scores = {"rewrite_acc": self._accuracy(model, request["prompt"], target, image)}
        if "rephrase_prompt" in request:
            scores["rephrase_acc"] = self._accuracy(model, request["rephrase_prompt"], target, image)
        if "image_rephrase" in request:
            scores["image_rephrase_acc"] = self._accuracy(model, request["prompt"], target, request["image_rephrase"])
        for name, picture in (("locality", None), ("multimodal_locality", request.get("multimodal_locality_image"))):
            if f"{name}_prompt" in request:
                asked = request[f"{name}_prompt"], request[f"{name}_ground_truth"]
                scores[f"{name}_output"] = self._logits(model, self.inputs(*asked, picture))
        return scores

    def _accuracy(self, model: Any, prompt: str, target: str, image: Any) -> float:
        """The share of the target's tokens, laid over the end of the text, that are first choice at the position before."""
        batch = self.inputs(prompt, target, image)
        ids = self.tok.tokenizer(target, add_special_tokens=False, return_tensors="pt").input_ids[0]
        predicted = self._logits(model, batch)[0, -1 - len(ids) : -1].argmax(-1)
        return float((predicted == ids).float().mean())

    def _logits(self, model: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(**batch).logits.cpu()
        return logits

    def _restore(self, edited: Any, weights_copy: Any) -> None:
        """Write what the algorithm gave back into the parameters that are there."""
        assert self.alg_name not in OWN_RULES
        if weights_copy is None:
            return
        with torch.no_grad():
            parameters = dict(self.model.named_parameters())
            for name, value in weights_copy.items():
                if name not in parameters:
                    raise LookupError(name)
                parameters[name][...] = value.to(parameters[name].device, parameters[name].dtype)


def _compared(metrics: dict[str, Any]) -> dict[str, Any]:
    """Locality: the share of positions and first k ranks with the same token before and after."""
    for name, k in (("locality", 1), ("multimodal_locality", 10)):
        if f"{name}_output" in metrics["post"]:
            pre, post = (metrics[when].pop(f"{name}_output").topk(k).indices for when in ("pre", "post"))
            metrics["post"][f"{name}_acc"] = float((pre == post).float().mean())
    return metrics
