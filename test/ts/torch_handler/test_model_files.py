"""Every kind of model file through BaseHandler: what loads, where it lands, what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import warnings
import zipfile
from types import SimpleNamespace

import pytest
import torch

from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.image_classifier import ImageClassifier
from ts.torch_handler.model_files import run_onnx
from ts.utils.util import PredictionException

# y = x * 2, float [n, 2]: made with the package onnx, which so few bytes are not worth.
DOUBLE_ONNX = (
    b'\x08\x08\x12\x00:U\n\x10\n\x01x\n\x03two\x12\x01y"\x03Mul\x12\x06double*\r\x10\x01"\x04'
    b"\x00\x00\x00@B\x03twoZ\x14\n\x01x\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x02b"
    b"\x14\n\x01y\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x02B\x04\n\x00\x10\r"
)
SCALE = """
import torch

class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x * self.factor
"""


class Scale(torch.nn.Module):
    def __init__(self, factor: float = 2.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


@pytest.fixture
def load(tmp_path, make_context):
    """A started handler for the folder: load(serializedFile=..., config=...)."""
    (tmp_path / "scale.py").write_text(SCALE)

    def start(handler_class=BaseHandler, **arguments):
        handler, context = handler_class(), make_context(**arguments)
        handler.initialize(context)
        handler.context = context
        return handler

    return start


def answer(handler, rows=((1.0, 3.0),)):
    return handler.handle([list(row) for row in rows], handler.context)


def save_exported(path, dynamic=True):
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"x": {0: batch}} if dynamic else None
    program = torch.export.export(Scale(4.0).eval(), (torch.ones(2, 2),), dynamic_shapes=shapes)
    torch.export.save(program, path)


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def saved(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def replace_member(path, name, content: bytes) -> None:
    """Write other bytes for the member of the archive whose name holds `name`."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    (found,) = (member for member in members if name in member)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in {**members, found: content}.items():
            archive.writestr(member, data)


class TestExported:
    def test_a_program_of_torch_export(self, load, tmp_path):
        save_exported(tmp_path / "scale.pt2")
        handler = load(serializedFile="scale.pt2")
        assert answer(handler) == [[4.0, 12.0]]
        assert answer(handler, [(1.0, 2.0)] * 3) == [[4.0, 8.0]] * 3

    def test_its_pickles_run_no_code(self, load, tmp_path):
        """torch.export reads what it does not know as weights with everything allowed."""
        save_exported(tmp_path / "scale.pt2")
        ran = tmp_path / "ran"
        replace_member(tmp_path / "scale.pt2", "sample_inputs", saved((Runs(str(ran)),)))
        with pytest.raises(RuntimeError, match=r"scale\.pt2 .* handler: {weights_only: false}"):
            load(serializedFile="scale.pt2")
        assert not ran.exists()
        assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ

    def test_it_can_be_compiled(self, load, tmp_path):
        save_exported(tmp_path / "scale.pt2")
        compiled = {"pt2": {"compile": {"enable": True, "backend": "eager"}}}
        assert answer(load(serializedFile="scale.pt2", config=compiled)) == [[4.0, 12.0]]

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
    def test_an_aotinductor_package(self, load, tmp_path):
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(Scale(5.0).eval(), (torch.ones(1, 2),))
            path = str(tmp_path / "scale.pt2")
            torch._inductor.aoti_compile_and_package(program, package_path=path)
            handler = load(serializedFile="scale.pt2")
            assert answer(handler) == [[5.0, 15.0]]

    def test_a_file_of_another_kind_is_refused(self, load, tmp_path):
        (tmp_path / "scale.pt2").write_bytes(b"no archive")
        with pytest.raises(RuntimeError, match=r"scale\.pt2 is no \.pt2 archive"):
            load(serializedFile="scale.pt2")

    def test_the_type_of_an_exported_model_is_fixed(self, load, tmp_path):
        save_exported(tmp_path / "scale.pt2")
        with pytest.raises(ValueError, match=r"handler\.dtype: scale\.pt2 keeps the types"):
            load(serializedFile="scale.pt2", config={"handler": {"dtype": "float16"}})


class AddSession:
    """As much of a session of ONNX Runtime as is asked: a + b."""

    def get_inputs(self):
        return [SimpleNamespace(name=name, type="tensor(float)") for name in ("a", "b")]

    def run(self, _, feed):
        return [feed["a"] + feed["b"]]


class TestOnnxInputs:
    def test_they_are_given_in_order_or_by_name(self):
        one, two = torch.tensor([1.0]), torch.tensor([2.0])
        for given in (run_onnx(AddSession(), one, two), run_onnx(AddSession(), one, b=two)):
            assert given.tolist() == [3.0]

    @pytest.mark.parametrize(("count", "names"), [(3, ""), (1, "c"), (2, "b")])
    def test_one_too_many_is_refused(self, count, names):
        with pytest.raises(ValueError, match=rf"takes 2 inputs \(a, b\), .* given {count} by"):
            run_onnx(AddSession(), *[torch.ones(1)] * count, **dict.fromkeys(names, torch.ones(1)))


@pytest.mark.onnx
class TestOnnx:
    def test_base_handler_runs_it(self, load, tmp_path):
        (tmp_path / "double.onnx").write_bytes(DOUBLE_ONNX)
        handler = load(serializedFile="double.onnx")
        assert answer(handler) == [[2.0, 6.0]]
        # Whole numbers are cast to the type that the model declares.
        assert handler.inference(torch.tensor([[1, 2]])).tolist() == [[2.0, 4.0]]

    def test_a_default_handler_runs_it(self, load, tmp_path):
        (tmp_path / "double.onnx").write_bytes(DOUBLE_ONNX)
        handler = load(ImageClassifier, serializedFile="double.onnx")
        (found,) = handler.postprocess(handler.inference(torch.tensor([[0.0, 1.0]])))
        assert list(found) == ["1", "0"]
        assert found["1"] == pytest.approx(0.8808, abs=1e-4)


class TestTorchScript:
    def test_a_state_dict_without_a_model_file_says_what_is_missing(self, load, tmp_path):
        torch.save(Scale().state_dict(), tmp_path / "scale.pt")
        with pytest.raises(RuntimeError, match="needs a model file with the model's class"):
            load(serializedFile="scale.pt")


def write_safetensors(path, **tensors):
    """The format as published: length of the header, header in JSON, then the bytes."""
    header, body = {}, b""
    for name, value in tensors.items():
        raw = struct.pack("<f", value)
        header[name] = {
            "dtype": "F32", "shape": [], "data_offsets": [len(body), len(body) + len(raw)]
        }  # fmt: skip
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


class TestWeights:
    @pytest.mark.onnx  # the same environment of optional packages
    def test_safetensors(self, load, tmp_path):
        write_safetensors(tmp_path / "scale.safetensors", factor=7.0)
        handler = load(modelFile="scale.py", serializedFile="scale.safetensors")
        assert answer(handler) == [[7.0, 21.0]]

    def test_safetensors_without_the_package_say_what_to_install(self, load, tmp_path, monkeypatch):
        write_safetensors(tmp_path / "scale.safetensors", factor=7.0)
        monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
        with pytest.raises(RuntimeError, match=r"torchserve\[safetensors\]"):
            load(modelFile="scale.py", serializedFile="scale.safetensors")

    def test_a_model_saved_with_its_class_needs_permission(self, load, tmp_path):
        torch.save(Scale(6.0), tmp_path / "scale.pth")
        with pytest.raises(RuntimeError, match=r"handler\.weights_only: false"):
            load(serializedFile="scale.pth")
        allowed = {"handler": {"weights_only": False}}
        assert answer(load(serializedFile="scale.pth", config=allowed)) == [[6.0, 18.0]]

    def test_the_model_files_class_takes_the_weights_of_a_saved_model(self, load, tmp_path):
        torch.save(Scale(6.0), tmp_path / "scale.pth")
        files = {"modelFile": "scale.py", "serializedFile": "scale.pth"}
        with pytest.raises(RuntimeError, match=r"weights_only: false"):
            load(**files)
        handler = load(config={"handler": {"weights_only": False}}, **files)
        assert answer(handler) == [[6.0, 18.0]]

    def test_permission_does_not_make_a_model_of_anything(self, load, tmp_path):
        torch.save({"made": PredictionException("x")}, tmp_path / "odd.pth")
        with pytest.raises(RuntimeError, match=r"odd\.pth holds a dict and no model"):
            load(serializedFile="odd.pth", config={"handler": {"weights_only": False}})

    @pytest.mark.parametrize("value", ["no", 0, []])
    def test_permission_is_true_or_false(self, load, tmp_path, value):
        torch.save(Scale().state_dict(), tmp_path / "scale.pth")
        with pytest.raises(ValueError, match=r"handler\.weights_only: true or false"):
            load(
                modelFile="scale.py",
                serializedFile="scale.pth",
                config={"handler": {"weights_only": value}},
            )


class TestDtype:
    def test_weights_take_the_type_of_the_models_class(self, load, tmp_path):
        torch.save({"factor": torch.tensor(3.0, dtype=torch.float16)}, tmp_path / "scale.pth")
        handler = load(modelFile="scale.py", serializedFile="scale.pth")
        assert handler.model.factor.dtype == torch.float32

    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
    def test_the_configuration_casts_weights_and_inputs(self, load, name):
        handler = load(modelFile="scale.py", config={"handler": {"dtype": name}})
        dtype = getattr(torch, name)
        assert handler.model.factor.dtype == dtype
        assert handler.inference(torch.tensor([1.0])).dtype == dtype
        assert handler.inference(torch.tensor([3])).tolist() == [6.0]  # whole numbers stay whole
        assert answer(handler) == [[2.0, 6.0]]

    def test_torchscript_is_cast_too(self, load, save_torchscript):
        name = save_torchscript(Scale(2.0), "scripted.pt")
        handler = load(serializedFile=name, config={"handler": {"dtype": "bfloat16"}})
        assert handler.inference(torch.tensor([1.5])).dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("name", "hint"), [("fp16", "float16"), ("bfloat", "bfloat16"), ("int8", "there are")]
    )
    def test_an_unknown_type_is_refused(self, load, name, hint):
        with pytest.raises(ValueError, match=rf"handler\.dtype: '{name}' is no type.*{hint}"):
            load(modelFile="scale.py", config={"handler": {"dtype": name}})


@pytest.mark.gpu
class TestGpu:
    def test_a_program_exported_on_the_cpu_moves(self, load, tmp_path):
        save_exported(tmp_path / "scale.pt2")
        handler = load(serializedFile="scale.pt2", gpu_id=0)
        assert handler.inference(torch.ones(2, 2)).device == torch.device("cuda:0")

    def test_half_precision_weights(self, load):
        handler = load(modelFile="scale.py", gpu_id=0, config={"handler": {"dtype": "float16"}})
        result = handler.inference(torch.ones(2, 2))
        assert (result.device.type, result.dtype) == ("cuda", torch.float16)
