"""INT8 of a converted model: the ranges of what flows through it are those of some windows of train."""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.backends.graphs.conversion import quiet
from finetune.data.batches import Arrays

if TYPE_CHECKING:
    import openvino

# Of a transformer's operators, those that hold weights: all others are cheap, and lose more than they gain.
OF_WEIGHTS = ("MatMul", "Gemm", "Gather")


def by_nncf(model: "openvino.Model", windows: Sequence[Arrays]) -> "openvino.Model":
    """Return the OpenVINO model in INT8, by NNCF: symmetric weights, activations as they are found to be.

    Weights take half their range: processors without VNNI add two products in 16 bits, which others overflow.
    """
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    nncf.set_log_level(logging.ERROR)
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its bars
        return nncf.quantize(
            model,
            nncf.Dataset(windows),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(windows),
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
        )


def weights_by_nncf(model: "openvino.Model") -> "openvino.Model":
    """Return an OpenVINO model whose weights alone are in INT8, a scale for each row: it computes in 32 bits.

    So it needs no ranges of what flows through a decoder, step by step.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def by_onnxruntime(model: Path, windows: Sequence[Arrays], target: Path) -> None:
    """Write the ONNX model in INT8, with a pair of nodes around each operator that is quantised (QDQ)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Windows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Arrays] = iter(windows)

        def get_next(self) -> Arrays | None:
            return next(self.left, None)

    prepared = target.with_name("prepared.onnx")
    with quiet():
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Windows(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OF_WEIGHTS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Weights of 7 bits, as ONNX Runtime advises where there is no VNNI, and ranges that follow the windows.
            # Neither keeps the score of a MiniLM (docs/compression.md).
            reduce_range=True,
            extra_options={"CalibMovingAverage": True},
        )
    prepared.unlink()


def weights_by_onnxruntime(model: Path, target: Path) -> None:
    """Write an ONNX model whose weights are in INT8; ranges of what flows through it are found as it computes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            str(model),
            str(target),
            op_types_to_quantize=list(OF_WEIGHTS),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
