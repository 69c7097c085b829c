"""`load_settings`: from command line, environment and file to one `Settings`.

The file is, in this order: TS_CONFIG_FILE, `--ts-config`, the newest snapshot (unless
`--no-config-snapshots`), `config.properties` in the working directory, none. A single value is
taken from the environment (where enabled), else the command line, else the file, else its default.
All problems are collected, so that a person corrects them in one go.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ts_frontend.settings import checks, environment
from ts_frontend.settings.arguments import build_parser, setting_values
from ts_frontend.settings.properties import PropertiesError, Property, decode_text, parse_properties
from ts_frontend.settings.settings import (
    DEFAULT_ALLOWED_URLS,
    KEYS,
    ConfigurationError,
    Key,
    Settings,
)

# Written into snapshots by TorchServe; they describe the writer, not the configuration.
_INTERNAL_KEYS = frozenset(("version", "tsConfigFile"))
_SNAPSHOT_NAME = re.compile(r"\d{17}-(startup|snapshot|shutdown)\.cfg")


class _Value(NamedTuple):
    text: str
    origin: str


def load_settings(
    argv: Sequence[str],
    environ: Mapping[str, str],
    cwd: str,
    *,
    count_gpus: Callable[[Mapping[str, str]], int] = environment.detect_gpus,
) -> Settings:
    """The effective settings of a server started with these.

    argv: the arguments without the program's name.
    Raises ConfigurationError; SystemExit for a malformed command line, as argparse does.
    """
    arguments = build_parser().parse_args(argv)
    cwd = os.path.abspath(cwd)
    log_location = os.path.join(cwd, environ.get("LOG_LOCATION") or "logs")
    config_file = _find_config_file(
        arguments.ts_config, arguments.no_config_snapshots, environ, cwd, log_location
    )
    warnings: list[str] = []
    is_named = environ.get("TS_CONFIG_FILE") or arguments.ts_config
    if config_file and not is_named and _SNAPSHOT_NAME.search(config_file):
        warnings += _overlooked(config_file, cwd, arguments.models)
    entries = _read_file(config_file, warnings) if config_file else []
    from_file = {
        entry.key: _Value(entry.value, f"{config_file}:{entry.line}")
        for entry in entries
        if entry.key not in _INTERNAL_KEYS
    }
    from_flags = {key: _Value(*value) for key, value in setting_values(arguments).items()}
    from_environment = environment.environment_values(
        environ,
        is_enabled=_is_true(from_file, "enable_envvars_config")
        or _truth(environ.get("TS_ENABLE_ENVVARS_CONFIG", "")),
        is_allowed_urls_enabled=_is_true(from_file, "use_env_allowed_urls"),
    )
    warnings += environment.environment_warnings(environ, from_environment)

    problems: list[str] = []
    unknown = _unknown_keys(from_file, warnings)
    merged = {key: value for key, value in from_file.items() if key in KEYS}
    merged.update({key: _Value(text, f"flag {flag}") for key, (text, flag) in from_flags.items()})
    merged.update(
        {key: _Value(text, f"env {name}") for key, (text, name) in from_environment.items()}
    )
    values = _read_values(merged, environ, problems, warnings)
    for key in merged:
        if key in values and KEYS[key].is_path:
            values[key] = os.path.join(cwd, values[key])
    _check(values, merged, problems, warnings)
    if problems:
        raise ConfigurationError(*problems)
    log_config = _existing_file("--log-config", arguments.log_config, cwd)

    if not values.get("model_server_home"):
        values["model_server_home"] = os.path.join(cwd, environment.find_home(environ))
    values.setdefault("workflow_store", values.get("model_store"))
    if not values.get("metrics_config"):
        values["metrics_config"] = os.path.join(
            values["model_server_home"], "ts", "configs", "metrics.yaml"
        )
    # TorchServe lets TS_NUMBER_OF_GPU exceed what is there; workers then fail on a GPU that is not.
    found = count_gpus(environ)
    values["number_of_gpu"] = min(found, values.get("number_of_gpu", found))
    return Settings(
        **values,
        working_dir=cwd,
        temp_dir=environment.find_temp_dir(environ),
        log_location=log_location,
        metrics_location=os.path.join(cwd, environ.get("METRICS_LOCATION") or "logs"),
        log_config=log_config,
        log_levels=_read_log_levels(log_config, warnings) if log_config else {},
        no_config_snapshots=arguments.no_config_snapshots,
        ready_fd=arguments.ready_fd,
        config_file=config_file,
        unknown_keys=unknown,
        warnings=tuple(warnings),
        worker_environment=environment.worker_environment(
            environ, values.get("blacklist_env_vars", "")
        ),
        secret_environment=environment.secret_environment(environ),
        origins={key: value.origin for key, value in merged.items()},
    )


def _check(
    values: dict[str, Any],
    merged: Mapping[str, _Value],
    problems: list[str],
    warnings: list[str],
) -> None:
    """What the type of a value does not say; corrects `values` where a warning says so."""

    def origin(key: str) -> str:
        return merged[key].origin if key in merged else "default"

    one_by_one: dict[str, Callable[[Any], None]] = {
        "blacklist_env_vars": lambda pattern: checks.check_patterns([pattern]),
        "allowed_urls": checks.check_patterns,
        "unix_socket_mode": checks.check_mode,
        "inference_address": lambda text: checks.check_address("inference_address", text),
        "management_address": lambda text: checks.check_address("management_address", text),
        "metrics_address": lambda text: checks.check_address("metrics_address", text),
    }
    for key, check in one_by_one.items():
        try:
            check(values.get(key, KEYS[key].default))
        except ValueError as error:
            problems.append(f"{error} ({key} in {origin(key)})")
    if "models" in values:
        warnings += (
            f"{origin('models')}: {warning}" for warning in checks.model_warnings(values["models"])
        )
        values["models"] = checks.usable_models(values["models"])
    if not problems:
        found = checks.combination_problems(lambda key: values.get(key, KEYS[key].default), origin)
        problems += found[0]
        warnings += found[1]


def _find_config_file(
    flag: str | None,
    is_without_snapshots: bool,
    environ: Mapping[str, str],
    cwd: str,
    log_location: str,
) -> str | None:
    named = environ.get("TS_CONFIG_FILE") or flag
    if named:
        return _existing_file("--ts-config", named, cwd)
    if not is_without_snapshots and (
        snapshot := _newest_snapshot(os.path.join(log_location, "config"))
    ):
        return snapshot
    local = os.path.join(cwd, "config.properties")
    return local if os.path.isfile(local) else None


def _overlooked(snapshot: str, cwd: str, models: Sequence[str] | None) -> Iterator[str]:
    """What a person may expect to count, and which does not where a snapshot goes before it."""
    remedy = "start with --no-config-snapshots, or name the configuration with --ts-config."
    if models:
        yield f"--models is not used: the models are those of the snapshot {snapshot}; {remedy}"
    if os.path.isfile(os.path.join(cwd, "config.properties")):
        yield f"config.properties is not read: the snapshot {snapshot} goes before it; {remedy}"


def _newest_snapshot(folder: str) -> str | None:
    """By the time in the name: a copied folder has modification times in any order."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    snapshots = [name for name in names if _SNAPSHOT_NAME.fullmatch(name)]
    return os.path.join(folder, max(snapshots)) if snapshots else None


def _existing_file(flag: str, path: str | None, cwd: str) -> str | None:
    if not path:
        return None
    full = os.path.join(cwd, path)
    if not os.path.isfile(full):
        raise ConfigurationError(f"{flag} file not found: {path}")
    return full


_LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
    "OFF": logging.CRITICAL + 1,
}


def _read_log_levels(path: str, warnings: list[str]) -> dict[str, int]:
    """Lines of `logger=LEVEL`. TorchServe's own files are answered with what to write instead."""
    try:
        with open(path, "rb") as file:
            text = decode_text(file.read())
        entries = [] if text.lstrip().startswith("<") else parse_properties(text)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except PropertiesError as error:
        raise ConfigurationError(f"{path}:{error.line}: {error.reason}") from error
    if text.lstrip().startswith("<") or any(entry.key.startswith("log4j") for entry in entries):
        warnings.append(
            f"--log-config {path} is for log4j, TorchServe's Java logging, and has no effect. "
            "Write lines of logger=LEVEL instead, such as root=DEBUG or ACCESS_LOG=WARN; "
            "LOG_LOCATION and METRICS_LOCATION choose the folders (docs/configuration.md)."
        )
        return {}
    levels = {}
    for entry in entries:
        level = _LEVELS.get(entry.value.strip().upper())
        if level is None:
            warnings.append(
                f"{path}:{entry.line}: {entry.value!r} is not a level"
                f"{checks.did_you_mean(entry.value, _LEVELS)}"
            )
            continue
        levels["" if entry.key == "root" else entry.key] = level
    return levels


def _read_file(path: str, warnings: list[str]) -> list[Property]:
    try:
        with open(path, "rb") as file:
            entries = parse_properties(decode_text(file.read()))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except PropertiesError as error:
        raise ConfigurationError(f"{path}:{error.line}: {error.reason}") from error
    first: dict[str, int] = {}
    for entry in entries:
        if entry.key in first:
            warnings.append(
                f"{path}:{entry.line}: {entry.key} replaces the value of line {first[entry.key]}."
            )
        first[entry.key] = entry.line
    return entries


def _unknown_keys(from_file: Mapping[str, _Value], warnings: list[str]) -> dict[str, str]:
    unknown = {}
    for key, (text, origin) in from_file.items():
        if key not in KEYS:
            unknown[key] = text
            warnings.append(f"{origin}: {checks.unknown_key(key)}")
    return unknown


def _read_values(
    merged: Mapping[str, _Value],
    environ: Mapping[str, str],
    problems: list[str],
    warnings: list[str],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, (raw, origin) in merged.items():
        try:
            text = environment.substitute(raw, environ)
        except KeyError as error:
            problems.append(f"Invalid Environment Variable {error.args[0]} ({name} in {origin})")
            continue
        try:
            value = _READERS[KEYS[name].kind](KEYS[name], text)
        except ValueError as error:
            if name in _FALLBACKS:
                near = checks.nearest(text, KEYS[name].choices)
                hint = f" Did you mean {near}?" if near else ""
                warnings.append(
                    f"{origin}: {name} = {text!r} is not usable, {KEYS[name].default} is used."
                    f"{hint}"
                )
                continue
            problems.append(f"{error} ({name} in {origin})")
            continue
        if KEYS[name].kind == "flag" and text.strip().lower() not in ("true", "false", ""):
            warnings.append(
                f"{origin}: {name} = {text!r} means false; only `true` switches it on"
                f"{checks.did_you_mean(text.strip(), ('true', 'false'))}"
            )
        if value is not None:
            values[name] = value
    return values


# A bad value of these is replaced by the default, as TorchServe does; the server starts.
_FALLBACKS = frozenset(("token_expiration_min", "metrics_mode"))


def _truth(text: str) -> bool:
    return text.strip().lower() == "true"


def _is_true(values: Mapping[str, _Value], key: str) -> bool:
    return key in values and _truth(values[key].text)


def _read_flag(_key: Key, text: str) -> bool:
    return _truth(text)


def _read_text(key: Key, text: str) -> str | None:
    if key.is_secret:
        return text
    text = text.strip()
    if key.choices:
        text = re.sub(r"\s", "", text).lower()
        if text and text not in key.choices:
            near = checks.nearest(text, key.choices)
            raise ValueError(
                f'For input string: "{text}"; one of {", ".join(key.choices)} is expected'
                + (f"; did you mean {near}?" if near else "")
            )
    # An empty value means "none", as does a key that is absent.
    return text or None


def _read_int(key: Key, text: str) -> int:
    text = text.strip()
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(f'For input string: "{text}"; a whole number is expected')
    return int(_checked(key, int(text)))


def _read_number(key: Key, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f'For input string: "{text.strip()}"; a number is expected') from None
    if not math.isfinite(number) or (key.name == "token_expiration_min" and number <= 0):
        raise ValueError(f'For input string: "{text.strip()}"; a positive number is expected')
    return _checked(key, number)


def _checked(key: Key, number: float) -> float:
    if (key.minimum is not None and number < key.minimum) or (
        key.maximum is not None and number > key.maximum
    ):
        bounds = (
            f"at least {key.minimum:.15g}"
            if key.maximum is None
            else f"{key.minimum:.15g} to {key.maximum:.15g}"
        )
        raise ValueError(f'For input string: "{number}"; {bounds} is expected')
    return number


def _read_list(key: Key, text: str) -> tuple[str, ...] | None:
    items = tuple(item.strip() for item in text.split(",") if item.strip())
    return items or (DEFAULT_ALLOWED_URLS if key.name == "allowed_urls" else ())


def _read_json(_key: Key, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("a JSON object is expected")
    return value


_READERS: Mapping[str, Callable[[Key, str], Any]] = {
    "flag": _read_flag,
    "text": _read_text,
    "int": _read_int,
    "number": _read_number,
    "list": _read_list,
    "json": _read_json,
}
