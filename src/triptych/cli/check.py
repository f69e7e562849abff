"""triptych check."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from triptych.cli.console import json_text, note, print_json, progress_bars, say, stdout
from triptych.cli.options import (
    CacheOption,
    ComputeUnitsOption,
    DeviceOption,
    LowMemoryOption,
    MapWeightsOption,
    PrecisionOption,
    PreviewDecoderOption,
    ThreadsOption,
    VariantOption,
    runtime_settings,
)
from triptych.errors import BackendError

if TYPE_CHECKING:
    from triptych.parity.report import CandidateReport, ParityReport
    from triptych.runtimes.base import Execution
    from triptych.workflows.check import CheckOutcome
    from triptych.workflows.record import RunRequest

COLOURS = {"passed": "green", "warned": "yellow", "failed": "bold red", "not_run": "yellow"}
"""Of verdicts."""


def check(
    bundle: Annotated[
        Path,
        typer.Argument(help="The bundle to check, or a folder with one for each format."),
    ],
    *,
    reference: Annotated[
        Path,
        typer.Option("--reference", help="The checkpoint it came from, or a golden of it."),
    ],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            metavar="NAME[:DEVICE]",
            help="Engine; several are compared with each other too. Default: for each bundle the "
            "one that reads its format.",
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="NAME", help="An engine whose absence is a failure; checks it too."
        ),
    ] = None,
    judged_as: Annotated[
        Literal["auto", "fp32", "fp16", "bf16", "int8", "int8-dynamic", "hybrid", "int4"],
        typer.Option("--class", help="Judge in this class instead of what the bundle declares."),
    ] = "auto",
    budget: Annotated[
        Path | None,
        typer.Option("--budget", metavar="FILE", help="Limits for what has no measured floor."),
    ] = None,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Write what was measured into --budget, for review."),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Run the reference on the candidate's latents too."),
    ] = False,
    image_metric: Annotated[
        list[str] | None,
        typer.Option(
            "--image-metric",
            metavar="MODULE:FUNCTION",
            help="Measure the picture by a function of yours too; it decides nothing.",
        ),
    ] = None,
    num_inference_steps: Annotated[
        int | None,
        typer.Option(
            "--num-inference-steps", min=1, help="Of the trajectory, for a checkpoint. Default: 8."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of its noise, for a checkpoint. Default: 0.")
    ] = None,
    device: DeviceOption = None,
    compute_units: ComputeUnitsOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheOption = None,
    num_threads: ThreadsOption = None,
    map_weights: MapWeightsOption = True,
    low_memory: LowMemoryOption = False,
    reference_device: Annotated[
        str | None,
        typer.Option("--reference-device", help="cpu, cuda or mps, for a checkpoint."),
    ] = None,
    profile: Annotated[
        Literal["quick", "full"],
        typer.Option(
            "--profile",
            help="For a checkpoint: full also measures what fp16 and bf16 cost in PyTorch, where a "
            "component needs it.",
        ),
    ] = "full",
    preview_decoder: PreviewDecoderOption = None,
    variant: VariantOption = None,
    json: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write one JSON document; - is stdout."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page to look at.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write a report for CI.")
    ] = None,
) -> None:
    """Check bundles against the checkpoint they came from, component by component, step by step.

    Against a golden, which `triptych record` wrote, neither torch nor the checkpoint is needed.

    Exit codes: 0 everything passed, 1 a check failed or did not run, 3 the two cannot be compared,
    4 an engine is missing that was required, or all are.
    """
    from triptych.runtimes.base import RuntimeSettings
    from triptych.workflows.check import CheckRequest, check_bundle

    named, required = tuple(runtime or ()), tuple(require or ())
    request = CheckRequest(
        bundle=bundle,
        reference=reference,
        runtimes=(*named, *(name for name in required if name not in named)),
        runtime_settings=runtime_settings(
            device=device,
            compute_units=compute_units,
            precision=precision,
            num_threads=num_threads,
            cache_dir=cache_dir,
            map_weights=map_weights,
            low_memory=low_memory,
        ),
        judged_as=None if judged_as == "auto" else judged_as,
        budget=budget,
        accept=accept,
        explain=explain,
        pictures=html is not None,
        image_metrics=tuple(image_metric or ()),
        reference_settings=RuntimeSettings(device=reference_device),
        run=_run(num_inference_steps, seed),
        profile=profile,
        variant=variant,
        preview_decoder=preview_decoder,
        command=("triptych", *sys.argv[1:]),
    )
    with progress_bars() as bars:
        task = bars.add_task("checking", total=None, stage="")
        outcome = check_bundle(request, report=lambda stage: bars.update(task, stage=stage))
        bars.update(task, total=1, completed=1, stage="done")
    _write(outcome, json=json, html=html, junit=junit)
    raise typer.Exit(_exit_code(outcome.report, required))


def _run(num_inference_steps: int | None, seed: int | None) -> "RunRequest | None":
    """What the reference draws; None where nothing was said about it."""
    from triptych.workflows.record import RunRequest

    if num_inference_steps is None and seed is None:
        return None
    usual = RunRequest()
    return RunRequest(
        num_inference_steps=num_inference_steps or usual.num_inference_steps,
        seed=usual.seed if seed is None else seed,
    )


def _write(
    outcome: "CheckOutcome", *, json: str | None, html: Path | None, junit: Path | None
) -> None:
    """Every report that was asked for; the one for people, unless stdout is a document."""
    from triptych.bundle.store import write_file
    from triptych.parity.report_file import report_document

    if json == "-":
        print_json(report_document(outcome.report))
    else:
        print_report(outcome.report)
    if json is not None and json != "-":
        write_file(Path(json), json_text(report_document(outcome.report)).encode())
    if html is not None:
        from triptych.parity.html.page import report_page

        write_file(html, report_page(outcome.report, pictures=outcome.pictures).encode())
    if junit is not None:
        from triptych.parity.junit import junit_xml

        write_file(junit, junit_xml(outcome.report).encode())


def _exit_code(report: "ParityReport", required: tuple[str, ...]) -> int:
    absent = [
        candidate.runtime.partition(":")[0]
        for candidate in report.candidates
        if candidate.unavailable
    ]
    for candidate in report.candidates:
        if candidate.unavailable:
            note(f"{candidate.runtime}: not run. {candidate.unavailable}")
    engines = {name.partition(":")[0] for name in required}
    if engines & set(absent) or len(absent) == len(report.candidates):
        return BackendError.exit_code
    return 0 if report.verdict in ("passed", "warned") else 1


def print_report(report: "ParityReport") -> None:
    """Print a line for each stage and component of every candidate, what ran, and the verdict."""
    from triptych.parity.lines import summary_lines

    for candidate in report.candidates:
        _print_candidate(candidate)
    for line in summary_lines(report):
        say(line)
    for candidate in report.candidates:
        for hint in candidate.hints:
            say(f"{candidate.runtime}: perhaps {hint.cause} ({hint.evidence})")
            say(f"  to confirm: {hint.confirm}")
    rows = [row for candidate in report.candidates for row in candidate.rows]
    passed = sum(row.verdict in ("passed", "warned") for row in rows)
    _say_verdict(report.verdict, f": {passed} of {len(rows)} comparisons")


def _print_candidate(report: "CandidateReport") -> None:
    from rich.markup import escape

    from triptych.parity.lines import candidate_lines

    console = stdout()
    ran = dict.fromkeys(_execution_text(found) for found in report.executions.values())
    say(f"{report.runtime}, {report.format} bundle: {'; '.join(ran) or 'not run'}")
    for row, line in candidate_lines(report):
        reason = f"  {row.reason}" if row.reason else ""
        word = row.verdict.upper().replace("_", " ")
        console.print(
            f"  {escape(line)}  [{COLOURS[row.verdict]}]{word}[/]{escape(reason)}", soft_wrap=True
        )


def _say_verdict(verdict: str, rest: str) -> None:
    stdout().print(f"[{COLOURS[verdict]}]{verdict.replace('_', ' ')}[/]{rest}", soft_wrap=True)


def _execution_text(execution: "Execution") -> str:
    certified = execution.details.get("certifies")
    remark = f"; certifies {certified}" if certified else ""
    return (
        f"{execution.runtime} {execution.version}, {execution.device}, "
        f"{execution.precision}{remark}"
    )
