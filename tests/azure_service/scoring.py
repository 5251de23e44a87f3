"""Serve an MLflow model as an endpoint of Azure ML does, without a scoring script of the user's or with one.

python -m tests.azure_service.scoring MODEL [SCRIPT]

A request is a line of JSON on stdin, an answer one on stdout; "ready" is the first. What is asked of the model at start
and how a request is read follow mlflow_score_script.py of Azure/azureml-assets. That script itself answers where
AZURE_SCORING_SCRIPT names it and inference-schema and azureml-ai-monitoring are installed.
"""

import json
import os
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from flask import Response
from mlflow.models import Model
from mlflow.pyfunc.scoring_server import _get_jsonable_obj

Json = dict[str, Any]


def main(folder: Path, script: str = "") -> None:
    own = os.environ.get("AZURE_SCORING_SCRIPT")
    with redirect_stdout(sys.stderr):
        answered = of_script(folder, script) if script else azures_own(folder) if own else ours(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            try:
                found = answered(json.loads(line))
                if isinstance(found, Response):
                    answer = {"status": found.status_code, "body": found.get_json()}
                else:
                    answer = {"status": 200, "body": found}
            except Exception as error:
                answer = {"status": 400, "body": {"error": f"{type(error).__name__}: {error}"}}
        print(json.dumps(answer), flush=True)


def of_script(folder: Path, script: str) -> Callable[[Json], Any]:
    """Return the `run` of a scoring script, which has started; Azure ML's server hands it the text of a request."""
    os.environ["AZUREML_MODEL_DIR"] = str(folder.parent)
    names = runpy.run_path(script)
    names["init"]()
    return lambda request: names["run"](json.dumps(request))


def azures_own(folder: Path) -> Callable[[Json], Any]:
    """Return the `run` of Azure's own script, which has started."""
    os.environ |= {"AZUREML_MODEL_DIR": str(folder.parent), "MLFLOW_MODEL_FOLDER": folder.name}
    script: Any = runpy.run_path(os.environ["AZURE_SCORING_SCRIPT"])
    script["init"]()
    return lambda request: script["run"](**request)


def ours(folder: Path) -> Callable[[Json], Any]:
    """Return what answers {"input_data": {columns, index, data}, "params": {...}} by the model, which is loaded."""
    check_example(folder)
    model = mlflow.pyfunc.load_model(str(folder))

    def answered(request: Json) -> Any:
        frame = pd.read_json(StringIO(json.dumps(request["input_data"])), orient="split", dtype=False)
        return _get_jsonable_obj(model.predict(frame, params=request.get("params")), pandas_orient="records")

    return answered


def check_example(folder: Path) -> None:
    """Read the example and the signature as the script does at start. Raises: whatever it would end with."""
    stored = Model.load(str(folder))
    if about := stored.saved_input_example_info:
        if about["type"] != "dataframe":
            raise ValueError("must provide a sample Numpy array")
        example = json.loads((folder / about["artifact_path"]).read_text())
        orient = "split" if "columns" in example else "values"
        pd.read_json(StringIO(json.dumps(example)), orient=orient, dtype=False)
    if stored.signature is not None and stored.signature.outputs is not None:
        outputs = stored.signature.outputs
        types = dict(zip(outputs.input_names(), outputs.pandas_types(), strict=True))
        pd.DataFrame(columns=outputs.input_names()).astype(types)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
