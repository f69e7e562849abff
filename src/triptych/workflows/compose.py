"""Compose a checkpoint of what lies in several places: a folder of its own, no weight copied."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, final

from triptych.bundle.store import file_sha256, replace_folder
from triptych.dependencies import import_optional
from triptych.errors import CheckpointError
from triptych.models.checkpoint import NETWORK_FOLDERS, Checkpoint, open_checkpoint
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
from triptych.models.stored_tensor import StoredTensor
from triptych.models.vae_source import read_vae

_ASSETS = ("scheduler", "tokenizer", "tokenizer_2")

Networks: TypeAlias = dict[str, Mapping[str, StoredTensor]]
"""The weights in each network's folder, by diffusers' names."""


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
class ComposeRequest:
    """What to compose a checkpoint of.

    Attributes:
        checkpoint: a folder in diffusers layout.
        variant: its weight variant, such as "fp16".
        vae: a folder or file of a VAE to take instead of the checkpoint's.
        loras: what to add to the weights of the U-Net and the text encoders.
    """

    checkpoint: Path
    variant: str | None = None
    vae: Path | None = None
    loras: tuple[ScaledLora, ...] = ()

    @property
    def changes_nothing(self) -> bool:
        """Whether the checkpoint itself says it all."""
        return self.vae is None and not self.loras


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A source, and the folder or file that its weights lie in."""

    source: Source
    root: Path


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
        parts = [_lay_out_checkpoint(request, folder, networks)]
        if request.vae is not None:
            parts.append(_take_vae(request, request.vae, folder, networks))
        parts.extend(_add_lora(lora, folder, networks) for lora in request.loras)
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


def _lay_out_checkpoint(request: ComposeRequest, folder: Path, networks: Networks) -> _Part:
    """Copy a folder's configs, tokenizers and scheduler, and note where its weights lie."""
    base = open_checkpoint(request.checkpoint.absolute(), variant=request.variant)
    if base.composition is not None:
        raise CheckpointError(
            f"{base.folder}: got a composed checkpoint, want one in diffusers layout or a single "
            "file. Compose everything at once."
        )
    index = {"_name_or_path": base.folder.name, **read_json(base.folder / "model_index.json")}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    for component in base.config.components:
        network = NETWORK_FOLDERS[component]
        if network not in networks:
            (folder / network).mkdir()
            config = base.component_folder(component) / "config.json"
            shutil.copy(config, folder / network)
            networks[network] = base.network_tensors(network)
    for name in _ASSETS:
        if (base.folder / name).is_dir():
            shutil.copytree(base.folder / name, folder / name)
    return _Part(source=Source(role="checkpoint", name=base.folder.name), root=base.folder)


def _take_vae(request: ComposeRequest, vae: Path, folder: Path, networks: Networks) -> _Part:
    """Put another VAE in the place of the checkpoint's."""
    path = vae.absolute()
    found = read_vae(path, variant=request.variant)
    config_path = folder / "vae" / "config.json"
    if found.config is not None:
        where = f"{path} config"
        channels = setting(found.config, "latent_channels", int, where=where)
        wanted = setting(read_json(config_path), "latent_channels", int, where=str(config_path))
        if channels != wanted:
            raise CheckpointError(
                f"{where} 'latent_channels': got {channels}, want this model's {wanted}. It is the "
                "VAE of another family of models."
            )
        config_path.write_text(json.dumps(found.config, indent=2), encoding="utf-8")
    networks["vae"] = found.tensors
    return _Part(source=Source(role="vae", name=path.name), root=path)


def _add_lora(lora: ScaledLora, folder: Path, networks: Networks) -> _Part:
    """Add a LoRA to the weights that it names."""
    config_path = folder / "unet" / "config.json"
    file = lora_file(lora.path.absolute())
    changed = apply_lora(
        networks,
        file,
        scale=lora.scale,
        layers_per_block=setting(
            read_json(config_path), "layers_per_block", int, where=str(config_path)
        ),
    )
    networks.update(changed)
    return _Part(source=Source(role="lora", name=file.name, scale=lora.scale), root=file)


def _composition(parts: Sequence[_Part], networks: Networks) -> Composition:
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


def _new_label(part: _Part, path: Path, labels: set[str]) -> str:
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
