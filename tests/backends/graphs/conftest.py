"""The runtimes that graphs are made for, where they are installed."""

from typing import Any

import pytest


@pytest.fixture
def openvino() -> Any:
    return pytest.importorskip("openvino", reason='pip install ".[compression]"')


@pytest.fixture
def onnxruntime() -> Any:
    pytest.importorskip("onnxscript", reason='pip install ".[compression]"')
    return pytest.importorskip("onnxruntime", reason='pip install ".[compression]"')
