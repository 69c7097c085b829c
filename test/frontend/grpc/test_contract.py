"""Stubs that others generated call this server: names, numbers and types are TorchServe's.

The tables are the contract's, as TorchServe 0.12 documents its three services; KServe's and
Triton's files agree with the third but for its package. Fields beyond them do no harm.
"""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from ts_frontend.grpc.stubs import inference_pb2, management_pb2, open_inference_pb2
from ts_frontend.grpc.stubs.open_inference_grpc_pb2 import DESCRIPTOR as TORCHSERVES_OPEN_INFERENCE

FILES = {
    "inference": inference_pb2.DESCRIPTOR,
    "management": management_pb2.DESCRIPTOR,
    "open inference": open_inference_pb2.DESCRIPTOR,
}
PACKAGES = {
    "inference": "org.pytorch.serve.grpc.inference",
    "management": "org.pytorch.serve.grpc.management",
    "open inference": "inference",
}

MESSAGES = {
    "inference": """
        PredictionsRequest: 1 model_name string, 2 model_version string, 3 input map,
            4 sequence_id string
        PredictionsRequest.InputEntry: 1 key string, 2 value bytes
        PredictionResponse: 1 prediction bytes, 2 sequence_id string, 3 status google.rpc.Status
        TorchServeHealthResponse: 1 health string
    """,
    "management": """
        ManagementResponse: 1 msg string
        DescribeModelRequest: 1 model_name string, 2 model_version string, 3 customized bool
        ListModelsRequest: 1 limit int32, 2 next_page_token int32
        RegisterModelRequest: 1 batch_size int32, 2 handler string, 3 initial_workers int32,
            4 max_batch_delay int32, 5 model_name string, 6 response_timeout int32,
            7 runtime string, 8 synchronous bool, 9 url string, 10 s3_sse_kms bool,
            11 startup_timeout int32
        ScaleWorkerRequest: 1 model_name string, 2 model_version string, 3 max_worker int32,
            4 min_worker int32, 5 number_gpu int32, 6 synchronous bool, 7 timeout int32
        SetDefaultRequest: 1 model_name string, 2 model_version string
        UnregisterModelRequest: 1 model_name string, 2 model_version string
    """,
    "open inference": """
        ServerLiveResponse: 1 live bool
        ServerReadyResponse: 1 ready bool
        ModelReadyRequest: 1 name string, 2 version string
        ModelReadyResponse: 1 ready bool
        ServerMetadataResponse: 1 name string, 2 version string, 3 extensions string*
        ModelMetadataRequest: 1 name string, 2 version string
        ModelMetadataResponse: 1 name string, 2 versions string*, 3 platform string,
            4 inputs ModelMetadataResponse.TensorMetadata*,
            5 outputs ModelMetadataResponse.TensorMetadata*
        ModelMetadataResponse.TensorMetadata: 1 name string, 2 datatype string, 3 shape int64*
        ModelInferRequest: 1 model_name string, 2 model_version string, 3 id string,
            4 parameters map, 5 inputs ModelInferRequest.InferInputTensor*,
            6 outputs ModelInferRequest.InferRequestedOutputTensor*, 7 raw_input_contents bytes*
        ModelInferRequest.ParametersEntry: 1 key string, 2 value InferParameter
        ModelInferRequest.InferInputTensor: 1 name string, 2 datatype string, 3 shape int64*,
            4 parameters map, 5 contents InferTensorContents
        ModelInferRequest.InferRequestedOutputTensor: 1 name string, 2 parameters map
        ModelInferResponse: 1 model_name string, 2 model_version string, 3 id string,
            4 parameters map, 5 outputs ModelInferResponse.InferOutputTensor*,
            6 raw_output_contents bytes*
        ModelInferResponse.InferOutputTensor: 1 name string, 2 datatype string, 3 shape int64*,
            4 parameters map, 5 contents InferTensorContents
        InferParameter: 1 bool_param bool, 2 int64_param int64, 3 string_param string
        InferTensorContents: 1 bool_contents bool*, 2 int_contents int32*, 3 int64_contents int64*,
            4 uint_contents uint32*, 5 uint64_contents uint64*, 6 fp32_contents float*,
            7 fp64_contents double*, 8 bytes_contents bytes*
    """,
}

OPEN_INFERENCE_RPCS = {
    name: (f"inference.{name}Request", f"inference.{name}Response", False, False)
    for name in (
        *("ServerLive", "ServerReady", "ServerMetadata"),
        *("ModelReady", "ModelMetadata", "ModelInfer"),
    )
}
INFERENCE, MANAGEMENT = PACKAGES["inference"], PACKAGES["management"]
PREDICTIONS = (f"{INFERENCE}.PredictionsRequest", f"{INFERENCE}.PredictionResponse")
SERVICES = {
    f"{INFERENCE}.InferenceAPIsService": {
        "Ping": ("google.protobuf.Empty", f"{INFERENCE}.TorchServeHealthResponse", False, False),
        "Predictions": (*PREDICTIONS, False, False),
        "StreamPredictions": (*PREDICTIONS, False, True),
        "StreamPredictions2": (*PREDICTIONS, True, True),
    },
    f"{MANAGEMENT}.ManagementAPIsService": {
        name: (f"{MANAGEMENT}.{name}{end}", f"{MANAGEMENT}.ManagementResponse", False, False)
        for name, end in (
            ("DescribeModel", "Request"),
            ("ListModels", "Request"),
            ("RegisterModel", "Request"),
            ("ScaleWorker", "Request"),
            ("SetDefault", "Request"),
            ("UnregisterModel", "Request"),
        )
    },
    "inference.GRPCInferenceService": OPEN_INFERENCE_RPCS,
    "org.pytorch.serve.grpc.openinference.GRPCInferenceService": OPEN_INFERENCE_RPCS,
}

REPEATED, MESSAGE = FieldDescriptorProto.LABEL_REPEATED, FieldDescriptorProto.TYPE_MESSAGE


def rows(text: str) -> list[tuple[str, str]]:
    """(message, "number name type") of each field of a table."""
    found = []
    for message in text.replace("\n            ", " ").split("\n"):
        name, _, fields = message.strip().partition(": ")
        found += [(name, field.strip()) for field in fields.split(",") if field.strip()]
    return found


def described(message: Descriptor) -> dict[int, tuple[str, str]]:
    """Number -> name and type, as the tables write them."""
    written = DescriptorProto()
    message.CopyToProto(written)
    maps = {inner.name for inner in written.nested_type if inner.options.map_entry}
    fields = {}
    for field in written.field:
        kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
        if field.type == MESSAGE:
            kind = field.type_name.removeprefix(f".{message.file.package}.").removeprefix(".")
        is_map = kind.rpartition(".")[2] in maps
        fields[field.number] = (
            field.name,
            "map" if is_map else kind + "*" * (field.label == REPEATED),
        )
    return fields


@pytest.mark.parametrize(
    ("file", "message", "field"),
    [(file, *row) for file, text in MESSAGES.items() for row in rows(text)],
)
def test_a_field(file: str, message: str, field: str) -> None:
    outer, *inner = message.split(".")
    found = FILES[file].message_types_by_name[outer]
    for name in inner:
        found = found.nested_types_by_name[name]
    number, *rest = field.split()
    assert found.full_name == f"{PACKAGES[file]}.{message}"
    assert described(found)[int(number)] == tuple(rest)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service(service: str) -> None:
    files = [*FILES.values(), TORCHSERVES_OPEN_INFERENCE]
    (found,) = (
        each
        for file in files
        for each in file.services_by_name.values()
        if each.full_name == service
    )
    assert isinstance(found, ServiceDescriptor)
    assert {
        method.name: (
            method.input_type.full_name,
            method.output_type.full_name,
            method.client_streaming,
            method.server_streaming,
        )
        for method in found.methods
    } == SERVICES[service]
