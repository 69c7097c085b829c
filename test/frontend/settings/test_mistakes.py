"""Mistakes that people make in configuration files, and what they are told: place and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from ts_frontend.settings import ConfigurationError, load_settings

# Each file has its mistake in line 3; every part has to be in one of the messages.
WARNED = [
    # Unknown keys: what was probably meant, or where it belongs.
    ("job_queue_sise=5", ("did you mean job_queue_size?",)),
    ("jobQueueSize=5", ("did you mean job_queue_size?",)),
    ("job-queue-size=5", ("did you mean job_queue_size?",)),
    ("TS_JOB_QUEUE_SIZE=5", ("did you mean job_queue_size?",)),
    ("inference_adress=http://127.0.0.1:1", ("did you mean inference_address?",)),
    ("default_worker_per_model=1", ("did you mean default_workers_per_model?",)),
    ("model_stor=/x", ("did you mean model_store?",)),
    ("max_requestsize=1", ("did you mean max_request_size?",)),
    ("disable_token_authorisation=true", ("did you mean disable_token_authorization?",)),
    ("enable_model_apis=true", ("did you mean enable_model_api?",)),
    ("allow_urls=https://.*", ("did you mean allowed_urls?",)),
    ("number_of_gpus=1", ("did you mean number_of_gpu?",)),
    ("privat_key_file=k", ("did you mean private_key_file?",)),
    ("batch_size=4", ("batchSize is set per model", "model-config.yaml")),
    ("maxBatchDelay=10", ("maxBatchDelay is set per model", "model-config.yaml")),
    ("zzz_of_my_handler=1", ("zzz_of_my_handler is not a known key and has no effect.",)),
    # Values that do not count.
    ("async_logging=ture", ("means false", "did you mean true?")),
    ("enable_metrics_api=yes", ("means false", "only `true`")),
    ("metrics_mode=promethius", ("log is used", "Did you mean prometheus?")),
    ("token_expiration_min=-5", ("token_expiration_min = '-5'", "60.0 is used")),
    ('models={"m": {"1.0": {"minWorker": 2}}}', ("m 1.0: minWorker", "mean minWorkers?")),
    ('models={"m": {"1.0": {"batchSize": "4"}}}', ("batchSize should be a whole number above 0",)),
    ('models={"m": {"minWorkers": 1}}', ("models: m minWorkers should be an object",)),
    ("plugins_path=/srv/plugins/*", ("plugins_path in", "has no effect", "no plugins")),
    ("workflow_store=/srv/workflows", ("workflow_store in", "this server has no workflows")),
    ("keystore=k.p12\\\n\ncertificate_file=c\nprivate_key_file=k", ("has no effect",)),
]
REFUSED = [
    ("job_queue_size=ten", ('"ten"', "whole number", "job_queue_size in")),
    ("job_queue_size=1.5", ('"1.5"', "whole number")),
    ("job_queue_size=0", ('"0"', "at least 1")),
    ("grpc_inference_port=70000", ("0 to 65535", "grpc_inference_port in")),
    ("max_request_size=10MB", ('"10MB"', "whole number")),
    ("http_header_timeout=soon", ('"soon"', "a number is expected")),
    ("inference_address=127.0.0.1:8080", ("Invalid binding address", "http://host:port")),
    ("management_address=http://0.0.0.0:99999", ("Invalid port number: 99999",)),
    ("metrics_address=unix:relative.sock", ("Invalid binding address: unix:relative.sock",)),
    ("metrics_address=http://127.0.0.1:8080", ("metrics_address in", "address of", "default")),
    ("grpc_management_port=7070", ("grpc_management_port in", "grpc_inference_port in default")),
    ("models={'m': 1}", ("not JSON", "models in")),
    ("models=[1]", ("a JSON object is expected",)),
    ("allowed_urls=https://(", ("not a regular expression", "allowed_urls in")),
    ("blacklist_env_vars=*", ("not a regular expression", "blacklist_env_vars in")),
    ("model_store=$$NO_SUCH$$/x", ("Invalid Environment Variable NO_SUCH",)),
    ("certificate_file=c.pem", ("certificate_file in", "needs private_key_file")),
    ("private_key_file=k.pem", ("private_key_file in", "needs certificate_file")),
    ("compatibility=torchserv", ("did you mean torchserve?",)),
    ("unix_socket_mode=rw-", ("three octal digits",)),
    ("archive_checksums_key=k.pem", ("needs archive_checksums",)),
    ("my_key=\\u12", ("\\u escape",)),
]


def load(folder: Path, text: str) -> tuple[str, ...]:
    """The warnings; line 3 of the file is where `text` begins."""
    (folder / "config.properties").write_text(f"# a file with a mistake\njob_queue_size=7\n{text}")
    environ = {"TEMP": str(folder)}
    return load_settings([], environ, str(folder), count_gpus=lambda _: 0).warnings


@pytest.mark.parametrize(("text", "parts"), WARNED)
def test_a_warning_names_line_and_remedy(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    warnings = load(tmp_path, text)
    (warning,) = [warning for warning in warnings if all(part in warning for part in parts)]
    line = 5 if "keystore" in text else 3
    assert f"{tmp_path}/config.properties:{line}" in warning


@pytest.mark.parametrize(("text", "parts"), REFUSED)
def test_an_error_names_line_and_remedy(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, text)
    problems = refused.value.problems
    (problem,) = [problem for problem in problems if all(part in problem for part in parts)]
    assert f"{tmp_path}/config.properties:3" in problem
    assert str(refused.value).startswith("Invalid configuration: ")


def test_all_mistakes_of_a_file_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, "max_request_size=a\nmax_connections=b\ninference_address=c")
    assert [problem.rpartition(":")[2] for problem in refused.value.problems] == ["3)", "4)", "5)"]


def test_inference_and_management_may_share_an_address(tmp_path: Path) -> None:
    assert load(tmp_path, "management_address=http://127.0.0.1:8080") == ()
