"""Copy a file from a URL to a path, trusting neither the URL nor who answers it.

A server that fetches what clients name is a way into the network behind it. Hence: http, https and
file only; every hop of a redirect has to pass the same test as the first URL; a host's address is
looked up once, judged, and that very address is connected to; sizes and times are bounded;
credentials in URLs appear in no message.

`Fetcher.fetch` is the entry point. It blocks, and runs in a thread of the model store, where a
`CancelToken` stops it.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import ipaddress
import os
import re
import shutil
import socket
import ssl
import stat
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import msgspec

from ts_frontend.core.errors import (
    ArchiveDownloadFailed,
    ArchiveStorageFailed,
    RequestCancelled,
    ServingError,
)

_CHUNK_BYTES = 256 << 10
_REDIRECTS = (301, 302, 303, 307, 308)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class AwsCredentials(msgspec.Struct, frozen=True):
    """What signs a request for an object that S3 keeps encrypted with a KMS key."""

    access_key_id: str
    secret_access_key: str
    region: str
    session_token: str = ""

    def __repr__(self) -> str:
        return f"<AwsCredentials {self.access_key_id} {self.region}>"


class FetchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """allow_private_addresses: also hosts inside the network, whatever `allowed_urls` says of them.

    timeout_s: for the whole download, redirects included. stall_timeout_s: for each wait in it.
    """

    allow_private_addresses: bool = False
    max_bytes: int = 512 << 30
    max_redirects: int = 5
    timeout_s: float = 3600.0
    stall_timeout_s: float = 60.0
    aws: AwsCredentials | None = None


class CancelToken:
    """Set once, from any thread; whoever works on `check()`s it and may leave a way to be woken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: ServingError | None = None
        self._wake: Callable[[], None] | None = None

    def cancel(self, error: ServingError | None = None) -> None:
        """Make `check` raise `error` (RequestCancelled by default); the first call decides."""
        with self._lock:
            if self._error is None:
                self._error = error or RequestCancelled()
            if self._wake is not None:
                self._wake()

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Inside, `cancel` also calls `wake`, which ends a blocking call."""
        with self._lock:
            self._wake = wake
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._wake = None


class UrlRules:
    """The setting `allowed_urls`: which URLs may be fetched, and which hosts were meant by name."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises ValueError for a pattern that is no regular expression."""
        self._patterns: list[re.Pattern[str]] = []
        for pattern in patterns:
            try:
                self._patterns.append(re.compile(pattern, re.IGNORECASE))
            except re.error as error:
                raise ValueError(
                    f"allowed_urls: {pattern!r} is no valid pattern: {error}"
                ) from error

    def is_allowed(self, url: str) -> bool:
        return any(pattern.fullmatch(url) for pattern in self._patterns)

    def names_host(self, url: str, host: str) -> bool:
        """Whether a pattern that allows `url` spells out `host`, as the open default does not.

        An operator who writes a host inside the network into the list wants it reached.
        """
        literal = re.compile(rf"(?<![\w.-]){re.escape(host)}(?![\w-]|\.\w)", re.IGNORECASE)
        return any(
            pattern.fullmatch(url) and literal.search(_spelled_out(pattern.pattern))
            for pattern in self._patterns
        )


def _spelled_out(pattern: str) -> str:
    """A pattern without what only looks like words: schemes, character classes, escapes.

    Otherwise a host called `s` or `http` would be named by `http(s)?://.*`.
    """
    pattern = re.sub(r"[A-Za-z()|?+*\[\]]*(?=://)", " ", pattern)
    pattern = re.sub(r"(?<!\\)\[[^\]]*\]|\\\w", " ", pattern)
    return re.sub(r"\\(\W)", r"\1", pattern)


class _Target(NamedTuple):
    """One parsed hop. The same parse decides and connects, so that no two readings can differ."""

    url: str
    scheme: str
    host: str
    port: int
    request_target: str  # path and query

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


class Fetcher:
    """resolve: (host, port) -> addresses as text; replaceable in tests."""

    def __init__(
        self,
        rules: UrlRules,
        settings: FetchSettings,
        resolve: Callable[[str, int], Sequence[str]] | None = None,
    ) -> None:
        self._rules = rules
        self._settings = settings
        self._resolve = resolve or _resolve

    def fetch(
        self, url: str, destination: str, token: CancelToken, *, s3_sse_kms: bool = False
    ) -> None:
        """Write what `url` holds into the new file `destination`; on failure the file is gone.

        url: may end in `#sha256=<64 hex digits>`, which the content must have.
        Raises ArchiveDownloadFailed, or ArchiveStorageFailed if the content cannot be kept.
        """
        location, sha256 = split_checksum(url)
        shown = redact(url)
        timer = threading.Timer(
            self._settings.timeout_s,
            token.cancel,
            (_failed(shown, f"not complete after {self._settings.timeout_s:g} s"),),
        )
        timer.daemon = True
        timer.start()
        try:
            with self._failures_named(shown, token), _new_file(destination) as file:
                sink = _Sink(file, self._settings.max_bytes, token)
                if location.lower().startswith("file://"):
                    self._copy(location, sink)
                else:
                    self._download(location, sink, token, s3_sse_kms)
                # A body without a length ends like one that was cut.
                token.check()
                if sha256 and not hmac.compare_digest(sink.sha256.hexdigest(), sha256):
                    raise _Unusable("its SHA-256 differs from the one in the URL")
        finally:
            timer.cancel()

    @contextmanager
    def _failures_named(self, shown: str, token: CancelToken) -> Iterator[None]:
        try:
            yield
        except ServingError:
            raise
        except _Unusable as error:
            token.check()  # a cut connection looks like a failing one
            raise _failed(shown, str(error)) from error
        except _DiskFailed as error:
            raise ArchiveStorageFailed(f"Failed to save model: {shown}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            token.check()
            raise _failed(shown, _describe(error)) from error

    def _copy(self, url: str, sink: _Sink) -> None:
        path = _file_path(url)
        # O_NONBLOCK: opening a FIFO must not wait for a writer before we see that it is one.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _Unusable("it is not a plain file")
            sink.expect(status.st_size)
            while chunk := file.read(_CHUNK_BYTES):
                sink.write(chunk)

    def _download(self, url: str, sink: _Sink, token: CancelToken, s3_sse_kms: bool) -> None:
        hops = 0
        while True:
            target = _parse(url)
            headers = {
                "Host": target.host_header,
                "Accept": "*/*",
                "Accept-Encoding": "identity",  # sizes and checksums are of the file itself
                "User-Agent": "torchserve",
                "Connection": "close",
            }
            if s3_sse_kms and hops == 0:  # a signature is for one host, so never after a redirect
                headers.update(self._sign(target))
            with (
                self._connected(target, token) as connection,
                _answer(connection, target, headers) as response,
            ):
                if response.status == 200:
                    _receive(response, sink)
                    return
                if response.status not in _REDIRECTS:
                    raise _Unusable(f"HTTP status {response.status}")
                location = response.headers.get("Location")
            hops += 1
            url = self._next_hop(target, location, hops)

    def _next_hop(self, target: _Target, location: str | None, hops: int) -> str:
        if not location:
            raise _Unusable("a redirect to nowhere")
        if hops > self._settings.max_redirects:
            raise _Unusable(f"more than {self._settings.max_redirects} redirects")
        url = urllib.parse.urldefrag(urllib.parse.urljoin(target.url, location)).url
        if target.scheme == "https" and not url.lower().startswith("https://"):
            raise _Unusable("a redirect from https to something less")
        if ".." in url or not self._rules.is_allowed(url):
            raise _Unusable("a redirect to a URL that allowed_urls does not allow")
        return url

    @contextmanager
    def _connected(
        self, target: _Target, token: CancelToken
    ) -> Iterator[http.client.HTTPConnection]:
        sock = self._connect(target, token)
        with sock, token.waking(lambda: _shut_down(sock)):
            connection = http.client.HTTPConnection(target.host, target.port)
            if target.scheme == "https":
                # The handshake waits too, so it comes when `token` knows the new socket.
                with (
                    ssl.create_default_context().wrap_socket(
                        sock, server_hostname=target.host, do_handshake_on_connect=False
                    ) as secured,
                    token.waking(lambda: _shut_down(secured)),
                ):
                    secured.do_handshake()
                    connection.sock = secured
                    yield connection
            else:
                connection.sock = sock
                yield connection

    def _connect(self, target: _Target, token: CancelToken) -> socket.socket:
        """A socket to the first address that answers; `localhost` has one for each IP version."""
        stall = self._settings.stall_timeout_s
        failure: OSError | None = None
        for address in self._addresses(target):
            token.check()
            try:
                sock = socket.create_connection((address, target.port), min(stall, 10.0))
            except OSError as error:
                failure = error
            else:
                sock.settimeout(stall)
                return sock
        raise failure or OSError("no address")

    def _addresses(self, target: _Target) -> list[str]:
        """Those of the host's addresses that may be connected to, at least one."""
        addresses = self._resolve(target.host, target.port)
        if self._settings.allow_private_addresses or self._rules.names_host(
            target.url, target.host
        ):
            allowed = list(addresses)
        else:
            allowed = [address for address in addresses if is_public(address)]
        if not allowed:
            raise _Unusable(
                "its host is not on the public network: name the host in allowed_urls,"
                " or set fetch_private_addresses=true"
            )
        return allowed

    def _sign(self, target: _Target) -> dict[str, str]:
        if self._settings.aws is None:
            raise _Unusable(
                "s3_sse_kms needs AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION"
            )
        return sign_s3_request(
            self._settings.aws,
            target.host_header,
            target.request_target,
            datetime.datetime.now(datetime.UTC),
        )


def split_checksum(url: str) -> tuple[str, str]:
    """The URL without its fragment, and the SHA-256 that the fragment demands ("" for none).

    Raises ArchiveDownloadFailed for a checksum that is none: ignoring it would be worse.
    """
    location, _, fragment = url.partition("#")
    if not fragment.lower().startswith("sha256"):
        return location, ""
    name, _, digest = fragment.lower().partition("=")
    if name != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise _failed(redact(url), "#sha256= is not followed by 64 hexadecimal digits")
    return location, digest


def redact(url: str) -> str:
    """The URL for a message: without a user's password and without a query, which may be a key."""
    location, question_mark, _ = url.partition("#")[0].partition("?")
    scheme, slashes, rest = location.partition("://")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        authority = "***@" + authority.rpartition("@")[2]
    return f"{scheme}{slashes}{authority}{slash}{path}" + ("?..." if question_mark else "")


def is_public(address: str) -> bool:
    """Whether an address, as text, is one of the open internet.

    Addresses that carry another one (IPv4-mapped, 6to4, Teredo, NAT64) are judged by that one too.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return all(map(_is_public, _with_embedded(found)))


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _is_public(address: _IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return address in _NAT64
    return address.is_global and not address.is_multicast


def _with_embedded(address: _IPAddress) -> Iterable[_IPAddress]:
    if isinstance(address, ipaddress.IPv4Address):
        yield address
    elif address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    else:
        yield address
        if address.sixtofour is not None:
            yield address.sixtofour
        if address.teredo is not None:
            yield from address.teredo
        if address in _NAT64:
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def sign_s3_request(
    credentials: AwsCredentials,
    host: str,
    request_target: str,
    now: datetime.datetime,
    headers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The headers that sign a GET of an S3 object.

    request_target: path and query as they are sent, percent-encoded.
    headers: further headers of the request that the signature is to cover.
    Source: AWS Signature Version 4, S3 with the `Authorization` header.
    """
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    empty_body = hashlib.sha256(b"").hexdigest()
    added = {"x-amz-content-sha256": empty_body, "x-amz-date": stamp}
    if credentials.session_token:
        added["x-amz-security-token"] = credentials.session_token
    covered = {"host": host, **added}
    covered.update({name.lower(): value.strip() for name, value in (headers or {}).items()})
    signed_names = ";".join(sorted(covered))
    path, _, query = request_target.partition("?")
    parameters = sorted(
        (urllib.parse.quote(name, safe="-_.~"), urllib.parse.quote(value, safe="-_.~"))
        for name, value in urllib.parse.parse_qsl(query, keep_blank_values=True)
    )
    canonical = "\n".join(
        [
            "GET",
            urllib.parse.quote(urllib.parse.unquote(path), safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in parameters),
            *(f"{name}:{covered[name]}" for name in sorted(covered)),
            "",
            signed_names,
            empty_body,
        ]
    )
    scope = f"{stamp[:8]}/{credentials.region}/s3/aws4_request"
    to_sign = "\n".join(
        ["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()]
    )
    key = b"AWS4" + credentials.secret_access_key.encode()
    for part in (stamp[:8], credentials.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    added["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key_id}/{scope},"
        f"SignedHeaders={signed_names},Signature={signature}"
    )
    return added


class _Unusable(Exception):
    """Why the URL cannot be fetched, for the end of the message."""


class _DiskFailed(Exception):
    """Our disk failed, not the other side."""


class _Sink:
    """The file that grows, its size limit and its checksum."""

    def __init__(self, file: _Writable, max_bytes: int, token: CancelToken) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file
        self._max_bytes = max_bytes
        self._token = token
        self._written = 0

    def expect(self, size: int) -> None:
        """Refuse a declared size before the first byte of it."""
        if size > self._max_bytes:
            raise _Unusable(f"it has {size} bytes, more than {self._max_bytes}")
        if size > self._file.free_bytes():
            raise ArchiveStorageFailed(f"The model store has no room for {size} bytes.")

    def write(self, chunk: bytes) -> None:
        self._token.check()
        self._written += len(chunk)
        if self._written > self._max_bytes:
            raise _Unusable(f"it has more than {self._max_bytes} bytes")
        self.sha256.update(chunk)
        self._file.write(chunk)


class _Writable:
    """A new file whose errors are told apart from those of the network, both being OSErrors."""

    def __init__(self, path: str) -> None:
        self._directory = os.path.dirname(path)
        with _disk_errors():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = open(os.open(path, flags, 0o644), "wb")  # noqa: SIM115  # closed by close()

    def write(self, chunk: bytes) -> None:
        with _disk_errors():
            self._file.write(chunk)

    def close(self) -> None:
        with _disk_errors():
            self._file.close()

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._directory).free


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _DiskFailed from error


@contextmanager
def _new_file(path: str) -> Iterator[_Writable]:
    file = _Writable(path)
    try:
        try:
            yield file
        finally:
            file.close()
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(path)
        raise


def _parse(url: str) -> _Target:
    # Each of these is read as a delimiter by some parser, and as a letter by another.
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise _Unusable("its URL has a blank, a control character or a backslash")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _Unusable(f"malformed URL: {error}") from error
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise _Unusable("only file, http and https URLs can be fetched")
    if "@" in parts.netloc:
        # `http://allowed.example@evil.example/` passes patterns that end after the host.
        raise _Unusable("its URL has a user name")
    host = (parts.hostname or "").rstrip(".")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise _Unusable("malformed host name") from error
    if not host or "%" in host:
        raise _Unusable("malformed URL: no host")
    target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
    return _Target(url, scheme, host, port or _DEFAULT_PORTS[scheme], target)


def _file_path(url: str) -> str:
    if re.search(r"[\x00-\x1f\x7f\\]", url):
        raise _Unusable("its URL has a control character or a backslash")
    authority, slash, path = url[len("file://") :].partition("/")
    if authority.lower() not in ("", "localhost"):
        raise _Unusable("a file URL names a file of this machine: file:///path")
    path = slash + urllib.parse.unquote(path)
    # allowed_urls saw the encoded text, so %2e%2e may not lead elsewhere now.
    if ".." in path.split("/") or "\0" in path or not path.startswith("/"):
        raise _Unusable("its path is not absolute and plain")
    return path


def _resolve(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def _answer(
    connection: http.client.HTTPConnection, target: _Target, headers: dict[str, str]
) -> Iterator[http.client.HTTPResponse]:
    connection.putrequest("GET", target.request_target, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    with connection.getresponse() as response:
        yield response


def _receive(response: http.client.HTTPResponse, sink: _Sink) -> None:
    declared = response.length  # None: chunked, or until the connection ends
    if declared is not None:
        sink.expect(declared)
    received = 0
    while declared is None or received < declared:
        # read1 returns after one wait, so that the stall timeout means what it says. It would also
        # read past the declared length.
        wanted = _CHUNK_BYTES if declared is None else min(_CHUNK_BYTES, declared - received)
        chunk = response.read1(wanted)
        if not chunk:
            break
        received += len(chunk)
        sink.write(chunk)
    if declared is not None and received != declared:
        raise _Unusable(f"the connection ended after {received} of {declared} bytes")


def _failed(shown: str, reason: str) -> ArchiveDownloadFailed:
    return ArchiveDownloadFailed(f"Failed to download archive from: {shown} ({reason})")


def _describe(error: Exception) -> str:
    """An error of the network in few words, without addresses or paths."""
    if isinstance(error, socket.gaierror):
        return "its host name is unknown"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.HTTPException):
        return "it answers something other than HTTP"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "malformed URL"
