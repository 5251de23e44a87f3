"""What the preflight finds, of graphs that are PyTorch's own model and wrong in one thing, without ONNX Runtime."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_from_disk
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, BartConfig, PreTrainedConfig

from finetune import run
from finetune.data.batches import Batch
from finetune.data.folders import Preprocessed, SelectedModel
from finetune.models.ort import engine, preflight
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.params.finetune import QuestionAnsweringParams
from finetune.tasks import load_task
from tests.conftest import finetune_words

TASK = load_task("question_answering")
LENGTH = "the length of its first batch"


class Graph(nn.Module):
    """Called as ORTModule is. `module.model` is the model whose weights it has."""

    def __init__(self, model: Any, wrong: str, example: Batch) -> None:
        super().__init__()
        self.module = engine.Tensors(model)
        self.wrong, self.length = wrong, example["input_ids"].shape[1]
        self.called = 0

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        self.called += 1
        outputs = self.module(**inputs)
        if self.wrong == "loss":
            outputs["start_logits"] = outputs["start_logits"] + torch.arange(inputs["input_ids"].shape[1]) / 100
        if self.wrong == "gradient":  # the value is right
            logits = outputs["end_logits"]
            outputs["end_logits"] = logits + 1e-3 * (logits - logits.detach())
        if self.wrong == LENGTH and inputs["input_ids"].shape[1] != self.length:
            outputs["start_logits"] = outputs["start_logits"].roll(1, dims=1)
        if self.wrong == "error":
            raise RuntimeError("GradientBuilderBase")
        return outputs


def faked(wrong: str, made: list[Graph]) -> Callable[..., Graph]:
    def graph_of(model: Any, example: Batch, inputs: frozenset[str]) -> Graph:
        made.append(Graph(model.train(), wrong, example))
        return made[-1]

    return graph_of


def found(prepared: Path, config: PreTrainedConfig, **given: Any) -> str:
    folders = {name: Path() for name in ("preprocess_output", "model_selector_output")}
    outputs = {name: Path() for name in ("pytorch_model_folder", "mlflow_model_folder")}
    data = prepared / "data"
    state = Preprocessed.read(data, TASK.name).state_as(TASK.state)
    windows = load_from_disk(Preprocessed.windows_folder(data, "train")).with_format("numpy")
    padding = TASK.data.padding(load_tokenizer(Preprocessed.tokenizer_folder(data), TASK))
    params = replace(QuestionAnsweringParams(**folders, **outputs), **given)
    return preflight.why_not(params, config, TASK, state, windows, padding)


@pytest.fixture
def config(prepared: Path) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(SelectedModel.model_folder(prepared / "model"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", ""),
        ("loss", "ONNX Runtime's loss is "),
        ("gradient", "ONNX Runtime's gradient of "),
        (LENGTH, "ONNX Runtime's "),
        ("error", "ONNX Runtime can't make or run a graph of a bert (RuntimeError)"),
    ],
)
@pytest.mark.parametrize("given", [{}, {"apply_lora": True, "lora_dropout": 0.5}], ids=["whole", "lora"])
def test_a_graph_that_is_wrong(
    prepared: Path, config: PreTrainedConfig, monkeypatch: pytest.MonkeyPatch, wrong: str, said: str, given: Any
) -> None:
    """The model has dropout, without which the two are compared; adapters have a rate of their own."""
    monkeypatch.setattr(engine, "graph_of", faked(wrong, []))
    result = found(prepared, config, **given)
    assert result.startswith(said) and bool(result) is bool(said), result


def test_layers_that_are_left_out_by_chance(prepared: Path) -> None:
    said = found(prepared, BartConfig(decoder_layerdrop=0.1))
    assert said.startswith("decoder_layerdrop 0.1 leaves out layers by chance")


def test_a_model_that_was_pruned(prepared: Path, config: PreTrainedConfig) -> None:
    config.update({"pruned_layers": [{"heads": [0], "columns": 8}] * 2})
    assert found(prepared, config) == "ONNX Runtime is not tried with a model that was pruned"


def test_the_model_that_is_tried_has_few_layers() -> None:
    deep = BartConfig(encoder_layers=12, decoder_layers=6)
    thin = preflight.few_layers(deep)
    assert (thin.encoder_layers, thin.decoder_layers, deep.encoder_layers) == (2, 2, 12)


def trained(prepared: Path, output: Path, **given: Any) -> tuple[dict[str, torch.Tensor], Any]:
    run.main(finetune_words(prepared, output, max_steps=4, per_device_train_batch_size=4, **given))
    resolved = yaml.safe_load((output / "pytorch" / "resolved_config.yaml").read_text())
    return load_file(output / "pytorch" / "model.safetensors"), resolved


@pytest.mark.slow
def test_a_run_goes_on_in_pytorch_where_it_fails(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.distributed.onnx_runtime.UNPROVED", ())
    monkeypatch.setattr(engine, "graph_of", faked("loss", []))
    weights, resolved = trained(prepared, tmp_path / "asked", apply_ort="true")
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1 and said[0].startswith("warning: apply_ort: False (ONNX Runtime's loss is ")
    assert (resolved["apply_ort"]["value"], resolved["apply_ort"]["used"]) == (True, False)
    plain, of_plain = trained(prepared, tmp_path / "plain")
    assert resolved["attn_implementation"]["used"] == of_plain["attn_implementation"]["used"] != "eager"
    assert all(tensor.equal(weights[name]) for name, tensor in plain.items())


@pytest.mark.slow
def test_a_graph_of_the_whole_model_that_fails(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It may be too large for what a smaller one of its kind could do."""
    made: list[Graph] = []
    graph_of = faked("", made)

    def small_ones(*arguments: Any) -> Graph:
        if len(made) == 2:  # those of the preflight
            raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB")
        return graph_of(*arguments)

    monkeypatch.setattr("finetune.distributed.onnx_runtime.UNPROVED", ())
    monkeypatch.setattr(engine, "graph_of", small_ones)
    _, resolved = trained(prepared, tmp_path, apply_ort="true")
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1 and "no graph of the whole model can be made: Message onnx" in said[0]
    assert (resolved["apply_ort"]["value"], resolved["apply_ort"]["used"]) == (True, False)


@pytest.mark.slow
def test_the_same_command_goes_on_where_it_was_interrupted(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a checkpoint says of its run is what ran, after the preflight."""
    monkeypatch.setattr("finetune.distributed.onnx_runtime.UNPROVED", ())
    monkeypatch.setattr(engine, "graph_of", faked("loss", []))
    by_steps = {"evaluation_strategy": "steps", "eval_steps": 2, "apply_ort": "true"}
    trained(prepared, tmp_path, **by_steps)
    (tmp_path / "pytorch" / "training.json").unlink()
    capfd.readouterr()
    trained(prepared, tmp_path, **by_steps)
    assert "this run was interrupted after checkpoint-4" in capfd.readouterr().out


@pytest.mark.slow
def test_steps_are_the_graphs_and_evaluation_is_pytorchs(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Graph] = []
    seeds: list[int] = []
    monkeypatch.setattr("finetune.distributed.onnx_runtime.UNPROVED", ())
    monkeypatch.setattr(engine, "graph_of", faked("", made))
    monkeypatch.setattr(engine, "seed", seeds.append)
    _, resolved = trained(prepared, tmp_path, apply_ort="true", gradient_accumulation_steps=2)
    with_dropout, without, of_the_run = made
    assert (with_dropout.called, without.called, of_the_run.called) == (1, 3, 4 * 2)
    assert seeds == [42, 43, 44, 45]
    assert resolved["attn_implementation"]["used"] == "eager"
    assert "used" not in resolved["apply_ort"]
