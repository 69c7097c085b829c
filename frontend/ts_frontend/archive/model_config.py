"""The frontend's part of a model's YAML configuration (manifest key `configFile`).

A mistake in this file never stops a model: the value is left out and a warning says what was
expected. Keys that are not ours belong to the handler and pass in silence, unless one looks like a
slip of the pen.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import yaml

from ts_frontend.archive.self_test import SelfTestMistake, WarmUpItem, parse_items
from ts_frontend.core.model import TensorSpec

MAX_CONFIG_BYTES = 256 << 10
# YAML's aliases and merge keys let a short file stand for a huge one.
MAX_ALIASES = 100
MAX_MERGED_KEYS = 10_000
_MAX_INT = 2**31 - 1
_MAX_TENSORS = 1000
_MAX_DIMENSIONS = 64
_NEAR_MISS = 0.85  # difflib ratio; `handler`, `pippy` and the like stay far below it


class TorchRunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How torchrun starts the ranks of one worker."""

    nnodes: int = 1
    nproc_per_node: int = 1
    rdzv_backend: str = "c10d"
    rdzv_endpoint: str = ""
    rdzv_conf: str = ""
    monitor_interval_s: int | None = None  # torchrun's own
    node_rank: int | None = None
    omp_number_threads: int = 1


class ModelFileConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The values of a configuration file; None means that the file does not say.

    That a file was there at all matters too (its unset timeouts count as 120 s), which is why an
    archive without one has None in place of this object.
    """

    min_workers: int | None = None
    max_workers: int | None = None
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    response_timeout_s: int | None = None
    startup_timeout_s: int | None = None
    device_type: str | None = None  # "cpu" or "gpu"
    device_ids: tuple[int, ...] | None = None  # not yet compared with the GPUs of this machine
    parallel_type: str | None = None  # "pp", "tp", "pptp" or "custom"
    parallel_level: int | None = None  # only together with parallel_type
    torchrun: TorchRunConfig | None = None
    max_retry_timeout_s: int | None = None
    client_timeout_ms: int | None = None  # 0: no limit
    job_queue_size: int | None = None
    use_job_ticket: bool | None = None
    use_venv: bool | None = None
    continuous_batching: bool | None = None
    async_communication: bool | None = None
    sequence_batching: bool | None = None
    sequence_max_idle_ms: int | None = None
    sequence_timeout_ms: int | None = None  # 0: no limit
    max_sequence_job_queue_size: int | None = None
    max_num_sequence: int | None = None
    batching: str | None = None  # "dynamic" or "adaptive"
    target_latency_ms: int | None = None
    idempotent: bool | None = None
    worker_death_retries: int | None = None
    isolate_batch_failures: bool | None = None
    ping_timeout_s: int | None = None
    cancel_grace_s: int | None = None  # 0: no limit, here and below
    max_worker_requests: int | None = None
    max_worker_age_s: int | None = None
    max_worker_memory_mb: int | None = None
    autoscale_wait_ms: int | None = None
    autoscale_idle_s: int | None = None
    load: str | None = None  # "lazy" or "eager"
    idle_unload_s: int | None = None  # 0: never
    worker_start: str | None = None  # "spawn" or "fork"
    max_address_space_mb: int | None = None
    max_cpu_time_s: int | None = None
    max_open_files: int | None = None
    max_file_size_mb: int | None = None
    own_temp_folder: bool | None = None
    network: str | None = None  # "host" or "none"
    no_new_privileges: bool | None = None
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    warm_up: tuple[WarmUpItem, ...] | str | None = None  # text: what is wrong with it


class Note(str):
    """A warning about values that are understood and do not count together.

    Every other warning is about a mistake: what it names is left out.
    """

    __slots__ = ()


class _Refused(Exception):
    """The value is not what the key wants; the text names what it wants."""


class _Key(NamedTuple):
    field: str
    read: Callable[[Any], Any]  # raises _Refused; None counts as not given


def _integer(
    unit: str = "", *, minimum: int = 0, raised_to: int | None = None, zero_is_unset: bool = False
) -> Callable[[Any], int | None]:
    """A reader of whole numbers: below `minimum` is refused, below `raised_to` is raised."""
    expected = f"an integer >= {minimum}{unit}"

    def read(value: Any) -> int | None:
        # bool is an int to Python, but `batchSize: true` is a mistake.
        if type(value) is not int or not -_MAX_INT <= value <= _MAX_INT:
            raise _Refused(expected)
        if raised_to is not None:
            return max(raised_to, value)
        if value < minimum:
            raise _Refused(expected)
        return None if zero_is_unset and value == 0 else value

    return read


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Refused("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused("text")
    return value


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise _Refused(f"one of {', '.join(words)}")
        return value.lower()

    return read


def _device_ids(value: Any) -> tuple[int, ...]:
    # One bad id drops the list: a model on the wrong GPU is worse than one on the default.
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 1024 for i in value):
        raise _Refused("a list of GPU numbers")
    return tuple(value)


def _tensors(value: Any) -> tuple[TensorSpec, ...]:
    """What a model takes or gives, for the clients that ask: all of it, or none that misleads."""
    expected = "a list of tensors, each with name, datatype and shape (a list; -1: any length)"
    if not isinstance(value, list) or len(value) > _MAX_TENSORS:
        raise _Refused(expected)
    specs = []
    for item in value:
        if not isinstance(item, dict) or item.keys() != {"name", "datatype", "shape"}:
            raise _Refused(expected)
        name, datatype, shape = item["name"], item["datatype"], item["shape"]
        if not isinstance(name, str) or not isinstance(datatype, str):
            raise _Refused(expected)
        if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
            raise _Refused(expected)
        if not all(type(length) is int and -1 <= length <= _MAX_INT for length in shape):
            raise _Refused(expected)
        specs.append(TensorSpec(name, datatype, tuple(shape)))
    return tuple(specs)


def _warm_up(value: Any) -> tuple[WarmUpItem, ...] | str:
    try:
        return parse_items(value)
    except SelfTestMistake as mistake:
        return str(mistake)


_TORCHRUN_KEYS = {
    "nnodes": _Key("nnodes", _integer(minimum=1)),
    "nproc-per-node": _Key("nproc_per_node", _integer(minimum=1)),
    "rdzv-backend": _Key("rdzv_backend", _text),
    "rdzv-endpoint": _Key("rdzv_endpoint", _text),
    "rdzv-conf": _Key("rdzv_conf", _text),
    "monitor-interval": _Key("monitor_interval_s", _integer(" (seconds)", minimum=1)),
    "node-rank": _Key("node_rank", _integer()),
    "OMP_NUMBER_THREADS": _Key("omp_number_threads", _integer(minimum=1)),
}

_KEYS = {
    "minWorkers": _Key("min_workers", _integer(raised_to=1)),
    "maxWorkers": _Key("max_workers", _integer()),
    "batchSize": _Key("batch_size", _integer(raised_to=1)),
    "maxBatchDelay": _Key("max_batch_delay_ms", _integer(" (milliseconds)", zero_is_unset=True)),
    "responseTimeout": _Key("response_timeout_s", _integer(" (seconds)", minimum=1)),
    "startupTimeout": _Key("startup_timeout_s", _integer(" (seconds)", minimum=1)),
    "deviceType": _Key("device_type", _one_of("cpu", "gpu")),
    "deviceIds": _Key("device_ids", _device_ids),
    "parallelType": _Key("parallel_type", _one_of("pp", "tp", "pptp", "custom")),
    "parallelLevel": _Key("parallel_level", _integer(zero_is_unset=True)),
    "maxRetryTimeoutInSec": _Key("max_retry_timeout_s", _integer(" (seconds)")),
    "clientTimeoutInMills": _Key("client_timeout_ms", _integer(" (milliseconds)")),
    "jobQueueSize": _Key("job_queue_size", _integer(zero_is_unset=True)),
    "useJobTicket": _Key("use_job_ticket", _boolean),
    "useVenv": _Key("use_venv", _boolean),
    "continuousBatching": _Key("continuous_batching", _boolean),
    "asyncCommunication": _Key("async_communication", _boolean),
    "sequenceBatching": _Key("sequence_batching", _boolean),
    "sequenceMaxIdleMSec": _Key("sequence_max_idle_ms", _integer(" (milliseconds)")),
    "sequenceTimeoutMSec": _Key("sequence_timeout_ms", _integer(" (milliseconds)")),
    "maxSequenceJobQueueSize": _Key("max_sequence_job_queue_size", _integer(minimum=1)),
    "maxNumSequence": _Key("max_num_sequence", _integer(minimum=1)),
    # Ours: how batches are formed.
    "batching": _Key("batching", _one_of("dynamic", "adaptive")),
    "targetLatency": _Key("target_latency_ms", _integer(" (milliseconds)", minimum=1)),
    # Ours: requests whose worker fails, and workers that are replaced.
    "idempotent": _Key("idempotent", _boolean),
    "workerDeathRetries": _Key("worker_death_retries", _integer()),
    "isolateBatchFailures": _Key("isolate_batch_failures", _boolean),
    "workerPingTimeoutInSec": _Key("ping_timeout_s", _integer(" (seconds)", minimum=1)),
    "cancelGraceInSec": _Key("cancel_grace_s", _integer(" (seconds)")),
    "maxWorkerRequests": _Key("max_worker_requests", _integer()),
    "maxWorkerAgeInSec": _Key("max_worker_age_s", _integer(" (seconds)")),
    "maxWorkerMemoryInMB": _Key("max_worker_memory_mb", _integer(" (MiB)")),
    # Ours: how many workers there are, and whether there are any.
    "autoscaleWait": _Key("autoscale_wait_ms", _integer(" (milliseconds)", minimum=1)),
    "autoscaleIdleInSec": _Key("autoscale_idle_s", _integer(" (seconds)", minimum=1)),
    "load": _Key("load", _one_of("lazy", "eager")),
    "idleUnloadInSec": _Key("idle_unload_s", _integer(" (seconds)")),
    # Ours: how a worker's process comes to be, and what it may do and take.
    "workerStart": _Key("worker_start", _one_of("spawn", "fork")),
    "maxAddressSpaceInMB": _Key("max_address_space_mb", _integer(" (MiB)")),
    "maxCpuTimeInSec": _Key("max_cpu_time_s", _integer(" (seconds)")),
    "maxOpenFiles": _Key("max_open_files", _integer()),
    "maxFileSizeInMB": _Key("max_file_size_mb", _integer(" (MiB)")),
    "ownTempFolder": _Key("own_temp_folder", _boolean),
    "network": _Key("network", _one_of("host", "none")),
    "noNewPrivileges": _Key("no_new_privileges", _boolean),
    # Ours: what the Open Inference API tells of the model and holds requests to.
    "inputs": _Key("inputs", _tensors),
    "outputs": _Key("outputs", _tensors),
    # Ours: requests that each worker answers before it serves.
    "warmup": _Key("warm_up", _warm_up),
}


def parse_model_config(text: str, source: str) -> tuple[ModelFileConfig | None, list[str]]:
    """The frontend's values and the warnings about the rest: mistakes, and each `Note`.

    source: the file's name, for the warnings.
    None in place of the values: the file is empty, or not readable as a YAML map (with a warning).
    """
    if len(text) > MAX_CONFIG_BYTES:
        size = f"{len(text)} characters, more than {MAX_CONFIG_BYTES}"
        return None, [f"{source}: ignored, since it has {size}."]
    try:
        content, lines = _BoundedLoader(text).read()
    except RecursionError:
        return None, [f"{source}: ignored, since it is nested too deeply."]
    # PyYAML lets KeyError, IndexError and more out of its constructors for odd scalars.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return None, [f"{source}: ignored, since it is no valid YAML: {reason}"]
    if content is None:
        return None, []
    if not isinstance(content, dict):
        return None, [f"{source}: ignored, since it is not a map of keys to values."]

    warnings: list[str] = []
    places = _Places(source, lines)
    values = _read_keys(content, _KEYS, places, warnings)
    _warn_of_near_misses(content, places, warnings)
    if "torchrun" in content:
        values["torchrun"] = _read_torchrun(content["torchrun"], places, warnings)
    _settle_parallel_level(values, places, warnings)
    return ModelFileConfig(**values), warnings


def stated_values(config: ModelFileConfig) -> dict[str, Any]:
    """What the file says, under the names that its keys have there, as values for JSON."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    if torchrun := values.pop("torchrun"):
        torchrun = {name: torchrun[key.field] for name, key in _TORCHRUN_KEYS.items()}
    values = {name: values[key.field] for name, key in _KEYS.items()} | {"torchrun": torchrun}
    return {name: value for name, value in values.items() if value is not None}


class _Places(NamedTuple):
    """Where the keys of the file stand, for the warnings."""

    source: str
    lines: Mapping[tuple[str, ...], int]
    above: tuple[str, ...] = ()

    def of(self, name: str) -> str:
        """`model-config.yaml:3`, with the map that the key is in."""
        line = self.lines.get((*self.above, name))
        where = self.source if line is None else f"{self.source}:{line}"
        return ": ".join((where, *self.above))

    def below(self, name: str) -> _Places:
        return self._replace(above=(*self.above, name))


def _read_keys(
    content: dict[Any, Any], keys: dict[str, _Key], places: _Places, warnings: list[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, key in keys.items():
        if name not in content:
            continue
        value = content[name]
        try:
            values[key.field] = key.read(value)
        except _Refused as expected:
            warnings.append(
                f"{places.of(name)}: {name} should be {expected}, not {_show(value)}; ignored."
            )
    return values


def _read_torchrun(value: Any, places: _Places, warnings: list[str]) -> TorchRunConfig | None:
    if not isinstance(value, dict):
        warnings.append(
            f"{places.of('torchrun')}: torchrun should be a map, not {_show(value)}; ignored."
        )
        return None
    inner = places.below("torchrun")
    for name in value:
        if name not in _TORCHRUN_KEYS:
            near = difflib.get_close_matches(str(name)[:64], _TORCHRUN_KEYS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            where = inner.of(name) if isinstance(name, str) else inner.of("")
            warnings.append(f"{where}: unsupported parameter {_show(name)}; ignored.{hint}")
    return TorchRunConfig(**_read_keys(value, _TORCHRUN_KEYS, inner, warnings))


def _settle_parallel_level(values: dict[str, Any], places: _Places, warnings: list[str]) -> None:
    """One answer to how many ranks a worker has, whatever the order of the keys in the file."""
    torchrun: TorchRunConfig | None = values.get("torchrun")
    level = values.get("parallel_level")
    where = places.of("torchrun" if level is None else "parallelLevel")
    if torchrun is not None:
        if level not in (None, torchrun.nproc_per_node):
            text = (
                f"{where}: parallelLevel {level} gives way to torchrun's nproc-per-node"
                f" {torchrun.nproc_per_node}, the number of processes that are started."
            )
            warnings.append(Note(text))
        level = torchrun.nproc_per_node
    if level is not None and values.get("parallel_type") is None:
        warnings.append(Note(f"{where}: parallelLevel has no effect without parallelType."))
        level = None
    values["parallel_level"] = level


def _warn_of_near_misses(content: dict[Any, Any], places: _Places, warnings: list[str]) -> None:
    known = {_fold(name): name for name in (*_KEYS, "torchrun")}
    for name in content:
        if not isinstance(name, str) or name in _KEYS or name == "torchrun" or len(name) > 64:
            continue
        for near in difflib.get_close_matches(_fold(name), known, n=1, cutoff=_NEAR_MISS):
            warnings.append(
                f"{places.of(name)}: unknown key {name!r} is left to the handler;"
                f" did you mean {known[near]!r}?"
            )


def _fold(name: str) -> str:
    return name.replace("-", "").replace("_", "").casefold()


def _show(value: Any) -> str:
    """The value for a warning: with its type, and short. Containers may hold themselves."""
    kind = type(value).__name__
    if isinstance(value, (dict, list, set, tuple)):
        return f"a {kind}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({kind})"


def _key_lines(node: yaml.Node, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    lines: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines[(*above, key.value)] = key.start_mark.line + 1
                if not above:
                    lines.update(_key_lines(value, (key.value,)))
    return lines


class _BoundedLoader(yaml.SafeLoader):
    """SafeLoader that stops counting on the good will of aliases and merge keys.

    It is the pure Python one on purpose: deep nesting ends it with RecursionError, where the C
    parser's composer would overflow the stack.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._aliases = 0

    def read(self) -> tuple[Any, dict[tuple[str, ...], int]]:
        """The document, and the line (from 1) of each key of its map and of the maps in it."""
        try:
            node = self.get_single_node()
            if node is None:
                return None, {}
            return self.construct_document(node), _key_lines(node)
        finally:
            self.dispose()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MAX_ALIASES:
                raise yaml.YAMLError(f"more than {MAX_ALIASES} aliases")
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_MERGED_KEYS:
            raise yaml.YAMLError(f"a map of more than {MAX_MERGED_KEYS} merged keys")
