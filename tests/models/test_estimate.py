"""Memory and operations, counted without data, against what a real step takes."""

import time
from dataclasses import replace
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
from tests.conftest import peaks
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
print(peak())
ids = torch.ones({batch}, {length}, dtype=torch.long)
outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
(outputs.start_logits.sum() + outputs.end_logits.sum()).backward()
optimizer.step()
print(peak())
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
@pytest.mark.thorough
def test_memory_is_near_that_of_a_real_step(layers: int, again: bool) -> None:
    """A process of its own, whose peak is told by the system; at a size where activations are nearly all of it."""
    sizes = {"hidden_size": 256, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 1024}
    start, step = peaks(STEP.format(config={"vocab_size": 500, **sizes}, batch=48, length=256, again=again))
    config = BertConfig(vocab_size=500, **sizes)
    given = params(per_device_train_batch_size=48, gradient_checkpointing=again, cpu_kernels=False)
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
@pytest.mark.parametrize(
    "given",
    [
        {},
        pytest.param({"apply_lora": True}, marks=pytest.mark.thorough),
        {"apply_lora": True, "gradient_checkpointing": True},
    ],
)
def test_every_family_can_be_counted(family: str, task_name: str, given: dict[str, Any]) -> None:
    config_class, _, _, values = {**FAMILIES, **OTHERS}[family]
    config = getattr(transformers, config_class)(vocab_size=100, pad_token_id=1, eos_token_id=2, **values)
    task = load_task(task_name)
    if given.get("gradient_checkpointing") and not task.model.families[type(config)].supports_gradient_checkpointing:
        pytest.skip("transformers can't compute its layers again")
    counted = estimate.cost(config, task, params(**given), 2, 16)
    assert 0 < counted.trained <= counted.parameters and counted.flops > 0 and counted.kept_bytes > 0
    assert bool(given) == (counted.trained < counted.parameters)


def test_what_is_written_is_near_what_it_takes(tmp_path: Path) -> None:
    """Time, of an evaluation as it runs; more texts and beams take more of it."""
    from finetune.models.loading import load_model
    from finetune.models.prediction import predict_rows
    from finetune.models.stored.tokenizers import imported
    from finetune.tasks.translation import TASK as TRANSLATION
    from tests.tasks.generation.test_families import rows, state_of
    from tests.writers import build_writer

    sizes = {"d_model": 128, "d_ff": 512, "num_layers": 4, "num_decoder_layers": 4}
    folder = build_writer("t5", tmp_path / "t5", **sizes)
    state = state_of("t5", folder, max_target_length=30)
    model, _ = load_model(folder, TRANSLATION, state)
    tokenizer = imported(folder, TRANSLATION).tokenizer
    started = time.perf_counter()
    written = predict_rows(model.eval(), tokenizer, rows(16), TRANSLATION, state, batch_size=4)
    took = time.perf_counter() - started
    gold = [prediction["tokens"] for prediction in written]

    def said(state: Any, texts: int = 16) -> estimate.Written:
        given = params(per_device_eval_batch_size=4)
        return estimate.written(model.config, TRANSLATION, state, given, [30] * 16, gold, texts)

    found = said(state)
    print(f"{found.seconds:.2f} s said, {took:.2f} s taken")
    assert took / 10 < found.seconds < 10 * took and found.seconds <= found.seconds_at_most
    assert said(state, texts=160).seconds > 2 * found.seconds  # ten times as many
    searched = said(replace(state, num_beams=4))
    assert searched.cache_bytes > found.cache_bytes


def test_flash_attention_is_counted_as_sdpa() -> None:
    """Its kernel looks at what is in the tensors, and there is nothing in these."""
    found = estimate.cost(CONFIG, TASK, params(attn_implementation="flash_attention_2", precision="bf16"), 3, 40)
    assert found == estimate.cost(CONFIG, TASK, params(attn_implementation="sdpa"), 3, 40)
