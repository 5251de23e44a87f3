"""The packages of an export, and a model of ONNX Runtime as a function from arrays to arrays. No torch here."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.core.errors import Fault, ModelError, UnsupportedError, first_line

if TYPE_CHECKING:
    from finetune.data.batches import Arrays
    from finetune.models.openvino import Opened

OF_EXPORT = ("openvino",)
OF_PTQ = ("nncf",)
OF_ONNX = ("onnx", "onnxscript", "onnxruntime")


def require(packages: Iterable[str], what: str, instead: str) -> None:
    """Raise UnsupportedError, with the command that installs them, if packages are lacking for what is asked."""
    lacking = [name for name in packages if find_spec(name) is None]
    if lacking:
        are = "package {} is" if len(lacking) == 1 else "packages {} are"
        why = f"the {are.format(', '.join(lacking))} not installed"
        raise UnsupportedError(Fault(what, why=why, fix=f'pip install ".[compression]", or {instead}'))


def open_onnx(model: Path, threads: int) -> "Opened":
    """Return the ONNX model of a file, in ONNX Runtime. Raises: ModelError if it can't be read."""
    import onnxruntime

    from finetune.models.openvino import Opened

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        fix = "run finetune export again"
        raise ModelError(Fault(f"{model} can't be loaded", why=first_line(error), fix=fix)) from None
    inputs, outputs = session.get_inputs(), [port.name for port in session.get_outputs()]
    empty = {port.name: tuple(size if isinstance(size, int) else 0 for size in port.shape[1:]) for port in inputs}

    def compute(given: "Arrays") -> "Arrays":
        return dict(zip(outputs, session.run(outputs, given), strict=True))

    return Opened(tuple(empty), compute, empty)
