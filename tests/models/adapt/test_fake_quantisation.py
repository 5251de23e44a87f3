"""Rounding to 8 bits: on the grid that a runtime has, with the gradients of the papers, and undone without a trace."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForQuestionAnswering

from finetune.core.errors import ModelError
from finetune.models import blocks
from finetune.models.adapt import fake_quantisation, pruning
from finetune.models.adapt.fake_quantisation import InputGrid, on_weight_grid
from tests.models.test_blocks import IDS, SOME, build, closed, logits

NUMBERS = st.floats(-1e3, 1e3, width=32)


def quantised(family: str = "bert") -> Any:
    model = build(family)
    fake_quantisation.quantise(model)
    fake_quantisation.calibrate(model, [{"input_ids": IDS[:1]}, {"input_ids": IDS[1:]}])
    return model


@settings(max_examples=100)
@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=5))
def test_weights_are_on_the_grid_of_their_row(rows: list[list[float]]) -> None:
    """The nearest of 127 numbers, which are multiples of one, and of which the outermost are the row's largest."""
    weight = np.array(rows, dtype=np.float32)
    found = on_weight_grid(torch.from_numpy(weight)).numpy()
    for row, rounded in zip(weight.astype(np.float64), found.astype(np.float64), strict=True):
        step = max(np.abs(row).max() / 63, 1e-8)
        assert np.abs(rounded - row).max() <= step * 0.5001
        assert np.abs(rounded / step - np.round(rounded / step)).max() < 1e-3
        assert np.abs(rounded).max() <= step * 63.001


@settings(max_examples=100)
@given(st.lists(NUMBERS, min_size=1, max_size=20), NUMBERS, NUMBERS)
def test_inputs_are_on_a_grid_that_has_0(numbers: list[float], one: float, other: float) -> None:
    """The nearest of 256 numbers between the edges, of which 0 is one; with gradients and without, the same."""
    grid = InputGrid(torch.device("cpu"))
    low, high = min(one, other, 0), max(one, other, 1)
    grid.edges.data.copy_(torch.tensor([low, high]))
    inputs = torch.tensor([*numbers, 0.0])
    found = grid(inputs)
    step = max((np.float64(high) - low) / 255, 1e-8)
    expected = np.clip(inputs.double().numpy(), low - step / 2, high + step / 2)
    assert np.abs(found.detach().double().numpy() - expected).max() <= step * 1.001
    assert found[-1] == 0
    with torch.no_grad():
        assert torch.equal(grid(inputs), found)


def test_gradients() -> None:
    """Between the edges they pass, beyond they move the edge; weights get what comes to what they were rounded to."""
    grid = InputGrid(torch.device("cpu"))
    grid.edges.data.copy_(torch.tensor([-1.0, 2.0]))
    inputs = torch.tensor([-3.0, -1.5, -0.5, 0.3, 1.9, 2.5], requires_grad=True)
    along = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    (grid(inputs) * along).sum().backward()
    assert inputs.grad is not None and inputs.grad.tolist() == [0, 0, 4, 8, 16, 0]
    assert grid.edges.grad is not None and grid.edges.grad.tolist() == [3, 32]
    weight = torch.randn(3, 4, requires_grad=True)
    (on_weight_grid(weight) * 5).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[5.0] * 4] * 3


@pytest.mark.parametrize("family", blocks.FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    """Each layer has four ranges, each once in a checkpoint; saved is a stock model, which can round as it did."""
    plain = build(family)
    model = quantised(family)
    names = [name for name, _ in model.named_parameters() if name.endswith(".edges")]
    assert len(names) == len(fake_quantisation.edges_of(model)) == 4 * 2
    assert all(edges[0] < 0 < edges[1] for edges in fake_quantisation.edges_of(model))
    rounded = logits(model)
    assert 0 < (rounded - logits(plain)).abs().max() < 0.5 * logits(plain).abs().max()
    restored = fake_quantisation.restore(model)
    assert all(torch.equal(one, other) for one, other in zip(restored.parameters(), plain.parameters(), strict=True))
    assert torch.equal(logits(restored), logits(plain))
    restored.save_pretrained(tmp_path)
    stock = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert torch.equal(logits(stock), logits(plain))
    again = fake_quantisation.as_trained(stock)
    assert again is not None and torch.equal(logits(again), rounded)
    assert torch.equal(logits(stock), logits(plain))  # a copy was changed
    fake_quantisation.forget(stock)
    assert fake_quantisation.as_trained(stock) is None


@pytest.mark.parametrize("family", blocks.FAMILIES)
def test_what_is_behind_closed_gates_sets_no_scale_of_weights(family: str) -> None:
    """Rounded with gates, a model computes what it does when they are cut out first; large weights lie behind them."""
    model = closed(build(family), SOME)
    with torch.no_grad():
        for gated in pruning.gated_layers(model):
            gated.layer.outward.weight[:, gated.heads.open_columns() == 0] *= 50
            gated.layer.down.weight[:, gated.columns.open_columns() == 0] *= 50
    fake_quantisation.quantise(model)
    fake_quantisation.calibrate(model, [{"input_ids": IDS}])
    rounded = logits(model)
    shut = logits(fake_quantisation.restore(model))
    assert all(isinstance(layer.outward, pruning.GatedLinear) for layer in blocks.layers(model))
    assert (rounded - shut).abs().max() > 1e-4
    cut = pruning.restore(model)
    assert torch.allclose(logits(cut), shut, atol=1e-5)
    again = fake_quantisation.as_trained(cut)
    assert again is not None and torch.allclose(logits(again), rounded, atol=1e-5)


def test_what_is_behind_closed_gates_makes_no_range_wide() -> None:
    """Calibrated with gates, ranges are those of the model from which what is behind them was cut out."""
    model = closed(build("bert"), SOME)
    with torch.no_grad():
        for gated in pruning.gated_layers(model):
            gated.layer.up.bias[gated.columns.open_columns() == 0] += 50
    cut = pruning.restore(deepcopy(model))
    ranges = []
    for either in (model, cut):
        fake_quantisation.quantise(either)
        fake_quantisation.calibrate(either, [{"input_ids": IDS}])
        edges = torch.stack([*fake_quantisation.edges_of(either)]).detach()
        ranges.append(torch.stack([edges[:, 0].clamp(max=0), edges[:, 1].clamp(min=0)]))  # 0 lies between them
    assert torch.allclose(*ranges, rtol=1e-2) and ranges[0].max() < 25


def test_the_gradient_of_a_gate_before_which_numbers_are_rounded() -> None:
    """What a block would add to the output, by the rounded weights of its columns and the rounded inputs.

    Also where the gate is closed, and where inputs lie beyond the range: by how much is no reason to cut a block.
    """
    torch.manual_seed(7)
    gate = pruning.Gates(3, 4, torch.device("cpu"))
    gate.gates[1] = 0
    gated = pruning.GatedLinear(torch.nn.Linear(12, 5), gate)
    layer = fake_quantisation.QuantisedLinear(gated, InputGrid(torch.device("cpu")), owns=True)
    layer.grid.edges.data.copy_(torch.tensor([-1.0, 1.5]))
    inputs, along = torch.randn(2, 6, 12) * 2, torch.randn(2, 6, 5)
    assert (inputs.abs() > 1.5).any()
    (layer(inputs) * along).sum().backward()
    weight = on_weight_grid(layer.weight.detach(), gate.open_columns())
    of_columns = ((along @ weight) * layer.grid(inputs).detach()).sum((0, 1))
    assert gate.scores.grad is not None
    assert torch.allclose(gate.scores.grad, of_columns.view(3, 4).sum(1), rtol=1e-4, atol=1e-5)
    assert gate.scores.grad.abs().min() > 1e-3


@pytest.mark.parametrize("wrong", ["none", [], {}, "one less", "three", "nan", True])
def test_ranges_that_are_not_the_models(wrong: Any) -> None:
    model = fake_quantisation.restore(quantised())
    ranges = dict(model.config.to_dict()[fake_quantisation.KEY])
    first = next(iter(ranges))
    if wrong == "one less":
        del ranges[first]
    elif wrong in ("three", "nan"):
        ranges[first] = [0, 1, 2] if wrong == "three" else [0, json.loads("NaN")]
    setattr(model.config, fake_quantisation.KEY, ranges if isinstance(wrong, str) and wrong != "none" else wrong)
    with pytest.raises(ModelError, match="does not say how the model was quantised"):
        fake_quantisation.as_trained(model)


def test_ranges_are_those_of_the_batches_on_average() -> None:
    model = quantised()
    grid = model.bert.encoder.layer[0].attention.self.query.grid
    seen = []
    plain = build("bert")
    words = plain.bert.embeddings.word_embeddings
    words.weight.data = on_weight_grid(words.weight.data)
    plain.bert.encoder.layer[0].attention.self.query.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for row in IDS:
            plain(input_ids=row[None])
    expected = torch.stack([torch.stack([one.min(), one.max()]) for one in seen]).mean(dim=0)
    assert torch.allclose(grid.edges, expected, atol=1e-6)
    assert model.bert.encoder.layer[0].attention.self.key.grid is grid
