"""Core ML packages: Apple's names, exact float32, float16 that keeps its sinusoids, compression."""

import json
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import coremltools
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Block, Program
from coremltools.converters.mil.mil.block import InvalidBlockStateError
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from coremltools.optimize import coreml as compression
from diffusers import AutoencoderTiny
from torch import nn
from typing_extensions import override

from triptych.bundle.bundle import Artifact, Bundle, make_artifact, open_bundle
from triptych.bundle.layouts import artifact_paths
from triptych.bundle.store import record_files
from triptych.errors import BundleError, UsageError, VerificationError
from triptych.exporters import _coreml_convert, make_exporter
from triptych.exporters._coreml_convert import convert_module
from triptych.exporters._coreml_packages import quantize, save_packages
from triptych.exporters._coreml_passes import ProgramPass, make_pipeline
from triptych.exporters.base import CoreMlSettings, ExportSettings
from triptych.exporters.coreml import built_ports
from triptych.mil.facts import MASKED
from triptych.mil.reading import read_program
from triptych.mil.weights import Weight
from triptych.models.checkpoint import open_checkpoint
from triptych.models.sdxl import COMPONENTS, SdxlConfig, read_sdxl_config
from triptych.parity.metrics import psnr_db, rel_l2
from triptych.parity.record import default_settings
from triptych.runtimes import make_runtime
from triptych.runtimes._mil.interpreter import open_program, run
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.guidance import split_halves
from triptych.sampling.pipeline import prepare
from triptych.tensors import TensorSpec
from triptych.types import Array, ComponentName, DeploymentTarget, Precision
from triptych.workflows.export_process import ExportJob, export_component

PREFIX = "Stable_Diffusion_version_tiny_"


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> SdxlConfig:
    return read_sdxl_config(checkpoint)


def export(
    checkpoint: Path, component: ComponentName, folder: Path, settings: ExportSettings
) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    opened = open_checkpoint(checkpoint)
    make_exporter("coreml", settings).export(opened, component, folder, report=lambda *_: None)
    paths = artifact_paths(folder, component, opened.config, artifact_format="coreml")
    return make_artifact(component, opened.config, paths=paths, artifact_format="coreml")


@pytest.fixture(scope="module")
def half_unet(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A float16 U-Net for one row of guidance, cut in two."""
    settings = ExportSettings(precision="fp16", coreml=CoreMlSettings(batch=1, num_chunks=2))
    return export(checkpoint, "unet", tmp_path_factory.mktemp("half"), settings)


def test_coremltools_leaves_no_copy_of_a_model_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it keeps one until the process ends, which export processes do by being killed."""
    elsewhere = tmp_path / "system's"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    settings = ExportSettings(precision="int8")
    artifact = export(checkpoint, "text_encoder", tmp_path / "bundle", settings)
    assert list(elsewhere.iterdir()) == []
    assert list((tmp_path / "bundle").iterdir()) == [artifact.path]
    assert tempfile.gettempdir() == str(elsewhere)


# Settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (ExportSettings(precision="bf16"), "got precision 'bf16', want one of fp32, fp16"),
        (ExportSettings(height_px=100), "got height_px 100, want a positive multiple of 8"),
        (ExportSettings(width_px=0), "got width_px 0"),
    ],
)
def test_settings_that_core_ml_lacks_are_refused(settings: ExportSettings, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_exporter("coreml", settings)


def test_ports_are_built_for_one_size_and_batch(config: SdxlConfig) -> None:
    settings = ExportSettings(
        precision="fp16", height_px=72, width_px=64, coreml=CoreMlSettings(batch=1)
    )
    ports = built_ports("unet", config, settings)
    assert {port.name: port.text() for port in (*ports.inputs, *ports.outputs)} == {
        "sample": "float16 [1, 4, 9, 8]",
        "timestep": "float32 [1]",
        "encoder_hidden_states": "float16 [1, 80, 1, 77]",
        "text_embeds": "float16 [1, 64]",
        "time_ids": "float32 [1, 6]",
        "noise_pred": "float32 [1, 4, 9, 8]",
    }
    (z,) = built_ports("vae_decoder", config, settings).inputs
    assert z.text() == "float32 [1, 4, 9, 8]"  # force_upcast keeps the VAE in float32


def test_each_component_has_its_class(config: SdxlConfig) -> None:
    exporter = make_exporter(
        "coreml", ExportSettings(precision="fp16", coreml=CoreMlSettings(palette_bits=6))
    )
    assert exporter.precision_of("unet", config) == "palette6"
    assert exporter.precision_of("text_encoder", config) == "palette6"
    assert exporter.precision_of("vae_decoder", config) == "fp32"
    assert exporter.precision_of("preview_decoder", config) == "fp16"


# A bundle


@pytest.mark.slow
def test_a_bundle_is_what_apples_script_compiles(coreml_folder: Path, checkpoint: Path) -> None:
    packages = {path.name for path in coreml_folder.glob("*.mlpackage")}
    assert packages == {f"{PREFIX}{component}.mlpackage" for component in COMPONENTS}
    tokenizer = checkpoint / "tokenizer"
    vocabulary = json.loads((coreml_folder / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary == json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    merges = (coreml_folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    assert merges == (tokenizer / "merges.txt").read_text(encoding="utf-8").split("\n")


@pytest.mark.slow
def test_a_bundle_says_what_it_was_built_for(coreml_bundle: Bundle) -> None:
    assert coreml_bundle.built_size_px == (128, 128)
    unet = coreml_bundle.artifact("unet")
    assert unet.fixed_axes == {"batch": 2, "height": 16, "width": 16}
    assert unet.record is not None
    assert max(found.rel_l2 for found in unet.record.verification) < 2e-6
    assert coreml_bundle.manifest is not None
    assert coreml_bundle.manifest.settings == {
        "attention": "original",
        "batch": 2,
        "num_chunks": 1,
        "deployment_target": "macOS13",
    }


@pytest.mark.slow
def test_a_bundle_opens_without_its_manifest(coreml_folder: Path, tmp_path: Path) -> None:
    for path in coreml_folder.iterdir():
        if path.name != "triptych.json":
            (tmp_path / path.name).symlink_to(path)
    bundle = open_bundle(tmp_path)
    assert bundle.format == "coreml"
    assert set(bundle.artifacts) == set(COMPONENTS)


@pytest.mark.slow
@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_masks_are_finite_in_every_program(component: ComponentName, coreml_bundle: Bundle) -> None:
    program = read_program(coreml_bundle.artifact(component).path)
    lowest = min(values.min() for values in float_arrays(program.constants.values()))
    assert lowest == MASKED


def float_arrays(constants: Iterable[object]) -> list[Array]:
    loaded = [value.load() if isinstance(value, Weight) else value for value in constants]
    return [
        value
        for value in loaded
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size
    ]


# float16


@pytest.fixture(scope="module")
def conditioning(checkpoint_bundle: Bundle) -> Conditioning:
    """What the text encoders give for a prompt: one half of guidance, sizes as in real runs."""
    settings = default_settings(checkpoint_bundle.config)
    prepared = prepare(checkpoint_bundle, make_runtime("pytorch"), settings)
    sizes = np.array([[1024, 1024, 0, 0, 1024, 1024]], np.float32)
    return replace(split_halves(prepared.conditioning)[1], time_ids=sizes)


def psnr_at(
    timestep: float,
    artifact: Artifact,
    conditioning: Conditioning,
    reference: Bundle,
    *,
    precision: Precision | None = None,
) -> float:
    """How near a Core ML U-Net is to float32 PyTorch on pure noise."""
    feed = {
        "sample": np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32),
        "timestep": np.array(timestep, np.float32),
        "encoder_hidden_states": conditioning.encoder_hidden_states,
        "text_embeds": conditioning.text_embeds,
        "time_ids": conditioning.time_ids,
    }
    with open_session(make_runtime("pytorch"), reference, "unet") as session:
        expected = session.run(feed)["noise_pred"]
    runtime = make_runtime("coreml-reference", RuntimeSettings(precision=precision))
    with CheckedSession(runtime.open(artifact), artifact) as session:
        return psnr_db(session.run(feed)["noise_pred"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("timestep", [999.0, 951.0, 500.5, 1.0, 0.0])
def test_a_half_precision_unet_is_good_at_every_timestep(
    timestep: float,
    half_unet: Artifact,
    conditioning: Conditioning,
    checkpoint_bundle: Bundle,
) -> None:
    assert psnr_at(timestep, half_unet, conditioning, checkpoint_bundle) > 60
    widened = psnr_at(timestep, half_unet, conditioning, checkpoint_bundle, precision="fp32")
    assert widened > 70


@pytest.mark.slow
def test_half_precision_sinusoids_would_not_be(
    checkpoint: Path,
    checkpoint_bundle: Bundle,
    conditioning: Conditioning,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_coreml_convert, "may_be_half", lambda _: True)
    settings = ExportSettings(precision="fp16", coreml=CoreMlSettings(batch=1))
    artifact = export(checkpoint, "unet", tmp_path, settings)
    found = psnr_at(999.0, artifact, conditioning, checkpoint_bundle, precision="fp32")
    assert found < 67


@pytest.mark.slow
def test_a_cut_unet_describes_itself_as_one(half_unet: Artifact) -> None:
    assert [path.name for path in half_unet.paths] == [
        f"{PREFIX}unet_chunk1.mlpackage",
        f"{PREFIX}unet_chunk2.mlpackage",
    ]
    facts = make_exporter("coreml").describe(*half_unet.paths)
    assert {port.name for port in facts.inputs} == {
        "sample",
        "timestep",
        "encoder_hidden_states",
        "text_embeds",
        "time_ids",
    }
    assert [port.name for port in facts.outputs] == ["noise_pred"]
    assert set(facts.weight_dtypes) == {"float16", "float32"}
    assert facts.weight_dtypes["float32"] < 20  # frequencies of the sinusoids


# Small modules, converted on their own


class Normalised(nn.Module):
    """What a U-Net ends in: group norm, activation, convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.GroupNorm(2, 8)
        self.norm.weight.data = torch.randn(8)
        self.norm.bias.data = torch.randn(8)

    @override
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(sample)
        return normed


SAMPLE = TensorSpec(name="sample", dtype="float32", shape=(1, 8, 6, 6))
RESULT = TensorSpec(name="noise_pred", dtype="float32", shape=(1, 8, 6, 6))


def convert_small(module: nn.Module, path: Path) -> Array:
    """What the converted module gives for one random feed, less what torch gives."""
    model = convert_module(
        module.eval(),
        inputs=(SAMPLE,),
        outputs=(RESULT,),
        half=False,
        deployment_target="macOS13",
    )
    save_packages(model, [path])
    feed = np.random.default_rng(0).standard_normal(SAMPLE.shape).astype(np.float32)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(feed).double()).numpy()
    actual = run(open_program(path), {"sample": feed})["noise_pred"]
    return np.array(rel_l2(actual, expected.astype(np.float32)))


def test_group_norms_are_exact(tmp_path: Path) -> None:
    assert convert_small(Normalised(), tmp_path / "m.mlpackage") < 4e-7


def test_coremltools_own_would_be_off_by_half_its_epsilon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_coreml_convert, "make_pipeline", lambda: coremltools.PassPipeline.DEFAULT)
    found = convert_small(Normalised(), tmp_path / "m.mlpackage")
    assert found == pytest.approx(5e-6, rel=0.2)


def test_one_check_at_the_end_leaves_the_program_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    check = Program.validate

    def count(program: Program, check_essential_scope: bool | None = False) -> None:  # noqa: FBT001, FBT002  # coremltools' signature
        checked.append(program)
        check(program, check_essential_scope)

    monkeypatch.setattr(Program, "validate", count)
    convert_small(Normalised(), tmp_path / "once.mlpackage")
    assert len(checked) == 1
    assert Program.validate is count

    monkeypatch.setattr(_coreml_convert, "checked_once", nullcontext)
    convert_small(Normalised(), tmp_path / "always.mlpackage")
    assert len(checked) > 50
    always = record_files(tmp_path / "always.mlpackage")
    assert record_files(tmp_path / "once.mlpackage") == always


def test_a_pass_that_breaks_the_program_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of all passes forgets that a result is used."""

    def forget_a_use(block: Block) -> None:
        used = next(var for step in block.operations for var in step.outputs if var.child_ops)
        used.child_ops.clear()

    def broken_pipeline() -> coremltools.PassPipeline:
        pipeline = make_pipeline()
        monkeypatch.setitem(PASS_REGISTRY.passes, "test::broken", ProgramPass(edit=forget_a_use))
        pipeline.append_pass("test::broken")
        return pipeline

    monkeypatch.setattr(_coreml_convert, "make_pipeline", broken_pipeline)
    with pytest.raises(InvalidBlockStateError):
        convert_small(Normalised(), tmp_path / "m.mlpackage")


def test_our_passes_stand_where_they_must() -> None:
    names = make_pipeline().passes
    fused = names.index("common::fuse_elementwise_to_batchnorm")
    assert names[fused + 1] == "triptych::exact_batch_norm"
    assert names.index("triptych::finite_masks") < names.index("common::add_fp16_cast")
    assert "triptych::exact_batch_norm" not in coremltools.PassPipeline.DEFAULT.passes


# Compression


@pytest.mark.slow
def test_palettes_are_coremltools_own(checkpoint: Path, tmp_path: Path) -> None:
    settings = ExportSettings(precision="fp16", coreml=CoreMlSettings(palette_bits=6))
    artifact = export(checkpoint, "text_encoder", tmp_path, settings)
    facts = make_exporter("coreml").describe(artifact.path)
    assert set(facts.weight_dtypes) == {"float16", "palette6"}
    assert facts.weight_dtypes["palette6"] == 32969  # matrices of 2048 elements and more

    unpacked = tmp_path / "unpacked.mlpackage"
    model = coremltools.models.MLModel(str(artifact.path), skip_model_load=True)
    compression.decompress_weights(model).save(str(unpacked))
    ids = {"input_ids": np.arange(77, dtype=np.float32)[np.newaxis]}
    packed_result = run(open_program(artifact.path), ids)
    for name, value in run(open_program(unpacked), ids).items():
        assert np.array_equal(packed_result[name], value), name


@pytest.mark.slow
def test_a_preview_decoder_is_put_in_no_palette(checkpoint: Path, tmp_path: Path) -> None:
    wide = AutoencoderTiny(  # so that its weights have the 2048 elements that palettes begin at
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    wide.save_pretrained(tmp_path / "taesd")
    opened = open_checkpoint(checkpoint, preview_decoder=tmp_path / "taesd")
    settings = ExportSettings(precision="fp16", coreml=CoreMlSettings(palette_bits=4))
    exporter = make_exporter("coreml", settings)
    exporter.export(opened, "preview_decoder", tmp_path, report=lambda *_: None)
    facts = exporter.describe(tmp_path / f"{PREFIX}preview_decoder.mlpackage")
    assert set(facts.weight_dtypes) == {"float16"}


def test_an_empty_package_is_not_described(tmp_path: Path) -> None:
    package = tmp_path / "m_text_encoder.mlpackage"
    package.mkdir()
    with pytest.raises(BundleError, match="want the manifest of a package"):
        make_exporter("coreml").describe(package)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "target", "share"), [("int8", "macOS13", "int8"), ("int4", "macOS15", "int4")]
)
def test_integers_are_coremltools_own(
    precision: Precision, target: DeploymentTarget, share: str, checkpoint: Path, tmp_path: Path
) -> None:
    settings = ExportSettings(precision=precision, coreml=CoreMlSettings(deployment_target=target))
    artifact = export(checkpoint, "text_encoder", tmp_path, settings)
    facts = make_exporter("coreml").describe(artifact.path)
    assert facts.weight_dtypes[share] > 24_000
    assert facts.weight_dtypes["int8"] > 28_000  # the embedding, at 4 bits too
    assert facts.weight_dtypes["float16"] < 0.2 * facts.num_parameters

    unpacked = tmp_path / "unpacked.mlpackage"
    model = coremltools.models.MLModel(str(artifact.path), skip_model_load=True)
    compression.decompress_weights(model).save(str(unpacked))
    ids = {"input_ids": np.arange(77, dtype=np.float32)[np.newaxis]}
    packed_result = run(open_program(artifact.path), ids)
    for name, value in run(open_program(unpacked), ids).items():
        assert np.array_equal(packed_result[name], value), name


@pytest.mark.slow
def test_four_bits_that_are_called_eight_are_found_before_the_bundle_is_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "triptych.exporters.coreml.quantize", lambda model, _: quantize(model, "int4")
    )
    job = ExportJob(
        checkpoint=str(checkpoint),
        variant=None,
        component="text_encoder",
        format="coreml",
        settings=ExportSettings(
            precision="int8", coreml=CoreMlSettings(deployment_target="macOS15")
        ),
        bundle=str(tmp_path),
    )
    with pytest.raises(VerificationError, match="want at most 1e-01 for int8"):
        export_component(job, report=lambda *_: None)


def test_blocks_of_four_bits_need_a_system_that_has_them() -> None:
    with pytest.raises(UsageError, match=r"for macOS13, want one of macOS15, iOS18"):
        make_exporter("coreml", ExportSettings(precision="int4"))


def test_integers_and_palettes_exclude_each_other() -> None:
    settings = ExportSettings(precision="int8", coreml=CoreMlSettings(palette_bits=6))
    with pytest.raises(UsageError, match="an integer or an index"):
        make_exporter("coreml", settings)


def test_a_vae_that_overflows_keeps_its_weights(checkpoint: Path) -> None:
    config = open_checkpoint(checkpoint).config
    exporter = make_exporter("coreml", ExportSettings(precision="int8"))
    assert exporter.precision_of("vae_decoder", config) == "fp32"
    assert exporter.precision_of("unet", config) == "int8"
