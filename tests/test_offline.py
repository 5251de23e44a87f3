"""Nothing reaches out: the whole pipeline runs where every connection and name look-up fails and is written down."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.params.components import TASKS
from tests.conftest import ROOT, sample_rows, write_jsonl
from tests.forking import ALL, Command, Forks
from tests.writers import build_writer

pytestmark = pytest.mark.slow
BLOCK = """
import os, socket

def refuse(*arguments, **options):
    with open(os.environ["CALLS_OUT"], "a") as file:
        file.write(f"{arguments[1:] or arguments}\\n")
    raise OSError("the network is blocked by the test")

socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.gethostbyname = refuse
"""


WRITING = ("generative_question_answering", "translation")
WINDOWS = ["max_seq_length=128", "doc_stride=32"]
OWN = {
    "question_answering": WINDOWS,
    "generative_question_answering": ["max_seq_length=128", "doc_stride=16", "max_answer_length=40"],
    "token_classification": WINDOWS,
    "translation": ["source_lang=en", "target_lang=tav", "max_seq_length=60", "max_target_length=40"],
}


@pytest.mark.parametrize(
    "task", [task if task == "translation" else pytest.param(task, marks=pytest.mark.thorough) for task in TASKS]
)
def test_pipeline_reaches_nothing(tiny_model: Path, tmp_path: Path, task: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    calls = tmp_path / "calls"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "CALLS_OUT": str(calls)}
    env.pop("MLFLOW_TRACKING_URI", None)
    blocked = subprocess.run(
        [sys.executable, "-c", "import socket; socket.getaddrinfo('localhost', 80)"], env=env, check=False
    )
    assert blocked.returncode == 1 and calls.is_file()  # the block itself works
    calls.unlink()

    model = build_writer("t5", tmp_path / "tiny") if task in WRITING else tiny_model
    data = write_jsonl(tmp_path / "rows.jsonl", sample_rows("train", task)[:20])
    values = [f"train_file_path={data}", f"pytorch_model_path={model}", *OWN[task]]
    values += ["per_device_train_batch_size=16", "per_device_eval_batch_size=16", "max_steps=1"]
    pipeline = ROOT / "components" / task / "pipeline.yaml"
    words = ["-m", "finetune", "pipeline", str(pipeline), "--output", str(tmp_path / "out"), "--set", *values]
    said = tmp_path / "said"
    (tmp_path / "imported").mkdir()
    with Forks(tmp_path / "imported", env, ALL) as forks:  # the steps are forked too, from where all is blocked
        codes = forks.run([Command(words, env, str(tmp_path), str(said), str(said))])
    assert codes == [0], said.read_text()
    assert not calls.is_file(), calls.read_text()
    assert (tmp_path / "out" / "evaluation_result" / "metrics.json").is_file()
