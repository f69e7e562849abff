"""Several engines as one, each for some of the components: to swap one component for another's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from triptych.bundle.bundle import Artifact
from triptych.errors import UsageError
from triptych.runtimes.base import Probe, Runtime, Session
from triptych.types import ComponentName, FormatName


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Opens every component with the engine that is named for it.

    Attributes:
        engines: one for each component.
        name: for messages.
    """

    engines: Mapping[ComponentName, Runtime]
    name: str = "mixed"

    @property
    def formats(self) -> tuple[FormatName, ...]:
        """What any of them reads; an engine still refuses what it does not."""
        found = [name for engine in self.engines.values() for name in engine.formats]
        return tuple(dict.fromkeys(found))

    def open(self, artifact: Artifact) -> Session:
        """Open one component with its engine.

        Raises:
            UsageError: there is none for it.
        """
        component = artifact.spec.name
        if component not in self.engines:
            raise UsageError(
                f"{self.name}: got {component}, want one of {', '.join(self.engines)}."
            )
        return self.engines[component].open(artifact)

    def probe(self) -> Probe:
        """All of them: installed where each is."""
        probes = [engine.probe() for engine in self.engines.values()]
        return Probe(
            runtime=self.name,
            installed=all(probe.installed for probe in probes),
            versions={name: text for probe in probes for name, text in probe.versions.items()},
            devices=tuple(dict.fromkeys(name for probe in probes for name in probe.devices)),
            precision={},
            remedy=next((probe.remedy for probe in probes if probe.remedy), ""),
        )
