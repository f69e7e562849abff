"""Options that choose a scheduler, the same in every command that has them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from triptych.errors import UsageError

if TYPE_CHECKING:
    from triptych.sampling.schedulers import SchedulerChoice

SigmasName: TypeAlias = Literal["karras", "exponential", "beta", "lu", "edm", "legacy-ddpm"]
"""Spacings that schedulers have of their own, then sgm's discretizations."""

SchedulerOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="NAME",
        help="One of `triptych schedulers`, or diffusers:CLASS where diffusers is installed. "
        "Default: the bundle's.",
    ),
]

SigmasOption: TypeAlias = Annotated[
    SigmasName | None,
    typer.Option(
        "--sigmas",
        help="How noise levels are spaced; edm and legacy-ddpm are sgm's, for any scheduler that "
        "takes sigmas. Default: the bundle's config's.",
    ),
]

SigmaMinOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--sigma-min", help="Of --sigmas edm. Default: the training schedule's."),
]

SigmaMaxOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--sigma-max", help="Of --sigmas edm. Default: the training schedule's."),
]

RhoOption: TypeAlias = Annotated[
    float | None, typer.Option("--rho", help="Of --sigmas edm. Default: 7.")
]

TimestepsOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--timesteps", metavar="999,750,...", help="Go through these instead of a number of steps."
    ),
]

SigmaValuesOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--sigma-values",
        metavar="14.6,6.3,...,0",
        help="Go through these noise levels instead of a number of steps.",
    ),
]

EtaOption: TypeAlias = Annotated[
    float, typer.Option("--eta", min=0, max=1, help="Share of noise that ddim and tcd add.")
]


def scheduler_choice(
    *,
    name: str | None,
    sigmas: SigmasName | None,
    timesteps: str,
    sigma_values: str,
    edm: Mapping[str, float | None],
    eta: float,
) -> "SchedulerChoice":
    """What the options choose; `edm` are those of EdmDiscretization, by its names.

    Raises:
        typer.BadParameter: something in a list that is no number.
        UsageError: an option of EDM without it.
    """
    from triptych.sampling.schedulers import (
        EdmDiscretization,
        LegacyDdpmDiscretization,
        SchedulerChoice,
    )

    given = {option: value for option, value in edm.items() if value is not None}
    discretization: EdmDiscretization | LegacyDdpmDiscretization | None = None
    if sigmas == "edm":
        discretization = EdmDiscretization(**given)
    elif given:
        option = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{option}: got one without --sigmas edm, want both.")
    elif sigmas == "legacy-ddpm":
        discretization = LegacyDdpmDiscretization()
    return SchedulerChoice(
        name=name,
        sigma_spacing=None if sigmas == "edm" or sigmas == "legacy-ddpm" else sigmas,
        discretization=discretization,
        timesteps=numbers_from(timesteps, "--timesteps"),
        sigmas=numbers_from(sigma_values, "--sigma-values"),
        eta=float(eta),
    )


def numbers_from(text: str, option: str) -> tuple[float, ...]:
    """Numbers from an option's text, with commas between them.

    Raises:
        typer.BadParameter: something in it is no number.
    """
    try:
        return tuple(float(number) for number in text.split(",")) if text else ()
    except ValueError as error:
        raise typer.BadParameter(
            f"{option}: got {text!r}, want numbers with commas between."
        ) from error
