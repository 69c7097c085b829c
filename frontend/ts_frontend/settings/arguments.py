"""The command line of `python -m ts_frontend`: that of `torchserve` without its verbs."""

from __future__ import annotations

import argparse


def build_parser() -> argparse.ArgumentParser:
    # Abbreviations off: a new flag must not change what a script's shortened one means.
    parser = argparse.ArgumentParser(
        prog="ts_frontend",
        description="The server process of TorchServe; `torchserve` starts it for you.",
        allow_abbrev=False,
    )
    parser.add_argument("-v", "--version", action="store_true", help="print the version and end")
    parser.add_argument(
        "--ts-config", metavar="FILE", help="configuration file (config.properties)"
    )
    parser.add_argument("--model-store", metavar="DIR", help="folder with the model archives")
    parser.add_argument("--workflow-store", metavar="DIR", help="folder with the workflow archives")
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help="models to load: [name=]location, or all"
    )
    parser.add_argument("--log-config", metavar="FILE", help="log levels: lines of logger=LEVEL")
    parser.add_argument(
        "--cpp-log-config", metavar="FILE", help="log configuration of the C++ backend"
    )
    parser.add_argument(
        "--no-config-snapshots",
        "--ncs",
        action="store_true",
        help="neither read nor write snapshots",
    )
    parser.add_argument(
        "--plugins-path", "--ppath", metavar="PATH", help="where plugins are looked for"
    )
    parser.add_argument(
        "--disable-token-auth",
        "--dt",
        action="store_true",
        help="serve without token authorization",
    )
    parser.add_argument(
        "--enable-model-api", action="store_true", help="allow models to be registered at run time"
    )
    parser.add_argument(
        "--check-config", action="store_true", help="print the effective configuration and end"
    )
    parser.add_argument("--ready-fd", type=int, metavar="FD", help=argparse.SUPPRESS)
    return parser


def setting_values(arguments: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """What the flags say, as `key -> (text, flag)`; a flag that was not given is absent."""
    texts = {
        "model_store": ("--model-store", arguments.model_store),
        "workflow_store": ("--workflow-store", arguments.workflow_store),
        "load_models": ("--models", ",".join(arguments.models) if arguments.models else None),
        "cpp_log_config": ("--cpp-log-config", arguments.cpp_log_config),
        "plugins_path": ("--plugins-path", arguments.plugins_path),
        # These two can only switch in one direction.
        "disable_token_authorization": (
            "--disable-token-auth",
            "true" if arguments.disable_token_auth else None,
        ),
        "enable_model_api": ("--enable-model-api", "true" if arguments.enable_model_api else None),
    }
    return {key: (text, flag) for key, (flag, text) in texts.items() if text is not None}
