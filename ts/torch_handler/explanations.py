"""How the default handlers explain: the `captum` section of a model's configuration, and what a
request may choose.

    captum:
      method: occlusion             # a name of IMAGE_METHODS or TEXT_METHODS
      arguments:                    # of this method in Captum
        sliding_window_shapes: [3, 15, 15]
        strides: [3, 8, 8]
      layer: features.8             # for methods that look at a layer
      smoothing: {nt_samples: 10}   # averages over noisy inputs (Captum's NoiseTunnel)
      target: predicted             # the output explained when a request names none; default 0
      request_methods: [saliency]   # methods that a request may choose besides
      format: png                   # of the answer when a request asks for none

Everything is checked when the model starts, against the signatures of the Captum that is installed.
A request chooses by fields beside its data, or in the query: `target`, `method`, `format`; and the
format by its Accept header, too.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

import torch

from ts.utils.util import PredictionException

PREDICTED = "predicted"  # a target: the output with the highest value
QUERY_HEADER = "url_query"  # where the frontend puts the query of the request

MEDIA_TYPES = {"application/json": "json", "image/png": "png", "text/html": "html"}
_CONTENT_TYPES = {name: media_type for media_type, name in MEDIA_TYPES.items()}

_KEYS = ("method", "arguments", "layer", "smoothing", "target", "request_methods", "format")
# What the handlers fill in, and what would change the form of the result.
_NOT_CONFIGURABLE = {
    "self",
    "inputs",
    "target",
    "additional_forward_args",
    "attribute_to_layer_input",
    "attr_dim_summation",
    "custom_attribution_func",
    "draw_baseline_from_distrib",
    "feature_mask",
    "grad_kwargs",
    "kwargs",
    "return_convergence_delta",
    "show_progress",
}


@dataclass(frozen=True)
class Method:
    """A way to attribute an output to the inputs.

    captum_class: its name in captum.attr.
    defaults:     arguments that differ from Captum's.
    needs:        arguments without which it cannot run.
    takes_layer:  whether it looks at one layer.
    is_cheap:     whether it costs a few passes of the model: a request may always choose it.
    """

    captum_class: str
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    needs: tuple[str, ...] = ()
    takes_layer: bool = False
    is_cheap: bool = False


# The first one is the default.
IMAGE_METHODS = {
    "integrated_gradients": Method("IntegratedGradients", {"n_steps": 15}, is_cheap=True),
    "saliency": Method("Saliency", is_cheap=True),
    "input_x_gradient": Method("InputXGradient", is_cheap=True),
    "gradient_shap": Method("GradientShap", {"baselines": 0.0}),
    "deep_lift": Method("DeepLift"),
    "guided_backprop": Method("GuidedBackprop"),
    "occlusion": Method("Occlusion", needs=("sliding_window_shapes",)),
    "grad_cam": Method("LayerGradCam", {"relu_attributions": True}, takes_layer=True),
}
TEXT_METHODS = {
    "layer_integrated_gradients": Method("LayerIntegratedGradients", is_cheap=True),
    "layer_gradient_x_activation": Method("LayerGradientXActivation", is_cheap=True),
}


@dataclass(frozen=True)
class ExplainSettings:
    """The checked `captum` section, with its defaults filled in."""

    method: str
    arguments: Mapping[str, Any]
    layer: str | None
    smoothing: Mapping[str, Any] | None
    target: int | str
    request_methods: tuple[str, ...]
    format: str
    is_given: bool  # whether the configuration has the section


@dataclass(frozen=True)
class ExplainChoice:
    """What one request wants explained, how, and in which form."""

    target: Any  # int, tuple of ints, or PREDICTED
    method: str
    format: str


def captum_attr() -> Any:
    """The module captum.attr; raises RuntimeError that says what to install."""
    try:
        import captum.attr
    except ImportError as error:
        raise RuntimeError(
            "explanations need Captum; install it with: pip install captum "
            "(or the server with its extra: pip install 'torchserve[explain]')"
        ) from error
    return captum.attr


def read_settings(
    section: Any, methods: Mapping[str, Method], formats: Sequence[str]
) -> ExplainSettings:
    """The settings of a `captum` section; None or an absent one gives the defaults.

    formats: those that the handler can answer in, its default first.
    Raises ValueError that names the key and the nearest right name.
    """
    if section is None:
        section = {}
        is_given = False
    else:
        is_given = True
    if not isinstance(section, Mapping):
        raise ValueError(f"captum: a section with the keys {_listed(_KEYS)}, not {section!r}")
    for key in section:
        _known("captum", key, _KEYS, "key")
    method = section.get("method", next(iter(methods)))
    _known("captum.method", method, methods, "method")
    chosen = methods[method]
    layer = section.get("layer")
    if layer is not None and not isinstance(layer, str):
        raise ValueError(f"captum.layer: the name of a module of the model, not {layer!r}")
    if methods is IMAGE_METHODS and chosen.takes_layer != (layer is not None):
        word = "needs" if chosen.takes_layer else "takes no"
        raise ValueError(f"captum.layer: {method} {word} layer")
    arguments = {**chosen.defaults, **_arguments(section.get("arguments"), method, chosen)}
    for name in chosen.needs:
        if name not in arguments:
            raise ValueError(f"captum.arguments.{name} is missing: {method} cannot run without it")
    smoothing = section.get("smoothing")
    if smoothing is not None:
        if methods is not IMAGE_METHODS:
            raise ValueError("captum.smoothing: only for images; tokens have no noise")
        signature = inspect.signature(captum_attr().NoiseTunnel.attribute)
        smoothing = _checked("captum.smoothing", smoothing, signature, "NoiseTunnel")
    target = section.get("target", 0)
    if target != PREDICTED and (not isinstance(target, int) or isinstance(target, bool)):
        raise ValueError(f"captum.target: an integer or {PREDICTED!r}, not {target!r}")
    return ExplainSettings(
        method=method,
        arguments=arguments,
        layer=layer,
        smoothing=smoothing,
        target=target,
        request_methods=_request_methods(section.get("request_methods"), method, methods),
        format=_known("captum.format", section.get("format", formats[0]), formats, "format"),
        is_given=is_given,
    )


def _arguments(values: Any, name: str, method: Method) -> dict[str, Any]:
    if values is None:
        return {}
    signature = inspect.signature(getattr(captum_attr(), method.captum_class).attribute)
    return _checked("captum.arguments", values, signature, name)


def _checked(where: str, values: Any, signature: inspect.Signature, of: str) -> dict[str, Any]:
    """Arguments for a Captum method; lists become tuples."""
    parameters = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if name not in _NOT_CONFIGURABLE
    }
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: names and values, not {values!r}")
    checked = {}
    for name, value in values.items():
        _known(where, name, parameters, f"argument of {of}")
        checked[name] = _argument(f"{where}.{name}", value, parameters[name].default)
    return checked


def _argument(where: str, value: Any, default: Any) -> Any:
    """The value, if it is of the kind of the default; without one, numbers and lists of them."""
    if isinstance(value, list):
        if not all(isinstance(item, int | float) for item in value):
            raise ValueError(f"{where}: a list of numbers, not {value!r}")
        value = tuple(value)
    kinds: dict[type, tuple[type, ...]] = {
        bool: (bool,),
        int: (int,),
        float: (int, float, tuple),
        str: (str,),
    }
    expected = kinds.get(type(default), (int, float, tuple))
    is_odd_flag = isinstance(value, bool) and bool not in expected
    if not isinstance(value, expected) or is_odd_flag:
        words = " or ".join("list" if kind is tuple else kind.__name__ for kind in expected)
        raise ValueError(f"{where}: {words}, not {value!r}")
    return value


def _request_methods(value: Any, method: str, methods: Mapping[str, Method]) -> tuple[str, ...]:
    if value is None:
        return tuple({method: None} | {name: None for name, m in methods.items() if m.is_cheap})
    if not isinstance(value, list):
        raise ValueError(f"captum.request_methods: a list of {_listed(methods)}, not {value!r}")
    for name in value:
        _known("captum.request_methods", name, methods, "method")
        if name != method and (methods[name].needs or methods[name].takes_layer):
            raise ValueError(
                f"captum.request_methods: {name} works only as captum.method, with its arguments"
            )
    return tuple({method: None} | dict.fromkeys(value))


def _known(where: str, name: Any, names: Iterable[str], kind: str) -> str:
    names = list(names)
    if isinstance(name, str) and name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {_listed(names)}"
    raise ValueError(f"{where}: {name!r} is no {kind}; {hint}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def find_layer(model: Any, name: str) -> Any:
    """The module of the model with this name; raises ValueError that names the nearest one."""
    if not hasattr(model, "named_modules"):
        raise ValueError(f"captum.layer: {name!r}, and this kind of model file has no modules")
    modules = dict(model.named_modules())
    modules.pop("", None)
    if name not in modules:
        _known("captum.layer", name, modules, "module of the model")
    return modules[name]


def choose(
    row: Any, headers: Mapping[str, Any], settings: ExplainSettings, formats: Sequence[str]
) -> ExplainChoice:
    """What the request wants: its fields count first, then its query, then the configuration.

    Raises PredictionException (400) for what cannot be had.
    """
    query = dict(parse_qsl(_header(headers, QUERY_HEADER)))
    fields = row if isinstance(row, Mapping) else {}

    def asked(name: str) -> Any:
        value = fields.get(name)
        if isinstance(value, bytes | bytearray):
            value = value.decode("utf-8", "replace")
        return query.get(name) if value is None or value == "" else value

    target = asked("target")
    method = asked("method") or settings.method
    if method not in settings.request_methods:
        raise PredictionException(
            f"method must be one of {_listed(settings.request_methods)}, not {str(method)[:64]!r}",
            400,
        )
    # A format of the configuration is for requests that can be answered in it.
    default = settings.format if settings.format in formats else formats[0]
    wanted = asked("format") or _accepted(_header(headers, "accept"), formats) or default
    if wanted not in formats:
        raise PredictionException(
            f"format must be one of {_listed(formats)}, not {str(wanted)[:64]!r}", 400
        )
    return ExplainChoice(
        settings.target if target is None else explain_target(target), method, wanted
    )


def explain_target(target: Any) -> Any:
    """A target as Captum takes it, of a JSON value or a form's text; nothing means output 0.

    Raises PredictionException (400) for what is none.
    """
    if isinstance(target, bytes | bytearray):
        target = target.decode("utf-8", "replace")
    if isinstance(target, str) and target:
        if target == PREDICTED:
            return target
        try:
            return int(target)
        except ValueError as error:
            raise PredictionException(
                f"target must be an integer, not {target[:64]!r}", 400
            ) from error
    return target or 0


def _header(headers: Mapping[str, Any], name: str) -> str:
    """A header's text; names come as the client wrote them."""
    for key, value in headers.items():
        if key.lower() == name and isinstance(value, str):
            return value
    return ""


def _accepted(accept: str, formats: Sequence[str]) -> str | None:
    """The first media type that the client takes and the handler makes; None leaves it open."""
    for item in accept.split(","):
        name = MEDIA_TYPES.get(item.partition(";")[0].strip().lower())
        if name in formats:
            return name
    return None


def content_type(format_name: str) -> str:
    return _CONTENT_TYPES[format_name] + ("; charset=utf-8" if format_name == "html" else "")


class Targets:
    """Which outputs the model has, known once it has made one."""

    def __init__(self) -> None:
        # Of the model.
        self._shape: tuple[int, ...] | None = None  # of one input's output
        # Of the batch.
        self._best: list[int] | None = None

    def look(self, forward: Callable[[], Any], is_predicting: bool) -> None:
        """Run the model if that is needed to resolve the targets of this batch.

        Raises PredictionException (501) if its output is no tensor [batch, outputs...].
        """
        self._best = None
        if self._shape is not None and not is_predicting:
            return
        with torch.no_grad():
            outputs = forward()
        if not isinstance(outputs, torch.Tensor):
            raise PredictionException(
                "The model's output is no tensor, so no output of it can be explained; a handler "
                "with a get_insights of its own can.",
                501,
            )
        self._shape = tuple(outputs.shape[1:])
        if outputs.ndim == 2:
            self._best = outputs.argmax(dim=1).tolist()

    def resolve(self, target: Any, index: int) -> Any:
        """A target as Captum takes it, for the input at `index`; None if there is no choice.

        Raises PredictionException (400) for one that the model does not have.
        """
        shape = self._shape or ()
        if target == PREDICTED and shape:
            if self._best is None:
                raise PredictionException(
                    f"The model's outputs have the shape {shape}: name a target.", 400
                )
            return self._best[index]
        if not shape:
            return None
        parts = tuple(target) if isinstance(target, list | tuple) else (target,)
        if not all(isinstance(part, int) and not isinstance(part, bool) for part in parts):
            raise PredictionException(f"target must be an integer, not {str(target)[:64]!r}", 400)
        if len(parts) != len(shape) or not all(
            -size <= part < size for part, size in zip(parts, shape, strict=True)
        ):
            raise PredictionException(
                f"target {str(target)[:64]} does not exist: the model's outputs have the shape "
                f"{shape}",
                400,
            )
        # Captum takes numbers for all inputs of a batch, or tuples for all.
        return parts[0] if len(parts) == 1 else parts


class ExplainedBatch:
    """The requests of a batch that want explanations: their choices, and their answers.

    A request that asks for the impossible fails by itself; alone in its batch it raises.
    indexes: where the rows' requests are in the context's batch; None if rows are no requests,
             whose answers can only be JSON then.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        context: Any,
        indexes: Sequence[int] | None,
        settings: ExplainSettings,
        formats: Sequence[str],
    ) -> None:
        self._context = context
        self._indexes = indexes
        if indexes is None:
            formats = ("json",)
        self.answers: list[Any] = [None] * len(rows)
        self.choices: dict[int, ExplainChoice] = {}  # by position; without the failed ones
        for position, row in enumerate(rows):
            with self.failing_alone(position):
                self.choices[position] = choose(row, self._headers(position), settings, formats)

    @property
    def is_predicting(self) -> bool:
        """Whether a target depends on what the model predicts."""
        return any(choice.target == PREDICTED for choice in self.choices.values())

    @contextmanager
    def failing_alone(self, position: int) -> Iterator[None]:
        """What is the client's fault inside becomes this request's answer."""
        try:
            yield
        except PredictionException as error:
            if len(self.answers) == 1:
                raise
            self.choices.pop(position, None)
            if self._indexes is not None:
                self._context.set_response_status(error.error_code, "", self._indexes[position])
            self.answers[position] = {"code": error.error_code, "message": error.message}

    def answer(self, position: int, item: Any) -> None:
        """Set a request's answer, and say its media type if that is not JSON."""
        self.answers[position] = item
        wanted = self.choices[position].format
        if wanted != "json" and self._indexes is not None:
            self._context.set_response_content_type(self._indexes[position], content_type(wanted))

    def _headers(self, position: int) -> Mapping[str, Any]:
        if self._indexes is None:
            return {}
        return self._context.get_all_request_header(self._indexes[position])


class ExplainingHandler:
    """What the default handlers that explain share, before a handler in the bases of its class.

    A class of these names its methods and formats, has a `get_insights`, which it also calls
    `_default_insights`, and defines `_explained_output` and `_explain_batch`.
    """

    _explain_methods: Mapping[str, Method]
    _explain_formats: Sequence[str]  # its default first
    _default_insights: Callable[..., Any]
    _explain_settings: ExplainSettings | None = None
    _targets: Targets

    def explain_handle(self, data_preprocess: Any, raw_data: list[Any]) -> Any:
        """Per request, the explanation of its own target by its own method and in its own format.

        A subclass with a get_insights of its own is asked as BaseHandler does it.
        """
        if type(self).get_insights is not type(self)._default_insights:
            return super().explain_handle(data_preprocess, raw_data)
        settings = self._settings()
        indexes = self._request_indexes(raw_data)
        batch = ExplainedBatch(raw_data, self.context, indexes, settings, self._explain_formats)
        self._targets.look(lambda: self._explained_output(data_preprocess), batch.is_predicting)
        targets = {}
        for position, choice in list(batch.choices.items()):
            with batch.failing_alone(position):
                targets[position] = self._targets.resolve(choice.target, position)
        self._explain_batch(data_preprocess, batch, targets)
        return batch.answers

    def _explained_output(self, data_preprocess: Any) -> Any:
        """The model's output for the batch, of which targets are members."""
        raise NotImplementedError

    def _explain_batch(
        self, data_preprocess: Any, batch: ExplainedBatch, targets: Mapping[int, Any]
    ) -> None:
        """Answer those requests of the batch that have a choice. targets: by position."""
        raise NotImplementedError

    def _set_up_explanations(self, section: Any) -> None:
        """Raises ValueError for a `captum` section that cannot be followed."""
        self._targets = Targets()
        self._explain_settings = read_settings(
            section, self._explain_methods, self._explain_formats
        )
        if self._explain_settings.layer is not None:
            find_layer(self.model, self._explain_settings.layer)

    def _settings(self) -> ExplainSettings:
        if self._explain_settings is None:  # a subclass with an `initialize` of its own
            self._set_up_explanations(None)
        return self._explain_settings
