"""`Restrictions`: what a worker takes from itself before it loads foreign code; the frontend says
what, in an environment variable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

RESTRICTIONS_VARIABLE = "TS_WORKER_RESTRICTIONS"


@dataclass(frozen=True)
class Restrictions:
    """0 and False: not restricted.

    address_space_bytes, cpu_s, open_files, file_bytes: RLIMIT_AS, _CPU, _NOFILE, _FSIZE.
    is_offline:      a network namespace of its own.
    is_unprivileged: PR_SET_NO_NEW_PRIVS.
    """

    address_space_bytes: int = 0
    cpu_s: int = 0
    open_files: int = 0
    file_bytes: int = 0
    is_offline: bool = False
    is_unprivileged: bool = False

    def to_variables(self) -> dict[str, str]:
        """For the worker's environment; {} where nothing is restricted."""
        return {} if self == Restrictions() else {RESTRICTIONS_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Restrictions:
        """Raises ValueError or TypeError for a text that `to_variables` has not written."""
        text = environ.get(RESTRICTIONS_VARIABLE)
        return cls(**json.loads(text)) if text else cls()
