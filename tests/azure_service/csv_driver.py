"""Answer the rows of a folder's CSV files by an MLflow model: python csv_driver.py MODEL FOLDER SIZE PREDICTIONS

SIZE files are answered at a time. A row of the predictions has the number of a row, its answer and its file. Columns
are read as the types of the model's signature, where pandas has these.
"""

import csv
import json
import sys
from itertools import islice
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.pyfunc.scoring_server import _get_jsonable_obj
from mlflow.types import DataType


def main(model_folder: Path, data: Path, size: int, predictions: Path) -> None:
    model = mlflow.pyfunc.load_model(str(model_folder))
    files = iter(sorted(data.iterdir()))  # folders in it are not looked into
    with predictions.open("w", encoding="utf-8", newline="") as target:
        while mini_batch := list(islice(files, size)):
            print(f"mini batch of {len(mini_batch)} files", flush=True)
            for file in mini_batch:
                csv.writer(target).writerows(
                    (i, json.dumps(one), file.name) for i, one in enumerate(answers(model, file))
                )


def answers(model: mlflow.pyfunc.PyFuncModel, file: Path) -> list[object]:
    if file.suffix != ".csv":
        sys.exit(f"Error processing input file: '{file}'. File type '{file.suffix[1:]}' is not supported.")
    inputs = model.metadata.get_input_schema()
    scalar = all(isinstance(column.type, DataType) for column in inputs.inputs)
    types = dict(zip(inputs.input_names(), inputs.pandas_types(), strict=True)) if scalar else None
    frame = pd.read_csv(file, dtype=types)
    try:
        found: list[object] = _get_jsonable_obj(model.predict(frame), pandas_orient="records")
    except Exception as error:
        sys.exit(f"Error processing input file: '{file}'. Exception: {error}")
    assert len(found) == len(frame)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
