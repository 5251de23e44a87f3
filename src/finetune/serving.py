"""The MLflow model: `finetune` itself travels inside, so that what is served is decoded as it was evaluated.

MLflow runs this file when it loads the model (models from code).
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

BATCH_SIZE = 8


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """DataFrame or list of records in, DataFrame of predictions out, in the same order."""

    def load_context(self, context: Any) -> None:
        """Called once by MLflow; `context.artifacts["model"]` is the folder of weights, config and tokenizer."""
        import torch

        from finetune.model import STATE_KEY, load_model, load_tokenizer
        from finetune.tasks import load_task

        folder = Path(context.artifacts["model"])
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))[STATE_KEY]
        self.task = load_task(stored["task"])
        self.state = self.task.state(**stored["state"])
        self.tokenizer = load_tokenizer(folder)
        model, _ = load_model(folder, self.task)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        from finetune.prediction import predict_rows

        records = model_input if isinstance(model_input, list) else model_input.to_dict("records")
        rows = self.task.serve(records)
        predictions = predict_rows(self.model, self.tokenizer, rows, self.task, self.state, BATCH_SIZE)
        return pd.DataFrame([self.task.present(p) for p in predictions], columns=list(self.task.output_types))


mlflow.models.set_model(ServedModel())
