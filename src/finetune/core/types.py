"""The types that all rooms use, by name."""

from typing import Any

Json = dict[str, Any]  # what a JSON or YAML object holds
