"""Names of types that all rooms use."""

from typing import Any

Json = dict[str, Any]  # what a JSON or YAML object holds
