"""A program for the test beside it: a cluster of two workers, one of which is killed at work.

python ray_cluster.py BUNDLE PROMPTS OUTPUT
"""

import os
import signal
import sys
from pathlib import Path

import ray

from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.settings import Settings
from triptych.workflows.generation.generate import (
    NO_PROMPTS,
    GenerateRequest,
    generate,
    plan_generation,
)
from triptych.workflows.generation.painter import Painted
from triptych.workflows.generation.plan import PlanRequest

ACTOR = "ray::RayPainter"


def actors() -> list[int]:
    """Process ids, by the titles that Ray gives its workers."""
    titles = {
        int(folder.name): (folder / "cmdline").read_bytes()
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and (folder / "cmdline").exists()
    }
    return sorted(number for number, title in titles.items() if title.startswith(ACTOR.encode()))


def main() -> None:
    """Generate; kill one actor when the first pictures are there."""
    bundle, prompts, output = (Path(argument) for argument in sys.argv[1:])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    request = GenerateRequest(
        bundle=bundle,
        prompts=prompts,
        output=output,
        pictures=PlanRequest(num_prompts=2, max_inference_steps=6, save_steps=(1, 3, 6)),
        settings=Settings(prompts=NO_PROMPTS, height_px=64, width_px=64),
        runtime_settings=RuntimeSettings(num_threads=1),
        num_workers=2,
        executor="ray",
    )
    killed: list[int] = []
    by_worker: dict[int, int] = {}

    def report(painted: Painted, *, worker: int) -> None:
        del painted
        by_worker[worker] = by_worker.get(worker, 0) + 1
        if not killed and len(by_worker) == 2:
            killed.append(actors()[0])
            os.kill(killed[0], signal.SIGKILL)

    generate(plan_generation(request), report=report)
    sys.stdout.write(f"{len(killed)} {sum(by_worker.values())} {len(by_worker)}\n")


if __name__ == "__main__":
    main()
