"""The parameters of `finetune export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.params.finetune import OPENVINO_MODEL
from finetune.params.schema import param, port

CALIBRATION = 300  # windows, as NNCF takes by default


@dataclass(frozen=True, kw_only=True)
class ExportParams:
    """Export."""

    pytorch_model_folder: Path | None = port(
        "uri_folder", "The finished model: pytorch_model_folder of a run.", optional=True
    )
    mlflow_model_folder: Path | None = port(
        "mlflow_model", "The finished model, instead of pytorch_model_folder.", optional=True
    )
    preprocess_output: Path = port(
        "uri_folder",
        "Output of preprocess: rows of validation that every backend is scored on, rows of train that set the ranges of INT8.",
    )
    quantization: Literal["none", "ptq", "qat"] = param(
        "ptq",
        "ptq: also in INT8, with ranges that are set after training, and with those of training where it had apply_qat; of a model that writes, with weights in INT8. qat: INT8 with those of training alone. none: in 32 bits alone.",
    )
    calibration_samples: int = param(
        CALIBRATION, "Windows of train that set the ranges of INT8, of a model that reads.", min=1
    )
    onnx: bool = param(False, "Also write ONNX, and measure ONNX Runtime.")
    max_f1_drop: float = param(
        1.0,
        "Points of 100 that the main metric on validation may fall below PyTorch's in 32 bits. What falls further is not chosen.",
        min=0,
        max=100,
    )
    target_latency_ms: float | None = param(
        None,
        "Milliseconds that half of all windows may take, one at a time, or texts that are written. If nothing is as fast, the command fails.",
        min=0,
    )
    max_scored_rows: int = param(1000, "Rows of validation that are scored, spread over all of them.", min=1)
    per_device_eval_batch_size: int = param(16, "Windows at a time, in scoring and for the throughput.", min=1)
    benchmark_seconds: float = param(
        30.0, "Time for measuring, shared by all backends in turns. Each has 3 turns at least.", min=0
    )
    threads: int | None = param(None, "Threads of every backend. Left out, as many as PyTorch takes.", min=1)
    openvino_model_folder: Path = port(
        "uri_folder",
        "The OpenVINO model that is chosen, its tokenizer and config.json, mlflow_model to deploy, backends.json and backends.html; with onnx, the ONNX model too.",
        output=True,
        writes=OPENVINO_MODEL,
    )
