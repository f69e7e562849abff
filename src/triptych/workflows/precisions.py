"""What each precision is in each format, and what this machine's engines compute in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import final

from triptych.models.precisions import PRECISION_TABLE, PrecisionSupport
from triptych.runtimes import make_runtime, runtime_names
from triptych.types import PRECISIONS, FormatName, Precision


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArithmetic:
    """What one device of an engine computes in here.

    Attributes:
        runtime: the engine.
        device: in its own words.
        unasked: what it computes a float32 model in when nothing is asked for.
        offers: what it has circuits for, in its own words; empty where it does not tell.
    """

    runtime: str
    device: str
    unasked: str
    offers: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPrecisions:
    """The table, and this machine.

    Attributes:
        formats: in the order of the columns.
        table: by precision, then by format.
        engines: every device that is here.
    """

    formats: tuple[FormatName, ...]
    table: Mapping[Precision, Mapping[FormatName, PrecisionSupport]]
    engines: tuple[EngineArithmetic, ...]

    def to_json(self) -> dict[str, object]:
        """Plain values for one JSON document."""
        return {
            "formats": list(self.formats),
            "precisions": {
                name: {to: asdict(support) for to, support in row.items()}
                for name, row in self.table.items()
            },
            "engines": [asdict(engine) for engine in self.engines],
        }


def known_precisions() -> KnownPrecisions:
    """The table by precision, and what was found on this machine."""
    formats = tuple(PRECISION_TABLE)
    return KnownPrecisions(
        formats=formats,
        table={name: {to: PRECISION_TABLE[to][name] for to in formats} for name in PRECISIONS},
        engines=_engines(),
    )


def _engines() -> tuple[EngineArithmetic, ...]:
    probes = [make_runtime(name).probe() for name in runtime_names()]
    return tuple(
        EngineArithmetic(
            runtime=probe.runtime,
            device=device,
            unasked=unasked,
            offers=probe.arithmetic.get(device, ()),
        )
        for probe in probes
        for device, unasked in probe.precision.items()
    )
