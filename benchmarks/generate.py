"""What one run with pictures of several steps spares, and what making a dataset costs.

On a tiny checkpoint's ONNX bundle, all in one go, so that the figures can be divided by each other:

- saves: 32 steps with pictures of 1, 4, 8, 16 and 32, against a run for each of those lengths;
- overhead: the same run with linear previews and with decoded pictures, against none at all;
- workers: pictures an hour of one and of two processes;
- memory: resident megabytes of one process, over the first and the last hundred of many pictures.

    python benchmarks/generate.py [--pictures 2000] [--json]
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.settings import Settings
from triptych.testing import tiny_checkpoint
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.generation.generate import (
    NO_PROMPTS,
    GenerateRequest,
    generate,
    plan_generation,
)
from triptych.workflows.generation.painter import Painted
from triptych.workflows.generation.plan import PlanRequest

SAVED = (1, 4, 8, 16, 32)
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Made:
    """What making a dataset took.

    Attributes:
        seconds: all of it, with opening the model.
        sampling: of the median picture's run, without opening the model or writing files.
        evaluations: of the U-Net.
    """

    seconds: float
    sampling: float
    evaluations: int


class Bench:
    """Makes datasets of one bundle in a scratch folder."""

    def __init__(self, folder: Path) -> None:
        checkpoint = tiny_checkpoint(folder / "checkpoint")
        export = ExportRequest(checkpoint=checkpoint, output=folder, formats=["onnx"])
        self._bundle = export_bundles(export)["onnx"]
        self._folder = folder
        self._count = 0

    def make(
        self,
        *,
        steps: int,
        saved: Sequence[int],
        num_pictures: int,
        num_workers: int = 1,
        size_px: int = 128,
        saved_by: str = "vae",
        on_picture: Callable[[], None] = lambda: None,
    ) -> Made:
        """Make a dataset."""
        self._count += 1
        prompts = self._folder / f"{self._count}.jsonl"
        lines = [
            json.dumps({"id": number, "prompts": [f"a cat {number}"]})
            for number in range(num_pictures)
        ]
        prompts.write_text("\n".join(lines), encoding="utf-8")
        request = GenerateRequest(
            bundle=self._bundle,
            prompts=prompts,
            output=self._folder / f"dataset-{self._count}",
            pictures=PlanRequest(num_prompts=1, max_inference_steps=steps, save_steps=tuple(saved)),
            settings=Settings(
                prompts=NO_PROMPTS, guidance_scale=7.5, height_px=size_px, width_px=size_px
            ),
            runtime_settings=RuntimeSettings(num_threads=1),
            num_workers=num_workers,
            verify=False,
        )
        if saved_by == "linear":
            request = replace(request, saved_by="linear")
        evaluations = 0
        sampling: list[float] = []

        def report(painted: Painted, *, worker: int) -> None:
            nonlocal evaluations
            del worker
            evaluations += painted.num_steps
            sampling.append(painted.seconds)
            on_picture()

        generation = plan_generation(request)
        begun = time.perf_counter()
        generate(generation, report=report)
        seconds = time.perf_counter() - begun
        return Made(seconds=seconds, sampling=median(sampling), evaluations=evaluations)


def saves(bench: Bench) -> dict[str, float]:
    """One run against one for each length; all of the time, and the sampler's alone."""
    num_pictures = 8
    together = [bench.make(steps=32, saved=SAVED, num_pictures=num_pictures) for _ in range(ROUNDS)]
    apart = [
        [bench.make(steps=step, saved=(step,), num_pictures=num_pictures) for step in SAVED]
        for _ in range(ROUNDS)
    ]
    seconds = min(sum(one.seconds for one in runs) for runs in apart)
    sampling = min(sum(one.sampling for one in runs) for runs in apart)
    return {
        "evaluations_together": together[0].evaluations / num_pictures,
        "evaluations_apart": sum(one.evaluations for one in apart[0]) / num_pictures,
        "times_fewer_seconds": seconds / min(one.seconds for one in together),
        "times_fewer_sampling": sampling / min(one.sampling for one in together),
    }


def overhead(bench: Bench) -> dict[str, float]:
    """Previews, and pictures, of five steps against one preview of the last."""
    found: dict[str, list[float]] = {"none": [], "linear": [], "vae": []}
    for _ in range(ROUNDS):
        for name, saved, saved_by in (
            ("none", (32,), "linear"),
            ("linear", SAVED, "linear"),
            ("vae", SAVED, "vae"),
        ):
            made = bench.make(steps=32, saved=saved, num_pictures=8, saved_by=saved_by)
            found[name].append(made.seconds)
    none = min(found["none"])
    return {
        "linear_over_none": min(found["linear"]) / none,
        "vae_over_none": min(found["vae"]) / none,
    }


def workers(bench: Bench) -> dict[str, float]:
    """Pictures an hour, the start of the processes included."""
    return {
        f"pictures_an_hour_{count}": 3600
        * 60
        / bench.make(steps=16, saved=(4, 16), num_pictures=60, num_workers=count).seconds
        for count in (1, 2)
    }


def memory(bench: Bench, *, num_pictures: int) -> dict[str, float]:
    """Resident megabytes after each picture."""
    sizes: list[float] = []
    bench.make(
        steps=2,
        saved=(1, 2),
        num_pictures=num_pictures,
        size_px=64,
        on_picture=lambda: sizes.append(_resident_mb()),
    )
    first, last = mean(sizes[:100]), mean(sizes[-100:])
    return {"first_hundred_mb": first, "last_hundred_mb": last, "growth": last / first - 1}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        found = {
            "saves": saves(bench),
            "overhead": overhead(bench),
            "workers": workers(bench),
            "memory": memory(bench, num_pictures=arguments.pictures),
        }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        for label, figure in figures.items():
            print(f"{name:10} {label:24} {figure:12.3f}")


if __name__ == "__main__":
    main()
