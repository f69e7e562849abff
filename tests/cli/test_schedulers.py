"""`triptych schedulers`, and the options of `sample` that choose one."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.cli.app import app
from triptych.sampling.schedulers import SCHEDULERS


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["schedulers", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_names_every_scheduler() -> None:
    listed = json.loads(run("--json"))["schedulers"]
    assert [scheduler["name"] for scheduler in listed] == list(SCHEDULERS)
    assert listed[0]["takes"] == ["timesteps", "sigmas"]
    assert listed[0]["sigma_spacings"] == ["karras", "exponential", "beta"]
    text = run()
    assert all(name in text for name in SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_levels_of_each(name: str) -> None:
    shown = json.loads(run(name, "--num-inference-steps", "4", "--json"))
    assert shown["scheduler"] == name
    steps = {"heun": 7, "pndm": 5}.get(name, 4)
    assert shown["num_inference_steps"] == len(shown["timesteps"]) == steps
    assert len(shown["sigmas"]) == steps + 1
    assert name in run(name, "--num-inference-steps", "4")


def test_noise_levels_with_a_bundles_config(checkpoint: Path) -> None:
    of_bundle = json.loads(
        run("euler", "--bundle", str(checkpoint), "--num-inference-steps", "4", "--json")
    )
    assert of_bundle["timesteps"] == [751, 501, 251, 1]
    karras = json.loads(run("euler", "--num-inference-steps", "4", "--sigmas", "karras", "--json"))
    assert karras["sigmas"][0] == of_bundle["sigmas"][0]
    assert karras["sigmas"][1] != of_bundle["sigmas"][1]


def test_given_timesteps_and_sigmas() -> None:
    shown = json.loads(run("heun", "--timesteps", "900,500,100", "--json"))
    assert shown["timesteps"] == [900, 500, 500, 100, 100]
    shown = json.loads(run("euler", "--sigma-values", "10,5,1,0", "--json"))
    assert shown["sigmas"] == [10, 5, 1, 0]


# diffusers gives a torch tensor to numpy.array, whose protocol torch follows in its older form.
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_diffusers_own() -> None:
    name = "diffusers:DEISMultistepScheduler"
    shown = json.loads(run(name, "--num-inference-steps", "4", "--json"))
    assert shown["variance"] == "preserved"
    assert shown["num_inference_steps"] == 4


def test_numbers_that_are_none() -> None:
    result = CliRunner().invoke(app, ["schedulers", "euler", "--timesteps", "900,many"])
    assert result.exit_code == 2
    assert "900,many" in result.output
