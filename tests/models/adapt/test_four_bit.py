"""QLoRA's parts, run on a CPU: bitsandbytes trains there as long as it doesn't pack weights for inference."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from transformers import BertConfig, BitsAndBytesConfig

from finetune import run
from finetune.core.world import World
from finetune.data.batches import as_windows, batches_by_length
from finetune.data.folders import Preprocessed, Trained
from finetune.model_selector import rename_body
from finetune.models import estimate
from finetune.models.adapt.adaptations import adapt
from finetune.models.head import head_modules, head_parameters
from finetune.models.loading import load_model
from finetune.models.prediction import predict
from finetune.models.stored.configs import load_config, stored_state
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.params.finetune import QuestionAnsweringParams
from finetune.tasks import load_task
from tests.conftest import finetune_words
from tests.families import FAMILIES, build_family

TASK = load_task("question_answering")
FOLDERS = ("preprocess_output", "model_selector_output", "pytorch_model_folder", "mlflow_model_folder")
PARAMS = replace(QuestionAnsweringParams(**{name: Path() for name in FOLDERS}), apply_lora=True, finetune_in_4bit=True)
IDS = torch.arange(20, 44).reshape(2, 12)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    monkeypatch.setattr(World, "has_gpu", lambda self: True)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS))["start_logits"]


def nf4(model: Any) -> BitsAndBytesConfig:
    """As transformers itself loads a model in 4 bits."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=head_modules(model),
    )


LAYERS = {"bert": 2 * 6, "gpt2": 2 * 4, "mistral": 2 * 7, "t5": 2 * 5 + 2 * 9}  # T5 without `wo`


@pytest.mark.parametrize("family", FAMILIES)
def test_the_frozen_layers_are_in_4_bits_and_come_back(family: str, tmp_path: Path, as_on_a_gpu: None) -> None:
    build_family(family, tmp_path)
    rename_body(tmp_path, load_config(tmp_path), TASK)
    model, _ = load_model(tmp_path, TASK, None)
    before = {name: p.clone() for name, p in model.named_parameters()}
    exact = logits(model)
    head, as_they_do = head_parameters(model), nf4(model)
    adapted = adapt(model, PARAMS)
    quantised = adapted.model.to("cpu")
    packed = [m for m in quantised.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == LAYERS.get(family, len(packed)) > 0
    assert all(m.weight.dtype == torch.uint8 for m in packed)
    assert 2 * sum(m.weight.numel() for m in packed) == sum(m.imported[0].weight.numel() for m in packed)
    theirs = TASK.model.auto_model(load_config(tmp_path)).from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=as_they_do
    )
    theirs.load_state_dict({name: before[name] for name in head}, strict=False)
    assert torch.allclose(logits(quantised), logits(theirs), atol=1e-5)
    assert not torch.equal(logits(quantised), exact)
    outputs = quantised.train()(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    (outputs["start_logits"] + outputs["end_logits"]).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in quantised.parameters() if p.requires_grad)
    back = adapted.restore(quantised)
    assert {name: p.shape for name, p in back.named_parameters()} == {name: p.shape for name, p in before.items()}
    assert all(p.equal(before[name]) for name, p in back.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["true", pytest.param("false", marks=pytest.mark.thorough)])
def test_a_run(
    merge: str, prepared: Path, tmp_path: Path, as_on_a_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained in 4 bits, evaluated in between, resumed, merged into the imported weights, saved and proved."""
    words: dict[str, Any] = {"apply_lora": "true", "finetune_in_4bit": "true", "merge_lora_weights": merge}
    words |= {"num_train_epochs": 2, "learning_rate": 5e-3, "lora_alpha": 16, "logging_strategy": "steps"}
    run.main(finetune_words(prepared, tmp_path, **words, logging_steps=1))
    said = capsys.readouterr().out
    assert "4 bits: 16,384 frozen weights" in said and "equal to the trained model on 8 rows" in said
    check_metrics(prepared, tmp_path / "pytorch")
    plain = load_file(prepared / "model" / "model" / "model.safetensors")
    if merge == "true":
        saved = load_file(tmp_path / "pytorch" / "model.safetensors")
        changed = {name.removeprefix("bert.") for name, w in saved.items() if not w.equal(plain.get(name[5:], w[:0]))}
        targets = {f"encoder.layer.{i}.attention.self.{p}.weight" for i in (0, 1) for p in ("query", "value")}
        assert changed == targets | {"qa_outputs.weight", "qa_outputs.bias"}
    run.main(finetune_words(prepared, tmp_path, **words, logging_steps=1, resume_from_checkpoint="true"))
    assert "nothing is left to train" in capsys.readouterr().out


def check_metrics(prepared: Path, folder: Path) -> None:
    """The card has those of the model that was saved, not of the one in 4 bits."""
    trained = Trained.read(folder, TASK.name)
    state = stored_state(folder, TASK)
    assert trained is not None and state is not None
    windows = load_from_disk(Preprocessed.windows_folder(prepared / "data", "validation")).with_format("numpy")[:]
    tokenizer = load_tokenizer(folder, TASK)
    batches = batches_by_length(as_windows(windows), 16, TASK.data.padding(tokenizer), "cpu")
    model, _ = load_model(folder, TASK, state)
    _, loss = predict(model, batches, TASK, state, 1)
    assert trained.validation["loss"] == pytest.approx(loss, abs=1e-5)
    in_4bit = [
        entry["eval_loss"] for entry in trained.log if entry.get("step") == trained.best_step and "eval_loss" in entry
    ]
    assert in_4bit[0] != pytest.approx(loss, abs=1e-5)


def test_memory_is_that_of_4_bits() -> None:
    config = BertConfig(num_hidden_layers=2)
    plain, packed = (
        estimate.estimate(config, TASK, replace(PARAMS, finetune_in_4bit=four), [32], 8, 8) for four in (False, True)
    )
    linear = 2 * 768 * (4 * 768 + 2 * 3072)
    assert plain.state_bytes - packed.state_bytes == pytest.approx(linear * (4 - 0.52), rel=1e-6)
