"""Tasks: a module each, a record of functions. Nothing else in the package asks which task it is."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.tasks.task import State, Task


def load_task(name: str) -> "Task[State]":
    """The record of a task. Imported when needed, since it imports torch."""
    task: Task[State] = import_module(f"finetune.tasks.{name}").TASK
    return task
