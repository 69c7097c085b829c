"""Keys: made, given, rotated, compared; never shown."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import stat
from pathlib import Path

import pytest

from ts_frontend import tokens as tokens_module
from ts_frontend.core.errors import InvalidArgument
from ts_frontend.tokens import InvalidKey, InvalidKeyFile, KeyKind, TokenAuthority, given_keys

REFUSED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def keys_in(folder: Path) -> dict[str, dict[str, str]]:
    return json.loads((folder / "key_file.json").read_text())


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def is_open(authority: TokenAuthority, kind: KeyKind, authorization: bytes | None) -> bool:
    try:
        authority.check(kind, authorization)
    except InvalidKey as error:
        return str(error) != REFUSED
    return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> TokenAuthority:
    made = TokenAuthority(str(tmp_path), 3600, clock)
    made.write_file()
    return made


def test_the_key_file(authority: TokenAuthority, tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    assert list(keys) == ["management", "inference", "API"]
    assert keys["API"].keys() == {"key"}
    assert keys["inference"]["expiration time"] == "2023-11-14T23:13:20.000000Z"
    assert all(len(entry["key"]) == 8 for entry in keys.values())
    assert stat.S_IMODE((tmp_path / "key_file.json").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["key_file.json"]


def test_each_key_opens_its_own_door_only(authority: TokenAuthority, tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    for kind in KeyKind:
        for name, entry in keys.items():
            assert is_open(authority, kind, bearer(entry["key"])) is (name == kind.value)


@pytest.mark.parametrize(
    "form",
    ["{}", "bearer {}", "BEARER {}", "Bearer{}", "Bearer {} x", "Basic {}", " Bearer {}", ""],
)
def test_other_forms_of_the_header(authority: TokenAuthority, tmp_path: Path, form: str) -> None:
    key = keys_in(tmp_path)["inference"]["key"]
    assert not is_open(authority, KeyKind.INFERENCE, form.format(key).encode())
    assert is_open(authority, KeyKind.INFERENCE, f"Bearer   {key}".encode())
    assert not is_open(authority, KeyKind.INFERENCE, None)


def test_keys_expire_but_the_api_key(
    authority: TokenAuthority, tmp_path: Path, clock: Clock
) -> None:
    keys = keys_in(tmp_path)
    clock.now += 3599
    assert is_open(authority, KeyKind.INFERENCE, bearer(keys["inference"]["key"]))
    clock.now += 2
    assert not is_open(authority, KeyKind.INFERENCE, bearer(keys["inference"]["key"]))
    authority.refresh("inference", bearer(keys["API"]["key"]))
    assert is_open(authority, KeyKind.INFERENCE, bearer(keys_in(tmp_path)["inference"]["key"]))


def test_a_refresh_ends_the_old_key_at_once(authority: TokenAuthority, tmp_path: Path) -> None:
    old = keys_in(tmp_path)
    authority.refresh("management", bearer(old["API"]["key"]))
    new = keys_in(tmp_path)
    assert not is_open(authority, KeyKind.MANAGEMENT, bearer(old["management"]["key"]))
    assert is_open(authority, KeyKind.MANAGEMENT, bearer(new["management"]["key"]))
    assert new["inference"] == old["inference"]
    assert new["API"] == old["API"]


@pytest.mark.parametrize(
    ("wanted", "holder"),
    [("inference", "inference"), ("inference", "management"), ("API", "API"), ("", "API")],
)
def test_who_may_refresh_what(
    authority: TokenAuthority, tmp_path: Path, wanted: str, holder: str
) -> None:
    before = keys_in(tmp_path)
    with pytest.raises(InvalidKey, match="Token Authentication failed"):
        authority.refresh(wanted, bearer(before[holder]["key"]))
    assert keys_in(tmp_path) == before


def test_keys_are_compared_in_constant_time(
    authority: TokenAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    real = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return real(left, right)

    monkeypatch.setattr(tokens_module.hmac, "compare_digest", compare)
    for header in (None, b"", b"Bearer x", b"nonsense"):
        assert not is_open(authority, KeyKind.API, header)
    assert len(compared) == 4


# --- given keys -----------------------------------------------------------------------------------


def test_keys_of_the_environment(tmp_path: Path) -> None:
    given = given_keys({"inference": "inference-key-1", "API": "api-key-of-ours"})
    authority = TokenAuthority(str(tmp_path), 3600, given=given)
    authority.write_file()
    assert is_open(authority, KeyKind.INFERENCE, b"Bearer inference-key-1")
    # What was given is not written down again; what was not is generated as ever.
    assert list(keys_in(tmp_path)) == ["management"]
    with pytest.raises(InvalidArgument, match="renewed where it came from"):
        authority.refresh("inference", b"Bearer api-key-of-ours")
    authority.refresh("management", b"Bearer api-key-of-ours")


def test_no_file_where_all_keys_are_given(tmp_path: Path) -> None:
    given = given_keys({kind.value: f"{kind.value}-key" for kind in KeyKind} | {"API": "api-key-1"})
    authority = TokenAuthority(str(tmp_path), 3600, given=given)
    authority.write_file()
    assert not authority.is_generating
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["short", "with blank inside", "ümlaut-key", "x" * 513])
def test_keys_that_cannot_be_used(key: str) -> None:
    with pytest.raises(InvalidKeyFile) as refused:
        given_keys({"inference": key})
    assert key not in str(refused.value)


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A secret as Kubernetes mounts it: a link into a folder that is exchanged as a whole."""
    folder = tmp_path / "mounted"
    for version, content in (
        ("1", {"inference": "first-inference-key"}),
        ("2", {"inference": ["second-inference-key", "first-inference-key"]}),
        ("3", {"inference": "second-inference-key", "management": "given-management-key"}),
    ):
        (folder / version).mkdir(parents=True)
        (folder / version / "keys.json").write_text(json.dumps(content))
        (folder / version / "keys.json").chmod(0o600)
    (folder / "data").symlink_to("1")
    return folder


def swap(folder: Path, version: str) -> None:
    (folder / "new").symlink_to(version)
    (folder / "new").rename(folder / "data")


def test_rotation_without_a_restart(mounted: Path, tmp_path: Path) -> None:
    authority = TokenAuthority(str(tmp_path), 3600, key_file=str(mounted / "data" / "keys.json"))
    authority.write_file()
    generated = keys_in(tmp_path)["management"]["key"]
    first, second = b"Bearer first-inference-key", b"Bearer second-inference-key"
    assert is_open(authority, KeyKind.INFERENCE, first)
    swap(mounted, "2")
    assert not is_open(authority, KeyKind.INFERENCE, second)
    authority.reload()
    assert is_open(authority, KeyKind.INFERENCE, first)
    assert is_open(authority, KeyKind.INFERENCE, second)
    assert is_open(authority, KeyKind.MANAGEMENT, bearer(generated))
    swap(mounted, "3")
    authority.reload()
    assert not is_open(authority, KeyKind.INFERENCE, first)
    assert is_open(authority, KeyKind.MANAGEMENT, b"Bearer given-management-key")
    assert not is_open(authority, KeyKind.MANAGEMENT, bearer(generated))
    assert list(keys_in(tmp_path)) == ["API"]
    swap(mounted, "1")  # the management key is the server's own again
    authority.reload()
    assert is_open(authority, KeyKind.MANAGEMENT, bearer(keys_in(tmp_path)["management"]["key"]))


async def test_watching(mounted: Path, tmp_path: Path) -> None:
    authority = TokenAuthority(str(tmp_path), 3600, key_file=str(mounted / "data" / "keys.json"))
    watching = asyncio.create_task(authority.watch(0.01))
    swap(mounted, "3")
    async with asyncio.timeout(10):
        second = b"Bearer second-inference-key"
        while not is_open(authority, KeyKind.INFERENCE, second):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    watching.cancel()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "an object with some of management, inference, API"),
        ("{}", "an object with some of"),
        ('{"inferance": "geheim-geheim"}', "an object with some of"),
        ('{"inference": "geheim"}', "inference: a key has 8 to 512"),
        ('{"inference": []}', "a list without a key"),
        ('{"inference": {"key": "geheim-geheim", "expiration time": "x"}}', "expiration time"),
        ('{"inference": "geheim-geheim"' + " " * 70000 + "}", "more than 65536 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_the_keys_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, reason: str
) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"inference": "good-inference-key"}')
    path.chmod(0o600)
    authority = TokenAuthority(str(tmp_path), 3600, key_file=str(path))
    path.write_text(text)
    authority.reload()
    assert is_open(authority, KeyKind.INFERENCE, b"Bearer good-inference-key")
    assert reason in caplog.text
    assert "geheim" not in caplog.text
    with pytest.raises(InvalidKeyFile, match=reason):
        TokenAuthority(str(tmp_path), 3600, key_file=str(path))


def test_a_given_key_with_an_end(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys.json"
    path.write_text(
        '{"inference": {"key": "abcdefgh", "expiration time": "2023-11-14T23:13:20.000000Z"}}'
    )
    path.chmod(0o600)
    authority = TokenAuthority(str(tmp_path), 1, clock, key_file=str(path))
    assert is_open(authority, KeyKind.INFERENCE, b"Bearer abcdefgh")
    clock.now += 3601
    assert not is_open(authority, KeyKind.INFERENCE, b"Bearer abcdefgh")


def test_keys_are_never_logged(
    mounted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = mounted / "data" / "keys.json"
    (mounted / "1" / "keys.json").chmod(0o644)
    authority = TokenAuthority(str(tmp_path), 3600, key_file=str(path))
    authority.write_file()
    swap(mounted, "2")
    authority.reload()
    is_open(authority, KeyKind.API, b"Bearer wrong-key-presented")
    assert "can be read by every user" in caplog.text
    for secret in ("inference-key", "wrong-key", *(e["key"] for e in keys_in(tmp_path).values())):
        assert secret not in caplog.text + repr(authority)
