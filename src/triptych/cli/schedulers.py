"""triptych schedulers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.console import print_json, say, stdout
from triptych.cli.options import JsonOption
from triptych.cli.scheduler_options import (
    RhoOption,
    SigmaMaxOption,
    SigmaMinOption,
    SigmasOption,
    SigmaValuesOption,
    TimestepsOption,
    scheduler_choice,
)

if TYPE_CHECKING:
    from triptych.sampling.schedule import Schedule
    from triptych.workflows.schedulers import KnownScheduler


def schedulers(
    name: Annotated[
        str | None,
        typer.Argument(help="Show this one's noise levels, as --scheduler takes it."),
    ] = None,
    *,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Whose scheduler config. Default: SDXL base 1.0's."),
    ] = None,
    num_inference_steps: Annotated[
        int, typer.Option("--num-inference-steps", min=1, help="Steps of the run.")
    ] = 50,
    sigmas: SigmasOption = None,
    timesteps: TimestepsOption = "",
    sigma_values: SigmaValuesOption = "",
    sigma_min: SigmaMinOption = None,
    sigma_max: SigmaMaxOption = None,
    rho: RhoOption = None,
    json: JsonOption = False,
) -> None:
    """List the schedulers, or show the noise levels of one."""
    from triptych.workflows import schedulers as workflow

    if name is None:
        known = workflow.known_schedulers()
        if json:
            print_json({"schedulers": [scheduler.as_json() for scheduler in known]})
        else:
            _print_known(known)
        return
    choice = scheduler_choice(
        name=name,
        sigmas=sigmas,
        timesteps=timesteps,
        sigma_values=sigma_values,
        edm={"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho},
        eta=0.0,
    )
    schedule = workflow.schedule_of(choice, bundle=bundle, num_inference_steps=num_inference_steps)
    if json:
        print_json({"scheduler": name, **workflow.schedule_as_json(schedule)})
    else:
        _print_schedule(name, schedule)


def _print_known(known: "tuple[KnownScheduler, ...]") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "diffusers' class", "sigmas", "takes", ""):
        table.add_column(column)
    for scheduler in known:
        table.add_row(
            scheduler.name,
            scheduler.class_name,
            ", ".join(scheduler.sigma_spacings),
            ", ".join(scheduler.takes),
            scheduler.summary,
        )
    stdout().print(table)
    say("others: diffusers:CLASS, where diffusers is installed")


def _print_schedule(name: str, schedule: "Schedule") -> None:
    say(
        f"{name}: {schedule.num_inference_steps} evaluations of the U-Net, "
        f"latents of {schedule.variance} variance, first noise times "
        f"{schedule.init_noise_sigma:.4f}"
    )
    say("step  timestep     sigma")
    for index, timestep in enumerate(schedule.timesteps):
        say(f"{index + 1:4}  {timestep:8.3f}  {schedule.sigmas[index]:8.4f}")
    say(f" end            {schedule.sigmas[-1]:10.4f}")
