"""Every key that TorchServe 0.12 documents: read, shown by --check-config, set by its variable.

`torchserve.properties`, beside this file, has them all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ts_frontend.settings import load_settings
from ts_frontend.settings.properties import parse_properties
from ts_frontend.settings.settings import KEYS

ROOT = Path(__file__).resolve().parents[3]
FILE = Path(__file__).with_name("torchserve.properties")

# key -> the variable that overrides it, "" for none (contract, config section 3).
DOCUMENTED = {
    "inference_address": "TS_INFERENCE_ADDRESS",
    "management_address": "TS_MANAGEMENT_ADDRESS",
    "metrics_address": "TS_METRICS_ADDRESS",
    "grpc_inference_address": "TS_GRPC_INFERENCE_ADDRESS",
    "grpc_management_address": "TS_GRPC_MANAGEMENT_ADDRESS",
    "grpc_inference_port": "TS_GRPC_INFERENCE_PORT",
    "grpc_management_port": "TS_GRPC_MANAGEMENT_PORT",
    "grpc_inference_max_connection_age_ms": "TS_GRPC_INFERENCE_MAX_CONNECTION_AGE_MS",
    "grpc_inference_max_connection_age_grace_ms": "TS_GRPC_INFERENCE_MAX_CONNECTION_AGE_GRACE_MS",
    "grpc_management_max_connection_age_ms": "TS_GRPC_MANAGEMENT_MAX_CONNECTION_AGE_MS",
    "grpc_management_max_connection_age_grace_ms": "TS_GRPC_MANAGEMENT_MAX_CONNECTION_AGE_GRACE_MS",
    "enable_grpc_ssl": "TS_ENABLE_GRPC_SSL",
    "model_store": "TS_MODEL_STORE",
    "workflow_store": "TS_WORKFLOW_STORE",
    "load_models": "TS_LOAD_MODELS",
    "models": "",
    "model_snapshot": "",
    "model_server_home": "TS_MODEL_SERVER_HOME",
    "default_workers_per_model": "TS_DEFAULT_WORKERS_PER_MODEL",
    "default_response_timeout": "TS_DEFAULT_RESPONSE_TIMEOUT",
    "default_startup_timeout": "TS_DEFAULT_STARTUP_TIMEOUT",
    "unregister_model_timeout": "TS_UNREGISTER_MODEL_TIMEOUT",
    "job_queue_size": "TS_JOB_QUEUE_SIZE",
    "number_of_gpu": "TS_NUMBER_OF_GPU",
    "initial_worker_port": "TS_INITIAL_WORKER_PORT",
    "initial_distribution_port": "TS_INITIAL_DISTRIBUTION_PORT",
    "max_request_size": "TS_MAX_REQUEST_SIZE",
    "max_response_size": "TS_MAX_RESPONSE_SIZE",
    "limit_max_image_pixels": "TS_LIMIT_MAX_IMAGE_PIXELS",
    "decode_input_request": "TS_DECODE_INPUT_REQUEST",
    "default_service_handler": "TS_DEFAULT_SERVICE_HANDLER",
    "service_envelope": "TS_SERVICE_ENVELOPE",
    "install_py_dep_per_model": "TS_INSTALL_PY_DEP_PER_MODEL",
    "allowed_urls": "TS_ALLOWED_URLS",
    "use_env_allowed_urls": "",
    "blacklist_env_vars": "TS_BLACKLIST_ENV_VARS",
    "enable_metrics_api": "TS_ENABLE_METRICS_API",
    "metrics_config": "TS_METRICS_CONFIG",
    "metrics_mode": "TS_METRICS_MODE",
    "model_metrics_auto_detect": "TS_MODEL_METRICS_AUTO_DETECT",
    "disable_system_metrics": "TS_DISABLE_SYSTEM_METRICS",
    "metric_time_interval": "",
    "system_metrics_cmd": "",
    "disable_token_authorization": "TS_DISABLE_TOKEN_AUTHORIZATION",
    "token_expiration_min": "TS_TOKEN_EXPIRATION_TIME_MIN",
    "enable_model_api": "TS_ENABLE_MODEL_API",
    "ts_open_inference_protocol": "TS_OPEN_INFERENCE_PROTOCOL",
    "ts_header_key_sequence_id": "TS_HEADER_KEY_SEQUENCE_ID",
    "ts_header_key_sequence_start": "TS_HEADER_KEY_SEQUENCE_START",
    "ts_header_key_sequence_end": "TS_HEADER_KEY_SEQUENCE_END",
    "cors_allowed_origin": "TS_CORS_ALLOWED_ORIGIN",
    "cors_allowed_methods": "TS_CORS_ALLOWED_METHODS",
    "cors_allowed_headers": "TS_CORS_ALLOWED_HEADERS",
    "keystore": "TS_KEYSTORE",
    "keystore_pass": "TS_KEYSTORE_PASS",
    "keystore_type": "TS_KEYSTORE_TYPE",
    "private_key_file": "TS_PRIVATE_KEY_FILE",
    "certificate_file": "TS_CERTIFICATE_FILE",
    "number_of_netty_threads": "TS_NUMBER_OF_NETTY_THREADS",
    "netty_client_threads": "TS_NETTY_CLIENT_THREADS",
    "use_native_io": "",
    "io_ratio": "",
    "prefer_direct_buffer": "TS_PREFER_DIRECT_BUFFER",
    "async_logging": "TS_ASYNC_LOGGING",
    "debug": "TS_DEBUG",
    "cpu_launcher_enable": "TS_CPU_LAUNCHER_ENABLE",
    "cpu_launcher_args": "TS_CPU_LAUNCHER_ARGS",
    "ipex_enable": "TS_IPEX_ENABLE",
    "ipex_gpu_enable": "TS_IPEX_GPU_ENABLE",
    "cpp_log_config": "TS_CPP_LOG_CONFIG",
    "python": "",
    "vmargs": "",
    "plugins_path": "",
    "enable_envvars_config": "",
}
WRITTEN_BY_SNAPSHOTS = {"version", "tsConfigFile"}

# Texts that are shown in another form than they were written.
NORMALIZED = {
    "decode_input_request": "false",
    "keystore_pass": "****",
    "number_of_gpu": "0",  # no more than there are
    "models": re.compile(r'\{"m": \{"1\.0": \{.*"batchSize": 4.*'),
}
PATHS = {
    "model_store",
    "workflow_store",
    "model_server_home",
    "metrics_config",
    "keystore",
    "private_key_file",
    "certificate_file",
    "cpp_log_config",
}


def test_a_file_with_every_documented_key_is_shown_as_it_was_read(tmp_path: Path) -> None:
    """`torchserve --check-config` as a person runs it."""
    text = FILE.read_text()
    (tmp_path / "config.properties").write_text(text)
    for folder in ("store", "workflows", "home"):
        (tmp_path / folder).mkdir()
    (tmp_path / "metrics.yaml").write_bytes((ROOT / "ts/configs/metrics.yaml").read_bytes())
    make_certificates(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-m", "ts.model_server", "--check-config"],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "frontend"), str(ROOT)]),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = [line.partition(" = ") for line in ran.stdout.splitlines()]
    shown = {key.strip(): value for key, _, value in rows}
    entries = {entry.key: entry for entry in parse_properties(text)}
    assert entries.keys() == DOCUMENTED.keys() | WRITTEN_BY_SNAPSHOTS
    for key in DOCUMENTED:
        value, origin = shown[key].rsplit(" (", 1)
        wanted = NORMALIZED.get(key, entries[key].value)
        if key in PATHS:
            wanted = str(tmp_path / entries[key].value)
        if isinstance(wanted, re.Pattern):
            assert wanted.fullmatch(value), (key, value)
        else:
            assert value == wanted, key
        assert origin == f"{tmp_path}/config.properties:{entries[key].line})", key


def make_certificates(folder: Path) -> None:
    """What the keys of TLS name: the check opens it."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        load_pem_private_key,
        pkcs12,
    )
    from cryptography.x509 import load_pem_x509_certificate

    from ts_frontend.http.tls import _self_signed

    certificate, key = _self_signed()
    (folder / "tls.crt").write_bytes(certificate)
    (folder / "tls.key").write_bytes(key)
    stored = pkcs12.serialize_key_and_certificates(
        b"server",
        load_pem_private_key(key, None),  # type: ignore[arg-type]
        load_pem_x509_certificate(certificate),
        None,
        BestAvailableEncryption(b"hunter2"),
    )
    (folder / "keys.p12").write_bytes(stored)


@pytest.mark.parametrize("key", DOCUMENTED)
def test_the_variable_of_a_documented_key_goes_before_flag_and_file(
    tmp_path: Path, key: str
) -> None:
    entries = {entry.key: entry.value for entry in parse_properties(FILE.read_text())}
    file = "enable_envvars_config=true\nuse_env_allowed_urls=true\n"
    file += "certificate_file=c\nprivate_key_file=k\n"  # one alone is an error
    (tmp_path / "config.properties").write_text(file)
    variable = DOCUMENTED[key] or f"TS_{key.upper()}"
    plain = load_settings([], {"TEMP": str(tmp_path)}, str(tmp_path), count_gpus=lambda _: 4)
    flags = ["--model-store", "flag", "--workflow-store", "flag", "--models", "flag", "--dt"]
    set_ = load_settings(
        flags,
        {"TEMP": str(tmp_path), variable: entries[key]},
        str(tmp_path),
        count_gpus=lambda _: 4,
    )
    if DOCUMENTED[key]:
        assert set_.origin(key) == f"env {variable}"
        assert getattr(set_, key) != getattr(plain, key)
    elif key not in ("python", "enable_envvars_config"):  # ours may be set so, theirs not
        assert getattr(set_, key) == getattr(plain, key)


def test_every_key_has_an_effect_or_says_that_it_has_none() -> None:
    """A key that is documented as if it worked, and that nobody reads, is worse than none."""
    sources = [
        path.read_text()
        for path in (ROOT / "frontend" / "ts_frontend").rglob("*.py")
        if path.name not in ("settings.py", "arguments.py", "checks.py", "config_check.py")
    ]
    code = "\n".join(sources)
    for key in KEYS.values():
        name = {"compatibility": "is_torchserve_compatible"}.get(key.name, key.name)
        is_read = re.search(rf'settings\.{name}\b|"{name}"', code) is not None
        if key.meaning.startswith("Accepted"):
            assert not re.search(rf"settings\.{name}\b", code), name
        else:
            assert is_read, f"nobody reads {name}"
