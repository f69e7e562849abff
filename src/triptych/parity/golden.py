"""A recording as a folder that travels: manifest.json and tensors.safetensors.

Recorded once, where the checkpoint and its GPU are; checked against anywhere, without either. It
holds no weights and no pickles, and every tensor has its hash.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

import triptych
from triptych.bundle.store import replace_folder
from triptych.errors import GoldenError
from triptych.parity.golden_manifest import (
    MANIFEST_FILE,
    CaseEntry,
    GoldenManifest,
    NoiseEntry,
    Profile,
    TensorEntry,
    read_golden_manifest,
)
from triptych.parity.golden_run import run_entry_from_settings, settings_from_run_entry
from triptych.parity.preconditions import array_sha256
from triptych.parity.recording import RecordedCase, Recording
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.image_start import ImageStart
from triptych.sampling.inpaint import Inpaint
from triptych.sampling.noise import NoiseStream
from triptych.types import Array, TensorMap

TENSORS_FILE = "tensors.safetensors"


def is_golden(folder: Path) -> bool:
    """Whether a folder is a golden recording, rather than a checkpoint or a bundle."""
    return (folder / MANIFEST_FILE).is_file() and (folder / TENSORS_FILE).is_file()


def write_golden(
    recording: Recording,
    folder: Path,
    *,
    profile: Profile,
    command: tuple[str, ...] = (),
    overwrite: bool = False,
) -> None:
    """Write a recording; the folder appears whole or not at all.

    Raises:
        UsageError: the folder exists, or the run has settings that a file cannot hold.
    """
    from safetensors.numpy import save_file

    run = run_entry_from_settings(recording.settings)
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in _tensors(recording)}
    entries = _entries(tensors)
    manifest = GoldenManifest(
        triptych=triptych.__version__,
        created=recording.created,
        command=command,
        profile=profile,
        precision=recording.precision,
        execution=recording.execution,
        fingerprint=recording.fingerprint,
        run=run,
        preconditions=dict(recording.preconditions),
        noise_stream=NoiseEntry(
            seeds=recording.noise_stream.seeds,
            words_drawn=recording.noise_stream.words_drawn,
            spares=recording.noise_stream.spares,
        ),
        num_steps=len(recording.noise_preds),
        picture_steps=tuple(recording.pictures),
        cases=tuple(
            CaseEntry(
                component=case.component,
                name=case.name,
                feed=tuple(case.feed),
                outputs=tuple(case.outputs),
                has_halves=case.has_halves,
            )
            for case in recording.cases
        ),
        floors=recording.floors,
        tensors=entries,
    )
    with replace_folder(folder, overwrite=overwrite, marker=MANIFEST_FILE) as partial:
        stored = {entry.stored_as: tensors[entry.stored_as] for entry in entries.values()}
        save_file(stored, partial / TENSORS_FILE)
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        (partial / MANIFEST_FILE).write_bytes(content + b"\n")


def read_golden(folder: Path) -> Recording:
    """Read a recording, and compare every tensor with its hash.

    Raises:
        GoldenError: it is incomplete, corrupt, or of a newer schema.
    """
    manifest = read_golden_manifest(folder)
    tensors = _read_tensors(folder / TENSORS_FILE, manifest)
    try:
        return _recording(manifest, tensors)
    except KeyError as error:
        raise GoldenError(
            f"{folder}: got no tensor {error}, want it, as {MANIFEST_FILE} promises a run of "
            f"{manifest.num_steps} steps. Copy the folder again, or record again."
        ) from error


def _tensors(recording: Recording) -> Iterator[tuple[str, Array]]:
    """Everything but words and numbers, by name."""
    yield "noise", recording.noise
    yield "image", recording.image
    for part, prefix in (
        (recording.conditioning, "conditioning"),
        (recording.inpaint, "inpaint"),
        (recording.settings.start, "start"),
    ):
        if part is not None:
            for name in _array_fields(part):
                yield f"{prefix}/{name}", getattr(part, name)
    for index, latents in enumerate(recording.latents):
        yield f"latents/{index}", latents
    for index, noise_pred in enumerate(recording.noise_preds):
        yield f"noise_pred/{index + 1}", noise_pred
    for step, picture in recording.pictures.items():
        yield f"picture/{step}", picture
    for number, case in enumerate(recording.cases):
        for kind, named in (("feed", case.feed), ("output", case.outputs)):
            for name, tensor in named.items():
                yield f"case/{number}/{kind}/{name}", tensor


def _array_fields(part: Conditioning | Inpaint | ImageStart) -> tuple[str, ...]:
    names = (one.name for one in dataclasses.fields(part))
    return tuple(name for name in names if isinstance(getattr(part, name), np.ndarray))


def _entries(tensors: Mapping[str, Array]) -> dict[str, TensorEntry]:
    stored: dict[str, str] = {}
    entries = {}
    for name, tensor in tensors.items():
        sha256 = array_sha256(tensor)
        entries[name] = TensorEntry(
            stored_as=stored.setdefault(sha256, name),
            dtype=str(tensor.dtype),
            shape=tensor.shape,
            sha256=sha256,
        )
    return entries


def _recording(manifest: GoldenManifest, tensors: TensorMap) -> Recording:
    inpaint = _part(tensors, "inpaint")
    stream = manifest.noise_stream
    return Recording(
        settings=settings_from_run_entry(manifest.run, start=_part(tensors, "start")),
        preconditions=manifest.preconditions,
        noise=tensors["noise"],
        noise_stream=NoiseStream(
            seeds=stream.seeds, words_drawn=stream.words_drawn, spares=stream.spares
        ),
        conditioning=Conditioning(**_part(tensors, "conditioning")),
        inpaint=Inpaint(**inpaint) if inpaint else None,
        cases=tuple(_case(number, entry, tensors) for number, entry in enumerate(manifest.cases)),
        latents=tuple(tensors[f"latents/{index}"] for index in range(manifest.num_steps + 1)),
        noise_preds=tuple(
            tensors[f"noise_pred/{index + 1}"] for index in range(manifest.num_steps)
        ),
        image=tensors["image"],
        pictures={step: tensors[f"picture/{step}"] for step in manifest.picture_steps},
        precision=manifest.precision,
        execution=manifest.execution,
        fingerprint=manifest.fingerprint,
        created=manifest.created,
        floors=manifest.floors,
    )


def _part(tensors: TensorMap, prefix: str) -> dict[str, Array]:
    return {
        name.removeprefix(f"{prefix}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}/")
    }


def _case(number: int, entry: CaseEntry, tensors: TensorMap) -> RecordedCase:
    return RecordedCase(
        component=entry.component,
        name=entry.name,
        feed={name: tensors[f"case/{number}/feed/{name}"] for name in entry.feed},
        outputs={name: tensors[f"case/{number}/output/{name}"] for name in entry.outputs},
        has_halves=entry.has_halves,
    )


def _read_tensors(path: Path, manifest: GoldenManifest) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise GoldenError(
            f"{path}: got {error}, want the golden's tensors. Copy it again."
        ) from error
    for name, entry in manifest.tensors.items():
        tensor = stored.get(entry.stored_as)
        if tensor is None or array_sha256(tensor) != entry.sha256:
            got = "nothing" if tensor is None else "other content than its hash promises"
            raise GoldenError(
                f"{path} {name!r}: got {got}, want {entry.dtype} {list(entry.shape)} as it was "
                "recorded. Copy the golden again, or record again."
            )
    return {name: stored[entry.stored_as] for name, entry in manifest.tensors.items()}
