"""The path without torch: its predictions are those of the path with it. OpenVINO itself: tests/test_export.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.core.errors import ModelError
from finetune.data.batches import Arrays
from finetune.models import openvino, prediction
from finetune.models.openvino import Opened
from finetune.tasks import load_task
from tests.conftest import build_wordpiece, sample_rows
from tests.tasks.question_answering.conftest import state as qa_state
from tests.tasks.question_answering.conftest import tiny_bert as qa_bert
from tests.tasks.token_classification.conftest import row as tagged
from tests.tasks.token_classification.conftest import state as tc_state
from tests.tasks.token_classification.test_tags import tiny_bert as tc_bert


def as_opened(model: Any) -> Opened:
    """The PyTorch model as another runtime has it: from arrays to arrays."""

    def compute(given: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = model(**{name: torch.from_numpy(array) for name, array in given.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return Opened(("input_ids", "attention_mask", "token_type_ids"), compute)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_wordpiece(tmp_path_factory.mktemp("wordpiece"))


def questions() -> list[dict[str, Any]]:
    rows = [{"id": str(i), "row": i, "answers": None, **row} for i, row in enumerate(sample_rows("validation")[:12])]
    return [*rows, {**rows[0], "context": ""}]  # the last row has no window


def sentences() -> list[dict[str, Any]]:
    rows = sample_rows("validation", "token_classification")[:12]
    made = [tagged(*row["tokens"]) for row in rows]
    return [*made, tagged(*made[0]["tokens"] * 30), tagged()]


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize(
    ("name", "bert", "state", "rows"),
    [
        ("question_answering", qa_bert, qa_state(max_seq_length=96, n_best_size=20, no_answer=True), questions()),
        ("token_classification", tc_bert, tc_state(max_seq_length=48), sentences()),
    ],
)
def test_predictions_are_those_of_pytorch(
    name: str, bert: Any, state: Any, rows: list[dict[str, Any]], batch_size: int, tokenizer: Any
) -> None:
    task, model = load_task(name), bert(len(tokenizer))
    given = (tokenizer, rows, task, state, batch_size)
    expected, found = prediction.predict_rows(model, *given), openvino.predict_rows(as_opened(model), *given)
    assert len(found) == len(rows)
    assert [_rounded(one) for one in found] == [_rounded(one) for one in expected]


def _rounded(value: Any) -> Any:
    """NumPy's exp and PyTorch's differ in the last digits of 32 bits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return pytest.approx(value, abs=1e-6) if isinstance(value, float) else value


def test_nothing_of_it_imports_torch() -> None:
    """Nor what a small image lacks besides: the modules are those that a served OpenVINO model imports."""
    lacking = ("torch", "accelerate", "datasets", "evaluate", "peft", "sklearn", "sacrebleu", "seqeval", "jinja2")
    code = (
        f"import sys\nfor name in {lacking}: sys.modules[name] = None\n"
        "import finetune.models.openvino, finetune.models.stored.tokenizers, finetune.results.limits\n"
        "import finetune.tasks.question_answering, finetune.tasks.token_classification\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_without_a_graph(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no openvino_model.xml and no openvino_model.bin"):
        openvino.refuse_no_ir(tmp_path)
    (tmp_path / "openvino_model.xml").touch()
    with pytest.raises(ModelError, match=r"has no openvino_model.bin"):
        openvino.refuse_no_ir(tmp_path)
