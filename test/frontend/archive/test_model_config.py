from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_frontend.archive.model_config import (
    MAX_CONFIG_BYTES,
    ModelFileConfig,
    TorchRunConfig,
    parse_model_config,
)
from ts_frontend.core.model import TensorSpec


def parse(text: str) -> tuple[ModelFileConfig | None, list[str]]:
    return parse_model_config(text, "model.yaml")


def test_every_key() -> None:
    config, warnings = parse(
        """
        minWorkers: 1
        maxWorkers: 2
        batchSize: 4
        maxBatchDelay: 50
        responseTimeout: 60
        startupTimeout: 600
        deviceType: gpu
        deviceIds: [0, 2]
        parallelType: PP
        parallelLevel: 4
        torchrun:
          nnodes: 1
          nproc-per-node: 4
          rdzv-backend: c10d
          rdzv-endpoint: host:29400
          rdzv-conf: timeout=3
          monitor-interval: 7
          node-rank: 0
          OMP_NUMBER_THREADS: 3
        maxRetryTimeoutInSec: 0
        clientTimeoutInMills: 1500
        jobQueueSize: 50
        useJobTicket: true
        useVenv: false
        continuousBatching: true
        asyncCommunication: false
        sequenceBatching: true
        sequenceMaxIdleMSec: 1000
        sequenceTimeoutMSec: 0
        maxSequenceJobQueueSize: 10
        maxNumSequence: 4
        handler:
            manual_seed: 40
        pippy: {chunks: 1}
        micro_batching: {micro_batch_size: 4}
        """
    )
    assert warnings == []
    assert config == ModelFileConfig(
        min_workers=1,
        max_workers=2,
        batch_size=4,
        max_batch_delay_ms=50,
        response_timeout_s=60,
        startup_timeout_s=600,
        device_type="gpu",
        device_ids=(0, 2),
        parallel_type="pp",
        parallel_level=4,
        torchrun=TorchRunConfig(
            nnodes=1,
            nproc_per_node=4,
            rdzv_backend="c10d",
            rdzv_endpoint="host:29400",
            rdzv_conf="timeout=3",
            monitor_interval_s=7,
            node_rank=0,
            omp_number_threads=3,
        ),
        max_retry_timeout_s=0,
        client_timeout_ms=1500,
        job_queue_size=50,
        use_job_ticket=True,
        use_venv=False,
        continuous_batching=True,
        async_communication=False,
        sequence_batching=True,
        sequence_max_idle_ms=1000,
        sequence_timeout_ms=0,
        max_sequence_job_queue_size=10,
        max_num_sequence=4,
    )


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "null"])
def test_empty_file_counts_as_none(text: str) -> None:
    assert parse(text) == (None, [])


def test_file_of_handler_keys_only_is_a_configuration() -> None:
    assert parse("handler: {a: 1}") == (ModelFileConfig(), [])


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("minWorkers: 0", "min_workers", 1),
        ("batchSize: -3", "batch_size", 1),
        ("maxBatchDelay: 0", "max_batch_delay_ms", None),
        ("jobQueueSize: 0", "job_queue_size", None),
        ("maxWorkers: 0", "max_workers", 0),
        ("deviceType: CPU", "device_type", "cpu"),
        ("deviceIds: []", "device_ids", ()),
    ],
)
def test_rules_of_values(text: str, field: str, value: object) -> None:
    config, warnings = parse(text)
    assert getattr(config, field) == value
    assert warnings == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batchSize: '2'", "batchSize should be an integer >= 0, not '2' (str)"),
        ("batchSize: true", "batchSize should be an integer >= 0, not True (bool)"),
        ("batchSize: 2.0", "not 2.0 (float)"),
        ("batchSize: 99999999999", "not 99999999999 (int)"),
        ("batchSize: [1]", "not a list"),
        ("batchSize:", "not None (NoneType)"),
        ("maxWorkers: -1", "maxWorkers should be an integer >= 0"),
        ("maxBatchDelay: -1", "maxBatchDelay should be an integer >= 0 (milliseconds)"),
        ("responseTimeout: 0", "responseTimeout should be an integer >= 1 (seconds)"),
        ("maxNumSequence: 0", "maxNumSequence should be an integer >= 1"),
        ("useVenv: 'yes'", "useVenv should be true or false"),
        ("deviceType: tpu", "deviceType should be one of cpu, gpu"),
        ("workerStart: clone", "workerStart should be one of spawn, fork"),
        ("deviceIds: [0, -1]", "deviceIds should be a list of GPU numbers"),
        ("deviceIds: 0", "deviceIds should be a list of GPU numbers"),
        ("parallelType: dp", "parallelType should be one of pp, tp, pptp, custom"),
        ("torchrun: 4", "torchrun should be a map, not 4 (int)"),
        ("torchrun: {nproc-per-node: x}", "torchrun: nproc-per-node should be an integer >= 1"),
        ("torchrun: {max-restarts: 3}", "torchrun: unsupported parameter 'max-restarts'"),
    ],
)
def test_wrong_value_is_left_out_with_a_warning(text: str, expected: str) -> None:
    config, warnings = parse(f"# one\nhandler: {{}}\n{text}")
    assert config in (ModelFileConfig(), ModelFileConfig(torchrun=TorchRunConfig()))
    assert any(expected in warning for warning in warnings), warnings
    assert all(warning.startswith("model.yaml:3: ") for warning in warnings)


def test_the_warning_names_the_line_of_the_key_in_the_map_below() -> None:
    text = "parallelType: tp\ntorchrun:\n  nnodes: 1\n  nproc_per_node: 2\n"
    _, (warning,) = parse(text)
    assert warning == (
        "model.yaml:4: torchrun: unsupported parameter 'nproc_per_node' (str); ignored."
        " Did you mean nproc-per-node?"
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("BatchSize", "batchSize"),
        ("batch_size", "batchSize"),
        ("batch-size", "batchSize"),
        ("maxbatchdelay", "maxBatchDelay"),
        ("maxBatchDelays", "maxBatchDelay"),
        ("minWorker", "minWorkers"),
        ("torchRun", "torchrun"),
    ],
)
def test_slip_of_the_pen(key: str, meant: str) -> None:
    config, (warning,) = parse(f"{key}: 3")
    assert config == ModelFileConfig()
    assert f"did you mean {meant!r}?" in warning


@pytest.mark.parametrize("key", ["handler", "pippy", "deepspeed", "tp", "pt2", "workers", "1", "x"])
def test_keys_of_the_handler_pass_in_silence(key: str) -> None:
    assert parse(f"{key}: 3")[1] == []


@pytest.mark.parametrize(
    "text",
    [
        "torchrun: {nproc-per-node: 2}\nparallelType: tp\nparallelLevel: 4",
        "parallelLevel: 4\nparallelType: tp\ntorchrun: {nproc-per-node: 2}",
    ],
)
def test_order_of_keys_does_not_matter(text: str) -> None:
    config, (warning,) = parse(text)
    assert config is not None
    assert config.parallel_level == 2
    assert "gives way to torchrun" in warning


def test_parallel_level_needs_a_type() -> None:
    config, (warning,) = parse("parallelLevel: 4")
    assert config == ModelFileConfig()
    assert "no effect without parallelType" in warning


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a\n- b", "not a map"),
        ("just text", "not a map"),
        ("a: [", "no valid YAML"),
        ("a: 1\n\tb: 2", "no valid YAML"),
        ("? {a: 1}\n: 2", "no valid YAML"),
        ("!!python/object/apply:os.system ['true']", "no valid YAML"),
        ("batchSize: !!python/name:os.system", "no valid YAML"),
        ("a: !!int ''", "no valid YAML"),
        ("a: !!bool x", "no valid YAML"),
        ("a: !!timestamp x", "no valid YAML"),
        ("a: 2001-99-99", "no valid YAML"),
        ("a: 1\n---\nb: 2", "no valid YAML"),
        ("a: \0", "no valid YAML"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "{a: " * 5000, "nested too deeply"),
        ("a: " + "x" * MAX_CONFIG_BYTES, "characters, more than"),
    ],
)
def test_cve_2022_1471_unreadable_file_is_ignored(text: str, reason: str) -> None:
    config, (warning,) = parse(text)
    assert config is None
    assert warning.startswith("model.yaml: ignored")
    assert reason in warning
    assert "\n" not in warning


def _bomb(link: str) -> str:
    """Nine references to the map before, 12 times: 9 ** 12 keys if taken at its word."""
    lines = ["l0: &l0 {k0: 1, k1: 2}"]
    for i in range(1, 13):
        references = ", ".join([f"*l{i - 1}"] * 9)
        lines.append(f"l{i}: &l{i} {{{link}: [{references}]}}")
    return "\n".join(lines)


@pytest.mark.parametrize("link", ["'<<'", "<<", "k"])
def test_cve_2022_1471_alias_bomb(link: str) -> None:
    config, (warning,) = parse(_bomb(link))
    assert config is None
    assert "aliases" in warning or "merged keys" in warning


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!javax.script.Engine"]
)
def test_cve_2022_1471_a_tag_makes_no_object(tag: str) -> None:
    """SnakeYAML built whatever class a model's or a workflow's file named."""
    config, (warning,) = parse(f"batchSize: {tag} ['true']")
    assert config is None
    assert "no valid YAML" in warning


@pytest.mark.parametrize("text", ["&a [*a]", "batchSize: &a [*a]", "&a {<<: *a, batchSize: 2}"])
def test_file_that_holds_itself(text: str) -> None:
    parse(text)


@given(
    st.text(max_size=200)
    | st.lists(
        st.sampled_from(
            [
                "batchSize",
                ": ",
                "\n",
                "&a ",
                "*a",
                "[",
                "]",
                "{",
                "}",
                "!!int ",
                "<<",
                "-",
                "1",
                "'",
                "0x",
                "torchrun",
            ]
        )
    ).map("".join)
)
def test_any_text_parses_or_is_ignored(text: str) -> None:
    config, warnings = parse(text)
    assert config is None or isinstance(config, ModelFileConfig)
    assert all(isinstance(warning, str) for warning in warnings)


def test_what_becomes_of_failing_requests_and_worn_out_workers() -> None:
    config, warnings = parse(
        "idempotent: false\nworkerDeathRetries: 0\nisolateBatchFailures: false\n"
        "workerPingTimeoutInSec: 9\ncancelGraceInSec: 5\n"
        "maxWorkerRequests: 1000\nmaxWorkerAgeInSec: 3600\n"
        "maxWorkerMemoryInMB: 2048\n"
        "autoscaleWait: 50\n"
        "autoscaleIdleInSec: 30\n"
        "load: Lazy\n"
        "idleUnloadInSec: 600\n"
        "maxAddressSpaceInMB: 8192\n"
        "maxCpuTimeInSec: 3600\n"
        "maxOpenFiles: 256\n"
        "maxFileSizeInMB: 100\n"
        "ownTempFolder: true\n"
        "network: none\n"
        "noNewPrivileges: true\n"
    )
    assert warnings == []
    assert config == ModelFileConfig(
        idempotent=False,
        worker_death_retries=0,
        isolate_batch_failures=False,
        ping_timeout_s=9,
        cancel_grace_s=5,
        max_worker_requests=1000,
        max_worker_age_s=3600,
        max_worker_memory_mb=2048,
        autoscale_wait_ms=50,
        autoscale_idle_s=30,
        load="lazy",
        idle_unload_s=600,
        max_address_space_mb=8192,
        max_cpu_time_s=3600,
        max_open_files=256,
        max_file_size_mb=100,
        own_temp_folder=True,
        network="none",
        no_new_privileges=True,
    )


def test_tensors_of_a_model() -> None:
    config, warnings = parse(
        """
        inputs:
          - {name: image, datatype: FP32, shape: [-1, 3, 224, 224]}
          - {name: text, datatype: BYTES, shape: []}
        outputs: []
        """
    )
    assert warnings == []
    assert config is not None
    assert config.inputs == (
        TensorSpec("image", "FP32", (-1, 3, 224, 224)),
        TensorSpec("text", "BYTES", ()),
    )
    assert config.outputs == ()


@pytest.mark.parametrize(
    "text",
    [
        "inputs: {a: 1}",
        "inputs: [a]",
        "inputs: [{name: a, datatype: FP32}]",
        "inputs: [{name: a, datatype: FP32, shape: [1], more: 1}]",
        "inputs: [{name: 1, datatype: FP32, shape: [1]}]",
        "inputs: [{name: a, datatype: 32, shape: [1]}]",
        "inputs: [{name: a, datatype: FP32, shape: 1}]",
        "inputs: [{name: a, datatype: FP32, shape: [-2]}]",
        "inputs: [{name: a, datatype: FP32, shape: [true]}]",
        f"inputs: [{{name: a, datatype: FP32, shape: {[1] * 65}}}]",
        f"inputs: [{'{name: a, datatype: FP32, shape: [1]}, ' * 1001}]",
    ],
)
def test_tensors_that_mislead_are_left_out(text: str) -> None:
    config, warnings = parse(text)
    assert config == ModelFileConfig()
    assert len(warnings) == 1
    assert "inputs should be a list of tensors" in warnings[0]
