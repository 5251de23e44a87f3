"""What the preflight says of each family, with a head for questions; what make test-ort runs, in .venv-ort."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from finetune.core.world import World
from finetune.models.ort import preflight
from finetune.models.stored.configs import load_config
from finetune.params.finetune import QuestionAnsweringParams
from finetune.tasks import load_task
from tests.families import FAMILIES, OTHERS, build_family

pytestmark = [
    pytest.mark.ort,
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.skipif(
        not World().has_onnx_runtime_training(),
        reason='it needs pip install ".[ort]" in an environment of its own: make test-ort',
    ),
]
FOLDERS = ("preprocess_output", "model_selector_output", "pytorch_model_folder", "mlflow_model_folder")
PARAMS: Any = QuestionAnsweringParams(**{name: Path() for name in FOLDERS}, apply_ort=True)
TASK = load_task("question_answering")
BY_PYTORCH = ("deberta", "deberta-v2", "modernbert")


def windows() -> Dataset:
    lengths = (9, 21, 14, 40)
    columns = {"input_ids": [[5 + i % 50 for i in range(length)] for length in lengths]}
    columns["attention_mask"] = [[1] * length for length in lengths]
    return Dataset.from_dict({**columns, "start_positions": [2, 3, 4, 5], "end_positions": [3, 3, 9, 7]})


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_what_the_preflight_says(family: str, tmp_path: Path) -> None:
    config = load_config(build_family(family, tmp_path))
    padding = {"input_ids": 1, "attention_mask": 0}
    said = preflight.why_not(PARAMS, config, TASK, None, windows().with_format("numpy"), padding)  # type: ignore[arg-type]
    assert bool(said) is (family in BY_PYTORCH), said
