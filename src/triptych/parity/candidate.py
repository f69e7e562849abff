"""What is checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from triptych.bundle.bundle import Bundle
from triptych.parity.limits import coarsest
from triptych.runtimes.base import Runtime
from triptych.sampling.schedulers import SamplerMaker, read_sampler
from triptych.types import ComponentName, Precision


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A bundle on an engine.

    Attributes:
        bundle: its artifacts.
        runtime: the engine that runs them.
        precisions: the class that each component is judged in.
        stored: what a good part of each component's weights are, read from the files.
        problems: why other clients could not run a component, where that was looked into.
        make_sampler: makes the schedule and the solver, for schedulers that are not triptych's.
        device: what it was asked to run on, where that was said.
    """

    bundle: Bundle
    runtime: Runtime
    precisions: Mapping[ComponentName, Precision]
    stored: Mapping[ComponentName, Precision] = field(default_factory=dict)
    problems: Mapping[ComponentName, tuple[str, ...]] = field(default_factory=dict)
    make_sampler: SamplerMaker = read_sampler
    device: str | None = None

    @property
    def name(self) -> str:
        """The engine's name, and the device where one was asked for: one engine may run on two."""
        return self.runtime.name if self.device is None else f"{self.runtime.name}:{self.device}"

    @property
    def run_components(self) -> tuple[ComponentName, ...]:
        """Every component that the run of a check needs."""
        config = self.bundle.config
        unused = {"preview_decoder"} if config.is_inpainting else {"preview_decoder", "vae_encoder"}
        return tuple(name for name in config.components if name not in unused)

    @property
    def is_whole(self) -> bool:
        """Whether it has them all."""
        return set(self.run_components) <= set(self.bundle.artifacts)

    @property
    def run_precision(self) -> Precision:
        """The class of a run through all components."""
        return coarsest(self.precisions.values())
