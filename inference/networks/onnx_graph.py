"""A network imported as ONNX: its graph is stored as one tensor of bytes and run by ONNX Runtime on
the CPU.

The graph is read as data and checked before it runs: standard operators of the list below, no
control flow, no functions, no files beside it. So a site can use an architecture that is not on the
list of inference/networks without changing our code (docs/models.md, "From ONNX").
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    import onnxruntime

# The kinds of output of a graph, for each class or pixel
Gives = Literal["logits", "probabilities", "softmax-logits"]

# Operators of the standard's own domain that compute, and do nothing else
OPERATORS = frozenset((
    "Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil",
    "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "CumSum",
    "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max",
    "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow",
    "QuantizeLinear", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Selu", "Shape", "Sigmoid", "Sign", "Slice",
    "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
    "Swish", "Tanh", "ThresholdedRelu", "Tile", "Transpose", "Unsqueeze", "Upsample", "Where",
))  # fmt: skip
_STANDARD = ("", "ai.onnx")
# A probability of 0 or 1 has no finite logit.
_LEAST = 1e-6


class OnnxError(RuntimeError):
    """The graph may not run, or does not give what a package needs."""


def is_installed() -> bool:
    """Whether the extra `onnxruntime` is installed, without loading it."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


class OnnxGraph(nn.Module):
    """(n, 1, side, side) float32, 0 black to 1 white -> (n, 1) or (n, 1, side, side) logits.

    The graph gets `low` + x * (`high` - `low`), repeated to its channels and standardised with
    `mean` and `deviation`. Of its first output, (n, k) or (n, k, height, width), class `index` is
    taken. A map covers the whole picture, at the input's side or a fixed fraction of it. `size` is
    the graph's number of bytes.
    """

    graph: Tensor

    def __init__(
        self,
        size: int,
        low: float = 0.0,
        high: float = 1.0,
        mean: Sequence[float] = (0.0,),
        deviation: Sequence[float] = (1.0,),
        index: int = 0,
        gives: Gives = "logits",
    ) -> None:
        super().__init__()
        self.register_buffer("graph", torch.zeros(size, dtype=torch.uint8))
        self.low, self.high, self.index = low, high, index
        self.gives = gives

        self._mean = np.array(mean, dtype=np.float32)[:, None, None]
        self._deviation = np.array(deviation, dtype=np.float32)[:, None, None]
        self._session: _Session | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A session cannot be copied; the copy makes its own.
        return self.__dict__ | {"_session": None}

    def forward(self, x: Tensor) -> Tensor:
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if is_traced or torch.compiler.is_compiling():
            raise OnnxError(
                "onnx: this graph runs only in ONNX Runtime; other engines cannot trace it"
            )
        if self._session is None:
            self._session = _Session(self.graph.cpu().numpy().tobytes())

        shown = self.low + x.detach().cpu().numpy() * (self.high - self.low)
        shown = np.repeat(shown, self._session.channels, axis=1)
        standardised = (shown - self._mean) / self._deviation
        answer = self._session.run(np.asarray(standardised, dtype=np.float32))

        _require_whole_map(answer.shape, x.shape[-1])
        logits = self._logits(torch.from_numpy(answer).float())
        if logits.dim() == 4 and logits.shape[-2:] != x.shape[-2:]:
            logits = functional.interpolate(logits, size=x.shape[-2:], mode="bilinear")
        return logits.to(x.device)

    def _logits(self, answer: Tensor) -> Tensor:
        """(n, k, ...), the graph's output -> (n, 1, ...) logits of the class."""
        if answer.dim() not in (2, 4) or answer.shape[1] <= self.index:
            raise OnnxError(
                f"onnx: the first output is {tuple(answer.shape)}; wanted (n, k) or (n, k, height, "
                f"width) with k above {self.index}"
            )

        chosen = answer[:, self.index : self.index + 1]
        if self.gives == "logits":
            return chosen
        if self.gives == "probabilities":
            return torch.logit(chosen, _LEAST)

        if answer.shape[1] == 1:
            raise OnnxError("onnx: softmax of one class; two classes or more, or logits, wanted")
        others = torch.cat([answer[:, : self.index], answer[:, self.index + 1 :]], 1)
        return chosen - others.logsumexp(1, keepdim=True)


def _require_whole_map(shape: tuple[int, ...], side: int) -> None:
    """Raise unless (n, k, height, width) is a map of the whole square picture.

    A map with channels last would look like many classes of a strip.
    """
    if len(shape) != 4:
        return

    _, first, height, width = shape
    if first == height != width:
        raise OnnxError(
            f"onnx: the first output is {shape}, channels last; (n, k, height, width) wanted: "
            "transpose it, or export with tf2onnx and --outputs-as-nchw OUTPUT"
        )

    step = max(1, round(side / height))
    if height != width or height not in (side // step, -(-side // step)):
        raise OnnxError(
            f"onnx: the first output is {shape}, a map of {height} x {width} of {side} x {side}; "
            "the whole picture wanted, both sides reduced to the same part"
        )


class _Session:
    """A checked graph in ONNX Runtime."""

    def __init__(self, data: bytes) -> None:
        import onnxruntime

        self.channels, self._batch = checked(data)
        options = session_options()
        try:
            self._session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
        except Exception as error:
            # The runtime raises many error types of its own.
            raise OnnxError(f"onnx: ONNX Runtime refuses the graph: {_line(error)}") from error
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for (n, channels, height, width)."""
        batch = np.ascontiguousarray(batch, dtype=np.float32)
        step = self._batch or len(batch)
        if len(batch) % step:
            raise OnnxError(f"onnx: the graph takes {step} images at once, {len(batch)} given")

        try:
            parts = [
                self._session.run([self._output], {self._input: batch[start : start + step]})[0]
                for start in range(0, len(batch), step)
            ]
        except Exception as error:
            raise OnnxError(f"onnx: the graph does not run: {_line(error)}") from error
        return np.concatenate(parts)


def session_options() -> onnxruntime.SessionOptions:
    """How ONNX Runtime runs a graph in a node: beside other programs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors alone: its warnings are remarks on graphs.
    options.log_severity_level = 3
    # Otherwise its threads spin for milliseconds after an answer, on cores that others need.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def checked(data: bytes) -> tuple[int, int | None]:
    """(channels of the graph's input, its batch; None where that is free) of a graph that may run.

    Raises:
        OnnxError: the bytes are not an ONNX model, or the graph has something that a package may
            not have.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise OnnxError(f"onnx: not an ONNX model ({type(error).__name__})") from error

    graph = model.graph
    _require_plain(model)
    held = {initializer.name for initializer in graph.initializer}
    inputs = [each for each in graph.input if each.name not in held]
    if len(inputs) != 1:
        raise OnnxError(f"onnx: {len(inputs)} inputs found; one, the image, wanted")

    tensor = inputs[0].type.tensor_type
    shape = [each.dim_value or None for each in tensor.shape.dim]
    is_image = len(shape) == 4 and shape[1] in (1, 3)
    if tensor.elem_type != onnx.TensorProto.FLOAT or not is_image:
        raise OnnxError(
            f"onnx: input {inputs[0].name[:60]} {shape} found; float32 (n, 1 or 3, height, width) "
            "wanted"
        )
    return int(shape[1] or 1), shape[0]


def _require_plain(model: Any) -> None:
    """Raise if a graph is more than arithmetic on its own tensors."""
    import onnx

    if len(model.functions):
        raise OnnxError("onnx: functions of its own found; export the graph with them written out")
    for initializer in model.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            raise OnnxError(
                f"onnx: the weights of {initializer.name[:60]} lie in another file; save the model "
                "as one file (onnx.save_model, save_as_external_data=False)"
            )

    for node in model.graph.node:
        if node.domain not in _STANDARD or node.op_type not in OPERATORS:
            name = f"{node.domain}.{node.op_type}".lstrip(".")
            raise OnnxError(
                f"onnx: operator {name[:60]} found; allowed are the standard's operators for "
                "arithmetic, pooling and shapes (inference/networks/onnx_graph.py)"
            )
        for attribute in node.attribute:
            is_graph = attribute.HasField("g") or len(attribute.graphs)
            outside = attribute.t.data_location == onnx.TensorProto.EXTERNAL
            if is_graph or outside:
                raise OnnxError(
                    f"onnx: {node.op_type} with a graph or a file inside it found; export without "
                    "control flow, as one file"
                )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
