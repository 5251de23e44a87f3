"""Where ONNX Runtime can train, as far as a command line and a machine can tell; the model is asked in the run."""

from collections.abc import Callable

from finetune.core.world import World
from finetune.params.finetune import EncoderParams, Export, FinetuneParams
from finetune.params.provenance import Derived

PACKAGE = 'onnxruntime-training is not installed: pip install ".[ort]" in an environment of its own'
GPU = "its last release needs CUDA 11.8, and PyTorch brings CUDA 13"

# What it is not seen to train as PyTorch does, each with its reason. Asked in this order: torch comes last.
UNPROVED: tuple[tuple[Callable[[FinetuneParams, World], bool], str], ...] = (
    (lambda _, world: not world.has_onnx_runtime_training(), PACKAGE),
    (lambda params, _: params.apply_deepspeed, "it is not tried with DeepSpeed"),
    (lambda params, _: params.apply_fsdp, "it is not tried with FSDP"),
    (lambda _, world: world.processes > 1, "it is not tried with several processes"),
    (lambda params, _: params.precision != "32", "it computes in 32 bits alone"),
    (lambda params, _: params.torch_compile, "torch.compile is another engine"),
    (lambda params, _: params.gradient_checkpointing, "its graph keeps what gradient_checkpointing computes again"),
    (lambda params, _: params.auto_find_batch_size, "its memory is not PyTorch's, by which auto_find_batch_size goes"),
    (lambda params, _: params.apply_lora and params.finetune_in_4bit, "it has no weights of 4 bits"),
    (lambda params, _: isinstance(params, EncoderParams) and params.apply_pruning, "it is not tried with pruning"),
    (lambda params, _: isinstance(params, EncoderParams) and params.apply_qat, "it is not tried with apply_qat"),
    (
        lambda params, _: isinstance(params, Export) and params.quantization != "none",
        "it is not tried with quantization",
    ),
    (lambda params, _: params.enable_full_determinism, "it is not tried with enable_full_determinism"),
    (
        lambda params, _: params.attn_implementation not in ("auto", "eager"),
        "of attention it trains the eager kind: --attn_implementation auto, or eager",
    ),
    (lambda _, world: world.has_gpu(), GPU),
    (lambda _, world: not world.has_compiler(), "a part of it has to be compiled: install g++"),
)


def why_not(params: FinetuneParams, world: World) -> str:
    """Return why ONNX Runtime won't train with these parameters on this machine; "" where it may."""
    return next((reason for applies, reason in UNPROVED if applies(params, world)), "")


def by_pytorch(why: str) -> Derived:
    """Return what the user is told where PyTorch trains instead."""
    return Derived("apply_ort", False, f"{why}; PyTorch trains the same model", warning=True)
