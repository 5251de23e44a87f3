"""What the proofs look for in a run: one function for each kind of effect, given the run without the parameter too."""

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from finetune import evaluation
from finetune.params.components import TASKS
from finetune.params.schema import params_of
from tests.proofs.recorder import Run, Tensors, record
from tests.proofs.steps import largest_difference

Effect = Callable[[str, Run, Run], None]  # (parameter, run without it, run with it): raises AssertionError
ROUNDING = 1e-6  # of a step of 1e-3


def typed(run: Run) -> dict[str, Any]:
    """Every parameter of a finetune run with its value."""
    known = {p.name: p for p in params_of(TASKS[run.words["task"]].finetune)}
    given = {name: known[name].convert(text) for name, text in run.words.items() if name in known}
    return {name: p.default for name, p in known.items()} | given


def written_by_hand(parameter: str, base: Run, run: Run) -> None:
    """Every step is that of the optimizer and schedule written by hand, and is not so with the value of the base."""
    given = typed(run)
    assert run.steps and largest_difference(run.steps, given) < ROUNDING
    without = {**given, parameter: typed(base)[parameter]}
    assert largest_difference(run.steps, without) > 10 * ROUNDING


def optimizer_is(name: str) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert {step.optimizer for step in run.steps} == {name}
        assert largest_difference(run.steps, typed(run)) < ROUNDING
        decayed = {n for step in run.steps for g in step.groups if g["weight_decay"] for n in g["names"]}
        assert decayed and not any(n.endswith("bias") or "norm" in n.lower() for n in decayed)

    return effect


def schedule_is_its_formula(parameter: str, base: Run, run: Run) -> None:
    assert run.steps and largest_difference(run.steps, typed(run)) < ROUNDING


def steps_taken(count: int) -> Effect:
    return lambda parameter, base, run: _equal(len(run.steps), count)


def _equal(found: Any, expected: Any) -> None:
    assert found == expected


def windows_in_training(batch: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        sizes = [len(f.ids) for f in run.training]
        assert set(sizes[:-1]) == {batch} and max(len(f.ids) for f in base.training) != batch

    return effect


def tokens_in_training(most: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert 0.5 * most < max(f.ids.numel() for f in run.training) <= most
        assert len({len(f.ids) for f in run.training}) > 1 == len({len(f.ids) for f in base.training[:-1]})

    return effect


def windows_in_evaluation(batch: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert max(len(f.ids) for f in run.evaluating) == batch != max(len(f.ids) for f in base.evaluating)

    return effect


def windows_seen(times: int) -> Effect:
    """Every window was trained on so often."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        windows = len(stored_windows(Path(run.words["preprocess_output"])))
        assert sum(len(f.ids) for f in run.training) == times * windows
        assert sum(len(f.ids) for f in base.training) == windows

    return effect


def passes_in_a_step(count: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        last = run.steps[-1:] and len(run.steps)
        found = [sum(f.step == number for f in run.training) for number in range(last)]
        assert set(found[:-1]) == {count} and {sum(f.step == 0 for f in base.training)} == {1}

    return effect


def computes_in(dtype: str) -> Effect:
    """Linear layers give numbers of this type; weights and gradients stay in 32 bits."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        assert {d for f in run.training for d in f.dtypes} == {dtype}
        assert {d for f in run.evaluating for d in f.dtypes} == {dtype}
        assert {d for f in base.training for d in f.dtypes} == {"float32"}
        assert all(t.dtype == torch.float32 for s in run.steps for t in (*s.after.values(), *s.gradients.values()))

    return effect


def other_order_and_head(parameter: str, base: Run, run: Run) -> None:
    assert not torch.equal(base.training[0].ids, run.training[0].ids)
    first, other = base.steps[0].before, run.steps[0].before
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed == {name for name in first if name.startswith(("qa_outputs.w", "classifier.w"))}  # a writer has none


def deterministic(parameter: str, base: Run, run: Run) -> None:
    assert all(step.deterministic for step in run.steps) and not any(step.deterministic for step in base.steps)
    same_weights(parameter, base, run)


def same_weights(parameter: str, base: Run, run: Run) -> None:
    """Bit for bit."""
    assert run.weights.keys() == base.weights.keys()
    assert all(torch.equal(tensor, base.weights[name]) for name, tensor in run.weights.items())


def worker_processes(count: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        # Before the last step they have nothing left to prepare, and end.
        assert {step.workers for step in run.steps[:-1]} == {count} and {step.workers for step in base.steps} == {0}
        same_weights(parameter, base, run)

    return effect


def gradient_norm_is(limit: float) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert all(abs(step.norm / limit - 1) < 1e-3 for step in run.steps)
        assert all(step.norm > 2 * limit for step in base.steps)

    return effect


def gradient_norm_above(limit: float) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert run.steps[0].norm > 1.1 * limit >= base.steps[0].norm

    return effect


def weighs_classes(power: float) -> Effect:
    """The gradient of the head's bias is that of PyTorch's weighted cross-entropy over all logits of the step."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        windows = stored_windows(Path(run.words["preprocess_output"]))
        labels = {tuple(window["input_ids"]): window["labels"] for window in windows}
        counts = Counter(label for window in windows for label in window["labels"] if label >= 0)
        classes = run.training[0].logits.shape[-1]
        seldom = [counts.total() / (len(counts) * counts[c]) if counts[c] else 1.0 for c in range(classes)]
        assert max(seldom) > 3 * min(seldom)
        for each, weights in ((base, None), (run, torch.tensor(seldom) ** power)):
            for number, step in enumerate(each.steps):
                passes = [f for f in each.training if f.step == number]
                logits = torch.cat([f.logits.flatten(0, 1) for f in passes]).requires_grad_()
                rows = [(labels[tuple(i for i in row if i)], len(row)) for f in passes for row in f.ids.tolist()]
                wanted = [label for found, length in rows for label in found + [-100] * (length - len(found))]
                torch.nn.CrossEntropyLoss(weights)(logits, torch.tensor(wanted)).backward()
                torch.testing.assert_close(step.gradients["classifier.bias"], logits.grad.sum(0), atol=1e-6, rtol=1e-4)
        losses = [[entry["eval_loss"] for entry in each.log if "eval_loss" in entry] for each in (base, run)]
        assert losses[0] != losses[1]

    return effect


def evaluated_after(steps: list[int]) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert run.evaluations == steps != base.evaluations

    return effect


def logged_after(steps: list[int]) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        shown = [int(n) for n in re.findall(r"^step (\d+)/.*gradient norm", run.said, flags=re.MULTILINE)]
        assert shown == [int(entry["step"]) for entry in run.log if "loss" in entry] == steps
        assert steps != [int(entry["step"]) for entry in base.log if "loss" in entry]

    return effect


def best_is_highest(metric: str) -> Effect:
    """The saved model is the checkpoint with the highest metric, which isn't the one with the lowest loss."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        scored = [entry for entry in run.log if "eval_loss" in entry]
        best = max(scored, key=lambda entry: entry[f"eval_{metric}"])
        assert best["step"] != min(scored, key=lambda entry: entry["eval_loss"])["step"]
        kept = load_file(run.folder / f"checkpoint-{int(best['step'])}" / "model.safetensors")
        assert all(torch.equal(tensor, kept[name]) for name, tensor in run.weights.items())

    return effect


def evaluations_held(count: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert len(run.evaluations) == count < len(base.evaluations)

    return effect


def checkpoints_every(steps: int) -> Effect:
    """And after the best evaluations, but not after the others."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        losses, best, kept = [e for e in run.log if "eval_loss" in e], float("inf"), set()
        for entry in losses:
            if entry["eval_loss"] < best:
                best = entry["eval_loss"]
                kept.add(int(entry["step"]))
        assert len(kept) < len(losses)
        regular = set(range(steps, len(run.steps) + 1, steps))
        assert set(run.checkpoints) == kept | regular | {len(run.steps)}
        assert run.checkpoints != base.checkpoints

    return effect


def moved_to_the_cpu_together(batches: int) -> Effect:
    """The results of so many batches of an evaluation."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        size = int(run.words["per_device_eval_batch_size"])
        assert (max(run.moved), max(base.moved)) == (batches * size, size)

    return effect


def all_moved_to_the_cpu_together(parameter: str, base: Run, run: Run) -> None:
    """The results of an evaluation."""
    size = int(run.words["per_device_eval_batch_size"])
    assert max(base.moved) == size < 3 * size < max(run.moved)


def has_published_metrics(count: int) -> Effect:
    """So many; the run that it is compared with has another number."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        found = []
        for one in (base, run):
            names = json.loads((one.folder / "metrics.json").read_text())
            found.append(len([name for name in names if re.match("exact_match|bleu_|.*_score", name)]))
        assert found[1] == count != found[0]

    return effect


def trains_adapters_and_head(parameter: str, base: Run, run: Run) -> None:
    trained = {name for step in run.steps for name in step.after}
    head = {name for name in trained if "qa_outputs" in name or "classifier" in name}
    assert bool(head) == (
        run.words["task"] in ("question_answering", "token_classification")
    )  # what writes has no head
    assert trained - head and all("lora_" in name for name in trained - head)
    assert not any("lora_" in name for step in base.steps for name in step.after)


def trains_magnitudes(parameter: str, base: Run, run: Run) -> None:
    """One for each output of an adapted layer, besides A and B."""
    found = [{n for n in r.steps[0].after if "lora_magnitude_vector" in n} for r in (base, run)]
    assert not found[0] and len(found[1]) == sum("lora_A" in n for n in run.steps[0].after)
    assert all(not run.steps[-1].after[n].equal(run.steps[0].before[n]) for n in found[1])


def adapters_of(rank: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        ranks = [{t.shape[0] for n, t in r.steps[0].after.items() if "lora_A" in n} for r in (base, run)]
        assert ranks == [{8}, {rank}]

    return effect


def adapters_scaled_by(scale: float) -> Effect:
    """The merged weights are the frozen ones plus scale x B A."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        adapters = run.steps[-1].after
        frozen = imported(run)
        factors = [name for name in adapters if "lora_A" in name]
        for name in factors:
            target = name.partition(".lora_A")[0]
            product = adapters[name.replace("lora_A", "lora_B")] @ adapters[name]
            merged = run.weights[f"{target}.weight"]
            before = frozen[f"{target}.weight".removeprefix("bert.")]
            assert float(product.abs().max()) > 1e-6
            torch.testing.assert_close(merged, before + scale * product, atol=1e-6, rtol=0)
        assert factors

    return effect


def drops_before_adapters(share: float) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        found = [z for f in run.training for z in f.zeros.get(share, [])]
        assert found and abs(sum(found) / len(found) - share) < 0.05
        assert not any(share in f.zeros for f in base.training)

    return effect


def imported(run: Run) -> Tensors:
    """The weights that model import left."""
    tensors: Tensors = load_file(Path(run.words["model_selector_output"]) / "model" / "model.safetensors")
    return tensors


def begins_with_the_imported_weights(parameter: str, base: Run, run: Run) -> None:
    before = {name.removeprefix("bert."): tensor for name, tensor in run.steps[0].before.items()}
    body = imported(run).keys() & before.keys()
    assert len(body) > 30 and all(torch.equal(before[name], imported(run)[name]) for name in body)


def trains_on_its_windows(parameter: str, base: Run, run: Run) -> None:
    windows = stored_windows(Path(run.words["preprocess_output"]))
    seen = [tuple(i for i in row if i) for f in run.training for row in f.ids.tolist()]
    assert sorted(seen) == sorted(tuple(i for i in window["input_ids"] if i) for window in windows)


def leaves(*names: str) -> Effect:
    """The first output has these files, and has not without the parameter."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        assert all((run.folder / name).is_file() for name in names)
        assert not any((base.folder / name).is_file() for name in names)

    return effect


def holds(*names: str) -> Effect:
    """The output folder has these files."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        folder = Path(run.words[parameter])
        assert not [name for name in names if not list(folder.glob(name))]

    return effect


def fused_attention(used: bool) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert all((f.fused_attention > 0) == used for f in (*run.training, *run.evaluating))
        assert all(f.fused_attention > 0 for f in base.evaluating)

    return effect


def fused_in_training(parameter: str, base: Run, run: Run) -> None:
    assert all(f.fused_attention > 0 for f in (*run.training, *run.evaluating, *base.evaluating))
    assert not any(f.fused_attention for f in base.training)
    assert "attn_implementation: cpu_kernels (" in base.said and "cpu_kernels (" not in run.said


def no_padding_in_training(parameter: str, base: Run, run: Run) -> None:
    """Each step computes the tokens of the base's, in their order, as one row, and evaluation is padded as before."""
    assert len(run.training) == len(base.training)
    for f, padded in zip(run.training, base.training, strict=True):
        assert len(f.ids) == 1 and torch.equal(f.ids[0], padded.ids[padded.ids != 0])
    assert any((f.ids == 0).any() for f in base.training)
    for f, padded in zip(run.evaluating, base.evaluating, strict=True):
        assert torch.equal(f.ids, padded.ids)
    assert "attn_implementation: padding_free (" in run.said and "padding_free (" not in base.said


def layers_computed_twice(parameter: str, base: Run, run: Run) -> None:
    assert {f.layers for f in run.training} == {2 * layers for layers in {f.layers for f in base.training}}
    assert {f.layers for f in run.evaluating} == {f.layers for f in base.evaluating}
    for name, tensor in run.weights.items():
        torch.testing.assert_close(tensor, base.weights[name], atol=1e-5, rtol=0)


def speed_leaves_out(steps: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        for each, first in ((base, 0), (run, steps)):
            speed = json.loads((each.folder / "training.json").read_text())["speed"]
            counted = sum(len(f.ids) for f in each.training if f.step >= first)
            assert round(speed["train_samples_per_second"] * speed["train_seconds"]) == counted
        assert f"without the first {steps} steps" in run.said

    return effect


def runs_as_recommended(parameter: str, base: Run, run: Run) -> None:
    """bert-base: 3e-5, 2 epochs, 24 windows in training, 8 in evaluation, bf16."""
    assert run.steps[0].groups[0]["lr"] == 3e-5 and base.steps[0].groups[0]["lr"] != 3e-5
    assert max(len(f.ids) for f in run.training) == 24 and max(len(f.ids) for f in run.evaluating) == 8
    computes_in("bfloat16")(parameter, base, run)
    windows_seen(2)(parameter, base, run)


def says_so(text: str) -> Effect:
    """A line for the user."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        assert text in run.said and text not in base.said

    return effect


def says(text: str) -> Effect:
    """A line for the user, and the weights of the run without it."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        assert text in run.said and text not in base.said
        same_weights(parameter, base, run)

    return effect


def imports_its_weights(parameter: str, base: Run, run: Run) -> None:
    given = next(Path(run.words[parameter]).rglob("*.safetensors"))
    assert _equal_weights(load_file(given), load_file(run.folder / "model" / "model.safetensors"))
    assert not _equal_weights(load_file(given), load_file(base.folder / "model" / "model.safetensors"))


def _equal_weights(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows_of(run: Run, split: str) -> list[dict[str, Any]]:
    """What preprocess kept of each row, without its number."""
    return [{k: v for k, v in row.items() if k != "row"} for row in _lines(run.folder / split / "rows.jsonl")]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stored_windows(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """Of an output folder of preprocess."""
    from datasets import load_from_disk

    found: list[dict[str, Any]] = load_from_disk(folder / split / "windows").to_list()
    return found


def same_rows(parameter: str, base: Run, run: Run) -> None:
    assert all(rows_of(run, split) == rows_of(base, split) for split in ("train", "validation", "test"))


def rows_as_in_base(parameter: str, base: Run, run: Run) -> None:
    assert "train_file_path" not in run.words
    same_rows(parameter, base, run)


def rows_of_other(split: str) -> Effect:
    """This split has the rows of other.jsonl, the others theirs."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        for name in ("train", "validation", "test"):
            texts = [_text_of(row) for row in rows_of(run, name)]
            assert (texts == _texts_of_other(base)) == (name == split)

    return effect


def _texts_of_other(run: Run) -> list[Any]:
    rows = _lines(Path(run.words["validation_file_path"]).parent / "other.jsonl")
    return [_text_of(row) for row in rows]


def _text_of(row: dict[str, Any]) -> Any:
    """Of a row as a file or as preprocess has it."""
    return next(row[key] for key in ("context", "tokens", "source", "en") if key in row)


def rows_counted(**expected: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert {name: len(rows_of(run, name)) for name in expected} == expected
        assert {name: len(rows_of(base, name)) for name in expected} != expected

    return effect


def rows_tokenized_at_a_time(count: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        # Lengths are shown of a sample first, which is tokenized on its own.
        assert run.tokenized[-1] == 12 % count and max(run.tokenized[-4:]) == count
        assert base.tokenized[-1] == 12
        assert stored_windows(run.folder) == stored_windows(base.folder)

    return effect


def longest_window(length: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        found = [max(len(window["input_ids"]) for window in stored_windows(r.folder)) for r in (run, base)]
        assert found[0] == length < found[1]

    return effect


def every_window_of(length: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert {len(window["input_ids"]) for window in stored_windows(run.folder)} == {length}
        assert {len(window["input_ids"]) for window in stored_windows(base.folder)} != {length}

    return effect


def windows_share(count: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert _shared(run) == {count} != _shared(base)

    return effect


def _shared(run: Run) -> set[int]:
    """Tokens of the text that end one window and begin the next of the same row."""
    found = set()
    for before, after in pairwise(stored_windows(run.folder, "validation")):
        if before["row"] == after["row"]:
            one, other = _text_tokens(before), _text_tokens(after)
            found.add(max(n for n in range(len(other) + 1) if one[len(one) - n :] == other[:n]))
    return found


def _text_tokens(window: dict[str, Any]) -> list[int]:
    """Of the context, or of the words: without question and special tokens."""
    pair = 1 in window["token_type_ids"]
    inside = [i for i, kind in zip(window["input_ids"], window["token_type_ids"], strict=True) if kind == int(pair)]
    return inside[0 if pair else 1 : -1]


def predictions(run: Run) -> list[dict[str, Any]]:
    return _lines(run.folder / "predictions.jsonl")


def decoded(run: Run) -> list[dict[str, Any]]:
    """What evaluation predicts for the test split of a preprocess run, with a model that was only imported."""
    return predictions(evaluated(run))


def evaluated(run: Run) -> Run:
    """The evaluation that makes these predictions."""
    model = Path(run.words["model_selector_output"]) / "model"
    words = {"task": run.words["task"], "preprocess_output": run.folder, "pytorch_model_folder": model}
    shown = {name: str(value) for name, value in words.items()}
    shown["evaluation_result"] = str(run.output / "evaluated" / "first")
    argv = [word for name, value in shown.items() for word in (f"--{name}", value)]
    made = record(evaluation.main, argv, shown, run.output / "evaluated")
    assert made.exit_code == 0, made.errors
    return made


def spans_kept(count: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        kept = [{sum(span["text"] != "" for span in p["n_best"]) for p in decoded(r)} for r in (run, base)]
        assert kept[0] == {count} and min(kept[1]) > count

    return effect


def longest_answer(tokens: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert _longest_answer(run) == tokens < _longest_answer(base)

    return effect


def _longest_answer(run: Run) -> int:
    """In tokens of the context, of all spans that evaluation keeps."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    longest = 0
    for row, prediction in zip(rows_of(run, "test"), decoded(run), strict=True):
        offsets = tokenizer(row["context"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for span in prediction["n_best"]:
            inside = sum(span["start"] <= start and end <= span["end"] for start, end in offsets)
            longest = max(longest, inside)
    return longest


def tokenizer_is_the_models(parameter: str, base: Run, run: Run) -> None:
    imported = Path(run.words[parameter]) / "model" / "tokenizer.json"
    vocabularies = [
        json.loads(path.read_text())["model"]["vocab"]
        for path in (imported, run.folder / "tokenizer" / "tokenizer.json")
    ]
    assert vocabularies[0] == vocabularies[1]


def predicts_its_test_split(parameter: str, base: Run, run: Run) -> None:
    rows = _lines(Path(run.words[parameter]) / "test" / "rows.jsonl")
    assert [p["row"] for p in predictions(run)] == [row["row"] for row in rows]


def predicts_rows_of_other(parameter: str, base: Run, run: Run) -> None:
    assert len(predictions(run)) == len(_lines(Path(run.words[parameter]))) == 12
    assert predictions(run) != predictions(base)


def same_predictions(parameter: str, base: Run, run: Run) -> None:
    assert predictions(run) == predictions(base)


def other_predictions(parameter: str, base: Run, run: Run) -> None:
    assert predictions(run) != predictions(base)


def same_scores(parameter: str, base: Run, run: Run) -> None:
    same_predictions(parameter, base, run)
    scores = [json.loads((r.folder / "metrics.json").read_text()) for r in (run, base)]
    assert scores[0]["rows"] == scores[1]["rows"] == 12


def evaluates_in(dtype: str) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert {d for f in run.forwards for d in f.dtypes} == {dtype} != {d for f in base.forwards for d in f.dtypes}

    return effect


def answers_withheld(parameter: str, base: Run, run: Run) -> None:
    assert {p["text"] for p in predictions(run)} == {""} and all(p["text"] for p in predictions(base))


def sides_change(parameter: str, base: Run, run: Run) -> None:
    for split in ("train", "validation", "test"):
        pairs = [(row["target"], row["source"]) for row in rows_of(run, split)]
        assert pairs == [(row["source"], row["target"]) for row in rows_of(base, split)]


def longest_written(tokens: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        targets, written = (
            [max(len(window["labels"]) for window in stored_windows(r.folder, "validation")) for r in (run, base)],
            [max(p["tokens"] for p in decoded(r)) for r in (run, base)],
        )
        assert targets[0] == tokens < targets[1] and written[0] == tokens < written[1]

    return effect


def rows_without_answer_are_kept(parameter: str, base: Run, run: Run) -> None:
    for split in ("train", "validation"):
        kept, others = rows_of(run, split), rows_of(base, split)
        assert [row for row in kept if row["answers"]["text"]] == others != kept


def rows_without_answer_are_scored(parameter: str, base: Run, run: Run) -> None:
    found = [json.loads((r.folder / "metrics.json").read_text())["rows_without_answers"] for r in (run, base)]
    assert found[0] == 0 < found[1]


def no_longer_window(length: int) -> Effect:
    """Text that is cut may take a token less than there is room for."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        found = [max(len(window["input_ids"]) for window in stored_windows(r.folder)) for r in (run, base)]
        assert length - 2 <= found[0] <= length < found[1]

    return effect


def _window_texts(run: Run, split: str = "train") -> list[tuple[int, str]]:
    """Row and text of each window."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    return [
        (window.get("row", -1), tokenizer.decode(window["input_ids"], skip_special_tokens=True))
        for window in stored_windows(run.folder, split)
    ]


def is_framed_by(first: str, last: str) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        framed = [[text.startswith(first) and text.endswith(last) for _, text in _window_texts(r)] for r in (run, base)]
        assert all(framed[0]) and not any(framed[1])

    return effect


def targets_are_filled_up(length: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        filled, plain = ([window["labels"] for window in stored_windows(r.folder)] for r in (run, base))
        assert {len(labels) for labels in filled} == {length}
        for labels, own in zip(filled, plain, strict=True):
            assert labels[: len(own)] == own and set(labels[len(own) :]) <= {0}

    return effect


def windows_share_text(tokens: int) -> Effect:
    def effect(parameter: str, base: Run, run: Run) -> None:
        assert tokens - 1 <= max(_shared_text(run)) <= tokens + 1 < max(_shared_text(base))

    return effect


def _shared_text(run: Run) -> set[int]:
    """Tokens of the text that ends one window and begins the next of the same row; unknown ones are left out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    found = set()
    for (row, before), (other_row, after) in pairwise(_window_texts(run, "validation")):
        if row == other_row:
            context = after.partition(" context")[2].lstrip(": ")
            shared = max(n for n in range(len(context) + 1) if before.endswith(context[:n]))
            found.add(len(tokenizer(context[:shared], add_special_tokens=False)["input_ids"]))
    return found


def beams(count: int) -> Effect:
    """Sequences in a pass of the decoder, of as many windows."""

    def effect(parameter: str, base: Run, run: Run) -> None:
        one, other = ((r if r.forwards else evaluated(r)) for r in (run, base))
        assert max(len(f.ids) for f in one.forwards) == count * max(len(f.ids) for f in other.forwards)

    return effect


def begins_with_prefix(parameter: str, base: Run, run: Run) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    texts, plain = (
        [tokenizer.decode(window["input_ids"], skip_special_tokens=True) for window in stored_windows(r.folder)]
        for r in (run, base)
    )
    assert texts == [run.words[parameter] + text for text in plain]
