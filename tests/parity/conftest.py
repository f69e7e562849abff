"""A whole report as a check makes it, and the pictures that go with it: made up, not measured."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from triptych.parity.fingerprint import Fingerprint
from triptych.parity.report import (
    CandidateReport,
    Hint,
    OddOneOut,
    ParityReport,
    ReferenceRecord,
    Row,
)
from triptych.runtimes.base import Execution
from triptych.types import ComponentName, ImagePixels, Precision, Verdict

NUM_STEPS = 8
SIGMAS = (14.6, 7.9, 4.6, 2.9, 1.9, 1.2, 0.7, 0.3)
CASES: Mapping[ComponentName, tuple[str, str]] = {
    "text_encoder": ("77 tokens", "last_hidden_state"),
    "text_encoder_2": ("77 tokens", "text_embeds"),
    "unet": ("t=999", "noise_pred"),
    "vae_decoder": ("smooth latents", "sample"),
}
MARKUP = '<script>alert("case")</script>'
"""What a prompt may hold, and no page may obey."""

RECORDED_ON = Fingerprint(
    system="Linux 6.1.0 x86_64",
    processor="Intel(R) Xeon(R) Gold 6148",
    num_cpus=16,
    cpu_features=("avx2", "avx512f"),
    python="3.11.9",
    triptych="0.1.0",
    packages={"numpy": "2.3.5", "torch": "2.13.0+cpu", "diffusers": "0.39.0"},
    environment={},
)
CHECKED_ON = Fingerprint(
    system="Linux 6.12.0 x86_64",
    processor="AMD EPYC 9R14",
    num_cpus=8,
    cpu_features=("avx2", "avx512f", "avx512_bf16"),
    python="3.11.9",
    triptych="0.1.0",
    packages={"numpy": "2.3.5", "onnxruntime": "1.31.1", "openvino": "2026.4.1"},
    environment={"OMP_NUM_THREADS": "1"},
)


def curve(
    stage: str, errors: tuple[float, ...], *, limit: float, floor: float, ran: str
) -> Iterator[Row]:
    """One row a step, judged as a check does."""
    tensor = "latents" if stage == "free_running" else "noise_pred"
    for step, error in enumerate(errors, start=1):
        verdict: Verdict = "passed" if error <= limit else "failed"
        yield Row(
            stage=stage,  # type: ignore[arg-type]  # one of the three
            component="unet",
            case=f"seed 0, {MARKUP}",
            tensor=tensor,
            branch=None if stage == "free_running" else "guided",
            step=step,
            timestep=1000.0 - 125 * step + 1,
            sigma=SIGMAS[step - 1],
            precision="fp32",
            ran=ran,
            shape=(1, 4, 128, 128),
            size=65536,
            finite_actual=math.isfinite(error),
            finite_expected=True,
            rel_l2=error,
            cosine=1 - error**2 / 2,
            psnr_db=-20 * math.log10(error) + 12 if error > 0 else error,
            max_abs=4 * error,
            max_abs_index=(0, 2, 71, 3),
            p99_abs=2.6 * error,
            rms_expected=1.02,
            bias=error / 30,
            denoised_rel_l2=error * 0.8,
            gain=1.3 if stage == "free_running" else None,
            limit=limit,
            warn_limit=3 * limit,
            limit_source="floor",
            floor=floor,
            ratio=error / floor,
            verdict=verdict,
            reason="" if verdict == "passed" else f"ratio {error / floor:.0f} of the floor, want 3",
            feed_sha256="5d" * 32,
            actual_sha256="a7" * 32,
        )


def component_rows(error: float, *, ran: str, limit: float = 1e-5) -> Iterator[Row]:
    for place, (component, (case, tensor)) in enumerate(CASES.items(), start=1):
        found = error * place
        yield Row(
            stage="component",
            component=component,
            case=case,
            tensor=tensor,
            precision="fp32",
            ran=ran,
            shape=(2, 4, 128, 128),
            size=131072,
            finite_actual=True,
            finite_expected=True,
            rel_l2=found,
            cosine=1 - found**2 / 2,
            psnr_db=-20 * math.log10(found) + 12,
            limit=limit,
            limit_source="constant",
            verdict="passed" if found <= limit else "failed",
            reason="" if found <= limit else "further off than its class allows",
            feed_sha256="0c" * 32,
        )


def executions(runtime: str, version: str, ran: Precision) -> Mapping[ComponentName, Execution]:
    return {
        component: Execution(
            runtime=runtime,
            version=version,
            device="CPU",
            precision="fp32" if component == "vae_decoder" else ran,
            declared_precision="fp32",
            details={
                "inference_precision_hint": "bf16" if ran == "bf16" else "f32",
                "threads": "8",
            },
        )
        for component in CASES
    }


def healthy() -> CandidateReport:
    grown = tuple(9e-7 * 1.35**step for step in range(NUM_STEPS))
    local = tuple(8e-7 * (1 + 0.25 * math.sin(step)) for step in range(NUM_STEPS))
    own = tuple(8.4e-7 * (1 + 0.3 * math.cos(step)) for step in range(NUM_STEPS))
    rows = (
        Row(
            stage="precondition",
            component="unet",
            case="initial latents",
            precision="fp32",
            verdict="passed",
        ),
        *component_rows(4e-7, ran="fp32"),
        *curve("teacher_forced", local, limit=6.4e-5, floor=7e-7, ran="fp32"),
        *curve("free_running", grown, limit=1e-4, floor=1.1e-6, ran="fp32"),
        *curve("self_state", own, limit=6.4e-5, floor=7e-7, ran="fp32"),
    )
    return CandidateReport(
        runtime="onnxruntime",
        bundle="bundles/sdxl/onnx",
        format="onnx",
        executions=executions("onnxruntime", "1.31.1", "fp32"),
        self_difference={"unet": 0.0},
        rows=rows,
        verdict="passed",
    )


def failing() -> CandidateReport:
    grown = (*(1.1e-2 * 1.55**step for step in range(NUM_STEPS - 1)), math.nan)
    local = tuple(1.2e-2 * (1 + step / 3) for step in range(NUM_STEPS))
    own = tuple(1.3e-2 * (1 + step / 2.6) for step in range(NUM_STEPS))
    precision = Row(
        stage="precision",
        component="unet",
        case="arithmetic",
        precision="fp32",
        ran="bf16",
        verdict="failed",
        reason="declared fp32, ran bf16",
    )
    missing = Row(
        stage="image",
        component="vae_decoder",
        case="the run's picture",
        precision="fp32",
        limit=1e-4,
        limit_source="constant",
        verdict="not_run",
        reason="the run's latents are not finite",
    )
    rows = (
        precision,
        *component_rows(1.1e-2, ran="bf16"),
        *curve("teacher_forced", local, limit=6.4e-5, floor=7e-7, ran="bf16"),
        *curve("free_running", grown, limit=1e-4, floor=1.1e-6, ran="bf16"),
        *curve("self_state", own, limit=6.4e-5, floor=7e-7, ran="bf16"),
        missing,
    )
    return CandidateReport(
        runtime="openvino",
        bundle="bundles/sdxl/openvino",
        format="openvino",
        executions=executions("openvino", "2026.4.1-22026-e3a5c8a", "bf16"),
        self_difference={"unet": 0.0, "vae_decoder": 3e-8},
        rows=rows,
        first_divergent_step=1,
        hints=(
            Hint(
                cause="OpenVINO computes in bfloat16 where the processor can",
                evidence="unet declared fp32 and ran bf16; errors are near 1e-2 at every step",
                confirm="triptych check bundles/sdxl/openvino --reference sdxl --precision fp32",
            ),
        ),
        verdict="failed",
    )


def unavailable() -> CandidateReport:
    return CandidateReport(
        runtime="coreml",
        bundle="bundles/sdxl/coreml",
        format="coreml",
        unavailable="coreml: got Linux, want macOS. Check with --runtime coreml-reference.",
    )


@pytest.fixture(scope="session")
def parity_report() -> ParityReport:
    """ONNX Runtime is healthy, OpenVINO ran bfloat16 and ends in NaN, Core ML is not there."""
    return ParityReport(
        triptych="0.1.0",
        created="2026-09-21T09:41:00+00:00",
        command=("triptych", "check", "bundles/sdxl", "--prompt", MARKUP, "--json"),
        reference=ReferenceRecord(
            kind="golden",
            name="goldens/sdxl-8-steps",
            created="2026-09-14T16:20:00+00:00",
            execution=Execution(
                runtime="pytorch",
                version="2.13.0+cpu",
                device="cpu",
                precision="fp32",
                details={"tf32": "off", "threads": "16"},
            ),
            fingerprint=RECORDED_ON,
            floors=("fp32", "fp16", "bf16"),
        ),
        fingerprint=CHECKED_ON,
        settings={
            "prompt": f"a lighthouse at dusk {MARKUP}",
            "num_inference_steps": NUM_STEPS,
            "guidance_scale": 5.0,
            "seeds": (0,),
        },
        preconditions={"initial latents": "sha256 4f1c0d0e", "timesteps": "sha256 77aa31b2"},
        candidates=(healthy(), failing(), unavailable()),
        odd_one_out=OddOneOut(
            participants=("reference", "onnxruntime", "openvino"),
            distances=((0.0, 7.4e-6, 0.15), (7.4e-6, 0.0, 0.15), (0.15, 0.15, 0.0)),
            odd="openvino",
            factor=20270.0,
        ),
        verdict="failed",
    )


@pytest.fixture(scope="session")
def report_pictures() -> Mapping[str, Mapping[int, ImagePixels]]:
    """A sky that comes out of noise; OpenVINO's drifts away from it step by step."""
    noise = np.random.default_rng(0).normal(size=(96, 96, 3))
    down, across = np.mgrid[0:96, 0:96] / 95
    sky = np.stack([220 - 90 * down, 120 + 40 * across, 90 + 120 * down], axis=-1)
    sky[(down > 0.7)] *= 0.45
    sun = np.exp(-((across - 0.62) ** 2 + (down - 0.62) ** 2) * 90)
    sky = sky + sun[..., None] * (90, 80, 10)

    def picture(step: int, drift: float) -> ImagePixels:
        share = step / NUM_STEPS
        shifted = np.roll(sky, round(6 * drift), axis=1) + drift * np.array([-26, 8, 22])
        mixed = share * shifted + (1 - share) * (128 + 60 * noise)
        return np.clip(mixed, 0, 255).astype(np.uint8)[np.newaxis]

    steps = range(1, NUM_STEPS + 1)
    reference = {step: picture(step, 0.0) for step in steps}
    near = {step: pixels.copy() for step, pixels in reference.items()}
    for pixels in near.values():
        pixels[0, 10:30:3, 40:60:4] ^= 1
    return {
        "reference": reference,
        "onnxruntime": near,
        "openvino": {step: picture(step, step / NUM_STEPS) for step in steps},
    }
