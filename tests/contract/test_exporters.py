"""Every registered exporter keeps the contract, and the contract notices one that does not."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from triptych.bundle.layouts import ARTIFACT_FILES
from triptych.errors import BundleError, CheckFailedError
from triptych.exporters import exporter_names, make_exporter
from triptych.exporters.base import ArtifactFacts, Exporter, ExportReporter, ExportSettings
from triptych.models.checkpoint import Checkpoint
from triptych.models.sdxl import SdxlConfig
from triptych.testing import check_exporter
from triptych.types import ComponentName, FormatName, Precision


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", exporter_names())
def test_every_exporter_keeps_the_contract(
    name: str, precision: Precision, preview_checkpoint: Path, tmp_path: Path
) -> None:
    """On all components, the preview decoder among them."""
    exporter = make_exporter(name, ExportSettings(precision=precision))
    check_exporter(exporter, preview_checkpoint, tmp_path, precision=precision)


# Exporters with one fault each. They copy what was exported once, and spoil it.

Spoil = Callable[[Path], None]


def leave_sound(_folder: Path) -> None:
    return


@dataclass(frozen=True, kw_only=True)
class FaultyExporter:
    inner: Exporter
    exported: Path
    spoil: Spoil = leave_sound
    fractions: tuple[float, ...] = (0.0, 0.5, 1.0)
    facts: Mapping[str, object] = field(default_factory=dict)
    swallows_damage: bool = False
    format: FormatName = "onnx"
    verified_on: str = "onnxruntime"

    def export(
        self,
        checkpoint: Checkpoint,
        component: ComponentName,
        folder: Path,
        *,
        report: ExportReporter,
    ) -> None:
        assert component in checkpoint.config.components
        for fraction in self.fractions:
            report("copying", fraction)
        file = Path(component) / ARTIFACT_FILES[self.format]
        (folder / component).mkdir()
        shutil.copy(self.exported / file, folder / file)
        self.spoil(folder / component)

    def export_assets(self, folder: Path) -> None:
        self.inner.export_assets(folder)

    def precision_of(self, component: ComponentName, config: SdxlConfig) -> Precision:
        return self.inner.precision_of(component, config)

    def describe(self, *paths: Path) -> ArtifactFacts:
        try:
            return replace(self.inner.describe(*paths), **self.facts)  # type: ignore[arg-type]
        except BundleError:
            if not self.swallows_damage:
                raise
            return ArtifactFacts(
                inputs=(), outputs=(), num_parameters=0, weight_dtypes={}, opset=None
            )


@pytest.fixture
def sound_exporter(onnx_folder: Path) -> FaultyExporter:
    return FaultyExporter(inner=make_exporter("onnx"), exported=onnx_folder)


def add_folder(folder: Path) -> None:
    (folder / "scratch").mkdir()


def add_random_file(folder: Path) -> None:
    (folder / "build.txt").write_text(str(folder))


def forget_file(folder: Path) -> None:
    (folder / ARTIFACT_FILES["onnx"]).unlink()


def change_one_weight(folder: Path) -> None:
    path = folder / ARTIFACT_FILES["onnx"]
    model = onnx.load(str(path))
    weight = next(weight for weight in model.graph.initializer if len(weight.dims) == 2)
    values = np.frombuffer(weight.raw_data, np.float32).copy()
    values *= 1.01
    weight.raw_data = values.tobytes()
    onnx.save(model, str(path))


def rename_an_output(folder: Path) -> None:
    path = folder / ARTIFACT_FILES["onnx"]
    model = onnx.load(str(path))
    for output in model.graph.output:
        if output.name.startswith("hidden_states"):
            output.name = f"renamed_{output.name}"
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name.startswith("hidden_states"):
                node.output[index] = f"renamed_{name}"
        for index, name in enumerate(node.input):
            if name.startswith("hidden_states"):
                node.input[index] = f"renamed_{name}"
    onnx.save(model, str(path))


@pytest.mark.parametrize(
    ("spoil", "clause"),
    [
        (add_folder, "scratch in the bundle"),
        (add_random_file, "other bytes the second time"),
        (forget_file, "no file that engines open"),
        (change_one_weight, "from PyTorch"),
        (rename_an_output, "among them"),
    ],
)
def test_a_spoilt_export_breaks_the_contract(
    spoil: Spoil, clause: str, sound_exporter: FaultyExporter, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailedError, match=clause):
        check_exporter(replace(sound_exporter, spoil=spoil), checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("fractions", "clause"),
    [((), "no report"), ((0.0, 1.5), "between 0 and 1"), ((0.5, 0.4), "no step back")],
)
def test_wrong_progress_breaks_the_contract(
    fractions: tuple[float, ...],
    clause: str,
    sound_exporter: FaultyExporter,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckFailedError, match=clause):
        check_exporter(replace(sound_exporter, fractions=fractions), checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("facts", "clause"),
    [
        ({"num_parameters": 7}, "7 parameters"),
        ({"weight_dtypes": {"float16": 69376}}, "float16"),
        ({"inputs": ()}, "inputs"),
    ],
)
def test_wrong_facts_break_the_contract(
    facts: Mapping[str, object],
    clause: str,
    sound_exporter: FaultyExporter,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckFailedError, match=clause):
        check_exporter(replace(sound_exporter, facts=facts), checkpoint, tmp_path)


def test_an_exporter_that_describes_damaged_files_breaks_the_contract(
    sound_exporter: FaultyExporter, checkpoint: Path, tmp_path: Path
) -> None:
    exporter = replace(sound_exporter, swallows_damage=True)
    with pytest.raises(CheckFailedError, match=r"with 0 bytes of model\.onnx: got no error"):
        check_exporter(exporter, checkpoint, tmp_path)


def test_fp32_weights_break_the_contract_of_an_fp16_export(
    sound_exporter: FaultyExporter, checkpoint: Path, tmp_path: Path
) -> None:
    inner = make_exporter("onnx", ExportSettings(precision="fp16"))
    with pytest.raises(CheckFailedError, match="for fp16"):
        check_exporter(replace(sound_exporter, inner=inner), checkpoint, tmp_path, precision="fp16")


def test_another_class_than_asked_for_breaks_the_contract(
    sound_exporter: FaultyExporter, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailedError, match="got precision fp32, want fp16"):
        check_exporter(sound_exporter, checkpoint, tmp_path, precision="fp16")


@pytest.mark.slow
def test_changing_the_checkpoint_breaks_the_contract(
    sound_exporter: FaultyExporter, checkpoint: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(checkpoint, tmp_path / "checkpoint")

    def touch(_folder: Path) -> None:
        index = copied / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text())))

    exporter = replace(sound_exporter, spoil=touch)
    with pytest.raises(CheckFailedError, match="a changed checkpoint"):
        check_exporter(exporter, copied, tmp_path / "out")
