"""Beside optimum, both ways: its pipeline opens our bundle, and we open what it exports."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest
import torch

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import BackendError
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.runtimes.checked import open_session
from triptych.sampling.pipeline import decode, denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.types import Array, FormatName, Latents

if TYPE_CHECKING:
    from optimum.onnxruntime import ORTStableDiffusionXLPipeline

pytestmark = [
    pytest.mark.slow,
    # diffusers' set_timesteps gives a torch tensor to numpy.array, whose protocol torch follows in
    # its older form.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
    # optimum's import brings in a diffusers pipeline whose vocoder is scripted.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    # diffusers' encode_prompt reads optimum's text encoders as if they were its own.
    pytest.mark.filterwarnings(
        "ignore:Accessing config attribute `num_hidden_layers` directly:FutureWarning"
    ),
]

Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]

LIMIT = 1e-4
"""Relative L2 after every step. Measured: 2.0e-6."""

PROMPT = "a photo of a cat"
SEED = 7
NUM_INFERENCE_STEPS = 5
COMPONENTS = ["text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"]


@pytest.fixture(scope="module")
def pipeline(onnx_folder: Path) -> "ORTStableDiffusionXLPipeline":
    """optimum's client on our bundle."""
    from optimum.onnxruntime import ORTStableDiffusionXLPipeline

    loaded = ORTStableDiffusionXLPipeline.from_pretrained(onnx_folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def foreign_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `optimum-cli export onnx` makes of the checkpoint."""
    folder = tmp_path_factory.mktemp("optimum") / "onnx"
    arguments = ["export", "onnx", "--model", str(checkpoint), "--task", "text-to-image"]
    module = [sys.executable, "-m", "optimum.commands.optimum_cli"]
    ran = subprocess.run(
        [*module, *arguments, str(folder)],
        cwd=folder.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


def wishes(*, height: int, width: int, guidance_scale: float = 5.0) -> Settings:
    return Settings(
        prompts=Prompts(prompt=(PROMPT,), negative_prompt=("blurry",)),
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=guidance_scale,
        height_px=height,
        width_px=width,
        seeds=(SEED,),
    )


def our_latents(bundle: Bundle, runtime_name: str, settings: Settings) -> list[Latents]:
    runtime = make_runtime(runtime_name)
    events = denoise(bundle, runtime, prepare(bundle, runtime, settings))
    return [event.latents.copy() for event in events]


def their_run(
    pipeline: "ORTStableDiffusionXLPipeline", settings: Settings
) -> tuple[list[Latents], Array]:
    """The latents after every step, and the picture in 0 to 1, channels last."""
    steps: list[Latents] = []

    def keep(
        _: object, index: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        del index, timestep
        steps.append(tensors["latents"].numpy().copy())
        return tensors

    picture: Array = pipeline(
        PROMPT,
        negative_prompt="blurry",
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=settings.guidance_scale,
        height=settings.height_px,
        width=settings.width_px,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
        callback_on_step_end=keep,
    ).images
    return steps, picture


def assert_same_latents(actual: list[Latents], expected: list[Latents]) -> None:
    assert len(actual) == len(expected) == NUM_INFERENCE_STEPS
    for index, (mine, wanted) in enumerate(zip(actual, expected, strict=True)):
        error = rel_l2(mine, wanted)
        assert error <= LIMIT, f"step {index}: relative L2 {error:.1e} is over {LIMIT:.0e}"


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize("size", [(128, 128), (96, 160), (72, 104)])
def test_optimum_samples_our_bundle_as_we_do(
    size: tuple[int, int],
    guidance_scale: float,
    pipeline: "ORTStableDiffusionXLPipeline",
    onnx_bundle: Bundle,
) -> None:
    settings = wishes(height=size[0], width=size[1], guidance_scale=guidance_scale)
    expected, their_picture = their_run(pipeline, settings)
    actual = our_latents(onnx_bundle, "onnxruntime", settings)
    assert_same_latents(actual, expected)
    image = decode(onnx_bundle, make_runtime("onnxruntime"), {"it": actual[-1]})["it"]
    picture = np.clip(image / 2 + np.float32(0.5), 0, 1).transpose(0, 2, 3, 1)
    assert rel_l2(np.ascontiguousarray(picture), their_picture) <= LIMIT


def test_optimum_encodes_with_our_vae_encoder(
    pipeline: "ORTStableDiffusionXLPipeline", checkpoint_bundle: Bundle
) -> None:
    """No run needs it, but optimum's image-to-image pipelines open it from the same folder."""
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 72, 104)).astype(np.float32)
    encoded = pipeline.vae.encode(torch.from_numpy(image)).latent_dist.parameters.numpy()
    with open_session(make_runtime("pytorch"), checkpoint_bundle, "vae_encoder") as encoder:
        assert rel_l2(encoded, encoder.run({"image": image})["moments"]) <= LIMIT


def test_optimum_decodes_with_our_preview_decoder_in_the_place_of_its_vaes(
    onnx_folder: Path, preview_bundles: Mapping[FormatName, Bundle], tmp_path: Path
) -> None:
    from optimum.onnxruntime import ORTStableDiffusionXLPipeline

    preview = preview_bundles["onnx"]
    folder = shutil.copytree(onnx_folder, tmp_path / "onnx")
    shutil.rmtree(folder / "vae_decoder")
    shutil.copytree(preview.folder / "preview_decoder", folder / "vae_decoder")
    theirs = ORTStableDiffusionXLPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)

    def images(output_type: str) -> Array:
        generator = torch.Generator().manual_seed(SEED)
        found = theirs(
            PROMPT,
            num_inference_steps=1,
            height=72,
            width=104,
            generator=generator,
            output_type=output_type,
        ).images
        return np.asarray(found, np.float32)

    with open_session(make_runtime("onnxruntime"), preview, "preview_decoder") as session:
        image = session.run({"latents": images("latent")})["image"]
    actual = np.clip(image / 2 + np.float32(0.5), 0, 1)
    assert rel_l2(actual, images("pt")) <= 1e-6


def test_what_optimum_exports_opens_without_a_manifest(
    foreign_folder: Path, checkpoint_bundle: Bundle
) -> None:
    bundle = open_bundle(foreign_folder)
    assert bundle.manifest is None
    assert bundle.format == "onnx"
    assert list(bundle.artifacts) == COMPONENTS
    assert bundle.config == checkpoint_bundle.config


def test_what_optimum_exports_gives_the_checkpoints_latents(
    foreign_folder: Path, checkpoint_bundle: Bundle
) -> None:
    settings = wishes(height=128, width=128)
    actual = our_latents(open_bundle(foreign_folder), "onnxruntime", settings)
    assert_same_latents(actual, our_latents(checkpoint_bundle, "pytorch", settings))


def test_what_optimum_exports_has_no_odd_sizes_and_ours_has(
    foreign_folder: Path, onnx_bundle: Bundle, checkpoint_bundle: Bundle
) -> None:
    # optimum traces at even sizes, which leaves the U-Net's upsample-to-size path out of the graph.
    settings = wishes(height=72, width=104)
    with pytest.raises(BackendError, match="Concat"):
        our_latents(open_bundle(foreign_folder), "onnxruntime", settings)
    actual = our_latents(onnx_bundle, "onnxruntime", settings)
    assert_same_latents(actual, our_latents(checkpoint_bundle, "pytorch", settings))


def test_triptych_samples_from_what_optimum_exports(
    triptych: Cli, foreign_folder: Path, tmp_path: Path
) -> None:
    request = ("--prompt", "a cat", "--num-inference-steps", "4")
    ran = triptych("sample", foreign_folder, *request, "--output", tmp_path / "pictures")
    assert ran.returncode == 0, ran.stderr
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["final.png", "latents.safetensors", "run.json", "step_04.png"]


def test_triptych_inspects_what_optimum_exports(triptych: Cli, foreign_folder: Path) -> None:
    ran = triptych("inspect", foreign_folder, "--json")
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert summary["origin"] == "foreign"
    assert summary["problems"] == []
    assert [component["name"] for component in summary["components"]] == COMPONENTS
    assert {component["opset"] for component in summary["components"]} == {18}
    assert all(component["num_parameters"] > 0 for component in summary["components"])


def test_triptych_check_finds_the_odd_sizes_that_optimum_leaves_out(
    triptych: Cli, foreign_folder: Path, checkpoint: Path
) -> None:
    arguments = ("check", foreign_folder, "--reference", checkpoint, "--json", "-")
    ran = triptych(*arguments, "--num-inference-steps", "2")
    assert ran.returncode == 1, ran.stderr
    report = json.loads(ran.stdout)
    assert report["verdict"] == "failed"
    failed = [row for row in report["candidates"][0]["rows"] if row["verdict"] != "passed"]
    assert [row["case"].split()[-1] for row in failed] == ["9x16"]
    assert failed[0]["component"] == "unet"
    assert "Concat" in failed[0]["reason"]
