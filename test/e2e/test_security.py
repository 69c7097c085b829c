"""What strangers try at a running server: keys, paths, pages, files."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import importlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
import requests
from fake_planes import FakePlanes
from google.protobuf.empty_pb2 import Empty
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from serving import MODELS, ROOT, RunningServer, archive, start_server, wait_until
from their_server import free_port

from ts_frontend.dialects import DIALECTS
from ts_frontend.grpc.stubs.inference_pb2_grpc import InferenceAPIsServiceStub
from ts_frontend.grpc.stubs.management_pb2 import ListModelsRequest
from ts_frontend.grpc.stubs.management_pb2_grpc import ManagementAPIsServiceStub
from ts_frontend.tokens import TokenAuthority

INFERENCE, MANAGEMENT, API = "good-inference-key", "good-management-key", "good-api-key"
EXPIRED = {"inference": "expired-inference-key", "management": "expired-management-key"}
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "PROPFIND", "BREW"]


def routed_paths(listener: str) -> list[str]:
    """One path for each route that any dialect has there, so that none is forgotten below."""
    planes = FakePlanes(tokens=TokenAuthority("/nowhere", 60)).planes
    patterns = set()
    for import_string in DIALECTS.values():
        module, _, name = import_string.partition(":")
        dialect = getattr(importlib.import_module(module), name)()
        patterns |= {route.pattern for route in getattr(dialect.http_routes(planes), listener)}
    words = {"{model_name}": "echo", "{model_version}": "1.0", "{url_path*}": "more"}
    found = []
    for pattern in sorted(patterns - OPEN_PATHS):
        for capture, word in words.items():
            pattern = pattern.replace(capture, word)
        assert "{" not in pattern
        found.append(pattern)
    return found


OPEN_PATHS = {"/", "/api-description"}  # they describe the API, and nothing of this server
INFERENCE_PATHS = [
    *routed_paths("inference"),
    "/predictions/echo/1.0",
    "/explanations/echo/1.0",
    "/invocations?model_name=echo",
    "/v1/models/echo:predict",
    "/v1/models/echo:explain",
]
MANAGEMENT_PATHS = [
    *routed_paths("management"),
    "/models/echo/all",
    "/models?url=echo.mar",
    "/token?type=inference",
]
# The same places in other words; `{}` is a path without its first slash.
ALIASES = [
    "//{}",
    "/{}/",
    "/{}//",
    "/./{}",
    "/%2e/{}",
    "/x/../{}",
    "/x/%2e%2e/{}",
    "/%2F{}",
    "/{};x=1",
    "/{}%00",
    "/{}?",
    "/{}#x",
    "http://elsewhere.example/{}",
    "/\\{}",
]


class Door:
    """One listener, asked word for word: no library may tidy the path."""

    def __init__(self, address: str) -> None:
        self.host, port = urlsplit(address).netloc.rsplit(":", 1)
        self.port = int(port)

    def ask(self, method: str, target: str, key: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest(method, target, skip_accept_encoding=True)
            if key is not None:
                connection.putheader("Authorization", f"Bearer {key}")
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read()


@pytest.fixture(scope="module")
def guarded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    archive(store, "echo", MODELS / "echo.py")
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys.json"
    long_ago = "2020-01-01T00:00:00.000000Z"
    keys.write_text(
        json.dumps(
            {
                "inference": [
                    INFERENCE,
                    {"key": EXPIRED["inference"], "expiration time": long_ago},
                ],
                "management": [
                    MANAGEMENT,
                    {"key": EXPIRED["management"], "expiration time": long_ago},
                ],
            }
        )
    )
    keys.chmod(0o600)
    running = start_server(
        folder,
        store,
        has_tokens=True,
        token_key_file=str(keys),
        token_key_check_interval="0.05",
        ts_open_inference_protocol="true",
        load_models="echo.mar",
        default_workers_per_model="1",
        variables={"TS_API_KEY": API},
    )
    running.session.headers["Authorization"] = f"Bearer {MANAGEMENT}"
    running.wait_ready("echo")
    yield running
    assert running.stop() == 0, running.tail()


WRONG_KEYS = {
    "inference": [None, "wrong-key", EXPIRED["inference"], MANAGEMENT, API, ""],
    "management": [None, "wrong-key", EXPIRED["management"], INFERENCE, ""],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("listener", ["inference", "management"])
def test_no_method_opens_a_path_without_its_key(
    guarded: RunningServer, listener: str, method: str
) -> None:
    """All verbs x all paths x (none, wrong, expired, other-role); CVE-2026-27482 forgot DELETE."""
    door = Door(getattr(guarded, listener))
    paths = INFERENCE_PATHS if listener == "inference" else MANAGEMENT_PATHS
    for path in paths:
        for key in WRONG_KEYS[listener]:
            status, body = door.ask(method, path, key)
            assert status in (400, 404, 405), (method, path, key, status, body)
            if status == 400 and method not in ("HEAD", "BREW"):  # BREW is no HTTP to the parser
                assert b"Token Auth" in body, (path, key, body)
    assert guarded.describe("echo")["minWorkers"] == 1


def test_the_right_key_opens(guarded: RunningServer) -> None:
    """Or the tests above would pass on a server that answers nobody."""
    door = Door(guarded.inference)
    for path in INFERENCE_PATHS:
        _, body = door.ask("POST", path, INFERENCE)
        assert b"Token Auth" not in body, path
    assert door.ask("GET", "/ping", INFERENCE)[0] == 200
    assert door.ask("POST", "/predictions/echo", INFERENCE)[0] == 200
    door = Door(guarded.management)
    assert door.ask("GET", "/models/echo", MANAGEMENT)[0] == 200
    # A model's name or a header with "/token" in it does not make a token request (gap 51).
    assert door.ask("GET", "/models/tokenizer", MANAGEMENT)[0] == 404


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("listener", ["inference", "management"])
def test_cve_2026_24206_no_alias_of_a_path_goes_round_the_key(
    guarded: RunningServer, listener: str, alias: str
) -> None:
    """CVE-2026-24206 and -24207: authorization bypassed by an alternate path."""
    door = Door(getattr(guarded, listener))
    paths = INFERENCE_PATHS if listener == "inference" else MANAGEMENT_PATHS
    for path in paths:
        for spelled in (path[1:], path[1:].upper(), "".join(f"%{ord(c):02x}" for c in path[1:])):
            for method in ("GET", "POST", "DELETE", "HEAD"):
                status, body = door.ask(method, alias.format(spelled))
                assert status in (400, 403, 404, 405), (method, alias, spelled, status, body)


@pytest.mark.parametrize(
    "opening",
    [
        "GET /models HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        "HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /models HTTP/1.0\r\n\r\n",
        "GET /models HTTP/1.1\r\nHost: h\r\nAuthorization:\r\n Bearer x\r\n\r\n",
        "GET /api-description HTTP/1.1\r\nHost: h\r\nX-Original-URL: /models\r\n\r\n",
        "CONNECT /models HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_no_other_way_to_speak_goes_round_the_key(guarded: RunningServer, opening: str) -> None:
    door = Door(guarded.management)
    with socket.create_connection((door.host, door.port), timeout=20) as client:
        client.sendall(opening.encode())
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"echo.mar" not in answer
    if "api-description" not in opening:
        assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 405", b"HTTP/1.1 404"), answer


def test_one_listener_for_both_apis_has_a_key_for_each(store: Path, tmp_path: Path) -> None:
    """Where TorchServe's combined listener lets no key manage anything."""
    archive(store, "echo", MODELS / "echo.py")
    address = f"http://127.0.0.1:{free_port()}"
    running = start_server(
        tmp_path / "server",
        store,
        has_tokens=True,
        inference_address=address,
        management_address=address,
        ts_open_inference_protocol="true",
        load_models="echo.mar",
        default_workers_per_model="1",
        variables={
            "TS_INFERENCE_KEY": INFERENCE,
            "TS_MANAGEMENT_KEY": MANAGEMENT,
            "TS_API_KEY": API,
        },
    )
    try:
        assert running.inference == running.management == address
        door = Door(address)
        running.session.headers["Authorization"] = f"Bearer {MANAGEMENT}"
        running.wait_ready("echo")
        for method, path, key, others in (
            ("GET", "/ping", INFERENCE, (MANAGEMENT, API, None)),
            ("POST", "/predictions/echo", INFERENCE, (MANAGEMENT, API, None)),
            ("GET", "/models", MANAGEMENT, (INFERENCE, API, None)),
            ("GET", "/models/echo/1.0", MANAGEMENT, (INFERENCE, API, None)),
            ("PUT", "/models/echo/1.0?min_worker=1", MANAGEMENT, (INFERENCE, API, None)),
            ("PUT", "/models/echo/1.0/set-default", MANAGEMENT, (INFERENCE, API, None)),
            ("GET", "/token?type=inference", API, (INFERENCE, MANAGEMENT, None)),
            ("DELETE", "/models/echo/1.0", MANAGEMENT, (INFERENCE, API, None)),
        ):
            for other in others:
                status, body = door.ask(method, path, other)
                assert status == 400, (method, path, other)
                assert b"Token Auth" in body
            status, body = door.ask(method, path, key)
            # The API key is right, and keys that were given are renewed where they come from.
            assert status in (200, 202) or b"renewed where it came from" in body, (path, body)
        for method in METHODS:
            for path in {*INFERENCE_PATHS, *MANAGEMENT_PATHS}:
                for wrong in (None, "wrong-key"):
                    assert door.ask(method, path, wrong)[0] in (400, 404, 405), (method, path)
    finally:
        assert running.stop() == 0


def test_cve_2025_23319_errors_tell_clients_nothing_of_the_inside(
    store: Path, tmp_path: Path
) -> None:
    """The name of an internal memory segment in an error's text was the way in."""
    for name in ("dies", "wrong_length", "fails_on_predict", "fails_on_import", "echo"):
        archive(store, name, MODELS / f"{name}.py")
    running = start_server(tmp_path / "server", store, ts_open_inference_protocol="true")
    try:
        for name in ("dies", "wrong_length", "fails_on_predict", "echo"):
            assert running.register(f"{name}.mar", initial_workers=1).status_code == 200
        assert running.register("fails_on_import.mar").status_code == 200
        inside = [
            *(str(path) for path in (tmp_path, store, ROOT, Path(sys.prefix))),
            *(".sock", "/dev/shm", "Traceback", "site-packages", "object at 0x"),
            *(f"{pid}" for name in ("dies", "echo") for pid in running.worker_pids(name)),
        ]
        answers = [
            running.predict("dies", b"exit"),
            running.predict("dies", b"kill"),
            running.predict("wrong_length", b"x"),
            running.predict("fails_on_predict", b"x"),
            running.predict("fails_on_import", b"x"),
            running.predict("nobody", b"x"),
            running.predict("echo", bytes(7_000_000)),
            running.predict("echo", b"{", headers={"Content-Type": "multipart/form-data"}),
            requests.post(f"{running.inference}/v2/models/echo/infer", data=b"{", timeout=20),
            requests.post(
                f"{running.inference}/v2/models/echo/infer",
                json={"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": ["a"]}]},
                timeout=20,
            ),
            requests.get(f"{running.inference}/../../etc/passwd", timeout=20),
        ]
        for answer in answers:
            assert answer.status_code >= 400, answer.text
            said = answer.text + str(answer.headers)
            assert not [word for word in inside if word in said], said
    finally:
        assert running.stop() == 0


def test_descriptions_are_open_and_say_nothing_of_models(guarded: RunningServer) -> None:
    for listener in (guarded.inference, guarded.management):
        status, body = Door(listener).ask("OPTIONS", "/")
        assert status == 200
        assert b"echo" not in body
        assert Door(listener).ask("GET", "/api-description")[0] == 200


@pytest.mark.parametrize("key", [None, "wrong-key", EXPIRED["inference"], MANAGEMENT, API])
def test_cve_2026_33186_grpc_inference_asks_for_its_key(
    guarded: RunningServer, key: str | None
) -> None:
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with grpc.insecure_channel(guarded.grpc_inference) as channel:
        calls = [
            lambda: InferenceAPIsServiceStub(channel).Ping(Empty(), metadata=metadata, timeout=20),
            # The services' descriptions are no public matter either.
            lambda: list(
                ServerReflectionStub(channel).ServerReflectionInfo(
                    iter([ServerReflectionRequest(list_services="")]),
                    metadata=metadata,
                    timeout=20,
                )
            ),
            *(
                lambda path=path: channel.unary_unary(path)(b"", metadata=metadata, timeout=20)
                for path in (
                    "//org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping",
                    "/org.pytorch.serve.grpc.inference.InferenceAPIsService//Ping",
                    "/org.pytorch.serve.grpc.inference.InferenceAPIsService/ping",
                    "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping/",
                    "/grpc.health.v1.Health/../Ping",
                    "/inference.GRPCInferenceService/ServerLive",
                )
            ),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() in (
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.UNIMPLEMENTED,
            )
    with grpc.insecure_channel(guarded.grpc_inference) as channel:
        good = [("authorization", f"Bearer {INFERENCE}")]
        answer = InferenceAPIsServiceStub(channel).Ping(Empty(), metadata=good, timeout=20)
        assert "Healthy" in answer.health


@pytest.mark.parametrize("key", [None, "wrong-key", EXPIRED["management"], INFERENCE, API])
def test_grpc_management_asks_for_its_key(guarded: RunningServer, key: str | None) -> None:
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with grpc.insecure_channel(guarded.grpc_management) as channel:
        stub = ManagementAPIsServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListModels(ListModelsRequest(), metadata=metadata, timeout=20)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        good = [("authorization", f"Bearer {MANAGEMENT}")]
        assert "echo" in stub.ListModels(ListModelsRequest(), metadata=good, timeout=20).msg


def test_keys_are_in_no_log_and_no_worker(guarded: RunningServer) -> None:
    Door(guarded.inference).ask("GET", "/ping", "presented-wrong-key")
    secrets = [INFERENCE, MANAGEMENT, API, *EXPIRED.values(), "presented-wrong-key"]
    written = [guarded.log, *(guarded.folder / "logs").rglob("*.log")]
    assert len(written) > 3
    for path in written:
        text = path.read_text(errors="replace")
        assert not [secret for secret in secrets if secret in text], path
    worker = psutil.Process(guarded.worker_pids("echo")[0])
    said = " ".join([*worker.environ().values(), *worker.cmdline()])
    assert not [secret for secret in secrets if secret in said]


def test_cve_2024_35199_every_socket_listens_on_loopback_only(guarded: RunningServer) -> None:
    """TorchServe had management on 0.0.0.0 in its images, and gRPC on every address."""
    server = psutil.Process(guarded.process.pid)
    found = [
        connection
        for process in (server, *server.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(found) >= 5
    addresses = {connection.laddr.ip.removeprefix("::ffff:") for connection in found}
    assert addresses <= {"127.0.0.1", "::1"}


def test_serve_3260_a_mounted_key_rotates_without_a_restart(guarded: RunningServer) -> None:
    keys = guarded.folder / "keys.json"
    before = keys.read_text()
    content = json.loads(before)
    content["inference"].append("rotated-inference-key")
    door = Door(guarded.inference)
    try:
        keys.write_text(json.dumps(content))
        wait_until(lambda: door.ask("GET", "/ping", "rotated-inference-key")[0] == 200)
        assert door.ask("GET", "/ping", INFERENCE)[0] == 200
        status, body = Door(guarded.management).ask("GET", "/token?type=inference", API)
        assert status == 400
        assert b"renewed where it came from" in body
    finally:
        keys.write_text(before)
    wait_until(lambda: door.ask("GET", "/ping", "rotated-inference-key")[0] == 400)


def test_tokens_step_by_step(store: Path, tmp_path: Path) -> None:
    """The life of generated keys, as docs/security.md tells it."""
    running = start_server(tmp_path / "server", store, has_tokens=True, token_expiration_min="0.05")
    try:
        path = running.folder / "key_file.json"
        keys = json.loads(path.read_text())
        inference, management = Door(running.inference), Door(running.management)

        def is_expired() -> bool:
            return inference.ask("GET", "/ping", keys["inference"]["key"])[0] == 400

        wait_until(is_expired, 20, "the end of the key")
        api = keys["API"]["key"]
        assert management.ask("GET", "/token?type=inference", keys["management"]["key"])[0] == 400
        assert management.ask("GET", "/token?type=inference", api) == (200, b"\n")
        renewed = json.loads(path.read_text())
        assert inference.ask("GET", "/ping", renewed["inference"]["key"])[0] == 200
        assert renewed["management"] == keys["management"]
        assert management.ask("GET", "/models", keys["management"]["key"])[0] == 400
    finally:
        running.stop()


def test_cve_2026_27482_pages_of_other_sites_cannot_use_an_open_management_api(
    store: Path, tmp_path: Path
) -> None:
    """CVE-2026-27482: a browser guard that covered POST and PUT only; DNS rebinding."""
    running = start_server(tmp_path / "server", store, cors_allowed_origin="https://ours.example")
    try:
        url = f"{running.management}/models/echo"
        for method, target in (
            ("GET", url),
            ("PUT", url),
            ("DELETE", url),
            ("POST", f"{running.management}/models?url=echo.mar"),
            ("PUT", f"{url}/1.0/set-default"),
        ):
            for origin in ("https://evil.example", "null"):
                answer = requests.request(method, target, headers={"Origin": origin}, timeout=20)
                assert answer.status_code == 403, (method, origin)
        rebound = {"Origin": "http://evil.example:8081", "Host": "evil.example:8081"}
        assert requests.delete(url, headers=rebound, timeout=20).status_code == 403
        ours = {"Origin": "https://ours.example"}
        answer = requests.get(f"{running.management}/models", headers=ours, timeout=20)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://ours.example"
        preflight = requests.options(
            url, headers={**ours, "Access-Control-Request-Method": "DELETE"}, timeout=20
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://ours.example"
    finally:
        running.stop()


def test_an_open_server_says_so(store: Path, tmp_path: Path) -> None:
    running = start_server(tmp_path / "server", store, inference_address="http://0.0.0.0:0")
    running.stop()
    warning = next(line for line in running.log.read_text().splitlines() if "OPEN TO" in line)
    assert "[WARN ]" in warning
    assert "http://0.0.0.0:0 can be reached from other machines" in warning


def test_without_the_model_api_nobody_registers(store: Path, tmp_path: Path) -> None:
    """ShellTorch, CVE-2023-43654: also a good key registers nothing while the API is off."""
    running = start_server(tmp_path / "server", store, has_model_api=False)
    try:
        for method, target in (("POST", "/models?url=echo.mar"), ("DELETE", "/models/echo")):
            assert Door(running.management).ask(method, target)[0] == 405
    finally:
        running.stop()


def test_cve_2023_43654_the_store_refuses_addresses_inside_the_network(
    store: Path, tmp_path: Path
) -> None:
    """ShellTorch's other half, and CVE-2024-35198: an error, and yet the file was in the store."""
    with socket.create_server(("127.0.0.1", 0)) as inside:
        port = inside.getsockname()[1]
        running = start_server(tmp_path / "server", store)
        try:
            before = sorted(path.name for path in store.rglob("*"))
            for url in (
                f"http://127.0.0.1:{port}/m.mar",
                f"http://[::ffff:127.0.0.1]:{port}/m.mar",
                f"http://localhost:{port}/m.mar",
                f"http://2130706433:{port}/m.mar",
                "http://169.254.169.254/latest/m.mar",
            ):
                answer = running.register(url)
                assert answer.status_code == 400, (url, answer.text)
                assert answer.json()["type"] == "DownloadArchiveException"
            assert sorted(path.name for path in store.rglob("*")) == before
            inside.settimeout(0)
            with pytest.raises(BlockingIOError):
                inside.accept()  # nobody came
        finally:
            running.stop()


def test_aws_credentials_sign_the_download(store: Path, tmp_path: Path) -> None:
    """s3_sse_kms: the credentials of the server's environment reach the request, and no answer."""
    asked: list[dict[str, str]] = []

    class Bucket(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            self.send_error(403)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Bucket) as bucket:
        threading.Thread(target=bucket.serve_forever, args=(0.01,), daemon=True).start()
        port = bucket.server_address[1]
        running = start_server(
            tmp_path / "server",
            store,
            allowed_urls=rf"http://127\\.0\\.0\\.1:{port}/.*",
            variables={
                "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
                "AWS_SECRET_ACCESS_KEY": "geheim-geheim",
                "AWS_DEFAULT_REGION": "eu-central-1",
            },
        )
        try:
            url = f"http://127.0.0.1:{port}/bucket/m.mar"
            refused = running.register(url, s3_sse_kms="true")
            assert refused.status_code == 400
            assert "HTTP status 403" in refused.json()["message"]
            assert running.register(url).status_code == 400
        finally:
            running.stop()
            bucket.shutdown()
    signed, plain = asked
    assert signed["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert "/eu-central-1/s3/aws4_request" in signed["Authorization"]
    assert "Authorization" not in plain
    assert "geheim" not in str(asked) + refused.text + running.log.read_text()


def test_serve_47_unlisted_archives_are_not_loaded(store: Path, tmp_path: Path) -> None:
    """Verified archives: what `sha256sum` wrote decides."""
    archive(store, "echo", MODELS / "echo.py", version="2.0", file_name="unlisted")
    digest = hashlib.sha256((store / "echo.mar").read_bytes()).hexdigest()
    sums = tmp_path / "models.sha256"
    sums.write_text(f"{digest}  echo.mar\n")
    running = start_server(tmp_path / "server", store, archive_checksums=str(sums))
    try:
        assert running.register("echo.mar").status_code == 200
        answer = running.register("unlisted.mar")
        assert answer.status_code == 400
        assert "is not listed in archive_checksums" in answer.json()["message"]
    finally:
        running.stop()
