"""Runs that ONNX Runtime trains, beside the same in PyTorch; what make test-ort runs, in .venv-ort."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from finetune import run
from finetune.core.errors import StoppedError
from finetune.core.world import World
from finetune.distributed import preemption
from finetune.models.ort import engine
from finetune.training import trainer
from tests.conftest import finetune_words, prepare
from tests.families import build_family
from tests.writers import build_writer

pytestmark = [
    pytest.mark.ort,
    pytest.mark.slow,
    pytest.mark.skipif(
        not World().has_onnx_runtime_training(),
        reason='pip install ".[ort]", in an environment of its own: make test-ort',
    ),
]
QA, TC, TR, GQ = "question_answering", "token_classification", "translation", "generative_question_answering"
STEPS = 20
WINDOWS = {
    QA: {"max_seq_length": 128, "doc_stride": 32},
    TC: {},
    TR: {"source_lang": "en", "target_lang": "tav", "max_seq_length": 60, "max_target_length": 40},
    GQ: {"max_seq_length": 128, "doc_stride": 16, "max_answer_length": 40},
}
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop")


def without_dropout(folder: Path) -> Path:
    """Each engine draws from a generator of its own, so that losses are alike without alone."""
    config = json.loads((folder / "config.json").read_text())
    config |= {name: 0.0 for name in RATES if name in config} | {"classifier_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    return {}


@pytest.fixture
def prepared_for(folders: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task and a family -> the folders of model import and preprocess."""

    def prepared(task: str, family: str, dropout: bool = False) -> Path:
        if (task, family, dropout) not in folders:
            folder = tmp_path_factory.mktemp(f"{task}-{family}")
            (folder / "tiny").mkdir()
            model = (build_writer if family == "t5" else build_family)(family, folder / "tiny")  # a T5 without dropout
            model = model if dropout else without_dropout(model)
            folders[task, family, dropout] = prepare(folder, model, task, (48, 8, 8), **WINDOWS[task])
        return folders[task, family, dropout]

    return prepared


def trained(prepared: Path, output: Path, **given: Any) -> tuple[list[float], Any]:
    """The loss of each step, and resolved_config.yaml."""
    steps = {"max_steps": STEPS, "eval_steps": STEPS, "evaluation_strategy": "steps"}
    steps |= {"logging_strategy": "steps", "logging_steps": 1}
    every = {**steps, "per_device_train_batch_size": 4, "learning_rate": 1e-3, **given}
    run.main(finetune_words(prepared, output, **every))
    log = json.loads((output / "pytorch" / "training.json").read_text())["log"]
    resolved = yaml.safe_load((output / "pytorch" / "resolved_config.yaml").read_text())
    return [entry["loss"] for entry in log if "loss" in entry], resolved


def both(prepared: Path, output: Path, **given: Any) -> tuple[list[float], list[float]]:
    """The losses by ONNX Runtime, and by PyTorch."""
    losses, resolved = trained(prepared, output / "ort", apply_ort="true", **given)
    assert "used" not in resolved["apply_ort"], resolved["apply_ort"]
    return losses, trained(prepared, output / "pytorch", **given)[0]


@pytest.mark.parametrize(
    ("task", "family", "given"),
    [
        (QA, "bert", {}),
        (TC, "bert", {"class_weights": "balanced"}),
        (TR, "t5", {"label_smoothing_factor": 0.1}),
        (GQ, "t5", {}),
        (GQ, "gpt2", {}),
        (QA, "bert", {"gradient_accumulation_steps": 2, "optim": "adafactor"}),
        (QA, "bert", {"apply_lora": "true"}),
        (TR, "t5", {"apply_lora": "true", "lora_type": "rslora", "merge_lora_weights": "false"}),
    ],
    ids=str,
)
def test_the_losses_of_each_step_are_pytorchs(
    prepared_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, family: str, given: dict[str, Any]
) -> None:
    passes: list[str] = []

    def forward(*called: Any) -> Any:
        outputs = engine.forward(*called)
        first = next(iter(outputs.values()))
        passes.append(type(first.grad_fn).__name__)
        return outputs

    monkeypatch.setattr(trainer, "forward", forward)
    found, wanted = both(prepared_for(task, family), tmp_path, **given)
    assert len(found) == len(wanted) == STEPS
    assert max(abs(one - other) for one, other in zip(found, wanted, strict=True)) < 1e-4
    half = len(passes) // 2
    assert half >= STEPS and set(passes[:half]) == {"_ORTModuleFunctionBackward"}
    assert "_ORTModuleFunctionBackward" not in passes[half:]


def test_a_teacher_beside_it(prepared_for: Any, tmp_path: Path) -> None:
    prepared = prepared_for(QA, "bert")
    trained(prepared, tmp_path / "teacher", learning_rate=5e-3)
    found, wanted = both(prepared, tmp_path, teacher_model_path=tmp_path / "teacher" / "pytorch")
    assert max(abs(one - other) for one, other in zip(found, wanted, strict=True)) < 1e-4


@pytest.mark.parametrize(
    ("family", "given", "why"),
    [
        ("deberta", {}, "ONNX Runtime can't make or run a graph of a deberta ("),
        ("modernbert", {}, "ONNX Runtime can't make or run a graph of a modernbert ("),
        ("bert", {"apply_lora": "true", "lora_type": "dora"}, "ONNX Runtime can't make or run a graph of a bert ("),
    ],
)
def test_pytorch_trains_what_it_can_not(
    prepared_for: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], family: str, given: dict[str, Any], why: str
) -> None:
    prepared = prepared_for(QA, family)
    losses, resolved = trained(prepared, tmp_path / "asked", apply_ort="true", **given)
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: apply_ort")]
    assert len(said) == 1 and said[0].startswith(f"warning: apply_ort: False ({why}")
    assert resolved["apply_ort"]["used"] is False and why in resolved["apply_ort"]["origin"]
    assert losses == trained(prepared, tmp_path / "plain", **given)[0]


def test_the_same_command_gives_the_same_weights_stopped_or_not(
    prepared_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under dropout, which ONNX Runtime draws itself."""
    prepared = prepared_for(QA, "bert", dropout=True)
    given = {"apply_ort": "true", "eval_steps": 5, "save_total_limit": 1, "apply_lora": "false"}
    losses, resolved = trained(prepared, tmp_path / "whole", **given)
    assert "used" not in resolved["apply_ort"]
    asked: list[int] = []

    def received() -> bool:
        asked.append(0)
        return len(asked) > 12

    with monkeypatch.context() as patched:
        patched.setattr(preemption, "received", received)
        with pytest.raises(StoppedError):
            trained(prepared, tmp_path / "stopped", **given)
    resumed, _ = trained(prepared, tmp_path / "stopped", **given)
    assert resumed == losses
    whole, other = (load_file(tmp_path / name / "pytorch" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(tensor.equal(other[name]) for name, tensor in whole.items())


class Dropped(nn.Module):
    """A weight, half of it dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(64, 64) + 1)

    def forward(self, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"dropped": nn.functional.dropout(self.weight * scale, 0.5, self.training)}


def test_dropout_drops_the_gradients_of_what_it_drops() -> None:
    model: Any = Dropped()
    graph = engine.graph_of(model, {"scale": torch.ones(1, 1)}, frozenset({"scale"}))
    kept = []
    for seed in (1, 2, 1):
        model.weight.grad = None
        engine.seed(seed)
        dropped = graph(scale=torch.ones(1, 1))["dropped"]
        dropped.sum().backward()
        assert torch.allclose(model.weight.grad, dropped.detach() / model.weight.detach())
        assert set(model.weight.grad.unique().tolist()) == {0.0, 2.0}
        assert 0.45 < float((dropped > 0).float().mean()) < 0.55
        kept.append(dropped.detach() > 0)
    assert kept[0].equal(kept[2]) and not kept[0].equal(kept[1])
