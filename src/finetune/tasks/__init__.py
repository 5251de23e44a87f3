"""The tasks, each a record of functions in a package. Nothing else asks which task it is."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.tasks.task import State, Task


def load_task(name: str) -> "Task[State]":
    """Return the record of a task, which is imported when needed, since it imports torch."""
    task: Task[State] = import_module(f"finetune.tasks.{name}").TASK
    return task
