"""`--check-config`: every key with its place, and a status that scripts can use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from ts_frontend.config_check import check_config
from ts_frontend.settings import load_settings
from ts_frontend.settings.settings import KEYS


class Check:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "store").mkdir()
        self.lines: list[str] = []

    def __call__(self, text: str, *flags: str, **environ: str) -> int:
        (self.folder / "config.properties").write_text(text)
        self.lines = []
        return check_config(
            [*flags],
            {"TEMP": str(self.folder), "PATH": "/usr/bin", **environ},
            str(self.folder),
            self.lines.append,
            lambda *given: load_settings(*given, count_gpus=lambda _: 4),
        )

    def values(self) -> dict[str, str]:
        """key -> "value (origin)"."""
        pairs = [line.partition(" = ") for line in self.lines]
        return {key.strip(): value for key, _, value in pairs if key.strip() in KEYS}

    def said(self, kind: str) -> list[str]:
        return [line for line in self.lines if line.startswith(f"{kind}: ")]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(tmp_path)


# A value that is not the default, for every documented key.
SAMPLES = {
    "model_memory_budget": "16GB",
    "environment_cache": "{cwd}/environments",
    "inference_address": "http://127.0.0.1:18080",
    "management_address": "http://127.0.0.1:18081",
    "metrics_address": "unix:/run/metrics.sock",
    "grpc_inference_address": "localhost",
    "grpc_management_address": "localhost",
    "model_store": "{cwd}/store",
    "workflow_store": "{cwd}/store",
    "load_models": "all",
    "models": '{"m": {"1.0": {"minWorkers": 2}}}',
    "model_snapshot": '{"models": {}}',
    "allowed_urls": "https://a.example/.*,https://b.example/.*",
    "archive_checksums": "{cwd}/models.sha256",
    "archive_checksums_key": "",
    "unix_socket_mode": "660",
    "token_key_file": "{cwd}/keys.json",
    "keystore": "",
    "private_key_file": "{cwd}/tls.key",
    "certificate_file": "{cwd}/tls.crt",
    "metrics_config": "{home}/ts/configs/metrics.yaml",
    "model_server_home": "{home}",
    "number_of_gpu": "3",
    "python": "/usr/bin/env",
    "cpp_log_config": "{cwd}/cpp.txt",
}


def test_every_documented_key_is_shown_with_its_value_and_line(check: Check) -> None:
    """A file with every key of docs/configuration.md."""
    (check.folder / "models.sha256").touch()
    (check.folder / "keys.json").write_text('{"API": "an-api-key-of-ours"}')
    (check.folder / "keys.json").chmod(0o600)
    home = Path(__file__).resolve().parents[2]
    kinds = {"flag": "", "int": "443", "number": "1.5", "text": "x-text", "list": "a=1,b=2"}
    written = {}
    for key in KEYS.values():
        value = SAMPLES.get(key.name, kinds.get(key.kind, "{}"))
        if key.kind == "flag":
            value = "false" if key.default else "true"
        elif key.kind == "int" and key.name not in SAMPLES:
            value = str(int(key.minimum or 0) + 500 + len(written))
        elif key.choices and key.name not in SAMPLES:
            value = key.choices[-1]
        written[key.name] = value.replace("{cwd}", str(check.folder)).replace("{home}", str(home))
    text = "".join(f"{key}={value}\n" for key, value in written.items())
    assert check(text) == 0, check.lines
    shown = check.values()
    assert list(shown) == list(KEYS)
    for line, (key, value) in enumerate(written.items(), start=1):
        wanted = "****" if KEYS[key].is_secret else value
        assert shown[key] == f"{wanted} ({check.folder}/config.properties:{line})"
    documented = (home / "docs" / "configuration.md").read_text()
    assert not [key for key in written if f"| `{key}` |" not in documented]


def test_where_each_value_comes_from(check: Check) -> None:
    text = "enable_envvars_config=true\njob_queue_size=7\nmax_request_size=9\n"
    assert check(text, "--model-store", "store", TS_JOB_QUEUE_SIZE="8") == 0, check.lines
    values = check.values()
    assert values["job_queue_size"] == "8 (env TS_JOB_QUEUE_SIZE)"
    assert values["max_request_size"] == f"9 ({check.folder}/config.properties:3)"
    assert values["model_store"] == f"{check.folder}/store (flag --model-store)"
    assert values["max_connections"] == "10000 (default)"
    assert check.lines[-1] == "0 errors, 0 warnings."


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("job_queue_size=ten", 'For input string: "ten"'),
        ("job_queue_sise=10", "did you mean job_queue_size?"),
        ("model_store=gone", "model_store directory not found"),
        ("token_key_file=gone.json", "gone.json: No such file"),
        ("archive_checksums=gone", "gone: No such file"),
        ("metrics_config=gone.yaml", "metrics_config in"),
        ("python=/no/such/python", "no such interpreter: /no/such/python"),
        ("model_snapshot={", "not JSON"),
        (
            "inference_address=https://127.0.0.1:1\nprivate_key_file=a\ncertificate_file=b",
            "No such file",
        ),
    ],
)
def test_errors_make_the_status(check: Check, text: str, error: str) -> None:
    store = "" if "model_store" in text else "model_store=store\n"
    assert check(f"{text}\n{store}") == 1
    assert any(error in line for line in check.said("error")), check.lines


def test_a_store_is_needed(check: Check) -> None:
    assert check("") == 1
    assert "Missing mandatory parameter --model-store" in check.said("error")[0]


def test_warnings_do_not_make_the_status(check: Check) -> None:
    text = "model_store=store\nload_models=gone.mar,m=https://h/m.mar\nenable_model_api=true\n"
    assert check(f"{text}management_address=http://0.0.0.0:1\n", "--dt") == 0, check.lines
    warnings = check.said("warning")
    assert "Model not found at: gone.mar" in warnings[0]
    assert "OPEN TO EVERYBODY: http://0.0.0.0:1 can be reached" in warnings[1]
    assert "can load and run code here" in warnings[1]
    assert "allowed_urls" in warnings[2]
    assert check.lines[-1] == "0 errors, 3 warnings."


def archive(path: Path, config: str) -> None:
    entry = {"modelName": path.stem, "handler": "h.py", "configFile": "model-config.yaml"}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("h.py", "raise SystemExit('a check runs no code')")
        file.writestr("model-config.yaml", config)
        file.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": entry}))


def test_all_models_of_the_store_are_looked_at(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = check.folder / "store"
    archive(store / "good.mar", "batchSize: 2\n")
    archive(store / "slip.mar", "minWorkers: 1\nbatchsize: 2\n")
    archive(store / "odd.mar", "parallelLevel: 2\n")
    (store / "torn.mar").write_bytes((store / "good.mar").read_bytes()[:-30])
    (store / "notes.txt").write_text("no model")
    (check.folder / "config.properties").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(check.folder))
    before = {path: path.lstat().st_mtime_ns for path in check.folder.rglob("*")}
    assert check("model_store=store\nload_models=all\n", "--ncs") == 1
    assert check.said("error") == [
        "error: slip.mar: model-config.yaml:2: unknown key 'batchsize' is left to the handler;"
        " did you mean 'batchSize'?",
        "error: torn.mar: The archive is damaged: its directory is missing, as if cut short."
        f" (load_models in {check.folder}/config.properties:2)",
    ]
    assert check.said("warning") == [
        "warning: odd.mar: model-config.yaml:1: parallelLevel has no effect without parallelType."
    ]
    assert check.lines[-1] == "2 errors, 1 warning."
    after = {path: path.lstat().st_mtime_ns for path in check.folder.rglob("*")}
    del before[check.folder / "config.properties"], after[check.folder / "config.properties"]
    assert after == before


def test_a_model_that_is_named(check: Check) -> None:
    archive(check.folder / "store" / "m.mar", "batchSize: no\n")
    archive(check.folder / "store" / "other.mar", "batchSize: no\n")
    text = "model_store=store\nload_models=mine=m.mar\n"
    assert check(text) == 1
    (error,) = check.said("error")
    assert error.startswith("error: m.mar: model-config.yaml:1: batchSize should be an integer")
    archive(check.folder / "store" / "m.mar", "batchSize: 1\n")
    assert check(text) == 0, check.lines


def test_the_models_of_a_snapshot(check: Check) -> None:
    archive(check.folder / "store" / "m.mar", "batchsize: 1\n")
    archive(check.folder / "store" / "unused.mar", "batchsize: 1\n")
    models = {"models": {"m": {"1.0": {"marName": "m.mar"}, "2.0": {"marName": "gone.mar"}}}}
    text = f"model_store=store\nload_models=unused.mar\nmodel_snapshot={json.dumps(models)}\n"
    assert check(text) == 1
    (error,) = check.said("error")
    assert error.startswith("error: m.mar: model-config.yaml:1: unknown key 'batchsize'")
    (warning,) = check.said("warning")
    where = f"{check.folder}/config.properties:3"
    assert warning == f"warning: Model not found at: gone.mar (model_snapshot in {where})"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("max_archive_entries=1", "The archive has more than 1 entries."),
        ("archive_checksums=sums", "m.mar is not listed in archive_checksums."),
    ],
)
def test_archives_are_held_to_what_is_set(check: Check, setting: str, words: str) -> None:
    archive(check.folder / "store" / "m.mar", "batchSize: 1\n")
    (check.folder / "sums").touch()
    text = "model_store=store\nload_models=m.mar\n"
    assert check(text) == 0, check.lines
    assert check(f"{text}{setting}\n") == 1
    (error,) = check.said("error")
    assert words in error


def test_values_of_the_key_models_that_contradict(check: Check) -> None:
    models = '{"m": {"1.0": {"minWorkers": 3, "maxWorkers": 2}}}'
    assert check(f"model_store=store\nmodels={models}\n") == 0
    assert check.said("warning") == [
        f"warning: {check.folder}/config.properties:2: models: m 1.0: maxWorkers 2 is less than"
        " minWorkers 3."
    ]


def test_nothing_is_written(check: Check) -> None:
    before = {path for path in check.folder.rglob("*")}
    check("model_store=store\n")
    assert {path for path in check.folder.rglob("*")} - before == {
        check.folder / "config.properties"
    }


LOG4J = '<?xml version="1.0"?>\n<Configuration><Loggers/></Configuration>\n'


@pytest.mark.parametrize("text", [LOG4J, "  <Configuration/>", "log4j.rootLogger=debug, stdout\n"])
def test_a_log4j_file_is_answered_with_what_to_use(check: Check, text: str) -> None:
    (check.folder / "log4j2.xml").write_text(text)
    assert check("model_store=store\n", "--log-config", "log4j2.xml") == 0
    (warning,) = check.said("warning")
    assert "is for log4j, TorchServe's Java logging, and has no effect" in warning
    assert "root=DEBUG" in warning


def test_log_levels(tmp_path: Path) -> None:
    (tmp_path / "levels").write_text("root=debug\nACCESS_LOG=OFF\nMODEL_LOG=WRAN\n")
    settings = load_settings(
        ["--log-config", "levels"], {"TEMP": str(tmp_path)}, str(tmp_path), count_gpus=lambda _: 0
    )
    assert dict(settings.log_levels) == {"": 10, "ACCESS_LOG": 51}
    (warning,) = settings.warnings
    assert warning.endswith("levels:3: 'WRAN' is not a level; did you mean WARN?")


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "config.properties").write_text("job_queue_sise=1\n")
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-m", "ts.model_server", "--check-config", "--model-store", "store"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{root / 'frontend'}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert "did you mean job_queue_size?" in ran.stdout
    assert f"= {tmp_path / 'store'} (flag --model-store)" in ran.stdout
    assert not (tmp_path / "logs").exists()
