"""What a step costs beside the engine: scaling, guidance, the solver, and a callback of nothing.

Runs the loop on a tiny checkpoint's U-Net at SDXL's own latents, 128 x 128 cells, and takes the
time inside the engine away from the time of the run. Every scheduler in turn, several rounds
interleaved, so that a busy moment of the machine does not fall on one of them alone; the fastest
round of each counts, the slowest is told.

    python benchmarks/sampler_step.py [--json]
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from triptych.bundle.bundle import open_bundle
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.sampling.callbacks import SamplingRun
from triptych.sampling.loop import iterate
from triptych.sampling.noise import NoiseStream, draw_noise
from triptych.sampling.pipeline import Prepared, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import SCHEDULERS, SchedulerChoice
from triptych.sampling.settings import Settings
from triptych.testing import tiny_checkpoint
from triptych.types import Array, TensorMap
from triptych.workflows.export import ExportRequest, export_bundles

LATENT_CELLS = 128
STEPS = 8
BAR_MS = 1.0


@dataclass
class Timed:
    """A network that adds up the seconds spent in it."""

    network: CheckedSession
    seconds: float = 0.0
    calls: int = 0

    def run(self, feed: TensorMap) -> dict[str, Array]:
        """As the network's own."""
        begun = time.perf_counter()
        outputs = self.network.run(feed)
        self.seconds += time.perf_counter() - begun
        self.calls += 1
        return outputs


def nothing(
    run: SamplingRun, step_index: int, timestep: float, callback_kwargs: dict[str, Array]
) -> Mapping[str, Array]:
    """A callback as users write it, that does nothing."""
    del run, step_index, timestep
    return callback_kwargs


@dataclass(frozen=True, kw_only=True)
class StepMs:
    """Milliseconds of one step.

    Attributes:
        beside: all but the engine.
        noise: of it, drawing fresh noise, which some schedulers do.
        engine: the U-Net.
    """

    beside: float
    noise: float
    engine: float


def milliseconds_a_step(unet: CheckedSession, prepared: Prepared) -> StepMs:
    """The mean of a run's steps."""
    timed = Timed(unet)
    noise_seconds = 0.0

    def timed_draw(stream: NoiseStream, shape: tuple[int, ...]) -> tuple[Array, NoiseStream]:
        nonlocal noise_seconds
        begun = time.perf_counter()
        drawn = draw_noise(stream, shape)
        noise_seconds += time.perf_counter() - begun
        return drawn

    with patch("triptych.sampling.solvers.base.draw_noise", timed_draw):
        total = _seconds_of_run(timed, prepared)
    return StepMs(
        beside=1e3 * (total - timed.seconds) / timed.calls,
        noise=1e3 * noise_seconds / timed.calls,
        engine=1e3 * timed.seconds / timed.calls,
    )


def _seconds_of_run(timed: Timed, prepared: Prepared) -> float:
    begun = time.perf_counter()
    events = iterate(
        timed,
        schedule=prepared.schedule,
        solver=prepared.solver,
        latents=prepared.start.latents,
        conditioning=prepared.conditioning,
        noise=prepared.start.noise_stream,
        guidance_scale=prepared.settings.guidance_scale,
        callback_on_step_end=nothing,
    )
    for _ in events:
        pass
    return time.perf_counter() - begun


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds by scheduler."""
    engine = make_runtime("onnxruntime", RuntimeSettings(num_threads=1))
    with TemporaryDirectory() as folder:
        checkpoint = tiny_checkpoint(Path(folder) / "checkpoint")
        request = ExportRequest(checkpoint=checkpoint, output=Path(folder), formats=["onnx"])
        bundle = open_bundle(export_bundles(request)["onnx"])
        runs = {
            name: prepare(
                bundle,
                engine,
                Settings(
                    prompts=Prompts(prompt=("a cat",)),
                    scheduler=SchedulerChoice(name=name),
                    num_inference_steps=STEPS,
                    height_px=8 * LATENT_CELLS,
                    width_px=8 * LATENT_CELLS,
                ),
            )
            for name in SCHEDULERS
        }
        found: dict[str, list[StepMs]] = {name: [] for name in runs}
        with open_session(engine, bundle, "unet") as unet:
            for _ in range(rounds):
                for name, prepared in runs.items():
                    found[name].append(milliseconds_a_step(unet, prepared))
    return {
        name: {
            "beside_ms": min(step.beside for step in measured),
            "beside_slowest_ms": max(step.beside for step in measured),
            "noise_ms": min(step.noise for step in measured),
            "engine_ms": min(step.engine for step in measured),
        }
        for name, measured in found.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps({"bar_ms": BAR_MS, "schedulers": found}, indent=2))
        return
    print(f"milliseconds a step, latents {LATENT_CELLS} x {LATENT_CELLS}, one picture, guided")
    print(f"{'scheduler':16} {'beside':>8} {'slowest':>8} {'noise':>8} {'engine':>8}")
    for name, row in found.items():
        rest = row["beside_ms"] - row["noise_ms"]
        over = "" if rest <= BAR_MS else f"  {rest:.2f} without noise, over {BAR_MS:g}"
        print(
            f"{name:16} {row['beside_ms']:8.2f} {row['beside_slowest_ms']:8.2f} "
            f"{row['noise_ms']:8.2f} {row['engine_ms']:8.1f}{over}"
        )


if __name__ == "__main__":
    main()
