"""A server for each module of end-to-end tests; it must stop cleanly and leave no worker behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import RunningServer, start_server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store that a module fills with `archive`."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(tmp_path_factory.mktemp("server"), store)
    yield running
    running.stop_and_leave_nothing()
