"""Answer a batch, for tasks whose model reads its answer off one forward pass."""

from typing import TYPE_CHECKING

from finetune.data.batches import Batch
from finetune.tasks.task import Answer, Objective, Reduce, Reduced, S

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.utils.generic import ModelOutput


def forward(model: "nn.Module", batch: Batch, inputs: frozenset[str]) -> "ModelOutput":
    """Return the model's outputs, without a loss: ours is computed from them."""
    outputs: ModelOutput = model(**{name: tensor for name, tensor in batch.items() if name in inputs})
    return outputs


def with_loss(reduced: Reduced, outputs: "ModelOutput", batch: Batch, objective: Objective) -> Reduced:
    """Return the reduced results, beside them the loss (B,) and the items (B,) where the batch has labels."""
    if not objective.labels <= batch.keys():
        return reduced
    return {**reduced, "loss": objective.loss(outputs, batch), "items": objective.items(batch)}


def by_forward(inputs: frozenset[str], objective: Objective, reduce: Reduce[S]) -> Answer[S]:
    """Return the hook of a task whose `reduce(outputs, batch, state)` makes small tensors of the outputs."""

    def answer(model: "PreTrainedModel", batch: Batch, state: S) -> Reduced:
        outputs = forward(model, batch, inputs)
        return with_loss(reduce(outputs, batch, state), outputs, batch, objective)

    return answer
