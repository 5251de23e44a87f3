"""Look at a run before it is started: parameters, data, lengths, steps, memory and time. No weights are loaded.

    finetune check components/question_answering/pipeline.yaml --set train_file_path=train.jsonl …

takes the words of `finetune pipeline`, which begins with the same check.
"""

import math
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.azure import plan
from finetune.azure.declare import COMPONENTS
from finetune.azure.pipeline_yaml import load_pipeline, unfit_for_azure
from finetune.core.console import quiet_libraries, say, start
from finetune.core.errors import Fault, ParameterError, UnsupportedError
from finetune.core.process import run_main
from finetune.core.world import World
from finetune.distributed.settlement import Settled, check_model, raise_together, settle_task
from finetune.params.finetune import FinetuneParams
from finetune.params.model_import import ModelImportParams
from finetune.params.schema import non_default, to_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from finetune.tasks.task import Imported, State, Task
    from finetune.tasks.token_lengths import Lengths

MODULES = {c.module: c.name for c in COMPONENTS}  # module of a step -> field of params.TaskComponents


def main(argv: list[str]) -> None:
    if not argv or "--help" in argv or "-h" in argv:
        print(f"{__doc__.split('.')[0]}.\n\n{plan.USAGE.replace('finetune pipeline', 'finetune check')}", end="")
        return
    with tempfile.TemporaryDirectory() as nowhere:
        words = plan.read_words(argv, output=Path(nowhere))
        pipeline = load_pipeline(words.file)
        prepared, faults = plan.prepare(pipeline, words.values, words.output)
    check(commands_of(prepared), faults)
    for fault in unfit_for_azure(pipeline, words.values):
        say(f"note: it runs here, but {fault.what}: {fault.why}")


def commands_of(prepared: Sequence[plan.Prepared]) -> list[tuple[str, World]]:
    """Return each step's command and its processes."""
    return [(item.command, World(item.world, item.processes)) for item in prepared]


def check(commands: Sequence[tuple[str, World]], faults: Sequence[Fault]) -> None:
    """Check the steps of a pipeline, given as (command, its processes). Those that aren't ours are left alone.

    `faults` were found before. Raises: ParameterError with the faults of all steps, UnsupportedError, DataError,
    ModelError.
    """
    steps = settle_steps(commands, faults)
    if not steps:
        return
    start("check")
    for line in described([step.settled for step in steps.values()]):
        say(line)
    if not {"model_import", "datapreprocess"} <= steps.keys():
        return

    quiet_libraries()
    from finetune.tasks import load_task

    record = load_task(steps["model_import"].task)
    with tempfile.TemporaryDirectory() as folder:
        model = import_tokenizer(steps["model_import"].settled.params, record, Path(folder))
    say(f"model: {model.config.model_type}, {model.config.get_text_config().num_hidden_layers} layers")
    seen = look_at_data(steps["datapreprocess"].settled.params, record, model)
    if "finetune" in steps:
        look_at_training(steps["finetune"], record, model, seen)


class Settlement(NamedTuple):
    """The settled command line of one step of a pipeline."""

    task: str
    settled: Settled[Any]
    world: World


def settle_steps(commands: Sequence[tuple[str, World]], before: Sequence[Fault]) -> dict[str, Settlement]:
    """Return the steps that are ours, by the names of their components.

    Raises: ParameterError or UnsupportedError, with the faults of all steps and those found before.
    """
    steps: dict[str, Settlement] = {}
    found: list[ParameterError | UnsupportedError] = [ParameterError(*before)]
    for command, world in commands:
        begins = command.split(maxsplit=3)
        component = MODULES.get(begins[2]) if begins[:2] == ["python", "-m"] and len(begins) > 2 else None
        if component is None:
            continue
        try:
            words = shlex.split(command)
        except ValueError:  # a quote of the component itself: values are quoted for where they stand
            fault = Fault(f"the command of {begins[2]} has a quote that is never closed", fix="close it in the YAML")
            found.append(ParameterError(fault))
            continue
        try:
            steps[component] = Settlement(*settle_task(words[3:], component, words[2], world), world)
        except (ParameterError, UnsupportedError) as error:
            found.append(error)
    raise_together(found)
    return steps


def described(steps: Sequence[Settled[Any]]) -> list[str]:
    """Return what was set, what has no effect, and what a preset or a config gives."""
    values = {name: value for settled in steps for name, value in non_default(settled.params).items()}
    lines = [f"parameters: {', '.join(f'{name} {to_text(value)}' for name, value in values.items()) or 'all default'}"]
    lines += [f"note: {line}" for settled in steps for line in settled.notes]
    return lines + [str(derived) for settled in steps for derived in settled.given]


def import_tokenizer(params: ModelImportParams, task: "Task[State]", folder: Path) -> "Imported":
    """Return what encoding needs of the model that will be imported. Raises: ParameterError or ModelError."""
    from finetune.model_selector import choose_source, fetch, find_files, refuse_broken_source
    from finetune.models.stored import intact
    from finetune.models.stored.tokenizers import imported

    source, name = choose_source(params)
    if source == "huggingface_id" and not Path(name).is_dir():
        return imported(fetch(name, params, weights=False), task)
    refuse_broken_source(Path(name))
    if (Path(name) / intact.ADAPTER_CONFIG).is_file():
        return imported(Path(name), task)
    files = find_files(Path(name))
    for path in (files.config, *files.tokenizer):
        shutil.copyfile(path, folder / path.name)
    return imported(folder, task)


class Seen(NamedTuple):
    """What was seen of the data."""

    lengths: "Lengths"  # of the training rows
    evaluated: int  # expected windows of one evaluation
    state: "State"


def look_at_data(params: Any, task: "Task[State]", model: "Imported") -> Seen:
    """Return what the data come to. Raises: DataError."""
    from finetune import preprocess
    from finetune.tasks import token_lengths

    splits = preprocess.usable_rows(params, task)
    rows, audits = splits.rows, splits.audits
    state = task.data.fit(params, rows, model)
    model.config.update(task.model.head_config(state))
    preprocess.say_derived(params, task, state, rows, model.longest_window)
    say(f"validation and test: {splits.source}")
    for name, kept in rows.items():
        say(f"{name}: {len(kept):,} rows")
        for line in audits[name].lines():
            say(f"  {line}")
    found = token_lengths.measure(rows["train"], task, model.tokenizer, state)
    for line in (*token_lengths.describe(found, state.max_seq_length), *task.data.beyond(found.gold, state)):
        say(line)
    return Seen(found, round(len(rows["validation"]) * len(found.windows) / len(found.rows)), state)


def look_at_training(step: Settlement, task: "Task[State]", model: "Imported", seen: Seen) -> None:
    """Print the steps, memory and time. Raises: ParameterError, UnsupportedError, or ModelError for the teacher."""
    from finetune.models import estimate
    from finetune.models.adapt import adaptations
    from finetune.models.facts import facts_of
    from finetune.models.loading import empty_model
    from finetune.training.schedule import schedule, without_effect_here

    params: FinetuneParams = step.settled.params
    config, processes = model.config, step.world.processes
    empty = empty_model(config, task, params.attn_implementation)
    check_model(step.settled, step.world, facts_of(empty))
    lengths, windows = seen.lengths, seen.lengths.expected_windows
    steps = schedule(params, windows, processes, batches_expected(params, seen, processes))
    for line in without_effect_here(params, steps):
        say(f"note: {line}")
    say(f"steps: {steps.total_steps:,} of {steps.step}, about {windows:,} windows in an epoch")
    trained = round(steps.total_steps / steps.steps_per_epoch * windows / processes)
    evaluations = steps.total_steps // steps.evaluation_steps
    for line in adaptations.adapt(empty, replace(params, finetune_in_4bit=False)).said:
        say(line)
    evaluated = evaluations * seen.evaluated // processes
    need = estimate.estimate(config, task, params, lengths.windows, trained, evaluated, lengths.gold)
    taught = look_at_teacher(params, task, model, seen.state)
    free, wanted = estimate.available_bytes(), need.state_bytes + need.activation_bytes + taught
    parts = f"{gigabytes(need.state_bytes)} of it weights, gradients and optimizer"
    say(f"memory: about {gigabytes(wanted)} for each process, {parts}; {gigabytes(free)} are free here")
    if params.apply_deepspeed or params.apply_fsdp:
        say("  (counted whole: its shards are not counted here)")
    if not estimate.on_gpu():
        say("  (on a CPU, gaps in the heap between batches of other lengths may add half as much again)")
    if wanted * sharing_memory(step.world) > free:
        if params.max_tokens_per_batch:
            smaller = f"--max_tokens_per_batch {max(*lengths.windows, params.max_tokens_per_batch // 2)}"
        else:
            smaller = f"--per_device_train_batch_size {max(1, params.per_device_train_batch_size // 2)}"
        say(f"warning: that may not fit; {smaller}")
    say(f"time: about {duration(need.seconds)} of training and evaluation, if it runs on this machine alone")
    look_at_writing(params, task, config, seen, evaluations, processes)


def batches_expected(params: FinetuneParams, seen: Seen, processes: int) -> int | None:
    """Return the batches of each process in an epoch, as a sample has them; None where the number of windows says it.

    Raises: ParameterError if a window has more tokens than a batch may have.
    """
    from finetune.data.sampler import training_order

    if not params.max_tokens_per_batch:
        return None
    windows = seen.lengths.windows
    stored = [seen.state.max_seq_length] * len(windows) if seen.state.pad_to_max_length else windows
    in_sample = len(training_order(replace(params, gradient_accumulation_steps=1), stored, 1))
    steps = in_sample * seen.lengths.expected_windows / len(windows) / params.gradient_accumulation_steps / processes
    return math.ceil(steps) * params.gradient_accumulation_steps


def look_at_teacher(params: FinetuneParams, task: "Task[State]", model: "Imported", state: "State") -> int:
    """Print the size of the teacher and return the bytes of its weights; 0 without one. Raises: ModelError."""
    from finetune.models.stored import intact
    from finetune.models.teacher import refuse_misfit, weights_of

    if params.teacher_model_path is None:
        return 0
    folder = weights_of(params.teacher_model_path)
    refuse_misfit(folder, task, state, model.tokenizer)
    held = 4 * intact.stored_numbers(folder)
    say(f"teacher: {gigabytes(held)} of weights; the time below is without its forward passes")
    return held


def look_at_writing(
    params: FinetuneParams,
    task: "Task[State]",
    config: "PreTrainedConfig",
    seen: Seen,
    evaluations: int,
    processes: int,
) -> None:
    """Print the time and memory of evaluation, where the model writes."""
    from finetune.models import estimate
    from finetune.tasks.generation.writing import WritingState

    if not isinstance(seen.state, WritingState):
        return
    texts = -(-seen.evaluated // processes)
    need = estimate.written(config, task, seen.state, params, seen.lengths.windows, seen.lengths.gold, texts)
    beams, longest, batch = seen.state.num_beams, seen.state.max_target_length, params.per_device_eval_batch_size
    how = f"{texts:,} texts in each of {evaluations:,} evaluations, num_beams {beams}"
    most = f"at most {duration(evaluations * need.seconds_at_most)} where all have {longest} tokens"
    say(f"writing: about {duration(evaluations * need.seconds)} besides for {how}; {most}")
    say(f"  (memory: {gigabytes(need.cache_bytes)} beside the weights, with per_device_eval_batch_size {batch})")


def sharing_memory(world: World) -> int:
    """Return how many processes take from the same memory: one with a GPU each, else all of a machine."""
    return 1 if world.has_gpu() else world.per_machine


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """Return the seconds in the unit that a person would use."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


if __name__ == "__main__":
    run_main(main)
