"""Where PyTorch trains though ONNX Runtime is asked for, as every public example of Azure asks for it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from finetune import run
from finetune.core.world import World
from finetune.distributed import onnx_runtime
from finetune.distributed.settlement import settle
from finetune.params.finetune import QuestionAnsweringParams
from tests.conftest import finetune_words
from tests.params.test_rules import FOLDERS, OUTPUTS

WORDS = [word for name in (*FOLDERS, *OUTPUTS) for word in (f"--{name}", name)]


@dataclass(frozen=True)
class Machine(World):
    """A machine on which ONNX Runtime can train."""

    package: bool = True
    gpu: bool = False
    compiler: bool = True

    def has_onnx_runtime_training(self) -> bool:
        return self.package

    def has_gpu(self) -> bool:
        return self.gpu

    def has_compiler(self) -> bool:
        return self.compiler

    def has_deepspeed(self) -> bool:
        return True


# One for each row of UNPROVED, in order: the machine, and what is typed.
SAMPLES: tuple[tuple[World, dict[str, Any]], ...] = (
    (Machine(package=False), {}),
    (Machine(), {"apply_deepspeed": True}),
    (Machine(), {"apply_fsdp": True}),
    (Machine(2, 2), {}),
    (Machine(), {"precision": "bf16"}),
    (Machine(), {"torch_compile": True}),
    (Machine(), {"gradient_checkpointing": True}),
    (Machine(), {"auto_find_batch_size": True}),
    (Machine(), {"apply_lora": True, "finetune_in_4bit": True}),
    (Machine(), {"apply_pruning": True}),
    (Machine(), {"apply_qat": True}),
    (Machine(), {"quantization": "ptq"}),
    (Machine(), {"enable_full_determinism": True}),
    (Machine(), {"attn_implementation": "sdpa"}),
    (Machine(gpu=True), {}),
    (Machine(compiler=False), {}),
)


def params(**given: Any) -> QuestionAnsweringParams:
    return QuestionAnsweringParams(**{name: Path(name) for name in (*FOLDERS, *OUTPUTS)}, apply_ort=True, **given)


@pytest.mark.parametrize(("row", "sample"), list(zip(onnx_runtime.UNPROVED, SAMPLES, strict=True)))
def test_each_reason(row: Any, sample: tuple[World, dict[str, Any]]) -> None:
    machine, given = sample
    assert onnx_runtime.why_not(params(**given), machine) == row[1]


@pytest.mark.parametrize(
    "given", [{}, {"attn_implementation": "eager"}, {"apply_lora": True, "lora_type": "dora"}, {"optim": "adafactor"}]
)
def test_where_nothing_speaks_against_it(given: dict[str, Any]) -> None:
    assert onnx_runtime.why_not(params(**given), Machine()) == ""
    words = [word for name, value in given.items() for word in (f"--{name}", str(value).lower())]
    found = settle(QuestionAnsweringParams, [*WORDS, "--apply_ort", "true", *words], Machine())
    assert found.params.apply_ort and found.given == ()


def test_pytorch_trains_where_onnx_runtime_is_asked_for() -> None:
    found = settle(QuestionAnsweringParams, [*WORDS, "--apply_ort", "true"], Machine(package=False))
    assert (found.asked.apply_ort, found.params.apply_ort) == (True, False)
    assert [str(one) for one in found.given] == [
        "warning: apply_ort: False (onnxruntime-training is not installed: "
        'pip install ".[ort]" in an environment of its own; PyTorch trains the same model)'
    ]


@pytest.mark.slow
def test_a_run_says_it_once_and_trains_the_same_model(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(World, "has_onnx_runtime_training", lambda self: False)
    weights = []
    for asked in ("false", "true"):
        before = set(sys.modules)
        run.main(finetune_words(prepared, tmp_path / asked, apply_ort=asked, max_steps=2))
        assert not {name for name in set(sys.modules) - before if name.startswith("onnxruntime")}
        weights.append(load_file(tmp_path / asked / "pytorch" / "model.safetensors"))
        said = [line for line in capfd.readouterr().out.splitlines() if "apply_ort" in line]
        assert len(said) == (asked == "true") and all(line.startswith("warning: apply_ort: False (") for line in said)
    resolved = yaml.safe_load((tmp_path / "true" / "pytorch" / "resolved_config.yaml").read_text())["apply_ort"]
    assert (resolved["value"], resolved["used"]) == (True, False)
    assert resolved["origin"] == f"derived: {onnx_runtime.PACKAGE}; PyTorch trains the same model"
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
