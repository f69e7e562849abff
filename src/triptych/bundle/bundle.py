"""Opening whatever holds the components: our bundle, optimum's folder, or a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from triptych.bundle.layouts import (
    BUNDLE_FORMATS,
    MANIFEST_NAME,
    Bindings,
    artifact_paths,
    component_bindings,
    graph_ports,
)
from triptych.bundle.manifest import ComponentRecord, Manifest, read_manifest
from triptych.bundle.store import check_files
from triptych.errors import BundleError
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.component import ComponentSpec
from triptych.models.hub import local_path
from triptych.models.sdxl import SdxlConfig, component_spec, read_sdxl_config
from triptych.tensors import PortSpecs, fixed_axes
from triptych.types import ComponentName, FormatName


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One component in one format, ready for an engine to open.

    Attributes:
        spec: its contract, in triptych's vocabulary.
        format: how it is stored.
        path: the file an engine opens; the component's folder for a checkpoint.
        bindings: its tensors' names in the graph.
        record: what the manifest says of it, where there is one.
        checkpoint: the checkpoint it belongs to, where that is its format.
        chunks: where the network was cut, every part in the order they run, `path` first.
    """

    spec: ComponentSpec
    format: FormatName
    path: Path
    bindings: Bindings
    record: ComponentRecord | None = None
    checkpoint: Checkpoint | None = None
    chunks: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything an engine opens, in the order it runs."""
        return self.chunks or (self.path,)

    @property
    def ports(self) -> PortSpecs:
        """The spec in the graph's names and layout."""
        return graph_ports(self.spec, self.bindings)

    @property
    def fixed_axes(self) -> dict[str, int]:
        """The sizes it was built for, as far as the manifest tells; empty for a dynamic graph."""
        if self.record is None:
            return {}
        shapes = {port.artifact_name: port.shape for port in self.record.inputs}
        return fixed_axes(self.ports.inputs, shapes)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A folder that can be sampled from and checked.

    Attributes:
        folder: where it is.
        format: what its artifacts are.
        config: the model's numbers.
        artifacts: the components it has.
        manifest: what triptych wrote when it exported the bundle; None for foreign folders.
    """

    folder: Path
    format: FormatName
    config: SdxlConfig
    artifacts: Mapping[ComponentName, Artifact]
    manifest: Manifest | None = None

    def artifact(self, component: ComponentName) -> Artifact:
        """One component's artifact.

        Raises:
            BundleError: the bundle does not have it.
        """
        if component not in self.artifacts:
            raise BundleError(
                f"{self.folder}: got only {', '.join(self.artifacts) or 'no components'}, "
                f"want {component}. {self._how_to_get(component)}"
            )
        return self.artifacts[component]

    def completed_from(self, other: "Bundle") -> "Bundle":
        """This bundle with the components it lacks from another, where they are interchangeable.

        A refiner's text encoder and VAE are the base model's: they need not be stored twice.
        """
        if other.format != self.format:
            return self
        lent = {
            name: other.artifacts[name]
            for name in (*self.config.components, "preview_decoder")
            if name not in self.artifacts
            and name in other.artifacts
            and other.artifacts[name].spec == component_spec(name, self.config)
            and _vae_numbers(other.config) == _vae_numbers(self.config)
        }
        return replace(self, artifacts={**self.artifacts, **lent})

    def _how_to_get(self, component: ComponentName) -> str:
        export = (
            f"Export all of them: triptych export CHECKPOINT OUT --to {self.format} --overwrite"
        )
        if component != "preview_decoder":
            return export
        if self.format == "diffusers":
            return f"Put an AutoencoderTiny, such as madebyollin/taesdxl, in its {component}/."
        return f"{export} --preview-decoder FOLDER"

    @property
    def built_size_px(self) -> tuple[int, int] | None:
        """Height and width of the only pictures it makes; None where it makes any size."""
        for artifact in self.artifacts.values():
            axes = artifact.fixed_axes
            if "height" in axes and "width" in axes:
                scale = self.config.vae_scale_factor
                return axes["height"] * scale, axes["width"] * scale
        return None

    def check_files(self, *, hashes: bool = True) -> None:
        """Compare the files with the manifest; without a manifest there is nothing to compare.

        Raises:
            BundleError: a file is missing, truncated or changed.
        """
        if self.manifest is not None:
            check_files(self.folder, self.manifest.files, hashes=hashes)


def _vae_numbers(config: SdxlConfig) -> tuple[object, ...]:
    return config.scaling_factor, config.latents_mean, config.latents_std


def open_bundle(
    path: Path,
    *,
    variant: str | None = None,
    preview_decoder: Path | None = None,
    check_sizes: bool = True,
) -> Bundle:
    """Find out what a folder holds and open it, without reading weights.

    Args:
        path: a bundle written by triptych, a folder written by `optimum-cli export onnx` or
            `optimum-cli export openvino`, or a checkpoint in diffusers layout, which
            may be a model's id on the hub that is in the cache.
        variant: the weight variant, for a checkpoint.
        preview_decoder: the folder of a preview decoder that is elsewhere, for a checkpoint.
        check_sizes: refuse a bundle whose files are missing or of another size than promised.

    Raises:
        BundleError: it is none of these, or files that the manifest names are missing.
        CheckpointError: it is a checkpoint, and not a whole one.
    """
    path = local_path(path)
    if (path / MANIFEST_NAME).is_file():
        return _open_ours(path, check_sizes=check_sizes)
    if path.suffix == ".safetensors" and path.is_file():
        open_checkpoint(path)  # which says what to do with a file
    if (path / "model_index.json").is_file():
        return _open_foreign(path) or bundle_from_checkpoint(
            open_checkpoint(path, variant=variant, preview_decoder=preview_decoder)
        )
    inside = [name for name in BUNDLE_FORMATS if (path / name / "model_index.json").is_file()]
    hint = f" Did you mean {path / inside[0]}?" if inside else ""
    raise BundleError(
        f"{path}: got neither {MANIFEST_NAME} nor model_index.json, want a bundle, a folder "
        f"exported by optimum-cli, or a checkpoint in diffusers layout.{hint}"
    )


def _open_ours(folder: Path, *, check_sizes: bool) -> Bundle:
    manifest = read_manifest(folder)
    if check_sizes:
        check_files(folder, manifest.files, hashes=False)
    config = read_sdxl_config(folder)
    artifacts = {
        record.name: make_artifact(
            record.name,
            config,
            paths=tuple(folder / file for file in record.chunks or (record.file,)),
            artifact_format=manifest.format,
            record=record,
        )
        for record in manifest.components
    }
    return Bundle(
        folder=folder,
        format=manifest.format,
        config=config,
        artifacts=artifacts,
        manifest=manifest,
    )


def make_artifact(
    component: ComponentName,
    config: SdxlConfig,
    *,
    paths: tuple[Path, ...],
    artifact_format: FormatName,
    record: ComponentRecord | None = None,
) -> Artifact:
    """One component from what an engine opens of it."""
    return Artifact(
        spec=component_spec(component, config),
        format=artifact_format,
        path=paths[0],
        bindings=component_bindings(component, config, artifact_format=artifact_format),
        record=record,
        chunks=paths if len(paths) > 1 else (),
    )


def _open_foreign(folder: Path) -> Bundle | None:
    """A folder that another tool exported; None where it holds no exported component."""
    config = read_sdxl_config(folder)
    for artifact_format in BUNDLE_FORMATS:
        found = {
            component: artifact_paths(folder, component, config, artifact_format=artifact_format)
            for component in config.components
        }
        artifacts = {
            component: make_artifact(
                component, config, paths=paths, artifact_format=artifact_format
            )
            for component, paths in found.items()
            if paths
        }
        if artifacts:
            return Bundle(folder=folder, format=artifact_format, config=config, artifacts=artifacts)
    return None


def bundle_from_checkpoint(checkpoint: Checkpoint) -> Bundle:
    """A checkpoint as what the pytorch runtime reads."""
    config = checkpoint.config
    artifacts = {
        component: Artifact(
            spec=component_spec(component, config),
            format="diffusers",
            path=checkpoint.component_folder(component),
            bindings=component_bindings(component, config, artifact_format="diffusers"),
            checkpoint=checkpoint,
        )
        for component in config.components
    }
    return Bundle(folder=checkpoint.folder, format="diffusers", config=config, artifacts=artifacts)
