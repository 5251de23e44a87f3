"""Tiny models that write answers, and rows to ask them."""

from pathlib import Path
from typing import Any

import pytest

from finetune.models.stored.tokenizers import imported
from finetune.params.datapreprocess import GenerativeQuestionAnsweringPreprocessParams
from finetune.tasks.generative_question_answering import TASK, prompts
from finetune.tasks.generative_question_answering.models import DECODERS
from tests.conftest import sample_rows
from tests.families import build_family
from tests.writers import build_writer

READERS = ("t5", "bart", "mbart", "mbart50", "nllb")


def build(family: str, folder: Path) -> Path:
    return (build_writer if family in READERS else build_family)(family, folder)


@pytest.fixture(scope="module", params=[*READERS, *DECODERS])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(family, tmp_path_factory.mktemp(family))


def row(question: str, context: str, *answers: str) -> dict[str, Any]:
    return {"id": "0", "row": 1, "question": question, "context": context, "answers": {"text": list(answers)}}


def rows(count: int) -> list[dict[str, Any]]:
    """Of the sample, their contexts cut short; every third has no answer."""
    found = [
        row(r["question"][:30], r["context"][:40], *r["answers"]["text"][:1]) for r in sample_rows("train")[:count]
    ]
    for without in found[::3]:
        without["answers"] = {"text": []}
    return found


def params(**given: Any) -> GenerativeQuestionAnsweringPreprocessParams:
    return GenerativeQuestionAnsweringPreprocessParams(model_selector_output=Path(), output_dir=Path(), **given)


def state_of(folder: Path, **given: Any) -> prompts.State:
    return prompts.fit(params(**{"max_answer_length": 12, **given}), {"train": rows(4)}, imported(folder, TASK))
