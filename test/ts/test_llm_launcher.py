"""`python -m ts.llm_launcher`: the model that it writes, and what it does with the server."""

from __future__ import annotations

import json
import queue

import pytest
import yaml

from ts import launcher, llm_launcher


@pytest.fixture
def server(monkeypatch):
    """A launcher that notes its calls; the server ends at once."""
    calls = []

    def start(**arguments):
        store = arguments["model_store"]
        calls.append(arguments)
        with open(f"{store}/m/model-config.yaml") as config:
            calls.append(yaml.safe_load(config))
        with open(f"{store}/m/MAR-INF/MANIFEST.json") as manifest:
            calls.append(json.load(manifest)["model"])
        lines = queue.Queue()
        lines.put(None)
        return lines

    monkeypatch.setattr(launcher, "start", start)
    monkeypatch.setattr(launcher, "stop", lambda: calls.append("stop"))
    monkeypatch.setattr(llm_launcher.signal, "signal", lambda *_: None)
    monkeypatch.setattr(llm_launcher, "is_installed", lambda package: True)
    return calls


def test_a_model_is_written_served_and_removed(server, tmp_path):
    store = tmp_path / "store"
    words = ["--model_name", "m", "--model_id", "hub/tiny", "--model_store", str(store)]
    llm_launcher.main([*words, "--vllm_engine.max_model_len", "64", "--disable_token_auth"])
    started, config, model, stopped = server
    assert started["models"] == "m=m"
    assert started["disable_token"]
    assert started["no_config_snapshots"]
    assert (model["handler"], model["modelVersion"]) == ("vllm_handler", "1.0")
    assert config["asyncCommunication"] is True
    assert (config["batchSize"], config["startupTimeout"]) == (1, 1200)
    assert config["handler"]["model_path"] == "hub/tiny"
    engine = config["handler"]["vllm_engine_config"]
    assert (engine["max_num_seqs"], engine["max_model_len"]) == (256, 64)
    assert "download_dir" not in engine
    assert stopped == "stop"
    assert list(store.iterdir()) == []


def test_a_model_that_is_there_stays_as_it_is(server, tmp_path):
    (tmp_path / "m" / "MAR-INF").mkdir(parents=True)
    (tmp_path / "m" / "model-config.yaml").write_text("mine: 1")
    (tmp_path / "m" / "MAR-INF" / "MANIFEST.json").write_text('{"model": {}}')
    llm_launcher.main(["--model_name", "m", "--model_store", str(tmp_path)])
    assert server[1] == {"mine": 1}
    assert (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [("trt_llm", "trtllm-build"), ("abc", "Unsupported LLM Engine"), ("vllm", "pip install vllm")],
)
def test_an_engine_that_is_not_to_be_had_says_what_to_do(monkeypatch, tmp_path, engine, complaint):
    monkeypatch.setattr(llm_launcher, "is_installed", lambda package: False)
    store = tmp_path / "store"
    with pytest.raises(SystemExit, match=complaint):
        llm_launcher.main(
            ["--engine", engine, "--trt_llm_engine.max_batch_size=4", "--model_store", str(store)]
        )
    assert not store.exists()
