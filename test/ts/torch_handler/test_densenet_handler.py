import io

import pytest
import torch

from ts.torch_handler.densenet_handler import DenseNetHandler
from ts.utils.util import PredictionException

EAGER = """
import torch

class Adder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.term = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return x + self.term
"""


def saved(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    return bytearray(file.getvalue())


@pytest.fixture
def manifest_model(tmp_path):
    (tmp_path / "adder.py").write_text(EAGER)
    torch.save({"term": torch.tensor(5.0)}, tmp_path / "adder.pth")
    return {"modelFile": "adder.py", "serializedFile": "adder.pth"}


def test_saved_tensors_in_one_stacked_tensor_out(make_context, manifest_model):
    handler = DenseNetHandler()
    context = make_context(**manifest_model)
    handler.initialize(context)
    rows = [{"data": saved(torch.tensor([1.0]))}, {"body": saved(torch.tensor([2.0]))}]
    assert handler.handle(rows, context).tolist() == [[6.0], [7.0]]
    assert handler.initialized


def test_torchscript(make_context, save_torchscript):
    handler = DenseNetHandler()
    context = make_context(serializedFile=save_torchscript(torch.nn.Identity()))
    handler.initialize(context)
    assert handler.handle([{"data": saved(torch.ones(2))}], context).tolist() == [[1.0, 1.0]]


def test_missing_files_are_refused(make_context, manifest_model):
    with pytest.raises(RuntimeError, match=r"absent\.pth"):
        DenseNetHandler().initialize(make_context(serializedFile="absent.pth"))
    with pytest.raises(RuntimeError, match="Missing the model"):
        DenseNetHandler().initialize(make_context(**{**manifest_model, "modelFile": "absent.py"}))


def test_a_clients_pickle_is_refused_even_where_the_archives_are_trusted(
    make_context, save_torchscript, monkeypatch
):
    monkeypatch.setenv("TS_WEIGHTS_ONLY", "false")
    handler = DenseNetHandler()
    context = make_context(serializedFile=save_torchscript(torch.nn.Identity()))
    handler.initialize(context)
    with pytest.raises(RuntimeError, match="holds objects other than tensors"):
        handler.handle([{"data": saved(PredictionException("x"))}], context)
