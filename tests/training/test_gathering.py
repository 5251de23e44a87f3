"""A model that is gathered from shards answers on the CPU, in 32 bits."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.training import gathering
from tests.models.test_blocks import build
from tests.params.test_rules import finetune_params


def test_a_gathered_model_has_no_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was sharded with it, and has no kernel for it where it is put together."""
    sharded, whole = build("bert"), build("bert")
    for parameter in whole.parameters():
        parameter.data.zero_()
    asked = []
    monkeypatch.setattr(whole, "set_attn_implementation", asked.append)
    accelerator = SimpleNamespace(get_state_dict=lambda model: model.state_dict())
    trainer: Any = SimpleNamespace(model=sharded, accelerator=accelerator, sample_loss=lambda model: 1.0)
    params = finetune_params(apply_fsdp=True, precision="bf16", attn_implementation="flash_attention_2")
    found = gathering.gathered_model(trainer, params, lambda: whole)
    assert found is whole and asked == ["sdpa"]
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), sharded.parameters(), strict=True))
