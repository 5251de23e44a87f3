"""The submissions in examples/ are built by azure-ai-ml, and the sample is what it says it is."""

import runpy
from collections import Counter

import pytest

from tests.conftest import ROOT, sample_rows


@pytest.mark.slow
def test_job_yaml_is_valid() -> None:
    from azure.ai.ml import load_job

    job = load_job(ROOT / "examples" / "job.yaml")
    assert job._validate().passed
    assert job.jobs["question_answering"].inputs["num_train_epochs"]._data == 3


@pytest.mark.slow
def test_submit_builds_a_job() -> None:
    job = runpy.run_path(str(ROOT / "examples" / "submit.py"))["build"]()
    assert job._validate().passed
    assert set(job.outputs) == {"model", "scores"}


def test_sample() -> None:
    contexts = {
        split: Counter(row["context"] for row in sample_rows(split)) for split in ("train", "validation", "test")
    }
    assert sum(map(len, contexts.values())) == len(set().union(*contexts.values())) >= 60  # none on two sides
    assert min(count for split in contexts.values() for count in split.values()) >= 4
    for split in contexts:
        for row in sample_rows(split):
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start : start + len(text)] == text
