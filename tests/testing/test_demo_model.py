"""The trained model that comes along: what it is, and that it draws what it is told.

How well it does over 200 prompts is in its training.json and docs/quality.md; here are a few.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from triptych.bundle.bundle import open_bundle
from triptych.errors import UsageError
from triptych.runtimes import make_runtime
from triptych.sampling.callbacks import StepCallback
from triptych.sampling.decode import pixels_from_image
from triptych.sampling.micro_conditioning import MicroConditioning
from triptych.sampling.pipeline import decode, denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import SchedulerChoice
from triptych.sampling.settings import Settings
from triptych.scenes.judge import read_scene
from triptych.scenes.scene import Place, Scene, caption, held_out_scenes
from triptych.testing import demo_checkpoint
from triptych.testing.demo_model import DEMO_MODEL
from triptych.types import Picture

RECORD = json.loads((DEMO_MODEL / "training.json").read_text(encoding="utf-8"))
LARGEST_BYTES = 12_000_000


def drawn(
    bundle: Path,
    prompt: str,
    *,
    negative_prompt: str | None = None,
    num_inference_steps: int = 20,
    callback: StepCallback | None = None,
    **settings: object,
) -> Picture:
    opened, runtime = open_bundle(bundle), make_runtime("onnxruntime")
    negative = None if negative_prompt is None else (negative_prompt,)
    wanted = Settings(
        prompts=Prompts(prompt=(prompt,), negative_prompt=negative),
        num_inference_steps=num_inference_steps,
        **settings,  # type: ignore[arg-type]
    )
    prepared = prepare(opened, runtime, wanted)
    *_, last = denoise(opened, runtime, prepared, callback_on_step_end=callback)
    picture: Picture = pixels_from_image(decode(opened, runtime, {"x": last.latents})["x"])[0]
    return picture


def _place(picture: Picture) -> Place | None:
    scene = read_scene(picture).scene
    return None if scene is None else scene.place


def test_the_weights_are_those_that_were_trained() -> None:
    found = {
        str(path.relative_to(DEMO_MODEL)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in DEMO_MODEL.rglob("*.safetensors")
    }
    assert found == RECORD["sha256"]
    assert sum((DEMO_MODEL / name).stat().st_size for name in found) <= LARGEST_BYTES
    for name in found:
        with safe_open(DEMO_MODEL / name, "numpy") as tensors:
            dtypes = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        assert dtypes <= {"F16", "I64"}


def test_the_record_keeps_the_bar() -> None:
    """Of 200 held-out prompts, at 20 Euler steps and guidance 5."""
    shares = RECORD["held_out"]
    assert shares["color"] >= 0.9
    assert shares["place"] >= 0.9
    assert shares["shape"] >= 0.85


def test_its_parts_are_sdxl_s_classes() -> None:
    index = json.loads((DEMO_MODEL / "model_index.json").read_text())
    classes = {name: part[1] for name, part in index.items() if isinstance(part, list) and part[0]}
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "scheduler": "EulerDiscreteScheduler",
    }.items() <= classes.items()


def test_a_copy_is_whole_and_overwrites_nothing(tmp_path: Path) -> None:
    folder = demo_checkpoint(tmp_path / "copy")
    names = {path.relative_to(folder) for path in folder.rglob("*")}
    assert names == {path.relative_to(DEMO_MODEL) for path in DEMO_MODEL.rglob("*")}
    with pytest.raises(UsageError, match="not empty"):
        demo_checkpoint(folder)


@pytest.mark.slow
def test_prompts_that_were_never_trained_on_are_drawn_as_told(demo_onnx_folder: Path) -> None:
    scenes = held_out_scenes(12)
    right = [
        read_scene(drawn(demo_onnx_folder, caption(scene), seeds=(seed,))).scene == scene
        for seed, scene in enumerate(scenes)
    ]
    assert sum(right) >= 9, right


SCENE = Scene(shape="circle", color="red", size="large", place="left", background="blue")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc", "heun"])
def test_few_steps_of_other_schedulers_draw_it_too(demo_onnx_folder: Path, name: str) -> None:
    picture = drawn(
        demo_onnx_folder,
        caption(SCENE),
        num_inference_steps=10,
        scheduler=SchedulerChoice(name=name),
    )
    assert read_scene(picture).scene == SCENE


def _steepest(picture: Picture) -> float:
    """The largest step from one pixel to the next, in levels."""
    values = picture.astype(float)
    return max(float(np.abs(np.diff(values, axis=axis)).max()) for axis in (0, 1))


@pytest.mark.slow
def test_a_small_original_size_blurs(demo_onnx_folder: Path) -> None:
    """As in SDXL's paper, arXiv:2307.01952, 2.2."""
    small = MicroConditioning(original_size=(16, 16))
    prompts = [caption(scene) for scene in held_out_scenes(4)]
    sharp = [_steepest(drawn(demo_onnx_folder, prompt)) for prompt in prompts]
    blurred = [_steepest(drawn(demo_onnx_folder, prompt, sizes=small)) for prompt in prompts]
    assert sum(blurred) < 0.85 * sum(sharp), (blurred, sharp)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crop", "place"),
    [((26, 52), "left"), ((26, 0), "right"), ((52, 26), "top"), ((0, 26), "bottom")],
)
def test_a_crop_moves_what_is_drawn(
    demo_onnx_folder: Path, crop: tuple[int, int], place: Place
) -> None:
    """The center of 180 x 180 is at the left of a part that begins further to the right."""
    scene = replace(SCENE, size="small", place="center")
    sizes = MicroConditioning(original_size=(180, 180), crop=crop)
    assert _place(drawn(demo_onnx_folder, caption(scene))) == "center"
    assert _place(drawn(demo_onnx_folder, caption(scene), sizes=sizes)) == place


@pytest.mark.slow
def test_a_negative_prompt_leads_away_from_what_it_names(demo_onnx_folder: Path) -> None:
    """A large shape where the prompt leaves the colour open: seldom the one that is not wanted."""
    prompt = "a large circle in the center on a white background"
    colors = []
    for seed in range(6):
        plain = read_scene(drawn(demo_onnx_folder, prompt, seeds=(seed,))).scene
        if plain is None:
            continue
        steered = read_scene(
            drawn(
                demo_onnx_folder,
                prompt,
                negative_prompt=prompt.replace("circle", f"{plain.color} circle"),
                seeds=(seed,),
            )
        ).scene
        colors.append((plain.color, None if steered is None else steered.color))
    assert len(colors) >= 3
    assert sum(first != second for first, second in colors) >= 0.8 * len(colors), colors


@pytest.mark.slow
def test_a_callback_that_mirrors_the_last_latents_mirrors_the_scene(
    demo_onnx_folder: Path,
) -> None:
    seen: list[int] = []

    def mirror(
        pipe: object, index: int, timestep: float, tensors: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        del pipe, timestep
        seen.append(index)
        return {"latents": tensors["latents"][..., ::-1].copy()} if index == 19 else {}

    picture = drawn(demo_onnx_folder, caption(SCENE), callback=mirror)
    assert seen == list(range(20))
    assert read_scene(picture).scene == replace(SCENE, place="right")
