"""Token classification for BART and mBART, for which transformers has no class.

As in the BART paper (Lewis et al. 2020, 3.2) the document is given to encoder and decoder, and the decoder's top hidden
state stands for each token; as upstream's question answering head the decoder reads it shifted by one.
"""

from transformers import (
    AutoModelForTokenClassification,
    BartConfig,
    BartPreTrainedModel,
    MBartConfig,
    MBartPreTrainedModel,
)
from transformers.modeling_layers import GenericForTokenClassification


class BartForTokenClassification(GenericForTokenClassification, BartPreTrainedModel):  # type: ignore[misc]
    config_class = BartConfig


class MBartForTokenClassification(GenericForTokenClassification, MBartPreTrainedModel):  # type: ignore[misc]
    config_class = MBartConfig


def register() -> None:
    """Let the Auto class, and with it loading and the list of families, know them."""
    for head in (BartForTokenClassification, MBartForTokenClassification):
        AutoModelForTokenClassification.register(head.config_class, head, exist_ok=True)
