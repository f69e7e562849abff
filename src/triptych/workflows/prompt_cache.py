"""Encoded prompts kept in a folder, so that a prompt that comes again opens no text encoder.

An entry's name is the hash of all that decides what it holds: the prompts, the content of the text
encoders and tokenizers, the engine with its settings, and the machine. Nothing goes out of date;
the folder may be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import final

import msgspec
import numpy as np

from triptych.bundle.bundle import Artifact, Bundle
from triptych.bundle.store import file_sha256
from triptych.errors import OutputError
from triptych.parity.fingerprint import take_fingerprint
from triptych.runtimes.base import Execution, Runtime, RuntimeSettings
from triptych.sampling.pipeline import TOKENIZER_FOLDERS, encode
from triptych.sampling.prompt_encoding import EncodedPrompts, Prompts
from triptych.types import Array, ComponentName

_FLOATS = (
    "encoder_hidden_states", "text_embeds",
    "negative_encoder_hidden_states", "negative_text_embeds",
)  # fmt: skip
_IDS = "input_ids."
_RECORD = "triptych"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCache:
    """A folder of encoded prompts.

    Attributes:
        folder: where they lie; made when the first is written.
        settings: of the runtime whose text encoders are asked.
    """

    folder: Path
    settings: RuntimeSettings

    def encode(
        self, bundle: Bundle, runtime: Runtime, prompts: Prompts
    ) -> tuple[EncodedPrompts, dict[ComponentName, Execution]]:
        """As `pipeline.encode`; executions of what was encoded before name the entry.

        Raises:
            OutputError: the folder cannot be written to.
            As `pipeline.encode`.
        """
        key = self._key(bundle, runtime, prompts)
        path = self.folder / f"{key}.safetensors"
        if (found := _read(path)) is not None:
            return found
        encoded, executions = encode(bundle, runtime, prompts)
        named = {
            name: replace(execution, details={**execution.details, "prompt_cache": key})
            for name, execution in executions.items()
        }
        _write(path, encoded, named)
        return encoded, executions

    def _key(self, bundle: Bundle, runtime: Runtime, prompts: Prompts) -> str:
        encoders = [name for name in bundle.config.components if name in TOKENIZER_FOLDERS]
        deciding = {
            "prompts": asdict(prompts),
            "config": asdict(bundle.config),
            "encoders": {name: _content(bundle, bundle.artifact(name)) for name in encoders},
            "tokenizers": {
                name: _file_hashes(bundle.folder / TOKENIZER_FOLDERS[name]) for name in encoders
            },
            "runtime": runtime.name,
            "settings": asdict(replace(self.settings, cache_dir=None)),
            "machine": asdict(take_fingerprint()),
        }
        text = json.dumps(deciding, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _content(bundle: Bundle, artifact: Artifact) -> dict[str, str]:
    """The hash of every file of a component: those recorded when it was made, where there are."""
    if artifact.checkpoint is not None:
        component = artifact.spec.name
        config = artifact.checkpoint.component_folder(component) / "config.json"
        weights = artifact.checkpoint.recorded_sha256(component) or {
            str(file): file_sha256(file) for file in artifact.checkpoint.component_files(component)
        }
        return {"config.json": file_sha256(config), **weights}
    folder = artifact.path if artifact.path.is_dir() else artifact.path.parent
    if bundle.manifest is not None and folder.is_relative_to(bundle.folder):
        inside = folder.relative_to(bundle.folder).as_posix()
        return {
            file.path: file.sha256
            for file in bundle.manifest.files
            if file.path.startswith(f"{inside}/")
        }
    return _file_hashes(folder)


def _file_hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file_sha256(file) for file in files}


def _read(path: Path) -> tuple[EncodedPrompts, dict[ComponentName, Execution]] | None:
    """An entry; None where there is none, or it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            tensors: dict[str, Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            record = msgspec.json.decode(file.metadata()[_RECORD], type=_Record)
    except (OSError, SafetensorError, KeyError, TypeError, msgspec.DecodeError):
        return None
    floats = {name: tensors[name] for name in _FLOATS if name in tensors}
    if len(floats) < len(_FLOATS) or not all(np.isfinite(part).all() for part in floats.values()):
        return None
    encoded = EncodedPrompts(
        encoder_hidden_states=floats["encoder_hidden_states"],
        text_embeds=floats["text_embeds"],
        negative_encoder_hidden_states=floats["negative_encoder_hidden_states"],
        negative_text_embeds=floats["negative_text_embeds"],
        input_ids={name: tensors[f"{_IDS}{name}"] for name in record.num_truncated},
        num_truncated=record.num_truncated,
    )
    return encoded, dict(record.executions)


def _write(
    path: Path, encoded: EncodedPrompts, executions: Mapping[ComponentName, Execution]
) -> None:
    """Write an entry; it appears when all of it is written."""
    from safetensors.numpy import save_file

    record = _Record(num_truncated=encoded.num_truncated, executions=executions)
    tensors = {
        **{name: getattr(encoded, name) for name in _FLOATS},
        **{f"{_IDS}{name}": ids for name, ids in encoded.input_ids.items()},
    }
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
            partial,
            metadata={_RECORD: msgspec.json.encode(record).decode()},
        )
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: got {error}, want to keep encoded prompts there. Give another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What an entry holds besides tensors."""

    num_truncated: Mapping[ComponentName, tuple[int, ...]]
    executions: Mapping[ComponentName, Execution]
