"""The submissions in examples/ are built by azure-ai-ml, the notebook runs, and the sample is what it says it is."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from finetune import run
from finetune.core.errors import ParameterError
from finetune.tasks.token_classification.schemes import detect, entities
from tests.conftest import ROOT, finetune_words, sample_rows, write_jsonl
from tests.test_docs import LINK

TASKS = ("question_answering", "token_classification", "translation")
SPLITS = ("train", "validation", "test")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_job_yaml_is_valid(task: str) -> None:
    from azure.ai.ml import load_job

    job = load_job(ROOT / "examples" / f"job_{task}.yaml")
    assert job._validate().passed
    assert job.jobs[task].inputs["num_train_epochs"]._data == 3


@pytest.mark.slow
def test_sweep_yaml_is_valid() -> None:
    """It goes by the metric that its runs log, and varies what the component knows."""
    from azure.ai.ml import load_job

    job = load_job(ROOT / "examples" / "sweep.yaml")
    assert job._validate().passed
    sweep = job.jobs["finetune"]
    assert sweep.type == "sweep"
    assert sweep.objective.primary_metric == f"eval_{sweep.inputs['metric_for_best_model']._data}"
    assert set(sweep.search_space) == {"learning_rate", "per_device_train_batch_size"} < set(sweep.trial.inputs)


def plain(job: Any) -> dict[str, Any]:
    """What azure-ai-ml makes of a job; without the names of its components, which in a YAML job are none."""
    made: dict[str, Any] = job._to_dict()
    for step in made["jobs"].values():
        component = step.get("component") or step["trial"]
        del component["name"], component["version"]
        for entry in step["inputs"].values():
            if isinstance(entry, dict) and "type" in entry:  # a file, in the YAML beside it
                entry["path"] = str(ROOT / "examples" / entry["path"].removeprefix("azureml:"))
    return made


@pytest.mark.slow
def test_the_sweep_in_python_is_the_one_in_yaml() -> None:
    from azure.ai.ml import load_job

    built = runpy.run_path(str(ROOT / "examples" / "sweep.py"))["make_sweep"]()
    assert built._validate().passed
    made = plain(built)
    assert made == plain(load_job(ROOT / "examples" / "sweep.yaml"))
    sweep = made["jobs"]["finetune"]
    assert sweep["search_space"].keys() == {"learning_rate", "per_device_train_batch_size"}
    assert {"early_termination", "limits", "objective"} < sweep.keys() and made["outputs"]["model"]


@pytest.mark.slow
def test_a_run_logs_the_metric_of_the_sweep(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = yaml.safe_load((ROOT / "examples" / "sweep.yaml").read_text())["jobs"]["finetune"]
    best = sweep["inputs"]["metric_for_best_model"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run.main(finetune_words(prepared, tmp_path, max_steps=1, metric_for_best_model=best))
    (logged,) = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["0"])
    assert sweep["objective"]["primary_metric"] in logged.data.metrics


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_submit_builds_a_job(task: str) -> None:
    job = runpy.run_path(str(ROOT / "examples" / "submit.py"))["make_job"](task)
    assert job._validate().passed
    assert set(job.outputs) == {"pytorch_model_folder", "mlflow_model_folder", "evaluation_result"}


@pytest.mark.slow
def test_submit_refuses_what_azure_ml_would_not_carry(tmp_path: Path) -> None:
    submit = runpy.run_path(str(ROOT / "examples" / "submit.py"))
    rows = tmp_path / "o'brien.jsonl"
    rows.touch()
    hostile = {"huggingface_id": "it's", "train_file_path": str(rows)}
    with pytest.raises(ParameterError) as caught:
        submit["make_job"]("question_answering", **hostile)
    assert {fault.what.partition(":")[0] for fault in caught.value.faults} == hostile.keys()


# Runs the code of a notebook cell by cell and shows what their expressions give; the second word is a cell of ours, the
# second to run.
RUN_CELLS = """
import ast, json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
first, *others = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
for text in (first, sys.argv[2], *others):
    exec(compile(ast.Interactive(ast.parse(text).body), "<cell>", "single"))
"""


@pytest.mark.slow
def test_the_notebook_runs(tiny_model: Path, tmp_path: Path) -> None:
    files = {split: str(write_jsonl(tmp_path / f"{split}.jsonl", sample_rows(split)[:12])) for split in SPLITS}
    small = {"max_seq_length": 96, "max_steps": 2, "logging_steps": 1}
    values = f"MODEL, OUT, FILES = Path({str(tiny_model)!r}), Path({str(tmp_path / 'out')!r}), {files}"
    words = [str(ROOT / "examples" / "finetune.ipynb"), f"{values}; SETTINGS |= {small}"]
    env = {**os.environ, "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", RUN_CELLS, *words]
    done = subprocess.run(command, cwd=ROOT / "examples", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 test rows: exact " in done.stdout
    assert re.search(r"\n +answer +score +start +end\n0 ", done.stdout)


def test_the_notebook_is_short_and_holds_no_output() -> None:
    cells = json.loads((ROOT / "examples" / "finetune.ipynb").read_text(encoding="utf-8"))["cells"]
    assert 10 <= len(cells) <= 14
    assert not any(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    linked = [
        name for cell in cells if cell["cell_type"] == "markdown" for name in LINK.findall("".join(cell["source"]))
    ]
    assert linked and all((ROOT / "examples" / name).exists() for name in linked)


def test_sample_of_words_and_tags() -> None:
    rows = {split: sample_rows(split, "token_classification") for split in SPLITS}
    sentences = [" ".join(row["tokens"]) for split in rows.values() for row in split]
    assert len(sentences) == len(set(sentences)) == 640  # none twice, so none on two sides
    found = {split: [e for row in made for e in named(row)] for split, made in rows.items()}
    for split, made in rows.items():
        assert detect(row["ner_tags"] for row in made) == ("IOB2", [], 0)
        assert all(len(row["tokens"]) == len(row["ner_tags"]) for row in made)
        assert min(Counter(kind for kind, _ in found[split]).values()) >= 15
    for split in ("validation", "test"):  # most names are new, so that the score is no score of memory
        assert len(set(found[split]) - set(found["train"])) > 0.9 * len(set(found[split]))


def named(row: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(kind, " ".join(row["tokens"][a : b + 1])) for kind, a, b in entities(row["ner_tags"], "IOB2")]


def test_sample_of_questions() -> None:
    contexts = {
        split: Counter(row["context"] for row in sample_rows(split)) for split in ("train", "validation", "test")
    }
    assert sum(map(len, contexts.values())) == len(set().union(*contexts.values())) >= 60  # none on two sides
    assert min(count for split in contexts.values() for count in split.values()) >= 4
    for split in contexts:
        for row in sample_rows(split):
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start : start + len(text)] == text
