"""The head, which a task adds to the pretrained body: where it is, and what becomes of one that a model brings."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from finetune.core.console import say, some
from finetune.models.stored.intact import weight_files

# What follows "For" in the names of classes with a head that was trained on a task.
OF_A_TASK = ("Classification", "QuestionAnswering", "QuestionAnsweringSimple", "MultipleChoice")


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules outside the pretrained body, which in T5 for questions is several modules.

    What maps hidden states to the vocabulary (`lm_head`) is of the body, tied to the embeddings or not: pretraining
    has made it.
    """
    of_vocabulary = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_children()
        if module is not of_vocabulary
        and not isinstance(module, PreTrainedModel | nn.Embedding)
        and any(True for _ in module.parameters())
    ]


def head_parameters(model: PreTrainedModel) -> list[str]:
    """Return the names of the weights outside the pretrained body."""
    heads = {name: model.get_submodule(name) for name in head_modules(model)}
    return [f"{head}.{name}" for head, module in heads.items() for name, _ in module.named_parameters()]


def describe_new(model: PreTrainedModel, new: Sequence[str], architectures: Sequence[str] | None) -> list[str]:
    """Return lines on the weights that start at random, of a model that was saved as one of `architectures`."""
    head, kind = set(head_parameters(model)), type(model).__name__
    lost, made = [name for name in new if name not in head], [name for name in new if name in head]
    was = next((name for name in architectures or () if name != kind), None)
    lines = [f"warning: weights of the body are missing, and start at random: {some(lost)}"] if lost else []
    if made:
        lines.append(f"new head, random until trained: {some(made)}" + (f" (saved from {was})" if was else ""))
    return lines


def of_another_task(model: PreTrainedModel, architecture: str | None) -> bool:
    """Return whether a model saved as the class `architecture` has the head of another task than `model`."""
    saved_for, wanted = (kind.rpartition("For")[2] for kind in (architecture or "", type(model).__name__))
    return saved_for != wanted and saved_for.endswith(OF_A_TASK)


def fit_head(
    model: PreTrainedModel,
    source: Path,
    architecture: str | None,
    classes: dict[int, str] | None,
    missing: set[str],
    mismatched: set[str],
) -> set[str]:
    """Keep of the head that was loaded what fits the task and its classes; the rest starts at random, as if new.

    `architecture` is the class that the weights in `source` were saved from: one for whole sentences may have a head of
    the same names and sizes. `classes` are theirs, or None where classes have no names. What pretraining left of a head
    (ModernBERT's dense layer) stays. Return the names of the head's weights that are random.
    """
    names = set(head_parameters(model))
    if of_another_task(model, architecture):
        _renew(model, names)
        return names
    if names & missing:
        return names & (missing | mismatched)
    if classes is None or classes == model.config.id2label:
        return names & mismatched
    if not mismatched and all(label == f"LABEL_{i}" for i, label in classes.items()):
        say("classes: the model's own have no names, so they keep their places")
        return set()
    return _keep_classes(model, source, classes, names)


def _keep_classes(model: PreTrainedModel, source: Path, before: dict[int, str], names: set[str]) -> set[str]:
    """Keep the rows of the classes that the head had before, in whatever order, and print which are kept or random.

    Return the names of the weights that are random: all where no class is kept.
    """
    now: dict[int, str] = dict(enumerate((model.config.id2label or {}).values()))
    old = {label: i for i, label in before.items()}
    common = {i: old[label] for i, label in now.items() if label in old}
    if not common:
        _renew(model, names)
        return names
    rows = {name for name in names if model.get_parameter(name).shape[0] == len(now)}
    _renew(model, rows)
    with torch.no_grad():
        for name, stored in _stored(source, rows).items():
            places = {i: k for i, k in common.items() if k < len(stored)}  # a config may name more than there are
            model.get_parameter(name)[list(places)] = stored[list(places.values())].float()
    new, gone = [label for label in now.values() if label not in old], sorted(set(old) - set(now.values()))
    said = [f"classes: {len(common)} of {len(now)} go on from the weights they have"]
    said += [f"new, at random: {some(new)}"] if new else []
    said += [f"left out, since no row has them: {some(gone)}"] if gone else []
    say("; ".join(said))
    return set()


def _renew(model: PreTrainedModel, names: Collection[str]) -> None:
    """Start weights anew as transformers does: by the rule of their module, then by those of the modules around it."""
    for name in names:
        module, _, last = name.rpartition(".")
        # transformers marks weights that it has loaded, and leaves those alone.
        fresh = nn.Parameter(torch.empty_like(model.get_parameter(name)))
        model.get_submodule(module).register_parameter(last, fresh)
    paths = [name.split(".")[:-1] for name in names]
    around = {tuple(path[:depth]) for path in paths for depth in range(len(path) + 1)}
    for path in sorted(around, key=len, reverse=True):
        model._init_weights(model.get_submodule(".".join(path)))


def _stored(source: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(source):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys() if name in names}  # noqa: SIM118
    return found
