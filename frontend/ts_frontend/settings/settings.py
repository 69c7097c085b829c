"""`Settings`: every configuration key with its type, default and meaning, in one place.

A field made by `_key` is a key of config.properties, spelled alike; its metadata drive the reader
(`loading.py`), the environment overrides and the table in docs/configuration.md. The plain fields
at the end say where the server runs and where its settings came from.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

DEFAULT_ALLOWED_URLS = ("file://.*|http(s)?://.*",)


class ConfigurationError(Exception):
    """The server cannot start with this configuration; the text names each place to correct."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(f"Invalid configuration: {problem}" for problem in problems))
        self.problems = problems


class Key(NamedTuple):
    """What the reader and the documentation need to know of one key.

    environment: the variable that overrides the key (with `enable_envvars_config`), "" for none.
    is_always_from_environment: the variable counts without that switch.
    is_path:     relative to the working directory; made absolute when read.
    default_text: what the documentation says when the default is worked out at start.
    """

    name: str
    kind: str  # "text", "flag", "int", "number", "list" or "json"
    default: Any
    meaning: str
    section: str
    environment: str
    is_always_from_environment: bool
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    is_path: bool
    is_secret: bool
    default_text: str


def _key(
    default: Any,
    meaning: str,
    *,
    section: str = "",
    env: str | None = None,
    env_always: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    path: bool = False,
    secret: bool = False,
    default_text: str = "",
) -> Any:
    metadata = {
        "meaning": meaning,
        "section": section,
        "environment": env,
        "is_always_from_environment": env_always,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "is_path": path,
        "is_secret": secret,
        "default_text": default_text,
    }
    shown = not secret
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata, repr=shown)
    return dataclasses.field(default=default, metadata=metadata, repr=shown)


_PORT: dict[str, Any] = {"minimum": 0, "maximum": 65535}
_NOT_FROM_ENVIRONMENT: dict[str, Any] = {"env": ""}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective configuration of one server; read-only for everybody."""

    inference_address: str = _key(
        "http://127.0.0.1:8080",
        "Listener of the inference API: `http://host:port`, `https://host:port` or `unix:/path`.",
        section="Listeners",
    )
    management_address: str = _key("http://127.0.0.1:8081", "Listener of the management API.")
    metrics_address: str = _key("http://127.0.0.1:8082", "Listener of the metrics API.")
    enable_metrics_api: bool = _key(True, "Serve the metrics API.")
    enable_grpc: bool = _key(True, "Serve the gRPC APIs.")
    grpc_inference_address: str = _key("127.0.0.1", "Host of the inference gRPC service.")
    grpc_inference_port: int = _key(7070, "Port of the inference gRPC service.", **_PORT)
    grpc_management_address: str = _key("127.0.0.1", "Host of the management gRPC service.")
    grpc_management_port: int = _key(7071, "Port of the management gRPC service.", **_PORT)
    grpc_inference_max_connection_age_ms: int | None = _key(
        None, "Longest life of an inference gRPC connection.", minimum=1, default_text="infinite"
    )
    grpc_inference_max_connection_age_grace_ms: int | None = _key(
        None, "Time its calls have to finish after that.", minimum=0, default_text="infinite"
    )
    grpc_management_max_connection_age_ms: int | None = _key(
        None, "Longest life of a management gRPC connection.", minimum=1, default_text="infinite"
    )
    grpc_management_max_connection_age_grace_ms: int | None = _key(
        None, "Time its calls have to finish after that.", minimum=0, default_text="infinite"
    )
    ts_open_inference_protocol: bool = _key(
        False,
        "Also serve the Open Inference (KServe v2) API.",
        env="TS_OPEN_INFERENCE_PROTOCOL",
        env_always=True,
    )
    cors_allowed_origin: str | None = _key(None, "Answer to CORS preflights: allowed origin.")
    cors_allowed_methods: str | None = _key(None, "Answer to CORS preflights: allowed methods.")
    cors_allowed_headers: str | None = _key(None, "Answer to CORS preflights: allowed headers.")

    model_store: str | None = _key(
        None,
        "Folder with the model archives. `torchserve` needs it here or as `--model-store`.",
        section="Models",
        path=True,
    )
    workflow_store: str | None = _key(
        None, "Folder with the workflow archives.", path=True, default_text="`model_store`"
    )
    load_models: str | None = _key(
        None, "Models to load at start: `all`, or a comma list of `[name=]location`."
    )
    models: Mapping[str, Any] = _key(
        {},
        "JSON: model name -> version -> `minWorkers`, `maxWorkers`, `batchSize`, `maxBatchDelay`, "
        "`responseTimeout`, `startupTimeout`, `runtimeType`. It does not load models.",
        **_NOT_FROM_ENVIRONMENT,
    )
    model_snapshot: str | None = _key(
        None,
        "JSON: the set of models to restore; `load_models` is then not used. Written by snapshots.",
        **_NOT_FROM_ENVIRONMENT,
    )
    allowed_urls: tuple[str, ...] = _key(
        DEFAULT_ALLOWED_URLS,
        "Regular expressions; a model may be downloaded from a URL that one of them matches in "
        "full, upper and lower case alike. The default allows every host: set it in production.",
        default_text="`file://.*\\|http(s)?://.*`",
    )
    use_env_allowed_urls: bool = _key(
        False, "Also let `TS_ALLOWED_URLS` replace `allowed_urls`.", **_NOT_FROM_ENVIRONMENT
    )
    enable_model_api: bool = _key(
        False, "Allow models to be registered and unregistered at run time."
    )
    default_service_handler: str | None = _key(None, "Handler of archives that name none.")
    service_envelope: str | None = _key(
        None, "Request envelope of all models, in place of what their archives say."
    )
    install_py_dep_per_model: bool = _key(
        False, "Install the Python packages that an archive asks for."
    )
    limit_max_image_pixels: bool = _key(
        True, "Refuse images so large that decoding them exhausts memory."
    )
    decode_input_request: bool = _key(
        True, "Let workers decode text and JSON inputs before the handler."
    )
    ts_header_key_sequence_id: str = _key(
        "ts_request_sequence_id",
        "Request header that names a sequence.",
        env="TS_HEADER_KEY_SEQUENCE_ID",
    )
    ts_header_key_sequence_start: str = _key(
        "ts_request_sequence_start",
        "Request header that begins one.",
        env="TS_HEADER_KEY_SEQUENCE_START",
    )
    ts_header_key_sequence_end: str = _key(
        "ts_request_sequence_end", "Request header that ends one.", env="TS_HEADER_KEY_SEQUENCE_END"
    )

    default_workers_per_model: int = _key(
        0,
        "Workers of a model loaded at start; 0: one per GPU, or one per CPU core without GPUs.",
        section="Workers",
        minimum=0,
    )
    default_response_timeout: int = _key(
        120, "Seconds a worker has to answer a batch before it is restarted.", minimum=0
    )
    default_startup_timeout: int = _key(120, "Seconds a worker has to load its model.", minimum=0)
    unregister_model_timeout: int = _key(
        120, "Seconds the workers of an unregistered model have to end.", minimum=0
    )
    job_queue_size: int = _key(100, "Requests that may wait for one model version.", minimum=1)
    number_of_gpu: int = _key(
        0,
        "Upper bound for the GPUs used; the server uses this many of those it finds.",
        minimum=0,
        default_text="all that are found",
    )
    initial_worker_port: int = _key(
        9000, "First worker id, and port where workers use TCP.", **_PORT
    )
    initial_distribution_port: int = _key(
        29500, "First port of workers that span several GPUs.", **_PORT
    )
    python: str = _key(
        sys.executable, "Interpreter of the workers.", default_text="the one that runs the server"
    )
    model_server_home: str = _key(
        "", "Folder that contains the package `ts`.", path=True, default_text="found"
    )
    use_native_io: bool = _key(
        True, "Talk to workers over unix sockets; `false` uses TCP.", **_NOT_FROM_ENVIRONMENT
    )
    blacklist_env_vars: str = _key(
        "",
        "Regular expression; variables whose whole name matches it are hidden from workers.",
    )
    cpu_launcher_enable: bool = _key(False, "Start workers through `torch.backends.xeon.run_cpu`.")
    cpu_launcher_args: str | None = _key(None, "Arguments of that launcher.")
    ipex_enable: bool = _key(False, "Passed to workers as `TS_IPEX_ENABLE`.")
    ipex_gpu_enable: bool = _key(False, "Passed to workers as `TS_IPEX_GPU_ENABLE`.")
    debug: bool = _key(
        False, "Start no workers: wait for one per model, started by hand, without timeouts."
    )

    disable_token_authorization: bool = _key(
        False, "Serve without token authorization.", section="Security"
    )
    token_expiration_min: float = _key(
        60.0,
        "Minutes until the inference and management keys expire.",
        env="TS_TOKEN_EXPIRATION_TIME_MIN",
    )
    keystore: str | None = _key(
        None, "PKCS12 key store for HTTPS; its first key is used.", path=True
    )
    keystore_pass: str = _key("changeit", "Its password.", secret=True)
    keystore_type: str = _key("PKCS12", "Its type.")
    private_key_file: str | None = _key(
        None, "PEM private key for HTTPS and gRPC over TLS.", path=True
    )
    certificate_file: str | None = _key(None, "PEM certificate chain.", path=True)
    enable_grpc_ssl: bool = _key(False, "Serve both gRPC services over TLS.")

    max_request_size: int = _key(
        6553500, "Largest request body, in bytes, for HTTP and gRPC.", section="Limits", minimum=1
    )
    max_response_size: int = _key(
        6553500, "Largest part of a worker's answer, in bytes.", minimum=1
    )
    max_request_line_size: int = _key(4096, "Longest HTTP request line, in bytes.", minimum=16)
    max_request_header_size: int = _key(
        8192, "All HTTP headers of a request together, in bytes.", minimum=64
    )
    max_body_chunks: int = _key(65536, "Chunks of a request body in chunked encoding.", minimum=1)
    max_multipart_parts: int = _key(1000, "Parts of a multipart request body.", minimum=1)
    max_connections: int = _key(10000, "Open connections of one HTTP listener.", minimum=1)
    max_response_buffer: int = _key(
        67108864,
        "Bytes of an answer that may wait for a slow client before it is cut off.",
        minimum=1,
    )
    http_header_timeout: float = _key(
        30.0, "Seconds a client has to send the headers.", minimum=0.01
    )
    http_body_timeout: float = _key(
        300.0,
        "Seconds without a byte of the request body before the client is given up.",
        minimum=0.01,
    )
    http_keep_alive_timeout: float = _key(
        300.0, "Seconds an idle HTTP connection is kept open.", minimum=0.01
    )
    max_archive_entries: int = _key(50000, "Files and folders in one model archive.", minimum=1)
    max_archive_size: int = _key(
        274877906944, "Bytes that one model archive may unpack to (256 GiB).", minimum=1
    )
    max_archive_ratio: int = _key(
        200, "How many times larger than the archive its contents may be.", minimum=1
    )
    max_download_size: int = _key(
        274877906944, "Bytes of one downloaded archive (256 GiB).", minimum=1
    )
    download_timeout: float = _key(600.0, "Seconds for the download of one archive.", minimum=0.01)
    fetch_private_addresses: bool = _key(
        False,
        "Allow downloads from private, loopback and link-local addresses. Needed for a store on "
        "the internal network; leave it off where clients may register models.",
    )
    shutdown_timeout: float = _key(
        30.0, "Seconds that running requests have to finish when the server stops.", minimum=0
    )

    metrics_config: str = _key(
        "",
        "Metric definitions.",
        section="Metrics and logs",
        path=True,
        default_text="`<model_server_home>/ts/configs/metrics.yaml`",
    )
    metrics_mode: str = _key(
        "log",
        "`log` writes metrics to the metric logs, `prometheus` does not, `legacy` writes all but "
        "the three `ts_*` counters. The metrics API serves all metrics in every mode.",
        choices=("log", "prometheus", "legacy"),
    )
    model_metrics_auto_detect: bool = _key(
        False, "Accept metrics of handlers that are not in `metrics_config`."
    )
    disable_system_metrics: bool = _key(False, "Collect no metrics of the machine.")
    metric_time_interval: int = _key(
        60, "Seconds between two collections of them.", minimum=1, **_NOT_FROM_ENVIRONMENT
    )
    system_metrics_cmd: str | None = _key(
        None,
        "Script and arguments that collect them, run by `python` in `model_server_home`.",
        default_text="collected by the server itself",
        **_NOT_FROM_ENVIRONMENT,
    )
    async_logging: bool = _key(False, "Write logs from a thread of its own.")
    cpp_log_config: str | None = _key(None, "Log configuration of the C++ backend.", path=True)

    enable_envvars_config: bool = _key(
        False,
        "Let environment variables override keys (column Environment).",
        section="The configuration itself",
        env="TS_ENABLE_ENVVARS_CONFIG",
        env_always=True,
    )

    number_of_netty_threads: int = _key(
        0, "Accepted, without effect.", section="Accepted for existing files", minimum=0
    )
    netty_client_threads: int = _key(0, "Accepted, without effect.", minimum=0)
    io_ratio: int = _key(50, "Accepted, without effect.", **_NOT_FROM_ENVIRONMENT)
    prefer_direct_buffer: bool = _key(False, "Accepted, without effect.")
    vmargs: str | None = _key(
        None, "Accepted; there is no Java machine to pass it to.", **_NOT_FROM_ENVIRONMENT
    )
    plugins_path: str | None = _key(None, "Where plugins are looked for.", **_NOT_FROM_ENVIRONMENT)

    # Where the server runs and where its settings came from. Not keys of the file.
    working_dir: str = "."
    temp_dir: str = "."  # for unpacked archives and worker sockets
    log_location: str = "logs"
    metrics_location: str = "logs"
    log_config: str | None = None
    no_config_snapshots: bool = False
    ready_fd: int | None = None  # where the launcher waits for word of the start
    config_file: str | None = None
    unknown_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    worker_environment: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("models", "unknown_keys", "worker_environment", "origins"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def origin(self, key: str) -> str:
        """Where the value was set: `config.properties:12`, `env TS_X`, `flag --x` or `default`."""
        return self.origins.get(key, "default")

    def to_properties(self) -> dict[str, str]:
        """The effective configuration as a file would hold it, unknown keys included.

        What the server found out about the machine (GPUs, interpreter, home) is left out unless
        somebody set it, so that a snapshot moves to another machine.
        """
        values = dict(self.unknown_keys)
        for key in KEYS.values():
            is_default = self.origin(key.name) == "default"
            value = getattr(self, key.name)
            if value is None or (is_default and (key.default_text or key.is_secret or not value)):
                continue
            values[key.name] = _text(value)
        return values

    def report(self) -> Iterator[str]:
        """One line for the start of the log per setting that somebody made, secrets masked."""
        yield f"Configuration file: {self.config_file or 'none'}"
        yield f"Working directory: {self.working_dir}"
        yield f"Temp directory: {self.temp_dir}"
        yield f"Log directory: {self.log_location}"
        yield f"Metrics directory: {self.metrics_location}"
        yield f"Number of GPUs: {self.number_of_gpu}"
        for key in KEYS.values():
            if key.name in self.origins or key.name in _ALWAYS_REPORTED:
                value = "****" if key.is_secret else _text(getattr(self, key.name))
                yield f"{key.name} = {value} ({self.origin(key.name)})"


_ALWAYS_REPORTED = frozenset(
    (
        "inference_address",
        "management_address",
        "metrics_address",
        "model_store",
        "workflow_store",
        "metrics_config",
        "metrics_mode",
        "python",
        "default_workers_per_model",
        "max_request_size",
        "max_response_size",
        "allowed_urls",
        "disable_token_authorization",
        "enable_model_api",
    )
)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


_KINDS = {
    "str": "text",
    "str | None": "text",
    "bool": "flag",
    "int": "int",
    "int | None": "int",
    "float": "number",
    "tuple[str, ...]": "list",
    "Mapping[str, Any]": "json",
}


def _all_keys() -> dict[str, Key]:
    keys = {}
    section = ""
    for field in dataclasses.fields(Settings):
        if not field.metadata:
            continue
        facts = dict(field.metadata)
        section = facts.pop("section") or section
        environment = facts.pop("environment")
        keys[field.name] = Key(
            name=field.name,
            kind=_KINDS[str(field.type)],
            default={} if field.default is dataclasses.MISSING else field.default,
            section=section,
            environment=f"TS_{field.name.upper()}" if environment is None else environment,
            **facts,
        )
    return keys


KEYS: Mapping[str, Key] = MappingProxyType(_all_keys())
