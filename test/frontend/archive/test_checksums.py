"""Archives that are let in by their content, and everything that is not."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import pytest

from ts_frontend.archive.checksums import ChecksumList, ListRefused
from ts_frontend.core.errors import InvalidModel


def sums(**contents: bytes) -> str:
    """As `sha256sum` writes them."""
    return "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}.mar\n" for name, content in contents.items()
    )


@pytest.fixture
def store(places, echo_mar: bytes):
    """store(text of the list) -> a model store with it, and echo.mar in it."""
    (places.store / "echo.mar").write_bytes(echo_mar)
    path = places.root / "models.sha256"

    def make(text: str, public_key: Path | None = None):
        path.write_text(text)
        return places.model_store(checksums=ChecksumList(str(path), public_key and str(public_key)))

    return make


async def test_a_listed_archive_is_opened(store, places, echo_mar: bytes) -> None:
    model_store = store(f"# ours\n{sums(other=b'x')}{sums(echo=echo_mar).replace('  ', ' *./')}\n")
    archive = await model_store.open("echo.mar")
    assert archive.manifest.model_name == "echo"
    assert len(os.listdir(places.temp / "models")) == 1  # the verified copy is gone
    await model_store.release(archive)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "The archive echo.mar is not listed in archive_checksums."),
        (sums(other=b"x"), "is not listed"),
        (sums(echo=b"something else"), "another SHA-256 than archive_checksums demands"),
        ("nonsense\n", "cannot be verified; the server's log says why"),
    ],
)
async def test_an_archive_is_refused_before_a_byte_is_unpacked(
    store, places, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    def unpack(*_: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr("ts_frontend.archive.model_store.unpack", unpack)
    before = places.snapshot()
    with pytest.raises(InvalidModel, match=reason):
        await store(text).open("echo.mar")
    assert places.snapshot() == before


async def test_one_flipped_bit(store, places, echo_mar: bytes) -> None:
    model_store = store(sums(echo=echo_mar))
    flipped = bytearray(echo_mar)
    flipped[len(flipped) // 2] ^= 1
    (places.store / "echo.mar").write_bytes(flipped)
    with pytest.raises(InvalidModel, match="another SHA-256"):
        await model_store.open("echo.mar")


async def test_an_archive_exchanged_after_its_check(
    store, places, echo_mar: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is unpacked is what was checked, whoever writes to the store in between."""
    from ts_frontend.archive import model_store as module

    real = module.unpack

    def exchange_first(path: str, *rest: object, **options: object) -> None:
        (places.store / "echo.mar").write_bytes(b"an impostor")
        real(path, *rest, **options)

    monkeypatch.setattr(module, "unpack", exchange_first)
    model_store = store(sums(echo=echo_mar))
    archive = await model_store.open("echo.mar")
    assert archive.manifest.model_name == "echo"
    await model_store.release(archive)


async def test_a_download_is_checked_before_it_is_in_the_store(
    store, places, web, echo_mar: bytes
) -> None:
    model_store = store(sums(remote=echo_mar))
    before = places.snapshot()
    with pytest.raises(InvalidModel, match="another SHA-256"):
        await model_store.open(web.serve("/remote.mar", b"x" + echo_mar))
    assert places.snapshot() == before
    archive = await model_store.open(web.serve("/remote.mar", echo_mar))
    await model_store.release(archive)


async def test_a_folder_has_no_checksum(store, places, echo_mar: bytes) -> None:
    (places.store / "folder").mkdir()
    with pytest.raises(InvalidModel, match="folder; archive_checksums lets in archives"):
        await store(sums(folder=b"")).open("folder")


async def test_a_new_line_counts_at_once(store, places, echo_mar: bytes) -> None:
    model_store = store("")
    (places.root / "models.sha256").write_text(sums(echo=echo_mar))
    await model_store.release(await model_store.open("echo.mar"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("abc  echo.mar", r"models:1: 64 hexadecimal digits"),
        (f"\n{'0' * 64} echo.mar", r"models:2: 64 hexadecimal digits"),
        (f"{'0' * 64}  a\n{'1' * 64}  a", r"models:2: a is listed with another sum"),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "models"
    path.write_text(text)
    with pytest.raises(ListRefused, match=reason):
        ChecksumList(str(path)).check()


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(ListRefused, match="No such file"):
        ChecksumList(str(tmp_path / "gone")).check()


class TestSignedLists:
    @pytest.fixture
    def signed(self, tmp_path: Path):
        """(list, public key, sign): sign() renews the signature; it returns its bytes."""
        pytest.importorskip("cryptography")
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = Ed25519PrivateKey.generate()
        path, public = tmp_path / "models.sha256", tmp_path / "public.pem"
        public.write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        path.write_text(sums(echo=b"x"))

        def sign() -> bytes:
            signature = key.sign(path.read_bytes())
            Path(f"{path}.sig").write_bytes(signature)
            return signature

        sign()
        return path, public, sign

    def test_good_signatures(self, signed) -> None:
        path, public, sign = signed
        ChecksumList(str(path), str(public)).check()
        Path(f"{path}.sig").write_bytes(base64.encodebytes(sign()))
        ChecksumList(str(path), str(public)).check()

    def test_a_changed_list(self, signed) -> None:
        path, public, _ = signed
        path.write_text(sums(echo=b"y"))
        with pytest.raises(ListRefused, match=r"not the signature of models\.sha256"):
            ChecksumList(str(path), str(public)).check()

    @pytest.mark.parametrize("content", [b"", b"x" * 64, b"x" * 63, b"\xff" * 70])
    def test_what_is_no_signature(self, signed, content: bytes) -> None:
        path, public, _ = signed
        Path(f"{path}.sig").write_bytes(content)
        with pytest.raises(ListRefused, match=r"models\.sha256\.sig: n"):
            ChecksumList(str(path), str(public)).check()

    def test_an_unsigned_list(self, signed) -> None:
        path, public, _ = signed
        Path(f"{path}.sig").unlink()
        with pytest.raises(ListRefused, match=r"models\.sha256\.sig: No such file"):
            ChecksumList(str(path), str(public)).check()

    def test_keys_of_other_kinds(self, signed) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        path, public, _ = signed
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        public.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        with pytest.raises(ListRefused, match="not an Ed25519 key"):
            ChecksumList(str(path), str(public)).check()
        public.write_text("no key")
        with pytest.raises(ListRefused, match="not a PEM public key"):
            ChecksumList(str(path), str(public)).check()
