"""Every image-text-to-text type of transformers, as a tiny model: what `rows.py` says of it is true.

For each type: its W_outs are found; what is recorded at a W_out while the model generates with its cache is what enters it
where the token is predicted; an edit of a row changes the logits, comes out bit for bit and survives the disk; and a score
is the slope of the logit, or says that it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import parse
from rows import ROWS, Row
from table import README, between_marks, table
from tiny import CLASSES, tiny_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mmedit.errors import ModelError
from mmedit.models.architecture import Architecture, WOut, resolve
from mmedit.models.probe import probe
from mmedit.models.readout import directions
from mmedit.patches.base import Base
from mmedit.patches.live import Stack
from mmedit.patches.patch import Patch
from mmedit.trace import Trace

VERSION = parse(transformers.__version__)
STEPS = 3
SPECIAL = list(range(100, 120))  # a model of random weights would say <image>


@dataclass
class Tiny:
    """A tiny model of a type, with a prompt."""

    row: Row
    model: Any
    inputs: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        return resolve(self.model)

    def generate(self, **options: Any) -> list[int]:
        given = {
            "max_new_tokens": STEPS,
            "min_new_tokens": STEPS,
            "do_sample": False,
            "num_beams": 1,
            "suppress_tokens": SPECIAL,
            **options,
        }
        out = self.model.generate(**self.inputs, **given)
        return out[0].tolist()[-STEPS:]

    def logits(self) -> Tensor:
        """After the prompt; of an encoder-decoder after two tokens."""
        start = {"decoder_input_ids": torch.tensor([[1, 7]])} if self.model.config.is_encoder_decoder else {}
        logits: Tensor = self.model(**{**self.inputs, **start}).logits[0, -1]
        return logits

    def probe(self) -> Architecture:
        probe(self.model, self.architecture)
        if not self.architecture.routes or self.architecture.head is None:
            probe(self.model, self.architecture, self.inputs)
        return self.architecture


def known(row: Row) -> Any:
    """A row, skipped by name where this transformers is too old for it."""
    lacking = pytest.mark.skip(reason=f"transformers {VERSION} does not know {row.name}, or not as {row.since} does")
    return pytest.param(row, id=row.name, marks=() if row.name in CLASSES and parse(row.since) <= VERSION else lacking)


@pytest.fixture(scope="module", params=[known(row) for row in ROWS if not row.refused])
def tiny(request: Any) -> Tiny:
    row = request.param
    model = tiny_model(row.name, row.config)
    return Tiny(row, model, row.inputs(model))


def test_every_type_has_a_row() -> None:
    assert set(CLASSES) - {"pixtral"} <= {row.name for row in ROWS}  # Pixtral is a tower; some versions list it
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_readme_s_table_is_made_of_the_rows() -> None:
    before, inner, after = between_marks(README.read_text(encoding="utf-8"))
    assert before and after and inner == table(), "run python tests/matrix/table.py"


@pytest.mark.parametrize("row", [known(row) for row in ROWS if row.refused])
def test_a_type_that_cannot_work_is_refused_by_name_with_the_reason(row: Row) -> None:
    model = tiny_model(row.name, row.config)
    with pytest.raises(ModelError) as error:
        resolve(model)
    assert row.name in str(error.value) and row.refused in str(error.value)


def test_the_w_outs_are_found(tiny: Tiny) -> None:
    sites = tiny.architecture.sites
    assert " ".join(str(w_out.site) for w_out in sites) == " ".join(tiny.row.all_sites)
    parameters = dict(tiny.model.named_parameters())
    modules = dict(tiny.model.named_modules())
    for w_out in sites:
        assert parameters[w_out.name] is w_out.weight and modules[w_out.path] is w_out.module
        assert (w_out.layer, w_out.expert) == (w_out.site.layer, w_out.site.expert)
        assert w_out.matrix.shape == (w_out.d_ffn, w_out.d_model) and w_out.d_model == tiny.architecture.d_model == 32
        assert "vision" not in w_out.path and "encoder" not in w_out.path.replace("encoder.layer.", "")
    assert tiny.architecture.w_u.shape[1] == 32


def test_what_is_recorded_while_generating_is_what_enters_w_out_where_the_token_is_predicted(tiny: Tiny) -> None:
    """The activations of a module times its matrices are what it gives, at the last position of each uncached call."""
    sites = tiny.architecture.sites
    with torch.inference_mode(), Trace(tiny.architecture) as trace:
        ids = tiny.generate()
    gates = [w_out.gate for w_out in sites if w_out.gate]
    given: dict[nn.Module, list[Tensor]] = {module: [] for module in (*(w_out.module for w_out in sites), *gates)}
    handles = [
        m.register_forward_hook(lambda m, args, out: given[m].append(last_output(m, out).clone())) for m in given
    ]
    with torch.inference_mode():
        assert tiny.generate(use_cache=tiny.row.uncached == "none yet" or parse(tiny.row.uncached) > VERSION) == ids
    for handle in handles:
        handle.remove()
    for module, outputs in given.items():
        of_module = [w_out for w_out in sites if w_out.module is module]
        if not of_module:
            continue
        assert len(outputs) == STEPS
        for step, output in enumerate(outputs):
            written = sum(trace.at(w_out.site, step, 0) @ w_out.matrix for w_out in of_module)
            bias, gate = getattr(module, "bias", None), of_module[0].gate
            if gate is not None:
                output = output * torch.sigmoid(given[gate][step])
            torch.testing.assert_close(written + (0 if bias is None else bias), output, rtol=1e-3, atol=1e-4)


def last_output(module: nn.Module, output: Tensor) -> Tensor:
    """What a module gives at the last position; Llama 4's experts give one output each, to be added up."""
    if type(module).__name__ == "Llama4TextExperts":
        output = output.unflatten(0, (module.num_experts, -1)).sum(0)
    return output.reshape(-1, output.shape[-1])[-1]


@pytest.mark.parametrize("row", [known(row) for row in ROWS if row.name == "ernie4_5_vl_moe"])
def test_experts_that_see_only_words_are_read_at_each_picture_s_last_position(row: Row) -> None:
    """Two prompts in a batch, one without a picture: the experts see 9 of 18 positions, 5 and 4 of a row."""
    model = tiny_model(row.name, row.config)
    architecture, alone = resolve(model), row.inputs(model)
    image = int(alone["input_ids"][0, 2])
    ids = torch.tensor([[20, 21, *[image] * 4, 22, 23, 24], [20, 21, *[0] * 4, 30, 31, 32]])
    types = (ids == image).long()
    with torch.inference_mode(), Trace(architecture) as trace:
        model(
            **{
                **alone,
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "mm_token_type_ids": types,
                "moe_mm_token_type_ids": types,
            }
        )
    both = {site: [trace.at(site, 0, 0), trace.at(site, 0, 1)] for site in architecture.w_outs}
    for number, inputs in enumerate((alone, {"input_ids": ids[1:], "attention_mask": torch.ones_like(ids[1:])})):
        with torch.inference_mode(), Trace(architecture) as trace:
            model(**inputs)
        for site, o in both.items():
            torch.testing.assert_close(o[number], trace.at(site, 0, 0), rtol=1e-4, atol=1e-5)


def test_an_edit_changes_the_logits_comes_out_again_and_survives_the_disk(tiny: Tiny, tmp_path: Path) -> None:
    model, live = tiny.model, Stack.of(tiny.model)
    with torch.inference_mode(), Trace(tiny.architecture) as trace:
        before = tiny.logits()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for kind in ("None", "shared", "int"):
        active = [
            (w_out, o)
            for w_out in tiny.architecture.sites
            if kind == ("int" if isinstance(w_out.expert, int) else str(w_out.expert))
            and (o := trace.at(w_out.site, 0, 0)).any()
        ]
        if not active:
            continue
        w_out, o = active[-1]
        units = torch.tensor([int(o.abs().argmax())])
        rows = torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
        patch = Patch({w_out.site: (units, rows)}, {w_out.site: live.base_rows(w_out.site, units)}, Base.of(model))
        patch.save(tmp_path / "p.safetensors")
        for one in (patch, Patch.load(tmp_path / "p.safetensors")):
            assert one.digest == patch.digest
            with one.applied(model), torch.inference_mode():
                changed = [
                    name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])
                ]
                assert w_out.name in changed and all(
                    model.state_dict()[n].data_ptr() == w_out.weight.data_ptr() for n in changed
                )
                assert torch.equal(w_out.rows(units), patch.base_rows[w_out.site] + rows)
                moved = (w_out.weight != weights[w_out.name]).sum()
                assert moved == (rows != 0).sum()  # of a parameter with all experts, that row alone
                assert not torch.allclose(tiny.logits(), before, atol=1e-4)
            assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(tiny.logits(), before)


def test_a_folded_score_is_the_slope_of_the_logit_or_says_that_it_is_not(tiny: Tiny) -> None:
    """d logit / d alpha of adding alpha · row at the position, where only the way out answers, with norms' scales held."""
    architecture, token = tiny.probe(), 33
    sites = architecture.sites
    assert architecture.exact([w_out.site for w_out in sites], folded=False) is (tiny.row.way == "direct")
    assert architecture.exact([w_out.site for w_out in sites], folded=True) is (tiny.row.way != "other")
    if tiny.row.way == "other":
        return
    with torch.inference_mode(), Trace(architecture, norms=True) as trace:
        tiny.logits()
    ways = directions(architecture, token, partial(trace.entered, step=0, row=0), [w_out.site for w_out in sites])
    for w_out in {(w_out.module): w_out for w_out in sites}.values():
        row = w_out.matrix[5]
        expected = slope(tiny, w_out, row, token) / gate_of(tiny, w_out)
        assert float(row @ ways[w_out.site]) == pytest.approx(expected, rel=2e-3, abs=1e-5), w_out.site
        assert expected != 0


def gate_of(tiny: Tiny, w_out: WOut) -> float:
    """The gate at the last position, which counts as a part of the activations."""
    if w_out.gate is None:
        return 1.0
    seen: list[Tensor] = []
    handle = w_out.gate.register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    tiny.logits()
    handle.remove()
    return float(torch.sigmoid(seen[0].flatten()[-1]))


def slope(tiny: Tiny, w_out: WOut, row: Tensor, token: int) -> float:
    alpha = torch.zeros(1, requires_grad=True)
    fused = {w.module for w in tiny.architecture.sites if w.fused}
    maps = [m for m in tiny.model.modules() if isinstance(m, nn.Linear | Conv1D | nn.Embedding) or m in fused]
    norms = [m for m in tiny.model.modules() if "norm" in type(m).__name__.lower() and m not in maps]
    hooks = [(m, detached) for m in maps if m is not tiny.architecture.unembedding]
    hooks += [(m, with_its_scale_held) for m in norms]

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        at_last = torch.zeros(output.shape[:-1])
        at_last.view(-1)[-1] = 1
        return output.detach() + alpha * at_last[..., None] * row

    handles = [module.register_forward_hook(hook) for module, hook in hooks if module is not w_out.module]
    handles.append(w_out.module.register_forward_hook(add))
    try:
        (gradient,) = torch.autograd.grad(tiny.logits()[token], alpha)
    finally:
        for handle in handles:
            handle.remove()
    return float(gradient)


def detached(module: nn.Module, args: Any, output: Any) -> Any:
    return tuple(map(partial(detached, module, args), output)) if isinstance(output, tuple) else output.detach()


def with_its_scale_held(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    """The same values, as a linear map of the input."""
    if len(args) > 1:  # a norm with a gate, inside of a mixer
        return None
    x = args[0]
    with torch.no_grad():
        centres = torch.allclose(module.forward(x.detach() + 1), output, atol=1e-3)
        zero = module.forward(torch.zeros_like(x))
    moved = x - x.mean(-1, keepdim=True) if centres else x
    return ((output - zero) / torch.where(moved == 0, 1, moved)).detach() * moved + zero
