"""The heads that transformers lacks."""

import torch
from transformers import AutoModelForTokenClassification, BartConfig

from tests.families import SEQ2SEQ


def test_bart_does_not_see_padding() -> None:
    model = AutoModelForTokenClassification.from_config(BartConfig(vocab_size=50, num_labels=3, **SEQ2SEQ)).eval()
    ids, padded = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    plain, masked = model(ids, torch.ones_like(ids)).logits, model(padded, mask).logits[:, :3]
    assert torch.allclose(plain, masked, atol=1e-5)
    assert not torch.allclose(plain, model(padded, torch.ones_like(padded)).logits[:, :3], atol=1e-5)
