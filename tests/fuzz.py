"""Try again what docs/security.md says was tried, the long ones too: `python -m tests.fuzz [pytest's options]`.

Each of the long ones takes a minute or more, and each call draws other examples.
"""

import sys

import pytest

from tests.conftest import ROOT

TRIED = (
    "tests/core/test_outputs.py",
    "tests/core/test_lock.py",
    "tests/test_no_code.py",
    "tests/test_no_network.py",
    "tests/test_linear.py",
    "tests/models/stored/test_intact.py",
    "tests/data/test_fuzz_folders.py",
    "tests/azure/test_fuzz_yaml.py",
    "tests/azure/test_quoting.py",
    "tests/tasks/test_fuzz.py",
    "tests/results/test_limits.py",
    "tests/results/test_private.py",
    "tests/results/test_templates.py",
    "tests/distributed/test_channel.py",
)

if __name__ == "__main__":
    sys.exit(pytest.main([*(str(ROOT / path) for path in TRIED), "--hypothesis-profile=default", *sys.argv[1:]]))
