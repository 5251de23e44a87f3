"""What the machine is, and how fast it multiplies matrices."""

import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.speed.harness import Meter, Way, Work

SIDE = 1024  # of the matrices; 2048 were as fast


def described() -> dict[str, Any]:
    """Return what figures depend on."""
    import torch
    import transformers

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16 instructions": multiplies_bf16(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def multiplies_bf16() -> bool:
    from finetune.core.world import World

    return World().cpu_has_bf16()


def multiply(dtype: str, meter: Meter) -> None:
    """Multiply large matrices, as fast as PyTorch can."""
    import torch

    left, right, result = (torch.randn(SIDE, SIDE).to(vars(torch)[dtype]) for _ in range(3))
    while True:
        torch.mm(left, right, out=result)
        meter.done(Work(operations=2.0 * SIDE**3))


PEAKS = {
    "peak fp32": Way("matrix multiplication alone, fp32", lambda _, meter: multiply("float32", meter)),
    "peak bf16": Way("matrix multiplication alone, bf16", lambda _, m: multiply("bfloat16", m), here=multiplies_bf16),
}
