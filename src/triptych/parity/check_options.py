"""How much a check looks at, and what it holds that to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from triptych.bundle.bundle import Bundle
from triptych.parity.budget import Budget
from triptych.parity.floors import FloorTable
from triptych.parity.image import ImageMetric
from triptych.runtimes.base import Runtime


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What decides a verdict beside what was measured.

    Attributes:
        floors: what a precision costs in PyTorch.
        budget: what somebody accepted.
    """

    floors: FloorTable = field(default_factory=FloorTable)
    budget: Budget = field(default_factory=Budget)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How much is looked at.

    Attributes:
        limits: what rows are held to.
        reference: the reference itself, to run it on the candidate's latents; None does not.
        reference_runtime: what it runs on.
        reference_name: for messages.
        pictures: decode the pictures of some steps.
        image_metrics: what else to measure of the last picture, by name.
    """

    limits: Limits = field(default_factory=Limits)
    reference: Bundle | None = None
    reference_runtime: Runtime | None = None
    reference_name: str = "the reference"
    pictures: bool = False
    image_metrics: Mapping[str, ImageMetric] = field(default_factory=dict)
