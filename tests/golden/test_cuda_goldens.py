"""Every engine against PyTorch on CUDA, from recordings; see README.md in this folder."""

from pathlib import Path

import pytest

from triptych.bundle.bundle import Bundle
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.check_options import CheckOptions, Limits
from triptych.parity.floors import floor_table
from triptych.parity.golden import read_golden
from triptych.parity.limits import coarsest
from triptych.parity.report import CandidateReport
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
GOLDENS = sorted(path.parent for path in FOLDER.glob("cuda-*/*/manifest.json"))
NONE = pytest.param(None, marks=pytest.mark.skip(reason="no recording on a GPU is there yet"))
MOST_BYTES = 2_000_000


def check_against(golden: Path, bundle: Bundle, runtime: str) -> CandidateReport:
    recording = read_golden(golden)
    candidate = Candidate(
        bundle=bundle,
        runtime=make_runtime(runtime, RuntimeSettings(num_threads=1)),
        precisions=dict.fromkeys(bundle.artifacts, coarsest(["fp32", recording.precision])),
    )
    options = CheckOptions(limits=Limits(floors=floor_table(recording.floors)))
    return check(recording, candidate, options=options, report=lambda _: None).report


@pytest.mark.parametrize("golden", GOLDENS or [NONE], ids=str)
@pytest.mark.parametrize(
    ("runtime", "fixture"),
    [
        ("pytorch", "checkpoint_bundle"),
        ("onnxruntime", "onnx_bundle"),
        ("openvino", "openvino_bundle"),
    ],
)
def test_an_engine_agrees_with_cuda(
    golden: Path, runtime: str, fixture: str, request: pytest.FixtureRequest
) -> None:
    report = check_against(golden, request.getfixturevalue(fixture), runtime)
    failed = [row for row in report.rows if row.verdict not in ("passed", "warned")]
    assert failed == []


@pytest.mark.parametrize("golden", GOLDENS or [NONE], ids=str)
def test_a_golden_was_recorded_on_a_gpu_without_tf32(golden: Path) -> None:
    recording = read_golden(golden)
    assert recording.execution.device.startswith("cuda")
    assert recording.execution.details["tf32"] == "off"
    assert recording.execution.details["gpu"]
    assert recording.precision == golden.name


def test_goldens_stay_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("cuda-*/**/*.*")) <= MOST_BYTES
