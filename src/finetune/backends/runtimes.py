"""Open a converted model in its runtime, as a function from arrays to arrays. No torch here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.core.errors import Fault, ModelError, UnsupportedError, first_line

if TYPE_CHECKING:
    import numpy as np

Arrays = dict[str, "np.ndarray"]
IR, IR_WEIGHTS, ONNX, ONNX_INT8 = "openvino_model.xml", "openvino_model.bin", "model.onnx", "model_int8.onnx"
OF_EXPORT = ("openvino",)
OF_PTQ = ("nncf",)
OF_ONNX = ("onnx", "onnxscript", "onnxruntime")
PRECISIONS = {"32": "f32", "bf16": "bf16"}  # left to itself, OpenVINO computes in bf16 where the processor has it


@dataclass(frozen=True)
class Opened:
    """A model that computes logits: (B, L) integers by name of the input -> arrays by name of the output, B first."""

    inputs: tuple[str, ...]
    compute: Callable[[Arrays], Arrays]


def require(packages: Iterable[str], what: str, instead: str) -> None:
    """Raise UnsupportedError, with the command that installs them, if packages are lacking for what is asked."""
    lacking = [name for name in packages if find_spec(name) is None]
    if lacking:
        are = "package {} is" if len(lacking) == 1 else "packages {} are"
        why = f"the {are.format(', '.join(lacking))} not installed"
        raise UnsupportedError(Fault(what, why=why, fix=f'pip install ".[compression]", or {instead}'))


def open_openvino(model: Path, threads: int, precision: str = "32") -> Opened:
    """Return the OpenVINO model of an .xml file and the .bin beside it. Raises: ModelError if it can't be read."""
    import numpy as np
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    try:
        compiled = openvino.Core().compile_model(model, "CPU", hints)
        names = [port.any_name for port in compiled.inputs], [port.any_name for port in compiled.outputs]
    except RuntimeError as error:
        fix = "run finetune export again"
        raise ModelError(Fault(f"{model} can't be loaded", why=first_line(error), fix=fix)) from None
    request = compiled.create_infer_request()

    def compute(given: Arrays) -> Arrays:
        found = request.infer(given, share_inputs=True)
        return {name: np.array(found[name]) for name in names[1]}  # a copy: the next request writes there

    return Opened(tuple(names[0]), compute)


def open_onnx(model: Path, threads: int) -> Opened:
    """Return the ONNX model of a file, in ONNX Runtime. Raises: ModelError if it can't be read."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        fix = "run finetune export again"
        raise ModelError(Fault(f"{model} can't be loaded", why=first_line(error), fix=fix)) from None
    outputs = [port.name for port in session.get_outputs()]

    def compute(given: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, given), strict=True))

    return Opened(tuple(port.name for port in session.get_inputs()), compute)


def refuse_no_ir(folder: Path) -> None:
    """Raise ModelError unless both files of an OpenVINO model are in the folder."""
    missing = [name for name in (IR, IR_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        fix = "give the openvino_model_folder that finetune export wrote"
        raise ModelError(Fault(f"{folder} has no {' and no '.join(missing)}", why="it is no OpenVINO model", fix=fix))
