"""One settlement of a command line: what it comes to, and the same words to whoever asks."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import check, pipeline, run
from finetune.core.errors import FinetuneError, ParameterError, UnsupportedError
from finetune.core.process import run_main
from finetune.core.world import World
from finetune.distributed.settlement import check_model, settle
from finetune.params.finetune import QuestionAnsweringParams
from finetune.params.provenance import Derived
from tests.conftest import ROOT, SAMPLES, build_wordpiece, finetune_words, prepare
from tests.families import build_family
from tests.params.test_rules import BERT, FOLDERS, OUTPUTS, Machine

WORDS = [word for name in (*FOLDERS, *OUTPUTS) for word in (f"--{name}", name)]


def settled(**given: Any) -> Any:
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return settle(QuestionAnsweringParams, [*WORDS, *words], Machine(2, 1, gpu=False))


def test_what_a_preset_and_a_config_make_of_the_words(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    config = tmp_path / "zero.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 3}, "train_batch_size": 7}))
    found = settled(preset="albert-large", apply_deepspeed="true", deepspeed=config, lora_r=4, num_train_epochs=5)
    assert (found.asked.learning_rate, found.params.learning_rate) == (2e-5, 6e-5)  # two processes
    assert found.given[0] == Derived("learning_rate", 6e-5, "preset albert-large")
    assert Derived("deepspeed train_batch_size", 64, "what these give wins over the config's 7") in found.given
    assert found.deepspeed["zero_optimization"] == {"stage": 3} and found.params.num_train_epochs == 5
    assert found.notes == ("lora_r 4 has no effect with apply_lora false",)
    assert settled().deepspeed is None and settled().given == settled().notes == ()


def test_all_faults_of_all_kinds_at_once(tmp_path: Path) -> None:
    """Of the config and of the rules, those that contradict and those that are not supported."""
    pytest.importorskip("deepspeed")
    config = tmp_path / "zero.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_cliping": 1}))
    given = {"apply_deepspeed": "true", "deepspeed": config, "torch_compile": "true"}
    with pytest.raises(ParameterError) as raised:
        settled(**given, lr_scheduler_type="polynomial", learning_rate=0)
    for part in ("did you mean gradient_clipping", "polynomial falls", "compiled graph"):
        assert part in str(raised.value)
    config.write_text(json.dumps({"zero_optimization": {"stage": 3}, "amp": {"enabled": True}}))
    with pytest.raises(UnsupportedError) as unsupported:
        settled(**given)
    for part in ("'amp' of a deepspeed config", "compiled graph"):
        assert part in str(unsupported.value)
    config.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    with pytest.raises(UnsupportedError, match="true with ZeRO-3"):
        settled(apply_deepspeed="true", deepspeed=config, auto_find_batch_size="true")


def test_a_config_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # it can't be imported
    monkeypatch.setattr(Machine, "has_deepspeed", lambda _: False)
    (tmp_path / "zero.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="the package deepspeed is not installed"):
        settled(apply_deepspeed="true", deepspeed=tmp_path / "zero.json")


def test_the_model_is_asked_apart() -> None:
    found = settled(precision="bf16", gradient_checkpointing="true", num_train_epochs=2)
    check_model(found, World(), BERT)
    with pytest.raises(UnsupportedError) as raised:
        check_model(found, World(), replace(BERT, model_type="deberta", supports_gradient_checkpointing=False))
    assert len(raised.value.faults) == 2


def refusal(main: Callable[[list[str]], None], words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """(exit code, what is said on stderr, but for progress bars) of a command line."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        run_main(main, words)
    return end.value.code, re.sub(r"\r[^\n]*\n", "", capfd.readouterr().err)


def pipeline_words(task: str, model: Path, **given: Any) -> list[str]:
    values = {"pytorch_model_path": model, "train_file_path": SAMPLES / task / "train.jsonl", **given}
    file = ROOT / "components" / task / "pipeline.yaml"
    return [str(file), "--set", *(f"{name}={value}" for name, value in values.items())]


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"evaluation_strategy": "steps", "eval_steps": 0}, ParameterError, "at least 1, not 0"),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 0, "precision": 16}, ParameterError, "fp16 needs a GPU"),
        ({"precision": 16}, UnsupportedError, "fp16 needs a GPU"),
        ({"apply_fsdp": "true", "auto_find_batch_size": "true"}, UnsupportedError, "there is one process"),
        ({"apply_deepspeed": "true", "torch_compile": "true"}, UnsupportedError, "compiled graph"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_run_check_and_pipeline_refuse_in_the_same_words(
    given: dict[str, Any], kind: type[FinetuneError], said: str, tiny_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["--task", "question_answering", *WORDS, *(w for name in given for w in (f"--{name}", str(given[name])))]
    of_pipeline = pipeline_words("question_answering", tiny_model, **given)
    answers = {
        refusal(run.main, words, capfd),
        refusal(check.main, of_pipeline, capfd),
        refusal(pipeline.main, [*of_pipeline, "--output", str(tmp_path / "out")], capfd),
    }
    assert len(answers) == 1, answers
    ((code, text),) = answers
    assert code == kind.exit_code and said in text and not (tmp_path / "out").exists()


def test_and_so_they_do_for_a_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deberta").mkdir()
    model = build_family("deberta", tmp_path / "deberta")
    build_wordpiece(model)
    prepared = prepare(tmp_path, model, "token_classification", (24, 3, 3))
    of_pipeline = pipeline_words("token_classification", model, precision="bf16")
    answers = {
        refusal(run.main, finetune_words(prepared, tmp_path / "run", precision="bf16"), capfd),
        refusal(check.main, of_pipeline, capfd),
        refusal(pipeline.main, [*of_pipeline, "--output", str(tmp_path / "out")], capfd),
    }
    assert len(answers) == 1, answers
    ((code, text),) = answers
    assert code == UnsupportedError.exit_code and "--precision bf16 for a deberta" in text
