"""Settings that must give one loss trajectory, through the real command line; and a plain loop that gives it too."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    get_linear_schedule_with_warmup,
    set_seed,
)

from finetune import model_selector, preprocess, run
from finetune.core.errors import StoppedError
from finetune.data.sampler import LengthGroupedSampler, TokenBudgetSampler, window_lengths
from finetune.models.kernels import padding_free
from finetune.models.kernels.cuda_graphs import CudaGraphs
from finetune.training import attempts
from tests.conftest import ROOT, build_tiny_model, finetune_words, prepare
from tests.forking import Forks
from tests.launching import launch, stopping
from tests.models.kernels.conftest import by_formula
from tests.models.kernels.test_cuda_graphs import remembered

pytestmark = pytest.mark.slow
STEPS = 20
TOKENS = 384  # of two to a dozen windows
SHARED = {"learning_rate": 1e-3, "max_steps": STEPS, "warmup_steps": 3, "logging_strategy": "steps", "logging_steps": 1}
SHARED |= {"weight_decay": 0.01, "evaluation_strategy": "steps", "eval_steps": STEPS, "max_grad_norm": 0.5}
# Adam divides a gradient by its size: with the default epsilon, what is rounding noise in one run and nothing in
# another (the key bias of attention has no gradient) would become steps of the full learning rate.
SHARED |= {"adam_epsilon": 1e-4}
TIMES = ("eval_runtime", "eval_samples_per_second")
OPTIONS = {"question_answering": {"doc_stride": 32}, "token_classification": {}}


Taught = Callable[[torch.Tensor, Any, dict[str, torch.Tensor]], torch.Tensor]
Batches = Callable[[list[int], int], list[list[int]]]  # (lengths of windows, epoch)


class Trajectory(NamedTuple):
    """A run of STEPS steps."""

    losses: list[float]
    norms: list[float]  # before clipping
    evaluation: dict[str, float]  # loss and metrics
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=OPTIONS)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data without dropout, for 160 rows, whose numbers of words differ."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "tiny").mkdir()
    tiny = build_tiny_model(folder / "tiny", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return prepare(folder, tiny, request.param, (160, 13, 12), **OPTIONS[request.param])


def trajectory(folder: Path) -> Trajectory:
    checkpoint = folder / "pytorch" / f"checkpoint-{STEPS}"
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    (evaluated,) = [entry for entry in history if "eval_loss" in entry]
    evaluated = {name: evaluated[name] for name in evaluated if name.startswith("eval_") and name not in TIMES}
    weights = load_file(folder / "pytorch" / "model.safetensors")  # of the one evaluation, and the best
    return Trajectory([e["loss"] for e in steps], [e["grad_norm"] for e in steps], evaluated, weights)


@pytest.fixture(scope="module")
def whole_batch(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    folder = tmp_path_factory.mktemp("whole")
    run.main(finetune_words(prepared, folder, **SHARED, per_device_train_batch_size=8))
    return trajectory(folder)


@pytest.mark.parametrize(
    ("how", "batch", "accumulation", "stage"),
    [
        pytest.param("alone", 4, 2, None, marks=pytest.mark.thorough),
        pytest.param("alone", 2, 4, None, marks=pytest.mark.thorough),
        pytest.param("azure", 4, 1, None, marks=[pytest.mark.distributed, pytest.mark.thorough]),
        pytest.param("azure", 2, 2, None, marks=pytest.mark.distributed),
        pytest.param("torchrun", 2, 2, None, marks=[pytest.mark.distributed, pytest.mark.thorough]),
        pytest.param("mpirun", 4, 1, None, marks=[pytest.mark.distributed, pytest.mark.thorough]),
        pytest.param("nodes", 4, 1, None, marks=[pytest.mark.distributed, pytest.mark.thorough]),
        pytest.param("alone", 4, 2, 2, marks=[pytest.mark.distributed, pytest.mark.thorough]),
        pytest.param("torchrun", 4, 1, 1, marks=[pytest.mark.distributed, pytest.mark.thorough]),
        pytest.param("torchrun", 2, 2, 2, marks=[pytest.mark.distributed, pytest.mark.thorough]),
        pytest.param("azure", 2, 2, 3, marks=[pytest.mark.distributed, pytest.mark.thorough]),
    ],
)
def test_cut_up_steps(
    request: pytest.FixtureRequest,
    prepared: Path,
    tmp_path: Path,
    whole_batch: Trajectory,
    how: str,
    batch: int,
    accumulation: int,
    stage: int | None,
) -> None:
    """Steps of 8 windows: by accumulation, by processes however those are started, and by ZeRO."""
    words = finetune_words(
        prepared, tmp_path, **SHARED, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
    )
    if stage:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make test-distributed")
        config = tmp_path / "zero.json"
        config.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
        words += ["--apply_deepspeed", "true", "--deepspeed", str(config)]
    if how == "alone" and not stage:
        run.main(words)
    else:
        forks: Forks = request.getfixturevalue("forks_with_deepspeed" if stage else "forks")
        launched = launch(tmp_path, words, how, forks=forks)
        assert set(launched.codes()) == {0}, launched.said()
    shards = list((tmp_path / "pytorch").glob("checkpoint-*/global_step*/*optim_states.pt"))
    assert len(shards) == ((1 if how == "alone" else 2) if stage else 0)
    cut = trajectory(tmp_path)
    assert cut.losses == pytest.approx(whole_batch.losses, abs=1e-5)
    assert cut.norms == pytest.approx(whole_batch.norms, abs=1e-5)
    assert max(cut.norms) > SHARED["max_grad_norm"]
    assert cut.evaluation == pytest.approx(whole_batch.evaluation, abs=1e-5)
    furthest = max(float((cut.weights[name] - whole).abs().max()) for name, whole in whole_batch.weights.items())
    print(f"largest difference of a weight after {STEPS} steps: {furthest:.1e}")
    assert furthest < 1e-5


@pytest.mark.distributed
@pytest.mark.parametrize("prepared", ["question_answering"], indirect=True)
@pytest.mark.parametrize("processes", [(2, 1), pytest.param((1, 2), marks=pytest.mark.thorough)])
def test_another_number_of_processes(
    forks: Forks, prepared: Path, tmp_path: Path, whole_batch: Trajectory, processes: tuple[int, int]
) -> None:
    """A run that is stopped half way and goes on with more processes, or fewer, that make the same steps."""
    for count, code in zip(processes, [("-c", stopping(STEPS // 2)), ("-m", "finetune.run")], strict=True):
        given = {"per_device_train_batch_size": 8 // count, "resume_from_checkpoint": "true"}
        words = finetune_words(prepared, tmp_path, **SHARED, **given)
        launched = launch(tmp_path, words, "alone" if count == 1 else "azure", count, code, forks=forks)
        codes = set(launched.codes())
        assert codes == {StoppedError.exit_code if "-c" in code else 0}, launched.said()
    one, other = processes
    assert f"going on from checkpoint-{STEPS // 2}\n" in launched.said()
    assert f"was left by {one} processes, this run has {other}: dropout draws" in launched.said()
    found = trajectory(tmp_path)
    assert found.losses == pytest.approx(whole_batch.losses, abs=1e-5) and len(found.losses) == STEPS
    assert found.norms == pytest.approx(whole_batch.norms, abs=1e-5)
    assert all(float((found.weights[name] - whole).abs().max()) < 1e-5 for name, whole in whole_batch.weights.items())


def test_plain_loop(prepared: Path, whole_batch: Trajectory) -> None:
    assert whole_batch.losses == pytest.approx(plain_losses(prepared, SHARED["learning_rate"]), abs=1e-5)


def test_without_padding(prepared: Path, tmp_path: Path, whole_batch: Trajectory) -> None:
    run.main(finetune_words(prepared, tmp_path, **SHARED, per_device_train_batch_size=8, padding_free="always"))
    found = trajectory(tmp_path)
    assert found.losses == pytest.approx(whole_batch.losses, abs=1e-5)
    assert found.norms == pytest.approx(whole_batch.norms, abs=1e-5)
    assert found.evaluation == pytest.approx(whole_batch.evaluation, abs=1e-5)


def test_recorded_passes(
    prepared: Path, tmp_path: Path, whole_batch: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded on a CPU, with FlashAttention by its formula; four batches in a step, whose gradients add up."""
    made: list[CudaGraphs] = []

    def on_cpu(model: Any, params: Any, longest: int) -> tuple[CudaGraphs, list[str]]:
        made.append(CudaGraphs(model, longest, remembered))
        return made[-1], []

    monkeypatch.setattr(attempts, "cuda_graphs_of", on_cpu)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", by_formula)
    monkeypatch.setattr(padding_free, "has_flash", lambda query: True)
    given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "padding_free": "always"}
    run.main(finetune_words(prepared, tmp_path, **SHARED, **given))
    found = trajectory(tmp_path)
    assert not made[0].fails and made[0].passes
    assert found.losses == pytest.approx(whole_batch.losses, abs=1e-5)
    assert found.norms == pytest.approx(whole_batch.norms, abs=1e-5)


def test_so_many_tokens(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step is the mean over as many windows, or words, as the batch happens to have."""
    run.main(finetune_words(prepared, tmp_path, **SHARED, max_tokens_per_batch=TOKENS))
    assert f"{STEPS} steps of at most {TOKENS} tokens, 1 x" in capsys.readouterr().out
    plain = plain_losses(prepared, SHARED["learning_rate"], batches=so_many_tokens)
    assert trajectory(tmp_path).losses == pytest.approx(plain, abs=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("prepared", ["question_answering"], indirect=True)
@pytest.mark.parametrize("padding_free", ["auto", "always"])
@pytest.mark.thorough
def test_so_many_tokens_in_each_process(forks: Forks, prepared: Path, tmp_path: Path, padding_free: str) -> None:
    """Two batches in a step: those of two processes, or of one that accumulates."""
    given = {**SHARED, "max_tokens_per_batch": TOKENS}
    run.main(finetune_words(prepared, tmp_path / "one", **given, gradient_accumulation_steps=2))
    words = finetune_words(prepared, tmp_path / "two", **given, padding_free=padding_free)
    launched = launch(tmp_path, words, "azure", forks=forks)
    assert set(launched.codes()) == {0}, launched.said()
    one, two = trajectory(tmp_path / "one"), trajectory(tmp_path / "two")
    assert two.losses == pytest.approx(one.losses, abs=1e-5)
    assert two.norms == pytest.approx(one.norms, abs=1e-5)


@pytest.mark.parametrize("prepared", ["token_classification"], indirect=True)
@pytest.mark.parametrize(
    ("how", "batch", "accumulation"),
    [
        ("alone", 8, 1),
        pytest.param("alone", 2, 4, marks=pytest.mark.thorough),
        pytest.param("azure", 2, 2, marks=pytest.mark.distributed),
    ],
)
def test_weighted_steps(forks: Forks, prepared: Path, tmp_path: Path, how: str, batch: int, accumulation: int) -> None:
    """Steps of 8 windows whose classes have weights, however they are cut up, against a plain loop."""
    given = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    words = finetune_words(prepared, tmp_path, **SHARED, **given, class_weights="balanced")
    if how == "alone":
        run.main(words)
    else:
        launched = launch(tmp_path, words, how, forks=forks)
        assert set(launched.codes()) == {0}, launched.said()
    labels = torch.tensor([i for row in load_from_disk(prepared / "data" / "train" / "windows")["labels"] for i in row])
    counts = torch.bincount(labels[labels >= 0])
    assert counts.min() > 0
    plain = plain_losses(prepared, SHARED["learning_rate"], counts.sum() / (len(counts) * counts))
    assert trajectory(tmp_path).losses == pytest.approx(plain, abs=1e-5)


REAL = {
    "question_answering": ("squad_v1/bench/train.parquet", "squad_v1/bench/validation.parquet"),
    "token_classification": ("ner/wnut17/train.parquet", "ner/wnut17/validation.parquet"),
}


@pytest.mark.parametrize("task", REAL)
def test_plain_loop_of_a_real_model_on_real_rows(real_data: Path, tmp_path: Path, task: str) -> None:
    minilm = ROOT / "models" / "all-MiniLM-L6-v2"
    if not minilm.is_dir():
        pytest.skip(f"no model at {minilm}: make demo fetches it")
    shutil.copytree(minilm, tmp_path / "minilm")
    config = tmp_path / "minilm" / "config.json"
    config.write_text(config.read_text().replace('_dropout_prob": 0.1', '_dropout_prob": 0.0'))
    words = ["--task", task, "--pytorch_model_path", str(tmp_path / "minilm")]
    model_selector.main([*words, "--output_dir", str(tmp_path / "model")])
    words = ["--task", task, "--model_selector_output", str(tmp_path / "model"), "--output_dir", str(tmp_path / "data")]
    train, validation = (str(real_data / name) for name in REAL[task])
    words += ["--train_file_path", train, "--validation_file_path", validation, "--test_file_path", validation]
    preprocess.main([*words, "--max_seq_length", "384", "--max_train_samples", "400", "--max_eval_samples", "16"])
    given = {**SHARED, "learning_rate": 1e-4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16}
    run.main(finetune_words(tmp_path, tmp_path / "out", **given))
    losses, plain = trajectory(tmp_path / "out").losses, plain_losses(tmp_path, 1e-4)
    print("largest difference of 20 losses:", max(abs(one - other) for one, other in zip(losses, plain, strict=True)))
    assert losses == pytest.approx(plain, abs=1e-5)


def eight_windows(lengths: list[int], epoch: int) -> list[list[int]]:
    order = LengthGroupedSampler(lengths, 8, seed=42)
    order.set_epoch(epoch)
    chosen = list(order)
    return [chosen[first : first + 8] for first in range(0, len(chosen), 8)]


def so_many_tokens(lengths: list[int], epoch: int) -> list[list[int]]:
    order = TokenBudgetSampler(lengths, TOKENS, 1, seed=42)
    order.set_epoch(epoch)
    return list(order)


def plain_losses(
    prepared: Path,
    learning_rate: float,
    weights: torch.Tensor | None = None,
    taught: Taught = lambda loss, *_: loss,
    batches: Batches = eight_windows,
) -> list[float]:
    """A loop with nothing of ours but the order of the windows; `weights` (C,) are those of classes of tags.

    `taught` makes another loss of the loss, the outputs and the batch.
    """
    made = json.loads((prepared / "data" / "preprocess.json").read_text())
    auto_model, loss_of, labels = PLAIN[made["task"]]
    set_seed(42)
    num_labels = len(made["state"].get("labels", "01"))
    model = auto_model.from_pretrained(prepared / "model" / "model", num_labels=num_labels).train()
    plain = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for name, p in model.named_parameters() if not (name.endswith("bias") or "LayerNorm" in name)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, eps=SHARED["adam_epsilon"])
    scheduler = get_linear_schedule_with_warmup(optimizer, SHARED["warmup_steps"], STEPS)
    found = []
    for batch in itertools.islice(plain_batches(prepared / "data" / "train" / "windows", labels, batches), STEPS):
        outputs = model(**{name: batch[name] for name in INPUTS})
        loss = loss_of(outputs, batch) if weights is None else tag_loss(outputs, batch, weights)
        loss = taught(loss, outputs, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SHARED["max_grad_norm"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def span_loss(outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    padding = batch["attention_mask"] == 0
    start, end = (logits.masked_fill(padding, -torch.inf) for logits in (outputs.start_logits, outputs.end_logits))
    start_loss = functional.cross_entropy(start, batch["start_positions"])
    return (start_loss + functional.cross_entropy(end, batch["end_positions"])) / 2


def tag_loss(outputs: Any, batch: dict[str, torch.Tensor], weights: torch.Tensor | None = None) -> torch.Tensor:
    return functional.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten(), weights)


INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PLAIN: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "question_answering": (AutoModelForQuestionAnswering, span_loss, ("start_positions", "end_positions")),
    "token_classification": (AutoModelForTokenClassification, tag_loss, ("labels",)),
}


def plain_batches(windows: Path, labels: tuple[str, ...], batches: Batches) -> Iterator[dict[str, torch.Tensor]]:
    data = load_from_disk(windows)
    for epoch in range(STEPS):
        for chosen in batches(window_lengths(data), epoch):
            rows = [data[i] for i in chosen]
            yield {name: padded([row[name] for row in rows], -100 * (name in labels)) for name in (*INPUTS, *labels)}


def padded(values: list[Any], fill: int) -> torch.Tensor:
    if isinstance(values[0], int):
        return torch.tensor(values)
    longest = max(map(len, values))
    return torch.tensor([value + [fill] * (longest - len(value)) for value in values])
