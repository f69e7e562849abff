"""Benchmarks: what is said of measured seconds, what is measured, and processes that fail."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import BackendError, BundleError, UsageError
from triptych.models.configs import read_json
from triptych.models.feeds import component_cases
from triptych.models.flops import count_flops
from triptych.models.prompts import prompt_ids
from triptych.runtimes.base import RuntimeSettings
from triptych.testing import tiny_checkpoint
from triptych.types import ComponentName, FormatName
from triptych.workflows import bench_plan, bench_process, bench_worker
from triptych.workflows.bench_plan import BenchRequest, plan_bench, sampler_lacks
from triptych.workflows.bench_process import BenchJob, bench_feed, measure
from triptych.workflows.bench_report import make_timing, make_work
from triptych.workflows.bench_worker import run_job

FIXTURES: Mapping[FormatName, str] = {
    "coreml": "coreml_bundle",
    "diffusers": "checkpoint_bundle",
    "onnx": "onnx_bundle",
    "openvino": "openvino_bundle",
}


def job(bundle: Bundle, runtime: str, *, num_calls: int = 2, num_warmup: int = 1) -> BenchJob:
    height_px, width_px = bundle.built_size_px or (64, 72)
    return BenchJob(
        what="sampler",
        bundle=str(bundle.folder),
        variant=None,
        runtime=runtime,
        settings=RuntimeSettings(),
        height_px=height_px,
        width_px=width_px,
        num_calls=num_calls,
        num_warmup=num_warmup,
        started=time.time(),
    )


def request(folder: Path, *components: str) -> BenchRequest:
    return BenchRequest(
        bundle=folder,
        runtime_settings=RuntimeSettings(),
        components=components,
        height_px=64,
        width_px=72,
    )


def test_the_median_is_between_the_ends() -> None:
    timing = make_timing([4.0, 1.0, 2.0])
    assert (timing.median_seconds, timing.smallest_seconds, timing.largest_seconds) == (2, 1, 4)
    assert timing.num_calls == 3


def test_the_share_is_of_the_median_call() -> None:
    timing = make_timing([4.0, 1.0, 2.0])
    work = make_work(6_000_000_000, timing, peak=12.0)
    assert work.gflop_per_second == 3.0
    assert work.peak_share == 0.25
    assert make_work(6_000_000_000, timing, peak=None).peak_share is None
    uncounted = make_work(None, timing, peak=12.0)
    assert (uncounted.gflop_per_second, uncounted.peak_share) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "artifact_format"),
    [
        ("onnxruntime", "onnx"),
        ("openvino", "openvino"),
        ("pytorch", "diffusers"),
        ("coreml-reference", "coreml"),
    ],
)
def test_every_engine_is_measured(
    runtime: str, artifact_format: FormatName, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(FIXTURES[artifact_format])
    sampler = job(bundle, runtime)
    unet = measure(replace(sampler, what="component", component="unet"))
    assert len(unet.call_seconds) == 2
    assert all(seconds > 0 for seconds in (unet.open_seconds, *unet.call_seconds))
    assert unet.batch == bundle.artifact("unet").fixed_axes.get("batch", 1)
    assert (unet.precision, unet.arithmetic) == ("fp32", "fp32")
    assert unet.device.lower().startswith("cpu")
    steps = measure(sampler)
    assert len(steps.call_seconds) == 2
    assert all(seconds > 0 for seconds in (steps.open_seconds, *steps.call_seconds))


@pytest.mark.slow
@pytest.mark.parametrize(("num_warmup", "num_steps"), [(0, 4), (1, 4), (3, 6)])
def test_warmed_up_steps_are_left_out_and_always_the_first(
    num_warmup: int, num_steps: int, onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends of steps at 1, 2, 4, 8 ... seconds: each step is as long as all before it."""
    ends = iter(2.0**index for index in range(num_steps))
    asked = replace(job(onnx_bundle, "onnxruntime", num_calls=3), num_warmup=num_warmup)

    class Clock:
        time = time.time

        @staticmethod
        def perf_counter() -> float:
            return next(ends)

    monkeypatch.setattr(bench_process, "time", Clock)
    steps = measure(asked)
    assert steps.call_seconds == tuple(2.0**index for index in range(num_steps))[-4:-1]
    assert next(ends, None) is None


@pytest.mark.slow
def test_warm_calls_alone_are_told(onnx_bundle: Bundle) -> None:
    asked = replace(
        job(onnx_bundle, "onnxruntime", num_calls=2, num_warmup=3),
        what="component",
        component="vae_decoder",
    )
    assert len(measure(asked).call_seconds) == 2


@pytest.mark.slow
def test_components_are_fed_the_asked_size(onnx_bundle: Bundle) -> None:
    shapes = {
        name: {
            tensor: value.shape
            for tensor, value in bench_feed(onnx_bundle, name, height_px=64, width_px=72).items()
        }
        for name in onnx_bundle.artifacts
    }
    assert shapes["unet"]["sample"] == (1, 4, 8, 9)
    assert shapes["vae_decoder"]["latents"] == (1, 4, 8, 9)
    assert shapes["vae_encoder"]["image"] == (1, 3, 64, 72)
    assert shapes["text_encoder"]["input_ids"][0] == 1


@pytest.mark.slow
def test_a_bundle_counts_as_its_checkpoint(checkpoint: Path, onnx_folder: Path) -> None:
    """The configs that lie beside an export say the same network."""
    exported, original = plan_bench(request(onnx_folder)), plan_bench(request(checkpoint))
    assert exported.flops == original.flops
    assert exported.flops.keys() == set(exported.components) == set(exported.bundle.artifacts)
    assert exported.has_sampler
    assert exported.notes == ()


@pytest.mark.slow
def test_a_step_s_two_rows_are_twice_the_operations(checkpoint_bundle: Bundle) -> None:
    counts = []
    for batch in (1, 2):
        axes = {"batch": batch, "height": 8, "width": 8}
        ids = prompt_ids(checkpoint_bundle.folder, "unet")
        cases = component_cases("unet", checkpoint_bundle.config, input_ids=ids, fixed_axes=axes)
        config = read_json(checkpoint_bundle.folder / "unet" / "config.json")
        spec = checkpoint_bundle.artifact("unet").spec
        counts.append(count_flops(spec, config, next(cases).feed))
    assert counts[1] == 2 * counts[0]


def test_without_torch_nothing_is_counted(
    onnx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    plan = plan_bench(request(onnx_folder))
    assert plan.flops == {}
    assert plan.notes == (
        "operations were not counted: torch is not installed. Run: pip install 'triptych[export]'",
    )


def test_what_cannot_be_measured_is_refused(onnx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="components: got refiner, this bundle has text_encoder"):
        plan_bench(request(onnx_folder, "refiner"))
    with pytest.raises(UsageError, match="height_px: got 65, want a positive multiple of 8"):
        plan_bench(replace(request(onnx_folder), height_px=65))
    with pytest.raises(UsageError, match="runtime: got 'pytorch' for a bundle in onnx format"):
        plan_bench(replace(request(onnx_folder), runtimes=("onnxruntime", "pytorch")))
    with pytest.raises(BundleError, match="want a bundle"):
        plan_bench(request(tmp_path))


def test_a_bundle_of_nothing_is_refused(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = replace(onnx_bundle, artifacts={})
    monkeypatch.setattr(bench_plan, "open_bundle", lambda *_, **__: empty)
    with pytest.raises(BundleError, match="got no components, want at least one"):
        plan_bench(request(onnx_bundle.folder))


def test_an_engine_that_is_not_installed_is_named_first(
    onnx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"got openvino, which cannot run here.*pip install"):
        plan_bench(replace(request(onnx_folder), runtimes=("onnxruntime", "openvino")))


@pytest.mark.slow
def test_the_sampler_wants_every_network_it_needs(onnx_bundle: Bundle, tmp_path: Path) -> None:
    assert sampler_lacks(onnx_bundle) == ""
    names: tuple[ComponentName, ...] = ("text_encoder_2", "unet")
    few = replace(onnx_bundle, artifacts={name: onnx_bundle.artifacts[name] for name in names})
    assert sampler_lacks(few) == "text_encoder"
    refiner = open_bundle(tiny_checkpoint(tmp_path / "refiner", kind="refiner"))
    assert sampler_lacks(refiner) == "a picture to start from, by this U-Net"


def test_a_process_s_error_is_raised_here(onnx_bundle: Bundle) -> None:
    asked = replace(job(onnx_bundle, "onnxruntime"), settings=RuntimeSettings(precision="bf16"))
    with pytest.raises(UsageError, match="onnxruntime: got --precision bf16"):
        run_job(replace(asked, what="component", component="vae_decoder"))


def test_a_process_that_ends_without_a_word_is_an_error(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "import os; print('boom', flush=True); os.abort()"]
    monkeypatch.setattr(bench_worker, "_command", lambda *_: command)
    with pytest.raises(BackendError, match=r"onnxruntime, sampler: .* ended with -6(.|\n)*boom"):
        run_job(job(onnx_bundle, "onnxruntime"))


def test_an_interrupt_ends_the_process(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def interrupt(pid: int) -> int:
        seen.append(pid)
        raise KeyboardInterrupt

    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(bench_worker, "_command", lambda *_: command)
    monkeypatch.setattr(bench_worker, "private_bytes", interrupt)
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run_job(job(onnx_bundle, "onnxruntime"))
    assert time.perf_counter() - started < 30
    [pid] = seen
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_process_leaves_with_its_parent(onnx_bundle: Bundle, tmp_path: Path) -> None:
    """Its stdin ends: a parent that was killed leaves no process behind that holds a U-Net."""
    asked = replace(
        job(onnx_bundle, "onnxruntime", num_calls=1_000_000), what="component", component="unet"
    )
    command = bench_worker._command(asked, tmp_path / "outcome.json")
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        try:
            assert process.wait(timeout=60) == 1
        finally:
            process.kill()
    assert not (tmp_path / "outcome.json").exists()
