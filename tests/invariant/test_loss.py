"""Settings that must give one loss trajectory, through the real command line; and a plain loop that gives it too."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering, get_linear_schedule_with_warmup, set_seed

from finetune import model_selector, preprocess, run
from finetune.sampling import LengthGroupedSampler
from finetune.training import lengths
from tests.conftest import ROOT, build_tiny_model, finetune_words, sample_rows, write_jsonl

pytestmark = pytest.mark.slow
STEPS = 20
SHARED = {"learning_rate": 1e-3, "max_steps": STEPS, "warmup_steps": 3, "logging_strategy": "steps", "logging_steps": 1}
SHARED |= {"weight_decay": 0.01, "evaluation_strategy": "steps", "eval_steps": STEPS}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data without dropout, for 160 rows."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "tiny").mkdir()
    tiny = build_tiny_model(folder / "tiny", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    task = ["--task", "question_answering"]
    model_selector.main([*task, "--pytorch_model_path", str(tiny), "--output_dir", str(folder / "model")])
    words = [
        "--model_selector_output",
        str(folder / "model"),
        "--output_dir",
        str(folder / "data"),
        "--doc_stride",
        "32",
    ]
    for split, count in (("train", 160), ("validation", 13), ("test", 12)):
        words += [f"--{split}_file_path", str(write_jsonl(folder / f"{split}.jsonl", sample_rows(split)[:count]))]
    preprocess.main([*task, *words])
    return folder


def trajectory(folder: Path) -> tuple[list[float], list[float], float]:
    """(losses, gradient norms, evaluation loss) of a run of STEPS steps."""
    history = json.loads((folder / "pytorch" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    (evaluated,) = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return [entry["loss"] for entry in steps], [entry["grad_norm"] for entry in steps], evaluated


@pytest.fixture(scope="module")
def whole_batch(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], list[float], float]:
    folder = tmp_path_factory.mktemp("whole")
    run.main(finetune_words(prepared, folder, **SHARED, per_device_train_batch_size=8))
    return trajectory(folder)


@pytest.mark.parametrize(("batch", "accumulation", "processes"), [(4, 2, 1), (2, 4, 1), (4, 1, 2)])
def test_cut_up_steps(
    prepared: Path,
    tmp_path: Path,
    whole_batch: tuple[list[float], list[float], float],
    batch: int,
    accumulation: int,
    processes: int,
) -> None:
    words = finetune_words(
        prepared, tmp_path, **SHARED, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
    )
    launch(words, processes)
    losses, norms, evaluated = trajectory(tmp_path)
    assert losses == pytest.approx(whole_batch[0], abs=1e-5)
    assert norms == pytest.approx(whole_batch[1], abs=1e-4)
    assert evaluated == pytest.approx(whole_batch[2], abs=1e-5)


def launch(words: list[str], processes: int) -> None:
    """Start the processes as Azure ML does, with a variable for each rank."""
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29511, "OMP_NUM_THREADS": 1}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "finetune.run", *words],
            env={**os.environ, **{k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}},
        )
        for rank in range(processes)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * processes


def test_plain_loop(prepared: Path, whole_batch: tuple[list[float], list[float], float]) -> None:
    model_folder = prepared / "model" / "model"
    assert whole_batch[0] == pytest.approx(
        plain_losses(model_folder, prepared / "data" / "train" / "windows", SHARED["learning_rate"]), abs=1e-5
    )


def test_plain_loop_of_a_real_model_on_real_questions(real_data: Path, tmp_path: Path) -> None:
    minilm = ROOT / "models" / "all-MiniLM-L6-v2"
    if not minilm.is_dir():
        pytest.skip(f"no model at {minilm}: make demo fetches it")
    shutil.copytree(minilm, tmp_path / "minilm")
    config = tmp_path / "minilm" / "config.json"
    config.write_text(config.read_text().replace('_dropout_prob": 0.1', '_dropout_prob": 0.0'))
    task = ["--task", "question_answering"]
    model_selector.main(
        [*task, "--pytorch_model_path", str(tmp_path / "minilm"), "--output_dir", str(tmp_path / "model")]
    )
    words = ["--model_selector_output", str(tmp_path / "model"), "--output_dir", str(tmp_path / "data")]
    files = {"train": "train", "validation": "validation", "test": "validation"}
    words += [
        w
        for split, name in files.items()
        for w in (f"--{split}_file_path", str(real_data / "squad_v1" / "bench" / f"{name}.parquet"))
    ]
    preprocess.main(
        [*task, *words, "--max_seq_length", "384", "--max_train_samples", "400", "--max_eval_samples", "16"]
    )
    given = {**SHARED, "learning_rate": 1e-4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16}
    run.main(finetune_words(tmp_path, tmp_path / "out", **given))
    losses, _, _ = trajectory(tmp_path / "out")
    plain = plain_losses(tmp_path / "model" / "model", tmp_path / "data" / "train" / "windows", 1e-4)
    print("largest difference of 20 losses:", max(abs(one - other) for one, other in zip(losses, plain, strict=True)))
    assert losses == pytest.approx(plain, abs=1e-5)


def plain_losses(model_folder: Path, windows: Path, learning_rate: float) -> list[float]:
    """A loop with nothing of ours but the order of the windows."""
    set_seed(42)
    model = AutoModelForQuestionAnswering.from_pretrained(model_folder).train()
    plain = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for name, p in model.named_parameters() if not (name.endswith("bias") or "LayerNorm" in name)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    scheduler = get_linear_schedule_with_warmup(optimizer, SHARED["warmup_steps"], STEPS)
    found = []
    for batch in plain_batches(windows):
        outputs = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
        padding = batch["attention_mask"] == 0
        start = functional.cross_entropy(
            outputs.start_logits.masked_fill(padding, -torch.inf), batch["start_positions"]
        )
        end = functional.cross_entropy(outputs.end_logits.masked_fill(padding, -torch.inf), batch["end_positions"])
        loss = (start + end) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        found.append(loss.item())
        if len(found) == STEPS:
            break
    return found


def plain_batches(windows: Path) -> Iterator[dict[str, torch.Tensor]]:
    data = load_from_disk(windows)
    order = LengthGroupedSampler(lengths(data), 8, seed=42)
    for epoch in range(STEPS):
        order.set_epoch(epoch)
        chosen = list(order)
        for first in range(0, len(chosen), 8):
            rows = [data[i] for i in chosen[first : first + 8]]
            longest = max(len(row["input_ids"]) for row in rows)
            batch = {
                name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows])
                for name in ("input_ids", "attention_mask", "token_type_ids")
            }
            yield batch | {
                name: torch.tensor([row[name] for row in rows]) for name in ("start_positions", "end_positions")
            }
