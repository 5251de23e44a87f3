"""The stand-in for Azure ML, listening, and a client of it."""

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.azure_service.service import Service
from tests.forking import Forks


@pytest.fixture(scope="module")
def azure(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, which a process finds through the variables that it sets: see `Service.environment`."""
    with Service(tmp_path_factory.mktemp("azure"), forks.python) as service, pytest.MonkeyPatch.context() as patch:
        for name, value in service.environment().items():
            patch.setenv(name, value)
        yield service


@pytest.fixture(autouse=True)
def names_that_differ() -> None:
    """azure-ai-ml draws the names of its jobs from `random`, which other tests seed."""
    random.seed()


@pytest.fixture(scope="module")
def client(azure: Service) -> Iterator[Any]:
    """An MLClient of the stand-in, which looks at a job every 2 seconds, however long it takes."""
    from azure.ai.ml.operations._run_history_constants import RunHistoryConstants

    logging.disable(logging.WARNING)  # the SDK warns of its own experimental classes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunHistoryConstants, "_WAIT_COMPLETION_POLLING_INTERVAL_MAX", "2")
        yield azure.client()
    logging.disable(logging.NOTSET)
