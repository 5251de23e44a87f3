"""When a run trains with kernels for CPUs, and that what it leaves knows nothing of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering

from finetune import run
from finetune.models.adapt import adaptations, cpu_kernels
from finetune.models.kernels import attention, padding_free
from finetune.models.kernels.dropout import Dropout
from tests.conftest import finetune_words
from tests.models.test_blocks import PARAMS as PRUNED
from tests.models.test_blocks import logits

PARAMS = replace(PRUNED, apply_pruning=False)


def model() -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    torch.manual_seed(1)
    return BertForQuestionAnswering(BertConfig(vocab_size=60, max_position_embeddings=40, **sizes)).eval()


@pytest.mark.parametrize(
    "changed",
    [
        {"cpu_kernels": False},
        {"torch_compile": True},
        {"attn_implementation": "sdpa"},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_turned_off(changed: dict[str, Any]) -> None:
    assert cpu_kernels.wanted(PARAMS) is not torch.cuda.is_available()
    assert not cpu_kernels.wanted(replace(PARAMS, **changed))


def test_not_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not cpu_kernels.wanted(PARAMS)


@pytest.mark.parametrize("others", [{}, {"apply_lora": True, "lora_dropout": 0.2}, {"apply_pruning": True}], ids=str)
def test_undone_with_the_other_adaptations(others: dict[str, Any], tmp_path: Path) -> None:
    """The same answers as before, no module of ours, and a folder without a word of them."""
    plain, before = model(), logits(model())
    adapted = adaptations.adapt(plain, replace(PARAMS, **others))
    inside = list(adapted.model.modules())
    assert adapted.model.config._attn_implementation == attention.NAME
    assert sum(type(module) is Dropout for module in inside) >= 7 and not any(type(m) is nn.Dropout for m in inside)
    assert torch.allclose(logits(adapted.model), before, atol=1e-6)  # in evaluation
    adapted.model.save_pretrained(tmp_path / "checkpoint")
    restored = adapted.restore(adapted.model)
    inside = list(restored.modules())
    assert not any(type(module) is Dropout for module in inside) and any(type(m) is nn.Dropout for m in inside)
    assert not any(module.training for module in inside if type(module) is nn.Dropout)
    assert restored.config._attn_implementation == "sdpa"
    restored.save_pretrained(tmp_path / "model")
    for path in tmp_path.rglob("*.json"):
        assert attention.NAME not in path.read_text(encoding="utf-8"), path
    if not others:
        assert restored.state_dict().keys() == model().state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gradient_checkpointing": "true"},
        {"precision": "bf16"},
        {"padding_free": "always", "gradient_checkpointing": "true", "gradient_accumulation_steps": "2"},
    ],
    ids=["alone", "layers computed again", "bf16", "without padding"],
)
def test_a_run(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict[str, str]) -> None:
    """One line says so; no file of the models or checkpoints names them, but the record of what ran."""
    name = padding_free.NAME if given.get("padding_free") else attention.NAME
    run.main(finetune_words(prepared, tmp_path, max_steps=2, per_device_train_batch_size=4, **given))
    said = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert len(said) == 1 and said[0].startswith(f"attn_implementation: {name} (")
    configs = [*tmp_path.rglob("config.json"), *tmp_path.rglob("trainer_state.json")]
    assert len(configs) >= 4 and not any(name in path.read_text(encoding="utf-8") for path in configs)
