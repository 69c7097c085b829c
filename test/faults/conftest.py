"""Servers for the fault tests: real ones, each of which must stop cleanly and leave nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import MODELS, RunningServer, archive, start_server

OWN_MODELS = Path(__file__).parent / "models"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with every model of these tests."""
    folder = tmp_path_factory.mktemp("store")
    archive(folder, "ids", MODELS / "ids.py")
    for path in (*OWN_MODELS.glob("*.py"), MODELS / "cooperates.py", MODELS / "sleeps_async.py"):
        more = {}
        if path.stem.endswith("_async"):
            config = tmp_path_factory.mktemp("config") / "model-config.yaml"
            config.write_text("minWorkers: 1\nmaxWorkers: 1\nasyncCommunication: true\n")
            more["config_file"] = str(config)
        archive(folder, path.stem, path, **more)
    return folder


@pytest.fixture(scope="module")
def start(
    store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., RunningServer]]:
    """start(**settings): a server that is stopped at the end of the module, if not before."""
    servers = []

    def start(**keys: object) -> RunningServer:
        servers.append(start_server(tmp_path_factory.mktemp("server"), store, **keys))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop_and_leave_nothing()
        server.session.close()
