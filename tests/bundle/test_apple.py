"""Apple's names, and what its clients insist on, against ports that break it one by one."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from triptych.bundle import apple
from triptych.bundle.layouts import component_bindings, graph_ports
from triptych.errors import BundleError
from triptych.models.sdxl import COMPONENTS, SdxlConfig, component_spec, read_sdxl_config
from triptych.tensors import PortSpecs, TensorSpec
from triptych.types import ComponentName

SDXL_PORTS: Mapping[ComponentName, tuple[dict[str, str], dict[str, str]]] = {
    "text_encoder": (
        {"input_ids": "float32 [1, 77]"},
        {"hidden_embeds": "float32 [1, 77, 32]", "pooled_outputs": "float32 [1, 32]"},
    ),
    "text_encoder_2": (
        {"input_ids": "float32 [1, 77]"},
        {"hidden_embeds": "float32 [1, 77, 48]", "pooled_outputs": "float32 [1, 64]"},
    ),
    "unet": (
        {
            "sample": "float32 [2, 4, 16, 16]",
            "timestep": "float32 [2]",
            "encoder_hidden_states": "float32 [2, 80, 1, 77]",
            "text_embeds": "float32 [2, 64]",
            "time_ids": "float32 [2, 6]",
        },
        {"noise_pred": "float32 [2, 4, 16, 16]"},
    ),
    "vae_encoder": ({"x": "float32 [1, 3, 128, 128]"}, {"latent": "float32 [1, 8, 16, 16]"}),
    "vae_decoder": ({"z": "float32 [1, 4, 16, 16]"}, {"image": "float32 [1, 3, 128, 128]"}),
}
"""Section by section what torch2coreml.py writes, at the sizes of the tiny checkpoint."""


def ports(texts: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    parsed = []
    for name, text in texts.items():
        dtype, _, shape = text.partition(" ")
        axes = tuple(
            int(axis) if axis.isdigit() else axis for axis in shape.strip("[]").split(", ")
        )
        parsed.append(TensorSpec(name=name, dtype=dtype, shape=axes))
    return tuple(parsed)


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> SdxlConfig:
    return read_sdxl_config(checkpoint)


def wanted(component: ComponentName, config: SdxlConfig) -> PortSpecs:
    bindings = component_bindings(component, config, artifact_format="coreml")
    given = graph_ports(component_spec(component, config), bindings)
    return apple.contract_ports(component, config, given)


def problems(
    component: ComponentName,
    config: SdxlConfig,
    *,
    inputs: Mapping[str, str | None] | None = None,
    outputs: Mapping[str, str | None] | None = None,
) -> list[str]:
    """Problems of Apple's own ports with some of them changed, or taken away."""
    sides = []
    for given, changed in zip(SDXL_PORTS[component], (inputs, outputs), strict=True):
        merged = {**given, **(changed or {})}
        sides.append(ports({name: text for name, text in merged.items() if text is not None}))
    return list(
        apple.contract_problems(
            component, wanted=wanted(component, config), inputs=sides[0], outputs=sides[1]
        )
    )


@pytest.mark.parametrize("component", COMPONENTS)
def test_apples_own_ports_keep_the_contract(component: ComponentName, config: SdxlConfig) -> None:
    assert problems(component, config) == []


def test_halves_are_taken_in_but_not_given_out(config: SdxlConfig) -> None:
    half = {"sample": "float16 [2, 4, 16, 16]", "text_embeds": "float16 [2, 64]"}
    assert problems("unet", config, inputs=half) == []
    (problem,) = problems("unet", config, outputs={"noise_pred": "float16 [2, 4, 16, 16]"})
    assert "output 'noise_pred': got float16" in problem
    assert "want float32" in problem


def test_a_unet_may_be_built_for_one_row(config: SdxlConfig) -> None:
    one = {name: text.replace("[2", "[1") for name, text in SDXL_PORTS["unet"][0].items()}
    outputs = {"noise_pred": "float32 [1, 4, 16, 16]"}
    assert problems("unet", config, inputs=one, outputs=outputs) == []


@pytest.mark.parametrize(
    ("component", "inputs", "outputs", "told"),
    [
        ("unet", {"timestep": None}, {}, "want 'timestep' among them"),
        ("unet", {"timestep": "float32 [1]"}, {}, r"\[1\], want .*batch being 2"),
        ("unet", {"encoder_hidden_states": "float32 [2, 77, 80]"}, {}, r"\[batch, 80, 1, 77\]"),
        ("unet", {"sample": "float32 [2, 4, height, width]"}, {}, "of fixed lengths"),
        ("unet", {"time_ids": "float32 [12]"}, {}, r"'time_ids': got float32 \[12\]"),
        ("unet", {"mask": "float32 [2, 77]"}, {}, "got mask besides"),
        ("unet", {}, {"extra": "float32 [2]"}, "got extra besides"),
        ("text_encoder", {"input_ids": "int32 [1, 77]"}, {}, "got int32"),
        ("text_encoder", {}, {"pooled_outputs": None}, "want 'pooled_outputs' among them"),
        ("text_encoder_2", {"input_ids": "float32 [2, 77]"}, {}, "batch"),
        ("vae_decoder", {"z": "float32 [1, 4, 16, 12]"}, {}, "width being 12"),
        ("vae_encoder", {}, {"latent": None, "moments": "float32 [1, 8, 16, 16]"}, "'latent'"),
    ],
)  # fmt: skip
def test_every_breach_is_told(
    component: ComponentName,
    inputs: dict[str, str | None],
    outputs: dict[str, str | None],
    told: str,
    config: SdxlConfig,
) -> None:
    found = "\n".join(problems(component, config, inputs=inputs, outputs=outputs))
    assert found
    assert re.search(told, found), found


def test_three_rows_are_one_too_many(config: SdxlConfig) -> None:
    three = {name: text.replace("[2", "[3") for name, text in SDXL_PORTS["unet"][0].items()}
    found = problems("unet", config, inputs=three, outputs={"noise_pred": "float32 [3, 4, 16, 16]"})
    assert found == ["batch: got 3, want 1 or 2"]


# Names


def test_packages_are_named_as_apples_script_looks_for_them() -> None:
    version = "stabilityai/stable-diffusion-xl-base-1.0"
    prefix = "Stable_Diffusion_version_stabilityai_stable-diffusion-xl-base-1.0"
    assert apple.package_name("unet", version=version) == f"{prefix}_unet.mlpackage"
    chunk = apple.package_name("unet", version=version, chunk=2)
    assert chunk == f"{prefix}_unet_chunk2.mlpackage"


def test_compiled_models_are_named_as_swift_looks_for_them() -> None:
    assert apple.compiled_name("text_encoder_2") == "TextEncoder2.mlmodelc"
    assert apple.compiled_name("unet", chunk=1) == "UnetChunk1.mlmodelc"
    assert apple.compiled_name("refiner") == "UnetRefiner.mlmodelc"
    assert apple.compiled_name("vae_decoder") == "VAEDecoder.mlmodelc"


def test_a_preview_decoder_is_mistaken_for_nothing_of_apples(tmp_path: Path) -> None:
    make(tmp_path, "m_vae_decoder", "m_preview_decoder")
    for component in ("vae_decoder", "preview_decoder"):
        (found,) = apple.find_packages(tmp_path, component)
        assert found.name.endswith(f"m_{component}.mlpackage")
    assert apple.compiled_name("preview_decoder") == "PreviewDecoder.mlmodelc"


def test_a_refiners_unet_has_its_own_name(config: SdxlConfig) -> None:
    assert apple.submodule_name("unet", config) == "unet"
    assert apple.submodule_name("unet", replace(config, kind="refiner")) == "refiner"
    assert apple.submodule_name("vae_decoder", replace(config, kind="refiner")) == "vae_decoder"


@pytest.mark.parametrize(
    ("given", "version"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("/home/someone/models/sdxl", "mine"),
        ("../relative", "mine"),
        (None, "mine"),
    ],
)
def test_a_model_is_called_by_its_hub_id_or_its_folder(
    given: str | None, version: str, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_name_or_path": given}))
    assert apple.model_version(folder) == version


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"Stable_Diffusion_version_{name}.mlpackage").mkdir()


def test_packages_are_found_by_component(tmp_path: Path) -> None:
    make(tmp_path, "m_unet", "m_text_encoder", "m_text_encoder_2")
    (found,) = apple.find_packages(tmp_path, "text_encoder")
    assert found.name.endswith("m_text_encoder.mlpackage")
    assert apple.find_packages(tmp_path, "vae_decoder") == ()


def test_chunks_win_over_the_whole_as_in_swift(tmp_path: Path) -> None:
    make(tmp_path, "m_unet", "m_unet_chunk2", "m_unet_chunk1")
    found = [path.name for path in apple.find_packages(tmp_path, "unet")]
    assert [name[-16:] for name in found] == ["chunk1.mlpackage", "chunk2.mlpackage"]


def test_one_chunk_alone_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "m_unet_chunk1")
    with pytest.raises(BundleError, match="want both chunks"):
        apple.find_packages(tmp_path, "unet")


def test_packages_of_two_models_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "one_unet", "two_unet")
    with pytest.raises(BundleError, match="want the packages of one model"):
        apple.find_packages(tmp_path, "unet")
