"""Save the trained model as a PyTorch folder and as an MLflow model."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune import __version__
from finetune.core.outputs import bring_in
from finetune.core.types import Json
from finetune.data.folders import Trained
from finetune.models.stored.configs import STATE_KEY
from finetune.models.stored.intact import BASE_MODEL
from finetune.models.stored.places import leave_out_places, leave_out_remarks
from finetune.models.stored.sums import SUMS, write_sums
from finetune.results import card
from finetune.results.limits import LIMITS
from finetune.tasks.task import State, Task

if TYPE_CHECKING:
    from mlflow.types import Schema
    from peft import PeftModel

# What the served model imports; torch and transformers would be guessed wrong by MLflow's own inference.
SERVED_IN_OPENVINO = (
    "mlflow", "openvino", "transformers", "tokenizers", "sentencepiece", "safetensors", "numpy", "pandas",
    "array-api-compat",
)  # fmt: skip
WRITING_IN_OPENVINO = ("torch", *SERVED_IN_OPENVINO)  # `generate` finds the tokens
SERVED_IN_PYTORCH = ("torch", *(name for name in SERVED_IN_OPENVINO if name != "openvino"))
SERVED = "model"  # folder in artifacts/ of the MLflow model
MLFLOW_TYPES = {bool: "boolean", int: "long", float: "double", str: "string"}
PACKAGE = Path(__file__).parents[1]


def save_pytorch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a plain transformers folder, which AutoModel classes load without any code of ours."""
    with _brought_into(folder) as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)


def save_adapter(adapted: "PeftModel", base: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save an unmerged LoRA folder: the adapter and its head, and beside them the frozen model that it belongs to."""
    with _brought_into(folder) as staged:
        shutil.copytree(base, staged / BASE_MODEL, ignore=shutil.ignore_patterns(SUMS))
        for weights in (staged / BASE_MODEL).glob("*.safetensors"):
            leave_out_remarks(weights)
        for config in adapted.peft_config.values():
            config.base_model_name_or_path = BASE_MODEL  # not where it lay on this machine
        if (writer := adapted.get_base_model()).can_generate():
            writer.generation_config.save_pretrained(staged / BASE_MODEL)  # read from beside the weights
        adapted.save_pretrained(staged, save_embedding_layers=False)
        adapted.config.save_pretrained(staged)
        tokenizer.save_pretrained(staged)


@contextmanager
def _brought_into(folder: Path) -> Iterator[Path]:
    """Yield an empty folder inside, whose content moves up: where transformers saves, it removes files like shards."""
    staged = folder / ".saving"
    staged.mkdir(parents=True)
    yield staged
    leave_out_places(staged)
    write_sums(staged)
    bring_in(staged, folder)
    staged.rmdir()


def document(folder: Path, task: Task[State], state: State, trained: Trained) -> None:
    """Write README.md, over the stub that peft leaves, and last training.json: if it exists, the folder is complete."""
    card.write(folder, task, state, trained, unmerged=(folder / BASE_MODEL).is_dir())
    trained.write(folder)


def save_mlflow(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: Task[State],
    state: State,
    trained: Trained,
    folder: Path,
) -> None:
    """Save the model, and all that it is served with, as an MLflow model in PyTorch."""
    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary) / SERVED
        save_pytorch(model, tokenizer, weights)
        document(weights, task, state, trained)
        save_served(weights, task, state, folder, SERVED_IN_PYTORCH)


def save_served(model: Path, task: Task[State], state: State, folder: Path, packages: Sequence[str]) -> None:
    """Save an MLflow model of a folder that `serving` loads, called SERVED as it is there, and of its packages.

    It is made elsewhere: MLflow refuses a folder that holds anything, as a mounted output may.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    defaults = {name: vars(state)[name] for name in task.decoding.request_fields}
    specs = [ParamSpec(name, MLFLOW_TYPES[type(value)], value) for name, value in defaults.items()]
    example = pd.DataFrame([task.serving.example])  # Azure ML's scoring script starts on no other
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "mlflow"
        mlflow.pyfunc.save_model(
            path=str(staged),
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"model": str(model)},
            code_paths=[str(PACKAGE)],
            conda_env=conda_env(packages),
            model_config=LIMITS,
            signature=ModelSignature(
                inputs=_inputs(task, state),
                outputs=_outputs(task),
                params=ParamSchema(specs) if specs else None,
            ),
            input_example=example,
            metadata={STATE_KEY: {"task": task.name, "version": __version__}},
        )
        _leave_out_sources(staged / "MLmodel")
        bring_in(staged, folder)


def _leave_out_sources(description: Path) -> None:
    """Leave out of an MLmodel file where its parts lay on this machine: they are loaded from their places beside it."""
    values = yaml.safe_load(description.read_text(encoding="utf-8"))
    flavor = values["flavors"]["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    description.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")


def _inputs(task: Task[State], state: State) -> "Schema":
    """Return the input columns; where one may have another name, neither is required."""
    from mlflow.types import ColSpec, Schema

    own, others = task.serving.inputs, task.serving.others(state)
    types = own | {name: own[meant] for name, meant in others.items()}
    needed = own.keys() - {*others.values()}
    return Schema([ColSpec.from_json_dict(name=name, required=name in needed, **kind) for name, kind in types.items()])


def _outputs(task: Task[State]) -> "Schema | None":
    """Return the output columns; None where pandas has no type for one, on which Azure ML's scoring script ends."""
    from mlflow.types import ColSpec, Schema

    kinds = task.serving.outputs
    if any(kind["type"] in ("array", "any") for kind in kinds.values()):
        return None
    return Schema([ColSpec.from_json_dict(name=name, required=True, **kind) for name, kind in kinds.items()])


def conda_env(packages: Sequence[str]) -> Json:
    """Return the environment that serves the model, pinned to the versions that saved it."""
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in packages]
    python = f"python={sys.version_info.major}.{sys.version_info.minor}"
    return {"name": "finetuned", "channels": ["conda-forge"], "dependencies": [python, "pip", {"pip": pins}]}
