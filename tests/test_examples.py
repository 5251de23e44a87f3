"""The submissions in examples/ are built by azure-ai-ml, and the sample is what it says it is."""

import runpy
from collections import Counter

import pytest

from finetune.core.errors import ParameterError
from finetune.tasks.token_classification.schemes import detect, entities
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


@pytest.mark.slow
def test_submit_refuses_what_azure_ml_would_not_carry() -> None:
    from azure.ai.ml import Input

    submit = runpy.run_path(str(ROOT / "examples" / "submit.py"))
    hostile = {"huggingface_id": "it's", "train_file_path": Input(type="uri_file", path="/data/o'brien.jsonl")}
    with pytest.raises(ParameterError) as caught:
        submit["build"]({**submit["INPUTS"], **hostile})
    assert {fault.what.partition(":")[0] for fault in caught.value.faults} == hostile.keys()


def test_sample_of_words_and_tags() -> None:
    rows = {split: sample_rows(split, "token_classification") for split in ("train", "validation", "test")}
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
