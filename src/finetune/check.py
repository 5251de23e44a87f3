"""Look at a run before it is started: parameters, data, lengths, steps, memory and time. No weights are loaded.

    finetune check components/question_answering/pipeline.yaml --set train_file_path=train.jsonl …

takes the words of `finetune pipeline`, which begins with the same check.
"""

import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.azure import plan
from finetune.azure.declare import COMPONENTS
from finetune.azure.pipeline_yaml import load_pipeline
from finetune.cli import parse_task
from finetune.core.console import quiet_libraries, say, start
from finetune.core.errors import Fault, ParameterError, UnsupportedError
from finetune.core.process import run_main
from finetune.distributed import fsdp, zero_config
from finetune.params.finetune import FinetuneParams
from finetune.params.model_import import ModelImportParams
from finetune.params.presets import with_preset
from finetune.params.provenance import Derived
from finetune.params.rules import refuse_contradictions, refuse_unsupported, without_effect
from finetune.params.schema import non_default, to_text

if TYPE_CHECKING:
    from finetune.tasks.task import State, Task
    from finetune.tasks.token_lengths import Lengths

MODULES = {c.module: c.name for c in COMPONENTS}  # module of a step -> field of params.TaskComponents


def main(argv: list[str]) -> None:
    if not argv or "--help" in argv or "-h" in argv:
        print(f"{__doc__.split('.')[0]}.\n\n{plan.USAGE.replace('finetune pipeline', 'finetune check')}", end="")
        return
    with tempfile.TemporaryDirectory() as nowhere:
        words = plan.read_words(argv, output=Path(nowhere))
        prepared, faults = plan.prepare(load_pipeline(words.file), words.values, words.output)
    check([(item.command, item.world) for item in prepared], faults)


def check(commands: Sequence[tuple[str, int]], faults: Sequence[Fault]) -> None:
    """Check the steps of a pipeline, given as (command, processes). Those that aren't ours are left alone.

    `faults` were found before. Raises: ParameterError with the faults of all steps, UnsupportedError, DataError,
    ModelError.
    """
    task, params, derived = parse_steps(commands, faults)
    if not params:
        return
    start("check")
    for line in (*described(params), *map(str, derived)):
        say(line)
    if not {"model_import", "datapreprocess"} <= params.keys():
        return

    from finetune.tasks import load_task

    quiet_libraries()
    record = load_task(task)
    with tempfile.TemporaryDirectory() as folder:
        config, tokenizer = import_tokenizer(params["model_import"], record, Path(folder))
    say(f"model: {config.model_type}, {config.get_text_config().num_hidden_layers} layers")
    lengths, evaluated = look_at_data(params["datapreprocess"], record, config, tokenizer)
    if "finetune" in params:
        processes = next(world for command, world in commands if "finetune.run" in command)
        look_at_training(params["finetune"], record, config, lengths, evaluated, processes)


def parse_steps(
    commands: Sequence[tuple[str, int]], before: Sequence[Fault]
) -> tuple[str, dict[str, Any], list[Derived]]:
    """(task, parameters of each component by its name, what a preset gave).

    Raises: ParameterError, UnsupportedError.
    """
    task, params, derived = "", {}, []
    faults = list(before)
    unsupported: list[Fault] = []
    for command, world in commands:
        words = shlex.split(command)
        component = MODULES.get(words[2]) if words[:2] == ["python", "-m"] else None
        if component is None:
            continue
        try:
            task, params[component] = parse_task(words[3:], component, words[2])
            faults += missing_source(params[component])
            if isinstance(params[component], FinetuneParams):
                params[component], taken = with_preset(params[component], world)
                refuse_contradictions(params[component])
                refuse_unsupported(params[component])
                params[component], _, of_config = zero_config.merge(params[component], world)
                derived += [*taken, *of_config]
        except ParameterError as error:
            faults += error.faults
        except UnsupportedError as error:
            unsupported += error.faults
    if faults:
        raise ParameterError(*faults, *unsupported)
    if unsupported:
        raise UnsupportedError(*unsupported)
    return task, params, derived


def missing_source(params: Any) -> list[Fault]:
    """The fault of a step that gets neither a model nor training rows."""
    from finetune.model_selector import choose_source
    from finetune.preprocess import refuse_no_rows

    try:
        if isinstance(params, ModelImportParams):
            choose_source(params)
        elif "train_file_path" in vars(params):
            refuse_no_rows(params)
    except ParameterError as error:
        return list(error.faults)
    return []


def described(params: Mapping[str, Any]) -> list[str]:
    """What was set, and what has no effect."""
    given = {name: value for component in params.values() for name, value in non_default(component).items()}
    lines = [f"parameters: {', '.join(f'{name} {to_text(value)}' for name, value in given.items()) or 'all default'}"]
    return lines + [f"note: {line}" for line in (without_effect(params["finetune"]) if "finetune" in params else [])]


def import_tokenizer(params: ModelImportParams, task: "Task[State]", folder: Path) -> tuple[Any, Any]:
    """(config, tokenizer) of the model that will be imported. Raises: ParameterError, ModelError."""
    from finetune.model_selector import choose_source, fetch, find_files
    from finetune.models.loading import load_config, refuse_adapter_alone
    from finetune.models.tokenizers import load_tokenizer

    source, name = choose_source(params)
    if source == "huggingface_id" and not Path(name).is_dir():
        found = fetch(name, weights=False)
        return load_config(found), load_tokenizer(found, task)
    if (Path(name) / "adapter_config.json").is_file():
        refuse_adapter_alone(Path(name))
        return load_config(Path(name)), load_tokenizer(Path(name), task)
    files = find_files(Path(name))
    for path in (files.config, *files.tokenizer):
        shutil.copyfile(path, folder / path.name)
    return load_config(folder), load_tokenizer(folder, task)


def look_at_data(params: Any, task: "Task[State]", config: Any, tokenizer: Any) -> tuple["Lengths", int]:
    """(lengths of the training rows, expected windows of one evaluation). Raises: DataError."""
    from finetune import preprocess
    from finetune.models.tokenizers import longest_window
    from finetune.tasks import token_lengths

    splits = preprocess.usable_rows(params, task)
    rows, audits = splits.rows, splits.audits
    model_length = longest_window(config, tokenizer)
    state = task.data.fit(params, rows, model_length, tokenizer)
    config.update(task.model.head_config(state))
    preprocess.say_derived(params, task, state, rows, model_length)
    say(f"validation and test: {splits.source}")
    for name, kept in rows.items():
        say(f"{name}: {len(kept):,} rows")
        for line in audits[name].lines():
            say(f"  {line}")
    found = token_lengths.measure(rows["train"], task, tokenizer, state)
    for line in token_lengths.describe(found, state.max_seq_length):
        say(line)
    return found, round(len(rows["validation"]) * len(found.windows) / len(found.rows))


def look_at_training(
    params: FinetuneParams, task: "Task[State]", config: Any, lengths: "Lengths", evaluated: int, processes: int
) -> None:
    """Steps, memory and time. Raises: ParameterError, UnsupportedError."""
    from finetune.models import estimate
    from finetune.models.adapt import adaptations
    from finetune.models.loading import empty_model, refuse_16_bits
    from finetune.training.schedule import refuse_unsupported_here, schedule, without_effect_here

    refuse_unsupported_here(params, processes)
    refuse_16_bits(config, params.precision)
    empty = empty_model(config, task, params.attn_implementation)
    adaptations.refuse(params, empty)
    fsdp.refuse(params, empty)
    windows = lengths.expected_windows
    steps = schedule(params, windows, processes)
    for line in without_effect_here(params, steps):
        say(f"note: {line}")
    say(f"steps: {steps.total_steps:,} of {steps.global_batch} windows, about {windows:,} windows in an epoch")
    trained = steps.total_steps * steps.global_batch // processes
    evaluations = steps.total_steps // steps.evaluation_steps
    for line in adaptations.adapt(empty, replace(params, finetune_in_4bit=False)).said:
        say(line)
    need = estimate.estimate(config, task, params, lengths.windows, trained, evaluations * evaluated // processes)
    free, wanted = estimate.available_bytes(), need.state_bytes + need.activation_bytes
    parts = f"{gigabytes(need.state_bytes)} of it weights, gradients and optimizer"
    say(f"memory: about {gigabytes(wanted)} for each process, {parts}; {gigabytes(free)} are free here")
    if params.apply_deepspeed or params.apply_fsdp:
        say("  (counted whole: it is cut up among the processes, in ways that are not counted here)")
    if not estimate.on_gpu():
        say("  (on a CPU, gaps in the heap between batches of other lengths may add half as much again)")
    if wanted * processes > free:
        smaller = max(1, params.per_device_train_batch_size // 2)
        say(f"warning: that may not fit; --per_device_train_batch_size {smaller}")
    say(f"time: about {duration(need.seconds)} of training and evaluation, if it runs on this machine alone")


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """In the unit that a person would use."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


if __name__ == "__main__":
    run_main(main)
