"""Memory and operations, counted without data, against what a real step takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForQuestionAnswering

from finetune.models import estimate
from finetune.params.finetune import QuestionAnsweringParams
from finetune.tasks import load_task
from finetune.tasks.question_answering import TASK
from tests.conftest import peak_bytes
from tests.families import FAMILIES, OTHERS

CONFIG = BertConfig(vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
STEP = """
import torch
import transformers
from transformers import BertConfig, BertForQuestionAnswering
torch.set_num_threads(1)
model = BertForQuestionAnswering(BertConfig(**{config})).train()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
if {again}:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={{"use_reentrant": False}})
if {batch}:
    ids = torch.ones({batch}, {length}, dtype=torch.long)
    outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    (outputs.start_logits.sum() + outputs.end_logits.sum()).backward()
    optimizer.step()
"""


def params(**values: Any) -> QuestionAnsweringParams:
    folders = ("preprocess_output", "model_selector_output", "pytorch_model_folder", "mlflow_model_folder")
    return QuestionAnsweringParams(**{name: Path(name) for name in folders}, **values)


def test_operations_are_those_of_a_real_forward_pass() -> None:
    model = BertForQuestionAnswering(CONFIG)
    ids = torch.ones(3, 40, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    found = estimate.cost(CONFIG, TASK, params(), 3, 40)
    assert found.flops == counter.get_total_flops() > 0
    assert found.parameters == found.trained == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("layers", "again"), [(2, False), (6, True)])
def test_memory_is_near_that_of_a_real_step(layers: int, again: bool) -> None:
    """A process of its own, whose peak is told by the system; at a size where activations are nearly all of it."""
    sizes = {"hidden_size": 256, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 1024}
    start, step = (
        peak_bytes(STEP.format(config={"vocab_size": 500, **sizes}, batch=batch, length=256, again=again))
        for batch in (0, 48)
    )
    config = BertConfig(vocab_size=500, **sizes)
    given = params(per_device_train_batch_size=48, gradient_checkpointing=again)
    need = estimate.estimate(config, TASK, given, [256], train_windows=1, evaluated_windows=0)
    print(f"{(need.state_bytes + need.activation_bytes) / 1e6:.0f} MB said, {(step - start) / 1e6:.0f} MB taken")
    assert need.state_bytes + need.activation_bytes == pytest.approx(step - start, rel=0.3)


def test_memory_grows_with_the_batch_and_shrinks_with_lora() -> None:
    one, four = (estimate.cost(CONFIG, TASK, params(), size, 64) for size in (1, 4))
    assert four.kept_bytes > 3.5 * one.kept_bytes
    lora = estimate.cost(CONFIG, TASK, params(apply_lora=True), 4, 64)
    assert lora.trained < 0.1 * four.trained
    adam, adafactor, thin = (
        estimate.estimate(CONFIG, TASK, params(**values), [64], 1, 0).state_bytes
        for values in ({}, {"optim": "adafactor"}, {"apply_lora": True})
    )
    assert adam == 16 * four.parameters
    assert adafactor == 8 * four.parameters
    assert thin < adam / 3


def test_time_is_operations_over_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "flops_per_second", lambda *_: 1e9)
    need = estimate.estimate(CONFIG, TASK, params(per_device_train_batch_size=2), [40, 60], 100, 30)
    forward = estimate.cost(CONFIG, TASK, params(), 2, 50).flops / 2
    assert need.seconds == pytest.approx(forward * (3 * 100 + 30) / 1e9)


def test_the_rate_is_measured() -> None:
    assert 1e8 < estimate.flops_per_second(128, 2, 32, "32") < 1e15


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
@pytest.mark.parametrize("task_name", ["question_answering", "token_classification"])
@pytest.mark.parametrize("given", [{}, {"apply_lora": True}, {"apply_lora": True, "gradient_checkpointing": True}])
def test_every_family_can_be_counted(family: str, task_name: str, given: dict[str, Any]) -> None:
    config_class, _, _, values = {**FAMILIES, **OTHERS}[family]
    config = getattr(transformers, config_class)(vocab_size=100, pad_token_id=1, eos_token_id=2, **values)
    task = load_task(task_name)
    if given.get("gradient_checkpointing") and not task.model.families[type(config)].supports_gradient_checkpointing:
        pytest.skip("transformers can't compute its layers again")
    counted = estimate.cost(config, task, params(**given), 2, 16)
    assert 0 < counted.trained <= counted.parameters and counted.flops > 0 and counted.kept_bytes > 0
    assert bool(given) == (counted.trained < counted.parameters)
