"""What a request to the served model may hold: its memory and its time grow with the rows and their characters."""

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from finetune.core.types import Json

# Of a small model on a CPU, a million characters take some 8 s and 0.7 GB. The limits are saved with the model, as
# MLflow's model_config: who serves it may set others, by SERVING_CONFIG or load_model, but a request can't.
LIMITS = {"max_request_rows": 10_000, "max_request_characters": 1_000_000}

UNLIMITED = dict.fromkeys(LIMITS, 2**62)
SERVING_CONFIG = "SERVING_MODEL_CONFIG"  # the variable: MLflow's server reads it, Azure ML's programs don't

SERVED_ON = "MLFLOW_DEFAULT_PREDICTION_DEVICE"  # the variable: where MLflow's own models compute too


def of_environment() -> Mapping[str, int]:
    """Return the limits that whoever serves the model has set."""
    found: Json = json.loads(os.environ.get(SERVING_CONFIG) or "{}")
    return {name: found[name] for name in LIMITS if name in found}


def too_much(records: Sequence[Json], limits: Mapping[str, int]) -> str:
    """Return what is too much of a request, its limit, and what to do; "" if nothing is."""
    counts = {
        "max_request_rows": len(records),
        "max_request_characters": characters(records),
    }
    found = [
        f"{count:,} {name.removeprefix('max_request_')}, where {name} is {limits[name]:,}"
        for name, count in counts.items()
        if count > limits[name]
    ]
    fix = f"send less at a time, or serve the model with {SERVING_CONFIG}='{json.dumps(counts)}'"
    return f"the request has {' and '.join(found)}; {fix}" if found else ""


def characters(records: Sequence[Json]) -> int:
    """Return the characters of all values."""
    return sum(size(value) for record in records for value in record.values())


def size(value: object) -> int:
    """Return the characters of a value; each word of a list counts as one more, and what is no text as one."""
    if isinstance(value, str):
        return len(value)
    return sum(1 + size(part) for part in value) if isinstance(value, list | tuple | np.ndarray) else 1
