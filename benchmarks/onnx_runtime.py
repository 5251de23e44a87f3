"""Seconds of a training step in PyTorch, with eager and with fused attention, and by ONNX Runtime's graph.

    .venv-ort/bin/python benchmarks/onnx_runtime.py [ROUNDS]

A BERT of 6 layers x 384 with dropout and random weights, 8 windows of 128 tokens, AdamW. Each round has a step of each,
so that what else the machine does slows all alike. The medians of ROUNDS (30) are printed, without three before them:
seconds on the clock, and of all processors, which count less of what else goes on.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering, BertConfig

from finetune.core.console import quiet_libraries
from finetune.models.ort import engine
from finetune.tasks.answering import forward

WARM = 3
SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
BATCH = {"input_ids": torch.randint(1000, 30000, (8, 128)), "attention_mask": torch.ones(8, 128, dtype=torch.long)}


def main() -> None:
    quiet_libraries()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    steps = {"PyTorch, eager": step("eager"), "PyTorch, sdpa": step("sdpa"), "ONNX Runtime": step("eager", graph=True)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(WARM + rounds):
        for name, run in steps.items():
            started, computed = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.perf_counter() - started, time.process_time() - computed))
    print(f"{torch.get_num_threads()} threads, {rounds} rounds")
    for name, taken in seconds.items():
        clock, processors = (statistics.quantiles(measured, n=4) for measured in zip(*taken[WARM:], strict=True))
        for kind, (low, median, high) in (("clock", clock), ("processors", processors)):
            print(f"{name:16} {kind:10} median {median:.3f} s, quartiles {low:.3f} and {high:.3f}", flush=True)


def step(attention: str, graph: bool = False) -> Callable[[], None]:
    """A function that makes a training step of a model of its own."""
    torch.manual_seed(0)
    model: Any = AutoModelForQuestionAnswering.from_config(BertConfig(**SIZES), attn_implementation=attention)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    called = engine.graph_of(model, BATCH, frozenset(BATCH)) if graph else model

    def run() -> None:
        outputs = forward(called, BATCH, frozenset(BATCH))
        (outputs["start_logits"].logsumexp(-1) - outputs["end_logits"][:, 0]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


if __name__ == "__main__":
    main()
