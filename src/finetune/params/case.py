"""The case that rules are about: the parameters of a command line, where they will run, and the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from finetune.core.errors import Fault, ParameterError, UnsupportedError
from finetune.core.world import World

P = TypeVar("P")


@dataclass(frozen=True)
class ModelFacts:
    """The facts that rows ask of a model; models/facts.py reads them from an empty one."""

    model_type: str
    class_name: str
    is_encoder_decoder: bool
    supports_gradient_checkpointing: bool
    sharded_layers: tuple[str, ...]  # classes of the layers that FSDP shards one by one
    has_linear_layers: bool  # that adapters could be put on
    has_blocks: bool  # that pruning can cut out
    needs_padding: bool  # attention can't be told where windows begin
    not_exported: str = ""  # why it isn't converted for other runtimes; "" where it is


@dataclass(frozen=True)
class Case(Generic[P]):
    """A case: without the facts of a model, rows that need them are skipped, with them all other rows."""

    params: P
    world: World = World()
    zero_stage: int | None = None  # of the DeepSpeed config
    known_model: ModelFacts | None = None

    @property
    def model(self) -> ModelFacts:
        """The facts of the model, for the rows that need them."""
        if self.known_model is None:
            raise LookupError("the row lacks of_model=True")
        return self.known_model


@dataclass(frozen=True)
class Rule(Generic[P]):
    """A rule, one row of the table. Text that depends on the case is a function of it."""

    of: type[P]
    fires: Callable[[Case[P]], bool]
    what: str | Callable[[Case[P]], str]
    why: str | Callable[[Case[P]], str] = ""
    fix: str | Callable[[Case[P]], str] = ""
    kind: type[ParameterError] | type[UnsupportedError] | None = UnsupportedError  # None: a note
    of_model: bool = False

    def fault(self, case: Case[P]) -> Fault:
        what, why, fix = (text if isinstance(text, str) else text(case) for text in (self.what, self.why, self.fix))
        return Fault(what, why=why, fix=fix)
