"""The guards that a server is built with, out of its settings; and what it is not guarded against.

Both the server and the check of a configuration use these, so that a check finds what a start
would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ts_frontend.archive.checksums import ChecksumList, ListRefused
from ts_frontend.archive.fetch import AwsCredentials
from ts_frontend.archive.unpack import ArchiveLimits
from ts_frontend.http.tls import is_self_signing
from ts_frontend.settings import ConfigurationError, Settings
from ts_frontend.settings.addresses import DEFAULT_PORTS, is_loopback, parse_address
from ts_frontend.settings.environment import TOKEN_KEYS
from ts_frontend.settings.settings import DEFAULT_ALLOWED_URLS
from ts_frontend.tokens import InvalidKeyFile, TokenAuthority, given_keys


def new_tokens(settings: Settings) -> TokenAuthority | None:
    """None: no authorization. Raises ConfigurationError for keys that cannot be used."""
    if settings.disable_token_authorization:
        return None
    secrets = settings.secret_environment
    texts = {kind: secrets[name] for kind, name in TOKEN_KEYS.items() if name in secrets}
    try:
        return TokenAuthority(
            settings.working_dir,
            settings.token_expiration_min * 60,
            given=given_keys(texts),
            key_file=settings.token_key_file,
        )
    except InvalidKeyFile as error:
        where = settings.origin("token_key_file") if settings.token_key_file else "environment"
        raise ConfigurationError(f"{error} (token keys, {where})") from error


def archive_limits(settings: Settings) -> ArchiveLimits:
    return ArchiveLimits(
        max_entries=settings.max_archive_entries,
        max_bytes=settings.max_archive_size,
        max_ratio=settings.max_archive_ratio,
    )


def new_checksums(settings: Settings) -> ChecksumList | None:
    """None: every archive is let in. Raises ConfigurationError for a list that is none."""
    if not settings.archive_checksums:
        return None
    checksums = ChecksumList(settings.archive_checksums, settings.archive_checksums_key)
    try:
        checksums.check()
    except ListRefused as error:
        origin = settings.origin("archive_checksums")
        raise ConfigurationError(f"{error} (archive_checksums in {origin})") from error
    return checksums


def aws_credentials(secrets: Mapping[str, str]) -> AwsCredentials | None:
    """From the variables that AWS's own tools read; None if they are not complete."""
    region = secrets.get("AWS_DEFAULT_REGION") or secrets.get("AWS_REGION")
    key_id, secret = secrets.get("AWS_ACCESS_KEY_ID"), secrets.get("AWS_SECRET_ACCESS_KEY")
    if not key_id or not secret or not region:
        return None
    return AwsCredentials(key_id, secret, region, secrets.get("AWS_SESSION_TOKEN", ""))


def exposures(settings: Settings) -> Iterator[str]:
    """What stands open to more than this machine's users, in sentences for the log."""
    reachable = _reachable(settings)
    if settings.disable_token_authorization and reachable:
        yield (
            f"OPEN TO EVERYBODY: {', '.join(reachable)} can be reached from other machines and "
            "token authorization is off. Whoever reaches "
            + (
                "the management API can load and run code here. "
                if settings.enable_model_api
                else "it controls this server. "
            )
            + "Bind to 127.0.0.1, or leave token authorization on."
        )
    if settings.enable_model_api and settings.allowed_urls == DEFAULT_ALLOWED_URLS:
        yield (
            "Models may be registered over the API from every URL. Name the places that you trust "
            "in allowed_urls."
        )
    if serves_tls(settings) and is_self_signing(settings):
        yield (
            "The TLS certificate is one that this server signed itself: clients cannot tell it "
            "from an impostor's. Set private_key_file and certificate_file, or keystore."
        )


def _reachable(settings: Settings) -> list[str]:
    """The listeners that other machines reach; metrics are open to them with keys, too."""
    places = []
    for key in ("inference_address", "management_address"):
        address = parse_address(getattr(settings, key), *DEFAULT_PORTS[key])
        if not address.is_local:
            places.append(str(address))
    if settings.enable_grpc:
        for api in ("inference", "management"):
            host = getattr(settings, f"grpc_{api}_address")
            if not is_loopback(host):
                places.append(f"{host}:{getattr(settings, f'grpc_{api}_port')} (gRPC)")
    return list(dict.fromkeys(places))


def serves_tls(settings: Settings) -> bool:
    addresses = [settings.inference_address, settings.management_address]
    if settings.enable_metrics_api:
        addresses.append(settings.metrics_address)
    is_https = any(address.lower().startswith("https:") for address in addresses)
    return is_https or (settings.enable_grpc and settings.enable_grpc_ssl)
