"""What a component really does while it runs, seen from outside: optimizer steps, forward passes, files, words."""

import contextlib
import io
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

Tensors = dict[str, torch.Tensor]

ATTENTION = ("BertSelfAttention", "T5Attention")
END = "best at step"  # said when training ends and the proof of what is saved begins


@dataclass
class Step:
    """One step of the optimizer."""

    optimizer: str
    groups: list[dict[str, Any]]  # what the optimizer holds: lr, weight_decay …, and the names of its weights
    before: Tensors
    gradients: Tensors  # as the optimizer gets them: accumulated and clipped
    after: Tensors
    workers: int  # processes that prepare batches
    deterministic: bool

    @property
    def norm(self) -> float:
        return math.sqrt(sum(float(g.double().square().sum()) for g in self.gradients.values()))


@dataclass
class Forward:
    """One forward pass of the model."""

    training: bool
    step: int  # optimizer steps before it
    said: int  # characters that the user had been shown before it
    ids: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # (B, L)
    dtypes: set[str] = field(default_factory=set)  # of what linear layers give
    layers: int = 0  # layers computed, those of the backward pass among them
    fused_attention: int = 0  # calls of PyTorch's scaled_dot_product_attention
    logits: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (B, L, C), of models that have them
    zeros: dict[float, list[float]] = field(default_factory=dict)  # dropout -> shares of zeros in what it gives


@dataclass
class Run:
    """One run of a component."""

    words: dict[str, str]  # the command line
    output: Path  # where its outputs lie
    exit_code: int = 0
    said: str = ""
    errors: str = ""
    steps: list[Step] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)  # rows of each tensor that evaluation moved to the CPU
    tokenized: list[int] = field(default_factory=list)  # texts in each call of the tokenizer

    @property
    def folder(self) -> Path:
        """The first output folder."""
        return self.output / "first"

    @property
    def training(self) -> list[Forward]:
        return [f for f in self.forwards if f.training]

    @property
    def evaluating(self) -> list[Forward]:
        """The passes of evaluations during training, without those that prove the saved model."""
        end = self.said.find(END)
        return [f for f in self.forwards if not f.training and (end < 0 or f.said < end)]

    @property
    def evaluations(self) -> list[int]:
        """The steps after which there was an evaluation."""
        return sorted({f.step for f in self.evaluating})

    @property
    def checkpoints(self) -> list[int]:
        """The steps of the checkpoints on disk."""
        return sorted(int(path.name.removeprefix("checkpoint-")) for path in self.folder.glob("checkpoint-*"))

    @property
    def log(self) -> list[dict[str, float]]:
        """What the run says of its losses and metrics, in training.json."""
        entries: list[dict[str, float]] = json.loads((self.folder / "training.json").read_text())["log"]
        return entries

    @property
    def weights(self) -> Tensors:
        """Of the saved model."""
        tensors: Tensors = load_file(self.folder / "model.safetensors")
        return tensors


class Recorder:
    """Watches every optimizer and every module of this process, by the hooks that PyTorch has for all of them."""

    def __init__(self, run: Run, shown: io.StringIO) -> None:
        self.run, self.shown = run, shown
        self.model: Any = None
        self.depth = 0

    def enter(self, module: Any, inputs: Any) -> None:
        from transformers import PreTrainedModel

        if isinstance(module, PreTrainedModel):
            if self.depth == 0:
                self.model = module
                self.run.forwards.append(Forward(module.training, len(self.run.steps), self.shown.tell()))
            self.depth += 1
        elif type(module).__name__ in (
            "BertSelfAttention",
            "T5Attention",
        ):  # on entry: what is computed again may not be left
            self.run.forwards[-1].layers += 1
        elif isinstance(module, torch.nn.Embedding) and self.depth and not self.run.forwards[-1].ids.numel():
            self.run.forwards[-1].ids = inputs[0].clone()

    def leave(self, module: Any, _: Any, output: Any) -> None:
        from transformers import PreTrainedModel

        if not self.run.forwards:
            return
        current = self.run.forwards[-1]
        if isinstance(module, PreTrainedModel):
            self.depth -= 1
            if self.depth == 0 and "logits" in output:
                current.logits = output["logits"].detach().clone()
        elif isinstance(module, torch.nn.Linear):
            current.dtypes.add(str(output.dtype).removeprefix("torch."))
        elif isinstance(module, torch.nn.Dropout) and module.training:
            share = float((output == 0).double().mean())
            current.zeros.setdefault(module.p, []).append(share)

    def names(self) -> dict[int, str]:
        return {id(weights): name for name, weights in self.model.named_parameters()}

    def before_step(self, optimizer: Any, *_: Any) -> None:
        names = self.names()
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "names": {names[id(p)] for p in group["params"]}}
            for group in optimizer.param_groups
        ]
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.run.steps.append(
            Step(
                optimizer=type(optimizer).__name__,
                groups=groups,
                before={names[id(p)]: p.detach().clone() for p in held},
                gradients={names[id(p)]: p.grad.clone() for p in held if p.grad is not None},
                after={},
                workers=len(multiprocessing.active_children()),
                deterministic=torch.are_deterministic_algorithms_enabled(),
            )
        )

    def after_step(self, optimizer: Any, *_: Any) -> None:
        names = self.names()
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.run.steps[-1].after = {names[id(p)]: p.detach().clone() for p in held}

    def evaluating(self) -> bool:
        return bool(self.run.forwards) and not self.run.forwards[-1].training and END not in self.shown.getvalue()

    def count_attention(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.run.forwards:
                self.run.forwards[-1].fused_attention += 1
            return original(*args, **kwargs)

        return counted

    def count_moves(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if tensor.dim() and self.evaluating():
                self.run.moved.append(len(tensor))
            return original(tensor, *args, **kwargs)

        return counted

    def count_texts(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tokenizer: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
            texts = kwargs.get("text_target") if text is None else text
            self.run.tokenized.append(len(texts) if isinstance(texts, list) else 1)
            return original(tokenizer, text, *args, **kwargs)

        return counted


@contextlib.contextmanager
def replaced(owner: Any, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    """An attribute of another library, watched for a while."""
    original = owner.__dict__.get(name)
    setattr(owner, name, by(getattr(owner, name)))
    try:
        yield
    finally:
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


def record(main: Callable[[list[str]], None], argv: list[str], words: dict[str, str], output: Path) -> Run:
    """Run an entry point as its command line does, exit code included, and watch it."""
    from transformers import PreTrainedTokenizerBase

    from finetune.core.process import run_main

    torch.use_deterministic_algorithms(False)  # as a run before may have left it
    run, shown, errors = Run(words, output), io.StringIO(), io.StringIO()
    recorder = Recorder(run, shown)
    handles = [
        modules.register_module_forward_pre_hook(recorder.enter),
        modules.register_module_forward_hook(recorder.leave),
        optimizers.register_optimizer_step_pre_hook(recorder.before_step),
        optimizers.register_optimizer_step_post_hook(recorder.after_step),
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(torch.nn.functional, "scaled_dot_product_attention", recorder.count_attention))
        stack.enter_context(replaced(torch.Tensor, "cpu", recorder.count_moves))
        stack.enter_context(replaced(PreTrainedTokenizerBase, "__call__", recorder.count_texts))
        stack.enter_context(contextlib.redirect_stdout(shown))
        stack.enter_context(contextlib.redirect_stderr(errors))
        for handle in handles:
            stack.callback(handle.remove)
        try:
            run_main(main, argv)
        except SystemExit as left:
            run.exit_code = int(left.code or 0)
        finally:
            torch.use_deterministic_algorithms(False)
    run.said, run.errors = shown.getvalue(), errors.getvalue()
    return run
