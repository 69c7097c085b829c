from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ts_frontend.archive import fetch as fetch_module
from ts_frontend.archive.fetch import (
    AwsCredentials,
    CancelToken,
    Fetcher,
    FetchSettings,
    UrlRules,
    is_public,
    redact,
    sign_s3_request,
    split_checksum,
)
from ts_frontend.core.errors import (
    ArchiveDownloadFailed,
    ArchiveStorageFailed,
    RequestCancelled,
)

OPEN = "file://.*|http(s)?://.*"  # the default of allowed_urls
LOOPBACK = r"http://127\.0\.0\.1:\d+/.*"


class Downloads:
    """A folder to download into, and what a fetcher leaves there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.resolved: list[str] = []

    def fetch(
        self,
        url: str,
        *allowed: str,
        addresses: tuple[str, ...] = ("127.0.0.1",),
        token: CancelToken | None = None,
        s3_sse_kms: bool = False,
        **settings: object,
    ) -> bytes:
        def resolve(host: str, port: int) -> tuple[str, ...]:
            self.resolved.append(host)
            return addresses

        fetcher = Fetcher(
            UrlRules(allowed or (LOOPBACK,)),
            FetchSettings(**settings),  # type: ignore[arg-type]
            resolve,
        )
        path = self.folder / "download"
        fetcher.fetch(url, str(path), token or CancelToken(), s3_sse_kms=s3_sse_kms)
        content = path.read_bytes()
        path.unlink()
        return content

    def refused(self, url: str, *allowed: str, reason: str, **settings: object) -> str:
        """The message of the refusal, which has to leave nothing behind."""
        with pytest.raises(ArchiveDownloadFailed) as refused:
            self.fetch(url, *allowed, **settings)  # type: ignore[arg-type]
        message = str(refused.value)
        assert message.startswith("Failed to download archive from: ")
        assert reason in message
        assert os.listdir(self.folder) == []
        return message


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    folder = tmp_path / "downloads"
    folder.mkdir()
    return Downloads(folder)


# --- http -----------------------------------------------------------------------------------------


def test_download(downloads: Downloads, web) -> None:
    content = os.urandom(1 << 20)
    assert downloads.fetch(web.serve("/m.mar", content)) == content
    ((path, headers),) = web.requests
    assert path == "/m.mar"
    assert headers["Host"] == f"127.0.0.1:{web.port}"
    assert headers["Accept-Encoding"] == "identity"


def test_query_and_escapes_arrive_as_written(downloads: Downloads, web) -> None:
    web.serve("/a%20b.mar", b"x")
    assert downloads.fetch(web.url("/a%20b.mar?X-Sig=a%2Fb&y=[1]")) == b"x"
    assert web.requests[0][0] == "/a%20b.mar?X-Sig=a%2Fb&y=[1]"


def test_chunked_and_unbounded_bodies(downloads: Downloads, web) -> None:
    def chunked(request) -> None:
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n")
        request.close_connection = True

    def until_closed(request) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"abcde")

    web.answers.update({"/chunked": chunked, "/closed": until_closed})
    assert downloads.fetch(web.url("/chunked")) == b"abcde"
    assert downloads.fetch(web.url("/closed")) == b"abcde"


def test_connection_that_stays_open_after_the_body(downloads: Downloads, web) -> None:
    def answer(request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "3")
        request.end_headers()
        request.wfile.write(b"abc")
        web.is_over.wait(30)

    web.answers["/m.mar"] = answer
    assert downloads.fetch(web.url("/m.mar")) == b"abc"


@pytest.mark.parametrize("status", [204, 206, 304, 400, 403, 404, 500, 503])
def test_status(downloads: Downloads, web, status: int) -> None:
    downloads.refused(web.serve("/m.mar", b"", status), reason=f"(HTTP status {status})")


def test_refused_connection(downloads: Downloads) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    downloads.refused(f"http://127.0.0.1:{port}/m.mar", reason="connection refused")


def test_host_without_an_address(downloads: Downloads) -> None:
    def fails(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    fetcher = Fetcher(UrlRules([OPEN]), FetchSettings(), fails)
    with pytest.raises(ArchiveDownloadFailed, match="host name is unknown"):
        fetcher.fetch("http://nowhere.invalid/m.mar", str(downloads.folder / "x"), CancelToken())


def test_partial_body(downloads: Downloads, web) -> None:
    url = web.serve("/m.mar", b"half", length="8")
    downloads.refused(url, reason="the connection ended after 4 of 8 bytes")


def test_broken_chunks(downloads: Downloads, web) -> None:
    def answer(request) -> None:
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"5\r\nab")
        request.close_connection = True

    web.answers["/m.mar"] = answer
    downloads.refused(web.url("/m.mar"), reason="something other than HTTP")


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200]
)
def test_no_http(downloads: Downloads, web, answer: bytes) -> None:
    web.answers["/m.mar"] = lambda request: request.wfile.write(answer)
    downloads.refused(web.url("/m.mar"), reason="")


def test_too_large_by_declaration(downloads: Downloads, web) -> None:
    def answer(request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "101")
        request.end_headers()
        web.is_over.wait(30)  # the refusal may not wait for the body

    web.answers["/m.mar"] = answer
    downloads.refused(web.url("/m.mar"), reason="101 bytes, more than 100", max_bytes=100)


def test_too_large_in_fact(downloads: Downloads, web) -> None:
    def answer(request) -> None:
        request.send_response(200)
        request.end_headers()
        with contextlib.suppress(OSError):
            while not web.is_over.is_set():
                request.wfile.write(bytes(1 << 16))

    web.answers["/m.mar"] = answer
    downloads.refused(web.url("/m.mar"), reason="more than 1000000 bytes", max_bytes=1_000_000)


def test_no_room_in_the_store(downloads: Downloads, web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module._Writable, "free_bytes", lambda self: 3)
    with pytest.raises(ArchiveStorageFailed, match="no room for 4 bytes"):
        downloads.fetch(web.serve("/m.mar", b"abcd"))
    assert os.listdir(downloads.folder) == []


@pytest.mark.parametrize("error", [28, 5])
def test_failing_disk(downloads: Downloads, web, monkeypatch: pytest.MonkeyPatch, error) -> None:
    class FailingFile:
        def write(self, chunk: bytes) -> None:
            raise OSError(error, os.strerror(error))

        def close(self) -> None:
            pass

    real_init = fetch_module._Writable.__init__

    def init(self, path: str) -> None:
        real_init(self, path)
        self._file.close()
        self._file = FailingFile()

    monkeypatch.setattr(fetch_module._Writable, "__init__", init)
    with pytest.raises(ArchiveStorageFailed, match="Failed to save model: http"):
        downloads.fetch(web.serve("/m.mar", b"abcd"))
    assert os.listdir(downloads.folder) == []


def _drip(web):
    def answer(request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        with contextlib.suppress(OSError):
            while not web.is_over.wait(0.01):
                request.wfile.write(b"x")

    return answer


def _silent_from_the_start(web):
    return lambda request: web.is_over.wait(30)


def _silent_in_a_body_without_length(web):
    def answer(request) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"half")
        web.is_over.wait(30)

    return answer


def _silent_in_the_headers(web):
    def answer(request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        web.is_over.wait(30)

    return answer


_HANGS = [
    _drip,
    _silent_from_the_start,
    _silent_in_a_body_without_length,
    _silent_in_the_headers,
]


@pytest.mark.parametrize("behaviour", _HANGS)
def test_deadline_of_the_whole(downloads: Downloads, web, behaviour) -> None:
    web.answers["/m.mar"] = behaviour(web)
    downloads.refused(web.url("/m.mar"), reason="not complete after 0.2 s", timeout_s=0.2)


def test_stall(downloads: Downloads, web) -> None:
    web.answers["/m.mar"] = _silent_in_the_headers(web)
    downloads.refused(web.url("/m.mar"), reason="no answer in time", stall_timeout_s=0.1)


@pytest.mark.parametrize("behaviour", _HANGS)
def test_cancel_from_another_thread(downloads: Downloads, web, behaviour) -> None:
    token = CancelToken()
    answer = behaviour(web)

    def cancel_and_answer(request) -> None:
        threading.Thread(target=token.cancel).start()
        answer(request)

    web.answers["/m.mar"] = cancel_and_answer
    with pytest.raises(RequestCancelled):
        downloads.fetch(web.url("/m.mar"), token=token)
    assert os.listdir(downloads.folder) == []


def test_cancelled_before(downloads: Downloads, web) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(RequestCancelled):
        downloads.fetch(web.serve("/m.mar", b"x"), token=token)
    assert web.requests == []


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect(downloads: Downloads, web, status: int) -> None:
    web.serve("/b/m.mar", b"content")
    assert downloads.fetch(web.redirect("/a/m.mar", "../b/m.mar", status)) == b"content"


def test_redirect_that_is_not_allowed(downloads: Downloads, web) -> None:
    url = web.redirect("/m.mar", "http://evil.example/m.mar")
    downloads.refused(url, reason="allowed_urls does not allow")
    assert downloads.resolved == ["127.0.0.1"]


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://x/y", "gopher://x/", "//[::1"])
def test_redirect_to_another_scheme(downloads: Downloads, web, target: str) -> None:
    downloads.refused(web.redirect("/m.mar", target), LOOPBACK, ".*", reason="URL")


def test_cve_2026_33626_redirect_into_the_network(downloads: Downloads, web) -> None:
    """Named in allowed_urls is only the first host; the open default names nobody."""
    url = web.redirect("/m.mar", "http://169.254.169.254/latest/meta-data/")
    downloads.refused(
        url, LOOPBACK, OPEN, reason="not on the public network", addresses=("127.0.0.1",)
    )
    assert downloads.resolved == ["127.0.0.1", "169.254.169.254"]


def test_endless_redirects(downloads: Downloads, web) -> None:
    downloads.refused(web.redirect("/m.mar", "/m.mar"), reason="more than 5 redirects")
    assert len(web.requests) == 6


def test_redirect_to_nowhere(downloads: Downloads, web) -> None:
    downloads.refused(web.serve("/m.mar", b"", 302), reason="a redirect to nowhere")


# --- who may be reached ---------------------------------------------------------------------------

INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.2.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:db8::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "ff0e::1",
    "no address",
    "",
]
OUTSIDE = [
    "8.8.8.8",
    "93.184.216.34",
    "2606:2800:220:1:248:1893:25c8:1946",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize("address", INSIDE)
def test_address_inside(downloads: Downloads, address: str) -> None:
    assert not is_public(address)
    message = downloads.refused(
        "http://models.example/m.mar", OPEN, reason="not on the public", addresses=(address,)
    )
    assert "fetch_private_addresses" in message
    assert not address or address not in message


@pytest.mark.parametrize("address", OUTSIDE)
def test_address_outside(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "[::ffff:7f00:1]"],
)
def test_loopback_by_any_spelling(downloads: Downloads, web, host: str) -> None:
    url = web.serve("/m.mar", b"x").replace("127.0.0.1", host)
    fetcher = Fetcher(UrlRules([OPEN]), FetchSettings())
    with pytest.raises(ArchiveDownloadFailed, match=r"not on the public|unknown"):
        fetcher.fetch(url, str(downloads.folder / "x"), CancelToken())
    assert web.requests == []


def test_private_hosts_by_setting(downloads: Downloads, web) -> None:
    url = web.serve("/m.mar", b"x")
    downloads.refused(url, OPEN, reason="not on the public network")
    assert downloads.fetch(url, OPEN, allow_private_addresses=True) == b"x"


@pytest.mark.parametrize(
    ("pattern", "host", "is_named"),
    [
        (r"http(s)?://.*", "127.0.0.1", False),
        (r".*", "localhost", False),
        (r"http://127\.0\.0\.1:\d+/.*", "127.0.0.1", True),
        (r"http://127.0.0.1.*", "127.0.0.1", True),
        (r"http://LOCALHOST(:\d+)?/.*", "localhost", True),
        (r"https?://(minio|localhost):9000/.*", "localhost", True),
        (r"https?://(minio|localhost):9000/.*", "minio", True),
        (r"http://\[::1\]:8080/.*", "::1", True),
        (r"http://.*\.local/.*", "db.local", False),
        (r"http://1.*", "1.2.3.4", False),
        (r"file://.*|http(s)?://.*", "s", False),
        (r"file://.*|http(s)?://.*", "http", False),
        (r"file://.*|http(s)?://.*", "file", False),
        (r"(http|https)://.*", "https", False),
        (r"http[s]?://.*", "s", False),
        (r"http://\w+/.*|.*", "w", False),
        (r"http://[abc]+/.*|.*", "abc", False),
        (r"http://127\.0\.0\.11/.*|http://.*", "127.0.0.1", False),
        (r"http://x127\.0\.0\.1/.*|http://.*", "127.0.0.1", False),
        (r"http://my\.localhost/.*|http://.*", "localhost", False),
        (r"http://localhost\.example/.*|http://.*", "localhost", False),
    ],
)
def test_host_named_by_a_pattern(pattern: str, host: str, is_named: bool) -> None:
    bracketed = f"[{host}]" if ":" in host else host
    for port in ("", ":8080", ":9000"):
        url = f"http://{bracketed}{port}/m.mar"
        if re_matches := UrlRules([pattern]).is_allowed(url):
            assert UrlRules([pattern]).names_host(url, host) == is_named
            break
    assert re_matches


def test_other_pattern_names_the_host(downloads: Downloads) -> None:
    """Named it has to be by a pattern that allows this very URL."""
    rules = UrlRules([OPEN, r"http://localhost:9000/models/.*"])
    assert rules.names_host("http://localhost:9000/models/m.mar", "localhost")
    assert not rules.names_host("http://localhost:22/", "localhost")


def test_address_is_looked_up_once(downloads: Downloads, web) -> None:
    """A second look-up could give another address than the one that was judged."""
    url = web.serve("/m.mar", b"x").replace("127.0.0.1", "models.test")
    assert downloads.fetch(url, r"http://models\.test:\d+/.*") == b"x"
    assert downloads.resolved == ["models.test"]
    assert web.requests[0][1]["Host"] == f"models.test:{web.port}"


def test_only_the_public_ones_of_several_addresses(downloads: Downloads) -> None:
    fetcher = Fetcher(UrlRules([OPEN]), FetchSettings(), lambda host, port: ["10.0.0.1", "8.8.8.8"])
    target = fetch_module._parse("http://models.example/m.mar")
    assert fetcher._addresses(target) == ["8.8.8.8"]


def test_next_address_where_one_does_not_answer(downloads: Downloads, web) -> None:
    url = web.serve("/m.mar", b"x")
    assert downloads.fetch(url, addresses=("127.0.0.2", "127.0.0.1")) == b"x"


# --- URLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1@evil.example/m.mar", "user name"),
        ("http://user:secret@127.0.0.1/m.mar", "user name"),
        ("http://127.0.0.1\\@evil.example/m.mar", "backslash"),
        ("http://127.0.0.1/a b.mar", "blank"),
        ("http://127.0.0.1/m.mar\r\nX: y", "control character"),
        ("http://127.0.0.1:99999/m.mar", "malformed URL"),
        ("http://127.0.0.1:x/m.mar", "malformed URL"),
        ("http://[::1/m.mar", "malformed URL"),
        ("http:///m.mar", "no host"),
        ("http://%3127.0.0.1/m.mar", "no host"),
        ("http://" + "ü" * 100 + "/m.mar", "malformed host name"),
        ("ftp://127.0.0.1/m.mar", "only file, http and https"),
        ("s3://bucket/m.mar", "only file, http and https"),
    ],
)
def test_cve_2026_24779_url_that_is_read_in_two_ways(
    downloads: Downloads, url: str, reason: str
) -> None:
    message = downloads.refused(url, "(?s).*", reason=reason)
    assert "secret" not in message
    assert downloads.resolved == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h/m.mar", "http://h/m.mar"),
        ("https://u:p@h:1/m.mar?X-Amz-Signature=s#sha256=0", "https://***@h:1/m.mar?..."),
        ("http://h/p@th", "http://h/p@th"),
        ("http://a@b@h/m.mar", "http://***@h/m.mar"),
        ("file:///models/m.mar", "file:///models/m.mar"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_pattern_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"allowed_urls: '\('"):
        UrlRules(["http://.*", "("])


def test_allowed_as_a_whole_and_in_any_case() -> None:
    rules = UrlRules([r"https://models\.example/.*\.mar"])
    assert rules.is_allowed("HTTPS://models.example/a/M.MAR")
    assert not rules.is_allowed("https://models.example/a.mar.exe")
    assert not rules.is_allowed("xhttps://models.example/a.mar")


# --- checksums ------------------------------------------------------------------------------------


def test_checksum(downloads: Downloads, web) -> None:
    url = web.serve("/m.mar", b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    assert downloads.fetch(f"{url}#sha256={digest.upper()}") == b"content"
    assert web.requests[0][0] == "/m.mar"
    downloads.refused(f"{url}#sha256={'0' * 64}", reason="its SHA-256 differs")


@pytest.mark.parametrize("fragment", ["sha256=", "sha256", "sha256=xyz", "sha256:" + "0" * 64])
def test_checksum_that_is_none(downloads: Downloads, web, fragment: str) -> None:
    url = web.serve("/m.mar", b"content")
    downloads.refused(f"{url}#{fragment}", reason="64 hexadecimal digits")
    assert web.requests == []


def test_other_fragments_mean_nothing() -> None:
    assert split_checksum("http://h/m.mar#part") == ("http://h/m.mar", "")


# --- files ----------------------------------------------------------------------------------------


def test_file_url(downloads: Downloads, tmp_path: Path) -> None:
    (tmp_path / "a b.mar").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    for prefix in ("file://", "FILE://", "file://localhost"):
        url = f"{prefix}{tmp_path}/a%20b.mar#sha256={digest}"
        assert downloads.fetch(url, ".*") == b"content"
    url = f"file://{tmp_path}/a b.mar"
    assert downloads.fetch(url, ".*") == b"content"
    downloads.refused(url, reason="7 bytes, more than 6", max_bytes=6)


def test_file_that_is_none(downloads: Downloads, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    downloads.refused(f"file://{tmp_path}/fifo", reason="not a plain file")
    downloads.refused(f"file://{tmp_path}", reason="")
    downloads.refused("file:///dev/zero", reason="not a plain file")
    downloads.refused(f"file://{tmp_path}/missing.mar", reason="no such file")
    downloads.refused("file://other-host/m.mar", reason="of this machine")
    downloads.refused(f"file://{tmp_path}/%2e%2e/x", reason="not absolute and plain")
    downloads.refused(f"file://{tmp_path}/x%00", reason="not absolute and plain")


# --- https ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and models.test, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=models.test"]
    command += ["-addext", "subjectAltName=DNS:models.test"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def tls_port(certificate: Path) -> Iterator[int]:
    """A listener that answers each connection with one small body over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    is_over = threading.Event()

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                if is_over.is_set():
                    return
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(65536)
                    secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        yield port
        is_over.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


def test_https(
    downloads: Downloads, tls_port: int, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = (
        r"https://(models|other)\.test:\d+/.*",
        r"https://other\.test:\d+/.*",
        r"https://models\.test:\d+/.*",
    )
    url = f"https://models.test:{tls_port}/m.mar"
    downloads.refused(url, *named, reason="its certificate is not valid")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    assert downloads.fetch(url, *named) == b"ok"
    other = f"https://other.test:{tls_port}/m.mar"
    downloads.refused(other, *named, reason="its certificate is not valid: Hostname mismatch")


def test_https_host_that_never_shakes_hands(downloads: Downloads) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/m.mar"
        downloads.refused(
            url, r"https://127\.0\.0\.1:.*", reason="not complete after 0.2 s", timeout_s=0.2
        )


# --- S3 -------------------------------------------------------------------------------------------

# The account of the examples in AWS's documentation of Signature Version 4.
AWS = AwsCredentials(
    "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1"
)
THEN = datetime.datetime(2013, 5, 24, tzinfo=datetime.UTC)


def test_signature_of_the_documented_example() -> None:
    headers = sign_s3_request(
        AWS, "examplebucket.s3.amazonaws.com", "/test.txt", THEN, {"Range": "bytes=0-9"}
    )
    assert headers == {
        "x-amz-content-sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "x-amz-date": "20130524T000000Z",
        "Authorization": "AWS4-HMAC-SHA256 "
        "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    }


def test_signature_covers_the_query() -> None:
    headers = sign_s3_request(AWS, "examplebucket.s3.amazonaws.com", "/?max-keys=2&prefix=J", THEN)
    assert headers["Authorization"].endswith(
        "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )


def test_session_token_is_signed() -> None:
    credentials = AwsCredentials("id", "key", "eu-west-1", "token")
    headers = sign_s3_request(credentials, "h", "/", THEN)
    assert headers["x-amz-security-token"] == "token"
    assert "x-amz-security-token" in headers["Authorization"]


def test_secrets_are_not_shown() -> None:
    assert AWS.secret_access_key not in repr(FetchSettings(aws=AWS))


def test_signed_download(downloads: Downloads, web) -> None:
    url = web.redirect("/m.mar", "/b.mar")
    web.serve("/b.mar", b"x")
    assert downloads.fetch(url, s3_sse_kms=True, aws=AWS) == b"x"
    first, second = (headers for _, headers in web.requests)
    assert "Credential=AKIAIOSFODNN7EXAMPLE/" in first["Authorization"]
    assert "Authorization" not in second


def test_signing_without_credentials(downloads: Downloads, web) -> None:
    url = web.serve("/m.mar", b"x")
    downloads.refused(url, reason="AWS_SECRET_ACCESS_KEY", s3_sse_kms=True)
