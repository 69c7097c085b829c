"""The files that hold models and weights.

What is trusted is the archive's Python: its handler and its model file. A file of weights is data,
so a pickle may only hold tensors and plain containers, unless the archive's configuration says
`handler: {weights_only: false}` (or the environment TS_WEIGHTS_ONLY=false, for all models). That
goes for the pickles in a .pt2 file, too; but a file that holds a program (.pt2, .so) is code and
has to be trusted like the archive's Python.
"""

from __future__ import annotations

import difflib
import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import torch

# What `handler.dtype` may name. Integers are left out: weights of that kind come with operators of
# their own, which a cast does not give.
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}

_ONNX_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}

_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def is_weights_only(config: Mapping[str, Any] | None) -> bool:
    """Whether pickles may hold nothing but weights, by the model's configuration and environment.

    Raises ValueError if `handler.weights_only` is neither true nor false.
    """
    section = (config or {}).get("handler")
    value = section.get("weights_only") if isinstance(section, Mapping) else None
    if value is None:
        return os.environ.get("TS_WEIGHTS_ONLY", "true").lower() != "false"
    if not isinstance(value, bool):
        raise ValueError(f"handler.weights_only: true or false, not {value!r}")
    return value


def wanted_dtype(config: Mapping[str, Any] | None) -> torch.dtype | None:
    """The type of `handler.dtype`; None keeps the one that the model was made with.

    Raises ValueError that names the nearest right name.
    """
    section = (config or {}).get("handler")
    name = section.get("dtype") if isinstance(section, Mapping) else None
    if name is None:
        return None
    if str(name) not in DTYPES:
        near = difflib.get_close_matches(str(name), DTYPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(DTYPES)}"
        raise ValueError(f"handler.dtype: {name!r} is no type for weights; {hint}")
    return DTYPES[str(name)]


def load_torch_file(
    path: str | IO[bytes], map_location: Any = None, weights_only: bool | None = None
) -> Any:
    """What `torch.save` wrote to the file, or the tensors of a .safetensors file.

    weights_only: refuse a file that holds other objects than tensors and plain containers; None
                  asks the environment.
    Raises RuntimeError for a refused file, and if a package is missing.
    """
    name = os.path.basename(path) if isinstance(path, str) else "The data"
    if name.endswith(".safetensors"):
        return _load_safetensors(path, map_location)
    if weights_only is None:
        weights_only = is_weights_only(None)
    try:
        return torch.load(path, map_location=map_location, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if not weights_only:
            raise
        raise _refused(name, error) from error


def _refused(name: str, error: pickle.UnpicklingError) -> RuntimeError:
    return RuntimeError(
        f"{name} holds objects other than tensors and plain containers. "
        "Save a state dict of tensors, or allow it in the archive's model-config.yaml by "
        "handler: {weights_only: false} (for all models: the environment variable "
        "TS_WEIGHTS_ONLY=false), which runs code from the file. "
        f"Cause: {error}"
    )


def _load_safetensors(path: str, map_location: Any) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise RuntimeError(
            "weights in a .safetensors file need the package safetensors; install it with: "
            "pip install safetensors (or the server's extra: pip install 'torchserve[safetensors]')"
        ) from error
    return load_file(path, device="cpu" if map_location is None else str(map_location))


def load_pt2(path: str, device: torch.device, weights_only: bool = True) -> Any:
    """A callable model of a .pt2 file: a program of torch.export, or an AOTInductor package.

    A program is moved to the device. A package runs on the kind of device it was compiled for.
    weights_only: as in `load_torch_file`, for the pickles in a program's file.
    Raises RuntimeError for a file that is neither, and for a refused one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            is_package = any("/aotinductor/" in f"/{name}" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise RuntimeError(f"{os.path.basename(path)} is no .pt2 archive: {error}") from error
    if is_package:
        index = -1 if device.index is None else device.index
        return torch._inductor.aoti_load_package(path, device_index=index)
    program = _load_program(path, weights_only)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()


def _load_program(path: str, weights_only: bool) -> torch.export.ExportedProgram:
    if not weights_only:
        return torch.export.load(path)
    # torch.export.load reads pickles with everything allowed and has no argument against it; this
    # variable of torch.load is the only way to have a say. Nothing else loads while a model starts.
    before = os.environ.get(_FORCE_WEIGHTS_ONLY)
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        return torch.export.load(path)
    except pickle.UnpicklingError as error:
        raise _refused(os.path.basename(path), error) from error
    finally:
        if before is None:
            del os.environ[_FORCE_WEIGHTS_ONLY]
        else:
            os.environ[_FORCE_WEIGHTS_ONLY] = before


def has_gradients(model: Any) -> bool:
    """Whether gradients flow through the model; compiled and exported machine code has none.

    What AOTInductor made is a function of torch, or an object of a class of torch, but no module.
    """
    if isinstance(model, torch.nn.Module):
        return True
    origin = getattr(model, "__module__", None) or ""
    return not hasattr(model, "get_inputs") and origin.partition(".")[0] != "torch"


def run_onnx(session: Any, *inputs: Any, **named: Any) -> Any:
    """The outputs of an ONNX Runtime session as CPU tensors: one, or a list of several.

    inputs: tensors in the order of the model's inputs, or by their names; each is cast to the type
            declared there.
    Raises ValueError that names the model's inputs for one that it does not take.
    """
    declared = {item.name: item for item in session.get_inputs()}
    values = dict(zip(declared, inputs, strict=False))
    surplus = [name for name in named if name not in declared or name in values]
    if len(inputs) > len(declared) or surplus:
        given = f"{len(inputs)} by position" + (f" and {', '.join(named)}" if named else "")
        raise ValueError(
            f"the ONNX model takes {len(declared)} inputs ({', '.join(declared)}), and was given "
            f"{given}"
        )
    feed = {}
    for name, value in (values | named).items():
        dtype = _ONNX_DTYPES.get(declared[name].type)
        feed[name] = torch.as_tensor(value).detach().to("cpu", dtype).numpy()
    outputs = [torch.from_numpy(output) for output in session.run(None, feed)]
    return outputs[0] if len(outputs) == 1 else outputs
