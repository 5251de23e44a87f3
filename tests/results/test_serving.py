"""The MLflow model answers as the evaluation component does, where `finetune` isn't installed."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from finetune import evaluation, preprocess, run
from tests.conftest import finetune_words, sample_rows, write_jsonl
from tests.servers import ask, free_port, install, listening

TASK = ["--task", "question_answering"]
LORA = {"apply_lora": "true", "merge_lora_weights": "false", "lora_r": 4}
# Contexts of many windows, and more rows than are predicted at a time.
ROWS = [{key: row[key] for key in ("question", "context")} for row in sample_rows("test")[:8]] + [
    {"question": "Who wrote it?", "context": f"Ada wrote page {i}, Émile 🙂 page {i + 1}."} for i in range(250)
]
ASK = """
import json, sys
from pathlib import Path

sys.path = [folder for folder in sys.path if not Path(folder, "finetune").is_dir()]  # as if it were not installed
try:
    import finetune
except ImportError:
    pass
else:
    raise SystemExit(f"finetune comes from {finetune.__file__}")

import mlflow, pandas

model = mlflow.pyfunc.load_model(sys.argv[1])
answers = {}
for name, (data, params) in json.load(sys.stdin).items():
    data = pandas.DataFrame(**data) if isinstance(data, dict) and "columns" in data else data
    try:
        answers[name] = model.predict(data, params=params).to_dict("records")
    except mlflow.MlflowException as error:
        answers[name] = error.message

import finetune
loaded = sorted(sys.modules.keys() & {"datasets", "evaluate", "peft"})
example = model.input_example.to_dict("records")
print(json.dumps({**answers, "code": finetune.__file__, "loaded": loaded, "example": example}))
"""


@pytest.fixture(scope="module", params=["full", pytest.param("lora", marks=[pytest.mark.slow, pytest.mark.thorough])])
def trained(request: pytest.FixtureRequest, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on data with unanswerable questions: `pytorch/` and `mlflow/`."""
    folder = tmp_path_factory.mktemp("served")
    words = [*TASK, "--model_selector_output", str(prepared / "model"), "--output_dir", str(folder / "data")]
    for split in ("train", "validation", "test"):
        rows = sample_rows(split)[:24]
        for row in rows[::3]:
            row["answers"] = {"text": [], "answer_start": []}
        words += [f"--{split}_file_path", str(write_jsonl(folder / f"{split}.jsonl", rows))]
    preprocess.main([*words, "--max_seq_length", "64", "--doc_stride", "16"])
    shutil.copytree(prepared / "model", folder / "model")
    given = LORA if request.param == "lora" else {}
    run.main(finetune_words(folder, folder, max_steps=2, per_device_train_batch_size=16, **given))
    return folder


def evaluated(trained: Path, **parameters: Any) -> list[dict[str, Any]]:
    """What the evaluation component answers to ROWS."""
    rows = write_jsonl(trained / "rows.jsonl", ROWS)
    words = [*TASK, "--test_data", str(rows), "--pytorch_model_folder", str(trained / "pytorch")]
    words += [word for name, value in parameters.items() for word in (f"--{name}", str(value))]
    evaluation.main([*words, "--evaluation_result", str(trained / "scores")])
    lines = (trained / "scores" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def expected(trained: Path) -> dict[str, Any]:
    """Evaluation's answers with the stored threshold and with another one: about half of all answers withheld."""
    stored = evaluated(trained)
    scores = sorted(prediction["null_score"] for prediction in stored)
    # In the widest gap, since batches of other lengths round differently.
    below = max(range(len(scores) // 3, 2 * len(scores) // 3), key=lambda i: scores[i + 1] - scores[i])
    threshold = (scores[below] + scores[below + 1]) / 2
    other = evaluated(trained, null_threshold=threshold)
    withheld = [sum(p["text"] == "" for p in found) for found in (stored, other)]
    assert withheld[0] != withheld[1] and 0 < withheld[1] < len(ROWS)
    return {"stored": stored, "other": other, "threshold": threshold}


def requests(threshold: float) -> dict[str, tuple[Any, Any]]:
    """name -> (data, parameters), each with one answer."""
    split = {"columns": ["question", "context"], "data": [[row["question"], row["context"]] for row in ROWS]}
    null = {"question": None, "context": "Ada."}
    return {
        "frame": (split, None),
        "records": (ROWS[:20], {}),
        "single": (ROWS[0], None),
        "columns": ({key: [row[key] for row in ROWS[:20]] for key in ROWS[0]}, None),
        "one question": ({"question": ROWS[0]["question"], "context": [row["context"] for row in ROWS[:2]]}, None),
        "other lengths": ({"question": ["Who?", "When?"], "context": ["Ada."]}, None),
        "two contexts": ([{"question": "Who?", "context": ["Ada.", "Bob."]}], None),
        "null parameter": (ROWS[:2], {"null_threshold": None}),
        "other": (split, {"null_threshold": threshold}),
        "whole number": (ROWS[:20], {"null_threshold": 1000}),
        "unknown parameter": (ROWS[:2], {"nul_threshold": threshold}),
        "wrong parameter": (ROWS, {"null_threshold": "high"}),
        "empty": ({**split, "data": []}, None),
        "empty texts": ([{"question": "", "context": "Ada."}, {"question": "Who?", "context": ""}], None),
        "missing column": ([{"question": "Who?"}], None),
        "null": ([ROWS[0], null, {"question": "Who?"}], None),
        "many nulls": ([null] * 9, None),
        "too long": ([{"question": "Who?", "context": "Ada. " * 200_000}], None),
        "many rows": ([{"question": "", "context": ""}] * 10_001, {"max_request_rows": 20_000}),
    }


@pytest.fixture(scope="module")
def served(trained: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """The MLflow model's answers, from a process in which finetune can't be imported but from the model's folder."""
    words = [sys.executable, "-I", "-c", ASK, str(trained / "mlflow")]
    asked = json.dumps(requests(expected["threshold"]))
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_LOGGING_LEVEL"}  # finetune silences it
    ran = subprocess.run(words, input=asked, env=env, capture_output=True, text=True, cwd=trained, check=False)
    assert ran.returncode == 0, ran.stderr
    answers: dict[str, Any] = json.loads(ran.stdout)
    return {**answers, "said": ran.stderr}


def assert_same(answers: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> None:
    exact = [(answer["answer"], answer["start"], answer["end"]) for answer in answers]
    assert exact == [(p["text"], p["start"], p["end"]) for p in predictions]
    assert [a["score"] for a in answers] == pytest.approx([p["score"] for p in predictions], abs=1e-5)


def test_code_comes_from_the_model_folder(trained: Path, served: dict[str, Any]) -> None:
    assert served["code"] == str(trained / "mlflow" / "code" / "finetune" / "__init__.py")
    assert served["loaded"] == []  # what requirements.txt of the model leaves out


def test_answers_are_those_of_evaluation(served: dict[str, Any], expected: dict[str, Any]) -> None:
    assert_same(served["frame"], expected["stored"])
    assert_same(served["records"], expected["stored"][:20])
    assert_same(served["single"], expected["stored"][:1])
    assert_same(served["columns"], expected["stored"][:20])
    assert_same(served["one question"][:1], expected["stored"][:1])
    assert len(served["one question"]) == 2


def test_threshold_of_a_request(served: dict[str, Any], expected: dict[str, Any]) -> None:
    assert_same(served["other"], expected["other"])
    assert_same(served["null parameter"], expected["stored"][:2])
    assert "" not in [answer["answer"] for answer in served["whole number"]]
    assert "Invalid parameters" in served["wrong parameter"] and "null_threshold" in served["wrong parameter"]
    assert_same(served["unknown parameter"], expected["stored"][:2])
    assert "Unrecognized params ['nul_threshold'] are ignored" in served["said"]


def test_rows_without_text(served: dict[str, Any]) -> None:
    assert served["empty"] == []
    assert [answer["answer"] for answer in served["empty texts"]][1] == ""
    assert "missing inputs ['context']" in served["missing column"]
    assert served["other lengths"].startswith("not text: question of row 0 is ['Who?', 'When?'], context of row 0 ")
    assert served["two contexts"].startswith("not text: context of row 0 is ['Ada.', 'Bob.']; one question and its ")
    assert served["null"].startswith("not text: question of row 1 is None, context of row 2 is nan (an empty cell); ")
    assert "question of row 4 is None and 4 more; " in served["many nulls"]


def test_what_is_too_much(served: dict[str, Any]) -> None:
    """It is refused at once; a request can't raise the limit."""
    said = "the request has 1,000,004 characters, where max_request_characters is 1,000,000; send less at a time, or "
    assert served["too long"].startswith(said)
    assert served["many rows"].startswith("the request has 10,001 rows, where max_request_rows is 10,000; send less")


def test_many_ask_at_once(trained: Path, expected: dict[str, Any]) -> None:
    """What waits is computed together; each has its own answers, with the threshold that it asked for."""
    import mlflow

    model = mlflow.pyfunc.load_model(str(trained / "mlflow"))
    named = [(name, i) for i in range(40) for name in ("stored", "other")]

    def ask(name: str, i: int) -> dict[str, Any]:
        params = {"null_threshold": expected["threshold"]} if name == "other" else None
        (answer,) = model.predict(ROWS[i : i + 1], params=params).to_dict("records")
        return dict(answer)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, *zip(*named, strict=True)))
    assert_same(answers, [expected[name][i] for name, i in named])


def test_limits_are_saved_with_the_model_and_set_by_who_serves_it(trained: Path) -> None:
    import mlflow

    flavor = mlflow.models.Model.load(str(trained / "mlflow")).flavors["python_function"]
    assert flavor["config"] == {"max_request_rows": 10_000, "max_request_characters": 1_000_000}
    model = mlflow.pyfunc.load_model(str(trained / "mlflow"), model_config={"max_request_rows": 2})
    assert len(model.predict(ROWS[:2])) == 2
    with pytest.raises(mlflow.MlflowException, match="3 rows, where max_request_rows is 2") as caught:
        model.predict(ROWS[:3])
    assert caught.value.get_http_status_code() == 413


def test_signature_and_example(trained: Path, served: dict[str, Any]) -> None:
    import mlflow

    signature = mlflow.models.get_model_info(str(trained / "mlflow")).signature
    stored = json.loads((trained / "pytorch" / "config.json").read_text())["finetune"]["state"]["null_threshold"]
    assert signature.inputs.to_dict() == [
        {"type": "string", "name": name, "required": True} for name in ("question", "context")
    ]
    assert [(column.name, column.type.name) for column in signature.outputs] == [
        ("answer", "string"), ("score", "double"), ("start", "long"), ("end", "long"),
    ]  # fmt: skip
    assert [(p.name, p.dtype.name, p.default) for p in signature.params] == [("null_threshold", "double", stored)]
    assert stored != 0
    assert served["example"][0].keys() == {"question", "context"}


# --- over HTTP, in an environment made from the model's own requirements ---


@pytest.fixture(scope="module", params=["linked", pytest.param("installed", marks=pytest.mark.thorough)])
def environment(request: pytest.FixtureRequest, trained: Path) -> Iterator[Path]:
    """The bin folder of a venv with nothing but requirements.txt of the model: linked from here, or by pip."""
    folder = trained / "environment"
    requirements = trained / "mlflow" / "requirements.txt"
    venv.create(folder, with_pip=request.param == "installed", symlinks=True)
    if request.param == "installed":
        install(folder / "bin", requirements)
    else:
        link(folder, requirements)
    yield folder / "bin"
    shutil.rmtree(folder)  # 1 GB


def link(folder: Path, requirements: Path) -> None:
    """Links to the packages of this environment that pip would install, and their commands."""
    (site,) = folder.glob("lib/python*/site-packages")
    for package in needed(requirements.read_text().splitlines()):
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
        for command in package.entry_points.select(group="console_scripts"):
            call = f"import sys; from {command.module} import {command.attr}; sys.exit({command.attr}())"
            (folder / "bin" / command.name).write_text(f"#!{folder}/bin/python\n{call}\n")
            (folder / "bin" / command.name).chmod(0o755)


def needed(lines: Sequence[str]) -> list[Distribution]:
    """What is installed here of these requirements, which it must meet, and of all that they require in turn."""
    found: dict[tuple[str, str], Distribution] = {}
    asked = [(Requirement(line), "") for line in lines if line.strip()]
    while asked:
        requirement, extra = asked.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        package = distribution(requirement.name)
        assert requirement.specifier.contains(package.version, prereleases=True), f"{requirement}: {package.version}"
        for wanted in {"", *requirement.extras}:
            if (package.name, wanted) not in found:
                found[package.name, wanted] = package
                asked += [(Requirement(line), wanted) for line in package.requires or []]
    return list({package.name: package for package in found.values()}.values())


@contextlib.contextmanager
def server(environment: Path, model: Path) -> Iterator[str]:
    """The address of `mlflow models serve`, as it runs in that environment."""
    port = free_port()
    words = [
        str(environment / "mlflow"),
        "models",
        "serve",
        "-m",
        str(model),
        "--env-manager",
        "local",
        "-p",
        str(port),
    ]
    env = {"PATH": f"{environment}:{os.environ['PATH']}"}
    with listening(words, env, f"http://127.0.0.1:{port}/ping", model.parent / "server.log"):
        yield f"http://127.0.0.1:{port}/invocations"


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["full"], indirect=True)
def test_server_in_its_own_environment(trained: Path, environment: Path, expected: dict[str, Any]) -> None:
    installed = subprocess.run([environment / "python", "-I", "-c", "import finetune"], cwd=trained, check=False)
    assert installed.returncode == 1
    split = {"columns": ["question", "context"], "data": [[row["question"], row["context"]] for row in ROWS]}
    with server(environment, trained / "mlflow") as address:
        for body, wanted in (
            ({"dataframe_split": split}, expected["stored"]),
            ({"dataframe_records": ROWS}, expected["stored"]),
            ({"inputs": ROWS[:3]}, expected["stored"][:3]),
            ({"inputs": {key: [row[key] for row in ROWS[:3]] for key in ROWS[0]}}, expected["stored"][:3]),
            ({"instances": ROWS[:3]}, expected["stored"][:3]),
            ({"dataframe_split": split, "params": {"null_threshold": expected["threshold"]}}, expected["other"]),
            ({"dataframe_split": {**split, "data": []}}, []),
        ):
            status, reply = ask(address, body)
            assert status == 200, reply
            assert_same(reply["predictions"], wanted)
        example = json.loads((trained / "mlflow" / "serving_input_example.json").read_text())
        assert ask(address, example)[0] == 200
        for body, refused, said in (
            ({"dataframe_records": [{"question": "Who?"}]}, 400, "missing inputs ['context']"),
            ({"dataframe_records": [{**ROWS[0], "question": None}]}, 400, "not text: question of row 0 is None"),
            ({"dataframe_records": ROWS[:1], "params": {"null_threshold": "high"}}, 400, "Invalid parameters"),
            (
                {"dataframe_records": [{**ROWS[0], "context": "a" * 3_000_000}]},
                413,
                "max_request_characters is 1,000,000",
            ),
        ):
            status, reply = ask(address, body)
            assert status == refused and said in reply["message"] and "stack_trace" not in reply, reply
