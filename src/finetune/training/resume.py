"""Compare a run with the one that left a checkpoint, which it must have much in common with to go on from it."""

import hashlib
import json
import os
import pickle
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import serialization
from transformers.trainer_pt_utils import safe_globals

from finetune.core.console import say, some
from finetune.core.errors import Fault, ModelError, ParameterError, first_line
from finetune.core.launch import world_size
from finetune.core.reading import json_object, misfit
from finetune.core.types import Json
from finetune.data.folders import Preprocessed, SelectedModel
from finetune.distributed import zero_engine
from finetune.models.teacher import weights_of
from finetune.params.finetune import FIXED_ON_RESUME, FinetuneParams
from finetune.params.schema import params_of, to_text
from finetune.training.checkpoints import COMPLETE, STATE, checkpoints, why_incomplete
from finetune.training.schedule import Schedule

MEGABYTE = 2**20
OF_ITS_END = ("resume_from_checkpoint", "hang_timeout")  # parameters that change what a run does when it ends
# PyTorch's own switches: pickles are read as data, whatever the caller asks for.
DATA_ALONE, ANYTHING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@dataclass(frozen=True)
class Marker:
    """The run, as the marker of a checkpoint describes it; one that differs in any of it can't go on from there."""

    windows: int
    data: str  # fingerprint of the training windows
    model: str  # fingerprint of the imported weights
    teacher: str  # fingerprint of the teacher's, "" without one
    global_batch: int
    total_steps: int
    batch: list[int]  # per_device_train_batch_size and gradient_accumulation_steps that ran
    wanted_batch: list[int]  # those that were asked for
    processes: int  # may be others: a note says what that means
    engine: Json  # how ZeRO or FSDP shards the run
    parameters: Json  # those of FIXED_ON_RESUME
    command: Json  # all of them, but for folders and for whether to go on

    @property
    def name(self) -> str:
        """A name of the run, the same for every process and for each time that its command is given."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def of(
        cls, params: FinetuneParams, wanted: FinetuneParams, steps: Schedule, windows: int, engine: Json
    ) -> "Marker":
        """Return the marker of a run with `params`, whose batch may be smaller than wanted."""
        data, model, teacher = _inputs(params)
        return cls(
            windows=windows,
            data=data,
            model=model,
            teacher=teacher,
            global_batch=steps.global_batch,
            total_steps=steps.total_steps,
            batch=_batch(params),
            wanted_batch=_batch(wanted),
            processes=world_size(),
            engine=engine,
            parameters={name: vars(params).get(name) for name in FIXED_ON_RESUME},  # None: the task lacks it
            command=_command(wanted),
        )

    @classmethod
    def read(cls, checkpoint: Path) -> "Marker":
        """Return the marker of the checkpoint. Raises: ParameterError if another version of this package left it."""
        values = json_object(checkpoint / COMPLETE).get("run") or {}
        if misfit(values, cls, "run") or values["parameters"].keys() != set(FIXED_ON_RESUME):
            what = f"{checkpoint.name} was left by another version of finetune"
            raise ParameterError(Fault(what, where=str(checkpoint), fix="--resume_from_checkpoint false"))
        return cls(**values)


def _inputs(params: FinetuneParams) -> tuple[str, str, str]:
    """Return fingerprints of the training windows, of the imported weights, and of the teacher's, "" without one."""
    model, teacher = SelectedModel.model_folder(params.model_selector_output), params.teacher_model_path
    data = Preprocessed.windows_folder(params.preprocess_output, "train")
    taught_by = fingerprint(weights_of(teacher).glob("*.safetensors"), ends=True) if teacher else ""
    return fingerprint(data.glob("*.arrow")), fingerprint(model.rglob("*.safetensors"), ends=True), taught_by


def _command(params: FinetuneParams) -> Json:
    given = [p.name for p in params_of(type(params)) if not p.is_port and p.name not in OF_ITS_END]
    return {name: vars(params)[name] for name in given}


def interrupted(params: FinetuneParams, saved: str | None) -> Path | None:
    """Return the newest complete checkpoint if this same command left it, and was interrupted: platforms run it again.

    `saved` names the run whose model lies in the folder. From there it ends with the weights of a run begun anew.
    """
    newest = next((path for path in checkpoints(params.pytorch_model_folder) if not why_incomplete(path)), None)
    if newest is None:
        return None
    try:
        was = Marker.read(newest)
    except ParameterError:
        return None
    same = (was.command, was.processes) == (_command(params), world_size()) and was.name != saved
    return newest if same and (was.data, was.model, was.teacher) == _inputs(params) else None


def _batch(params: FinetuneParams) -> list[int]:
    return [params.per_device_train_batch_size, params.gradient_accumulation_steps]


def with_found_batch(params: FinetuneParams, checkpoint: Path) -> FinetuneParams:
    """Return the parameters; with auto_find_batch_size, with the batch that the run that left the checkpoint found."""
    was = Marker.read(checkpoint)
    if not params.auto_find_batch_size or was.wanted_batch != _batch(params):
        return params
    batch, accumulation = was.batch
    return replace(params, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)


def refuse_other_run(checkpoint: Path, now: Marker, task: str) -> None:
    """Raise ParameterError, with everything in which the run differs from the one that left the checkpoint."""
    was = Marker.read(checkpoint)
    faults = []
    if was.windows != now.windows:
        what = f"{checkpoint.name} has {was.windows} training windows, this run has {now.windows}"
        faults.append(Fault(what, fix="give the same data, or --resume_from_checkpoint false"))
    elif was.data != now.data:
        what = f"{checkpoint.name} was trained on other rows than those of preprocess_output"
        faults.append(Fault(what, fix="give the same data, or --resume_from_checkpoint false"))
    if was.model != now.model:
        what = f"{checkpoint.name} began with other weights than those of model_selector_output"
        faults.append(Fault(what, fix="give the same model, or --resume_from_checkpoint false"))
    if was.teacher != now.teacher:
        what = f"{checkpoint.name} was {'trained without a' if not was.teacher else 'taught by another'} teacher"
        faults.append(Fault(what, fix="give the same --teacher_model_path, or --resume_from_checkpoint false"))
    by_tokens = "max_tokens_per_batch"  # where it differs, that is said below
    if was.global_batch != now.global_batch and was.parameters[by_tokens] == now.parameters[by_tokens]:
        of, name = ("tokens", by_tokens) if now.parameters[by_tokens] else ("windows", "per_device_train_batch_size")
        why = f"that is {name} x gradient_accumulation_steps x processes"
        what = f"{checkpoint.name} has {was.global_batch} {of} in a step, this run has {now.global_batch}"
        faults.append(Fault(what, why=why, fix="give the same numbers, or --resume_from_checkpoint false"))
    if was.total_steps != now.total_steps and not now.parameters["lr_scheduler_type"].startswith("constant"):
        why = f"the learning rate falls over all of them ({now.parameters['lr_scheduler_type']})"
        what = f"{checkpoint.name} is of a run of {was.total_steps} steps, this one has {now.total_steps}"
        fix = "give the same numbers, or train the finished model further as --pytorch_model_path of a new import"
        faults.append(Fault(what, why=why, fix=fix))
    if was.engine != now.engine:
        why = "what a checkpoint holds is sharded among the processes of its run"
        what = f"{checkpoint.name} was sharded by {_shown(was.engine)}, this run by {_shown(now.engine)}"
        fix = "give the same, or --resume_from_checkpoint false"
        if "ZeRO stage" in was.engine and not was.parameters["apply_lora"]:  # of which a checkpoint has adapters alone
            fix = (
                f"give the same; or begin with its weights: `python -m finetune.model_selector --task {task} "
                f"--pytorch_model_path {shlex.quote(str(checkpoint))} --output_dir FOLDER`, "
                "and then --model_selector_output FOLDER --resume_from_checkpoint false"
            )
        faults.append(Fault(what, why=why, fix=fix))
    for name, value in now.parameters.items():
        if was.parameters[name] != value:
            what = f"{checkpoint.name} was made with {name} {to_text(was.parameters[name])}, not {to_text(value)}"
            faults.append(Fault(what, fix=f"--{name} {to_text(was.parameters[name])}"))
    if faults:
        raise ParameterError(*faults)
    if was.processes != now.processes:
        why = "dropout draws other numbers than it would have"
        say(f"note: {checkpoint.name} was left by {was.processes} processes, this run has {now.processes}: {why}")


def _shown(engine: Json) -> str:
    return ", ".join(f"{name} {value}" for name, value in engine.items()) or "nothing"


@contextmanager
def reading_data_alone(checkpoint: Path | None, of_deepspeed: bool) -> Iterator[None]:
    """Let nothing be unpickled but data: DeepSpeed would run whatever a replaced file says.

    Raises: ModelError, before anything is read of the checkpoint, with each file of it that holds more.
    """
    before = {name: os.environ.pop(name, None) for name in (DATA_ALONE, ANYTHING)}
    os.environ[DATA_ALONE] = "1"
    try:
        with serialization.safe_globals(zero_engine.classes_of_shards() if of_deepspeed else []):
            if checkpoint:
                refuse_code(checkpoint)
            yield
    except pickle.UnpicklingError as error:  # names that are put together while it is read
        raise ModelError(_not_data(checkpoint or Path("a checkpoint"), first_line(error))) from None
    finally:
        del os.environ[DATA_ALONE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def refuse_code(checkpoint: Path) -> None:
    """Raise ModelError if a file of the checkpoint, or of the best one up to it, is no pickle of data alone."""
    step = json_object(checkpoint / STATE).get("best_global_step")
    faults = []
    for folder in dict.fromkeys((checkpoint, checkpoint.with_name(f"checkpoint-{step}"))):
        for path in sorted(path for ending in ("pt", "pth", "bin") for path in folder.rglob(f"*.{ending}")):
            if why := _why_not_data(path):
                faults.append(_not_data(path, why))
    if faults:
        raise ModelError(*faults)


def _why_not_data(path: Path) -> str:
    try:
        with safe_globals():  # NumPy's arrays, in random states
            called = serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # a broken pickle can raise anything
        return first_line(error) or type(error).__name__
    return f"reading it would call {some(sorted(called))}" if called else ""


def _not_data(path: Path, why: str) -> Fault:
    fix = "remove that checkpoint, and the run goes on from the one before; or --resume_from_checkpoint false"
    return Fault(f"{path} is damaged, or holds more than data", why=why, fix=fix)


def why_over(checkpoint: Path, params: FinetuneParams, steps: Schedule) -> str:
    """Return why there is nothing left to train after the checkpoint; '' if there is."""
    state = json_object(checkpoint / STATE)
    if state.get("global_step", 0) >= steps.total_steps:
        return f"it is the last of {steps.total_steps} steps"
    stopping = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback")
    without = stopping["attributes"]["early_stopping_patience_counter"] if stopping else 0
    if params.apply_early_stopping and without >= params.early_stopping_patience:
        return f"training had stopped early, after {without} evaluations without improvement"
    return ""


def fingerprint(files: Iterable[Path], ends: bool = False) -> str:
    """Return a digest of files; with `ends`, of sizes and both ends, which is enough for gigabytes of weights."""
    found = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            size = path.stat().st_size
            found.update(f"{size} ".encode())
            if not ends or size <= 2 * MEGABYTE:
                found.update(hashlib.file_digest(file, "sha256").digest())
                continue
            found.update(file.read(MEGABYTE))
            file.seek(size - MEGABYTE)
            found.update(file.read())
    return found.hexdigest()[:16]
