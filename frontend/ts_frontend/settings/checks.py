"""What is wrong with a configuration beyond the type of one value, in words that help.

`Checked` gathers problems (the server does not start) and warnings (it does), each with the place
where the value was set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

from ts_frontend.core.errors import InvalidArgument
from ts_frontend.settings.addresses import DEFAULT_PORTS, Address, parse_address
from ts_frontend.settings.amounts import memory_budget_bytes
from ts_frontend.settings.settings import KEYS, ConfigurationError

UNKNOWN = "is not a known key and has no effect"

# Keys of a version in the `models` property (contract, config section 5).
_COUNTS = (
    "minWorkers",
    "maxWorkers",
    "batchSize",
    "maxBatchDelay",
    "responseTimeout",
    "startupTimeout",
)
_MODEL_KEYS = (*_COUNTS, "runtimeType", "defaultVersion", "marName", "parallelLevel")
# Where people look for what is set per model.
_PER_MODEL = frozenset(_MODEL_KEYS) | {
    "deviceType",
    "deviceIds",
    "parallelType",
    "clientTimeoutInMills",
    "maxRetryTimeoutInSec",
    "useVenv",
    "useJobTicket",
    "continuousBatching",
    "sequenceBatching",
    "asyncCommunication",
}


def nearest(word: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """The known word that was probably meant; case, `-`, `.` and camel case do not count."""
    folded = {fold(name): name for name in known}
    found = get_close_matches(fold(word), folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """The end of a sentence: a question with the nearest word, else a full stop."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else "."


def fold(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_PER_MODEL_FOLDED = {fold(name): name for name in _PER_MODEL}


def unknown_key(name: str) -> str:
    """What to say of a key that the server does not know."""
    said = f"{name} {UNKNOWN}"
    as_variable = name.upper()
    for key in KEYS.values():
        if key.environment == as_variable:
            return f"{said}; did you mean {key.name}?"
    if fold(name) in _PER_MODEL_FOLDED:
        return (
            f"{said}; {_PER_MODEL_FOLDED[fold(name)]} is set per model, in its model-config.yaml "
            "or in the key models."
        )
    return said + did_you_mean(name, KEYS)


def check_patterns(patterns: Collection[str]) -> None:
    """Raises ValueError for the first that is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def check_address(key: str, text: str) -> None:
    """Raises ValueError."""
    try:
        parse_address(text, *DEFAULT_PORTS[key])
    except InvalidArgument as error:
        raise ValueError(
            f"{error.message}; http://host:port, https://host:port or unix:/path is expected"
        ) from error


def check_mode(text: str) -> None:
    """Raises ValueError for what are not the permissions of a socket."""
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f'For input string: "{text}"; three octal digits are expected')


def model_warnings(models: Mapping[str, Any]) -> list[str]:
    """What is odd in the `models` property; the server leaves such values out."""
    warnings = []
    for name, versions in models.items():
        if not isinstance(versions, Mapping):
            warnings.append(f"models: {name} should be an object of versions; ignored.")
            continue
        for version, values in versions.items():
            where = f"models: {name} {version}"
            if not isinstance(values, Mapping):
                warnings.append(f"{where} should be an object; ignored.")
                continue
            warnings += _version_warnings(where, values)
    return warnings


def _version_warnings(where: str, values: Mapping[str, Any]) -> list[str]:
    warnings = []
    for key, value in values.items():
        if key not in _MODEL_KEYS:
            hint = did_you_mean(key, _MODEL_KEYS)
            warnings.append(f"{where}: {key} {UNKNOWN}{hint}")
        elif key in _COUNTS and (type(value) is not int or value <= 0):
            warnings.append(f"{where}: {key} should be a whole number above 0; ignored.")
    low, high = values.get("minWorkers"), values.get("maxWorkers")
    if type(low) is int and type(high) is int and high < low:
        warnings.append(f"{where}: maxWorkers {high} is less than minWorkers {low}.")
    return warnings


def usable_models(models: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """`models` without what `model_warnings` calls ignored."""
    return {
        name: {
            version: {
                key: value
                for key, value in values.items()
                if key not in _COUNTS or (type(value) is int and value > 0)
            }
            for version, values in versions.items()
            if isinstance(values, Mapping)
        }
        for name, versions in models.items()
        if isinstance(versions, Mapping)
    }


# Keys for what TorchServe has and this server has not; a snapshot of TorchServe names the first.
_NOT_SERVED = {
    "workflow_store": "workflows",
    "plugins_path": "plugins",
    "cpp_log_config": "C++ backend",
}


def combination_problems(
    value: Callable[[str], Any], origin: Callable[[str], str]
) -> tuple[list[str], list[str]]:
    """(problems, warnings) of values that are fine alone and not together.

    value, origin: of a key, as read or its default.
    """

    def at(key: str) -> str:
        return f"{key} in {origin(key)}"

    problems, warnings = [], []
    taken: dict[tuple[str, int] | str, str] = {}
    for key, place in _places(value).items():
        other = taken.setdefault(place, key)
        # These two on one address are one listener for both APIs.
        if other != key and (other, key) != ("inference_address", "management_address"):
            problems.append(f"{at(key)} is the address of {at(other)}; each needs its own.")
    certificate, private_key = value("certificate_file"), value("private_key_file")
    if bool(certificate) != bool(private_key):
        given, missing = "certificate_file", "private_key_file"
        if private_key:
            given, missing = missing, given
        problems.append(f"{at(given)} needs {missing}, too.")
    if value("keystore") and certificate:
        warnings.append(f"{at('certificate_file')} has no effect: the keystore goes before it.")
    for unserved, what in _NOT_SERVED.items():
        if value(unserved) and value(unserved) != value("model_store"):
            warnings.append(f"{at(unserved)} has no effect: this server has no {what}.")
    if value("archive_checksums_key") and not value("archive_checksums"):
        problems.append(f"{at('archive_checksums_key')} needs archive_checksums, too.")
    try:
        memory_budget_bytes(value("model_memory_budget"))
    except ConfigurationError as error:
        problems.append(f"{error.problems[0]} ({origin('model_memory_budget')}).")
    return problems, warnings


def _places(value: Callable[[str], Any]) -> dict[str, tuple[str, int] | str]:
    """Where each listener is going to listen; a port of 0 is nobody else's."""
    addresses: dict[str, Address] = {
        key: parse_address(value(key), *ports) for key, ports in DEFAULT_PORTS.items()
    }
    if not value("enable_metrics_api"):
        del addresses["metrics_address"]
    places: dict[str, tuple[str, int] | str] = {}
    for key, address in addresses.items():
        if address.path:
            places[key] = address.path
        elif address.port:
            places[key] = (address.host, address.port)
    if value("enable_grpc"):
        for api in ("inference", "management"):
            if port := value(f"grpc_{api}_port"):
                places[f"grpc_{api}_port"] = (value(f"grpc_{api}_address"), port)
    return places
