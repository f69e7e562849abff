"""A process that makes what is missing of a dataset; tests start it, and kill it."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triptych.errors import TriptychError
from triptych.types import Array
from triptych.workflows.generation.pictures import encode_picture
from triptych.workflows.generation.plan import PlanRequest, plan_dataset
from triptych.workflows.generation.queries import Query
from triptych.workflows.generation.settings_lock import lock_settings
from triptych.workflows.generation.shards import parse_shard
from triptych.workflows.generation.units import Unit
from triptych.workflows.generation.writer import Picture, WriterSettings, open_writer

SAVE_STEPS = (1, 4, 8)


def queries_of(count: int) -> list[Query]:
    """So many ids with two prompts each, and the first id once more at the end."""
    ids = [*range(count - 1), 0]
    return [
        Query(id=str(number), prompts=("a cat", f"a dog on line {line}"), line=line)
        for line, number in enumerate(ids, start=1)
    ]


def pixels_of(unit: Unit, step: int) -> Array:
    """What a sampler would make: the same for the same picture, in every process."""
    generator = np.random.default_rng([unit.seed, step])
    return generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def make(output: Path, *, num_queries: int, shard: str, seconds: float) -> None:
    fingerprint = lock_settings(output, {"size": 64, "picture_format": "png"})
    request = PlanRequest(
        num_prompts=2,
        save_steps=SAVE_STEPS,
        max_inference_steps=8,
        picture_format="png",
        shard=parse_shard(shard),
    )
    queries = queries_of(num_queries)
    plan = plan_dataset(queries, request, output=output, fingerprint=fingerprint)
    settings = WriterSettings(fingerprint=fingerprint, runtime="none", picture_format="png")
    encode_picture(np.zeros((8, 8, 3), dtype=np.uint8), picture_format="png")  # imports Pillow
    with open_writer(output, settings, shard=request.shard) as writer:
        for work in plan.work:
            time.sleep(seconds)
            writer.save(
                [
                    Picture(
                        unit=work.unit,
                        step=step,
                        pixels=pixels_of(work.unit, step),
                        seconds=seconds,
                    )
                    for step in work.reasons
                ]
            )
    sys.stdout.write(f"{len(plan.work)}\n")


def main(arguments: Sequence[str]) -> int:
    output, num_queries, shard, seconds = arguments
    try:
        make(Path(output), num_queries=int(num_queries), shard=shard, seconds=float(seconds))
    except TriptychError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
