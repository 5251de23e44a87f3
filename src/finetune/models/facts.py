"""Read what rules ask of a model, from an empty one."""

from transformers import GenerationMixin, PreTrainedModel

from finetune.distributed import fsdp
from finetune.models import blocks
from finetune.models.adapt import lora
from finetune.models.kernels import families
from finetune.models.stored import exportable
from finetune.params.case import ModelFacts


def facts_of(model: PreTrainedModel) -> ModelFacts:
    """Return the facts of a model. No weights are needed: `empty_model` will do."""
    return ModelFacts(
        model_type=model.config.model_type,
        class_name=type(model).__name__,
        is_encoder_decoder=model.config.is_encoder_decoder,
        supports_gradient_checkpointing=model.supports_gradient_checkpointing,
        sharded_layers=tuple(fsdp.layers(model)),
        has_linear_layers=bool(lora.targets(model)),
        has_blocks=model.config.model_type in blocks.FAMILIES,
        needs_padding=not families.is_known(model.config),
        not_exported=exportable.why_not(model.config, isinstance(model, GenerationMixin)),
    )
