"""OpenVINO exports: layout, precisions, and what would be lost without care."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import openvino
import pytest
import torch

from triptych.bundle.bundle import Artifact, Bundle
from triptych.bundle.layouts import component_bindings
from triptych.errors import BundleError
from triptych.exporters import make_exporter
from triptych.exporters.base import ArtifactFacts, ExportSettings
from triptych.models.checkpoint import open_checkpoint
from triptych.models.feeds import unet_feed
from triptych.models.modules import load_module
from triptych.models.precisions import ACTIVATION_GROUP, ROUNDS_ACTIVATIONS
from triptych.models.sdxl import component_spec
from triptych.models.tokenizer import load_tokenizer
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime, runtimes_for
from triptych.runtimes.checked import CheckedSession
from triptych.types import Array, ComponentName, Precision
from triptych.workflows.inspect import inspect_path

FILE = "openvino_model.xml"
SCALE_OPTION = ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]

Export = Callable[[ComponentName, Precision], Path]


@pytest.fixture(scope="module")
def export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports one component in one precision, once."""
    done: dict[tuple[str, str], Path] = {}

    def run(component: ComponentName, precision: Precision) -> Path:
        if (component, precision) not in done:
            folder = tmp_path_factory.mktemp(f"{component}-{precision}")
            done[component, precision] = export_component(checkpoint, component, precision, folder)
        return done[component, precision]

    return run


def export_component(
    checkpoint: Path, component: ComponentName, precision: Precision, folder: Path
) -> Path:
    """Export one component; the graph's path."""
    exporter = make_exporter("openvino", ExportSettings(precision=precision))
    exporter.export(open_checkpoint(checkpoint), component, folder, report=lambda *_: None)
    return folder / component / FILE


def describe(path: Path) -> ArtifactFacts:
    return make_exporter("openvino").describe(path)


FROM_EXACT: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")


def read_model(path: Path) -> "openvino.Model":
    return openvino.Core().read_model(path)


def unet_artifact(bundle: Bundle, path: Path) -> Artifact:
    return Artifact(
        spec=component_spec("unet", bundle.config),
        format="openvino",
        path=path,
        bindings=component_bindings("unet", bundle.config, artifact_format="openvino"),
    )


def large_feed(bundle: Bundle, *, timestep: float) -> dict[str, Array]:
    """A feed whose timestep and sizes are as great as in real runs: the sinusoids turn far."""
    random = np.random.default_rng(0)
    feed = unet_feed(bundle.config, batch=1, height=8, width=8, random=random)
    sizes = np.array([[1024, 1024, 0, 0, 1024, 1024]], np.float32)
    return {**feed, "timestep": np.array(timestep, np.float32), "time_ids": sizes}


def rounded_prediction(bundle: Bundle, feed: dict[str, Array]) -> Array:
    """What PyTorch computes in float32 with weights that were rounded to float16."""
    checkpoint = bundle.artifact("unet").checkpoint
    assert checkpoint is not None
    module = load_module(checkpoint, "unet", dtype=torch.float32)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = parameter.half().float()
    names = [tensor.name for tensor in component_spec("unet", checkpoint.config).inputs]
    with torch.inference_mode():
        prediction: Array = module(*(torch.tensor(feed[name]) for name in names))[0].numpy()
    return prediction


def error_beside_rounding(path: Path, bundle: Bundle, *, timestep: float) -> float:
    """How far a U-Net is from what its weights, rounded to float16, give in float32."""
    feed = large_feed(bundle, timestep=timestep)
    artifact = unet_artifact(bundle, path)
    with CheckedSession(make_runtime("openvino").open(artifact), artifact) as session:
        actual = session.run(feed)["noise_pred"]
    return rel_l2(actual, rounded_prediction(bundle, feed))


def test_the_bundle_has_optimums_files(openvino_folder: Path) -> None:
    for component in ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"):
        names = {path.name for path in (openvino_folder / component).iterdir()}
        assert names == {"config.json", FILE, "openvino_model.bin"}
    for name in ("tokenizer", "tokenizer_2"):
        for graph in ("openvino_tokenizer", "openvino_detokenizer"):
            assert (openvino_folder / name / f"{graph}.xml").is_file()
            assert (openvino_folder / name / f"{graph}.bin").is_file()


def test_an_exporter_without_assets_of_its_own_adds_none(onnx_folder: Path) -> None:
    assert not list(onnx_folder.rglob("openvino*"))


def test_the_tokenizer_graphs_agree_with_triptychs_tokenizer(openvino_folder: Path) -> None:
    import openvino_tokenizers  # noqa: F401  it teaches openvino.Core its operations

    for name in ("tokenizer", "tokenizer_2"):
        path = openvino_folder / name / "openvino_tokenizer.xml"
        graph = openvino.Core().compile_model(path, "CPU")
        prompt = "a photograph of an astronaut, riding a horse"
        theirs = graph(np.array([prompt]))["input_ids"][0]
        ours = load_tokenizer(openvino_folder / name).encode([prompt]).input_ids[0]
        assert theirs.tolist() == ours[: len(theirs)].tolist()


def test_ports_are_optimum_intels(openvino_bundle: Bundle) -> None:
    facts = describe(openvino_bundle.artifact("unet").path)
    ports = {port.name: port.text() for port in (*facts.inputs, *facts.outputs)}
    assert list(ports) == [
        "sample",
        "timestep",
        "encoder_hidden_states",
        "text_embeds",
        "time_ids",
        "out_sample",
    ]
    assert ports["timestep"] == "int64 [?]"  # GenAI insists on it
    assert ports["sample"] == ports["out_sample"] == "float32 [?, 4, ?, ?]"


def test_every_attention_of_the_unet_is_one_node(openvino_bundle: Bundle) -> None:
    model = read_model(openvino_bundle.artifact("unet").path)
    kinds = [node.get_type_name() for node in model.get_ops()]
    # 17 transformer blocks, each with self-attention and cross-attention.
    assert kinds.count("ScaledDotProductAttention") == 34
    assert "Softmax" not in kinds


def test_the_scale_of_attention_is_a_constant(openvino_bundle: Bundle) -> None:
    """Read from a shape at every run, it keeps OpenVINO from using its own cache."""
    kinds = [
        node.input_value(4).get_node().get_type_name()
        for component in ("unet", "vae_decoder")
        for node in read_model(openvino_bundle.artifact(component).path).get_ops()
        if node.get_type_name() == "ScaledDotProductAttention"
    ]
    assert kinds == ["Constant"] * 35


@pytest.mark.parametrize("component", ["vae_encoder", "vae_decoder"])
def test_a_vae_that_overflows_says_how_to_scale_it(
    component: ComponentName, openvino_bundle: Bundle
) -> None:
    model = read_model(openvino_bundle.artifact(component).path)
    assert model.get_rt_info(SCALE_OPTION).astype(str) == "128.0"


def test_nothing_but_a_vae_that_overflows_is_scaled(
    openvino_bundle: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    assert not read_model(openvino_bundle.artifact("unet").path).has_rt_info(SCALE_OPTION)
    fixed = shutil.copytree(checkpoint, tmp_path / "fixed")
    config = fixed / "vae" / "config.json"
    text = config.read_text()
    assert '"force_upcast": true' in text
    config.write_text(text.replace('"force_upcast": true', '"force_upcast": false'))
    path = export_component(fixed, "vae_decoder", "fp16", tmp_path)
    assert not read_model(path).has_rt_info(SCALE_OPTION)
    assert set(describe(path).weight_dtypes) == {"float16"}


@pytest.mark.parametrize(
    ("precision", "dtypes"),
    [("fp32", {"float32"}), ("fp16", {"float16"}), ("int8", {"float32", "uint8"})],
)
def test_weights_are_stored_as_asked(
    precision: Precision, dtypes: set[str], export: Export, checkpoint: Path
) -> None:
    facts = describe(export("text_encoder", precision))
    assert set(facts.weight_dtypes) == dtypes
    stored = open_checkpoint(checkpoint).stored_tensors("text_encoder").values()
    assert facts.num_parameters == sum(int(np.prod(tensor.shape)) for tensor in stored)


def test_int8_compresses_every_matrix_of_the_unet(export: Export) -> None:
    dtypes = describe(export("unet", "int8")).weight_dtypes
    assert dtypes["uint8"] > 40 * dtypes["float32"]  # what is left are biases and norms


def test_int4_stores_matrices_in_four_bits_and_the_rest_in_eight(export: Export) -> None:
    path = export("unet", "int4")
    dtypes = describe(path).weight_dtypes
    assert set(dtypes) == {"float32", "uint4", "uint8"}
    assert dtypes["uint4"] > 20 * dtypes["float32"]
    matrices = {
        node.get_friendly_name(): node.get_element_type().get_type_name()
        for node in read_model(path).get_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name().endswith("to_q.weight")
    }
    assert set(matrices.values()) == {"u4"}
    assert sum(dtypes.values()) == describe(export("unet", "fp32")).num_parameters


def test_int4_is_smaller_than_int8_and_that_than_float32(export: Export) -> None:
    sizes = [
        export("text_encoder_2", precision).with_suffix(".bin").stat().st_size
        for precision in FROM_EXACT
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.5 * sizes[0]


def test_only_int8_dynamic_tells_openvino_to_round_activations(export: Export) -> None:
    mark = list(ROUNDS_ACTIVATIONS)
    assert not read_model(export("text_encoder", "int8")).has_rt_info(mark)
    marked = read_model(export("text_encoder", "int8-dynamic"))
    assert int(marked.get_rt_info(mark).astype(str)) == ACTIVATION_GROUP


def test_int8_leaves_a_vae_that_overflows_alone(export: Export) -> None:
    assert set(describe(export("vae_decoder", "int8")).weight_dtypes) == {"float32"}


def test_the_vae_alone_adds_up_by_rows_and_exactly(openvino_bundle: Bundle) -> None:
    """Means of large groups: see `triptych.exporters._onnx_group_norm`."""
    for component in ("vae_encoder", "vae_decoder", "unet"):
        tree = ET.parse(openvino_bundle.artifact(component).path)  # noqa: S314  exported just now
        layers = list(tree.iter("layer"))
        kinds = [layer.get("type") for layer in layers]
        means = [layer for layer in layers if layer.get("type") == "ReduceMean"]
        is_vae = component != "unet"
        assert ("MVN" in kinds) == (not is_vae)
        assert bool(means) == is_vae
        assert len(means) % 4 == 0
        for layer in means:
            assert layer.find("rt_info/attribute[@name='precise']") is not None, layer.get("name")


def test_the_engine_is_told_what_widens_weights(export: Export) -> None:
    """Else it widens all of them when it opens the graph, and holds the full-size U-Net twice."""
    tree = ET.parse(export("unet", "fp16"))  # noqa: S314  it was exported just now
    layers = list(tree.iter("layer"))
    halves = {
        layer.get("name")
        for layer in layers
        if any(data.get("element_type") == "f16" for data in layer.iterfind("data"))
    }
    told = {
        layer.get("name")
        for layer in layers
        for mark in layer.iterfind("rt_info/attribute")
        if mark.get("name") == "decompression"
    }
    assert len(halves) > 600
    assert told == {f"{name}/widened" for name in halves}


@pytest.mark.parametrize("timestep", [951.0, 1.0])
def test_fp16_weights_leave_the_sinusoids_exact(
    timestep: float, export: Export, checkpoint_bundle: Bundle
) -> None:
    """The error of fp16 is that of rounded weights and nothing else, at every timestep."""
    path = export("unet", "fp16")
    assert error_beside_rounding(path, checkpoint_bundle, timestep=timestep) < 1e-5


def test_openvinos_own_compression_would_not(
    checkpoint: Path,
    checkpoint_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fault the test above is there to find: it rounds the frequencies too."""
    save = openvino.save_model
    monkeypatch.setattr(
        openvino, "save_model", lambda model, path, **_: save(model, path, compress_to_fp16=True)
    )
    path = export_component(checkpoint, "unet", "fp32", tmp_path)
    assert set(describe(path).weight_dtypes) == {"float16"}
    assert error_beside_rounding(path, checkpoint_bundle, timestep=951.0) > 1e-3


def test_what_we_export_can_be_compressed_by_openvino_later(
    export: Export, checkpoint_bundle: Bundle, tmp_path: Path
) -> None:
    """Its compression heeds the marks that the sinusoids carry."""
    openvino.save_model(read_model(export("unet", "fp32")), tmp_path / FILE, compress_to_fp16=True)
    assert error_beside_rounding(tmp_path / FILE, checkpoint_bundle, timestep=951.0) < 1e-5


def test_openvino_verifies_its_format_and_onnxruntime_onnx(openvino_bundle: Bundle) -> None:
    assert runtimes_for("openvino")[0] == "openvino"
    assert runtimes_for("onnx")[0] == "onnxruntime"
    for artifact in openvino_bundle.artifacts.values():
        assert artifact.record is not None
        assert artifact.record.verification
        assert max(found.rel_l2 for found in artifact.record.verification) < 1e-5


def test_the_manifest_names_the_toolchain(openvino_bundle: Bundle) -> None:
    assert openvino_bundle.manifest is not None
    assert {"openvino", "openvino-tokenizers"} <= set(openvino_bundle.manifest.toolchain)


@pytest.mark.parametrize("name", ["openvino_model.bin", FILE])
def test_a_cut_file_is_a_problem_for_inspect(
    name: str, openvino_folder: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(openvino_folder, tmp_path / "cut")
    (copied / "triptych.json").unlink()  # so that no hash tells
    with (copied / "unet" / name).open("r+b") as stream:
        stream.truncate((copied / "unet" / name).stat().st_size - 1)
    with pytest.raises(BundleError, match="both whole"):
        describe(copied / "unet" / FILE)
    (problem,) = inspect_path(copied).problems
    assert problem.startswith("unet: ")


def test_inspect_describes_the_bundle(openvino_folder: Path) -> None:
    summary = inspect_path(openvino_folder)
    assert summary.format == "openvino"
    assert summary.problems == ()
    unet = next(part for part in summary.components if part.name == "unet")
    assert unet.weight_dtypes == {"float32": unet.num_parameters}
    assert unet.size_bytes > 4 * (unet.num_parameters or 0)
    assert unet.verified is not None


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
def test_a_half_precision_checkpoint_exports_to_either(
    precision: Precision, dtype: str, checkpoint: Path, tmp_path: Path
) -> None:
    """Weights of another dtype than wanted are converted on the way, and no scratch file stays."""
    from safetensors.torch import load_file, save_file

    copied = shutil.copytree(checkpoint, tmp_path / "half")
    file = copied / "text_encoder" / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    folder = tmp_path / "exported"
    folder.mkdir()
    path = export_component(copied, "text_encoder", precision, folder)
    assert set(describe(path).weight_dtypes) == {dtype}
    written = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    assert {file.as_posix() for file in written} == {
        f"text_encoder/{FILE}",
        "text_encoder/openvino_model.bin",
    }


SEND_GUARD = """
import socket, sys
from pathlib import Path
checkpoint, folder, calls = map(Path, sys.argv[1:])
def refuse(*arguments, **_):
    with calls.open("a") as stream:  # a file, because who sends may do so from a forked process
        print(arguments, file=stream)
    raise OSError
socket.getaddrinfo = socket.create_connection = refuse
from triptych.exporters import make_exporter
from triptych.exporters.base import ExportSettings
from triptych.models.checkpoint import open_checkpoint
exporter = make_exporter("openvino", ExportSettings(precision="int8"))
exporter.export(open_checkpoint(checkpoint), "text_encoder", folder, report=lambda *_: None)
exporter.export_assets(folder)
"""


@pytest.mark.slow
def test_nothing_is_sent_printed_or_kept_while_exporting(checkpoint: Path, tmp_path: Path) -> None:
    """Left alone, importing OpenVINO or NNCF sends usage statistics and keeps an identity."""
    home, folder, calls = tmp_path / "home", tmp_path / "out", tmp_path / "calls.txt"
    home.mkdir()
    shutil.copytree(checkpoint / "tokenizer", folder / "tokenizer")
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "NNCF_CI")}
    environment.pop("PYTEST_CURRENT_TEST", None)
    ran = subprocess.run(
        [sys.executable, "-c", SEND_GUARD, str(checkpoint), str(folder), str(calls)],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout == ""
    assert not calls.exists()
    assert not (home / "intel").exists()
