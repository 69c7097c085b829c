"""`torchserve --rollout MODEL`: start a rollout at a running server and follow it, or look at it.

A client of the management API and no more: what it does, curl can do (docs/rollout.md). It ends
with the rollout; interrupting it leaves the rollout alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

OK = 0
UNDONE = 1  # rolled back or aborted
USAGE = 2  # argparse's own
REFUSED = 3
INTERRUPTED = 130

ENDED = ("DONE", "ROLLED_BACK", "ABORTED")
LOOK_INTERVAL_S = 0.5
TIMEOUT_S = 600  # an archive may have to be downloaded first


class Refused(Exception):
    """The server has said no, or is not there; `str(error)` is for the person at the terminal."""


class ManagementClient:
    """The rollouts of one model at one server; they come as in `RolloutItem`, decoded.

    key: of token authorization, "" for none.
    """

    def __init__(self, address: str, model: str, key: str = "") -> None:
        quoted = urllib.parse.quote(model, safe="")
        self._url = f"{address.rstrip('/')}/models/{quoted}/rollout"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def start(self, plan: dict[str, str]) -> Any:
        return self._ask("POST", json.dumps(plan).encode())

    def latest(self) -> Any:
        return self._ask("GET")[0]

    def abort(self) -> Any:
        return self._ask("DELETE")

    def _ask(self, method: str, body: bytes | None = None) -> Any:
        """Raises Refused."""
        if not self._url.startswith(("http://", "https://")):
            raise Refused(f"{self._url} is no http(s) address.")
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self._url, body, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["message"]
            raise Refused(f"{error.code}: {text}") from error
        except (OSError, ValueError) as error:
            raise Refused(f"{self._url}: {error}") from error


def describe(status: dict[str, Any]) -> str:
    """One line: where a rollout is and with what figures."""
    share = f" {status['percent']:g} %" if status["percent"] else ""
    text = f"{status['modelName']} {status['currentVersion']} -> {status['newVersion']}: "
    text += f"{status['state']}{share}"
    if status["state"] in ("SHADOW", "CANARY"):
        for title, name in (("new", "newVersion"), ("current", "currentVersion")):
            own = status["figures"][name]
            text += (
                f"; {title}: {own['requests']} requests, {own['failures']} failed, "
                f"p99 {own['p99Ms']:g} ms"
            )
    return text + (f" ({status['reason']})" if status.get("reason") else "")


def follow(client: ManagementClient, status: dict[str, Any]) -> int:
    """Print each step until the end; the exit status."""
    shown: tuple[object, ...] = ()
    while True:
        now = (status["state"], status["percent"], len(status["steps"]))
        if now != shown:
            print(describe(status), flush=True)
            shown = now
        if status["state"] in ENDED:
            return OK if status["state"] == "DONE" else UNDONE
        time.sleep(LOOK_INTERVAL_S)
        status = client.latest()


def parse_arguments(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="torchserve --rollout",
        usage="%(prog)s MODEL [--new-version VERSION | --url URL | --abort] [--set NAME=VALUE ...]",
        description="Let a new version take over step by step, with a way back. Without "
        "--new-version and --url: show the latest rollout. Exit status: 0 done, 1 rolled back or "
        "aborted, 3 refused.",
    )
    parser.add_argument("--rollout", required=True, metavar="MODEL", dest="model")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--new-version", metavar="VERSION", help="one that is registered")
    action.add_argument("--url", help="the archive of one that is not")
    action.add_argument("--abort", action="store_true", help="back to the old version")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of docs/rollout.md, as canary=5,25,50",
    )
    parser.add_argument("--management", default="http://127.0.0.1:8081", metavar="ADDRESS")
    parser.add_argument("--key-file", metavar="FILE", help="key_file.json of token authorization")
    parser.add_argument("--no-wait", action="store_true", help="do not follow it to its end")
    arguments = parser.parse_args(args)
    for pair in arguments.set:
        if "=" not in pair:
            parser.error(f"--set {pair}: NAME=VALUE is expected")
    return arguments


def read_key(path: str | None) -> str:
    """Raises Refused."""
    if path is None:
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file)["management"]["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path} has no management key: {error!r}") from error


def main(args: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(args)
    try:
        key = read_key(arguments.key_file)
        client = ManagementClient(arguments.management, arguments.model, key)
        if arguments.abort:
            status = client.abort()
        elif arguments.new_version or arguments.url:
            plan = dict(pair.split("=", 1) for pair in arguments.set)
            name = "url" if arguments.url else "version"
            status = client.start({**plan, name: arguments.url or arguments.new_version})
        else:
            print(json.dumps(client.latest(), indent=2))
            return OK
        if arguments.no_wait:
            print(describe(status))
            return OK
        ended = follow(client, status)
        return OK if arguments.abort else ended
    except Refused as refused:
        print(refused, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("The rollout goes on; --abort ends it.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
