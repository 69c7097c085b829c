from pathlib import Path

import pytest

from ts_frontend.settings import ConfigurationError, format_properties, load_settings
from ts_frontend.settings.properties import parse_properties
from ts_frontend.settings.reference import key_tables
from ts_frontend.settings.settings import KEYS, Settings


@pytest.fixture
def load(tmp_path):
    """Loads as a server does in a fresh working directory; `file`: text of config.properties."""

    def run(*argv, file=None, environ=None, gpus=0):
        if file is not None:
            (tmp_path / "config.properties").write_text(file)
        return load_settings(
            argv,
            {"TEMP": str(tmp_path), **(environ or {})},
            str(tmp_path),
            count_gpus=lambda _: gpus,
        )

    run.cwd = tmp_path
    return run


def test_defaults_of_the_contract(load):
    settings = load()
    assert settings.inference_address == "http://127.0.0.1:8080"
    assert settings.grpc_management_port == 7071
    assert settings.job_queue_size == 100
    assert settings.max_request_size == 6553500
    assert settings.default_response_timeout == 120
    assert settings.metrics_mode == "log"
    assert settings.metric_time_interval == 60
    assert settings.token_expiration_min == 60
    assert settings.allowed_urls == ("file://.*|http(s)?://.*",)
    assert settings.model_store is None
    assert settings.grpc_inference_max_connection_age_ms is None
    assert settings.config_file is None
    assert settings.warnings == ()
    assert settings.origin("job_queue_size") == "default"
    assert settings.log_location == str(load.cwd / "logs")
    assert settings.metrics_config.endswith("ts/configs/metrics.yaml")


def test_every_key_reads_a_value_of_its_kind(load):
    samples = {"text": "x", "flag": "true", "number": "1.5", "list": "a,b", "json": "{}"}
    own = {
        "number_of_gpu": "3",
        "unix_socket_mode": "660",
        "model_memory_budget": "60%",
        "keystore": "",  # would take the effect of the PEM files
        "workflow_store": "",  # these three say that they have none
        "plugins_path": "",
        "cpp_log_config": "",
        "inference_address": "http://127.0.0.1:1",
        "management_address": "https://127.0.0.1:2",
        "metrics_address": "unix:/run/metrics.sock",
        "grpc_management_port": "444",
    }

    def sample(key):
        if key.name in own:
            return own[key.name]
        if key.choices:
            return key.choices[-1]
        return str(max(443, int(key.minimum or 0))) if key.kind == "int" else samples[key.kind]

    file = "".join(f"{key.name}={sample(key)}\n" for key in KEYS.values())
    settings = load(file=file, gpus=4)
    assert settings.warnings == ()
    for number, key in enumerate(KEYS.values(), start=1):
        assert settings.origin(key.name) == f"{load.cwd / 'config.properties'}:{number}"
    assert settings.number_of_gpu == 3
    assert settings.allowed_urls == ("a", "b")


class TestPrecedence:
    FILE = "model_store=/file\njob_queue_size=7\n"

    def test_flag_over_file(self, load):
        settings = load("--model-store", "/flag", file=self.FILE)
        assert settings.model_store == "/flag"
        assert settings.origin("model_store") == "flag --model-store"
        assert settings.job_queue_size == 7

    def test_environment_over_flag_where_enabled(self, load):
        environ = {"TS_MODEL_STORE": "/env", "TS_JOB_QUEUE_SIZE": "9"}
        settings = load(
            "--model-store", "/flag", file=self.FILE + "enable_envvars_config=true", environ=environ
        )
        assert settings.model_store == "/env"
        assert settings.job_queue_size == 9
        assert settings.origin("job_queue_size") == "env TS_JOB_QUEUE_SIZE"

    def test_environment_is_ignored_with_a_warning_where_it_is_not_enabled(self, load):
        settings = load(file=self.FILE, environ={"TS_JOB_QUEUE_SIZE": "9"})
        assert settings.job_queue_size == 7
        assert settings.warnings == (
            "The environment variable TS_JOB_QUEUE_SIZE is ignored: "
            "the file has no enable_envvars_config=true.",
        )

    def test_the_switch_itself_may_come_from_the_environment(self, load):
        environ = {"TS_ENABLE_ENVVARS_CONFIG": "true", "TS_JOB_QUEUE_SIZE": "9"}
        assert load(environ=environ).job_queue_size == 9

    def test_keys_that_the_environment_cannot_set(self, load):
        settings = load(file="enable_envvars_config=true", environ={"TS_METRIC_TIME_INTERVAL": "5"})
        assert settings.metric_time_interval == 60

    def test_allowed_urls_needs_its_own_switch(self, load):
        environ = {"TS_ALLOWED_URLS": "https://h/.*"}
        enabled = "enable_envvars_config=true\n"
        settings = load(file=enabled, environ=environ)
        assert settings.allowed_urls == ("file://.*|http(s)?://.*",)
        assert "use_env_allowed_urls" in settings.warnings[0]
        settings = load(file=enabled + "use_env_allowed_urls=true", environ=environ)
        assert settings.allowed_urls == ("https://h/.*",)

    @pytest.mark.parametrize(
        ("variable", "text", "key", "value"),
        [
            ("TS_TOKEN_EXPIRATION_TIME_MIN", "0.5", "token_expiration_min", 0.5),
            ("TS_HEADER_KEY_SEQUENCE_END", "x-end", "ts_header_key_sequence_end", "x-end"),
            ("TS_DISABLE_TOKEN_AUTHORIZATION", "TRUE", "disable_token_authorization", True),
            ("TS_ASYNC_LOGGING", "true", "async_logging", True),
        ],
    )
    def test_variables_with_names_of_their_own(self, load, variable, text, key, value):
        settings = load(file="enable_envvars_config=true", environ={variable: text})
        assert getattr(settings, key) == value

    def test_open_inference_protocol_needs_no_switch(self, load):
        assert load(environ={"TS_OPEN_INFERENCE_PROTOCOL": "true"}).ts_open_inference_protocol

    def test_flags_that_switch_in_one_direction(self, load):
        settings = load(
            "--disable-token-auth",
            "--enable-model-api",
            file="disable_token_authorization=false\nenable_model_api=false",
        )
        assert settings.disable_token_authorization
        assert settings.enable_model_api
        assert load(file="enable_model_api=true").enable_model_api

    def test_models_are_joined(self, load):
        assert load("--models", "a.mar", "b=c.mar").load_models == "a.mar,b=c.mar"


class TestWhichFile:
    def snapshot(self, load, name, text):
        folder = load.cwd / "logs" / "config"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def test_the_variable_wins_over_the_flag(self, load):
        for name in ("env", "flag"):
            (load.cwd / name).write_text(f"default_service_handler={name}")
        environ = {"TS_CONFIG_FILE": str(load.cwd / "env")}
        assert load("--ts-config", "flag", environ=environ).default_service_handler == "env"
        assert load("--ts-config", "flag").default_service_handler == "flag"

    def test_the_newest_snapshot_wins_over_the_local_file(self, load):
        self.snapshot(load, "20240101000000000-startup.cfg", "default_service_handler=old")
        self.snapshot(load, "20240102000000000-shutdown.cfg", "default_service_handler=new")
        self.snapshot(load, "zzz.cfg", "default_service_handler=other")
        settings = load(file="default_service_handler=local")
        assert settings.default_service_handler == "new"
        assert "20240102000000000-shutdown.cfg:1" in settings.origin("default_service_handler")
        assert load("--ncs").default_service_handler == "local"

    def test_what_a_snapshot_goes_before_is_said(self, load):
        self.snapshot(load, "20240101000000000-startup.cfg", "")
        first, second = load("--models", "a.mar", file="debug=true").warnings
        assert first.startswith("--models is not used: the models are those of the snapshot /")
        assert second.startswith("config.properties is not read: the snapshot /")
        assert "--no-config-snapshots" in second
        assert load("--ncs").warnings == ()

    def test_a_named_file_must_exist(self, load):
        with pytest.raises(ConfigurationError, match="--ts-config file not found: gone"):
            load("--ts-config", "gone")

    def test_snapshots_live_under_the_log_location(self, load):
        self.snapshot(load, "20240101000000000-startup.cfg", "default_service_handler=old")
        assert load(environ={"LOG_LOCATION": "elsewhere"}).default_service_handler is None


class TestValues:
    @pytest.mark.parametrize(
        ("text", "value"), [("true", 1), ("TRUE", 1), ("2", 0), ("yes", 0), ("", 0)]
    )
    def test_only_true_is_true(self, load, text, value):
        settings = load(file=f"async_logging={text}")
        assert settings.async_logging is bool(value)
        assert len(settings.warnings) == (text in ("2", "yes"))

    def test_a_malformed_number_names_file_line_and_key(self, load):
        with pytest.raises(ConfigurationError) as caught:
            load(file="# comment\njob_queue_size=ten\ngrpc_inference_port=70000\n")
        path = load.cwd / "config.properties"
        assert str(caught.value) == (
            'Invalid configuration: For input string: "ten"; a whole number is expected '
            f"(job_queue_size in {path}:2)\n"
            'Invalid configuration: For input string: "70000"; 0 to 65535 is expected '
            f"(grpc_inference_port in {path}:3)"
        )

    @pytest.mark.parametrize("text", ["x", "-1", "0", "nan", "inf", ""])
    def test_a_bad_token_expiration_is_sixty_minutes(self, load, text):
        settings = load(file=f"token_expiration_min={text}")
        assert settings.token_expiration_min == 60
        assert "token_expiration_min" in settings.warnings[0]

    @pytest.mark.parametrize(
        ("text", "mode", "warnings"),
        [(" Prometheus ", "prometheus", 0), ("leg acy", "legacy", 0), ("loki", "log", 1)],
    )
    def test_metrics_mode(self, load, text, mode, warnings):
        settings = load(file=f"metrics_mode={text}")
        assert settings.metrics_mode == mode
        assert len(settings.warnings) == warnings

    def test_substitution(self, load):
        settings = load(file="model_store=$$STORE$$/models", environ={"STORE": "/data"})
        assert settings.model_store == "/data/models"
        assert settings.workflow_store == "/data/models"
        with pytest.raises(
            ConfigurationError, match="Invalid configuration: Invalid Environment Variable NOPE"
        ):
            load(file="model_store=$$NOPE$$")

    def test_serve_86_unknown_keys_are_kept_and_reported_with_the_nearest_one(self, load):
        settings = load(file="job_queue_sise=5\nmy_own=x")
        assert dict(settings.unknown_keys) == {"job_queue_sise": "5", "my_own": "x"}
        assert settings.warnings[0].endswith(
            "config.properties:1: job_queue_sise is not a known key and has no effect; "
            "did you mean job_queue_size?"
        )
        assert settings.warnings[1].endswith("my_own is not a known key and has no effect.")

    def test_a_key_given_twice_is_reported(self, load):
        settings = load(file="debug=false\ndebug=true")
        assert settings.debug
        assert settings.warnings[0].endswith(
            "config.properties:2: debug replaces the value of line 1."
        )

    def test_models_is_json(self, load):
        settings = load(file='models={\\\n "m": {"1.0": {"minWorkers": 2}}\\\n}')
        assert settings.models == {"m": {"1.0": {"minWorkers": 2}}}
        for text in ("[1]", "{"):
            with pytest.raises(ConfigurationError, match=r"models in .*:1"):
                load(file=f"models={text}")

    def test_allowed_urls_are_checked(self, load):
        assert load(file="allowed_urls=https://a/.*, https://b/.*").allowed_urls == (
            "https://a/.*",
            "https://b/.*",
        )
        with pytest.raises(ConfigurationError, match="not a regular expression"):
            load(file="allowed_urls=https://(")

    @pytest.mark.parametrize(
        ("setting", "used"), [("", 2), ("number_of_gpu=1", 1), ("number_of_gpu=8", 2)]
    )
    def test_number_of_gpu_is_an_upper_bound(self, load, setting, used):
        assert load(file=setting, gpus=2).number_of_gpu == used

    def test_number_of_gpu_from_the_environment_is_bounded_too(self, load):
        """TorchServe lets the variable exceed what is there."""
        environ = {"TS_NUMBER_OF_GPU": "8"}
        assert load(file="enable_envvars_config=true", environ=environ, gpus=2).number_of_gpu == 2

    def test_paths_are_relative_to_the_working_directory(self, load):
        settings = load("--model-store", "store", file="metrics_config=m.yaml")
        assert settings.model_store == str(load.cwd / "store")
        assert settings.metrics_config == str(load.cwd / "m.yaml")

    def test_workers_do_not_inherit_hidden_variables(self, load):
        settings = load(file="blacklist_env_vars=AWS_.*|X", environ={"AWS_KEY": "1", "Y": "2"})
        assert "AWS_KEY" not in settings.worker_environment
        assert settings.worker_environment["Y"] == "2"

    def test_ready_fd(self, load):
        assert load("--ready-fd", "7").ready_fd == 7

    def test_log_config_must_exist(self, load):
        with pytest.raises(ConfigurationError, match="--log-config file not found: gone"):
            load("--log-config", "gone")


def test_settings_are_read_only(load):
    settings = load()
    with pytest.raises(AttributeError):
        settings.debug = True
    with pytest.raises(TypeError):
        settings.models["m"] = {}


def test_secrets_are_not_shown(load):
    settings = load(file="keystore_pass=hunter2", environ={"AWS_SECRET_ACCESS_KEY": "geheim"})
    assert settings.keystore_pass == "hunter2"
    shown = repr(settings) + "\n".join(settings.report())
    assert "hunter2" not in shown
    assert "geheim" not in shown
    assert settings.secret_environment == {"AWS_SECRET_ACCESS_KEY": "geheim"}


def test_token_keys_of_the_environment_are_hidden_from_workers(load):
    environ = {"TS_INFERENCE_KEY": "geheim-1", "TS_MANAGEMENT_KEY": "geheim-2", "TS_API_KEY": ""}
    settings = load(environ=environ)
    assert settings.warnings == ()
    assert not set(settings.worker_environment) & set(environ)
    assert dict(settings.secret_environment) == {
        "TS_INFERENCE_KEY": "geheim-1",
        "TS_MANAGEMENT_KEY": "geheim-2",
    }
    assert "geheim" not in repr(settings) + "\n".join(settings.report())


class TestWhatASnapshotMustNotKeep:
    def test_what_a_flag_opened_for_one_run(self, load):
        values = load("--dt", "--enable-model-api").to_properties()
        assert "disable_token_authorization" not in values
        assert "enable_model_api" not in values

    def test_what_the_file_says_stays(self, load):
        values = load(file="disable_token_authorization=true").to_properties()
        assert values["disable_token_authorization"] == "true"

    def test_torchserve_keeps_it(self, load):
        values = load("--dt", file="compatibility=torchserve").to_properties()
        assert values["disable_token_authorization"] == "true"

    def test_secrets_of_the_environment(self, load):
        file, environ = "enable_envvars_config=true", {"TS_KEYSTORE_PASS": "geheim"}
        settings = load(file=file, environ=environ)
        assert settings.keystore_pass == "geheim"
        assert "keystore_pass" not in settings.to_properties()


def test_the_effective_configuration_reads_back(load):
    file = (
        "model_store=/data\nallowed_urls=https://a/.*,b\nkeystore_pass=hunter2\nmy_own=x\n"
        'models={"m": {}}\ntoken_expiration_min=1.5\ndebug=true\n'
    )
    first = load(file=file, gpus=2)
    text = format_properties(first.to_properties())
    assert "number_of_gpu" not in text  # found on this machine, to be found again on the next
    second = load(file=text, gpus=1)
    skipped = {"warnings", "origins", "number_of_gpu", "secret_environment"}
    for name in Settings.__slots__:
        if name not in skipped:
            assert getattr(first, name) == getattr(second, name), name
    assert second.number_of_gpu == 1


def test_an_empty_value_of_a_default_survives_the_round_trip(load):
    settings = load(file="enable_metrics_api=false\nmax_request_size=1000")
    values = settings.to_properties()
    assert values["enable_metrics_api"] == "false"
    assert {entry.key for entry in parse_properties(format_properties(values))} == set(values)


def test_the_documentation_lists_the_keys_of_the_code():
    """Mends with: python -m ts_frontend.settings.reference, between the markers of the file."""
    document = Path(__file__).parents[3] / "docs" / "configuration.md"
    text = document.read_text().partition("<!-- keys -->\n")[2].partition("<!-- end of keys -->")[0]
    assert text.strip() == key_tables().strip()
