"""Options that choose a scheduler, the same in every command that has them."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from triptych.sampling.scheduler_config import SigmaSpacing

if TYPE_CHECKING:
    from triptych.sampling.schedulers import SchedulerChoice

SchedulerOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="NAME",
        help="One of `triptych schedulers`, or diffusers:CLASS where diffusers is installed. "
        "Default: the bundle's.",
    ),
]

SigmaSpacingOption: TypeAlias = Annotated[
    SigmaSpacing | None,
    typer.Option("--sigmas", help="How noise levels are spaced. Default: the bundle's config's."),
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
    sigma_spacing: SigmaSpacing | None,
    timesteps: str,
    sigma_values: str,
    eta: float,
) -> "SchedulerChoice":
    """What the options choose.

    Raises:
        typer.BadParameter: something in a list that is no number.
    """
    from triptych.sampling.schedulers import SchedulerChoice

    return SchedulerChoice(
        name=name,
        sigma_spacing=sigma_spacing,
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
