"""The grammar of listening addresses (contract, HTTP section 1)."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from ts_frontend.core.errors import InvalidArgument

_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[^:^/]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]+))?"
    r"|unix:(?P<path>/.*)",
    re.IGNORECASE,
)

# Of an address without a port, for http and https.
DEFAULT_PORTS = {
    "inference_address": (80, 443),
    "management_address": (8081, 8444),
    "metrics_address": (8082, 8445),
}


class Address(NamedTuple):
    """Where a listener listens: a host and port, or the path of a Unix socket."""

    scheme: str  # "http", "https" or "unix"
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}"
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.scheme == "unix" or is_loopback(self.host)


def parse_address(text: str, default_port: int = 80, default_tls_port: int = 443) -> Address:
    """Read `http://host[:port]`, `https://host[:port]` or `unix:/path`.

    Beyond TorchServe's grammar an IPv6 address may stand in brackets.
    Raises InvalidArgument.
    """
    parsed = _ADDRESS.fullmatch(text)
    if parsed is None:
        raise InvalidArgument(f"Invalid binding address: {text}")
    if parsed["path"]:
        return Address("unix", path=parsed["path"])
    scheme = parsed["scheme"].lower()
    port = default_tls_port if scheme == "https" else default_port
    if parsed["port"]:
        port = int(parsed["port"][:6])
    if port >= 65535:
        raise InvalidArgument(f"Invalid port number: {parsed['port']}")
    return Address(scheme, parsed["host"].strip("[]"), port)


def is_loopback(host: str) -> bool:
    """Whether a host, by name or number, is this machine to itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
