"""The `triptych` command. Importing this imports no framework, so that --help is instant."""

import logging
import sys

import typer

import triptych
from triptych.cli.bench import bench
from triptych.cli.bisect import bisect
from triptych.cli.check import check
from triptych.cli.compare import compare
from triptych.cli.compose import compose
from triptych.cli.console import fail
from triptych.cli.demo import demo
from triptych.cli.demo_checkpoint import demo_checkpoint
from triptych.cli.doctor import doctor
from triptych.cli.encode import encode
from triptych.cli.export import export
from triptych.cli.generate import generate
from triptych.cli.inspect import inspect
from triptych.cli.locate import locate
from triptych.cli.precisions import precisions
from triptych.cli.quality import quality
from triptych.cli.record import record
from triptych.cli.sample import sample
from triptych.cli.schedulers import schedulers
from triptych.cli.tiny_checkpoint import tiny_checkpoint
from triptych.errors import TriptychError

app = typer.Typer(
    help="One SDXL checkpoint, three runtimes, one trajectory: export, sample, check.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help"]},
)
for command in (
    compose,
    export,
    encode,
    sample,
    generate,
    schedulers,
    record,
    check,
    compare,
    locate,
    bisect,
    inspect,
    quality,
    bench,
    precisions,
    doctor,
    tiny_checkpoint,
    demo_checkpoint,
    demo,
):
    app.command()(command)


def _print_version(*, asked: bool) -> bool:
    if asked:
        print(triptych.__version__)
        raise typer.Exit
    return asked


@app.callback()
def _options(
    *,
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and exit.",
        is_eager=True,
        callback=lambda asked: _print_version(asked=asked),
    ),
) -> None:
    """One SDXL checkpoint, three runtimes, one trajectory: export, sample, check."""


def main() -> None:
    """Run the command; turn triptych's errors into their messages and exit codes."""
    # diffusers logs which of optimum's distributions it found; no news to anyone here.
    logging.getLogger("diffusers.utils.import_utils").setLevel(logging.ERROR)
    try:
        app()
    except TriptychError as error:
        fail(error)
        sys.exit(error.exit_code)
