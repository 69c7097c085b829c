"""Other people's clients against a real server.

Each needs packages that the server's own environment has no use for, so each runs in a Python that
an environment variable names, and is skipped where that is not set:

    TS_TRITON_PYTHON   tritonclient[all]
    TS_KSERVE_PYTHON   kserve
    TS_STUBS_PYTHON    grpcio-tools googleapis-common-protos
    TS_SCHEMATHESIS    the command of schemathesis, in whatever environment
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from serving import DIGITS, MODELS, ROOT, RunningServer, archive, archive_digits, start_server

HERE = Path(__file__).parent


def fill(store: Path) -> None:
    config = store / "model-config.yaml"
    store.mkdir(parents=True, exist_ok=True)
    config.write_text("tensorInputs: torch\n")
    archive(store, "torch", MODELS / "tensors.py", config_file=str(config))
    archive(store, "echo", MODELS / "echo.py")
    archive(store, "streams", MODELS / "streams.py")
    archive(store, "streams_for_ever", MODELS / "streams_for_ever.py")
    archive_digits(store)


def needs(variable: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(variable not in os.environ, reason=f"{variable} names no Python")


def run(*command: str, timeout_s: float = 200) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, env={"PATH": ""}
    )
    assert result.returncode == 0, f"{result.stdout[-6000:]}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """Indirect parameters are lines of its configuration."""
    keys = dict(getattr(request, "param", {}))
    fill(tmp_path / "store")
    running = start_server(
        tmp_path / "server",
        tmp_path / "store",
        ts_open_inference_protocol="true",
        flags=("--models", "torch=torch.mar", "digits=digits.mar"),
        has_tokens=keys.pop("has_tokens", False),
        max_request_size="10000000",
        max_response_size="10000000",
        **keys,
    )
    if not running.folder.joinpath("key_file.json").exists():
        for model in ("torch", "digits"):
            running.wait_ready(model)
    yield running
    assert running.stop() == 0, running.tail()


@needs("TS_TRITON_PYTHON")
def test_tritons_client(server: RunningServer) -> None:
    python = os.environ["TS_TRITON_PYTHON"]
    image = str(DIGITS / "test_data" / "3.png")
    out = run(python, str(HERE / "triton.py"), server.grpc_inference, server.inference, image)
    print(out)


@needs("TS_KSERVE_PYTHON")
@pytest.mark.parametrize(
    "server", [{}, {"service_envelope": "kserve"}], ids=["v2", "v1"], indirect=True
)
def test_kserves_client_and_transformer(
    server: RunningServer, request: pytest.FixtureRequest
) -> None:
    python = os.environ["TS_KSERVE_PYTHON"]
    image = str(DIGITS / "test_data" / "3.png")
    kind = request.node.callspec.id
    # Where the recorded pairs of test/e2e/kserve_pairs shall be made anew.
    folder = [os.environ["TS_RECORD_PAIRS"]] if "TS_RECORD_PAIRS" in os.environ else []
    print(
        run(
            python,
            str(HERE / "kserve_sdk.py"),
            kind,
            server.grpc_inference,
            server.inference,
            image,
            *folder,
        )
    )


@needs("TS_STUBS_PYTHON")
@pytest.mark.parametrize("has_tokens", [False, True], ids=["open", "keys"])
@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "tls"])
def test_generated_stubs(tmp_path: Path, has_tokens: bool, has_tls: bool) -> None:
    python = os.environ["TS_STUBS_PYTHON"]
    store = tmp_path / "store"
    fill(store)
    keys: dict[str, object] = {"ts_open_inference_protocol": "true"}
    certificate = ""
    if has_tls:
        certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True)
        keys |= {"enable_grpc_ssl": "true", "certificate_file": certificate}
        keys |= {"private_key_file": key}
    running = start_server(
        tmp_path / "server",
        store,
        flags=("--models", "torch=torch.mar"),
        has_tokens=has_tokens,
        **keys,
    )
    tokens = ["", ""]
    if has_tokens:
        file = json.loads((running.folder / "key_file.json").read_text())
        tokens = [file["inference"]["key"], file["management"]["key"]]
        running.session.headers["authorization"] = f"Bearer {tokens[1]}"
    running.wait_ready("torch")
    try:
        run(
            python,
            str(HERE / "stubs.py"),
            str(ROOT / "proto"),
            running.grpc_inference,
            running.grpc_management,
            running.metrics,
            certificate,
            *tokens,
        )
    finally:
        assert running.stop() == 0, running.tail()


# Generated requests.

PARAMETERS = {
    # Such as are registered, or nearly.
    "model_name": {"type": "string", "enum": ["echo", "torch", "nobody", "echo "]},
    "model_version": {"type": "string", "enum": ["1.0", "9"]},
}


def described(url: str) -> dict[str, object]:
    """The API description as it is served, but for the names of models and versions."""
    description = requests.options(url, timeout=20).json()
    for operations in description["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                wanted = PARAMETERS.get(parameter["name"])
                if wanted is not None:
                    parameter["schema"] = wanted
    return description


@needs("TS_SCHEMATHESIS")
@pytest.mark.timeout(660)
@pytest.mark.parametrize("api", ["inference", "management"])
def test_generated_requests(server: RunningServer, tmp_path: Path, api: str) -> None:
    """No answer is a fault of the server, and none takes long (TS_SCHEMATHESIS: the command)."""
    server.register("echo.mar", initial_workers=1)
    url = getattr(server, api)
    file = tmp_path / "description.json"
    file.write_text(json.dumps(described(url)))
    command = [os.environ["TS_SCHEMATHESIS"], "run", str(file), "--url", url]
    command += ["--checks", "not_a_server_error", "--request-timeout", "20"]
    command += ["--phases", "examples,coverage,fuzzing", "--generation-deterministic"]
    command += ["--max-examples", os.environ.get("TS_SCHEMATHESIS_EXAMPLES", "200")]
    print(run(*command, timeout_s=600))
    assert server.process.poll() is None
