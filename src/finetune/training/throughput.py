"""Measure how fast a run trains: windows and tokens in the seconds that were not spent on evaluation."""

import time
from collections.abc import Callable

import torch
from transformers import TrainerCallback, TrainerState

from finetune.data.batches import Batch


class Throughput(TrainerCallback):
    """A count of windows and tokens, from the beginning of training or from the end of the warm-up steps."""

    def __init__(self, warmup_steps: int, device: torch.device) -> None:
        self.warmup_steps = warmup_steps
        self.steps = 0  # of this process: a resumed run warms up again
        self.without_warmup = False
        self.windows = torch.zeros((), dtype=torch.int64, device=device)
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)
        self.evaluation_seconds = 0.0
        self.started = time.perf_counter()

    def start(self) -> None:
        self.windows.zero_()
        self.tokens.zero_()
        self.evaluation_seconds = 0.0
        self.started = time.perf_counter()

    def count(self, batch: Batch) -> None:
        """Count the windows and tokens of a batch, without padding, on the device, so that nothing waits."""
        self.windows += len(batch["attention_mask"])
        self.tokens += batch["attention_mask"].sum()

    def on_train_begin(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.start()

    def on_step_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.steps += 1
        if self.steps == self.warmup_steps and state.global_step < state.max_steps:
            self.start()
            self.without_warmup = True

    def rates(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the seconds, and windows and tokens per second over all processes, whose counts `gather` collects."""
        windows, tokens = int(gather(self.windows).sum()), int(gather(self.tokens).sum())
        seconds = time.perf_counter() - self.started - self.evaluation_seconds
        return {
            "train_seconds": seconds,
            "train_samples_per_second": windows / seconds,
            "train_tokens_per_second": tokens / seconds,
        }
