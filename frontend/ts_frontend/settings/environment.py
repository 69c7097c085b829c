"""What the settings take from the process's surroundings: variables, folders, GPUs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from ts_frontend.settings.settings import KEYS, ConfigurationError

_SUBSTITUTION = re.compile(r"\$\$([^$]+)\$\$")
_SMI_TIMEOUT_S = 20  # a cold driver takes seconds to answer


def substitute(text: str, environ: Mapping[str, str]) -> str:
    """`text` with each `$$NAME$$` replaced by the variable NAME.

    Raises KeyError(NAME) if that is not set.
    """
    return _SUBSTITUTION.sub(lambda match: environ[match[1]], text)


def environment_values(
    environ: Mapping[str, str], *, is_enabled: bool, is_allowed_urls_enabled: bool
) -> dict[str, tuple[str, str]]:
    """The keys that variables set, as `key -> (text, variable)`."""
    values = {}
    for key in KEYS.values():
        variable = key.environment
        if not variable or variable not in environ:
            continue
        is_wanted = is_enabled or key.is_always_from_environment
        if key.name == "allowed_urls":
            is_wanted = is_enabled and is_allowed_urls_enabled
        if is_wanted:
            values[key.name] = (environ[variable], variable)
    return values


def environment_warnings(
    environ: Mapping[str, str], used: Mapping[str, tuple[str, str]]
) -> Iterator[str]:
    """Variables that look like settings and have no effect."""
    by_variable = {key.environment: key for key in KEYS.values() if key.environment}
    for name in sorted(environ):
        if name in by_variable:
            key = by_variable[name]
            if key.name in used:
                continue
            switch = "enable_envvars_config"
            if key.name == "allowed_urls":
                switch = "use_env_allowed_urls"
            yield f"The environment variable {name} is ignored: the file has no {switch}=true."
        # Applications have TS_ variables of their own, so only a near miss is worth a word.
        elif (
            name.startswith("TS_")
            and name not in TOKEN_KEYS.values()
            and (near := get_close_matches(name, by_variable, 1, 0.9))
        ):
            yield f"The environment variable {name} is not a setting; did you mean {near[0]}?"


# The keys of token authorization: for the frontend alone, whatever blacklist_env_vars says.
TOKEN_KEYS = {
    "management": "TS_MANAGEMENT_KEY",
    "inference": "TS_INFERENCE_KEY",
    "API": "TS_API_KEY",
}
_AWS = re.compile(r"AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|(DEFAULT_)?REGION)")


def worker_environment(environ: Mapping[str, str], hidden_names: str) -> dict[str, str]:
    """What workers inherit: all variables but the keys of token authorization and those whose
    whole name matches `hidden_names`.
    """
    hidden = re.compile(hidden_names) if hidden_names else None
    return {
        name: value
        for name, value in environ.items()
        if name not in TOKEN_KEYS.values() and not (hidden and hidden.fullmatch(name))
    }


def secret_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the frontend itself needs: the keys of token authorization, AWS credentials."""
    return {
        name: value
        for name, value in environ.items()
        if value and (name in TOKEN_KEYS.values() or _AWS.fullmatch(name))
    }


def find_temp_dir(environ: Mapping[str, str]) -> str:
    temp_dir = environ.get("TEMP") or environ.get("TMPDIR") or tempfile.gettempdir()
    if not os.path.isdir(temp_dir):
        raise ConfigurationError(
            f"Invalid temp directory: {temp_dir}, please check TEMP environment variable."
        )
    return os.path.abspath(temp_dir)


def find_home(environ: Mapping[str, str]) -> str:
    """The folder that contains the package `ts`, found without importing it."""
    if home := environ.get("TS_MODEL_SERVER_HOME"):
        return home
    spec = importlib.util.find_spec("ts")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return os.path.dirname(os.path.abspath(places[0])) if places else os.getcwd()


def detect_gpus(environ: Mapping[str, str]) -> int:
    """How many GPUs workers may see.

    CUDA_VISIBLE_DEVICES decides where it is set; as in CUDA, the list ends at the first entry
    that is not a device. Otherwise `nvidia-smi` is asked, if there is one. torch would know better,
    but is not imported here.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = 0
        for device in visible.split(","):
            if not re.fullmatch(r"\s*(\d+|(GPU|MIG)-\S+)\s*", device):
                break
            count += 1
        return count
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if tool is None:
        return 0
    try:
        listing = subprocess.run(  # noqa: S603  (a tool of the system, without arguments from outside)
            [tool, "-L"], capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0  # the tool without its driver
    return len(re.findall(r"^GPU \d+:", listing.stdout, re.MULTILINE))
