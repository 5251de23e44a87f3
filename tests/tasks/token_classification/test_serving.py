"""The MLflow model gives the words, tags, spans and entities of the evaluation component."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from finetune import evaluation
from finetune.results import serving
from finetune.tasks.token_classification.rows import WORD
from tests.conftest import sample_rows, write_jsonl
from tests.results.test_serving import ASK

TEXT = "Ada  met Émile 🙂 in Oslo\u00a0(Norway)."
# Rows of several windows, more than are predicted at a time, and words without a token.
ROWS = [row["tokens"] for row in sample_rows("test", "token_classification")[:8]]
ROWS += [["Ada", "", "\u200b", "Oslo", f"no{i}"] * (1 + i % 40) for i in range(250)]
KEYS = ("tags", "spans", "entities")


@pytest.fixture(scope="module")
def trained(trained_tags: Path) -> Path:
    return trained_tags


@pytest.fixture(scope="module")
def expected(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the evaluation component answers to ROWS, and to TEXT cut into words."""
    folder = tmp_path_factory.mktemp("asked")
    rows = write_jsonl(folder / "rows.jsonl", [{"tokens": tokens} for tokens in (*ROWS, WORD.findall(TEXT))])
    words = ["--task", "token_classification", "--test_data", str(rows)]
    words += ["--pytorch_model_folder", str(trained / "pytorch"), "--evaluation_result", str(folder / "scores")]
    evaluation.main(words)
    assert not (folder / "scores" / "metrics.json").exists()
    found = [json.loads(line) for line in (folder / "scores" / "predictions.jsonl").read_text().splitlines()]
    assert 0 < sum(len(p["entities"]) for p in found) < sum(len(p["tokens"]) for p in found)
    return found


def assert_same(answers: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> None:
    assert len(answers) == len(predictions)
    for answer, wanted in zip(answers, predictions, strict=True):
        assert answer["words"] == wanted["tokens"]
        assert answer["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
        assert [answer["tags"], answer["spans"]] == [wanted["tags"], wanted["spans"]]
        for one, other in zip(answer["entities"], wanted["entities"], strict=True):
            assert one.pop("score") == pytest.approx(other["score"], abs=1e-5)
            assert one == {key: value for key, value in other.items() if key != "score"}


@pytest.mark.slow
@pytest.mark.thorough
def test_where_finetune_is_not_installed(trained: Path, expected: list[dict[str, Any]]) -> None:
    frame = {"columns": ["input_string"], "data": [[words] for words in ROWS]}
    asked = {
        "frame": (frame, None),
        "records": ([{"input_string": words} for words in ROWS[:20]], {}),
        "single": ([{"input_string": ROWS[0]}], None),
        "columns": ({"input_string": ROWS[:20]}, None),
        "text": ([{"input_string": " ".join(ROWS[0])}, {"input_string": TEXT}], None),
        "mixed": ([{"input_string": ROWS[1]}, {"input_string": TEXT}], None),
        "empty": ({**frame, "data": []}, None),
        "nothing": ([{"input_string": ""}, {"input_string": []}], None),
        "others": ([{"input_string": None}, {"input_string": ["a", 3]}, {"input_string": "a"}], None),
        "missing column": ([{"texts": "a"}], None),
        "two names": ([{"input_string": "a", "tokens": ["a"]}], None),
        "other name": ([{"tokens": ["Ada"]}, {"tokens": "Bob."}, {"input_string": "Ada"}, {"text": "Bob."}], None),
        "spare name": ([{"tokens": ["Ada", "Bob"], "text": "Ada and Bob"}], None),
    }
    words = [sys.executable, "-I", "-c", ASK, str(trained / "mlflow")]
    ran = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, cwd=trained, check=False)
    assert ran.returncode == 0, ran.stderr
    served = json.loads(ran.stdout)
    assert served["code"] == str(trained / "mlflow" / "code" / "finetune" / "__init__.py")
    assert served["loaded"] == []
    assert_same(served["frame"], expected[:-1])
    assert_same(served["records"], expected[:20])
    assert_same(served["single"], expected[:1])
    assert_same(served["columns"], expected[:20])
    assert_same(served["mixed"][:1], expected[1:2])
    assert_same(served["text"][:1], expected[:1])  # the sample's sentences have spaces around every sign
    for answer in (served["text"][1], served["mixed"][1]):
        assert (answer["words"], answer["tags"]) == (expected[-1]["tokens"], expected[-1]["tags"])
        assert [TEXT[start:end] for start, end in answer["spans"]] == answer["words"]
        assert [TEXT[e["start"] : e["end"]] for e in answer["entities"]] == [e["text"] for e in answer["entities"]]
    assert served["empty"] == []
    assert [answer["words"] for answer in served["nothing"]] == [[], []]
    assert served["others"].startswith(
        "not text or a list of words: input_string of row 0 is None, input_string of row 1 is ['a', 3]; several"
    )
    assert "missing inputs: no column input_string or tokens or text" in served["missing column"]
    assert served["two names"].startswith("row 0 has input_string and tokens, which mean the same")
    assert [answer["words"] for answer in served["other name"]] == [["Ada"], ["Bob", "."], ["Ada"], ["Bob", "."]]
    assert [answer["words"] for answer in served["spare name"]] == [["Ada", "Bob"]]


@pytest.mark.slow
def test_signature(trained: Path) -> None:
    signature = mlflow.models.get_model_info(str(trained / "mlflow")).signature
    found = [(c["name"], c["type"], c["required"]) for c in signature.inputs.to_dict()]
    assert found == [("input_string", "any", False), ("tokens", "any", False), ("text", "any", False)]
    assert signature.outputs is None


@pytest.fixture(scope="module")
def model(trained: Path) -> Any:
    return mlflow.pyfunc.load_model(str(trained / "mlflow"))


@pytest.fixture(scope="module")
def client(model: Any) -> Any:
    """MLflow's own application, without the port."""
    from mlflow.pyfunc.scoring_server import init
    from starlette.testclient import TestClient

    return TestClient(init(model))


@pytest.mark.slow
def test_as_a_server_reads_and_writes(client: Any, expected: list[dict[str, Any]]) -> None:
    body = {"dataframe_split": {"columns": ["input_string"], "data": [[ROWS[0]], [TEXT]]}}
    reply = client.post("/invocations", json=body)
    assert reply.status_code == 200, reply.text
    answers = reply.json()["predictions"]
    assert_same(answers[:1], expected[:1])
    assert answers[1]["tags"] == expected[-1]["tags"]
    refused = client.post("/invocations", json={"dataframe_records": [{"input_string": 3}]})
    assert refused.status_code == 400
    assert "not text or a list of words: input_string of row 0 is 3" in refused.json()["message"]


# What is asked, in any of the forms that docs/tutorial.md lists, and the words of each answer.
TEXTS = ["Ada met Bob.", "He stayed."], [["Ada", "met", "Bob", "."], ["He", "stayed", "."]]
SHORT = ["Ada", "Bob."], [["Ada"], ["Bob", "."]]  # nothing but their place tells them from words
CHINESE = ["你好。", "再见"], [["你", "好", "。"], ["再", "见"]]
WORDS = [["Ada", "met", "Bob."]], [["Ada", "met", "Bob."]]
RAGGED = [["Ada", "met"], ["Bob."]], [["Ada", "met"], ["Bob."]]
MIXED = ["Ada met Bob.", ["He", "stayed."]], [["Ada", "met", "Bob", "."], ["He", "stayed."]]
SPACED = [[["Il", "a", "10 000", "euros"]]], [["Il", "a", "10 000", "euros"]]
NO_BREAK = [["Il", "a", "10\u00a0000"]], [["Il", "a", "10\u00a0000"]]
NOTHING = [[]], [[]]
FORMS = {
    "inputs": lambda given: {"inputs": given},
    "inputs by column": lambda given: {"inputs": {"input_string": given}},
    "inputs by row": lambda given: {"inputs": [{"input_string": one} for one in given]},
    "instances": lambda given: {"instances": given},
    "instances by row": lambda given: {"instances": [{"input_string": one} for one in given]},
    "records": lambda given: {"dataframe_records": [{"input_string": one} for one in given]},
    "tokens": lambda given: {"dataframe_records": [{"tokens": one} for one in given]},
    "split": lambda given: {"dataframe_split": {"columns": ["input_string"], "data": [[one] for one in given]}},
}
UNEVEN = "instances by row", (RAGGED, MIXED)  # of which MLflow makes an array


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_an_answer_for_each_text(client: Any, form: str) -> None:
    for asked in (TEXTS, SHORT, CHINESE, WORDS, RAGGED, MIXED, SPACED, NO_BREAK, NOTHING):
        for count in {1, len(asked[0])}:  # one text, too
            given, wanted = asked[0][:count], asked[1][:count]
            reply = client.post("/invocations", json=FORMS[form](given))
            if form == UNEVEN[0] and asked in UNEVEN[1] and count > 1:
                assert reply.status_code == 400
                continue
            assert reply.status_code == 200, reply.text
            assert [answer["words"] for answer in reply.json()["predictions"]] == wanted, given


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_texts_in_the_place_of_words(client: Any, form: str) -> None:
    reply = client.post("/invocations", json=FORMS[form]([["Ada met Bob.", "Ada."]]))
    assert reply.status_code == 400
    message = reply.json()["message"]
    assert f"not text or a list of words: {'tokens' if form == 'tokens' else 'input_string'} of row 0 is" in message
    for way in ('{"inputs": ["Ada lives.", "So does Bob."]}', '{"inputs": [["Ada", "lives"]]}'):
        assert way in message
        assert client.post("/invocations", json=json.loads(way)).status_code == 200


@pytest.mark.slow
def test_no_texts(client: Any, model: Any) -> None:
    for body in ({"inputs": []}, {"inputs": {"input_string": []}}, {"instances": []}):
        reply = client.post("/invocations", json=body)
        assert (reply.status_code, reply.json()) == (200, {"predictions": []})
    assert model.predict({"input_string": []}).empty


@pytest.mark.slow
def test_forms_of_python(model: Any) -> None:
    import numpy as np
    import pandas as pd

    for texts in (TEXTS, SHORT):
        column = {"input_string": texts[0]}
        series, array = pd.Series(texts[0], name="input_string"), {"input_string": np.array(texts[0])}
        for given in (column, pd.DataFrame(column), series, array, [{"input_string": text} for text in texts[0]]):
            assert model.predict(given)["words"].tolist() == texts[1]
    for words in (WORDS, RAGGED):
        column = {"input_string": words[0]}
        for given in (column, pd.DataFrame(column), [{"input_string": some} for some in words[0]]):
            assert model.predict(given)["words"].tolist() == words[1]
            assert model.predict(words[0])["words"].tolist() == words[1]
    assert model.predict(TEXTS[0])["words"].tolist() == TEXTS[1]
    assert [*model.predict(TEXTS[0]).columns] == ["tags", "words", "scores", "spans", "entities"]


@pytest.mark.parametrize(
    ("asked", "has_gpu", "device"),
    [("", True, "cuda"), ("", False, "cpu"), ("1", True, "cuda:1"), ("-1", True, "cpu"), ("cpu", True, "cpu")],
)
def test_the_device_that_mlflow_is_told(
    asked: str, has_gpu: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", asked)
    assert serving.device(has_gpu) == device


def test_a_device_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", "gpu")
    with pytest.raises(mlflow.MlflowException, match="not the number of a GPU"):
        serving.device(has_gpu=True)
