"""What is predicted for several GPUs, by hand."""

import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.scaling import LENGTHS, PEAK, SHAPES, Shape, rate


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_weights_are_those_of_the_model(shape: Shape) -> None:
    sizes = {"hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "intermediate_size": 4 * shape.hidden}
    config = BertConfig(**sizes, num_attention_heads=4)
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(shape.weights, rel=0.002)
    assert sum(p.numel() for p in model.encoder.parameters() if p.dim() == 2) == shape.of_layers


def test_rates_by_hand() -> None:
    """A weight that multiplies takes six operations a token; on a slow network, what is sent takes all the time."""
    shape = Shape("one", layers=1, hidden=10, vocabulary=0)
    tokens, squares = sum(LENGTHS) / len(LENGTHS), sum(length**2 for length in LENGTHS) / len(LENGTHS)
    alone = 0.5 * PEAK / (6 * (1200 * tokens + 20 * squares))
    assert rate(shape, 1, "DDP", 4, 0.5, 1.0) == pytest.approx(alone)
    assert rate(shape, 8, "DDP", 10**9, 0.5, 1.0) == pytest.approx(8 * alone)  # hidden behind the backward pass
    seconds = 8 * (1200 + 5120) * 15 / 16  # two passes of gradients of four bytes, at one byte a second
    assert rate(shape, 16, "DDP", 4, 0.5, 1.0) == pytest.approx(16 * 4 / seconds)
    assert rate(shape, 16, "ZeRO-2", 4, 0.5, 1.0) == pytest.approx(2 * 16 * 4 / seconds)
