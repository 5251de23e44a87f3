"""Import ORTModule of onnxruntime-training 1.19.2, its last release, beside a PyTorch of today.

A function for each thing that has changed since. None changes what is computed: whether that is right is asked of the
preflight, for each model.
"""

import os
import sys
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxruntime.training.ortmodule import DebugOptions, ORTModule

PACKAGE = "onnxruntime.training.ortmodule"
EXTENSIONS = f"{PACKAGE}.torch_cpp_extensions"


@cache
def ort_module() -> tuple["type[ORTModule]", "DebugOptions"]:
    """Return the class ORTModule, and the options with which it prints errors alone.

    Raises: ImportError, OSError or RuntimeError if it can't be had here.
    """
    keep_old_names_of_the_exporter()
    export_by_torchscript()
    leave_out_ranges_for_a_profiler()
    # Without it, autograd functions of a model's own would be called through the extension that is left out below.
    os.environ["ORTMODULE_ENABLE_CUSTOM_AUTOGRAD"] = "0"
    # Left alone, where it can't make a graph it trains by PyTorch without a word.
    os.environ["ORTMODULE_FALLBACK_POLICY"] = "FALLBACK_DISABLE"
    leave_out_autograd_functions()
    compile_calls_of_pytorch()
    ortmodule: Any = import_module(PACKAGE)
    # It looks for compiled extensions in its own folder, where not every user may write; ours is elsewhere.
    ortmodule._FALLBACK_INIT_EXCEPTION = None
    return ortmodule.ORTModule, ortmodule.DebugOptions(ortmodule.LogLevel.ERROR)


def keep_old_names_of_the_exporter() -> None:
    """Name three modules of PyTorch's exporter as ORTModule imports them; they have moved."""
    for old in ("torch.onnx._internal.jit_utils", "torch.onnx._globals", "torch.onnx._type_utils"):
        name = old.rpartition(".")[2]
        sys.modules[old] = import_module(f"torch.onnx._internal.torchscript_exporter.{name}")


def export_by_torchscript() -> None:
    """Let PyTorch export as it did before 2.9 unless told otherwise: ORTModule's own operators are made for that."""
    import torch

    torch.onnx.export = partial(torch.onnx.export, dynamo=False)


def leave_out_ranges_for_a_profiler() -> None:
    """Let ORTModule mark ranges for NVIDIA's profiler where there is none; a PyTorch without CUDA raises there."""
    import torch

    if not torch.cuda.is_available():
        nothing: Any = lambda *_: None  # noqa: E731
        torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = nothing


def leave_out_autograd_functions() -> None:
    """Put something in the place of an extension that doesn't compile any more: autograd nodes have another type.

    When Python ends, ORTModule clears its list.
    """
    extension: Any = ModuleType(f"{EXTENSIONS}.torch_interop_utils")
    extension.clear_all_grad_fns = lambda: None
    sys.modules[extension.__name__] = extension


def compile_calls_of_pytorch() -> None:
    """Compile the extension with which a graph calls PyTorch's operators; the wheel has its source alone.

    What is compiled stays in PyTorch's cache of extensions: it takes a minute, once.
    """
    from torch.utils.cpp_extension import load

    package = find_spec("onnxruntime")
    folder = package.submodule_search_locations[0] if package and package.submodule_search_locations else ""
    source = Path(folder, *EXTENSIONS.split(".")[1:], "cpu", "aten_op_executor", "aten_op_executor.cc")
    sys.modules[f"{EXTENSIONS}.aten_op_executor"] = load("aten_op_executor", [str(source)])
