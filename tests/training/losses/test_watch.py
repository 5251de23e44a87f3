"""What is read of losses, gradients and weights, when, and what is said of it."""

from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from finetune.core.errors import ModelError
from finetune.training.losses.verdict import MOST
from finetune.training.losses.watch import STORED, Spiked, WatchLoss

ARGS = TrainingArguments(output_dir="out", use_cpu=True)


class Words:
    """A tokenizer whose words are numbers."""

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in ids.tolist()]


def watching(threshold: float = 0.0, evaluation_steps: int = 100) -> tuple[WatchLoss, TrainerState, TrainerControl]:
    state = TrainerState()
    state.max_steps = 100
    return WatchLoss(evaluation_steps, Words(), threshold), state, TrainerControl()  # type: ignore[arg-type]


def step(watch: WatchLoss, state: TrainerState, *losses: float, norm: float = 1.0) -> None:
    """A step of so many batches, each of two windows, whose tokens are the step and the batch, and 30 and 31."""
    state.global_step += 1
    for part, loss in enumerate(losses):
        share = torch.tensor(loss, requires_grad=True)
        watch.note(state.global_step, share, {"input_ids": torch.tensor([[state.global_step, part], [30, 31]])})
    watch.note_norm(state.global_step, torch.tensor(norm))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_first_batch_without_a_finite_loss_is_named(accumulation: int) -> None:
    """By its step and its texts, when the losses are read next."""
    watch, state, control = watching()
    for _ in range(9):
        losses = [1.0] * (accumulation - 1) + [float("nan") if state.global_step >= 6 else 2.0]
        step(watch, state, *losses)
        if state.global_step < 9:
            watch.on_step_end(ARGS, state, control)
    control.should_save = True
    named = f"the batch of '7 {accumulation - 1}', '30 31'"
    with pytest.raises(ModelError, match=f"the loss of step 7 is nan\n  where: {named}\n"):
        watch.on_step_end(ARGS, state, control)


def test_the_whole_step_of_a_gradient_is_named() -> None:
    """Whose rows it came from can't be told once gradients are added up."""
    watch, state, control = watching()
    step(watch, state, 1.0, 2.0, norm=float("inf"))
    control.should_save = True
    named = "the batch of '1 0', '30 31', '1 1', '30 31'"
    with pytest.raises(ModelError, match=f"the norm of the gradient of step 1 is inf\n  where: {named}\n"):
        watch.on_step_end(ARGS, state, control)


def test_weights_are_looked_at_before_they_are_saved() -> None:
    """A step may spoil them though its gradient is finite: Adam divides by 0 where adam_epsilon is 0."""
    watch, state, control = watching()
    model = torch.nn.Linear(2, 2)
    model.weight.data[0, 0] = float("nan")
    step(watch, state, 1.0)
    watch.on_step_end(ARGS, state, control, model=model)
    control.should_save = True
    with pytest.raises(ModelError, match="after step 1 there are weights that are not finite"):
        watch.on_step_end(ARGS, state, control, model=model)
    model.weight.requires_grad_(False)  # a frozen one was imported so
    watch.on_step_end(ARGS, state, control, model=model)


def test_losses_are_read_now_and_then() -> None:
    """Before an evaluation, every ten steps, and never twice."""
    watch, state, control = watching(evaluation_steps=4)
    left = []
    for _ in range(12):
        step(watch, state, 1.0)
        watch.on_step_end(ARGS, state, control)
        left.append((len(watch.noted), len(watch.norms)))
    assert left == [(n, n) for n in (1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 1, 0)]
    stored: Any = state.stateful_callbacks
    assert stored[STORED] == {"before": [1.0] * 12, "left_out": [], "spikes": 0}


@pytest.mark.parametrize("bad", [{"norm": float("nan")}, {"loss": float("inf")}, {"loss": 50.0}])
def test_with_a_threshold_the_run_goes_on_a_few_times(bad: dict[str, float]) -> None:
    watch, state, control = watching(threshold=10.0)
    for spikes in range(MOST + 1):
        state.global_step = 100 * spikes
        state.max_steps = 1000
        for _ in range(29):
            step(watch, state, 1.0)
            watch.on_step_end(ARGS, state, control)
        step(watch, state, bad.get("loss", 1.0), norm=bad.get("norm", 1.0))
        with pytest.raises(Spiked if spikes < MOST else ModelError, match=f"step {100 * spikes + 30} is") as caught:
            watch.on_step_end(ARGS, state, control)
        assert f"'{100 * spikes + 30} 0', '30 31'" in str(caught.value)
        if isinstance(caught.value, Spiked):
            watch = WatchLoss(100, Words(), 10.0)  # type: ignore[arg-type]
            watch.record = caught.value.record
            assert watch.leaves_out(100 * spikes + 30) and watch.record.spikes == spikes + 1
        else:
            assert f"{MOST} times the rows" in str(caught.value)
