"""The ruler: what is multiplied, how often, and where there is nothing to multiply with."""

from collections.abc import Callable

import pytest

from triptych.runtimes import _matmul_peak, make_runtime
from triptych.runtimes._matmul_peak import Arithmetic, matmul_gflop_per_second, multiplied_in
from triptych.runtimes.base import Execution


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arithmetic"),
    [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("openvino", "fp32"),
        ("pytorch", "fp32"),
        ("pytorch", "bf16"),
        ("coreml-reference", "fp32"),
    ],
)
def test_every_engine_multiplies(
    name: str, arithmetic: Arithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_matmul_peak, "_EDGES", (32, 64))
    rate = matmul_gflop_per_second(make_runtime(name), arithmetic)
    assert rate is not None
    assert rate > 0


def test_the_best_of_the_sizes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sizes: slow for its operations, fast, and long enough to be the last."""
    seconds = iter([0.01, 0.001, 0.05])

    def best(multiply: Callable[[], object]) -> float:
        multiply()
        return next(seconds)

    monkeypatch.setattr(_matmul_peak, "_EDGES", (10, 20, 40, 80))
    monkeypatch.setattr(_matmul_peak, "_best_seconds", best)
    rate = matmul_gflop_per_second(make_runtime("pytorch"), "fp32")
    assert rate == pytest.approx(2 * 20**3 / 0.001 / 1e9)
    assert next(seconds, None) is None


def test_core_ml_has_no_product_to_measure() -> None:
    assert matmul_gflop_per_second(make_runtime("coreml"), "fp16") is None


@pytest.mark.parametrize(
    ("runtime", "device", "precision", "arithmetic"),
    [
        ("onnxruntime", "CPUExecutionProvider", "fp16", "fp16"),
        ("onnxruntime", "CPUExecutionProvider", "int8", "fp32"),
        ("onnxruntime", "CPUExecutionProvider", "int8-dynamic", None),
        ("onnxruntime", "CUDAExecutionProvider", "fp16", None),
        ("openvino", "CPU", "bf16", "bf16"),
        ("openvino", "GPU", "fp16", None),
        ("pytorch", "cuda", "fp16", "fp16"),
        ("coreml-reference", "cpu", "fp16", "fp32"),
        ("coreml", "all", "fp16", None),
        ("onnxruntime", "CPUExecutionProvider", "as the graph declares", None),
    ],
)
def test_what_matrices_are_multiplied_in(
    runtime: str, device: str, precision: str, arithmetic: Arithmetic | None
) -> None:
    execution = Execution(runtime=runtime, version="1", device=device, precision=precision)
    assert multiplied_in(execution) == arithmetic
