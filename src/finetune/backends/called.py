"""A model of another runtime, called as the PyTorch model is: its answers come by the same path and decoder."""

from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from finetune.core.errors import Fault, ModelError, UnsupportedError
from finetune.models.openvino import IR, Opened, open_openvino
from finetune.models.stored.configs import stored_task
from finetune.models.writer import open_writer
from finetune.tasks.task import State, Task


class Called(torch.nn.Module):
    """A module without weights, whose forward pass another runtime computes, on the CPU."""

    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self.opened = opened
        self.device = torch.device("cpu")

    def forward(self, **given: torch.Tensor) -> ModelOutput:
        """Return the logits by the names that PyTorch has for them; inputs that the graph lacks are left out."""
        arrays = {name: given[name].numpy() for name in self.opened.inputs}
        return ModelOutput({name: torch.from_numpy(array) for name, array in self.opened.compute(arrays).items()})


def as_model(opened: Opened) -> PreTrainedModel:
    """Return what `predict_parts` takes: it calls the model, and asks for its device."""
    return cast(PreTrainedModel, Called(opened))


def load_openvino(folder: Path, task: Task[State], precision: str) -> PreTrainedModel:
    """Return the OpenVINO model of a folder that `finetune export` wrote for the task. Raises: ModelError."""
    if (made_for := stored_task(folder)) != task.name:
        fix = f"--task {made_for}" if made_for else "give the openvino_model_folder that finetune export wrote"
        raise ModelError(Fault(f"{folder} was made for {made_for or 'no task'}, not for {task.name}", fix=fix))
    threads = torch.get_num_threads()
    if task.writes:
        if precision != "32":
            why = "that a model that writes computes the same in bf16 was not tried"
            raise UnsupportedError(Fault(f"--precision {precision} in OpenVINO", why=why, fix="--precision 32"))
        return open_writer(folder, threads)
    return as_model(open_openvino(folder / IR, threads, precision))
