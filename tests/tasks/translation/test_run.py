"""Translation through the command lines: the pipeline, what it leaves behind, what is served, and what is resumed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from finetune import check, evaluation, pipeline, run
from finetune.core.errors import ParameterError
from tests.conftest import ROOT, finetune_words, prepare, write_jsonl
from tests.forking import Forks
from tests.writers import build_writer, pairs

pytestmark = pytest.mark.slow
YAML = ROOT / "components" / "translation" / "pipeline.yaml"
LENGTHS = {"max_seq_length": 60, "max_target_length": 40}
QUICK = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_writer("t5", tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def values(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    counts = {"train": 32, "validation": 8, "test": 6}
    given = {
        f"{split}_file_path": write_jsonl(folder / f"{split}.jsonl", pairs(split)[:n]) for split, n in counts.items()
    }
    words = {"pytorch_model_path": model, "source_lang": "en", "target_lang": "tav", **given, **LENGTHS, **QUICK}
    return {name: str(value) for name, value in words.items()}


@pytest.fixture(scope="module")
def output(values: dict[str, str], forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pipeline leaves."""
    folder = tmp_path_factory.mktemp("out")
    with forks.taken_for_python():
        pipeline.run(pipeline.Words(YAML, folder, values, force=False))
    return folder


def test_check(values: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    check.main([str(YAML), "--set", *(f"{name}={value}" for name, value in values.items())])
    said = capsys.readouterr().out
    assert "max_target_length: 40" not in said and "warning" not in said
    assert "train: 32 rows" in said and "memory" in said and "time: about" in said
    assert "writing: about" in said and "8 texts in each of 1 evaluations, num_beams 1; at most" in said


def test_metrics_and_predictions(output: Path) -> None:
    metrics = json.loads((output / "evaluation_result" / "metrics.json").read_text())
    assert {"bleu", "chrf", "ter", "gen_len", "bleu_1", "bleu_4", "empty", "copied", "repeated"} <= metrics.keys()
    assert metrics["sacrebleu"]["bleu"].startswith("nrefs:1|") and metrics["rows"] == 6
    found = [json.loads(line) for line in (output / "evaluation_result" / "predictions.jsonl").read_text().splitlines()]
    assert len(found) == 6 and all(p["tokens"] <= 40 and 0 <= p["score"] <= 1 for p in found)
    page = (output / "evaluation_result" / "report.html").read_text()
    assert pairs("test")[0]["en"] in page and "Bleu" in page


def test_training_does_not_wait_for_ter(output: Path) -> None:
    log = json.loads((output / "pytorch_model_folder" / "training.json").read_text())["log"]
    evaluations = [entry for entry in log if "eval_loss" in entry]
    assert evaluations and all("eval_bleu" in entry and "eval_ter" not in entry for entry in evaluations)


def test_what_is_written_is_shown_as_it_goes(
    output: Path, prepared_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Rows and tokens a second: batch by batch in the component, and in training where it takes long."""
    monkeypatch.setenv("FINETUNE_LIVE", "1")
    monkeypatch.setattr("tqdm.tqdm", lambda *words, **given: tqdm(*words, **{**given, "mininterval": 0}))
    monkeypatch.setattr("finetune.core.console.BAR_AFTER", 0)
    words = ["--task", "translation", "--preprocess_output", str(prepared_pairs / "data")]
    words += ["--pytorch_model_folder", str(output / "pytorch_model_folder"), "--per_device_eval_batch_size", "2"]
    evaluation.main([*words, "--evaluation_result", str(tmp_path / "scores")])
    shown = capsys.readouterr().err
    assert all(re.search(rf"evaluate: .* {done}/6 .*\d tokens/s", shown) for done in (2, 4, 6))
    run.main(finetune_words(prepared_pairs, tmp_path, **QUICK, per_device_eval_batch_size=4))
    shown = capsys.readouterr().err
    assert re.search(r"validate: .* 4/8 .*\d tokens/s", shown)


def test_served_texts_are_those_of_evaluation(output: Path) -> None:
    """By any name of the column, as a list, and with more beams where they are asked for."""
    found = [json.loads(line) for line in (output / "evaluation_result" / "predictions.jsonl").read_text().splitlines()]
    texts = [pair["en"] for pair in pairs("test")[:6]]
    served = mlflow.pyfunc.load_model(str(output / "mlflow_model_folder"))
    forms: list[Any] = [
        pd.DataFrame({"en": texts}), pd.DataFrame({"input_string": texts}), texts, {"input_string": texts}
    ]  # fmt: skip
    for form in forms:
        answers = served.predict(form)
        assert answers["translation"].tolist() == [p["text"] for p in found]
        assert answers["score"].tolist() == pytest.approx([p["score"] for p in found], abs=1e-4)
    searched = served.predict(texts, params={"num_beams": 3})
    assert searched["translation"].tolist() != [p["text"] for p in found]


def test_it_translates_without_this_package(output: Path) -> None:
    """As the model card says."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = output / "pytorch_model_folder"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    plain: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    found = [json.loads(line) for line in (output / "evaluation_result" / "predictions.jsonl").read_text().splitlines()]
    for pair, prediction in zip(pairs("test"), found, strict=False):
        ids = plain.generate(**tokenizer(pair["en"], return_tensors="pt"))[0]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prediction["text"]
    assert "AutoModelForSeq2SeqLM.from_pretrained(folder)" in (folder / "README.md").read_text()


def test_resumed(prepared_pairs: Path, tmp_path: Path) -> None:
    """Without the checkpoint of the second epoch, that epoch is run again: the same weights bit for bit."""
    words = {**QUICK, "num_train_epochs": 2}
    run.main(finetune_words(prepared_pairs, tmp_path / "whole", **words))
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "pytorch" / "checkpoint-8")
    run.main(finetune_words(prepared_pairs, tmp_path / "broken", **words, resume_from_checkpoint="true"))
    assert (tmp_path / "broken" / "pytorch" / "checkpoint-8" / "complete").is_file()
    one, other = (load_file(tmp_path / name / "pytorch" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_unmerged_adapters(prepared_pairs: Path, tmp_path: Path) -> None:
    given = {"apply_lora": "true", "merge_lora_weights": "false"}
    run.main(finetune_words(prepared_pairs, tmp_path, **QUICK, **given))
    assert (tmp_path / "pytorch" / "adapter_model.safetensors").is_file()
    words = ["--task", "translation", "--preprocess_output", str(prepared_pairs / "data")]
    for name, port in (("pytorch", "--pytorch_model_folder"), ("mlflow", "--mlflow_model_folder")):
        evaluation.main([*words, port, str(tmp_path / name), "--evaluation_result", str(tmp_path / f"of_{name}")])
    one, other = ((tmp_path / f"of_{name}" / "predictions.jsonl").read_text() for name in ("pytorch", "mlflow"))
    assert [json.loads(line)["text"] for line in one.splitlines()] == [
        json.loads(line)["text"] for line in other.splitlines()
    ]


def test_a_file_is_translated_without_targets(output: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"en": pair["en"]} for pair in pairs("test")[:3]])
    words = ["--task", "translation", "--test_data", str(rows), "--source_lang", "en", "--target_lang", "tav"]
    words += [
        "--pytorch_model_folder",
        str(output / "pytorch_model_folder"),
        "--evaluation_result",
        str(tmp_path / "e"),
    ]
    evaluation.main(words)
    assert len((tmp_path / "e" / "predictions.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "e" / "metrics.json").exists()


def test_a_request_names_other_languages(tmp_path: Path) -> None:
    """In the served model and in the component alike; the pair of training is the default of the signature."""
    given = {"source_lang": "en_XX", "target_lang": "de_DE", "source_key": "en", "target_key": "tav", **LENGTHS}
    prepared = prepare(tmp_path, build_writer("mbart", tmp_path / "tiny"), "translation", (16, 4, 4), **given)
    run.main(finetune_words(prepared, tmp_path, **QUICK))
    served = mlflow.pyfunc.load_model(str(tmp_path / "mlflow"))
    defaults = {param.name: param.default for param in served.metadata.signature.params}
    assert defaults == {"source_lang": "en_XX", "target_lang": "de_DE", "num_beams": 1}

    texts = [pair["en"] for pair in pairs("test")[:4]]
    usual, french = served.predict(texts), served.predict(texts, params={"target_lang": "fr_XX"})
    assert usual["score"].tolist() != french["score"].tolist()
    assert served.predict(texts)["score"].tolist() == usual["score"].tolist()  # nothing is left of the request before
    words = ["--task", "translation", "--preprocess_output", str(prepared / "data"), "--target_lang", "fr_XX"]
    words += ["--mlflow_model_folder", str(tmp_path / "mlflow"), "--evaluation_result", str(tmp_path / "scores")]
    evaluation.main(words)
    found = [json.loads(line) for line in (tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()]
    assert [p["score"] for p in found] == pytest.approx(french["score"].tolist(), abs=1e-5)

    meant = "target_lang 'fr' is no language of the model; did you mean fr_XX?"
    with pytest.raises(mlflow.MlflowException, match=re.escape(meant)) as caught:
        served.predict(texts, params={"target_lang": "fr"})
    assert caught.value.get_http_status_code() == 400
    words[words.index("fr_XX")] = "fr"
    with pytest.raises(ParameterError, match=re.escape(meant)):
        evaluation.main(words)
