"""The memory that a backend takes: the peak of a process of its own, which loads the model and answers one window.

python -m finetune.backends.memory KIND PATH TASK THREADS TOKENS COLUMN ...
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune.backends import runtimes
from finetune.data.batches import Arrays
from finetune.models.openvino import open_openvino

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from finetune.data.batches import Batch
    from finetune.tasks.task import State, Task

KINDS = ("PyTorch FP32", "PyTorch bf16", "OpenVINO", "ONNX Runtime")
STATUS = Path("/proc/self/status")


def peak_mb(kind: str, path: Path, task: str, threads: int, tokens: int, columns: Sequence[str]) -> float | None:
    """Return the peak in MB of a process that has nothing but this model; None where the system doesn't say.

    `path` is the folder of a PyTorch model, or the file of another one.
    """
    if not STATUS.is_file():
        return None
    words = [kind, str(path.absolute()), task, str(threads), str(tokens), *columns]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "finetune.backends.memory", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind} ended with {done.returncode} in a process of its own: {done.stderr}")
    return float(done.stdout.split()[-1])


def main(argv: Sequence[str]) -> None:
    kind, path, task, threads, tokens, *columns = argv
    window = window_of(columns, int(tokens))
    if "row" in window:  # a model that reads is given what goes into its forward pass alone
        _write(kind, Path(path), task, int(threads), window)
    elif kind == "OpenVINO":
        open_openvino(Path(path), int(threads)).compute(window)
    elif kind == "ONNX Runtime":
        runtimes.open_onnx(Path(path), int(threads)).compute(window)
    else:
        _compute_in_torch(Path(path), task, kind, window)
    peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 / 1e6)


def window_of(columns: Sequence[str], tokens: int) -> Arrays:
    """Return one window of so many tokens, with these columns."""
    of_text: Arrays = {"row": np.zeros(1, dtype=np.int64), "prompt_tokens": np.full(1, tokens)}
    window = {name: of_text.get(name, np.ones((1, tokens), dtype=np.int64)) for name in columns}
    return window | ({"token_type_ids": window["token_type_ids"] * 0} if "token_type_ids" in window else {})


def _compute_in_torch(folder: Path, task_name: str, kind: str, window: Arrays) -> None:
    import torch

    from finetune.tasks import load_task

    with torch.inference_mode():
        _in_torch(folder, load_task(task_name), kind)(**_tensors(window))


def _write(kind: str, path: Path, task_name: str, threads: int, window: Arrays) -> None:
    import torch

    from finetune.models.stored.configs import load_config, stored_state
    from finetune.models.writer import open_writer, writer_of
    from finetune.tasks import load_task

    task = load_task(task_name)
    folder = path if path.is_dir() else path.parent
    state = stored_state(folder, task)
    assert state is not None
    if kind == "OpenVINO":
        model: PreTrainedModel = open_writer(folder, threads)
    elif kind == "ONNX Runtime":
        # The decoder's graph lies beside the encoder's, by which it is known.
        files = dict.fromkeys((path, path.with_name(path.name.replace("encoder", "decoder"))))
        model = writer_of(load_config(folder), [runtimes.open_onnx(file, threads) for file in files])
    else:
        model = _in_torch(folder, task, kind)
    with torch.inference_mode():
        task.answer(model, _tensors(window), state)


def _in_torch(folder: Path, task: "Task[State]", kind: str) -> "PreTrainedModel":
    from finetune.models.loading import load_model
    from finetune.models.prediction import compute_in

    model, _ = load_model(folder, task, None)
    return compute_in(model.eval(), "bf16" if kind == "PyTorch bf16" else "32")


def _tensors(window: Arrays) -> "Batch":
    import torch

    return {name: torch.from_numpy(array) for name, array in window.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
