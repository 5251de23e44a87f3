"""What an evaluation_config of Azure's examples asks for is what is written and logged."""

import json
import random
from pathlib import Path
from typing import Any

import mlflow
import pytest
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

from finetune import evaluation
from finetune.core.errors import ParameterError
from finetune.params.evaluation import QuestionAnsweringEvaluationParams, TokenClassificationEvaluationParams
from finetune.results.published import asked
from finetune.tasks import load_task
from finetune.tasks.question_answering.metrics import published as of_texts
from finetune.tasks.token_classification.metrics import published as of_tags
from tests.conftest import sample_rows, write_jsonl

QUESTIONS, TAGS = (load_task(name).scoring.published for name in ("question_answering", "token_classification"))


def questions(**given: Any) -> QuestionAnsweringEvaluationParams:
    return QuestionAnsweringEvaluationParams(evaluation_result=Path("out"), **given)


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({}, 0.25),
        ({"ignore_case": True}, 0.5),
        ({"ignore_punctuations": True}, 0.5),
        ({"ignore_punctuation": True, "ignore_case": True}, 0.75),
        ({"ignore_numbers": True}, 0.5),
        ({"regexes_to_ignore": ["[a-z]+"], "ignore_case": True}, 0.25),
        ({"regexes_to_ignore": ["^.*$"]}, 1.0),
    ],
)
def test_exact_match_leaves_out_what_is_asked(options: dict[str, Any], exact: float) -> None:
    predicted, golds = ["Oslo", "oslo", "Oslo!", "Oslo 7"], [["Oslo", "x"], ["Oslo"], ["Oslo"], ["Oslo "]]
    found = of_texts(predicted, golds, options)
    assert found["exact_match"] == exact
    assert found["f1_score"] == pytest.approx((1 + 1 + 1 + 2 / 3) / 4)  # SQuAD's own, whatever is ignored


def test_no_answer_is_an_empty_text() -> None:
    assert of_texts(["", "b"], [[], []], {}) == {"exact_match": 0.5, "f1_score": 0.5}


def test_tags_by_seqeval() -> None:
    chance = random.Random(0)
    gold, given = (
        [[chance.choice(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]) for _ in range(9)] for _ in range(40)] for _ in "ab"
    )
    found = of_tags(given, gold, entities=True)
    wanted = {"accuracy": accuracy_score(gold, given)}
    for name, score in {"precision": precision_score, "recall": recall_score, "f1": f1_score}.items():
        wanted |= {f"{name}_score_{how}": score(gold, given, average=how) for how in ("micro", "macro", "weighted")}
    assert found == pytest.approx(wanted) and set(found) == set(TAGS.names)


def test_tags_that_mark_no_entities() -> None:
    found = of_tags([["N", "V"], ["N"]], [["N", "N"], ["V"]], entities=False)
    assert (found["accuracy"], found["f1_score_micro"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_text_wins_over_the_file_and_the_unknown_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"metrics": ["exact_match", "f1_scor"], "ignore_case": false, "ignore_numbrs": true}')
    found = asked(questions(evaluation_config=file, evaluation_config_params='{"ignore_case": true}'), QUESTIONS)
    assert (found.names, found.options) == (("exact_match",), {"ignore_case": True})
    said = capsys.readouterr().out
    assert "note: 'ignore_numbrs'; did you mean ignore_numbers? of the evaluation config has no effect" in said
    assert "note: metric 'f1_scor'; did you mean f1_score?" in said
    assert asked(questions(), QUESTIONS).names == QUESTIONS.names
    of_azure = TokenClassificationEvaluationParams(
        evaluation_result=Path("out"), evaluation_config_params=json.dumps({"metrics": list(TAGS.names)})
    )
    assert set(asked(of_azure, TAGS).names) == set(TAGS.names)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "can't be read"),
        ("[1]", "it holds a list, not an object"),
        ("[" * 10**5, "it is nested too deeply"),
        ('{"metrics": "f1"}', "metrics is 'f1', not a list"),
        ('{"metrics": [1]}', r"metrics\[0\] is 1, not text"),
        ('{"ignore_case": "yes"}', "ignore_case is 'yes', not true or false"),
        ('{"regexes_to_ignore": ["("]}', "no regular expression"),
    ],
)
def test_a_config_that_is_none(text: str, why: str) -> None:
    with pytest.raises(ParameterError, match=why):
        asked(questions(evaluation_config_params=text), QUESTIONS)


@pytest.mark.slow
def test_the_metrics_that_azures_examples_search_for(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for task, name in (("question_answering", "exact_match"), ("token_classification", "accuracy")):
        rows = write_jsonl(tmp_path / f"{task}.jsonl", sample_rows("test", task)[:8])
        words = ["--task", task, "--test_data", str(rows), "--pytorch_model_folder", str(tiny_model)]
        evaluation.main([*words, "--evaluation_result", str(tmp_path / task)])
        written = json.loads((tmp_path / task / "metrics.json").read_text())
        (run,) = mlflow.MlflowClient(store).search_runs(["0"], f"metrics.{name} >= 0")
        assert run.info.status == "FINISHED"
        assert {key: written[key] for key in run.data.metrics} == run.data.metrics
        assert set(load_task(task).scoring.published.names) <= set(run.data.metrics)
