"""manifest.json of a golden: everything but the tensors."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, final

import msgspec

from triptych.errors import GoldenError
from triptych.parity.fingerprint import Fingerprint
from triptych.parity.floors import Floor
from triptych.parity.golden_run import RunEntry
from triptych.runtimes.base import Execution
from triptych.types import ComponentName, Precision

GOLDEN_SCHEMA_VERSION = 1

MANIFEST_FILE = "manifest.json"

Profile: TypeAlias = Literal["quick", "full"]
"""quick: one run. full: also what fp16 and bf16 cost in PyTorch."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor.

    Attributes:
        stored_as: its name in the file; equal tensors are stored once.
        dtype: NumPy's name.
        shape: axis lengths.
        sha256: of its dtype, shape and elements.
    """

    stored_as: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CaseEntry:
    """One run of one component; its tensors are case/NUMBER/feed/NAME and case/NUMBER/output/NAME.

    Attributes:
        component: which.
        name: what is special about the feed.
        feed: names of its inputs.
        outputs: names of what the reference gave.
        has_halves: whether it is a guidance batch.
    """

    component: ComponentName
    name: str
    feed: tuple[str, ...]
    outputs: tuple[str, ...]
    has_halves: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseEntry:
    """Where the generators stood after the first noise."""

    seeds: tuple[int, ...]
    words_drawn: int
    spares: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenManifest:
    """manifest.json.

    Attributes:
        schema_version: of this file's layout.
        triptych: the version that recorded it.
        created: ISO 8601, UTC.
        command: what was typed.
        profile: how much was recorded.
        precision: the arithmetic of the reference.
        execution: what its U-Net ran on.
        fingerprint: of the machine.
        run: what was asked for.
        preconditions: what was really used.
        noise_stream: where the generators stood after the first noise.
        num_steps: evaluations of the U-Net.
        picture_steps: steps whose pictures are there.
        cases: component runs.
        floors: what lower precisions cost.
        tensors: of the other file, by name.
    """

    schema_version: int = GOLDEN_SCHEMA_VERSION
    triptych: str
    created: str
    command: tuple[str, ...]
    profile: Profile
    precision: Precision
    execution: Execution
    fingerprint: Fingerprint
    run: RunEntry
    preconditions: dict[str, object]
    noise_stream: NoiseEntry
    num_steps: int
    picture_steps: tuple[int, ...]
    cases: tuple[CaseEntry, ...]
    floors: tuple[Floor, ...] = ()
    tensors: dict[str, TensorEntry] = field(default_factory=dict)


def read_golden_manifest(folder: Path) -> GoldenManifest:
    """Read the manifest alone.

    Raises:
        GoldenError: it is missing, of a newer schema, or no manifest.
    """
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version > GOLDEN_SCHEMA_VERSION:
            raise GoldenError(
                f"{path}: got schema version {version}, want {GOLDEN_SCHEMA_VERSION} or older. "
                "Upgrade triptych."
            )
        return msgspec.json.decode(content, type=GoldenManifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GoldenError(f"{path}: got {error}, want a golden's manifest.") from error


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    schema_version: int
