"""The reference on a GPU: the same numbers as on the CPU, because TF32 is off."""

from pathlib import Path

import pytest
import torch

from triptych.bundle.bundle import Bundle
from triptych.parity.golden import read_golden
from triptych.parity.recording import Recording
from triptych.runtimes.base import RuntimeSettings
from triptych.types import Precision
from triptych.workflows.check import CheckRequest, check_bundle
from triptych.workflows.record import RecordRequest, RunRequest, record_golden

pytestmark = [
    pytest.mark.slow,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA device here"),
]


def record_on_cuda(checkpoint: Path, golden: Path, precision: Precision) -> Recording:
    request = RecordRequest(
        checkpoint=checkpoint,
        golden=golden,
        run=RunRequest(num_inference_steps=3, height_px=64, width_px=64),
        runtime_settings=RuntimeSettings(device="cuda", precision=precision),
    )
    return record_golden(request, report=lambda _: None)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_recording_says_what_it_ran_on(
    checkpoint: Path, tmp_path: Path, precision: Precision
) -> None:
    record_on_cuda(checkpoint, tmp_path / "golden", precision)
    execution = read_golden(tmp_path / "golden").execution
    assert (execution.device, execution.precision) == ("cuda", precision)
    assert execution.details["tf32"] == "off"
    assert execution.details["gpu"] == torch.cuda.get_device_name()


def test_float32_on_cuda_is_float32(checkpoint: Path, onnx_bundle: Bundle, tmp_path: Path) -> None:
    record_on_cuda(checkpoint, tmp_path / "golden", "fp32")
    request = CheckRequest(bundle=onnx_bundle.folder, reference=tmp_path / "golden")
    assert check_bundle(request, report=lambda _: None).report.verdict == "passed"
