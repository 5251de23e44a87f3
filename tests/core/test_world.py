"""What a machine has, asked of the libraries that know."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from finetune.core import world
from finetune.core.world import World


def test_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert World.here() == World(1, 1)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert World.here() == World(8, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert World.here() == World(8, 4)


@pytest.mark.parametrize("there", [False, True])
def test_what_libraries_say(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler() -> str:
        if not there:
            raise InvalidCxxCompiler
        return "g++"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: there and not emulated)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", compiler)
    monkeypatch.setattr(transformers.utils.import_utils, "is_flash_attn_2_available", lambda: there)
    monkeypatch.setattr(transformers.utils.import_utils, "is_bitsandbytes_available", lambda: there)
    monkeypatch.setattr(world, "find_spec", lambda name: name if there and name in found else None)
    found = {"deepspeed", "openvino", "nncf"}
    here = World()
    gpu = (here.has_gpu(), here.gpu_has_bf16())
    packages = (here.has_flash_attention(), here.has_bitsandbytes(), here.has_deepspeed(), here.has_openvino())
    assert (*gpu, here.has_compiler(), *packages) == (there,) * 7
    found.remove("nncf")
    assert not here.has_openvino()


@pytest.mark.parametrize("folder", ["", "training", "training/ortmodule"])
def test_an_onnx_runtime_that_trains(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that doesn't has the same name."""
    (tmp_path / "onnxruntime" / folder).mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert World().has_onnx_runtime_training() is (folder == "training/ortmodule")


SETTLED = """
import sys
from finetune.core.world import World
from finetune.distributed.settlement import settle
from finetune.params.finetune import FinetuneParams
folders = ("preprocess_output", "model_selector_output", "pytorch_model_folder", "mlflow_model_folder")
words = [word for name in folders for word in ("--" + name, name)]
settle(FinetuneParams, [*words, *sys.argv[1:]], World())
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(("words", "imported"), [([], "False"), (["--precision", "bf16"], "True")], ids=str)
def test_torch_is_imported_where_a_row_asks_for_the_machine(words: list[str], imported: str) -> None:
    ran = subprocess.run([sys.executable, "-c", SETTLED, *words], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == imported


@pytest.mark.parametrize(
    ("driver", "visible", "usable", "cuda", "why"),
    [
        (False, None, False, "13.0", ""),
        (True, None, True, "13.0", ""),
        (True, "-1", False, "13.0", ""),
        (True, "", False, None, ""),
        (True, None, False, "13.0", "is built for CUDA 13.0, for which the driver may be too old"),
        (True, "0", False, None, "is built for CPUs alone"),
    ],
)
def test_a_gpu_that_cannot_be_used(
    driver: bool,
    visible: str | None,
    usable: bool,
    cuda: str | None,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(world, "NVIDIA_DRIVER", tmp_path / ("nvidiactl" if driver else "nothing"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = World().gpu_out_of_reach()
    assert found.endswith(why) and bool(found) == bool(why)
