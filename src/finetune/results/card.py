"""The model card: README.md beside the weights, with the metadata that the Hugging Face hub reads."""

import math
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup
from transformers import CONFIG_MAPPING

from finetune.data.folders import Trained
from finetune.data.table import Audit
from finetune.params.components import TASKS
from finetune.results.templates import fill
from finetune.tasks.task import State, Task

NOT_METRICS = ("epoch", "step", "runtime", "samples_per_second")


def write(folder: Path, task: Task[State], state: State, trained: Trained, unmerged: bool) -> None:
    """Write FOLDER/README.md. `unmerged`: the folder holds an adapter, and base_model/ beside it."""
    name = f"{trained.base_name}-{task.card.pipeline_tag}"
    text = fill(
        "card.md.j2",
        metadata=Markup(front_matter(metadata(name, task, trained, unmerged))),
        name=name,
        title=TASKS[task.name].title.lower(),
        task=task,
        trained=trained,
        unmerged=unmerged,
        auto_model=task.model.auto_model(CONFIG_MAPPING[trained.model_type]()).__name__,
        own_class=own_class(task, trained.model_type),
        problems=[f"{split}: {line}" for split, s in trained.splits.items() for line in Audit(s.problems).lines()],
        validation={metric: value for metric, value in trained.validation.items() if metric not in NOT_METRICS},
        usage=task.card.usage(state),
        limits=task.card.limits(state),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def own_class(task: Task[State], model_type: str) -> str:
    """Return the module to import for a head that transformers lacks; "" where it has one."""
    module: str = task.model.families[CONFIG_MAPPING[model_type]].__module__
    return module if module.startswith("finetune.") else ""


def metadata(name: str, task: Task[State], trained: Trained, unmerged: bool) -> ModelCardData:
    """Return the YAML at the top of the card; base_model only where the hub knows it."""
    measured = {n: trained.validation[n] for n in task.scoring.hub_metrics if n in trained.validation}
    results = [
        EvalResult(
            task_type=task.card.pipeline_tag,
            dataset_type="custom",
            dataset_name="validation split",
            dataset_split="validation",
            metric_type=task.scoring.hub_metrics[n],
            metric_name=n,
            metric_value=round(value, 4),
        )
        for n, value in measured.items()
    ]
    return ModelCardData(
        library_name="peft" if unmerged else "transformers",
        pipeline_tag=task.card.pipeline_tag,
        base_model=trained.hub_id,
        license="unknown",  # the base model's own holds, and what is imported of it doesn't say which
        tags=[trained.model_type],
        metrics=[task.scoring.hub_metrics[n] for n in measured],
        model_name=name,
        eval_results=results or None,
    )


def front_matter(data: ModelCardData) -> str:
    """Return the YAML, a line for each value: what ends a line somewhere (also U+0085) is written as an escape."""

    class Dumper(yaml.SafeDumper):
        pass

    def scalar(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')

    Dumper.add_representer(str, scalar)
    return yaml.dump(data.to_dict(), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=math.inf).rstrip()
