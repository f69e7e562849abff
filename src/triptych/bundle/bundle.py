"""Opening whatever holds the five components: our bundle, optimum's folder, or a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.bundle.layouts import ARTIFACT_FILES, MANIFEST_NAME, Bindings, component_bindings
from triptych.bundle.manifest import ComponentRecord, Manifest, read_manifest
from triptych.bundle.store import check_files
from triptych.errors import BundleError
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.component import ComponentSpec
from triptych.models.sdxl import COMPONENTS, SdxlConfig, component_spec, read_sdxl_config
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
    """

    spec: ComponentSpec
    format: FormatName
    path: Path
    bindings: Bindings
    record: ComponentRecord | None = None
    checkpoint: Checkpoint | None = None


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
                f"want {component}. Export it: triptych export CHECKPOINT OUT --to {self.format} "
                f"--component {component}"
            )
        return self.artifacts[component]

    def check_files(self, *, hashes: bool = True) -> None:
        """Compare the files with the manifest; without a manifest there is nothing to compare.

        Raises:
            BundleError: a file is missing, truncated or changed.
        """
        if self.manifest is not None:
            check_files(self.folder, self.manifest.files, hashes=hashes)


def open_bundle(path: Path, *, variant: str | None = None, check_sizes: bool = True) -> Bundle:
    """Find out what a folder holds and open it, without reading weights.

    Args:
        path: a bundle written by triptych, a folder written by `optimum-cli export onnx` or
            `optimum-cli export openvino`, or a checkpoint in diffusers layout.
        variant: the weight variant, for a checkpoint.
        check_sizes: refuse a bundle whose files are missing or of another size than promised.

    Raises:
        BundleError: it is none of these, or files that the manifest names are missing.
        CheckpointError: it is a checkpoint, and not a whole one.
    """
    if (path / MANIFEST_NAME).is_file():
        return _open_ours(path, check_sizes=check_sizes)
    for artifact_format, file in ARTIFACT_FILES.items():
        if any((path / component / file).is_file() for component in COMPONENTS):
            return _open_foreign(path, artifact_format)
    if (path / "model_index.json").is_file():
        return _open_checkpoint_bundle(path, variant)
    inside = [name for name in ARTIFACT_FILES if (path / name / "model_index.json").is_file()]
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
        record.name: Artifact(
            spec=component_spec(record.name, config),
            format=manifest.format,
            path=folder / record.file,
            bindings=component_bindings(record.name, config, artifact_format=manifest.format),
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


def _open_foreign(folder: Path, artifact_format: FormatName) -> Bundle:
    config = read_sdxl_config(folder)
    file = ARTIFACT_FILES[artifact_format]
    artifacts = {
        component: Artifact(
            spec=component_spec(component, config),
            format=artifact_format,
            path=folder / component / file,
            bindings=component_bindings(component, config, artifact_format=artifact_format),
        )
        for component in config.components
        if (folder / component / file).is_file()
    }
    return Bundle(folder=folder, format=artifact_format, config=config, artifacts=artifacts)


def _open_checkpoint_bundle(folder: Path, variant: str | None) -> Bundle:
    checkpoint = open_checkpoint(folder, variant=variant)
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
    return Bundle(folder=folder, format="diffusers", config=config, artifacts=artifacts)
