"""The classes for token classification with BART and mBART, which transformers lacks.

As in the BART paper (Lewis et al. 2020, 3.2) encoder and decoder are given the whole document, and the decoder's top
hidden state stands for each token. As in pretraining, and in upstream's question answering head, the decoder reads it
shifted by one.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForTokenClassification,
    BartConfig,
    BartModel,
    BartPreTrainedModel,
    MBartConfig,
    MBartModel,
    MBartPreTrainedModel,
)
from transformers.modeling_outputs import TokenClassifierOutput


def classify(
    self: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> TokenClassifierOutput:
    """Return the logits (B, L, C) of inputs (B, L). The loss is the task's."""
    hidden = self.model(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return TokenClassifierOutput(logits=self.classifier(self.dropout(hidden)))


def build(self: Any, body: nn.Module) -> None:
    """Make the body and a linear layer, as every head class of transformers begins."""
    self.model = body
    self.dropout = nn.Dropout(self.config.classifier_dropout)
    self.classifier = nn.Linear(self.config.d_model, self.config.num_labels)
    self.post_init()


class BartForTokenClassification(BartPreTrainedModel):
    """A BartModel and a linear layer."""

    config_class = BartConfig
    forward = classify

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config)
        build(self, BartModel(config))


class MBartForTokenClassification(MBartPreTrainedModel):
    """An MBartModel and a linear layer."""

    config_class = MBartConfig
    forward = classify

    def __init__(self, config: MBartConfig) -> None:
        super().__init__(config)
        build(self, MBartModel(config))


def register() -> None:
    """Register the classes with the Auto class, by which loading and the list of families know them."""
    for head in (BartForTokenClassification, MBartForTokenClassification):
        AutoModelForTokenClassification.register(head.config_class, head, exist_ok=True)
