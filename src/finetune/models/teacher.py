"""A finetuned model from whose probabilities another one learns (Hinton et al. 2015)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.generic import ModelOutput

from finetune.core.console import some
from finetune.core.errors import Fault, ModelError
from finetune.data.batches import Batch
from finetune.models.loading import load_model
from finetune.models.stored import intact, sums
from finetune.models.stored.configs import load_config
from finetune.models.stored.tokenizers import imported
from finetune.params.finetune import Distillation
from finetune.tasks.answering import forward
from finetune.tasks.task import Objective, State, Task


@dataclass(frozen=True)
class Teacher:
    """The model that teaches, which stays as it is, and how much of the loss is the distance from it."""

    model: PreTrainedModel
    inputs: frozenset[str]
    weight: float
    temperature: float

    def __str__(self) -> str:
        size = f"{self.model.config.model_type}, {self.model.num_parameters() / 1e6:.1f} million parameters"
        return (
            f"teacher: {size}; {self.weight:g} of the loss is the distance from it, at temperature {self.temperature:g}"
        )

    def blended(self, losses: torch.Tensor, outputs: ModelOutput, batch: Batch, objective: Objective) -> torch.Tensor:
        """Return (B,): of the losses (B,) and of the distances from the teacher, each its share."""
        with torch.no_grad():
            taught = forward(self.model, batch, self.inputs)
        distances = objective.distance(outputs, taught, batch, self.temperature)
        return (1 - self.weight) * losses + self.weight * distances


def weights_of(folder: Path) -> Path:
    """Return the folder of the teacher's weights: itself, or one within an MLflow model. Raises: ModelError."""
    return intact.mlflow_weights(folder) if (folder / "MLmodel").is_file() else folder


def load_teacher(
    params: Distillation, task: Task[State], state: State, tokenizer: PreTrainedTokenizerFast
) -> Teacher | None:
    """Return the teacher, in fp32 on the CPU; None where none is given.

    Raises: ModelError if its probabilities can't be compared with those of a model with this state and tokenizer.
    """
    if params.teacher_model_path is None:
        return None
    folder = weights_of(params.teacher_model_path)
    refuse_misfit(folder, task, state, tokenizer)
    sums.refuse_damaged(folder)
    model, new = load_model(folder, task, state)
    if new:
        what, fix = f"the teacher in {folder} was not trained for {task.name}", "give the pytorch_model_folder of a run"
        raise ModelError(Fault(what, why=f"it lacks {some(new)}", fix=fix))
    model.eval().requires_grad_(False)
    return Teacher(model, task.model.inputs, params.distillation_weight, params.distillation_temperature)


def refuse_misfit(folder: Path, task: Task[State], state: State, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ModelError for a teacher that is broken, or whose probabilities are about other tokens or classes."""
    intact.refuse_broken(folder)
    intact.raise_all(list(_misfits(folder, task, state, tokenizer)))


def _misfits(folder: Path, task: Task[State], state: State, tokenizer: PreTrainedTokenizerFast) -> Iterator[Fault]:
    """Yield a fault for whatever keeps the probabilities from being about the same tokens and classes."""
    own = imported(folder, task)
    if own.tokenizer.get_vocab() != tokenizer.get_vocab():
        why = "it reads, and writes, the tokens of another vocabulary"
        yield Fault(f"the teacher in {folder} has another tokenizer", why=why, fix="a teacher of the same family")
    if own.longest_window < state.max_seq_length:
        what = f"the teacher in {folder} reads {own.longest_window} tokens, windows have up to {state.max_seq_length}"
        yield Fault(what, fix=f"run preprocess with --max_seq_length {own.longest_window}")
    wanted = task.model.head_config(state).get("id2label")
    if wanted and (found := load_config(folder).id2label or {}) != wanted:
        why = f"it has {some([*found.values()])}; the data have {some([*wanted.values()])}"
        yield Fault(
            f"the teacher in {folder} has other classes", why=why, fix="a teacher that was trained on these data"
        )
