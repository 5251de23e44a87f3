"""finetune.run through its real command line: what it trains, keeps, saves and proves."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from finetune import evaluation, model_selector, preprocess, run
from finetune.core.errors import HandoffError, ModelError, ParameterError, UnsupportedError
from finetune.models.stored.sums import SUMS
from tests.conftest import finetune_words, sample_rows, write_jsonl
from tests.forking import Forks

pytestmark = pytest.mark.slow
QUICK = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 16, "learning_rate": 1e-3}


def finetune(prepared: Path, output: Path, **parameters: Any) -> Path:
    run.main(finetune_words(prepared, output, **{**QUICK, **parameters}))
    return output / "pytorch"


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def state(folder: Path) -> dict[str, Any]:
    """trainer_state.json of the last checkpoint."""
    found: dict[str, Any] = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())
    return found


def history(folder: Path, name: str) -> list[float]:
    return [entry[name] for entry in state(folder)["log_history"] if name in entry]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs; its pytorch_model_folder."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow leaves that of the run before in this process
    return finetune(prepared, tmp_path_factory.mktemp("trained"), num_train_epochs=3)


def test_model_loads_in_plain_transformers(trained: Path) -> None:
    model, info = AutoModelForQuestionAnswering.from_pretrained(trained, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = AutoTokenizer.from_pretrained(trained)("Who?", "Nobody.", return_tensors="pt")
    assert model(**batch).start_logits.shape == batch["input_ids"].shape
    assert model.config.finetune["state"]["doc_stride"] == 32


def test_every_checkpoint_is_whole(trained: Path) -> None:
    assert len(checkpoints(trained)) == 3
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    for folder in checkpoints(trained):
        assert wanted | {"trainer_state.json", "complete"} <= {path.name for path in folder.iterdir()}


def test_loss_falls_and_lowest_loss_is_kept(trained: Path) -> None:
    losses = history(trained, "eval_loss")
    assert losses[-1] < losses[0]
    best = checkpoints(trained)[losses.index(min(losses))]
    assert state(trained)["best_model_checkpoint"] == best.name
    assert same(weights(trained), weights(best))


def test_highest_f1_is_kept(prepared: Path, tmp_path: Path) -> None:
    # A falling score: f1 is noise on random weights, so the best is hardly ever the last of five.
    folder = finetune(prepared, tmp_path, num_train_epochs=5, metric_for_best_model="f1", learning_rate=3e-2)
    scores = history(folder, "eval_f1")
    best = checkpoints(folder)[scores.index(max(scores))]
    assert state(folder)["best_metric"] == max(scores)
    assert same(weights(folder), weights(best))


def test_evaluation_component_scores_both_folders_alike(trained: Path, prepared: Path, tmp_path: Path) -> None:
    found = {}
    for port, folder in (("pytorch_model_folder", trained), ("mlflow_model_folder", trained.parent / "mlflow")):
        words = [
            "--task",
            "question_answering",
            "--preprocess_output",
            str(prepared / "data"),
            f"--{port}",
            str(folder),
        ]
        evaluation.main([*words, "--evaluation_result", str(tmp_path / port)])
        found[port] = (tmp_path / port / "predictions.jsonl").read_text()
        assert json.loads((tmp_path / port / "metrics.json").read_text())["total"] == 12
    assert found["pytorch_model_folder"] == found["mlflow_model_folder"]
    first = json.loads(found["pytorch_model_folder"].splitlines()[0])
    assert {"id", "row", "text", "score", "start", "end", "n_best"} <= first.keys()


def test_rows_without_answers_are_predicted_only(trained: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Who?", "context": "Ada Lovelace wrote it."}\n')
    words = ["--task", "question_answering", "--test_data", str(rows), "--pytorch_model_folder", str(trained)]
    evaluation.main([*words, "--evaluation_result", str(tmp_path / "out")])
    prediction = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    assert prediction["text"] == "Ada Lovelace wrote it."[prediction["start"] : prediction["end"]]
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_served_model_answers_records(trained: Path) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(str(trained.parent / "mlflow"))
    answers = model.predict([{"question": "Who?", "context": "Ada wrote it."}] * 3)
    assert list(answers.columns) == ["answer", "score", "start", "end"] and len(answers) == 3


def test_cublas_is_told_before_its_first_product(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search for a batch comes before the Trainer, which would set it."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    for asked, told in (("false", None), ("true", ":16:8")):
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        seen = []
        monkeypatch.setattr(run, "finetune", lambda *_, s=seen: s.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        run.main(finetune_words(prepared, tmp_path / asked, enable_full_determinism=asked))
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        assert seen == [told]


def test_tracking(trained: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{trained}/mlflow.db")
    (tracked,) = client.search_runs(["0"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["num_train_epochs"] == "3"
    assert {
        "loss",
        "eval_loss",
        "eval_f1",
        "train_samples_per_second",
        "train_tokens_per_second",
    } <= tracked.data.metrics.keys()
    assert tracked.data.metrics["trained_parameters"] == sum(w.numel() for w in weights(trained).values())


def test_resolved_config_says_where_values_come_from(trained: Path) -> None:
    resolved = yaml.safe_load((trained / "resolved_config.yaml").read_text())
    assert resolved["num_train_epochs"] == {"value": 3, "origin": "given"}
    assert resolved["seed"] == {"value": 42, "origin": "default"}
    assert resolved["optim"]["used"] == "adamw_torch_fused" and resolved["optim"]["origin"].startswith("derived")
    assert resolved["best model"]["value"] == "lowest loss"


def test_every_override_is_said_once_and_recorded(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever resolved_config.yaml calls derived is one line of the log, and what ran."""
    given = {"preset": "distilbert", "evaluation_strategy": "steps", "evaluation_steps_interval": 0.3}
    defaults = {"learning_rate": 2e-5, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    folder = finetune(prepared, tmp_path, **{**defaults, **given})
    said = capsys.readouterr().out
    resolved = yaml.safe_load((folder / "resolved_config.yaml").read_text())
    derived = {name: entry for name, entry in resolved.items() if entry["origin"].startswith("derived: ")}
    for name, entry in derived.items():
        reason = entry["origin"].removeprefix("derived: ")
        assert said.count(f"\n{name}: {entry.get('used', entry['value'])} ({reason})\n") == 1
    assert {name: entry["used"] for name, entry in derived.items() if "used" in entry} == {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 5e-5,
        "precision": "bf16",
        "optim": "adamw_torch_fused",
        "eval_steps": 4,
        "attn_implementation": "sdpa" if torch.cuda.is_available() else "cpu_kernels",
    }
    ran = state(folder)
    assert (ran["num_train_epochs"], ran["train_batch_size"], ran["eval_steps"]) == (3, 8, 4)
    assert {name: entry["origin"] for name, entry in resolved.items() if entry["origin"] == "given"}.keys() >= {
        "preset"
    }


def test_resume_ends_with_the_same_weights(
    trained: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = checkpoints(trained)[0]
    shutil.copytree(first, tmp_path / "pytorch" / first.name)
    torn = tmp_path / "pytorch" / "checkpoint-999"
    torn.mkdir()
    resumed = finetune(prepared, tmp_path, num_train_epochs=3, resume_from_checkpoint="true")
    assert f"skip {torn.name}" in capsys.readouterr().out
    torn.rmdir()
    assert same(weights(checkpoints(resumed)[-1]), weights(checkpoints(trained)[-1]))


def test_resume_at_another_place_in_the_data_is_refused(trained: Path, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints(trained)[0], tmp_path / "pytorch" / checkpoints(trained)[0].name)
    with pytest.raises(ParameterError, match="16 windows in a step, this run has 8"):
        finetune(prepared, tmp_path, resume_from_checkpoint="true", per_device_train_batch_size=8)


def test_resume_in_another_folder_with_another_cadence(trained: Path, prepared: Path, tmp_path: Path) -> None:
    steps = state(trained)["max_steps"]
    for folder in checkpoints(trained):
        shutil.copytree(folder, tmp_path / "pytorch" / folder.name)
    shutil.rmtree(tmp_path / "pytorch" / checkpoints(trained)[-1].name)
    given = {"num_train_epochs": 3, "evaluation_strategy": "steps", "eval_steps": 2}
    folder = finetune(prepared, tmp_path, resume_from_checkpoint="true", **given)
    resumed = [entry["step"] for entry in state(folder)["log_history"] if "eval_loss" in entry]
    assert resumed[2:] == [step for step in range(1, steps + 1) if step > resumed[1] and step % 2 == 0]
    assert (folder / state(folder)["best_model_checkpoint"] / "model.safetensors").is_file()


def test_diverged_run_is_an_error(prepared: Path, tmp_path: Path) -> None:
    """It ends at once, names the batch, and leaves no checkpoint without finite weights."""
    with pytest.raises(
        ModelError, match=r"diverged: the loss of step [2-9] is (nan|-?inf)\n  where: the batch of ."
    ) as caught:
        finetune(prepared, tmp_path, learning_rate=1e30, max_grad_norm=0, num_train_epochs=2, save_steps=1)
    assert "fix: a lower --learning_rate" in str(caught.value)
    for folder in checkpoints(tmp_path / "pytorch"):
        assert all(tensor.isfinite().all() for tensor in weights(folder).values())


def test_merged_run_over_an_unmerged_one(prepared: Path, tmp_path: Path) -> None:
    finetune(prepared, tmp_path, max_steps=1, apply_lora="true", merge_lora_weights="false")
    folder = finetune(prepared, tmp_path, max_steps=1)
    assert not (folder / "base_model").exists() and not list(folder.glob("adapter_*"))


def test_model_of_another_task_gets_a_head_of_its_own(prepared: Path, tmp_path: Path) -> None:
    from transformers import BertForTokenClassification

    shutil.copytree(prepared / "model" / "model", tmp_path / "tagger", ignore=shutil.ignore_patterns(SUMS))
    BertForTokenClassification.from_pretrained(tmp_path / "tagger", num_labels=9).save_pretrained(tmp_path / "tagger")
    words = ["--task", "question_answering", "--pytorch_model_path", str(tmp_path / "tagger")]
    model_selector.main([*words, "--output_dir", str(tmp_path / "model")])
    shutil.copytree(prepared / "data", tmp_path / "data")
    for name, options in (("plain", {}), ("unmerged", {"apply_lora": "true", "merge_lora_weights": "false"})):
        folder = finetune(tmp_path, tmp_path / name, max_steps=1, **options)
        assert json.loads((folder / "config.json").read_text()).get("num_labels", 2) == 2


NOT_INSTALLED = """
import importlib.metadata, sys

found = importlib.metadata.version

def version(name):
    assert name != "finetune"
    return found(name)

importlib.metadata.version = version
from finetune import run
run.main(sys.argv[1:])
"""


def test_runs_without_being_installed(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    """On Azure ML the package is a folder of the snapshot, without metadata."""
    words = finetune_words(prepared, tmp_path, max_steps=1, per_device_train_batch_size=16)
    command = [forks.python, "-c", NOT_INSTALLED, *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_resume_without_a_checkpoint_starts_anew(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(prepared, tmp_path, resume_from_checkpoint="true")
    assert "no complete checkpoint: starting anew" in capsys.readouterr().out


def test_earlier_checkpoints_are_moved_aside(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(prepared, tmp_path)
    folder = finetune(prepared, tmp_path, max_steps=1)
    assert "1 checkpoints of an earlier run moved to earlier-run-1/" in capsys.readouterr().out
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-1"]
    assert len(list((folder / "earlier-run-1").glob("checkpoint-*"))) == 1


def test_no_answer_threshold_is_calibrated(prepared: Path, tmp_path: Path) -> None:
    """Evaluation decodes between two values of the official sweep: on the same rows it gives the sweep's best F1."""
    for split in ("train", "validation"):
        rows = sample_rows(split)[:48]
        for row in rows[::3]:
            row["answers"] = {"text": [], "answer_start": []}
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    words = ["--task", "question_answering", "--model_selector_output", str(prepared / "model")]
    files = {"train": "train", "validation": "validation", "test": "validation"}
    words += [word for port, name in files.items() for word in (f"--{port}_file_path", str(tmp_path / f"{name}.jsonl"))]
    preprocess.main([*words, "--output_dir", str(tmp_path / "data"), "--max_seq_length", "128", "--doc_stride", "32"])
    shutil.copytree(prepared / "model", tmp_path / "model")
    folder = finetune(tmp_path, tmp_path, max_steps=1)  # too few to learn: withholding every answer is best
    best = next(
        e for e in state(folder)["log_history"] if e["step"] == state(folder)["best_global_step"] and "eval_f1" in e
    )
    stored = json.loads((folder / "config.json").read_text())["finetune"]["state"]
    assert stored["no_answer"] and stored["null_threshold"] == best["eval_calibrated_threshold"]
    words = ["--task", "question_answering", "--preprocess_output", str(tmp_path / "data")]
    evaluation.main([*words, "--pytorch_model_folder", str(folder), "--evaluation_result", str(tmp_path / "scores")])
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert scores["f1"] == pytest.approx(best["eval_best_f1"]) and scores["f1"] > best["eval_f1"]


def test_lora_merged(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    folder = finetune(prepared, tmp_path, apply_lora="true", lora_r=4)
    saved = load_file(next(folder.glob("checkpoint-*/adapter_model.safetensors")))
    trained = sum(tensor.numel() for tensor in saved.values())
    assert f"LoRA: {trained:,} of " in capsys.readouterr().out
    (tracked,) = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["0"])
    assert tracked.data.metrics["trained_parameters"] == trained
    assert not (folder / "adapter_config.json").exists()
    before, after = weights(prepared / "model" / "model"), weights(folder)
    changed = {
        name.removeprefix("bert.")
        for name in after
        if not torch.equal(after[name], before.get(name.removeprefix("bert."), torch.zeros(0)))
    }
    assert changed == {"qa_outputs.weight", "qa_outputs.bias"} | {
        f"encoder.layer.{i}.attention.self.{part}.weight" for i in (0, 1) for part in ("query", "value")
    }


def test_lora_unmerged_folder_scores_like_the_merged_mlflow_model(prepared: Path, tmp_path: Path) -> None:
    folder = finetune(prepared, tmp_path, apply_lora="true", merge_lora_weights="false", num_train_epochs=2)
    assert all((checkpoint / "config.json").is_file() for checkpoint in checkpoints(folder))
    assert (folder / "adapter_model.safetensors").is_file() and (folder / "base_model" / "model.safetensors").is_file()
    test_evaluation_component_scores_both_folders_alike(folder, prepared, tmp_path)


def test_earlier_run_is_imported_again(trained: Path, prepared: Path, tmp_path: Path) -> None:
    words = ["--task", "question_answering", "--output_dir", str(tmp_path / "model")]
    model_selector.main([*words, "--pytorch_model_path", str(trained)])
    selected = json.loads((tmp_path / "model" / "model_selector_args.json").read_text())
    assert selected["new_weights"] == []
    assert same(weights(tmp_path / "model" / "model"), weights(trained))


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"apply_fsdp": "true"}, UnsupportedError, "--apply_fsdp false"),
    ({"evaluation_strategy": "steps", "eval_steps": 500}, ParameterError, "--eval_steps"),
]
if not torch.cuda.is_available():
    REFUSED.append(({"precision": "16"}, UnsupportedError, "--precision bf16"))


@pytest.mark.parametrize(("parameters", "error", "fix"), REFUSED)
def test_refused_before_a_model_is_loaded(
    prepared: Path, tmp_path: Path, parameters: dict[str, Any], error: type[Exception], fix: str
) -> None:
    with pytest.raises(error, match=fix):
        finetune(prepared, tmp_path, **parameters)
    assert not (tmp_path / "pytorch").exists()


def test_lora_on_a_body_with_random_weights_is_refused(prepared: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shutil.copytree(prepared, tmp_path / "prepared")
    file = tmp_path / "prepared" / "model" / "model" / "model.safetensors"
    lost = "encoder.layer.1.output.dense.weight"
    (file.parent / SUMS).unlink()
    save_file({k: w for k, w in weights(file.parent).items() if not k.endswith(lost)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{lost}[\s\S]*fix: --apply_lora false"):
        finetune(tmp_path / "prepared", tmp_path, apply_lora="true")


def test_other_family_than_the_data_were_encoded_for(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "prepared")
    file = tmp_path / "prepared" / "data" / "preprocess.json"
    file.write_text(file.read_text().replace('"model_type": "bert"', '"model_type": "roberta"'))
    with pytest.raises(HandoffError, match="encoded for a roberta"):
        finetune(tmp_path / "prepared", tmp_path)


def test_proof_catches_a_model_that_was_not_saved_as_trained(trained: Path, prepared: Path) -> None:
    from safetensors.torch import save_file

    from finetune.data.folders import read_rows
    from finetune.models.loading import load_model
    from finetune.models.stored.configs import stored_state
    from finetune.models.stored.tokenizers import load_tokenizer
    from finetune.results import proof
    from finetune.tasks import load_task

    task = load_task("question_answering")
    model, _ = load_model(trained, task, stored_state(trained, task))
    rows = read_rows(prepared / "data" / "validation" / "rows.jsonl")
    arguments = (
        load_tokenizer(trained, task),
        rows[:8],
        task,
        stored_state(trained, task),
        trained,
        trained.parent / "mlflow",
    )
    proof.prove(model, *arguments)
    kept = weights(trained)
    try:
        save_file(
            {**kept, "qa_outputs.weight": -kept["qa_outputs.weight"]}, trained / "model.safetensors", {"format": "pt"}
        )
        with pytest.raises(ModelError, match="is not the model that was trained") as error:
            proof.prove(model, *arguments)
        assert [str(trained) in fault.what for fault in error.value.faults] == [True]
    finally:
        save_file(kept, trained / "model.safetensors", {"format": "pt"})


def test_mismatched_head_is_an_error_if_asked(prepared: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shutil.copytree(prepared, tmp_path / "prepared")
    file = tmp_path / "prepared" / "model" / "model" / "model.safetensors"
    (file.parent / SUMS).unlink()
    save_file(
        {**load_file(file), "qa_outputs.weight": torch.zeros(7, 32), "qa_outputs.bias": torch.zeros(7)},
        file,
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match="ignore_mismatched_sizes true"):
        finetune(tmp_path / "prepared", tmp_path, ignore_mismatched_sizes="false")
    finetune(tmp_path / "prepared", tmp_path, max_steps=1)
