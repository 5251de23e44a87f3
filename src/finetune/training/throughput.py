"""Measure how fast a run trains, and how long each of its parts takes."""

import time
from collections import deque
from collections.abc import Callable

import psutil
import torch
from transformers import TrainerCallback, TrainerState

from finetune.data.batches import Batch
from finetune.distributed.hangs import pulse


class Parts:
    """The seconds of each part of a run, from the start of its process on."""

    def __init__(self) -> None:
        self.since = self.began = psutil.Process().create_time()
        self.seconds: dict[str, float] = {}

    def done(self, part: str) -> None:
        """Count the time since the last part as this one's."""
        now = time.time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.since
        self.since = now

    def move(self, seconds: float, part: str, other: str) -> None:
        """Count so many of a part's seconds as those of another one, which it held."""
        self.seconds[part] -= seconds
        self.seconds[other] = self.seconds.get(other, 0.0) + seconds

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in self.seconds.items())
        return f"{parts}; {self.since - self.began:.0f} s in all"


class OwnWork:
    """The time in which this process works on its share of a step: for its batches, and in the forward pass.

    In the backward pass processes wait for one another, so that all of them take as long as the slowest. Before the
    forward pass of the model itself, DDP waits too. On a GPU, that is timed there, and read later.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.began: float | None = None
        self.event: torch.cuda.Event | None = None
        self.unread: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def begin_loading(self) -> None:
        self.began = time.perf_counter()

    def end_loading(self) -> None:
        if self.began is not None:
            pulse.worked(time.perf_counter() - self.began)
        self.began = None

    def begin_forward(self, model: torch.nn.Module, inputs: object) -> None:
        """Begin, as a hook of the model."""
        if self.on_gpu:
            self.event = _now_on_gpu()
        else:
            self.began = time.perf_counter()

    def end_forward(self) -> None:
        self.end_loading()
        if self.event is not None:
            self.unread.append((self.event, _now_on_gpu()))
            self.event = None
        while self.unread and self.unread[0][1].query():
            begin, end = self.unread.popleft()
            pulse.worked(begin.elapsed_time(end) / 1000)


def _now_on_gpu() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Throughput(TrainerCallback):
    """A count of windows and tokens, from the beginning of training or from the end of the warm-up steps."""

    def __init__(self, warmup_steps: int, device: torch.device) -> None:
        self.warmup_steps = warmup_steps
        self.steps = 0  # of this process: a resumed run warms up again
        self.without_warmup = False
        self.windows = torch.zeros((), dtype=torch.int64, device=device)
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)
        self.evaluation_seconds = self.evaluated_before = 0.0  # all of them, and those that don't count
        self.loop_seconds = 0.0  # from the first step to the last, with what comes between
        self.loop_began = self.started = time.perf_counter()

    def start(self) -> None:
        self.windows.zero_()
        self.tokens.zero_()
        self.evaluated_before = self.evaluation_seconds
        self.started = time.perf_counter()

    def count(self, batch: Batch) -> None:
        """Count the windows and tokens of a batch, without padding, on the device, so that nothing waits."""
        self.windows += len(batch["attention_mask"])
        self.tokens += batch["attention_mask"].sum()

    def on_train_begin(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.start()
        self.loop_began = self.started

    def on_train_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.loop_seconds = time.perf_counter() - self.loop_began

    def on_step_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        self.steps += 1
        if self.steps == self.warmup_steps and state.global_step < state.max_steps:
            self.start()
            self.without_warmup = True

    def rates(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the seconds, and windows and tokens per second over all processes, whose counts `gather` collects."""
        windows, tokens = int(gather(self.windows).sum()), int(gather(self.tokens).sum())
        seconds = time.perf_counter() - self.started - (self.evaluation_seconds - self.evaluated_before)
        return {
            "train_seconds": seconds,
            "train_samples_per_second": windows / seconds,
            "train_tokens_per_second": tokens / seconds,
        }
