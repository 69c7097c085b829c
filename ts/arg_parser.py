"""The command lines of `torchserve` and of a worker process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


class ArgParser:
    """A name that scripts import; there is nothing to instantiate."""

    @staticmethod
    def ts_parser() -> argparse.ArgumentParser:
        """The command line of `torchserve`."""
        parser = argparse.ArgumentParser(
            prog="torchserve",
            description="Torchserve: serve models",
            epilog="To try a model without a server: torchserve --try MODEL --input FILE; "
            "more with torchserve --try MODEL --help. To let a new version of a model take over "
            "in a running server: torchserve --rollout MODEL --help.",
        )
        action = parser.add_mutually_exclusive_group(required=False)
        action.add_argument(
            "-v", "--version", action="store_true", help="print the version of TorchServe and end"
        )
        action.add_argument(
            "--start", action="store_true", help="start the server (this is also the default)"
        )
        action.add_argument("--stop", action="store_true", help="stop the server")
        action.add_argument(
            "--check-config",
            action="store_true",
            help="print the effective configuration with the place of each value, and end with "
            "status 1 if something is wrong with it",
        )
        parser.add_argument(
            "--ts-config",
            metavar="FILE",
            help="configuration file; the environment variable TS_CONFIG_FILE wins over it",
        )
        parser.add_argument(
            "--model-store",
            metavar="DIR",
            help="folder with the model archives; required here or in the configuration file",
        )
        parser.add_argument(
            "--workflow-store",
            metavar="DIR",
            help="folder with the workflow archives; the model store if not given",
        )
        parser.add_argument(
            "--models",
            nargs="+",
            metavar="MODEL",
            help="models to load at start: all, or [name=]location ...",
        )
        parser.add_argument(
            "--log-config", metavar="FILE", help="log levels: lines of logger=LEVEL"
        )
        parser.add_argument(
            "--cpp-log-config", metavar="FILE", help="log configuration of the C++ backend"
        )
        parser.add_argument(
            "--foreground",
            action="store_true",
            help="with --start: end when the server ends; with --stop: wait until it has ended",
        )
        parser.add_argument(
            "--no-config-snapshots",
            "--ncs",
            action="store_true",
            help="neither read nor write snapshots of the configuration",
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
            "--enable-model-api",
            action="store_true",
            help="allow models to be registered and unregistered at run time",
        )
        return parser

    @staticmethod
    def extract_args(args: Sequence[str] | None = None) -> argparse.Namespace:
        """The flags of `torchserve` in `args`, by default those of this process."""
        return ArgParser.ts_parser().parse_args(args)

    @staticmethod
    def model_service_worker_args() -> argparse.ArgumentParser:
        """The command line of a worker process."""
        parser = argparse.ArgumentParser(
            prog="model-server-worker", description="Model server worker"
        )
        parser.add_argument(
            "--sock-type",
            required=True,
            dest="sock_type",
            choices=["unix", "tcp"],
            help="kind of socket to listen on",
        )
        parser.add_argument("--sock-name", dest="sock_name", help="socket file, for unix")
        parser.add_argument("--host", help="address to listen on, for tcp; 127.0.0.1 if not given")
        parser.add_argument("--port", type=int, help="port to listen on, for tcp")
        parser.add_argument(
            "--metrics-config", dest="metrics_config", help="file that defines the metrics"
        )
        parser.add_argument(
            "--async",
            dest="async_comm",
            action="store_true",
            help="handle messages beside each other",
        )
        return parser
