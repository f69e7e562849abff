"""L, F and S, gain, and what the errors of single steps add up to."""

from dataclasses import replace

import numpy as np
import pytest

from triptych.bundle.bundle import Bundle
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.check_options import CheckOptions
from triptych.parity.record import default_settings, record
from triptych.parity.recording import Recording
from triptych.parity.report import CandidateReport, Row, Stage
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.testing.spoilt import SpoiltRuntime
from triptych.types import Array, TensorMap

pytestmark = pytest.mark.slow

STEPS = 4


def engine() -> Runtime:
    return make_runtime("pytorch", RuntimeSettings(num_threads=1))


@pytest.fixture(scope="module")
def recording(checkpoint_bundle: Bundle) -> Recording:
    """Without guidance, so that an error planted in a prediction is the step's error."""
    settings = replace(
        default_settings(checkpoint_bundle.config, num_inference_steps=STEPS),
        guidance_scale=1.0,
        height_px=64,
        width_px=64,
    )
    return record(checkpoint_bundle, engine(), settings, report=lambda _: None)


def shifted(size: float, *, constant: bool) -> Runtime:
    """PyTorch whose U-Net adds noise of a given size to its prediction."""

    def spoil(feed: TensorMap, outputs: dict[str, Array]) -> dict[str, Array]:
        timestep = int(np.ravel(feed["timestep"])[0])
        random = np.random.default_rng(0 if constant else timestep)
        return {
            name: (value + size * random.standard_normal(value.shape)).astype(value.dtype)
            for name, value in outputs.items()
        }

    return SpoiltRuntime(runtime=engine(), component="unet", spoil=spoil)


def check_shifted(
    recording: Recording, bundle: Bundle, *, size: float, constant: bool, explain: bool = False
) -> CandidateReport:
    candidate = Candidate(
        bundle=bundle,
        runtime=shifted(size, constant=constant),
        precisions=dict.fromkeys(bundle.artifacts, "fp32"),
    )
    options = CheckOptions(
        reference=bundle if explain else None, reference_runtime=engine() if explain else None
    )
    return check(recording, candidate, options=options, report=lambda _: None).report


def rows(report: CandidateReport, stage: Stage) -> list[Row]:
    return [row for row in report.rows if row.stage == stage]


def numbers(found: list[Row], name: str) -> list[float]:
    return [getattr(row, name) for row in found if getattr(row, name) is not None]


def test_a_constant_error_and_a_random_one_are_told_apart(
    recording: Recording, checkpoint_bundle: Bundle
) -> None:
    constant = check_shifted(recording, checkpoint_bundle, size=1e-3, constant=True)
    random = check_shifted(recording, checkpoint_bundle, size=1e-3, constant=False)
    cosines = numbers(rows(constant, "teacher_forced"), "error_cosine")
    assert len(cosines) == STEPS - 1  # the first step has none before it
    assert min(cosines) > 0.99
    scattered = numbers(rows(random, "teacher_forced"), "error_cosine")
    assert all(abs(cosine) < 0.3 for cosine in scattered)
    causes = {hint.cause for hint in constant.hints}
    assert any("a constant is wrong" in cause for cause in causes)
    assert not any("a constant is wrong" in hint.cause for hint in random.hints)


def test_steps_errors_add_up_as_euler_adds_them(
    recording: Recording, checkpoint_bundle: Bundle
) -> None:
    """A_n is the sum of (sigma_next - sigma) times each step's own error."""
    report = check_shifted(recording, checkpoint_bundle, size=1e-3, constant=True)
    sigmas = np.array(recording.preconditions["sigmas"])
    error = 1e-3 * np.random.default_rng(0).standard_normal(recording.latents[0].shape)
    for row, reached in zip(rows(report, "free_running"), recording.latents[1:], strict=True):
        assert row.step is not None
        total = (sigmas[row.step] - sigmas[0]) * error
        expected = np.linalg.norm(total) / np.linalg.norm(reached)
        assert row.additive_rel_l2 is not None
        assert row.additive_rel_l2 == pytest.approx(expected, rel=0.05)
        assert row.gain is not None
        assert row.rel_l2 == pytest.approx(row.gain * row.additive_rel_l2)
        assert 0.2 < row.gain < 5


def test_the_model_s_own_error_is_the_same_wherever_it_is(
    recording: Recording, checkpoint_bundle: Bundle
) -> None:
    """S is the planted error again, though F has moved the latents elsewhere."""
    report = check_shifted(recording, checkpoint_bundle, size=1e-2, constant=True, explain=True)
    own = rows(report, "self_state")
    assert [row.step for row in own] == [1, 2, 3, 4]
    for row in own:
        assert row.rel_l2 is not None
        assert row.rms_expected is not None
        assert row.rel_l2 * row.rms_expected == pytest.approx(1e-2, rel=0.1)


def test_s_is_looked_at_only_on_request(recording: Recording, checkpoint_bundle: Bundle) -> None:
    report = check_shifted(recording, checkpoint_bundle, size=0.0, constant=True)
    assert rows(report, "self_state") == []
    assert report.verdict == "passed"
    assert report.first_divergent_step is None


def test_every_step_says_where_it_is(recording: Recording, checkpoint_bundle: Bundle) -> None:
    report = check_shifted(recording, checkpoint_bundle, size=1e-2, constant=True)
    for stage in ("teacher_forced", "free_running"):
        found = rows(report, stage)
        assert [row.step for row in found] == [1, 2, 3, 4]
        assert numbers(found, "timestep") == recording.preconditions["timesteps"]
        assert numbers(found, "sigma") == pytest.approx(
            list(np.array(recording.preconditions["sigmas"])[:-1])
        )
    assert report.first_divergent_step == 1
    denoised = numbers(rows(report, "free_running"), "denoised_rel_l2")
    assert len(denoised) == STEPS
    assert all(value > 0 for value in denoised)
