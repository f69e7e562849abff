"""Compose a checkpoint of what lies in several places: a folder of its own, no weight copied."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from triptych.bundle.store import file_sha256, replace_folder
from triptych.dependencies import import_optional
from triptych.errors import CheckpointError
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.composition import (
    COMPOSITION_NAME,
    Composition,
    Source,
    WeightFile,
    fingerprint,
    write_composition,
)
from triptych.models.configs import read_json, setting
from triptych.models.lora import apply_lora, lora_file
from triptych.models.textual_inversion import read_textual_inversion
from triptych.models.vae_source import read_vae
from triptych.workflows.compose_base import Networks, Part, Place, find_place, lay_out
from triptych.workflows.compose_tokens import add_token


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledLora:
    """A LoRA to fuse.

    Attributes:
        path: a safetensors file, or a folder that diffusers or PEFT saved it in.
        scale: how strongly; 0 changes nothing.
    """

    path: Path
    scale: float = 1.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NamedInversion:
    """A textual inversion to add.

    Attributes:
        path: a safetensors file.
        token: what prompts call it; None takes the name in the file, or the file's own.
    """

    path: Path
    token: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeRequest:
    """What to compose a checkpoint of.

    Attributes:
        checkpoint: a folder in diffusers layout, or a single file in the original one.
        variant: its weight variant, such as "fp16".
        vae: a folder or file of a VAE to take instead of the checkpoint's.
        loras: what to add to the weights of the U-Net and the text encoders.
        textual_inversions: tokens to add to the tokenizers and text encoders.
        config: a folder in diffusers layout with the configs and tokenizers of a single file.
        download: fetch what is named by its id on the hub; any path here may be one.
    """

    checkpoint: Path
    variant: str | None = None
    vae: Path | None = None
    loras: tuple[ScaledLora, ...] = ()
    textual_inversions: tuple[NamedInversion, ...] = ()
    config: Path | None = None
    download: bool = False

    @property
    def changes_nothing(self) -> bool:
        """Whether the checkpoint itself says it all."""
        parts = (self.vae, self.loras, self.textual_inversions, self.config, self.download)
        return not any(parts) and not self.checkpoint.is_file()


def compose_checkpoint(
    request: ComposeRequest, output: Path, *, overwrite: bool = False
) -> Checkpoint:
    """Write a folder that stands for a checkpoint, and open it.

    The folder has the configs, tokenizers and scheduler, and says where each weight lies. Every
    weight is matched with the network that the configs describe before the folder appears.

    Args:
        request: what to compose.
        output: the folder to make.
        overwrite: replace a composed checkpoint that exists.

    Raises:
        UsageError: the output exists.
        CheckpointError: a source is not whole, or does not fit the others.
        MissingDependencyError: the export extra is not installed.
    """
    import_optional("torch", "accelerate", "diffusers", "transformers", extra="export")
    with replace_folder(output, overwrite=overwrite, marker=COMPOSITION_NAME) as folder:
        networks: Networks = {}
        parts = lay_out(
            _place(request, request.checkpoint, variant=request.variant),
            folder,
            networks,
            variant=request.variant,
            config=None if request.config is None else _place(request, request.config),
        )
        if request.vae is not None:
            parts.append(_take_vae(request, request.vae, folder, networks))
        parts.extend(_add_lora(request, lora, folder, networks) for lora in request.loras)
        parts.extend(
            _add_inversion(request, inversion, folder, networks)
            for inversion in request.textual_inversions
        )
        write_composition(_composition(parts, networks), folder)
        _check_weights(open_checkpoint(folder))
    return open_checkpoint(output)


@contextlib.contextmanager
def composed(request: ComposeRequest) -> Iterator[tuple[Path, str | None]]:
    """A checkpoint's folder and variant for the length of a block.

    They are the request's own where there is nothing to compose.
    """
    if request.changes_nothing:
        yield request.checkpoint, request.variant
        return
    with tempfile.TemporaryDirectory(prefix="triptych-") as parent:
        yield compose_checkpoint(request, Path(parent, "checkpoint")).folder, None


def _place(request: ComposeRequest, path: Path, *, variant: str | None = None) -> Place:
    return find_place(path, variant=variant, download=request.download)


def _take_vae(request: ComposeRequest, vae: Path, folder: Path, networks: Networks) -> Part:
    """Put another VAE in the place of the checkpoint's."""
    place = _place(request, vae)
    found = read_vae(place.path, variant=request.variant)
    config_path = folder / "vae" / "config.json"
    if found.config is not None:
        where = f"{place.path} config"
        channels = setting(found.config, "latent_channels", int, where=where)
        wanted = setting(read_json(config_path), "latent_channels", int, where=str(config_path))
        if channels != wanted:
            raise CheckpointError(
                f"{where} 'latent_channels': got {channels}, want this model's {wanted}. It is the "
                "VAE of another family of models."
            )
        config_path.write_text(json.dumps(found.config, indent=2), encoding="utf-8")
    networks["vae"] = found.tensors
    return place.part(Source(role="vae", name=place.name))


def _add_lora(request: ComposeRequest, lora: ScaledLora, folder: Path, networks: Networks) -> Part:
    """Add a LoRA to the weights that it names."""
    config_path = folder / "unet" / "config.json"
    place = _place(request, lora.path)
    file = lora_file(place.path)
    changed = apply_lora(
        networks,
        file,
        scale=lora.scale,
        layers_per_block=setting(
            read_json(config_path), "layers_per_block", int, where=str(config_path)
        ),
    )
    networks.update(changed)
    return place.part(Source(role="lora", name=place.name, scale=lora.scale))


def _add_inversion(
    request: ComposeRequest, inversion: NamedInversion, folder: Path, networks: Networks
) -> Part:
    """Add a token to the tokenizers and text encoders that it has vectors for."""
    place = _place(request, inversion.path)
    found = read_textual_inversion(place.path, networks, token=inversion.token)
    for network, vectors in found.vectors.items():
        add_token(found.token, vectors, network=network, folder=folder, networks=networks)
    source = Source(role="textual_inversion", name=place.name, token=found.token)
    return place.part(source)


def _composition(parts: Sequence[Part], networks: Networks) -> Composition:
    """Hash every file that a weight is read from, each once, and say whose it is."""
    used = sorted(
        {
            path
            for network in networks.values()
            for tensor in network.values()
            for path in tensor.files
        }
    )
    files: dict[Path, WeightFile] = {}
    labels: set[str] = set()
    sources = []
    for part in parts:
        owned = [path for path in used if part.root in (path, *path.parents)]
        for path in owned:
            if path not in files:
                label = _new_label(part, path, labels)
                files[path] = _weight_file(path, label=label)
                labels.add(label)
        hashes = {files[path].label: files[path].sha256 for path in owned}
        sources.append(replace(part.source, sha256=hashes))
    return Composition(sources=tuple(sources), files=tuple(files.values()), networks=networks)


def _new_label(part: Part, path: Path, labels: set[str]) -> str:
    """The source's name, and the file's within it; numbered where that is taken."""
    inside = path.relative_to(part.root)
    label = part.source.name if path == part.root else f"{part.source.name}/{inside.as_posix()}"
    numbered = (f"{label} ({number})" for number in range(2, len(labels) + 3))
    return next(one for one in (label, *numbered) if one not in labels)


def _weight_file(path: Path, *, label: str) -> WeightFile:
    return WeightFile(
        path=path,
        label=label,
        size_bytes=path.stat().st_size,
        fingerprint=fingerprint(path),
        sha256=file_sha256(path),
    )


def _check_weights(checkpoint: Checkpoint) -> None:
    from triptych.models.modules import check_weights

    for component in checkpoint.config.components:
        check_weights(checkpoint, component)
