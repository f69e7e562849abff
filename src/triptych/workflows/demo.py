"""The demo: everything triptych does, once, on the trained model that comes along."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

import numpy as np

from triptych.bundle.store import replace_folder
from triptych.parity.html.page import report_page
from triptych.parity.report import ParityReport
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.testing.demo_model import demo_checkpoint
from triptych.types import Array, ComponentName, FormatName, ImagePixels
from triptych.workflows.check import CheckOutcome, CheckRequest, check_bundle
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.record import RunRequest
from triptych.workflows.run_folder import RUN_FILE
from triptych.workflows.sample import sample
from triptych.workflows.sample_request import SampleRequest

DemoReporter: TypeAlias = Callable[[str, float], None]
"""Told the stage in words and how far the demo is, 0 to 1."""

_CHECKPOINT = "checkpoint"
_CONTACT_SHEET = "contact_sheet.png"
_REPORT_PAGE = "report.html"
DEMO_PROMPT = "a large orange ring at the top on a purple background"
DEMO_STEPS = 32
_SAVE_STEPS = (1, 4, 8, 16, 32)
_MARGIN_PX, _LABEL_PX, _GAP_PX = 170, 28, 6

_BACKENDS: Mapping[FormatName, tuple[str, str]] = {
    "diffusers": ("PyTorch", "pytorch"),
    "onnx": ("ONNX Runtime", "onnxruntime"),
    "openvino": ("OpenVINO", "openvino"),
    "coreml": ("Core ML, interpreted", "coreml-reference"),
}
"""For each format a row of the contact sheet: its label, and the engine that runs it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo left.

    Attributes:
        bundles: by format.
        contact_sheet: one picture of all pictures.
        report_page: the report as a page to look at.
        report: every bundle against PyTorch.
    """

    bundles: Mapping[FormatName, Path]
    contact_sheet: Path
    report_page: Path
    report: ParityReport


def run_demo(output: Path, *, report: DemoReporter) -> DemoResult:
    """Export the demo model, sample on every runtime, draw, check.

    Raises:
        UsageError: the output folder exists and is not an earlier demo's.
        MissingDependencyError: the export extra is not installed.
    """
    with replace_folder(output, overwrite=True, marker=_CONTACT_SHEET) as folder:
        report("writing the checkpoint", 0.02)
        checkpoint = demo_checkpoint(folder / _CHECKPOINT)
        bundles = _export(checkpoint, folder, report)
        sources = {"diffusers": checkpoint, **bundles}
        rows = {
            label: _sample(sources[name], folder, engine, report, 0.6 + 0.05 * number)
            for number, (name, (label, engine)) in enumerate(_BACKENDS.items())
        }
        sheet = draw_contact_sheet(rows, steps=_SAVE_STEPS)
        _save_png(sheet, folder / _CONTACT_SHEET)
        for run_file in folder.glob(f"pictures/*/{RUN_FILE}"):
            _name_final_place(run_file, folder, output)
    outcome = _check(output, report)  # where it lies now: the report names places
    page = report_page(outcome.report, pictures=outcome.pictures)
    (output / _REPORT_PAGE).write_text(page, encoding="utf-8")
    report("done", 1.0)
    return DemoResult(
        bundles={name: output / name for name in bundles},
        contact_sheet=output / _CONTACT_SHEET,
        report_page=output / _REPORT_PAGE,
        report=outcome.report,
    )


def draw_contact_sheet(
    rows: Mapping[str, Mapping[int, ImagePixels]], *, steps: Sequence[int]
) -> Array:
    """One picture of many: a row for each runtime, a column for each step, both labelled."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = next(iter(rows.values()))[steps[0]].shape[1:3]
    size = (
        _MARGIN_PX + len(steps) * (width + _GAP_PX),
        _LABEL_PX + len(rows) * (height + _GAP_PX),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for column, step in enumerate(steps):
        left = _MARGIN_PX + column * (width + _GAP_PX)
        draw.text((left, 5), f"step {step}", fill="black", font=font)
        for row, pictures in enumerate(rows.values()):
            top = _LABEL_PX + row * (height + _GAP_PX)
            sheet.paste(Image.fromarray(pictures[step][0]), (left, top))
    for row, name in enumerate(rows):
        top = _LABEL_PX + row * (height + _GAP_PX)
        draw.text((8, top + height // 2 - 9), name, fill="black", font=font)
    return np.asarray(sheet)


def _export(checkpoint: Path, folder: Path, report: DemoReporter) -> dict[FormatName, Path]:
    done: dict[tuple[FormatName, ComponentName], float] = {}

    def progress(*, to: FormatName, component: ComponentName, stage: str, fraction: float) -> None:
        done[to, component] = fraction
        report(f"exporting to {to}: {component} {stage}", 0.1 + 0.5 / 15 * sum(done.values()))

    request = ExportRequest(
        checkpoint=checkpoint, output=folder, formats=["onnx", "openvino", "coreml"]
    )
    return export_bundles(request, progress=progress)


def _sample(
    bundle: Path, folder: Path, runtime: str, report: DemoReporter, fraction: float
) -> Mapping[int, ImagePixels]:
    report(f"sampling on {runtime}", fraction)
    request = SampleRequest(
        bundle=bundle,
        output=folder / "pictures" / runtime,
        settings=Settings(prompts=Prompts(prompt=(DEMO_PROMPT,)), num_inference_steps=DEMO_STEPS),
        save_steps=_SAVE_STEPS,
        runtime=runtime,
        runtime_settings=RuntimeSettings(),
    )
    return sample(request).pixels


def _check(folder: Path, report: DemoReporter) -> CheckOutcome:
    request = CheckRequest(
        bundle=folder,
        reference=folder / _CHECKPOINT,
        runtimes=[engine for name, (_, engine) in _BACKENDS.items() if name != "diffusers"],
        run=RunRequest(prompts=Prompts(prompt=(DEMO_PROMPT,)), num_inference_steps=DEMO_STEPS),
        pictures=True,
    )
    return check_bundle(request, report=lambda stage: report(f"checking {stage}", 0.85))


def _name_final_place(run_file: Path, folder: Path, output: Path) -> None:
    """Say where a run's bundle lies once the demo's folder has its name."""
    run = json.loads(run_file.read_text(encoding="utf-8"))
    run["bundle"]["path"] = str(output / Path(run["bundle"]["path"]).relative_to(folder))
    run_file.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def _save_png(pixels: Array, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)
