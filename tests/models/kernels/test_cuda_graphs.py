"""Passes that are recorded: on a CPU, recording is to remember the function, which computes in the same tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.data.batches import Batch, collate_with_indices
from finetune.models.adapt import padding_free as adaptation
from finetune.models.kernels import padding_free
from finetune.models.kernels.cuda_graphs import PARTS, CudaGraphs, extended, length_of_row, record_on_gpu
from finetune.models.kernels.families import FAMILIES as KNOWN
from tests.models.kernels.test_families import TASKS, build
from tests.models.kernels.test_padding_free import PARAMS, assert_same, loss_and_gradients, without_dropout

LONGEST = 16
Run = Callable[[], None]


def remembered(run: Run, graphs: CudaGraphs) -> Run:
    """Recording draws nothing, and what is recorded knows of no autograd."""
    with torch.random.fork_rng(devices=[]):
        run()
    return torch.enable_grad()(run)


def graphs_on_cpu(model: Any, record: Callable[[Run, CudaGraphs], Run] = remembered) -> CudaGraphs:
    return CudaGraphs(model, LONGEST, record)


def windows(lengths: tuple[int, ...], seed: int = 7) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(5, 40, (length,), generator=draws).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "start_positions": 1, "end_positions": 2})
    return collate_with_indices(rows, {"input_ids": 1})


def by(run: Any, model: Any, batch: Batch) -> dict[str, Tensor]:
    """Return loss and gradients of a step."""
    outputs = padding_free.forward(run, batch, TASKS[0].model.inputs, padding_free.first_position(model))
    return loss_and_gradients(outputs, batch, model, TASKS[0])


@pytest.mark.usefixtures("flash_by_formula")
@pytest.mark.parametrize("family", sorted(KNOWN))
def test_losses_and_gradients_are_the_models_own(family: str) -> None:
    """Of batches of other lengths, of fewer windows, and after a step has changed the weights."""
    model, _ = adaptation.apply(without_dropout(family, TASKS[0]), PARAMS)
    graphs = graphs_on_cpu(model)
    for seed, lengths in enumerate([(12, 5, 9), (16, 16, 3), (12, 5), (8, 9, 9), (4,)]):
        wanted = {name: tensor.clone() for name, tensor in by(model, model, windows(lengths, seed)).items()}
        assert_same(by(graphs, model, windows(lengths, seed)), wanted)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(weight.grad, alpha=-0.1) if weight.grad is not None else None
    assert not graphs.fails and len(graphs.passes) == 4  # the first and the fourth are of as many tokens


@pytest.mark.usefixtures("flash_by_formula")
def test_gradients_of_two_batches_add_up() -> None:
    """Those of the first batch must not lie where those of the second are computed."""
    model, _ = adaptation.apply(without_dropout("bert", TASKS[0]), PARAMS)
    graphs, found = graphs_on_cpu(model), []
    for run in (model, graphs):
        model.zero_grad()
        for seed in range(2):
            batch = windows((12, 5, 9), seed)
            outputs = padding_free.forward(run, batch, TASKS[0].model.inputs, 0)
            TASKS[0].objective.loss(outputs, batch).sum().backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("flash_by_formula")
def test_no_node_of_the_models_own_weights_is_recorded() -> None:
    """It could be of a step before, and of the stream that this step was computed on: a GPU records no such pass."""
    recording: list[bool] = []

    def noted(run: Run, graphs: CudaGraphs) -> Run:
        recording.append(True)
        replay = remembered(run, graphs)
        recording.pop()
        return replay

    def refused(gradient: Tensor) -> None:
        assert not recording

    model, _ = adaptation.apply(without_dropout("bert", TASKS[0]), PARAMS)
    for weight in model.parameters():
        weight.register_hook(refused)
    graphs = graphs_on_cpu(model, noted)
    by(graphs, model, windows((12, 5, 9)))
    assert graphs.passes


@pytest.mark.usefixtures("flash_by_formula")
def test_a_weight_that_nothing_depends_on_has_no_gradient() -> None:
    """AdamW would let it decay."""
    model, _ = adaptation.apply(without_dropout("bert", TASKS[0]), PARAMS)
    model.idle = torch.nn.Parameter(torch.ones(3))
    by(graphs_on_cpu(model), model, windows((12, 5, 9)))
    assert model.idle.grad is None


@pytest.mark.usefixtures("flash_by_formula")
def test_graphs_that_do_something_else_are_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    """The gradients of a pass without a backward one are those of the pass before."""

    def forgetful(run: Run, graphs: CudaGraphs) -> Run:
        replay = remembered(run, graphs)
        return replay if run.__name__ == "forward" else lambda: None

    model, _ = adaptation.apply(without_dropout("bert", TASKS[0]), PARAMS)
    graphs, batch = graphs_on_cpu(model, forgetful), windows((12, 5, 9))
    wanted = {name: tensor.clone() for name, tensor in by(model, model, batch).items()}
    assert_same(by(graphs, model, batch), wanted)
    assert graphs.fails and not graphs.passes
    why = "gradients differ from the model's own"
    assert f"cuda_graphs: not used ({why})" in capsys.readouterr().out


def failing(error: RuntimeError) -> Callable[[Run, CudaGraphs], Run]:
    def record(run: Run, graphs: CudaGraphs) -> Run:
        raise error

    return record


@pytest.mark.usefixtures("flash_by_formula")
def test_what_cannot_be_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = adaptation.apply(without_dropout("bert", TASKS[0]), PARAMS)
    error = RuntimeError("CUDA error: operation not permitted\nwhen capturing")
    graphs, batch = graphs_on_cpu(model, failing(error)), windows((3, 2))
    wanted = {name: tensor.clone() for name, tensor in by(model, model, batch).items()}
    assert_same(by(graphs, model, batch), wanted)
    assert "cuda_graphs: not used (CUDA error: operation not permitted)" in capsys.readouterr().out


@pytest.mark.usefixtures("flash_by_formula")
def test_the_reason_is_what_ended_the_recording(capsys: pytest.CaptureFixture[str]) -> None:
    """Graphs need memory of their own: where it runs out, the model may still fit."""
    model, _ = adaptation.apply(without_dropout("bert", TASKS[0]), PARAMS)
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    by(graphs_on_cpu(model, failing(error)), model, windows((3, 2)))
    assert "not used (CUDA out of memory. Tried to allocate 2.00 GiB)" in capsys.readouterr().out


@pytest.mark.usefixtures("flash_by_formula")
def test_what_is_no_number_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    def spoilt(run: Run, graphs: CudaGraphs) -> Run:
        replay = remembered(run, graphs)

        def replayed() -> None:
            replay()
            graphs.gradients.flat.fill_(torch.nan)

        return replayed

    model, _ = adaptation.apply(without_dropout("bert", TASKS[0]), PARAMS)
    by(graphs_on_cpu(model, spoilt), model, windows((3, 2)))
    assert "not used (gradients differ" in capsys.readouterr().out


def test_the_draws_of_a_run_are_those_without_recording(flash_by_formula: list[float]) -> None:
    """A resumed run records at other steps than the one that it goes on with."""
    model, _ = adaptation.apply(build("bert", TASKS[0]), PARAMS)
    graphs = graphs_on_cpu(model)
    by(graphs, model, windows((12, 5, 9)))
    found = []
    for fresh in (False, True):
        if fresh:
            graphs = graphs_on_cpu(model)
        torch.manual_seed(2)
        by(graphs, model, windows((12, 5, 9)))
        found.append(torch.rand(1))
    assert torch.equal(*found)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_a_row_is_extended_by_windows(lengths: list[int]) -> None:
    tokens, longest = sum(lengths), max(lengths)
    begins = torch.tensor([0, *lengths]).cumsum(0).int()
    row = {
        "input_ids": torch.arange(1, tokens + 1)[None],
        "cu_seq_lens_q": begins,
        "max_length_q": longest,
        "token_indices": torch.arange(tokens),
    }
    found = extended(row, longest)
    ids, ends = found["input_ids"][0], found["cu_seq_lens_q"]
    assert found.keys() == {"input_ids", "cu_seq_lens_q"} and ends.dtype == torch.int32
    assert len(ids) == length_of_row(tokens) <= max(tokens * (1 + 1 / PARTS), tokens + 1)
    assert torch.equal(ids[:tokens], row["input_ids"][0]) and not ids[tokens:].any()
    assert torch.equal(ends[: len(begins)], begins)
    assert ends[-1] == len(ids) and (ends.diff() >= 0).all() and ends.diff().max() <= longest


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu(dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps by graphs are those of the model. That dropout is, where both are given as many tokens, graphs look at."""
    for drops in (False, True):
        built = build("bert", TASKS[0]) if drops else without_dropout("bert", TASKS[0])
        model, _ = adaptation.apply(built.float().to("cuda"), PARAMS)
        graphs = CudaGraphs(model, LONGEST)
        for lengths in ((12, 5, 9), (16, 16, 3), (12, 5), (8, 9, 9)):
            batch, found = {name: tensor.cuda() for name, tensor in windows(lengths).items()}, []
            for run in (model, graphs):
                with torch.autocast("cuda", dtype):
                    found.append(torch.cat([tensor.flatten() for tensor in by(run, model, batch).values()]))
            assert drops or (found[1] - found[0]).norm() < 3e-2 * found[0].norm()
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(weight.grad, alpha=-0.1)
        assert not graphs.fails and len(graphs.passes) == 3, capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_draws_on_after_what_cannot_be_recorded() -> None:
    """The host must not wait for the GPU while a pass is recorded."""
    graphs, ones = CudaGraphs(torch.nn.Dropout(0.5), LONGEST), torch.ones(1000, device="cuda")
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        record_on_gpu(lambda: print(torch.nn.functional.dropout(ones).sum().item()), graphs)
    assert 400 < torch.nn.functional.dropout(ones, 0.5).count_nonzero().item() < 600
    assert torch.cuda.current_stream() == stream
