"""Pictures, units and writers that the tests of a dataset's files share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from triptych.types import Array
from triptych.workflows.generation.ledger import read_ledgers
from triptych.workflows.generation.queries import Query
from triptych.workflows.generation.shards import WHOLE
from triptych.workflows.generation.units import Unit, plan_units
from triptych.workflows.generation.writer import Picture, WriterSettings, open_writer

FINGERPRINT = "0123456789abcdef"


@pytest.fixture(scope="session")
def pixels() -> Array:
    """One small picture."""
    return np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def units() -> tuple[Unit, ...]:
    """Three ids with two prompts each."""
    queries = [
        Query(id=str(number), prompts=("a cat", "a dog"), line=number) for number in range(3)
    ]
    return plan_units(queries, num_prompts=2, images_per_prompt=1)


@pytest.fixture(scope="session")
def writer_settings() -> WriterSettings:
    return WriterSettings(fingerprint=FINGERPRINT, runtime="onnxruntime", durable=False)


@pytest.fixture
def save(
    tmp_path: Path, units: tuple[Unit, ...], writer_settings: WriterSettings, pixels: Array
) -> Callable[..., Path]:
    """Write every unit at the given steps into a dataset; return its folder."""

    def written(*steps: int, settings: WriterSettings = writer_settings) -> Path:
        output = tmp_path / "dataset"
        with open_writer(output, settings, shard=WHOLE) as writer:
            for unit in units:
                writer.save(
                    [Picture(unit=unit, step=step, pixels=pixels, seconds=0.5) for step in steps]
                )
        assert read_ledgers(output).num_skipped == 0
        return output

    return written
