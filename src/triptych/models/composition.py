"""composition.json: a checkpoint whose weights lie elsewhere, and how each is made.

Beside it lie the configs, tokenizers and scheduler of a checkpoint in diffusers layout, without a
weight: a few kilobytes that stand for gigabytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, final

import msgspec

from triptych.errors import CheckpointError
from triptych.models.stored_tensor import StoredTensor

COMPOSITION_NAME = "composition.json"
SCHEMA_VERSION = 1

_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096

SourceRole: TypeAlias = Literal["checkpoint", "config", "vae", "lora", "textual_inversion"]
"""What a source gave: everything; configs and tokenizers; the VAE; an update of weights; tokens."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One thing a checkpoint is composed of.

    Attributes:
        role: what it gave.
        name: its file's or folder's name, or its id on the hub.
        sha256: of each of its weight files, by the file's name within it.
        scale: of a LoRA.
        token: what prompts call a textual inversion.
    """

    role: SourceRole
    name: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    scale: float | None = None
    token: str | None = None

    def text(self) -> str:
        """What it is, for people: `lora drawing.safetensors at 0.8`."""
        scale = "" if self.scale is None else f" at {self.scale:g}"
        token = "" if self.token is None else f" as {self.token}"
        return f"{self.role.replace('_', ' ')} {self.name}{scale}{token}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A file that weights are read from, as it was when the checkpoint was composed.

    Attributes:
        path: absolute.
        label: its source's name and its own, for manifests.
        size_bytes: its length.
        fingerprint: of its header and of samples of its data; see `fingerprint`.
        sha256: of its content.
    """

    path: Path
    label: str
    size_bytes: int
    fingerprint: str
    sha256: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """The whole of composition.json.

    Attributes:
        schema_version: of this file's layout; readers refuse a newer one.
        sources: what it is composed of, in the order they apply.
        files: every file that a weight is read from.
        networks: for each network's folder, its weights by the names diffusers gives them.
    """

    schema_version: int = SCHEMA_VERSION
    sources: tuple[Source, ...]
    files: tuple[WeightFile, ...]
    networks: Mapping[str, Mapping[str, StoredTensor]]

    def network_files(self, network: str) -> tuple[WeightFile, ...]:
        """The files that one network's weights are read from."""
        used = {path for tensor in self.networks[network].values() for path in tensor.files}
        return tuple(file for file in self.files if file.path in used)


def write_composition(composition: Composition, folder: Path) -> None:
    """Write composition.json into a folder."""
    content = msgspec.json.encode(composition, enc_hook=_path_text)
    (folder / COMPOSITION_NAME).write_bytes(content + b"\n")


def read_composition(folder: Path) -> Composition:
    """Read composition.json and see that the files it names are still those it was made of.

    Raises:
        CheckpointError: it is not readable, of a newer schema, or a file is missing or another.
    """
    path = folder / COMPOSITION_NAME
    try:
        content = path.read_bytes()
        version = json.loads(content).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise CheckpointError(
                f"{path}: got schema version {version}, want {SCHEMA_VERSION} or older. "
                "Upgrade triptych."
            )
        composition = msgspec.json.decode(content, type=Composition, dec_hook=_text_path)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: got {error}, want what triptych compose wrote.") from error
    for file in composition.files:
        _check_file(file, where=path)
    return composition


def fingerprint(path: Path) -> str:
    """SHA-256 of a safetensors file's header and of 64 samples spread over its data.

    It takes milliseconds at any size, and tells another training of the same model: that differs
    everywhere. A change of a few single weights it need not see.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            size_bytes = path.stat().st_size
            header_bytes = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(header_bytes, size_bytes)))
            start = stream.tell()
            stride = max(_SAMPLE_BYTES, (size_bytes - start) // _NUM_SAMPLES)
            for offset in range(start, size_bytes, stride):
                stream.seek(offset)
                digest.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path}: got {error}, want a readable file.") from error
    return digest.hexdigest()


def _check_file(file: WeightFile, *, where: Path) -> None:
    if not file.path.is_file():
        raise CheckpointError(
            f"{where}: got no {file.path}, want the file that weights are read from. Put it back, "
            "or compose again from where it is now."
        )
    size_bytes = file.path.stat().st_size
    if size_bytes != file.size_bytes or fingerprint(file.path) != file.fingerprint:
        raise CheckpointError(
            f"{where}: got another {file.path} of {size_bytes} bytes, want the one of "
            f"{file.size_bytes} bytes that this was composed of. Compose again."
        )


def _path_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError


def _text_path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError
