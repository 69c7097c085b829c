"""Guards out of settings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ts_frontend.archive.fetch import AwsCredentials
from ts_frontend.http.tls import tls_files
from ts_frontend.security import aws_credentials, exposures, new_checksums
from ts_frontend.settings import ConfigurationError, Settings

AWS = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "geheim",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


def test_aws_credentials() -> None:
    assert aws_credentials(AWS) == AwsCredentials("AKIDEXAMPLE", "geheim", "eu-central-1")
    renamed = {**AWS, "AWS_REGION": "us-east-1", "AWS_SESSION_TOKEN": "t"}
    del renamed["AWS_DEFAULT_REGION"]
    assert aws_credentials(renamed) == AwsCredentials("AKIDEXAMPLE", "geheim", "us-east-1", "t")


@pytest.mark.parametrize("missing", AWS)
def test_incomplete_aws_credentials_are_none(missing: str) -> None:
    assert aws_credentials({name: value for name, value in AWS.items() if name != missing}) is None


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({}, ()),
        ({"inference_address": "http://0.0.0.0:8080"}, ()),  # with tokens
        (
            {"disable_token_authorization": True, "inference_address": "http://[::]:8080"},
            ("OPEN TO EVERYBODY: http://:::8080",),
        ),
        (
            {"disable_token_authorization": True, "grpc_management_address": "0.0.0.0"},
            ("OPEN TO EVERYBODY: 0.0.0.0:7071 (gRPC)",),
        ),
        (
            {
                "disable_token_authorization": True,
                "grpc_management_address": "0.0.0.0",
                "enable_grpc": False,
            },
            (),
        ),
        ({"disable_token_authorization": True, "inference_address": "unix:/x"}, ()),
        ({"enable_model_api": True}, ("registered over the API from every URL",)),
        ({"enable_model_api": True, "allowed_urls": ("https://ours/.*",)}, ()),
        ({"metrics_address": "https://127.0.0.1:1"}, ("this server signed itself",)),
        ({"enable_grpc_ssl": True, "certificate_file": "c", "private_key_file": "k"}, ()),
    ],
)
def test_what_stands_open_is_said(keys: dict[str, object], parts: tuple[str, ...]) -> None:
    said = list(exposures(Settings(**keys)))  # type: ignore[arg-type]
    assert len(said) == len(parts)
    assert all(part in text for part, text in zip(parts, said, strict=True))


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for settings in (Settings(), Settings(keystore=str(tmp_path / "k.p12"))):
        with pytest.raises(ConfigurationError, match=r"pip install 'torchserve\[crypto\]'"):
            tls_files(settings, str(tmp_path))
    (tmp_path / "list").touch()
    (tmp_path / "list.sig").touch()
    with pytest.raises(ConfigurationError, match=r"pip install 'torchserve\[crypto\]'"):
        new_checksums(
            Settings(archive_checksums=str(tmp_path / "list"), archive_checksums_key="/k.pem")
        )
