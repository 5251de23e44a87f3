"""Peak GPU memory and speed of ZeRO-2 and ZeRO-3 beside DDP, in bf16 and fp16, on all GPUs of a machine.

    python benchmarks/zero_memory.py --model MODEL --data TRAIN.jsonl --out /tmp/zero [--steps 30] [--batch 8]

Each run is `torchrun -m finetune.run` for question answering on MODEL, a local folder. A table is printed; the figures
are the largest over the processes, as PyTorch counts them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ENGINES = {
    "DDP": [],
    "ZeRO-2": ["--apply_deepspeed", "true", "--deepspeed_stage", "2"],
    "ZeRO-3": ["--apply_deepspeed", "true", "--deepspeed_stage", "3"],
    "FSDP": ["--apply_fsdp", "true"],
}
# Runs one process of training, then leaves its peak beside the model.
MEASURED = """
import atexit, json, sys
import torch
from finetune import run
from finetune.core import launch
from finetune.core.process import run_main

def tell():
    folder = sys.argv[sys.argv.index("--pytorch_model_folder") + 1]
    with open(f"{folder}/peak{launch.rank()}.json", "w") as file:
        json.dump(torch.cuda.max_memory_allocated() / 2**30, file)

atexit.register(tell)
run_main(run.main)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", default="30")
    parser.add_argument("--batch", default="8")
    given = parser.parse_args()
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        sys.exit("no GPU is visible here")
    task = ["--task", "question_answering"]
    model, data = str(given.out / "model"), str(given.out / "data")
    call("-m", "finetune.model_selector", *task, "--pytorch_model_path", given.model, "--output_dir", model)
    words = ["--train_file_path", given.data, "--model_selector_output", model, "--output_dir", data]
    call("-m", "finetune.preprocess", *task, *words)
    (given.out / "measured.py").write_text(MEASURED, encoding="utf-8")
    print("| engine | precision | peak memory of a GPU, GiB | samples/s |\n| --- | --- | --- | --- |")
    for precision in ("bf16", "16"):
        for engine, own in ENGINES.items():
            if engine == "FSDP" and gpus == 1:
                continue  # which is refused: nothing to shard the model with
            folder = given.out / f"{engine}_{precision}"
            words = ["--preprocess_output", data, "--model_selector_output", model, "--precision", precision]
            words += ["--pytorch_model_folder", str(folder), "--mlflow_model_folder", str(folder / "mlflow")]
            words += ["--max_steps", given.steps, "--per_device_train_batch_size", given.batch]
            call("-m", "torch.distributed.run", "--nproc-per-node", str(gpus), str(given.out / "measured.py"), *task,
                 *words, "--throughput_warmup_steps", "5", *own)  # fmt: skip
            peaks = [json.loads(path.read_text()) for path in folder.glob("peak*.json")]
            speed = json.loads((folder / "training.json").read_text())["speed"]["train_samples_per_second"]
            print(f"| {engine} | {precision} | {max(peaks):.2f} | {speed:.1f} |", flush=True)


def call(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])


if __name__ == "__main__":
    main()
