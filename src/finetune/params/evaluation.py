"""The parameters of evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.params.datapreprocess import (
    QuestionAnsweringColumns,
    TokenClassificationColumns,
    TranslationColumns,
)
from finetune.params.schema import param, port

TASK_NAME = "The task, as the published components name it: there is no other value."
EVALUATED = ("metrics.json", "predictions.jsonl", "report.html")


@dataclass(frozen=True, kw_only=True)
class EvaluationParams:
    """Evaluation."""

    preprocess_output: Path | None = port(
        "uri_folder", "Output of preprocess, whose test split is scored.", optional=True
    )
    test_data: Path | None = port(
        "uri_file",
        "A file of rows to score, instead of preprocess_output. Rows without gold are predicted only.",
        optional=True,
    )
    pytorch_model_folder: Path | None = port(
        "uri_folder", "The model to score: pytorch_model_folder of a run, or any Hugging Face folder.", optional=True
    )
    mlflow_model_folder: Path | None = port(
        "mlflow_model", "The model to score, instead of pytorch_model_folder.", optional=True
    )
    openvino_model_folder: Path | None = port(
        "uri_folder",
        "The model to score, instead of pytorch_model_folder, in OpenVINO on the CPU: what finetune export wrote.",
        optional=True,
    )
    per_device_eval_batch_size: int = param(16, "Windows scored at a time.", min=1)
    precision: Literal["32", "bf16"] = param("32", "Numbers used in the forward pass.")
    eval_accumulation_steps: int = param(
        1,
        "Batches whose results, the best spans or tags, stay on the device before they move to the CPU. -1 keeps those of all.",
        min=-1,
    )
    seed: int = param(42, "Seed of the head, where the model has none yet.", min=0, max=2**32 - 1)
    evaluation_config: Path | None = port(
        "uri_file",
        "JSON as for the published evaluation component: metrics, a list of its names, and how it compares texts. Metrics by its names are then those of this config.",
        optional=True,
    )
    evaluation_config_params: str | None = param(
        None, "The same as JSON text, whose values win over those of evaluation_config."
    )
    evaluation_result: Path = port(
        "uri_folder",
        "metrics.json, predictions.jsonl and report.html.",
        output=True,
        writes=EVALUATED,
    )


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringEvaluationParams(EvaluationParams, QuestionAnsweringColumns):
    """Question answering."""

    task_name: Literal["QuestionAnswering"] = param("QuestionAnswering", TASK_NAME)

    null_threshold: float | None = param(
        None,
        "Withhold an answer where the null answer beats it by more than this. Left out, the threshold is the one stored in the model. Matters only for models trained with unanswerable questions.",
    )


@dataclass(frozen=True, kw_only=True)
class GenerativeQuestionAnsweringEvaluationParams(QuestionAnsweringEvaluationParams):
    """Generative question answering."""

    num_beams: int | None = param(
        None, "Beams that answers are searched with. Left out, the number stored in the model.", min=1
    )


@dataclass(frozen=True, kw_only=True)
class TokenClassificationEvaluationParams(EvaluationParams, TokenClassificationColumns):
    """Token classification."""

    task_name: Literal["NamedEntityRecognition"] = param("NamedEntityRecognition", TASK_NAME)


@dataclass(frozen=True, kw_only=True)
class TranslationEvaluationParams(EvaluationParams, TranslationColumns):
    """Translation."""

    task_name: Literal["TextTranslation"] = param("TextTranslation", TASK_NAME)
    source_lang: str | None = param(
        None,
        "Language to translate from: its code, and the column of its texts. Left out, the model's; needed with test_data.",
    )  # type: ignore[assignment]
    target_lang: str | None = param(
        None,
        "Language to translate to: its code, and the column of its texts. Left out, the model's; needed with test_data.",
    )  # type: ignore[assignment]
    num_beams: int | None = param(
        None, "Beams that translations are searched with. Left out, the number stored in the model.", min=1
    )
