"""What Azure ML's no-code deployments read of a model: it starts, and answers the requests of the public examples.

Its scoring script (assets/inference/environments/mlflow-py312-inference of Azure/azureml-assets) is run itself where
AZURE_SCORING_SCRIPT names it and inference-schema and azureml-ai-monitoring are installed. What serves batch endpoints
is not public: by Azure's documentation it reads each CSV with pandas and hands it to `predict`.
"""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.models import Model
from mlflow.pyfunc.scoring_server import _get_jsonable_obj

from finetune import run
from finetune.azure.scoring import score
from tests.conftest import finetune_words

SCRIPT = os.environ.get("AZURE_SCORING_SCRIPT", "")
QUESTIONS = {"columns": ["question", "context"], "index": [0, 1], "data": [["Who?", "Ada did."], ["When?", "In 1843."]]}
SENTENCES = [["Ada", "lives", "in", "Oslo"], ["Bob"]]
WORDS = {"columns": ["tokens"], "index": [0, 1], "data": [[words] for words in SENTENCES]}
# Of each task: the request of the public notebook, and what the first column of the answer is.
# Files of a batch endpoint: data sets as pandas writes them, and the notebook's, with its index; and the words of each.
FILES = {
    "question_answering": (
        [
            "id,title,question,context,answers\n"
            "a,T,Who did it?,Ada did it.,\"{'text': array(['Ada'], dtype=object), 'answer_start': array([0])}\"\n"
            "b,T,When?,It was in 1843.,\"{'text': [], 'answer_start': []}\"\n"
        ],
        [],
    ),
    "token_classification": (
        [
            '"","input_string"\n"0","Ada lives."\n"1","Bob"\n',
            "id,tokens,text,ner_tags_str\n0,\"['Ada' 'lives']\",Ada lives,\"['B-PER', 'O']\"\n1,['Bob'],,['O']\n",
            'tokens\n"[""Ada"", ""lives""]"\n"[""Bob""]"\n',
        ],
        [[["Ada", "lives", "."], ["Bob"]], [["Ada", "lives"], ["Bob"]], [["Ada", "lives"], ["Bob"]]],
    ),
    "generative_question_answering": (["question,context\nWho did it?,Ada did it.\nWhen?,It was in 1843.\n"], []),
    "translation": (["id,en,tav\n0,The dog sees a cat.,Baron mirau vide.\n1,A king.,Rasko.\n"], []),
}
TEXTS = {"columns": ["en"], "index": [0, 1], "data": [["The dog sees a cat."], ["A king."]]}
REQUESTS = {
    "question_answering": (QUESTIONS, "answer"),
    "generative_question_answering": (QUESTIONS, "answer"),
    "token_classification": (WORDS, "tags"),
    "translation": (TEXTS, "translation"),
}
PREPARED = {
    "question_answering": "prepared", "generative_question_answering": "prepared_answers",
    "token_classification": "prepared_tags", "translation": "prepared_pairs",
}  # fmt: skip
PARAMS = {  # which change nothing here
    "question_answering": {"null_threshold": 3.0}, "generative_question_answering": {"num_beams": 1},
    "translation": {"num_beams": 1},
}  # fmt: skip


WRITTEN = {task: [pytest.mark.thorough] for task in ("generative_question_answering", "translation")}


@pytest.fixture(scope="module", params=[pytest.param(task, marks=WRITTEN.get(task, [])) for task in REQUESTS])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A task, and a run of it."""
    source = request.getfixturevalue(PREPARED[request.param])
    folder = tmp_path_factory.mktemp("scored")
    run.main(finetune_words(source, folder, max_steps=1, per_device_train_batch_size=8))
    return request.param, folder / "mlflow"


@pytest.mark.slow
def test_what_the_scoring_script_asks_of_a_model(trained: tuple[str, Path]) -> None:
    """Without a DataFrame for example it makes NumPy arrays of the values, and of each output an empty column."""
    task, folder = trained
    stored = Model.load(str(folder))
    assert stored.saved_input_example_info["type"] == "dataframe"
    example = json.loads((folder / stored.saved_input_example_info["artifact_path"]).read_text())
    assert "columns" in example  # it then reads it in the split orient
    read = pd.read_json(StringIO(json.dumps(example)), orient="split", dtype=False)
    assert stored.signature is not None
    if stored.signature.outputs is not None:
        pd.DataFrame(columns=stored.signature.outputs.input_names()).astype(
            dict(zip(stored.signature.outputs.input_names(), stored.signature.outputs.pandas_types(), strict=True))
        )
    model = mlflow.pyfunc.load_model(str(folder))
    request, first = REQUESTS[task]
    for frame in (read, pd.read_json(StringIO(json.dumps(request)), orient="split", dtype=False)):
        answers = _get_jsonable_obj(model.predict(frame, params=None), pandas_orient="records")
        assert len(answers) == len(frame) and next(iter(answers[0])) == first
        json.dumps(answers)


@pytest.mark.slow
@pytest.mark.parametrize("scalar", [False, True])
def test_the_files_of_a_batch_endpoint(trained: tuple[str, Path], tmp_path: Path, scalar: bool) -> None:
    """An answer for each row, whatever other columns there are; an empty cell is an error with its row."""
    task, folder = trained
    if scalar:  # as docs/azure.md has it, for a driver that reads the types of the signature
        folder = Path(shutil.copytree(folder, tmp_path / "scalar"))
        description = folder / "MLmodel"
        description.write_text(description.read_text().replace('"any"', '"string"'))
    model = mlflow.pyfunc.load_model(str(folder))
    inputs = model.metadata.signature.inputs
    types = dict(zip(inputs.input_names(), inputs.pandas_types(), strict=True)) if scalar else None
    files, words = FILES[task]
    frames = [pd.read_csv(StringIO(text), dtype=types) for text in files]
    answers = [model.predict(frame) for frame in frames]
    assert [len(found) for found in answers] == [2] * len(files)
    if task == "token_classification":
        assert [found["words"].tolist() for found in answers] == words
    elif task == "question_answering":
        assert answers[0].iloc[0]["answer"] in "Ada did it."
    name = {"token_classification": "tokens", "translation": "en"}.get(task, "context")
    holed = frames[-1].copy()
    holed.loc[1, name] = float("nan")
    with pytest.raises(mlflow.MlflowException, match=rf"{name} of row 1 is nan \(an empty cell\)"):
        model.predict(holed)


@pytest.mark.slow
def test_limits_of_an_environment(trained: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever program serves the model: MLflow's server alone hands them on."""
    task, folder = trained
    monkeypatch.setenv("SERVING_MODEL_CONFIG", '{"max_request_rows": 1, "device": "cpu"}')
    model = mlflow.pyfunc.load_model(str(folder))
    with pytest.raises(mlflow.MlflowException, match="2 rows, where max_request_rows is 1;"):
        model.predict(pd.read_csv(StringIO(FILES[task][0][0])))


@pytest.fixture
def script(trained: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[str, ModuleType]:
    """A task, and Azure's own scoring script that has started with its model."""
    if not SCRIPT or find_spec("inference_schema") is None:
        pytest.skip("AZURE_SCORING_SCRIPT doesn't name the script, or inference-schema is not installed")
    task, folder = trained
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(folder.parent))
    monkeypatch.setenv("MLFLOW_MODEL_FOLDER", folder.name)
    spec = importlib.util.spec_from_file_location(f"azure_scoring_of_{task}", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    module.init()
    return task, module


@pytest.mark.slow
def test_azures_own_script_answers_the_notebooks_requests(script: tuple[str, Any]) -> None:
    task, module = script
    request, first = REQUESTS[task]
    answers = module.run(input_data=request)
    assert len(answers) == 2 and next(iter(answers[0])) == first
    if task == "token_classification":
        assert [answer["words"] for answer in answers] == SENTENCES
        texts = {"columns": ["input_string"], "index": [0, 1], "data": [["Ada lives."], ["Bob"]]}
        assert [a["words"] for a in module.run(input_data=texts)] == [["Ada", "lives", "."], ["Bob"]]
    else:
        assert module.run(input_data=request, params=PARAMS[task]) == answers


@pytest.fixture
def own(trained: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A task whose model our scoring script has loaded, from a folder that is a link."""
    task, folder = trained
    (tmp_path / "model").symlink_to(folder)
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path))
    score.init()
    yield task
    score.model.cache_clear()


def scored(body: object) -> tuple[int, Any]:
    """Status and reply of our scoring script."""
    answer = score.run(body if isinstance(body, str) else json.dumps(body))
    return answer.status_code, answer.get_json()


@pytest.mark.slow
def test_our_own_script_answers_in_azures_form_and_in_mlflows(own: str) -> None:
    request, first = REQUESTS[own]
    status, answers = scored({"input_data": request})
    assert status == 200 and len(answers) == 2 and next(iter(answers[0])) == first
    split = {key: value for key, value in request.items() if key != "index"}
    records = [dict(zip(split["columns"], row, strict=True)) for row in split["data"]]
    assert scored({"input_data": split, "params": None}) == (200, answers)
    for body in ({"dataframe_split": request}, {"dataframe_records": records}, {"inputs": records}):
        assert scored(body) == (200, {"predictions": answers})


@pytest.mark.slow
def test_our_own_script_says_what_is_wrong_with_a_request(own: str) -> None:
    request, _ = REQUESTS[own]
    for body, refused, said in (
        ("{", 400, "JSON"),
        ([1], 400, "must be a JSON dictionary"),
        ({"input_data": [["Who?"]]}, 400, "must be a dictionary"),
        ({"input_data": {"columns": ["x"], "data": [["y"]]}}, 400, "missing inputs"),
        ({"input_data": request, "params": {"max_request_rows": 10**9}}, 200, ""),
        (
            {"input_data": {"columns": request["columns"], "data": request["data"] * 5001}},
            413,
            "max_request_rows is 10,000",
        ),
    ):
        status, reply = scored(body)
        assert (status, said in str(reply)) == (refused, True), reply


@pytest.mark.slow
def test_our_own_script_starts_on_one_model_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="not enough values"):
        score.init()
