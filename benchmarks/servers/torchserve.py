"""TorchServe, and what any server with TorchServe's commands, archives and APIs needs."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from benchmarks import payloads
from benchmarks.load import grpc_client
from benchmarks.load.clients import Request
from benchmarks.servers.base import (
    BINARY,
    MODELS,
    NETWORKS,
    GrpcCall,
    Launch,
    Ports,
    RunningServer,
    ServerKind,
    StartFailed,
    ask,
    distribution_version,
    in_environment,
)
from benchmarks.works import Deployment, Work

# task -> handler, and what it needs beside it
_HANDLERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "echo": ("echo_handler.py", ()),
    "stream": ("stream_handler.py", ("tasks.py",)),
    "explain": ("explain_handler.py", ("tasks.py", "nets.py")),
}
_OTHER_TASKS = ("task_handler.py", ("tasks.py", "nets.py"))
_REGISTER_TIMEOUT_S = 120.0


class TorchServeCommand(ServerKind):
    """A server that `torchserve --start` starts.

    settings: lines of config.properties; the keys `log_config` (path of a file) and `vmargs` too.
    """

    model: ClassVar[str] = "benchmark"
    version_of_model: ClassVar[str] = "1.0"

    @abstractmethod
    def words(self) -> list[str]:
        """The command `torchserve` of this server's environment."""

    @abstractmethod
    def environment(self) -> dict[str, str]: ...

    def why_not(self, work: Work) -> str:
        return ""

    def command(self, work: Work, folder: Path, ports: Ports) -> Launch:
        deployment = work.deployment
        store = folder / "store"
        store.mkdir()
        if deployment.archive:
            copy_archive(Path(deployment.archive), store / f"{self.model}.mar", deployment)
        else:
            archive_task(deployment.task, self.model, folder, store)
        settings = {
            "inference_address": f"http://127.0.0.1:{ports.http}",
            "management_address": f"http://127.0.0.1:{ports.named('management')}",
            "metrics_address": f"http://127.0.0.1:{ports.named('metrics')}",
            "grpc_inference_port": str(ports.grpc),
            "grpc_management_port": str(ports.named("grpc management")),
            "default_workers_per_model": str(deployment.workers),
            "models": self._model_settings(deployment),
            **self.settings,
        }
        log_config = settings.pop("log_config", "")
        config = folder / "config.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return Launch(
            [
                *self.words(),
                *("--start", "--foreground", "--ncs", "--disable-token-auth"),
                *("--enable-model-api", "--ts-config", str(config), "--model-store", str(store)),
                *("--models", f"{self.model}={self.model}.mar"),
                *(("--log-config", log_config) if log_config else ()),
            ],
            {
                "LOG_LOCATION": str(folder / "logs"),
                "METRICS_LOCATION": str(folder / "logs"),
                "OMP_NUM_THREADS": "1",
                **self.environment(),
            },
        )

    def _model_settings(self, deployment: Deployment) -> str:
        """The key `models`: JSON on one line."""
        settings = {
            "defaultVersion": True,
            "marName": f"{self.model}.mar",
            "minWorkers": deployment.workers,
            "maxWorkers": deployment.workers,
            "batchSize": deployment.batch_size,
            "maxBatchDelay": deployment.max_batch_delay_ms,
            "responseTimeout": 120,
        }
        return json.dumps({self.model: {self.version_of_model: settings}})

    def prepare(self, server: RunningServer, work: Work) -> None:
        """Registers the models that nobody asks; they have no workers."""
        for number in range(1, work.deployment.registered_models):
            query = f"url={self.model}.mar&model_name=model{number}&initial_workers=0"
            status, body = ask(
                server.ports.named("management"),
                Request("POST", f"/models?{query}", {}, b""),
                _REGISTER_TIMEOUT_S,
            )
            if status != 200:
                raise StartFailed(f"{self.name}: registering model {number}: {status} {body!r}")

    def request(self, work: Work) -> Request:
        verb = "explanations" if work.deployment.task == "explain" else "predictions"
        path = f"/{verb}/{self.model}"
        return Request("POST", path, dict(BINARY), payloads.body(work.payload))

    def grpc_call(self, work: Work) -> GrpcCall:
        body = payloads.body(work.payload)
        return GrpcCall(
            grpc_client.PREDICTIONS,
            grpc_client.predictions_request(self.model, body),
            grpc_client.prediction_response(body),
        )


def archive_task(task: str, model: str, folder: Path, store: Path) -> None:
    """Write `<store>/<model>.mar` with the project's archiver. folder: for files on the way."""
    from model_archiver import ModelArchiver, ModelArchiverConfig

    handler, extra = _HANDLERS.get(task, _OTHER_TASKS)
    config = folder / "model-config.yaml"
    config.write_text(f"handler:\n  task: {task}\n")
    ModelArchiver.generate_model_archive(
        ModelArchiverConfig(
            model_name=model,
            version=TorchServeCommand.version_of_model,
            handler=str(MODELS / handler),
            extra_files=",".join(str(MODELS / name) for name in extra) or None,
            config_file=str(config),
            export_path=str(store),
        )
    )


def copy_archive(source: Path, target: Path, deployment: Deployment) -> None:
    """Copy an archive with the deployment's batches and workers in its model-config.yaml, if it has
    one: what stands there would win over what the server is told.
    """
    import yaml

    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        manifest = json.loads(old.read("MAR-INF/MANIFEST.json"))
        config = manifest["model"].get("configFile")
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename == config:
                settings = yaml.safe_load(content) or {}
                settings |= {
                    "minWorkers": deployment.workers,
                    "maxWorkers": deployment.workers,
                    "batchSize": deployment.batch_size,
                    "maxBatchDelay": deployment.max_batch_delay_ms,
                }
                content = yaml.safe_dump(settings).encode()
            new.writestr(entry, content)


class TorchServe(TorchServeCommand):
    """TorchServe of PyPI, in an environment of its own since ours takes its names."""

    requirements = ("torchserve==0.12.0", "captum", "pyyaml", *NETWORKS)
    first_warmup_s = 10.0  # Java compiles while it runs

    def why_missing(self) -> str:
        if not os.access(self.words()[0], os.X_OK):
            return f"there is no torchserve beside {self.python}{self.hint()}"
        if in_environment(self.python, "import ts_frontend; print(1)"):
            return f"the torchserve beside {self.python} is ours{self.hint()}"
        if not shutil.which("java"):
            return "TorchServe needs java, which is not installed"
        return ""

    def version(self) -> str:
        return f"TorchServe {distribution_version(self.python, 'torchserve')}"

    def words(self) -> list[str]:
        return [str(Path(self.python).with_name("torchserve"))]

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(self.python).parent), os.environ.get("PATH", "")])
        # Our own `ts` may be on this tool's PYTHONPATH.
        return {"PATH": path, "PYTHONPATH": ""}
