"""Load models from local folders. Code that comes with a model is never run."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from finetune.core.console import some
from finetune.core.errors import Fault, ModelError, UnsupportedError, first_line
from finetune.models import blocks
from finetune.models.head import fit_head, head_parameters, of_another_task
from finetune.models.stored import intact
from finetune.models.stored.configs import architecture, load_config, stored_task
from finetune.models.stored.intact import BASE_MODEL, CONFIG
from finetune.tasks.task import State, Task


def empty_model(config: PreTrainedConfig, task: Task[State], attn_implementation: str = "auto") -> PreTrainedModel:
    """Return the model without its weights: tensors that have shapes but no content.

    Raises: ModelError if the family has no head for the task, or can't be built as the config says, UnsupportedError if
    it has no such attention.
    """
    architecture(task, config)
    try:
        model = _built(config, task, attn_implementation)
    except (ImportError, ValueError) as error:
        if attn_implementation == "auto":
            raise _not_built(config, error) from None
        empty_model(config, task)
        fix = "--attn_implementation auto"
        what = f"--attn_implementation {attn_implementation} for a {config.model_type}"
        raise UnsupportedError(Fault(what, why=first_line(error), fix=fix)) from None
    except Exception as error:  # each family has its own code here, which takes what the config says
        raise _not_built(config, error) from None
    blocks.shape(model)
    return model


def _built(config: PreTrainedConfig, task: Task[State], attn_implementation: str) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = task.model.auto_model(config).from_config(
            config, attn_implementation=_asked(attn_implementation), trust_remote_code=False
        )
        return model


def _not_built(config: PreTrainedConfig, error: Exception) -> ModelError:
    why = f"{type(error).__name__}: {first_line(error)}"
    fix = "give the config.json that came with the model"
    return ModelError(Fault(f"no {config.model_type} can be built as its config says", why=why, fix=fix))


def _asked(attn_implementation: str) -> str | None:
    return None if attn_implementation == "auto" else attn_implementation


def load_model(
    folder: Path,
    task: Task[State],
    state: State | None,
    ignore_mismatched_sizes: bool = False,
    attn_implementation: str = "auto",
) -> tuple[Any, list[str]]:
    """Return the model in fp32 on the CPU, and the names of weights that the folder lacks and that start at random.

    Without a state the head is what the folder says, with one it is the state's: of a head of other classes, those stay
    that both have. The head of another task is replaced. An unmerged LoRA folder is loaded with its adapters merged.
    Raises: ModelError if the weights can't be loaded or don't fit the task.
    """
    intact.refuse_adapter_alone(folder)
    base = folder / BASE_MODEL
    source = base if base.is_dir() else folder
    config = load_config(folder)
    intact.raise_all([*intact.weight_faults(source), *intact.adapter_faults(folder)])
    if base.is_dir() and stored_task(folder) != task.name:
        what = f"{folder} is an adapter for {stored_task(folder)}, with a head of that task"
        raise ModelError(Fault(what, fix=f"give it to the model import of {task.name} as --pytorch_model_path"))
    architecture(task, config)
    before: dict[int, str] | None = config.id2label  # type: ignore[assignment]  # loading has made its keys numbers
    saved_from = next(iter(config.architectures or ()), None)
    head = task.model.head_config(state)
    config.update(head)
    intact.refuse_larger(source, empty_model(deepcopy(config), task).num_parameters())
    pruned = blocks.kept_of(config) is not None
    try:
        by: Any = blocks.shaped_class(task.model.families[type(config)]) if pruned else task.model.auto_model(config)
        model, info = by.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,  # the default is the file's own type
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation=_asked(attn_implementation),
            ignore_mismatched_sizes=True,  # refused below, by name; an adapter brings its head
            output_loading_info=True,
        )
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise ModelError(Fault(f"{folder} can't be loaded", why=first_line(error) or type(error).__name__)) from None
    if any(name.endswith(f".{blocks.GATES}") for name in info["unexpected_keys"]):
        why, fix = "its gates are closed, but nothing is cut yet", "give the pytorch_model_folder itself"
        raise ModelError(Fault(f"{folder} is a checkpoint of a run that prunes", why=why, fix=fix))
    if state is not None:
        task.model.configure(model, state)
    refuse_other_weights(folder, model, set(info["missing_keys"]), {name for name, *_ in info["mismatched_keys"]})
    if base.is_dir():
        model = merged(model, folder)
        model.config = config
        return model, []
    missing, mismatched = info["missing_keys"], {name: shapes for name, *shapes in info["mismatched_keys"]}
    head_names = set(head_parameters(model))
    of_body = {*missing, *mismatched} - head_names
    replaced = head_names if of_another_task(model, saved_from) else set()
    if (refused := mismatched.keys() - replaced) and not ignore_mismatched_sizes:
        raise ModelError(*_mismatched({name: mismatched[name] for name in refused}))
    classes = before if "id2label" in head else None
    of_head = fit_head(model, source, saved_from, classes, set(missing), set(mismatched))
    return model, sorted(of_body | of_head)


def refuse_other_weights(folder: Path, model: PreTrainedModel, missing: set[str], mismatched: set[str]) -> None:
    """Raise ModelError if no weight of the pretrained body is in the folder by its name and size, or few are.

    A table of words or positions may be of another size, but not most of the weights.
    """
    body = {name for name, _ in model.named_parameters()} - set(head_parameters(model))
    if body <= missing | mismatched or 2 * len(body & mismatched) > len(body):
        names = some(sorted(body & mismatched))
        why = f"their sizes are not those of {CONFIG}: {names}" if names else "not one has a name of this model"
        raise ModelError(
            Fault(f"{folder} holds the weights of another model", why=why, fix="give a folder of one model")
        )


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return the model with the adapter of the folder merged. Raises: ModelError if it doesn't fit."""
    from peft import LoraConfig, PeftModel

    config = LoraConfig(**intact.adapter_values(folder))
    try:
        whole: PreTrainedModel = PeftModel.from_pretrained(model, folder, config=config).merge_and_unload()
        return whole
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        fix = "give the pytorch_model_folder of a run, with all of its files"
        raise ModelError(
            Fault(f"the adapter of {folder} does not fit its model", why=first_line(error), fix=fix)
        ) from None


def _mismatched(shapes: dict[str, list[torch.Size]]) -> list[Fault]:
    return [
        Fault(
            f"{name} has another size in the imported model than it has here",
            why=f"{list(stored)} instead of {list(wanted)}",
            fix="--ignore_mismatched_sizes true, to begin with that size",
        )
        for name, (stored, wanted) in sorted(shapes.items())
    ]
