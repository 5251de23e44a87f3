"""Serve an MLflow model behind Azure ML's inference server, which calls `init` once and `run` for each request."""

import json
import os
from contextlib import suppress
from functools import cache
from glob import glob
from pathlib import Path

import mlflow
from flask import Response
from mlflow.pyfunc import PyFuncModel, scoring_server


def init() -> None:
    """Load the model, which is somewhere below AZUREML_MODEL_DIR."""
    model()


@cache
def model() -> PyFuncModel:
    """Return the model, loaded at the first call."""
    root = Path(os.environ["AZUREML_MODEL_DIR"])
    [found] = glob("**/MLmodel", root_dir=root, recursive=True)  # noqa: PTH207 (Path.glob follows no links)
    return mlflow.pyfunc.load_model(str((root / found).parent.resolve()))  # MLflow takes no links


def run(raw: str) -> Response:
    """Answer as MLflow's server does, and a request in Azure ML's form, {"input_data": ...}, without a key around."""
    raw, azures = translated(raw)
    try:
        answer = scoring_server.invocations(raw, "application/json", model(), model().metadata.get_input_schema())
    except mlflow.MlflowException as error:
        return Response(error.serialize_as_json(), error.get_http_status_code(), mimetype="application/json")
    text = json.dumps(json.loads(answer.response)["predictions"]) if azures else answer.response
    return Response(text, answer.status, mimetype=answer.mimetype)


def translated(raw: str) -> tuple[str, bool]:
    """Return the request as MLflow has it, and whether it was in Azure ML's form; MLflow says what is wrong with it."""
    with suppress(ValueError):
        request = json.loads(raw)
        if isinstance(request, dict) and "input_data" in request:
            return json.dumps({"dataframe_split": request.pop("input_data"), **request}), True
    return raw, False
