"""How fast an engine multiplies matrices on this machine: the ruler for whole networks.

Measured in the process that asks, in the engine's own way, with its number of threads.
"""

import time
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import numpy as np

from triptych.dependencies import import_optional
from triptych.runtimes.base import Execution, Runtime, RuntimeSettings
from triptych.runtimes.coreml_reference import CoreMlReference
from triptych.runtimes.onnxruntime import OnnxRuntime
from triptych.runtimes.openvino import OpenVino
from triptych.runtimes.pytorch import Pytorch, exact_arithmetic
from triptych.types import Array

Arithmetic: TypeAlias = Literal["fp32", "fp16", "bf16"]
"""What matrices are multiplied in."""

_Product: TypeAlias = Callable[[], object]
"""Multiplies two matrices once and waits for the result."""

_EDGES: Final = (256, 512, 1024, 2048, 4096, 8192)
"""Of the matrices: the first at which a product takes long enough. There is arithmetic for which
an engine has no fast product here, and there are machines for which 2048 is small."""

_LONG_SECONDS: Final = 0.05
_NUM_PRODUCTS: Final = 5

_CPU_DEVICES = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}
"""Off the CPU these two engines would copy the matrices at every call."""

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


def multiplied_in(execution: Execution) -> Arithmetic | None:
    """What a network's matrices are multiplied in.

    None where no one word says it, and where this engine or device has no product to measure.
    """
    if execution.runtime == "coreml-reference":
        return "fp32"  # halves are widened, and rounded again after each operator
    if execution.runtime not in (*_CPU_DEVICES, "pytorch"):
        return None
    if execution.device != _CPU_DEVICES.get(execution.runtime, execution.device):
        return None
    match execution.precision:
        case "fp32" | "int8" | "int4":  # narrow weights are widened
            return "fp32"
        case "fp16":
            return "fp16"
        case "bf16":
            return "bf16"
        case _:
            return None


def matmul_gflop_per_second(runtime: Runtime, arithmetic: Arithmetic) -> float | None:
    """The best rate of several products of two square matrices, in 10^9 operations a second.

    None where the engine has no product to measure.

    Raises:
        MissingDependencyError: the engine, or what writes its graphs, is not installed.
    """
    best = 0.0
    for edge in _EDGES:
        multiply = _product(runtime, arithmetic, edge=edge)
        if multiply is None:
            return None
        seconds = _best_seconds(multiply)
        best = max(best, 2 * edge**3 / seconds / 1e9)
        if seconds >= _LONG_SECONDS:
            break
    return best


def _best_seconds(multiply: _Product) -> float:
    multiply()
    times = []
    for _ in range(_NUM_PRODUCTS):
        started = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - started)
    return min(times)


def _product(runtime: Runtime, arithmetic: Arithmetic, *, edge: int) -> _Product | None:
    match runtime:
        case OnnxRuntime():
            return _onnxruntime_product(runtime.settings, arithmetic, edge=edge)
        case OpenVino():
            return _openvino_product(runtime.settings, arithmetic, edge=edge)
        case Pytorch() | CoreMlReference():
            return _torch_product(
                runtime.settings, arithmetic, edge=edge, device=_torch_device(runtime)
            )
        case _:
            return None


def _torch_device(runtime: Runtime) -> str:
    return (runtime.settings.device if isinstance(runtime, Pytorch) else None) or "cpu"


def _onnxruntime_product(
    settings: RuntimeSettings, arithmetic: Arithmetic, *, edge: int
) -> _Product:
    """One MatMul by a constant, as in a linear layer."""
    engine = import_optional("onnxruntime", extra="onnxruntime")
    import_optional("onnx", extra="onnxruntime")
    from onnx import helper, numpy_helper

    matrix = _matrix(edge).astype(_DTYPES[arithmetic])
    element = helper.np_dtype_to_tensor_dtype(matrix.dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "matmul",
        [helper.make_tensor_value_info("left", element, matrix.shape)],
        [helper.make_tensor_value_info("product", element, matrix.shape)],
        [numpy_helper.from_array(matrix, "right")],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    options = engine.SessionOptions()
    options.intra_op_num_threads = settings.num_threads or 0  # 0: the engine's own choice
    session = engine.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=[_CPU_DEVICES["onnxruntime"]]
    )
    return lambda: session.run(["product"], {"left": matrix})


def _openvino_product(settings: RuntimeSettings, arithmetic: Arithmetic, *, edge: int) -> _Product:
    """One MatMul by a constant, compiled for the precision that networks are compiled for."""
    engine = import_optional("openvino", extra="openvino")
    from openvino import opset13

    matrix = _matrix(edge)
    left = opset13.parameter(matrix.shape, np.float32)
    model = engine.Model([opset13.matmul(left, opset13.constant(matrix), False, False)], [left])
    config: dict[str, object] = {"INFERENCE_PRECISION_HINT": _HINTS[arithmetic]}
    if settings.num_threads is not None:
        config["INFERENCE_NUM_THREADS"] = settings.num_threads
    compiled = engine.Core().compile_model(model, _CPU_DEVICES["openvino"], config)
    request = compiled.create_infer_request()
    return lambda: request.infer([matrix])


def _torch_product(
    settings: RuntimeSettings, arithmetic: Arithmetic, *, edge: int, device: str
) -> _Product:
    torch = import_optional("torch", extra="export")
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    matrix = torch.full((edge, edge), 0.5, dtype=getattr(torch, _DTYPES[arithmetic]), device=device)

    def multiply() -> None:
        with torch.inference_mode(), exact_arithmetic():
            # One number of the result: an accelerator has finished when it is here.
            torch.mm(matrix, matrix)[0, 0].item()

    return multiply


def _matrix(edge: int) -> Array:
    """Numbers of which no engine can guess the product."""
    return np.random.default_rng(0).standard_normal((edge, edge)).astype(np.float32)
