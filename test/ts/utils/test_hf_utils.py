import sys
import types

import pytest

from ts.utils.hf_utils import download_model


def test_a_snapshot_is_downloaded_into_the_cache(monkeypatch):
    calls = []

    def snapshot_download(**arguments):
        calls.append(arguments)
        return f"{arguments['cache_dir']}/snapshots/1"

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)

    assert download_model("org/name", model_path="cache", use_auth_token="t") == "cache/snapshots/1"
    (call,) = calls
    assert (call["repo_id"], call["revision"], call["token"]) == ("org/name", "main", "t")
    assert "*.safetensors" in call["allow_patterns"]


def test_a_missing_hub_client_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match="pip install huggingface_hub"):
        download_model("org/name")
