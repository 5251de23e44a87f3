"""Which gates close: as many as asked for, those of least worth, and of two alike the slower one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForQuestionAnswering

from finetune.models.adapt import adaptations, pruning
from finetune.models.adapt.pruning import FEWEST_COLUMNS, Gated
from tests.models.test_blocks import PARAMS

LENGTH = 100.0
SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}


def gated_model() -> tuple[BertForQuestionAnswering, list[Gated]]:
    torch.manual_seed(1)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForQuestionAnswering(BertConfig(**SIZES, **dropout, max_position_embeddings=40))
    model, _ = pruning.apply(model, PARAMS)
    return model, pruning.gated_layers(model)


def weights(gated: list[Gated]) -> tuple[float, float, float]:
    """Those of all blocks, of the ones behind closed gates, and of the largest block."""
    of_all, shut, largest = 0.0, 0.0, 0.0
    for layer in gated:
        for gate, size in ((layer.heads, layer.layer.weights_of_head), (layer.columns, layer.layer.weights_of_column)):
            of_all += size * len(gate.gates)
            shut += size * float((gate.gates == 0).sum())
            largest = max(largest, size)
    return of_all, shut, largest


@settings(max_examples=60)
@given(
    ratio=st.floats(0, 0.9),
    seed=st.integers(0, 999),
    method=st.sampled_from(["gates", "taylor"]),
    alike=st.booleans(),
)
def test_as_much_is_closed_as_was_asked_for(ratio: float, seed: int, method: str, alike: bool) -> None:
    """To one block, and each layer keeps a head and a few columns."""
    _, gated = gated_model()
    torch.manual_seed(seed)
    for scores in pruning.scores_of(gated):
        scores.data.copy_(torch.zeros_like(scores) if alike else torch.rand_like(scores))
    pruning.close(gated, ratio, method, LENGTH)
    of_all, shut, largest = weights(gated)
    heads = sum(int(layer.heads.gates.sum()) for layer in gated)
    columns = sum(int(layer.columns.gates.sum()) for layer in gated)
    least = heads == len(gated) and columns == FEWEST_COLUMNS * len(gated)
    assert shut >= ratio * of_all - 1e-6 or least
    assert shut <= ratio * of_all + largest
    assert all(layer.heads.gates.sum() >= 1 and layer.columns.gates.sum() >= FEWEST_COLUMNS for layer in gated)


@settings(max_examples=20)
@given(ratio=st.floats(0.05, 0.95), seed=st.integers(0, 999), method=st.sampled_from(["gates", "taylor"]))
def test_columns_stay_in_full_tiles(ratio: float, seed: int, method: str) -> None:
    """Those of most worth of each layer, 8 at a time of 128: as much is closed as was asked for, to one tile."""
    model = BertForQuestionAnswering(BertConfig(**SIZES | {"intermediate_size": 128}, max_position_embeddings=40))
    gated = pruning.gated_layers(pruning.apply(model, PARAMS)[0])
    torch.manual_seed(seed)
    for scores in pruning.scores_of(gated):
        scores.data.uniform_()
    pruning.close(gated, ratio, method, LENGTH)
    for layer in gated:
        kept = layer.columns.open_places()
        assert len(kept) % 8 == 0 and len(kept) >= 8
        best = layer.columns.scores.argsort(descending=True)[: len(kept)]
        assert kept == sorted(best.tolist())
    of_all, shut, largest = weights(gated)
    least = sum(int(layer.heads.gates.sum() + layer.columns.gates.sum()) for layer in gated) == 9 * len(gated)
    assert shut <= ratio * of_all + max(largest, 8 * gated[0].layer.weights_of_column)
    assert shut >= ratio * of_all - 1e-6 or least


@pytest.mark.parametrize(
    ("columns", "tile"), [(3072, 64), (1536, 64), (1024, 64), (1000, 8), (512, 8), (128, 8), (120, 1), (1007, 1)]
)
def test_tiles(columns: int, tile: int) -> None:
    assert pruning.tile_of(columns) == tile


def test_the_weights_of_blocks_are_those_that_go() -> None:
    model, gated = gated_model()
    before = sum(p.numel() for name, p in model.named_parameters() if not name.endswith(".scores"))
    torch.manual_seed(4)
    for scores in pruning.scores_of(gated):
        scores.data.uniform_()
    pruning.close(gated, 0.5, "gates", LENGTH)
    _, shut, _ = weights(gated)
    assert pruning.restore(model).num_parameters() == before - shut


def test_the_course_of_the_ratio() -> None:
    """A cubic one, from a tenth of the steps to six tenths."""
    course = [pruning.ratio_at(step, 100, 0.4) for step in range(101)]
    assert course[:11] == [0] * 11 and course[60:] == [pytest.approx(0.4)] * 41
    assert course[35] == pytest.approx(0.4 * (1 - 0.5**3))
    assert course == sorted(course)
    assert pruning.ratio_at(1, 1, 0.4) == 0.4 and pruning.ratio_at(2, 2, 0.4) == 0.4


def test_a_slower_block_goes_first() -> None:
    """Of heads and columns that are worth the same for each weight: a head takes longer, on long windows above all."""
    _, gated = gated_model()
    kept = []
    for length in (0.01, 2000.0):  # a head takes less for each weight, or more
        for layer in gated:
            layer.heads.scores.data.fill_(float(layer.layer.weights_of_head))
            layer.columns.scores.data.fill_(float(layer.layer.weights_of_column))
        pruning.close(gated, 0.4, "taylor", length)
        kept.append(sum(int(layer.heads.gates.sum()) for layer in gated))
    assert kept[0] > kept[1] == len(gated)
    torch.manual_seed(2)
    for layer in gated:
        layer.heads.scores.data.normal_()
        layer.columns.scores.data.normal_(3.0, 7.0)  # neither mean nor unit of a kind says anything
    kept = []
    for length in (1.0, 100000.0):
        pruning.close(gated, 0.5, "gates", length)
        kept.append(sum(int(layer.heads.gates.sum()) for layer in gated))
    assert kept[0] > kept[1] == 2


IDS = torch.arange(3, 43).reshape(4, 10)
PLACES = torch.tensor([1, 4, 2, 7])


def loss_of(model: BertForQuestionAnswering) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=IDS, start_positions=PLACES, end_positions=PLACES + 2).loss
    return loss


def test_the_gradient_of_a_score_is_that_of_its_gate() -> None:
    """What the loss would do if the gate were a number: by differences, for open gates and for closed ones."""
    model, gated = gated_model()
    model.double()
    gated[0].columns.gates[::2] = 0
    gated[1].heads.gates[1] = 0
    loss_of(model).backward()
    for gate in (gated[0].columns, gated[1].heads):
        assert gate.scores.grad is not None
        for i in range(4):
            value, tiny = float(gate.gates[i]), 1e-4
            around = []
            for step in (tiny, -tiny):
                gate.gates[i] = value + step
                around.append(float(loss_of(model).detach()))
            gate.gates[i] = value
            assert float(gate.scores.grad[i]) == pytest.approx((around[0] - around[1]) / (2 * tiny), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("method", ["taylor", "gates"])
def test_blocks_that_do_nothing_or_harm_go(method: str) -> None:
    """Of a model that has learnt: columns that lead nowhere by their gradient, columns of noise by their scores."""
    model, gated = gated_model()
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if not n.endswith(".scores")], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    before, bad = float(loss_of(model).detach()), slice(8, 24)
    torch.manual_seed(5)
    for layer in gated:
        noise = torch.randn_like(layer.layer.down.weight[:, bad])
        layer.layer.down.weight.data[:, bad] = 0 if method == "taylor" else 4 * noise
    scores = pruning.scores_of(gated)
    by = torch.optim.Adam(scores, lr=pruning.GATE_RATE)
    for _ in range(20):
        by.zero_grad()
        loss_of(model).backward()
        if method == "taylor":
            pruning.add_squared_gradients(gated)
        else:
            by.step()
    share = 2 * 16 * gated[0].layer.weights_of_column / weights(gated)[0]
    after_noise = float(loss_of(model).detach())
    pruning.close(gated, share, method, 10.0)
    gone = sum(int((layer.columns.gates[bad] == 0).sum()) for layer in gated)
    now = float(loss_of(model).detach())
    if method == "taylor":
        assert gone == 32 and now == pytest.approx(after_noise, abs=1e-6)
        return
    by_chance = []
    for _ in range(20):
        for score in scores:
            score.data.normal_()
        pruning.close(gated, share, method, 10.0)
        by_chance.append(float(loss_of(model)))
    assert before < now < min(by_chance)


def test_scores_are_no_weights() -> None:
    """Neither the optimizer of the weights nor the norm of their gradient knows of them."""
    model, gated = gated_model()
    scores = pruning.scores_of(gated)
    with adaptations.not_trained(scores):
        assert not any(score.requires_grad for score in scores)
    assert all(score.requires_grad for score in scores)
    loss_of(model).backward()
    with adaptations.gradients_set_aside(scores):
        without = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    every = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    of_scores = torch.nn.utils.get_total_norm([score.grad for score in scores if score.grad is not None])
    assert float(every) ** 2 == pytest.approx(float(without) ** 2 + float(of_scores) ** 2)
    assert float(of_scores) > 0


def test_wanted() -> None:
    assert pruning.wanted(PARAMS) and not pruning.wanted(replace(PARAMS, apply_pruning=False))
