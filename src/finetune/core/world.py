"""The processes of a run and what this machine has; torch is imported only where that is asked for."""

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from finetune.core.launch import world_size

NVIDIA_DRIVER = Path("/dev/nvidiactl")  # is there where the driver is loaded


@dataclass(frozen=True)
class World:
    """The processes of a run, one for each device; the rest is asked of this machine."""

    processes: int = 1  # of the whole run
    per_machine: int = 1
    launched: bool = field(default=False, compare=False)  # they are running; a check is of those that will

    @classmethod
    def here(cls) -> "World":
        """Return the world of this process, once its launcher is adopted."""
        return cls(world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", world_size())), launched=True)

    def has_gpu(self) -> bool:
        import torch

        return torch.cuda.is_available()

    def gpus(self) -> int:
        import torch

        return torch.cuda.device_count()

    def gpu_out_of_reach(self) -> str:
        """Return why PyTorch can't use the NVIDIA GPU of this machine; "" where it can, has none or shall use none."""
        if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or not NVIDIA_DRIVER.exists():
            return ""
        import torch

        if torch.cuda.is_available():
            return ""
        built_for = "CPUs alone"
        if torch.version.cuda is not None:
            built_for = f"CUDA {torch.version.cuda}, for which the driver may be too old"
        return f"PyTorch {torch.__version__} is built for {built_for}"

    def gpu_name(self) -> str:
        import torch

        return torch.cuda.get_device_name()

    def gpu_has_bf16(self) -> bool:
        import torch

        return bool(torch.cuda.is_bf16_supported(False))

    def cpu_has_bf16(self) -> bool:
        """Return whether oneDNN multiplies bf16 matrices on this processor; without, PyTorch has plain loops."""
        import torch

        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def has_compiler(self) -> bool:
        """Return whether there is a C++ compiler, for torch.compile on a CPU."""
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return False
        return True

    def has_flash_attention(self) -> bool:
        from transformers.utils.import_utils import is_flash_attn_2_available

        return bool(is_flash_attn_2_available())

    def has_bitsandbytes(self) -> bool:
        from transformers.utils.import_utils import is_bitsandbytes_available

        return bool(is_bitsandbytes_available())

    def has_deepspeed(self) -> bool:
        return find_spec("deepspeed") is not None

    def has_openvino(self) -> bool:
        """Return whether there is OpenVINO, and what sets the ranges of INT8."""
        return find_spec("openvino") is not None and find_spec("nncf") is not None

    def has_onnx_runtime_training(self) -> bool:
        """Return whether there is an ONNX Runtime that trains; the one that doesn't has the same name."""
        package = find_spec("onnxruntime")
        folders = (package and package.submodule_search_locations) or ()
        return any(Path(folder, "training", "ortmodule").is_dir() for folder in folders)
