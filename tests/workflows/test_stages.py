"""Runs that start from files, and runs of two models."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from triptych.errors import UsageError
from triptych.parity.metrics import rel_l2
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.callbacks import SamplingRun
from triptych.sampling.loop import StepEvent
from triptych.sampling.prompt_embeddings import PromptEmbeddings
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.testing import tiny_checkpoint
from triptych.types import Array
from triptych.workflows.sample import sample
from triptych.workflows.sample_request import ImageFiles, RefinerRequest, SampleRequest
from triptych.workflows.stages import plan_run


@pytest.fixture(scope="session")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("refiner") / "tiny", seed=1, kind="refiner")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    Image.fromarray(random.integers(0, 256, (96, 160, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    levels = np.zeros((96, 160), np.uint8)
    levels[30:60, 50:90] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(levels).save(path)
    return path


def request(bundle: Path, output: Path, **changes: object) -> SampleRequest:
    settings = Settings(
        prompts=Prompts(prompt=("a cat",)), num_inference_steps=5, height_px=64, width_px=64
    )
    own = {name: changes.pop(name) for name in list(changes) if name in Settings.__slots__}
    return SampleRequest(
        bundle=bundle,
        output=output,
        settings=replace(settings, **own),  # type: ignore[arg-type]
        runtime_settings=RuntimeSettings(),
        **changes,  # type: ignore[arg-type]
    )


def pixels(path: Path) -> Array:
    with Image.open(path) as opened:
        return np.asarray(opened)


def run_of(output: Path) -> dict[str, object]:
    run: dict[str, object] = json.loads((output / "run.json").read_text(encoding="utf-8"))
    return run


# Two models


def test_a_refiner_goes_on_from_the_split(refiner: Path, onnx_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []

    def watch(event: StepEvent) -> None:
        seen.append((event.index, event.num_inference_steps, event.timestep))

    output = tmp_path / "out"
    wish = RefinerRequest(bundle=refiner, denoising_split=0.6)
    result = sample(request(onnx_folder, output, refiner=wish, save_steps=(3, 4, 5)), on_step=watch)

    assert [index for index, _, _ in seen] == [0, 1, 2, 3, 4]
    assert {total for _, total, _ in seen} == {5}
    timesteps = [timestep for _, _, timestep in seen]
    assert timesteps == sorted(timesteps, reverse=True)
    assert sorted(result.pixels) == [3, 4, 5]
    run = run_of(output)
    assert run["runtime"]["name"] == "onnxruntime"  # type: ignore[index]
    assert run["refiner"]["runtime"]["name"] == "pytorch"  # type: ignore[index]
    assert run["refiner"]["start"]["denoising_start"] == 0.6  # type: ignore[index]
    assert run["start"]["denoising_end"] == 0.6  # type: ignore[index]
    assert run["refiner"]["time_ids"][0][-1] == 2.5  # type: ignore[index]
    assert run["final_latents_sha256"] == run["refiner"]["final_latents_sha256"]  # type: ignore[index]
    latents = load_file(output / "latents.safetensors")
    np.testing.assert_array_equal(latents["final"], latents["step_05"])


def test_a_refiner_over_finished_latents_takes_its_share_of_steps(
    refiner: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    wish = RefinerRequest(bundle=refiner, strength=0.4)
    result = sample(request(onnx_folder, output, refiner=wish, save_steps=(5, 7)))
    assert sorted(result.pixels) == [5, 7]
    plain = sample(request(onnx_folder, tmp_path / "plain"))
    np.testing.assert_array_equal(result.pixels[5], plain.pixels[5])
    assert rel_l2(result.pixels[7].astype(float), plain.pixels[5].astype(float)) > 1e-2


def test_the_refiners_noise_is_not_the_first_models(
    refiner: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    """One generator goes through both, as one torch generator would."""
    output = tmp_path / "out"
    wish = RefinerRequest(bundle=refiner, strength=0.4)
    sample(request(onnx_folder, output, refiner=wish))
    run = run_of(output)
    assert run["noise_sha256"] != run["refiner"]["noise_sha256"]  # type: ignore[index]


def test_an_interrupted_first_model_is_not_refined(
    refiner: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    def stop(
        run: SamplingRun, step_index: int, timestep: float, callback_kwargs: dict[str, Array]
    ) -> Mapping[str, Array]:
        del timestep
        run.interrupt = step_index == 1
        return callback_kwargs

    output = tmp_path / "out"
    wish = RefinerRequest(bundle=refiner, denoising_split=0.6)
    result = sample(request(onnx_folder, output, refiner=wish), callback_on_step_end=stop)
    assert sorted(result.pixels) == [2]
    run = run_of(output)
    assert run["refiner"] is None
    assert run["interrupted_after"] == 2
    assert run["save_steps"] == [2]
    assert (output / "step_02.png").is_file()


def test_what_a_refiner_lacks_is_the_first_models(refiner: Path, checkpoint: Path) -> None:
    from triptych.bundle.bundle import open_bundle

    base, whole = open_bundle(checkpoint), open_bundle(refiner)
    bare = replace(whole, artifacts={"unet": whole.artifacts["unet"]})
    completed = bare.completed_from(base)
    assert set(completed.artifacts) == set(whole.artifacts)
    assert completed.artifacts["unet"] is whole.artifacts["unet"]
    assert completed.artifacts["text_encoder_2"] is base.artifacts["text_encoder_2"]
    other_vae = replace(base, config=replace(base.config, scaling_factor=0.18215))
    assert set(bare.completed_from(other_vae).artifacts) == {"unet"}
    other_format = replace(base, format="onnx")
    assert set(bare.completed_from(other_format).artifacts) == {"unet"}


# Files


def test_the_part_around_a_mask_is_put_back_into_its_picture(
    picture: Path, mask: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    files = ImageFiles(image=picture, mask=mask, strength=0.9999, padding_mask_crop=4)
    result = sample(request(onnx_folder, output, pictures=files, height_px=64, width_px=72))
    made, original = pixels(output / "final.png"), pixels(picture)
    assert made.shape == original.shape
    np.testing.assert_array_equal(made, result.pixels[4][0])
    outside = np.ones(original.shape[:2], bool)
    outside[30:60, 50:90] = False
    np.testing.assert_array_equal(made[outside], original[outside])
    assert not np.array_equal(made[30:60, 50:90], original[30:60, 50:90])
    run = run_of(output)
    assert (run["height_px"], run["width_px"]) == (64, 72)
    assert run["start"]["kind"] == "image and mask"  # type: ignore[index]
    assert run["start"]["mask_sha256"]  # type: ignore[index]


def test_a_crop_without_a_size_takes_the_trained_one(
    picture: Path, mask: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    files = ImageFiles(image=picture, mask=mask, padding_mask_crop=0)
    wish = request(onnx_folder, tmp_path / "out", pictures=files, height_px=None, width_px=None)
    start = plan_run(wish).stages[0].settings.start
    assert start is not None
    assert start.image is not None
    assert start.image.shape == (1, 3, 128, 128)


def test_a_refiner_keeps_to_the_mask(
    picture: Path, mask: Path, refiner: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    files = ImageFiles(image=picture, mask=mask, strength=0.8)
    wish = request(
        onnx_folder,
        tmp_path / "out",
        pictures=files,
        refiner=RefinerRequest(bundle=refiner, denoising_split=0.5),
    )
    stages = plan_run(wish).stages
    assert stages[1].settings.start is not None
    np.testing.assert_array_equal(
        stages[1].settings.start.mask,
        stages[0].settings.start.mask,  # type: ignore[union-attr]
    )
    sample(wish)
    assert (tmp_path / "out" / "final.png").is_file()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"refiner": {"denoising_split": 0.5}, "denoising_end": 0.8}, "beside denoising_split"),
        ({"refiner": {"denoising_split": 1.5}}, "between 0 and 1"),
        ({"refiner": {"denoising_split": 0.01}}, "leave no step"),
        ({"refiner": {"strength": 0.1}}, "leaves none"),
        ({"refiner": {}, "save_steps": (7,)}, "want 1 to 6"),
        ({"refiner": {"runtime": "openvino"}}, "want pytorch"),
        ({"pictures": {"padding_mask_crop": 4}}, "without a mask"),
        ({"pictures": {}, "height_px": None}, "want both or neither"),
    ],
)
def test_plans_that_cannot_be(
    changes: dict[str, object],
    told: str,
    picture: Path,
    refiner: Path,
    onnx_folder: Path,
    tmp_path: Path,
) -> None:
    if "refiner" in changes:
        wish = RefinerRequest(bundle=refiner, **changes["refiner"])  # type: ignore[arg-type]
        changes = {**changes, "refiner": wish}
    if "pictures" in changes:
        files = ImageFiles(image=picture, **changes["pictures"])  # type: ignore[arg-type]
        changes = {**changes, "pictures": files}
    with pytest.raises(UsageError, match=told):
        sample(request(onnx_folder, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_embeddings_for_one_model_are_not_for_another(
    refiner: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    embeddings = PromptEmbeddings(
        prompt_embeds=np.zeros((1, 77, 80), np.float32),
        pooled_prompt_embeds=np.zeros((1, 64), np.float32),
    )
    wish = request(
        onnx_folder, tmp_path / "out", prompts=embeddings, refiner=RefinerRequest(bundle=refiner)
    )
    with pytest.raises(UsageError, match="want them as text"):
        plan_run(wish)


def test_a_mask_of_another_size(picture: Path, onnx_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("L", (64, 64), 255).save(other)
    files = ImageFiles(image=picture, mask=other)
    with pytest.raises(UsageError, match="64"):
        sample(request(onnx_folder, tmp_path / "out", pictures=files))
    assert not (tmp_path / "out").exists()
