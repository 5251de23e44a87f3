"""The memory that a backend takes: the peak of a process of its own, which loads the model and answers one window.

python -m finetune.backends.memory KIND PATH TASK THREADS TOKENS INPUT ...
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.backends import runtimes
from finetune.core.types import Json
from finetune.models.openvino import open_openvino

KINDS = ("PyTorch FP32", "PyTorch bf16", "OpenVINO", "ONNX Runtime")
STATUS = Path("/proc/self/status")


def peak_mb(kind: str, path: Path, task: str, threads: int, tokens: int, inputs: Sequence[str]) -> float | None:
    """Return the peak in MB of a process that has nothing but this model; None where the system doesn't say.

    `path` is the folder of a PyTorch model, or the file of another one.
    """
    if not STATUS.is_file():
        return None
    words = [kind, str(path.absolute()), task, str(threads), str(tokens), *inputs]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "finetune.backends.memory", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind} ended with {done.returncode} in a process of its own: {done.stderr}")
    return float(done.stdout.split()[-1])


def main(argv: Sequence[str]) -> None:
    kind, path, task, threads, tokens, *inputs = argv
    window = {name: np.ones((1, int(tokens)), dtype=np.int64) for name in inputs}
    if "token_type_ids" in window:
        window["token_type_ids"] *= 0
    if kind == "OpenVINO":
        open_openvino(Path(path), int(threads)).compute(window)
    elif kind == "ONNX Runtime":
        runtimes.open_onnx(Path(path), int(threads)).compute(window)
    else:
        _compute_in_torch(Path(path), task, "bf16" if kind == "PyTorch bf16" else "32", window)
    peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 / 1e6)


def _compute_in_torch(folder: Path, task_name: str, precision: str, window: Json) -> None:
    import torch

    from finetune.models.loading import load_model
    from finetune.models.prediction import compute_in
    from finetune.tasks import load_task

    model, _ = load_model(folder, load_task(task_name), None)
    with torch.inference_mode():
        compute_in(model.eval(), precision)(**{name: torch.from_numpy(array) for name, array in window.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
