"""What can go wrong on GPUs alone, a line a check: for half an hour on one GPU, and another on two.

    make demo    # fetches the model
    .venv/bin/python benchmarks/gpu_checks.py OUT              # all that this machine has the GPUs for
    .venv/bin/python benchmarks/gpu_checks.py OUT zero2 resume # some of them
    .venv/bin/python benchmarks/gpu_checks.py OUT --cpu        # as processes on the CPU, where that makes sense

Each is a run of the finetune component on the bundled samples, of 12 steps where nothing else is said, to a saved model
that is loaded afresh and proved. OUT keeps the log of each, and checks.json. The exit code is 1 if a check failed.
"""

import filecmp
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"
QUESTIONS, TAGS = "question_answering", "token_classification"
Given = dict[str, Any]
SPLITS = ("train", "validation", "test")
SECONDS = 600  # for a run
WEIGHTS = Path("pytorch/model.safetensors")
COMPLETE = "complete"  # the file that a checkpoint has once it is whole
ZERO2, ZERO3 = ({"apply_deepspeed": "true", "deepspeed_stage": stage} for stage in (2, 3))
LORA, QLORA = ({"apply_lora": "true", "finetune_in_4bit": bits} for bits in ("false", "true"))
EXACT = {"enable_full_determinism": "true"}
OFFLOADED = {
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}


@dataclass(frozen=True)
class Place:
    """Where a check may write, and how its processes are started."""

    folder: Path
    data: Path
    cpu: bool

    def start(self, name: str, given: Given, processes: int = 1, task: str = QUESTIONS) -> "subprocess.Popen[bytes]":
        """Start a run in OUT/NAME, whose output goes to its log."""
        usual: Given = {
            "preprocess_output": self.data / task / "rows",
            "model_selector_output": self.data / task / "model",
            "pytorch_model_folder": self.folder / name / "pytorch",
            "mlflow_model_folder": self.folder / name / "mlflow",
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 16,
            "logging_strategy": "steps",
            "logging_steps": 4,
        }
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
        words = [word for key, value in {**usual, **given}.items() for word in (f"--{key}", str(value))]
        return self.begin(name, [*launch, "-m", "finetune.run", "--task", task, *words])

    def begin(self, name: str, words: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Start Python with these words; what it prints goes to the log of the check."""
        env = {**os.environ, **({"CUDA_VISIBLE_DEVICES": "-1"} if self.cpu else {})}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=self.folder,
                start_new_session=True,
            )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Check:
    """A run by parameters, its exit code, and what it says; or a function that returns what is wrong."""

    name: str
    given: Given = field(default_factory=dict)
    gpus: int = 1
    task: str = QUESTIONS
    code: int = 0
    says: str = ""
    packages: tuple[str, ...] = ()
    on_cpu: bool = False  # it makes sense there too
    own: Callable[[Place, "Check"], str] | None = None

    def lacking(self, place: Place) -> str:
        """Return why it can't be tried here; "" if it can."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed"
        if place.cpu:
            return "" if self.on_cpu else "on GPUs alone"
        there = torch.cuda.device_count()
        return "" if there >= self.gpus else f"{self.gpus} GPUs are needed, there are {there}"


def by_run(place: Place, check: Check) -> str:
    """Return what is wrong with the run of a check, "" if nothing is."""
    return ended(place, check, place.start(check.name, check.given, check.gpus, check.task))


def ended(place: Place, check: Check, process: "subprocess.Popen[bytes]") -> str:
    """Wait for a run, and return what is wrong with its exit code or its words."""
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"not done after {SECONDS} s"
    said = place.said(check.name)
    if code != check.code:
        return f"exit code {code} instead of {check.code}: {(said.splitlines() or [''])[-1]}"
    if place.cpu or check.says in said:
        return ""
    return f"it doesn't say {check.says!r}"


def driver(_place: Place, _check: Check) -> str:
    """Print what there is, and return what doesn't fit."""
    nvcc, smi = (shutil.which(name) for name in ("nvcc", "nvidia-smi"))
    print(f"     torch {torch.__version__}, CUDA {torch.version.cuda}, nvcc {nvcc or 'not there'}")
    if smi:
        asked = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        print("     " + subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
    if not torch.cuda.is_available():
        return "torch sees no GPU: its driver is missing, or older than the CUDA of torch"
    product = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16) @ torch.ones(64, 64, device="cuda").bfloat16()
    return "" if product[0, 0].item() == 64 else "a product in bf16 is wrong"


def twice(place: Place, check: Check) -> str:
    """Return what is wrong with two runs of one command: their weights must be the same, bit for bit."""
    for name in ("first", "second"):
        wrong = ended(place, check, place.start(check.name, moved(place, check, name), check.gpus, check.task))
        if wrong:
            return f"{name} run: {wrong}"
    return other_weights(place, check, "first", "second")


def resumed(place: Place, check: Check) -> str:
    """Return what is wrong with a run that is stopped after a checkpoint and goes on, beside one that isn't stopped."""
    saved = {**check.given, "save_steps": 4, "max_steps": 40}
    wrong = ended(place, check, place.start(check.name, {**saved, **moved(place, check, "whole")}, check.gpus))
    if wrong:
        return f"whole run: {wrong}"
    stopped = {**saved, **moved(place, check, "stopped")}
    process = place.start(check.name, stopped, check.gpus)
    while process.poll() is None and not list(
        place.folder.glob(f"{check.name}/stopped/pytorch/checkpoint-*/{COMPLETE}")
    ):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(SECONDS)
    again = {**stopped, "resume_from_checkpoint": "true"}
    wrong = ended(place, check, place.start(check.name, again, check.gpus))
    return wrong or other_weights(place, check, "whole", "stopped")


def tested(place: Place, check: Check) -> str:
    """Return what is wrong with a test that runs on GPUs alone."""
    folder = ROOT / "tests" / "models" / "kernels"
    words = ["-m", "pytest", "-c", str(ROOT / "pyproject.toml"), str(folder), "-k", "gpu"]
    return ended(place, check, place.begin(check.name, words))


def recorded(place: Place, check: Check) -> str:
    """Return what is wrong with a run by CUDA graphs: they must be right, and right for all lengths."""
    wrong = by_run(place, check)
    lines = [line for line in place.said(check.name).splitlines() if "cuda_graphs: not used" in line]
    return wrong or "".join(lines[:1])


def crowded(place: Place, check: Check) -> str:
    """Return what is wrong with the search for a batch on a GPU of which another process leaves 2 GiB."""
    hold = "import torch, time; free, _ = torch.cuda.mem_get_info(); gib = 2**30; "
    hold += "kept = torch.empty(free - 2 * gib, dtype=torch.uint8, device='cuda'); print('held', flush=True); "
    other = place.begin(f"{check.name}_other", ["-c", hold + "time.sleep(600)"])
    try:
        while other.poll() is None and "held" not in place.said(f"{check.name}_other"):
            time.sleep(0.2)
        wrong = by_run(place, check)
    finally:
        other.kill()
    found = re.search(r"auto_find_batch_size: (\d+) ", place.said(check.name))
    return wrong or ("" if found and int(found[1]) < 65536 else "memory didn't run out")


def evaluated(place: Place, check: Check) -> str:
    """Return what is wrong with the evaluation of the model that `lora` has saved."""
    words = ["--preprocess_output", str(place.data / QUESTIONS / "rows"), "--pytorch_model_folder", "lora/pytorch"]
    words += ["--evaluation_result", str(place.folder / check.name)]
    return ended(place, check, place.begin(check.name, ["-m", "finetune.evaluation", "--task", QUESTIONS, *words]))


def moved(place: Place, check: Check, name: str) -> Given:
    """Return the parameters of a check with folders of their own within its folder."""
    folder = place.folder / check.name / name
    return {**check.given, "pytorch_model_folder": folder / "pytorch", "mlflow_model_folder": folder / "mlflow"}


def other_weights(place: Place, check: Check, one: str, two: str) -> str:
    """Return that two runs have other weights; "" if they are the same."""
    files = (place.folder / check.name / name / WEIGHTS for name in (one, two))
    return "" if filecmp.cmp(*files, shallow=False) else f"the weights of {one} and {two} differ"


def killed(place: Place, check: Check) -> str:
    """Return what is wrong with the ending of a run of which one process is killed: the others say which."""
    process = place.start(check.name, {**check.given, "max_steps": 100_000}, check.gpus)
    while process.poll() is None and "loss" not in place.said(check.name):
        time.sleep(0.2)
    asked = ["pgrep", "-P", str(process.pid)]
    ranks = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    if not ranks:
        return ended(place, check, process)
    os.kill(int(ranks[-1]), signal.SIGKILL)
    return ended(place, check, process)


# In the order of their worth.
CHECKS = (
    Check("driver", own=driver),
    Check("bf16", {"precision": "bf16"}, says="cuda, precision bf16"),
    Check("padding_free", packages=("pytest", "hypothesis"), own=tested, says="passed"),
    Check("zero2", ZERO2, packages=("deepspeed",), on_cpu=True),
    Check("zero3", ZERO3, packages=("deepspeed",), on_cpu=True),
    Check("qlora", {**QLORA, "precision": "bf16"}, packages=("bitsandbytes",)),
    Check("cuda_graphs", {"precision": "bf16", "cuda_graphs": "true"}, own=recorded),
    Check("fp16", {"precision": "16"}),
    Check("fp16_tags", {"precision": "16"}, task=TAGS),
    Check("batch_search", {"auto_find_batch_size": "true", "per_device_train_batch_size": 65536}, own=crowded),
    Check("determinism", EXACT, own=twice, on_cpu=True),
    Check("compile", {"torch_compile": "true"}),
    Check("resume", EXACT, own=resumed, on_cpu=True),
    Check("offload", {"apply_deepspeed": "true", "deepspeed": "offload.json"}, packages=("deepspeed",)),
    Check("lora", LORA, on_cpu=True),
    Check("flash", {"attn_implementation": "flash_attention_2", "precision": "bf16"}, packages=("flash_attn",)),
    Check("teacher", {"teacher_model_path": "lora/pytorch"}, on_cpu=True),
    Check("evaluation", own=evaluated, on_cpu=True),
    Check("ddp", {}, gpus=2, on_cpu=True),
    Check("fsdp", {"apply_fsdp": "true"}, gpus=2),
    Check("fsdp_lora", {"apply_fsdp": "true", **LORA}, gpus=2),
    Check("fsdp_bf16", {"apply_fsdp": "true", "precision": "bf16"}, gpus=2),
    Check("zero2_of_two", ZERO2, gpus=2, packages=("deepspeed",), on_cpu=True),
    Check("zero3_of_two", ZERO3, gpus=2, packages=("deepspeed",), on_cpu=True),
    Check("zero3_fp16", {**ZERO3, "precision": "16"}, gpus=2, packages=("deepspeed",)),
    Check("qlora_of_two", QLORA, gpus=2, packages=("bitsandbytes",)),
    Check("killed", {}, gpus=2, code=1, own=killed, on_cpu=True),
)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder, names = Path(sys.argv[1]).absolute(), [word for word in sys.argv[2:] if word != "--cpu"]
    if unknown := set(names) - {check.name for check in CHECKS}:
        sys.exit(f"there is no check {', '.join(sorted(unknown))}; there are {', '.join(one.name for one in CHECKS)}")
    folder.mkdir(parents=True)
    place = Place(folder, folder / "data", cpu="--cpu" in sys.argv)
    prepare(place)
    found = {check.name: tried(place, check) for check in CHECKS if not names or check.name in names}
    (folder / "checks.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, result in found.items() if result["result"] == "FAILED"]
    skipped = [name for name, result in found.items() if result["result"] == "skipped"]
    print(
        f"{len(found) - len(failed) - len(skipped)} ok, {len(failed)} failed, {len(skipped)} skipped; logs in {folder}"
    )
    sys.exit(bool(failed))


def prepare(place: Place) -> None:
    """Import the model and encode the samples, for both tasks."""
    (place.folder / "offload.json").write_text(json.dumps(OFFLOADED), encoding="utf-8")
    for task in (QUESTIONS, TAGS):
        to, samples = place.data / task, ROOT / "examples" / task
        for words in (
            ["finetune.model_selector", "--pytorch_model_path", MODEL, "--output_dir", to / "model"],
            ["finetune.preprocess", "--model_selector_output", to / "model", "--output_dir", to / "rows"]
            + [word for split in SPLITS for word in (f"--{split}_file_path", samples / f"{split}.jsonl")]
            + ["--max_seq_length", 128],
        ):
            process = place.begin("data", ["-m", *map(str, words), "--task", task])
            if process.wait(SECONDS):
                sys.exit(place.said("data"))


def tried(place: Place, check: Check) -> dict[str, Any]:
    """Try a check, print its line, and return what was found."""
    why, started = check.lacking(place), time.monotonic()
    result = "skipped" if why else "ok"
    if not why:
        why = (check.own or by_run)(place, check)
        result = "FAILED" if why else "ok"
    seconds = round(time.monotonic() - started)
    print(f"{result:8} {check.name:14} {f'{seconds} s' if result != 'skipped' else '':>6}  {why}".rstrip(), flush=True)
    return {"result": result, "seconds": seconds, "why": why}


if __name__ == "__main__":
    main()
