"""Optimizers and schedules written out by hand: what a run of given parameters must do to the weights, step by step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tests.proofs.recorder import Step, Tensors

Parameters = Mapping[str, Any]


def learning_rate(given: Parameters, step: int, total: int) -> float:
    """Of a step, counted from 0."""
    warmup, peak = given["warmup_steps"], given["learning_rate"]
    kind = given["lr_scheduler_type"]
    if step < warmup and kind != "constant":
        return float(peak * step / warmup)
    progress = (step - warmup) / (total - warmup) if total > warmup else 1.0
    return float(peak * SCHEDULES[kind](progress, given))


SCHEDULES: dict[str, Callable[[float, Parameters], float]] = {
    "linear": lambda progress, given: 1 - progress,
    "cosine": lambda progress, given: (1 + math.cos(math.pi * progress)) / 2,
    "cosine_with_restarts": lambda progress, given: (
        (1 + math.cos(math.pi * (given["lr_scheduler_cycles"] * progress % 1))) / 2
    ),
    "polynomial": lambda progress, given: (1 - progress) ** given["lr_scheduler_power"],
    "constant": lambda progress, given: 1.0,
    "constant_with_warmup": lambda progress, given: 1.0,
}


def decays(name: str) -> bool:
    """Weight decay leaves biases and the weights of norms alone."""
    return not ("bias" in name or "norm" in name.lower())  # T5 has a table of biases by distance


def largest_difference(steps: Sequence[Step], given: Parameters) -> float:
    """Of any weight after any step, from what the optimizer written by hand makes of the same weights and gradients."""
    move = {"adafactor": Adafactor}.get(given["optim"], AdamW)(given)
    furthest = 0.0
    for number, step in enumerate(steps):
        rate = learning_rate(given, number, len(steps))
        for name, gradient in step.gradients.items():
            expected = move(name, step.before[name].double(), gradient.double(), rate)
            furthest = max(furthest, float((step.after[name].double() - expected).abs().max()))
    return furthest


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2, with bias correction."""

    def __init__(self, given: Parameters) -> None:
        self.given = given
        self.state: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {}

    def __call__(self, name: str, weights: torch.Tensor, g: torch.Tensor, rate: float) -> torch.Tensor:
        beta1, beta2 = self.given["adam_beta1"], self.given["adam_beta2"]
        m, v, t = self.state.get(name, (torch.zeros_like(g), torch.zeros_like(g), 0))
        m, v, t = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g, t + 1
        self.state[name] = m, v, t
        decay = self.given["weight_decay"] if decays(name) else 0.0
        direction = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + self.given["adam_epsilon"])
        return weights - rate * decay * weights - rate * direction


class Adafactor:
    """Shazeer & Stern 2018, algorithm 4 without its own step size: decay 1 - t^-0.8, update clipped to an RMS of 1."""

    def __init__(self, given: Parameters) -> None:
        self.given = given
        self.state: dict[str, tuple[Tensors, int]] = {}

    def __call__(self, name: str, weights: torch.Tensor, g: torch.Tensor, rate: float) -> torch.Tensor:
        kept, t = self.state.get(name, ({}, 0))
        t += 1
        decay = 1 - t**-0.8
        square = g * g + 1e-30

        def average(key: str, value: torch.Tensor) -> torch.Tensor:
            kept[key] = decay * kept.get(key, torch.zeros_like(value)) + (1 - decay) * value
            return kept[key]

        if g.dim() >= 2:
            rows, columns = average("rows", square.mean(-1)), average("columns", square.mean(-2))
            second = (rows / rows.mean(-1, keepdim=True)).unsqueeze(-1) * columns.unsqueeze(-2)
        else:
            second = average("all", square)
        update = g / second.sqrt()
        update /= max(1.0, float(update.square().mean().sqrt()))
        self.state[name] = kept, t
        shrunk = self.given["weight_decay"] * rate if decays(name) else 0.0
        return weights - shrunk * weights - rate * update
