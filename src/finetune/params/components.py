"""The parameters of every component, each once. No torch here, so that --help is instant.

A group is a frozen dataclass; a component inherits its groups, in the order shown to users. The first line of a
group's docstring is its heading. Names, types and defaults are those of the published components.
"""

from dataclasses import dataclass

from finetune.params.datapreprocess import (
    GenerativeQuestionAnsweringPreprocessParams,
    QuestionAnsweringPreprocessParams,
    TokenClassificationPreprocessParams,
    TranslationPreprocessParams,
)
from finetune.params.evaluation import (
    GenerativeQuestionAnsweringEvaluationParams,
    QuestionAnsweringEvaluationParams,
    TokenClassificationEvaluationParams,
    TranslationEvaluationParams,
)
from finetune.params.finetune import (
    GenerativeQuestionAnsweringParams,
    QuestionAnsweringParams,
    TokenClassificationParams,
    TranslationParams,
)
from finetune.params.model_import import ModelImportParams
from finetune.params.schema import param

CPU_INSTANCE, GPU_INSTANCE = "Standard_D12_v2", "Standard_NC24ads_A100_v4"


@dataclass(frozen=True, kw_only=True)
class ComputeParams:
    """Compute."""

    compute_model_import: str = param("serverless", "Compute of the model import step.")
    compute_preprocess: str = param("serverless", "Compute of the preprocess step.")
    compute_finetune: str = param("serverless", "Compute of the finetune step.")
    compute_model_evaluation: str = param("serverless", "Compute of the evaluation step.")
    instance_type_model_import: str = param(CPU_INSTANCE, "Machine of the model import step on serverless compute.")
    instance_type_preprocess: str = param(CPU_INSTANCE, "Machine of the preprocess step on serverless compute.")
    instance_type_finetune: str = param(GPU_INSTANCE, "Machine of the finetune step on serverless compute.")
    instance_type_model_evaluation: str = param(GPU_INSTANCE, "Machine of the evaluation step on serverless compute.")
    shm_size_finetune: str = param("5g", "Shared memory of the finetune step.")
    num_nodes_finetune: int = param(1, "Machines of the finetune step.", min=1)
    number_of_gpu_to_use_finetuning: int = param(
        1, "Processes on each machine of the finetune step, one for each GPU.", min=1
    )


@dataclass(frozen=True)
class TaskComponents:
    """The parameter classes of the four components of one task."""

    title: str
    model_import: type
    datapreprocess: type
    finetune: type
    evaluation: type


TASKS = {
    "question_answering": TaskComponents(
        title="Question Answering",
        model_import=ModelImportParams,
        datapreprocess=QuestionAnsweringPreprocessParams,
        finetune=QuestionAnsweringParams,
        evaluation=QuestionAnsweringEvaluationParams,
    ),
    "generative_question_answering": TaskComponents(
        title="Generative Question Answering",
        model_import=ModelImportParams,
        datapreprocess=GenerativeQuestionAnsweringPreprocessParams,
        finetune=GenerativeQuestionAnsweringParams,
        evaluation=GenerativeQuestionAnsweringEvaluationParams,
    ),
    "token_classification": TaskComponents(
        title="Token Classification",
        model_import=ModelImportParams,
        datapreprocess=TokenClassificationPreprocessParams,
        finetune=TokenClassificationParams,
        evaluation=TokenClassificationEvaluationParams,
    ),
    "translation": TaskComponents(
        title="Translation",
        model_import=ModelImportParams,
        datapreprocess=TranslationPreprocessParams,
        finetune=TranslationParams,
        evaluation=TranslationEvaluationParams,
    ),
}
