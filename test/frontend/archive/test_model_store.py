from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_archiver import ModelArchiver, ModelArchiverConfig
from ts_frontend.archive import model_store as model_store_module
from ts_frontend.archive.fetch import FetchSettings
from ts_frontend.archive.model_archive import ModelArchive
from ts_frontend.archive.model_store import DEFAULT_ALLOWED_URLS, ModelStore, default_name
from ts_frontend.archive.unpack import ArchiveLimits
from ts_frontend.core.errors import (
    ArchiveDownloadFailed,
    ArchiveStorageFailed,
    InvalidModel,
    ModelNotFound,
    ServingError,
)


async def refused(places, store: ModelStore, url: str, kind: type[ServingError]) -> str:
    """The message of the refusal, which has to leave everything as it was."""
    before = places.snapshot()
    with pytest.raises(kind) as caught:
        await store.open(url)
    assert type(caught.value) is kind
    assert places.snapshot() == before
    return str(caught.value)


def is_link(archive: ModelArchive) -> bool:
    return os.path.islink(archive.path)


def real_path(archive: ModelArchive) -> str:
    return os.path.realpath(archive.path)


# --- locations that are refused ----------------------------------------------------------------


async def test_no_store(tmp_path: Path) -> None:
    for directory in (None, ""):
        store = ModelStore(directory, str(tmp_path))
        with pytest.raises(ModelNotFound, match="Model store has not been configured"):
            await store.open("echo.mar")
        assert store.list_all() == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("is_link", [False, True])
async def test_nothing_is_unpacked_where_another_user_could_exchange_it(
    places, is_link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = places.temp / "models"
    if is_link:
        models.rmdir()
        models.symlink_to(places.root)
    status = os.lstat(models)

    def as_another(path: object) -> os.stat_result:
        return os.stat_result((*status[:4], os.geteuid() + 1, *status[5:]))

    monkeypatch.setattr(os, "lstat", as_another)
    with pytest.raises(ArchiveStorageFailed, match="set TEMP to"):
        await places.model_store().open("echo.mar")


async def test_refusals_in_words(places) -> None:
    store = places.model_store("https://models.example/.*")
    for url, message in [
        ("", "empty url"),
        ("../x.mar", "Relative path is not allowed in url: ../x.mar"),
        ("x..mar", "Relative path is not allowed in url: x..mar"),
        (
            "https://models.example/../x.mar",
            "Relative path is not allowed in url: https://models.example/../x.mar",
        ),
        ("http://h/x.mar", "Given URL http://h/x.mar does not match any allowed URL(s)"),
        ("HTTPS://H/x.mar", "Given URL HTTPS://H/x.mar does not match any allowed URL(s)"),
        ("file:///x.mar", "Given URL file:///x.mar does not match any allowed URL(s)"),
        ("x.mar", "Model not found at: x.mar"),
        ("s3://bucket/x.mar", "Model not found at: s3://bucket/x.mar"),
        ("x\0.mar", "Model not found at: 'x\\x00.mar'"),
        ("x\n.mar", "Model not found at: 'x\\n.mar'"),
        ("x\ud800", "Model not found at: 'x\\ud800'"),
        ("x" * 5000, "Model not found at: " + "x" * 5000),
        ("a/b/c", "Model not found at: a/b/c"),
    ]:
        assert await refused(places, store, url, ModelNotFound) == message


async def test_credentials_are_not_repeated(places) -> None:
    url = "http://user:secret@h/x.mar?signature=secret"
    for store in (places.model_store("https://.*"), places.model_store()):
        assert "secret" not in await refused(places, store, url, ModelNotFound)


async def test_allowed_by_a_fetcher_that_cannot(places) -> None:
    message = await refused(places, places.model_store(".*"), "s3://b/x.mar", ArchiveDownloadFailed)
    assert "only file, http and https" in message


async def test_plain_name_that_a_pattern_matches_is_still_local(places, echo_mar) -> None:
    (places.store / "echo.mar").write_bytes(echo_mar)
    archive = await places.model_store(".*").open("echo.mar")
    assert not archive.is_downloaded


@settings(deadline=None)
@given(
    st.text(max_size=30)
    | st.lists(
        st.sampled_from(
            [
                "http://",
                "https://",
                "file://",
                "FILE:",
                "//",
                "/",
                ":",
                "@",
                "[",
                "]",
                "%2e",
                "?",
                "#sha256=",
                "#",
                "\\",
                "127.0.0.1",
                "h",
                ".mar",
                "~",
                "{",
                "ü",
                "�",
                "\x00",
            ]
        ),
        max_size=8,
    ).map("".join)
)
def test_any_location_is_opened_or_refused(location: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = ModelStore(directory, directory, resolve=lambda host, port: ["10.0.0.1"])
        try:
            archive = asyncio.run(store.open(location))
        except ServingError as refused:
            str(refused).encode()
        else:
            archive.discard()
        assert os.listdir(directory) in ([], ["models"])
        assert not os.path.exists(f"{directory}/models") or not os.listdir(f"{directory}/models")


# --- local archives ----------------------------------------------------------------------------


async def test_mar(places, echo_mar: bytes) -> None:
    (places.store / "echo.mar").write_bytes(echo_mar)
    before = places.snapshot()
    store = places.model_store()
    archive = await store.open("echo.mar")
    assert re.fullmatch(re.escape(f"{places.temp}/models/") + "[0-9a-f]{32}", archive.path)
    assert sorted(os.listdir(archive.path)) == ["MAR-INF", "echo.py"]
    assert archive.manifest.model_name == "echo"
    assert archive.url == archive.file_name == "echo.mar"
    assert not archive.is_downloaded
    await store.release(archive)
    assert places.snapshot() == before


@pytest.mark.parametrize("url", ["/elsewhere/echo.mar", "folder/echo.mar", "./echo.mar"])
async def test_last_component_is_looked_up(places, echo_mar: bytes, url: str) -> None:
    (places.store / "echo.mar").write_bytes(echo_mar)
    archive = await places.model_store().open(url)
    assert (archive.url, archive.file_name) == (url, "echo.mar")


async def test_file_in_a_folder_of_the_store(places, echo_mar: bytes) -> None:
    (places.store / "team").mkdir()
    (places.store / "team" / "echo.mar").write_bytes(echo_mar)
    (places.store / "echo.mar").write_bytes(b"not this one")
    archive = await places.model_store().open("team/echo.mar")
    assert archive.file_name == "team/echo.mar"
    assert (await places.model_store().open(archive.file_name)).manifest == archive.manifest


async def test_same_archive_twice(places, echo_mar: bytes) -> None:
    (places.store / "echo.mar").write_bytes(echo_mar)
    store = places.model_store()
    one, two = await asyncio.gather(store.open("echo.mar"), store.open("echo.mar"))
    assert one.path != two.path
    await store.release(one)
    assert (Path(two.path) / "echo.py").exists()


async def test_broken_archive_is_refused(places) -> None:
    (places.store / "echo.mar").write_bytes(b"This is a dummy file")
    message = await refused(places, places.model_store(), "echo.mar", InvalidModel)
    assert message == "The file is no model archive: neither zip (.mar) nor tar.gz."


async def test_archive_with_a_broken_manifest(places, mar) -> None:
    (places.store / "echo.mar").write_bytes(mar({"MAR-INF/MANIFEST.json": b"{"}))
    message = await refused(places, places.model_store(), "echo.mar", InvalidModel)
    assert "MAR-INF/MANIFEST.json cannot be read" in message


async def test_archive_without_a_manifest(places, mar) -> None:
    (places.store / "echo.mar").write_bytes(mar({"echo.py": b""}))
    archive = await places.model_store().open("echo.mar")
    assert archive.manifest.model_name == ""


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz", "no-archive"])
async def test_opens_what_the_archiver_makes(places, tmp_path: Path, archive_format: str) -> None:
    (tmp_path / "echo.py").write_text("def handle(data, context): ...\n")
    (tmp_path / "model.yaml").write_text("batchSize: 8\n")
    ModelArchiver.generate_model_archive(
        ModelArchiverConfig(
            model_name="echo",
            handler=f"{tmp_path}/echo.py:handle",
            version="1.1",
            config_file=f"{tmp_path}/model.yaml",
            export_path=str(places.store),
            archive_format=archive_format,
        )
    )
    (name,) = os.listdir(places.store)
    before = places.snapshot()
    store = places.model_store()
    archive = await store.open(name)
    assert sorted(os.listdir(archive.path)) == ["MAR-INF", "echo.py", "model.yaml"]
    assert archive.manifest.handler == "echo.py:handle"
    assert archive.manifest.model_version == "1.1"
    assert archive.config is not None
    assert archive.config.batch_size == 8
    await store.release(archive)
    assert places.snapshot() == before


async def test_unwritable_temporary_directory(places, echo_mar: bytes, caplog) -> None:
    (places.store / "echo.mar").write_bytes(echo_mar)
    (places.temp / "models").rmdir()
    (places.temp / "models").write_bytes(b"")
    message = await refused(places, places.model_store(), "echo.mar", ArchiveStorageFailed)
    assert message == "Failed to save model: echo.mar"
    assert "Cannot keep the model archive echo.mar" in caplog.text


async def test_limits_apply(places, mar) -> None:
    (places.store / "a.mar").write_bytes(mar({"a": b"1", "b": b"2"}))
    store = places.model_store(limits=ArchiveLimits(max_entries=1))
    assert "more than 1 entries" in await refused(places, store, "a.mar", InvalidModel)


async def test_odd_configuration_is_logged(places, mar, manifest, caplog) -> None:
    files = {"MAR-INF/MANIFEST.json": manifest(configFile="m.yaml"), "m.yaml": b"BatchSize: 2"}
    (places.store / "a.mar").write_bytes(mar(files))
    archive = await places.model_store().open("a.mar")
    assert "did you mean 'batchSize'?" in caplog.text
    assert len(archive.warnings) == 1


# --- directories -------------------------------------------------------------------------------


def _directory_model(path: Path, manifest) -> Path:
    (path / "MAR-INF").mkdir(parents=True)
    (path / "MAR-INF" / "MANIFEST.json").write_bytes(manifest())
    (path / "echo.py").write_bytes(b"")
    return path


async def test_directory_in_the_store(places, manifest) -> None:
    model = _directory_model(places.store / "echo", manifest)
    before = places.snapshot()
    store = places.model_store()
    for url in ("echo", "echo/", "/elsewhere/echo", str(model)):
        archive = await store.open(url)
        assert is_link(archive)
        assert real_path(archive) == str(model)
        assert Path(archive.path).name == "echo"
        assert archive.manifest.model_name == "echo"
        assert archive.file_name == "echo"
        await store.release(archive)
        assert places.snapshot() == before


async def test_directory_elsewhere(places, manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _directory_model(places.root / "elsewhere" / "echo", manifest)
    monkeypatch.chdir(places.root)
    store = places.model_store()
    for url in (str(model), "elsewhere/echo"):
        archive = await store.open(url)
        assert real_path(archive) == str(model)
        assert archive.file_name == str(model)
        await store.release(archive)
    assert (model / "echo.py").exists()


async def test_only_directory_in_a_directory(places, manifest) -> None:
    model = _directory_model(places.store / "outer" / "inner", manifest)
    archive = await places.model_store().open("outer")
    assert real_path(archive) == str(model)


async def test_nothing_but_a_manifest(places, manifest) -> None:
    model = _directory_model(places.store / "default", manifest)
    (model / "echo.py").unlink()
    archive = await places.model_store().open("default")
    assert real_path(archive) == str(model)
    assert archive.manifest.model_name == "echo"


async def test_empty_directory(places) -> None:
    (places.store / "empty").mkdir()
    assert (await places.model_store().open("empty")).manifest.model_name == ""


async def test_directory_with_a_broken_manifest(places) -> None:
    (places.store / "echo" / "MAR-INF").mkdir(parents=True)
    (places.store / "echo" / "MAR-INF" / "MANIFEST.json").write_bytes(b"[]")
    await refused(places, places.model_store(), "echo", InvalidModel)


@pytest.mark.parametrize("url", ["/nowhere/.", "nowhere/./", "/nowhere//"])
async def test_the_store_itself_is_no_model(places, manifest, url: str) -> None:
    _directory_model(places.store, manifest)
    await refused(places, places.model_store(), url, ModelNotFound)


# --- downloads ---------------------------------------------------------------------------------


async def test_download(places, web, echo_mar: bytes) -> None:
    before = places.snapshot()
    store = places.model_store()
    url = web.serve("/models/echo.mar", echo_mar) + "?token=secret"
    archive = await store.open(url)
    assert (archive.url, archive.file_name, archive.is_downloaded) == (url, "echo.mar", True)
    assert os.listdir(places.store) == ["echo.mar"]
    assert (places.store / "echo.mar").read_bytes() == echo_mar
    assert archive.manifest.model_name == "echo"
    await store.release(archive)
    assert places.snapshot() == before


async def test_file_url_is_copied(places, echo_mar: bytes) -> None:
    (places.root / "echo.mar").write_bytes(echo_mar)
    store = places.model_store()
    archive = await store.open(f"file://{places.root}/echo.mar")
    assert archive.is_downloaded
    assert (places.store / "echo.mar").read_bytes() == echo_mar
    await store.release(archive)
    assert (places.root / "echo.mar").exists()
    assert os.listdir(places.store) == []


async def test_release_keeps_what_was_there_before(places, echo_mar: bytes) -> None:
    (places.store / "echo.mar").write_bytes(echo_mar)
    store = places.model_store()
    await store.release(await store.open("echo.mar"))
    assert os.listdir(places.store) == ["echo.mar"]


async def test_name_taken(places, web, echo_mar: bytes) -> None:
    (places.store / "echo.mar").write_bytes(b"somebody else's")
    store = places.model_store()
    url = web.serve("/echo.mar", echo_mar)
    message = await refused(places, store, url, ArchiveStorageFailed)
    assert message == "Model file already exists echo.mar"
    assert web.requests == []


async def test_two_downloads_of_one_name(places, web, echo_mar: bytes) -> None:
    store = places.model_store()
    url = web.serve("/echo.mar", echo_mar)
    first_is_here, may_go_on = threading.Event(), threading.Event()
    serve = web.answers["/echo.mar"]

    def answer(request) -> None:
        first_is_here.set()
        may_go_on.wait(30)
        serve(request)

    web.answers["/echo.mar"] = answer
    first = asyncio.create_task(store.open(url))
    await asyncio.to_thread(first_is_here.wait, 30)
    with pytest.raises(ArchiveStorageFailed, match="already exists"):
        await store.open(url)
    may_go_on.set()
    await store.release(await first)
    await store.release(await store.open(url))


@pytest.mark.parametrize("has_links", [True, False])
async def test_name_taken_while_downloading(
    places, web, echo_mar: bytes, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    url = web.serve("/echo.mar", echo_mar)
    serve = web.answers["/echo.mar"]

    def answer(request) -> None:
        (places.store / "echo.mar").write_bytes(b"somebody else's")
        serve(request)

    web.answers["/echo.mar"] = answer
    if not has_links:
        monkeypatch.setattr(model_store_module.os, "link", _no_links)
    with pytest.raises(ArchiveStorageFailed, match=r"Model file already exists echo\.mar"):
        await places.model_store().open(url)
    assert os.listdir(places.store) == ["echo.mar"]
    assert (places.store / "echo.mar").read_bytes() == b"somebody else's"
    assert os.listdir(places.temp / "models") == []


def _no_links(source: str, target: str) -> None:
    raise PermissionError(1, "Operation not permitted")


async def test_store_without_hard_links(places, web, echo_mar, monkeypatch) -> None:
    monkeypatch.setattr(model_store_module.os, "link", _no_links)
    await places.model_store().open(web.serve("/echo.mar", echo_mar))
    assert os.listdir(places.store) == ["echo.mar"]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 and no more"])
async def test_download_that_is_no_archive(places, web, content: bytes) -> None:
    """The file was never in the store under its name, and is gone."""
    await refused(places, places.model_store(), web.serve("/echo.mar", content), InvalidModel)


async def test_download_that_fails(places, web) -> None:
    store = places.model_store()
    message = await refused(places, store, web.url("/echo.mar?k=secret"), ArchiveDownloadFailed)
    shown = web.url("/echo.mar?...")
    assert message == f"Failed to download archive from: {shown} (HTTP status 404)"


@pytest.mark.parametrize("path", ["/", "", "/models/", "/.hidden", "/" + "x" * 300, "/a%5Cb/"])
async def test_url_without_a_file_name(places, web, path: str) -> None:
    store = places.model_store(r"http://127\.0\.0\.1:\d+.*")
    message = await refused(places, store, web.url(path), ArchiveDownloadFailed)
    assert "ends in no file name" in message
    assert web.requests == []


async def test_checksum_is_no_part_of_what_is_allowed(places, web, echo_mar: bytes) -> None:
    store = places.model_store(r"http://127\.0\.0\.1:\d+/.*\.mar")
    url = web.serve("/echo.mar", echo_mar)
    digest = hashlib.sha256(echo_mar).hexdigest()
    archive = await store.open(f"{url}#sha256={digest}")
    assert archive.file_name == "echo.mar"
    await store.release(archive)
    await refused(places, store, f"{url}#sha256={'0' * 64}", ArchiveDownloadFailed)
    await refused(places, store, f"{url}#sha256=0", ArchiveDownloadFailed)


async def test_open_default_reaches_nothing_inside(places, web, echo_mar: bytes) -> None:
    url = web.serve("/echo.mar", echo_mar)
    store = places.model_store(*DEFAULT_ALLOWED_URLS)
    message = await refused(places, store, url, ArchiveDownloadFailed)
    assert "not on the public network" in message
    store = places.model_store(fetch=FetchSettings(allow_private_addresses=True))
    await store.release(await store.open(url))
    assert len(web.requests) == 1


async def test_resolver_is_replaceable(places, web, echo_mar: bytes) -> None:
    url = web.serve("/echo.mar", echo_mar).replace("127.0.0.1", "models.test")
    store = places.model_store(
        r"http://models\.test:\d+/.*", resolve=lambda host, port: ["127.0.0.1"]
    )
    assert (await store.open(url)).manifest.model_name == "echo"


def test_broken_pattern_is_named(places) -> None:
    with pytest.raises(ValueError, match="allowed_urls"):
        places.model_store("http://(")


# --- cancellation ------------------------------------------------------------------------------


async def test_cancelled_download(places, web) -> None:
    """The client left, or the server stops: the connection is cut and the partial file gone."""
    half_sent = threading.Event()

    def answer(request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        request.wfile.write(b"half")
        half_sent.set()
        web.is_over.wait(30)

    web.answers["/echo.mar"] = answer
    before = places.snapshot()
    task = asyncio.create_task(places.model_store().open(web.url("/echo.mar")))
    await asyncio.to_thread(half_sent.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert places.snapshot() == before


async def test_cancelled_while_unpacking(places, mar, monkeypatch: pytest.MonkeyPatch) -> None:
    (places.store / "echo.mar").write_bytes(mar({f"f{i}": b"1" for i in range(10)}))
    before = places.snapshot()
    has_begun, may_go_on = threading.Event(), threading.Event()
    real_unpack = model_store_module.unpack

    def slow_unpack(source, target, limits, check_cancelled, **options) -> None:
        def check() -> None:
            has_begun.set()
            may_go_on.wait(30)
            check_cancelled()

        real_unpack(source, target, limits, check, **options)

    monkeypatch.setattr(model_store_module, "unpack", slow_unpack)
    task = asyncio.create_task(places.model_store().open("echo.mar"))
    await asyncio.to_thread(has_begun.wait, 30)
    task.cancel()
    asyncio.get_running_loop().call_soon(may_go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert places.snapshot() == before


async def test_cancelled_too_late(places, web, echo_mar, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread finishes although nobody waits any more: its archive and its file go again."""
    before = places.snapshot()
    is_done, may_return = threading.Event(), threading.Event()
    real_give_name = model_store_module.ModelStore._give_name

    def slow_give_name(*given: str) -> None:
        real_give_name(*given)
        is_done.set()
        may_return.wait(30)

    monkeypatch.setattr(model_store_module.ModelStore, "_give_name", slow_give_name)
    task = asyncio.create_task(places.model_store().open(web.serve("/echo.mar", echo_mar)))
    await asyncio.to_thread(is_done.wait, 30)
    task.cancel()
    asyncio.get_running_loop().call_soon(may_return.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert places.snapshot() == before


async def test_cancelled_twice(places, web) -> None:
    has_come = threading.Event()

    def answer(request) -> None:
        has_come.set()
        web.is_over.wait(30)

    web.answers["/echo.mar"] = answer
    before = places.snapshot()
    task = asyncio.create_task(places.model_store().open(web.url("/echo.mar")))
    await asyncio.to_thread(has_come.wait, 30)
    task.cancel()
    asyncio.get_running_loop().call_soon(task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert places.snapshot() == before


# --- names -------------------------------------------------------------------------------------


def test_list_all(places) -> None:
    for name in ("b.mar", "a.model", "c.tar.gz", "d.txt", "e.zip", ".f.mar", "g.tgz"):
        (places.store / name).write_bytes(b"")
    for name in ("dir", ".hidden"):
        (places.store / name).mkdir()
    (places.store / "link").symlink_to(places.store / "dir")
    assert places.model_store().list_all() == ["a.model", "b.mar", "c.tar.gz", "dir", "link"]


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("echo.mar", "echo"),
        ("https://h/a/echo-v1.2.mar", "echo_v1_2"),
        ("echo.model", "echo"),
        ("echo.tar.gz", "echo_tar_gz"),
        ("_echo.mar", "_echo"),
        ("-echo x.mar", "_echo_x"),
        ("/models/dir", "dir"),
        ("échô.mar", "_ch_"),
        ("https://h/echo.mar?sig=1.2", "echo_mar_sig_1"),
    ],
)
def test_default_name(location: str, name: str) -> None:
    assert default_name(location) == name


def test_a_look_finds_the_archive_and_keeps_what_is_small(places, mar, manifest) -> None:
    weights = b"w" * (2 << 20)
    content = {"MAR-INF/MANIFEST.json": manifest(), "echo.py": b"x = 1\n", "weights": weights}
    (places.store / "echo.mar").write_bytes(mar(content))
    before = places.snapshot()
    store: ModelStore = places.model_store()
    archive = store.look_blocking("echo.mar")
    assert archive.manifest.model_name == "echo"
    assert Path(archive.path, "echo.py").read_bytes() == b"x = 1\n"
    assert Path(archive.path, "weights").stat().st_size == len(weights)
    store.release_blocking(archive)
    assert places.snapshot() == before
    with pytest.raises(ModelNotFound):
        store.look_blocking("../echo.mar")
    with pytest.raises(ModelNotFound, match="not looked at"):
        store.look_blocking(f"file://{places.store}/echo.mar")
    assert places.snapshot() == before
