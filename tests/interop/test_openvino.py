"""Beside OpenVINO's own clients, both ways: they open our bundle, we open what optimum exports.

OpenVINO GenAI 2026.4.1 differs from diffusers, and so from triptych, in three things that are
reproduced here, so that what is left can be compared to float32 rounding:

1. the training betas are spaced without their end point, so that every noise level is lower;
2. `prompt` goes to text_encoder_2 and `prompt_2` to text_encoder;
3. time_ids hold width before height.

Its callback shows the estimate of x0, not the latents, for Euler's scheduler.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.decode import pixels_from_image
from triptych.sampling.micro_conditioning import MicroConditioning
from triptych.sampling.pipeline import decode, denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.types import Array, Latents
from triptych.workflows.check import CheckRequest, check_bundle
from triptych.workflows.check_candidates import declared_precisions
from triptych.workflows.inspect import inspect_path

if TYPE_CHECKING:
    import openvino_genai

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

LIMIT = 1e-4
"""Relative L2 after every step. Measured: 2e-6 and less."""

LIMIT_BF16 = 5e-2
"""Measured: 1.6e-2 and less. In bfloat16 every engine rounds otherwise for other rows at once."""

PROMPT, PROMPT_2 = "a cat in the snow", "a red dog"
SEED = 3
NUM_INFERENCE_STEPS = 8
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
COMPONENTS = ["text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"]


def our_steps(
    bundle: Bundle,
    prompts: Prompts,
    *,
    size: tuple[int, int] = (128, 128),
    sizes: MicroConditioning | None = None,
    runtime: str = "openvino",
) -> tuple[list[Latents], list[Latents]]:
    """The latents after every step, and every step's estimate of x0."""
    settings = Settings(
        prompts=prompts,
        num_inference_steps=NUM_INFERENCE_STEPS,
        height_px=size[0],
        width_px=size[1],
        seeds=(SEED,),
        sizes=sizes or MicroConditioning(),
    )
    engine = make_runtime(runtime)
    events = denoise(bundle, engine, prepare(bundle, engine, settings))
    steps = [(event.latents.copy(), event.denoised.copy()) for event in events]
    return [latents for latents, _ in steps], [denoised for _, denoised in steps]


def worst(actual: list[Latents], expected: list[Latents]) -> float:
    assert len(actual) == len(expected) == NUM_INFERENCE_STEPS
    return max(rel_l2(mine, wanted) for mine, wanted in zip(actual, expected, strict=True))


@pytest.mark.parametrize("size", [(128, 128), (72, 104)])
def test_optimum_samples_our_bundle_as_we_do(
    size: tuple[int, int], openvino_folder: Path, openvino_bundle: Bundle
) -> None:
    steps, picture = optimums_steps(openvino_folder, size=size)
    latents, _ = our_steps(openvino_bundle, Prompts(prompt=(PROMPT,)), size=size)
    assert worst(latents, steps) < LIMIT
    image = decode(openvino_bundle, make_runtime("openvino"), {"it": latents[-1]})["it"]
    ours = np.clip(image / 2 + np.float32(0.5), 0, 1).transpose(0, 2, 3, 1)
    assert rel_l2(np.ascontiguousarray(ours), picture) < LIMIT


def optimums_steps(
    folder: Path, *, size: tuple[int, int] = (128, 128)
) -> tuple[list[Latents], Array]:
    """Every step's latents, and the picture."""
    from optimum.intel import OVStableDiffusionXLPipeline

    pipeline = OVStableDiffusionXLPipeline.from_pretrained(folder, export=False, ov_config=EXACT)
    pipeline.set_progress_bar_config(disable=True)
    steps: list[Latents] = []

    def keep(
        _: object, index: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        del index, timestep
        steps.append(tensors["latents"].numpy().copy())
        return tensors

    picture = pipeline(
        PROMPT,
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=5.0,
        height=size[0],
        width=size[1],
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
        callback_on_step_end=keep,
    ).images
    return steps, picture


# OpenVINO GenAI


@pytest.fixture(scope="module")
def genai(openvino_folder: Path) -> "openvino_genai.Text2ImagePipeline":
    package = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    return package.Text2ImagePipeline(openvino_folder, "CPU", INFERENCE_PRECISION_HINT="f32")


def their_steps(
    pipeline: "openvino_genai.Text2ImagePipeline",
    *,
    size: tuple[int, int] = (128, 128),
    **wishes: str,
) -> tuple[list[Latents], Array]:
    """Every step's estimate of x0, and the picture."""
    from openvino_genai import TorchGenerator

    steps: list[Latents] = []

    def keep(step: int, num_steps: int, tensor: object) -> bool:
        del step, num_steps
        steps.append(np.array(tensor.data))  # type: ignore[attr-defined]  # an openvino.Tensor
        return False

    picture = pipeline.generate(
        PROMPT,
        generator=TorchGenerator(SEED),
        num_inference_steps=NUM_INFERENCE_STEPS,
        guidance_scale=5.0,
        height=size[0],
        width=size[1],
        callback=keep,
        **wishes,
    )
    return steps, np.array(picture.data)


@pytest.fixture(scope="module")
def genai_betas(openvino_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_genai_betas(openvino_folder, tmp_path_factory.mktemp("betas") / "bundle")


def with_genai_betas(bundle: Path, folder: Path) -> Bundle:
    """Our bundle with the betas that GenAI computes: spaced without their end point."""
    shutil.copytree(bundle, folder)
    (folder / "triptych.json").unlink()  # its hash of the config would not agree any more
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    ends = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5
    betas = np.linspace(*ends, config["num_train_timesteps"], endpoint=False) ** 2
    path.write_text(json.dumps({**config, "trained_betas": betas.tolist()}))
    return open_bundle(folder)


def test_genai_samples_our_bundle_as_we_do_with_its_betas(
    genai: "openvino_genai.Text2ImagePipeline", genai_betas: Bundle, openvino_bundle: Bundle
) -> None:
    expected, picture = their_steps(genai)
    prompts = Prompts(prompt=(PROMPT,))
    latents, denoised = our_steps(genai_betas, prompts)
    assert worst(denoised, expected) < LIMIT
    image = decode(genai_betas, make_runtime("openvino"), {"it": latents[-1]})["it"]
    assert np.abs(pixels_from_image(image).astype(int) - picture).max() <= 1
    _, with_end_point = our_steps(openvino_bundle, prompts)
    assert 1e-3 < worst(with_end_point, expected) < 1e-2


def test_both_clients_sample_a_bf16_bundle_as_we_do(
    openvino_bf16_folder: Path, tmp_path: Path
) -> None:
    genai = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    folder, prompts = openvino_bf16_folder, Prompts(prompt=(PROMPT,))
    pipeline = genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
    _, ours = our_steps(with_genai_betas(folder, tmp_path / "betas"), prompts)
    assert worst(ours, their_steps(pipeline)[0]) < LIMIT_BF16
    latents, _ = our_steps(open_bundle(folder), prompts)
    assert worst(latents, optimums_steps(folder)[0]) < LIMIT_BF16


def test_genai_takes_a_negative_prompt_as_we_do(
    genai: "openvino_genai.Text2ImagePipeline", genai_betas: Bundle
) -> None:
    expected, _ = their_steps(genai, negative_prompt="blurry")
    prompts = Prompts(prompt=(PROMPT,), negative_prompt=("blurry",))
    assert worst(our_steps(genai_betas, prompts)[1], expected) < LIMIT


def test_genai_swaps_the_prompts(
    genai: "openvino_genai.Text2ImagePipeline", genai_betas: Bundle
) -> None:
    expected, _ = their_steps(genai, prompt_2=PROMPT_2)
    swapped = Prompts(prompt=(PROMPT_2,), prompt_2=(PROMPT,))
    assert worst(our_steps(genai_betas, swapped)[1], expected) < LIMIT
    straight = Prompts(prompt=(PROMPT,), prompt_2=(PROMPT_2,))
    assert worst(our_steps(genai_betas, straight)[1], expected) > 1e-2


def test_genai_writes_width_before_height(
    genai: "openvino_genai.Text2ImagePipeline", genai_betas: Bundle
) -> None:
    expected, _ = their_steps(genai, size=(128, 192))
    prompts = Prompts(prompt=(PROMPT,))
    swapped = MicroConditioning(original_size=(192, 128), target_size=(192, 128))
    _, denoised = our_steps(genai_betas, prompts, size=(128, 192), sizes=swapped)
    assert worst(denoised, expected) < LIMIT
    _, straight = our_steps(genai_betas, prompts, size=(128, 192))
    assert worst(straight, expected) > 1e-2


# What optimum-cli exports


def optimum_export(checkpoint: Path, folder: Path, *, weight_format: str) -> Path:
    arguments = ["export", "openvino", "--model", str(checkpoint), "--task", "text-to-image"]
    module = [sys.executable, "-m", "optimum.commands.optimum_cli"]
    ran = subprocess.run(
        [*module, *arguments, "--weight-format", weight_format, str(folder)],
        cwd=folder.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "NNCF_CI": "1", "CI": "true"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def foreign_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `optimum-cli export openvino --weight-format fp32` makes of the checkpoint."""
    folder = tmp_path_factory.mktemp("optimum") / "fp32"
    return optimum_export(checkpoint, folder, weight_format="fp32")


@pytest.fixture(scope="module")
def foreign_int8_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it makes with int8 weights, which is its default for a real SDXL."""
    folder = tmp_path_factory.mktemp("optimum") / "int8"
    return optimum_export(checkpoint, folder, weight_format="int8")


def test_what_optimum_exports_gives_the_checkpoints_latents(
    foreign_folder: Path, checkpoint_bundle: Bundle
) -> None:
    bundle = open_bundle(foreign_folder)
    assert bundle.manifest is None
    assert bundle.format == "openvino"
    assert list(bundle.artifacts) == COMPONENTS
    assert set(declared_precisions(bundle, RuntimeSettings()).values()) == {"fp32"}
    prompts = Prompts(prompt=(PROMPT,))
    expected, _ = our_steps(checkpoint_bundle, prompts, runtime="pytorch")
    assert worst(our_steps(bundle, prompts)[0], expected) < LIMIT


@pytest.mark.parametrize(
    ("fixture", "precision"), [("foreign_folder", "fp32"), ("foreign_int8_folder", "int8")]
)
def test_what_optimum_exports_passes_the_check_in_its_class(
    fixture: str, precision: str, checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    wish = CheckRequest(bundle=folder, reference=checkpoint, runtimes=["openvino"])
    (report,) = check_bundle(wish, report=lambda _: None).report.candidates
    assert report.verdict == "passed"
    assert {row.precision for row in report.rows} == {precision}
    assert {row.component for row in report.rows if row.stage == "component"} == set(COMPONENTS)


def test_int8_weights_of_optimum_are_reported_as_int8(
    foreign_int8_folder: Path, checkpoint_bundle: Bundle
) -> None:
    summary = inspect_path(foreign_int8_folder)
    assert summary.problems == ()
    for part in summary.components:
        assert max(part.weight_dtypes, key=lambda name: part.weight_dtypes[name]) == "uint8"
    bundle = open_bundle(foreign_int8_folder)
    assert set(declared_precisions(bundle, RuntimeSettings()).values()) == {"int8"}
    prompts = Prompts(prompt=(PROMPT,))
    expected, _ = our_steps(checkpoint_bundle, prompts, runtime="pytorch")
    assert 1e-3 < worst(our_steps(bundle, prompts)[0], expected) < 3e-1
