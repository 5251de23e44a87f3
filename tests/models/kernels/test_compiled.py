"""Layers that are compiled one by one: the same loss and gradients, by one program for all lengths.

On a CPU autograd's graphs are traced as for a GPU, and computed without compiled kernels, which take minutes.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from finetune.models.adapt import padding_free as adaptation
from finetune.models.kernels import compiled, padding_free
from finetune.models.kernels.cuda_graphs import CudaGraphs
from finetune.models.kernels.families import FAMILIES as KNOWN
from finetune.tasks import answering
from tests.models.kernels.conftest import by_formula
from tests.models.kernels.test_cuda_graphs import LONGEST, windows
from tests.models.kernels.test_families import TASKS, build
from tests.models.kernels.test_padding_free import PARAMS, assert_same, loss_and_gradients, without_dropout

BATCHES = ((12, 5, 9), (16, 16, 3), (12, 5), (8, 9, 9), (7,), (3, 5, 4, 6))


@torch.library.custom_op("finetune_tests::flash", mutates_args=())
def flash(query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int) -> Tensor:
    """FlashAttention as an operator whose inside is not traced, as the GPU's."""
    return by_formula(query, key, value, begins, begins, longest, longest, 0.0, False, False, scale=None)[
        0
    ].contiguous()


@torch.library.custom_op("finetune_tests::flash_backward", mutates_args=())
def flash_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients, window by window."""
    scale, found = query.shape[-1] ** -0.5, [torch.empty_like(tensor) for tensor in (query, key, value)]
    for start, end in pairwise(begins.tolist()):
        q, k, v, of_output = (tensor[start:end] for tensor in (query, key, value, gradient))
        weights = (torch.einsum("qhd,khd->hqk", q, k) * scale).softmax(-1)
        of_weights = torch.einsum("qhd,khd->hqk", of_output, v)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        found[0][start:end] = torch.einsum("hqk,khd->qhd", of_scores, k)
        found[1][start:end] = torch.einsum("hqk,qhd->khd", of_scores, q)
        found[2][start:end] = torch.einsum("hqk,qhd->khd", weights, of_output)
    return found[0], found[1], found[2]


@flash.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int) -> Tensor:
    return query.new_empty(query.shape)


@flash_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def differentiated(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *flash_backward(gradient, *ctx.saved_tensors, ctx.longest), None, None


def remembered(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.longest = inputs[4]


flash.register_autograd(differentiated, setup_context=remembered)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers are traced, with FlashAttention as an operator."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(padding_free, "has_flash", lambda query: True)
    monkeypatch.setattr(padding_free, "_flash", lambda q, k, v, begins, longest, *_: flash(q, k, v, begins, longest))
    yield
    torch._dynamo.reset()


def step(model: Any, batch: dict[str, Tensor], graphs: CudaGraphs | None = None) -> dict[str, Tensor]:
    outputs = padding_free.forward(graphs or model, batch, TASKS[0].model.inputs, padding_free.first_position(model))
    return {name: tensor.clone() for name, tensor in loss_and_gradients(outputs, batch, model, TASKS[0]).items()}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("family", sorted(KNOWN))
def test_loss_and_gradients(family: str) -> None:
    """Of rows of all lengths, by one program for all layers; the first one has its own where it is given a view."""
    model, _ = adaptation.apply(without_dropout(family, TASKS[0]), PARAMS)
    batches = [windows(lengths, seed) for seed, lengths in enumerate(BATCHES)]
    wanted = [step(model, batch) for batch in batches]
    compiled.compile_layers(model)
    for batch, of_model in zip(batches, wanted, strict=True):
        assert_same(step(model, batch), of_model)
    assert counters["stats"]["unique_graphs"] == (2 if family in ("albert", "electra") else 1), counters


@pytest.mark.usefixtures("traced")
def test_padded_batches_are_not_compiled() -> None:
    model, _ = adaptation.apply(build("bert", TASKS[0]), PARAMS)
    compiled.compile_layers(model)
    with torch.no_grad():
        answering.forward(model.eval(), windows((12, 5, 9)), TASKS[0].model.inputs)
    assert not counters["stats"]


@pytest.mark.usefixtures("traced")
def test_restored() -> None:
    """Nothing compiled is left, in no layer."""
    model, _ = adaptation.apply(build("bert", TASKS[0]), PARAMS)
    compiled.compile_layers(model)
    compiled.restore(model)
    step(model, windows((12, 5, 9)))
    assert not counters["stats"]
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("given", "by_layer"), [({"torch_compile": True}, True), ({}, False)], ids=str)
def test_as_an_adaptation(given: dict[str, Any], by_layer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU has FlashAttention, layers are compiled, and the Trainer is not told to; the saved model has none."""
    params = replace(PARAMS, padding_free="auto", precision="bf16", **given)
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(torch.cuda, "is_available", lambda: True)
        on_gpu.setattr(padding_free, "why_no_flash", lambda dtype, size: "")
        model, lines = adaptation.apply(build("bert", TASKS[0]), params)
        assert adaptation.wanted(params) and not adaptation.compiles_whole_model(model, params)
    step(model, windows((12, 5, 9)))
    assert (counters["stats"]["unique_graphs"] == 1) is by_layer is bool(lines)
    model = adaptation.restore(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert adaptation.compiles_whole_model(model, params) is by_layer  # of a model whose batches are padded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_on_a_gpu(family: str) -> None:
    """Steps are those of the layers' own code; with dropout, graphs look at whether they are."""
    torch._dynamo.reset()
    for drops in (False, True):
        built = build(family, TASKS[0]) if drops else without_dropout(family, TASKS[0])
        model, _ = adaptation.apply(built.float().to("cuda"), PARAMS)
        batches = [{name: tensor.cuda() for name, tensor in windows(lengths).items()} for lengths in BATCHES]
        with torch.autocast("cuda", torch.bfloat16):
            wanted = [flat(step(model, batch)) for batch in batches]
            compiled.compile_layers(model)
            graphs = CudaGraphs(model, LONGEST)
            for batch, of_model in zip(batches, wanted, strict=True):
                for by in (None, graphs):
                    difference = flat(step(model, batch, by)) - of_model
                    assert drops or difference.norm() < 3e-2 * of_model.norm()
        assert not graphs.fails


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])
