"""The finetuning of Hugging Face models as Azure ML pipeline components, on Azure and on a laptop."""

import os
import sys

__version__ = "0.1.0"

# Set before any library is imported: nothing reports home, and only what is for the user is printed.
for _switch in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_switch, "1")
# OpenVINO reports home when it is imported, NNCF when it quantises, and their switch is a file in the user's home. Both
# have a stub for whoever lacks the package that sends it; None makes its import an ImportError.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
for _name, _value in {
    "TOKENIZERS_PARALLELISM": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_UV_AUTO_DETECT": "false",  # it would copy files of the working folder into the model
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}.items():
    os.environ.setdefault(_name, _value)
