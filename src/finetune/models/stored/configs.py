"""The config of a model folder, and what a run stored in it: the task and how its rows are encoded and decoded."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import transformers
from transformers import AutoConfig, PreTrainedConfig

from finetune.core.errors import Fault, ModelError, first_line
from finetune.core.reading import Unreadable, made
from finetune.core.types import Json
from finetune.models.stored import intact
from finetune.models.stored.intact import CONFIG
from finetune.tasks.task import State, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE_KEY = "finetune"  # entry of config.json that holds {"task": …, "state": …}


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the config of the model in the folder. Raises: ModelError if it can't be read, or fits no model."""
    intact.raise_all(intact.config_faults(folder))
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return config
    except Exception as error:  # each family has its own code here, which takes what it finds
        why = f"{type(error).__name__}: {first_line(error)}"
        fix = "give the config.json that came with the model, of a model type that this version knows"
        raise ModelError(
            Fault(f"{folder} has no config that transformers {transformers.__version__} knows", why=why, fix=fix)
        ) from None


def architecture(task: Task[State], config: PreTrainedConfig) -> str:
    """Return the name of the class that `load_model` builds. Raises: ModelError if it has no head for the task."""
    if type(config) not in task.model.families:
        families = ", ".join(sorted(known.model_type for known in task.model.families))
        why = f"transformers {transformers.__version__} has no {task.name} head for it"
        raise ModelError(
            Fault(f"model type {config.model_type} can't be finetuned", why=why, fix=f"use one of: {families}")
        )
    return str(task.model.families[type(config)].__name__)


def store_state(model: "PreTrainedModel", state: State, task: Task[State]) -> None:
    """Store in the model's config how its inputs were encoded and its outputs are decoded."""
    setattr(model.config, STATE_KEY, {"task": task.name, "state": asdict(state)})


def stored_state(folder: Path, task: Task[State]) -> State | None:
    """Return the state that `store_state` left in config.json; None where we didn't finetune the model for the task.

    Raises: ModelError if another version left it, or if it is damaged.
    """
    if stored_task(folder) != task.name:
        return None
    try:
        return made(task.state, _stored(folder).get("state"), "state")
    except Unreadable as reason:
        what = f"{folder / CONFIG} does not say how its model is read"
        fix = "give the model to model import, which reads it as any other"
        why = f"its entry {STATE_KEY!r} is damaged, or of another version: {reason}"
        raise ModelError(Fault(what, why=why, fix=fix)) from None


def stored_task(folder: Path) -> str | None:
    """Return the task that we finetuned the model for; None where we didn't."""
    return _stored(folder).get("task")


def _stored(folder: Path) -> Json:
    entry = intact.read_json(folder / CONFIG).get(STATE_KEY)
    return entry if isinstance(entry, dict) else {}
