"""A clean bundle passes, and what is not there has not passed."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import onnx
import pytest

from triptych.bundle.bundle import Artifact, Bundle, open_bundle
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.record import default_settings, record
from triptych.parity.recording import Recording
from triptych.parity.report import CandidateReport, Row
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Probe, Runtime, RuntimeSettings, Session
from triptych.types import ComponentName, FormatName

pytestmark = pytest.mark.slow

STEPS = 3
COMPONENTS = {"text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"}
Fault = Callable[[onnx.ModelProto], None]


def engine(name: str) -> Runtime:
    """One thread: on networks this small, several only wait for each other."""
    return make_runtime(name, RuntimeSettings(num_threads=1))


def record_reference(bundle: Bundle, *, seed: int = 0) -> Recording:
    usual = default_settings(bundle.config, num_inference_steps=STEPS, seed=seed)
    settings = replace(usual, height_px=64, width_px=72)
    return record(bundle, engine("pytorch"), settings, report=lambda _: None)


@pytest.fixture(scope="session")
def recording(checkpoint_bundle: Bundle) -> Recording:
    return record_reference(checkpoint_bundle)


def check_against(recording: Recording, bundle: Bundle) -> CandidateReport:
    candidate = Candidate(
        bundle=bundle,
        runtime=engine("onnxruntime"),
        precisions=dict.fromkeys(bundle.artifacts, "fp32"),
    )
    return check(recording, candidate, report=lambda _: None).report


def failed(report: CandidateReport) -> list[Row]:
    return [row for row in report.rows if row.verdict == "failed"]


# --- nothing wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_clean_bundle_passes(checkpoint_bundle: Bundle, onnx_bundle: Bundle, seed: int) -> None:
    report = check_against(record_reference(checkpoint_bundle, seed=seed), onnx_bundle)

    assert report.verdict == "passed", failed(report)
    assert {row.component for row in report.rows if row.stage == "component"} == COMPONENTS
    for stage in ("teacher_forced", "free_running"):
        assert [row.step for row in report.rows if row.stage == stage] == [1, 2, 3]
    assert [row.component for row in report.rows if row.stage == "image"] == ["vae_decoder"]
    assert set(report.executions) == COMPONENTS


def test_the_reference_passes_against_itself(
    recording: Recording, checkpoint_bundle: Bundle
) -> None:
    candidate = Candidate(
        bundle=checkpoint_bundle,
        runtime=engine("pytorch"),
        precisions=dict.fromkeys(checkpoint_bundle.artifacts, "fp32"),
    )
    report = check(recording, candidate, report=lambda _: None).report
    assert report.verdict == "passed"
    assert {row.max_abs for row in report.rows if row.has_numbers} == {0}


def test_other_noise_does_not_pass(checkpoint_bundle: Bundle, recording: Recording) -> None:
    """The check itself can fail: a run from another seed is another run."""
    other = record_reference(checkpoint_bundle, seed=1)
    mixed = replace(recording, latents=other.latents, image=other.image)
    candidate = Candidate(
        bundle=checkpoint_bundle,
        runtime=engine("pytorch"),
        precisions=dict.fromkeys(checkpoint_bundle.artifacts, "fp32"),
    )
    report = check(mixed, candidate, report=lambda _: None).report
    assert {row.stage for row in failed(report)} == {"teacher_forced", "free_running", "image"}


# --- what is open when ---------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """An engine that tells what is opened and what is open with it."""

    engine: Runtime
    seen: list[set[ComponentName]]
    open_now: set[ComponentName]

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def formats(self) -> tuple[FormatName, ...]:
        return self.engine.formats

    def open(self, artifact: Artifact) -> Session:
        session = self.engine.open(artifact)
        self.open_now.add(artifact.spec.name)
        self.seen.append(set(self.open_now))
        return WatchedSession(session, lambda: self.open_now.remove(artifact.spec.name))

    def probe(self) -> Probe:
        return self.engine.probe()


@final
class WatchedSession:
    def __init__(self, session: Session, tell: Callable[[], None]) -> None:
        self.session, self.tell = session, tell
        self.inputs, self.outputs = session.inputs, session.outputs
        self.execution = session.execution
        self.run = session.run

    def close(self) -> None:
        self.session.close()
        self.tell()


STAGES = [
    {"text_encoder"},
    {"text_encoder", "text_encoder_2"},
    {"unet"},
    {"vae_decoder"},
    {"vae_encoder", "vae_decoder"},
]


def test_a_recording_opens_each_network_once_and_the_unet_alone(checkpoint_bundle: Bundle) -> None:
    watched = Watched(engine=engine("pytorch"), seen=[], open_now=set())
    settings = default_settings(checkpoint_bundle.config, num_inference_steps=1)
    record(checkpoint_bundle, watched, settings, report=lambda _: None)
    assert watched.seen == STAGES
    assert not watched.open_now


def test_a_check_opens_each_network_once_and_the_unet_alone(
    recording: Recording, onnx_bundle: Bundle
) -> None:
    watched = Watched(engine=engine("onnxruntime"), seen=[], open_now=set())
    candidate = Candidate(
        bundle=onnx_bundle,
        runtime=watched,
        precisions=dict.fromkeys(onnx_bundle.artifacts, "fp32"),
    )
    assert check(recording, candidate, report=lambda _: None).report.verdict == "passed"
    assert watched.seen[:3] == STAGES[:3]
    assert watched.seen[3:] == [{"vae_encoder"}, {"vae_encoder", "vae_decoder"}]
    assert not watched.open_now


# --- what is not there ---------------------------------------------------------------------------


def test_a_bundle_of_one_component_is_checked_as_far_as_it_goes(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()
    for component in COMPONENTS - {"unet"}:
        (folder / component / "model.onnx").unlink()

    report = check_against(recording, open_bundle(folder))

    assert report.verdict == "not_run"
    passed = {row.component for row in report.rows if row.verdict == "passed"}
    missing = [row for row in report.rows if row.verdict == "not_run"]
    assert passed == {"unet"}
    assert {row.component for row in missing if row.stage == "component"} == COMPONENTS - {"unet"}
    assert {row.stage for row in missing} == {
        "component",
        "teacher_forced",
        "free_running",
        "image",
    }
    assert all(row.reason and not row.has_numbers for row in missing)
    assert set(report.executions) == {"unet"}


def test_a_missing_vae_encoder_stops_no_run(recording: Recording, onnx_bundle: Bundle) -> None:
    artifacts: dict[ComponentName, Artifact] = {
        name: artifact for name, artifact in onnx_bundle.artifacts.items() if name != "vae_encoder"
    }
    report = check_against(recording, replace(onnx_bundle, artifacts=artifacts))
    missing = [row for row in report.rows if row.verdict != "passed"]
    assert [(row.stage, row.component) for row in missing] == [("component", "vae_encoder")]
    assert report.verdict == "not_run"


def test_limits_follow_the_declared_precision(recording: Recording, onnx_bundle: Bundle) -> None:
    candidate = Candidate(
        bundle=onnx_bundle,
        runtime=engine("onnxruntime"),
        precisions={**dict.fromkeys(onnx_bundle.artifacts, "fp32"), "unet": "fp16"},
    )
    report = check(recording, candidate, report=lambda _: None).report
    limits = {(row.stage, row.component): row.limit for row in report.rows}
    assert limits["component", "vae_decoder"] == 1e-5
    assert limits["component", "unet"] == 1e-2
    assert limits["teacher_forced", "unet"] == pytest.approx(6.4e-2, rel=1e-2)
    assert limits["free_running", "unet"] == 5e-2
    assert limits["image", "vae_decoder"] == 5e-2
