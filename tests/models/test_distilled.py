import json
from dataclasses import replace
from pathlib import Path

import pytest

from triptych.models.distilled import distillation_warnings, find_distillation
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.testing import tiny_checkpoint
from triptych.workflows.inspect import inspect_path
from triptych.workflows.sample import sample
from triptych.workflows.sample_request import SampleRequest


def folder_of(tmp_path: Path, **config: object) -> Path:
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("scheduler", "spacing", "name"),
    [
        ("EulerAncestralDiscreteScheduler", "trailing", "Turbo"),
        ("EulerAncestralDiscreteScheduler", "leading", None),
        ("EulerDiscreteScheduler", "trailing", None),
        ("LCMScheduler", "leading", "LCM"),
        ("DDIMScheduler", "leading", None),
    ],
)
def test_a_scheduler_tells_the_method(
    scheduler: str, spacing: str, name: str | None, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, _class_name=scheduler, timestep_spacing=spacing)
    found = find_distillation(folder)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("guidance_scale", "steps", "count"), [(0.0, 1, 0), (1.0, 4, 0), (5.0, 4, 1), (5.0, 30, 2)]
)
def test_settings_that_do_not_suit_are_told(
    guidance_scale: float, steps: int, count: int, tmp_path: Path
) -> None:
    turbo = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    warnings = list(
        distillation_warnings(
            folder_of(tmp_path, **turbo), guidance_scale=guidance_scale, num_inference_steps=steps
        )
    )
    assert len(warnings) == count
    assert all("a Turbo model, by its scheduler" in warning for warning in warnings)


@pytest.mark.slow
def test_a_turbo_checkpoint_is_recognised_and_noted(tmp_path: Path) -> None:
    turbo = tiny_checkpoint(tmp_path / "turbo")
    path = turbo / "scheduler" / "scheduler_config.json"
    changes = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert inspect_path(turbo).distilled == "Turbo"
    request = SampleRequest(
        bundle=turbo,
        output=tmp_path / "guided",
        settings=Settings(
            prompts=Prompts(prompt=("a cat",)), num_inference_steps=1, height_px=64, width_px=64
        ),
        runtime_settings=RuntimeSettings(),
    )
    [warning] = sample(request).warnings
    assert "--guidance-scale 5 is more than the 1" in warning
    settings = replace(request.settings, guidance_scale=0.0)
    assert not sample(replace(request, output=tmp_path / "plain", settings=settings)).warnings
