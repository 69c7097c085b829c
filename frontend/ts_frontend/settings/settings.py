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

# The first is the plain one; the second is what Envoy (and so Istio) tells every upstream server.
DEADLINE_HEADERS = ("x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms")
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
    cors_allowed_origin: str | None = _key(
        None,
        "CORS: sent as `access-control-allow-origin` with every answer; preflights are then "
        "answered without a key. `*` lets the pages of every site in.",
    )
    cors_allowed_methods: str | None = _key(None, "CORS: `access-control-allow-methods`.")
    cors_allowed_headers: str | None = _key(None, "CORS: `access-control-allow-headers`.")
    unix_socket_mode: str = _key(
        "600", "Permissions of the sockets of `unix:` addresses, in octal digits."
    )

    model_store: str | None = _key(
        None,
        "Folder with the model archives. `torchserve` needs it here or as `--model-store`.",
        section="Models",
        path=True,
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
    archive_checksums: str | None = _key(
        None,
        "File as `sha256sum` writes it: only archives that it lists are loaded, and only with "
        "that content. Read anew for each archive.",
        path=True,
    )
    archive_checksums_key: str | None = _key(
        None,
        "PEM public key (Ed25519) that `<archive_checksums>.sig` has to fit. "
        "Needs the extra `crypto`.",
        path=True,
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
        False,
        "Install the Python packages that an archive asks for, into a folder that models with the "
        "same requirements share (docs/many-models.md).",
    )
    environment_cache: str = _key(
        "",
        "Where these folders and the virtual environments of models with `useVenv` are kept.",
        path=True,
        default_text="`$XDG_CACHE_HOME/torchserve/environments`, `~/.cache` without that variable",
    )
    pip_options: str = _key(
        "",
        "More options of the `pip install` that fills them, such as "
        "`--no-index --find-links /wheels`.",
    )
    dependency_timeout: float = _key(
        600.0, "Seconds that the making of one of them may take.", minimum=0.1
    )
    lazy_loading: bool = _key(
        False,
        "Load each model at its first request; in a model's file: `load: lazy` or `load: eager`.",
    )
    model_memory_budget: str = _key(
        "",
        "What the workers of all models may occupy (resident): bytes, `800MB`, `16GB`, or a share "
        "of the machine's memory, `60%`. Lazy models without work go when it is reached, the least "
        "recently used first.",
        default_text="no limit",
    )
    model_idle_timeout: float = _key(
        0.0,
        "Seconds without a request after which a lazy model is unloaded; 0: never. In a model's "
        "file: `idleUnloadInSec`.",
        minimum=0,
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
    worker_death_retries: int = _key(
        1,
        "How often a request runs again whose worker died before any output; after that many it "
        "is given up (503). 0: it fails at once, as in TorchServe. In a model's file: "
        "`workerDeathRetries`; `idempotent: false` there rules out that a request runs twice.",
        minimum=0,
    )
    isolate_batch_failures: bool = _key(
        True,
        "Run the halves of a batch again that its handler failed, so that only the guilty requests "
        "fail; `false` fails all of them, as in TorchServe. In a model's file: "
        "`isolateBatchFailures`, and `idempotent` as above.",
    )
    cancel_grace: float = _key(
        0.0,
        "Seconds a handler may go on after all its clients have left, before its worker is "
        "replaced; 0: as long as it likes. In a model's file: `cancelGraceInSec`.",
        minimum=0,
    )
    worker_check_interval: float = _key(
        5.0,
        "Seconds between two looks at the workers: is each alive (one whose process was stopped is "
        "replaced after the second look that finds it so), has one served enough? 0: never.",
        minimum=0,
    )
    worker_ping_timeout: float = _key(
        30.0,
        "Seconds an idle worker has to answer a ping, which it is sent at such a look, before it "
        "is replaced. In a model's file: `workerPingTimeoutInSec`.",
        minimum=0.1,
    )
    max_worker_requests: int = _key(
        0,
        "Requests after which a worker is replaced, without loss; 0: never. In a model's file: "
        "`maxWorkerRequests`.",
        minimum=0,
    )
    max_worker_age: float = _key(
        0.0,
        "Seconds of service after which a worker is replaced; 0: never. In a model's file: "
        "`maxWorkerAgeInSec`.",
        minimum=0,
    )
    max_worker_memory: int = _key(
        0,
        "MiB of resident memory from which on a worker is replaced; 0: never. In a model's file: "
        "`maxWorkerMemoryInMB`.",
        minimum=0,
    )
    autoscale_interval: float = _key(
        1.0,
        "Seconds between two looks at the load of models whose `minWorkers` and `maxWorkers` "
        "differ (docs/many-models.md); 0: the number of workers does not follow the load, as in "
        "TorchServe.",
        minimum=0,
    )
    autoscale_wait: int = _key(
        100,
        "Milliseconds after which a request that still waits calls for another worker. In a "
        "model's file: `autoscaleWait`.",
        minimum=1,
    )
    autoscale_idle: float = _key(
        60.0,
        "Seconds after which workers go that were not needed for so long. In a model's file: "
        "`autoscaleIdleInSec`.",
        minimum=0.1,
    )
    strict_readiness: bool = _key(
        True,
        "`/health/ready` says yes when each model that should have workers has one that answers, "
        "and all of `load_models` could be registered; `false`: as soon as the server listens.",
    )
    readiness_timeout: float = _key(
        2.0,
        "Seconds that idle workers have to answer the ping by which `/health/ready` proves that "
        "they serve.",
        minimum=0.01,
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
    worker_start: str = _key(
        "spawn",
        "How a worker's process comes to be: `spawn` starts an interpreter for each; `fork` makes "
        "it from a process that has imported torch already, in milliseconds and with less memory "
        "(Linux, see docs/worker-start.md). In a model's file: `workerStart`.",
        choices=("spawn", "fork"),
    )
    worker_preload: tuple[str, ...] = _key(
        ("torch",),
        "With `fork`: modules to import once for all workers. Each must start no threads and not "
        "touch a GPU when it is imported.",
        default_text="torch",
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
        False,
        "Start no workers: the log has a command for one worker of each model, to be run by hand, "
        "in a debugger say. No timeouts of workers count.",
    )

    disable_token_authorization: bool = _key(
        False, "Serve without token authorization.", section="Security"
    )
    token_expiration_min: float = _key(
        60.0,
        "Minutes until the inference and management keys expire.",
        env="TS_TOKEN_EXPIRATION_TIME_MIN",
    )
    token_key_file: str | None = _key(
        None,
        "JSON file with keys to use in place of generated ones; read again when it changes.",
        path=True,
    )
    token_key_check_interval: float = _key(
        5.0, "Seconds between two looks at `token_key_file`.", minimum=0.05
    )
    keystore: str | None = _key(
        None,
        "PKCS12 key store for TLS; goes before the PEM files. Needs the extra `crypto`.",
        path=True,
    )
    keystore_pass: str = _key("changeit", "Its password.", secret=True)
    keystore_type: str = _key("PKCS12", "Its type; other types have to be converted.")
    private_key_file: str | None = _key(
        None, "PEM private key for HTTPS and gRPC over TLS.", path=True
    )
    certificate_file: str | None = _key(
        None,
        "PEM certificate chain. With neither this nor a key store an https address gets a "
        "certificate that the server signs itself (extra `crypto`).",
        path=True,
    )
    enable_grpc_ssl: bool = _key(False, "Serve both gRPC services over TLS.")

    max_request_size: int = _key(
        6553500, "Largest request body, in bytes, for HTTP and gRPC.", section="Limits", minimum=1
    )
    min_compressed_response_size: int = _key(
        1024,
        "Answers of the Open Inference REST API from this size on, in bytes, are compressed for "
        "clients that accept gzip or deflate; 0: never.",
        minimum=0,
    )
    max_response_size: int = _key(
        6553500, "Largest part of a worker's answer, in bytes.", minimum=1
    )
    spin_us: int = _key(
        400,
        "How long a worker that is asked again and again stays awake for its next batch, and the "
        "server for the answer of a worker that takes no longer than this, in microseconds, before "
        "they sleep. It spares a small model the time of being woken, and costs up to so much "
        "processor time a batch. Both sleep at once while more processes want to run than there "
        "are processors, in a container with a limit of processor time, and with 0.",
        minimum=0,
        maximum=10000,
    )
    shared_memory_threshold: int = _key(
        65536,
        "Bodies of requests and answers from this size on, in bytes, go between server and "
        "workers through shared memory instead of a socket (Linux); 0: none do.",
        minimum=0,
    )
    shared_memory_size: int = _key(
        268435456,
        "Shared memory for the bodies of requests of the whole server, and as much again for the "
        "answers of each worker, in bytes. It is taken when it is needed and given back after; "
        "bodies for which there is none left go through the socket.",
        minimum=1048576,
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
    max_live_requests: int = _key(
        0,
        "Inference requests in the server at the same time, waiting or running, of all models "
        "together; 0: no limit but the queues'. More are refused.",
        minimum=0,
    )
    max_live_request_bytes: int = _key(
        0, "Bytes of the inputs of all these requests; 0: no limit.", minimum=0
    )
    overload_status: str = _key(
        "503",
        "HTTP status of a request that is refused because too much waits. `429` also makes gRPC "
        "say RESOURCE_EXHAUSTED.",
        choices=("503", "429"),
    )
    deadline_headers: tuple[str, ...] = _key(
        DEADLINE_HEADERS,
        "Request headers with the milliseconds that the client will wait. The least of them, "
        "`clientTimeoutInMills` and a gRPC deadline counts. Empty: none.",
        default_text="`" + ",".join(DEADLINE_HEADERS) + "`",
    )
    priority_header: str | None = _key(
        None, "Request header with the priority class of a request; none: there are no classes."
    )
    priority_weights: tuple[str, ...] = _key(
        ("high=8", "normal=4", "low=1"),
        "Its classes and how many requests each may have in its turn. Requests of no class have 1.",
        default_text="`high=8,normal=4,low=1`",
    )
    fairness_header: str | None = _key(
        None,
        "Request header (of a tenant, say) whose values take turns in a queue; empty: first come, "
        "first served.",
    )
    fairness_weights: tuple[str, ...] = _key(
        (),
        "Values with more than one request in their turn: `gold=4,silver=2`.",
        default_text="none",
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

    enable_envvars_config: bool = _key(
        False,
        "Let environment variables override keys (column Environment).",
        section="The configuration itself",
        env="TS_ENABLE_ENVVARS_CONFIG",
        env_always=True,
    )
    compatibility: str | None = _key(
        None,
        "`torchserve` brings back behaviour of TorchServe 0.12 that this server improves by "
        "default; docs/compatibility.md lists what.",
        choices=("torchserve",),
    )
    max_config_snapshots: int = _key(
        100, "Snapshots to keep in `<LOG_LOCATION>/config`; older ones are removed.", minimum=3
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
    plugins_path: str | None = _key(
        None, "Accepted; plugins are a Java interface, which is not there.", **_NOT_FROM_ENVIRONMENT
    )
    workflow_store: str | None = _key(
        None,
        "Accepted; workflows are not served.",
        path=True,
        default_text="`model_store`",
    )
    cpp_log_config: str | None = _key(None, "Accepted; there is no C++ backend.", path=True)
    async_logging: bool = _key(False, "Accepted; logs are always written by a thread of their own.")

    # Where the server runs and where its settings came from. Not keys of the file.
    working_dir: str = "."
    temp_dir: str = "."  # for unpacked archives and worker sockets
    log_location: str = "logs"
    metrics_location: str = "logs"
    log_config: str | None = None
    log_levels: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by logger's name
    no_config_snapshots: bool = False
    ready_fd: int | None = None  # where the launcher waits for word of the start
    config_file: str | None = None
    unknown_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    worker_environment: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    # What the server itself needs of the environment: AWS credentials, token keys.
    secret_environment: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in (
            "models",
            "unknown_keys",
            "worker_environment",
            "secret_environment",
            "log_levels",
            "origins",
        ):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def origin(self, key: str) -> str:
        """Where the value was set: `config.properties:12`, `env TS_X`, `flag --x` or `default`."""
        return self.origins.get(key, "default")

    def to_properties(self) -> dict[str, str]:
        """The effective configuration as a file would hold it, unknown keys included.

        What the server found out about the machine (GPUs, interpreter, home) is left out unless
        somebody set it, so that a snapshot moves to another machine. So are secrets of the
        environment, and what a flag or variable opened for this run only: a server restarted from
        the file must not stand open unasked.
        """
        values = dict(self.unknown_keys)
        for key in KEYS.values():
            origin = self.origin(key.name)
            is_default = origin == "default"
            value = getattr(self, key.name)
            if value is None or (is_default and (key.default_text or key.is_secret or not value)):
                continue
            is_for_this_run = origin.startswith(("env ", "flag "))
            if is_for_this_run and (
                key.is_secret or (key.name in _OPENING and not self.is_torchserve_compatible)
            ):
                continue
            values[key.name] = _text(value)
        return values

    @property
    def is_torchserve_compatible(self) -> bool:
        return self.compatibility == "torchserve"

    def effective(self) -> Iterator[tuple[str, str, str]]:
        """(key, value as the file would hold it, origin) of every key, secrets masked."""
        for key in KEYS.values():
            value = "****" if key.is_secret else _text(getattr(self, key.name))
            yield key.name, value, self.origin(key.name)

    def report(self) -> Iterator[str]:
        """One line for the start of the log per setting that somebody made, secrets masked."""
        yield f"Configuration file: {self.config_file or 'none'}"
        yield f"Working directory: {self.working_dir}"
        yield f"Temp directory: {self.temp_dir}"
        yield f"Log directory: {self.log_location}"
        yield f"Metrics directory: {self.metrics_location}"
        yield f"Number of GPUs: {self.number_of_gpu}"
        for name, value, origin in self.effective():
            if name in self.origins or name in _ALWAYS_REPORTED:
                yield f"{name} = {value} ({origin})"


# What lets more people do more.
_OPENING = frozenset(("disable_token_authorization", "enable_model_api"))

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
