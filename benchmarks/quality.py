"""What every format and precision costs in pictures: the demo model exported to each, and judged.

Held-out prompts are drawn on every engine that reads a bundle, from the same noise. The judge says
in what share of the pictures shape, colour, size, place and background are as the prompt said; PSNR
is the median picture's against PyTorch's float32; the size is that of all components.

    python benchmarks/quality.py [--prompts 200] [--only WORD] [--sheet FILE] [--json]
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from triptych.errors import VerificationError
from triptych.exporters.base import CalibrationSettings, CoreMlSettings, ExportSettings
from triptych.parity.report_file import report_document
from triptych.scenes.scene import caption, is_held_out, iter_scenes
from triptych.testing.demo_model import DEMO_MODEL
from triptych.types import FormatName, PaletteBits, Picture, Precision
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.quality import QualityReport, QualityRequest, measure_quality

PRECISIONS: Mapping[FormatName, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8", "int8-dynamic", "int4"),
    "openvino": ("fp32", "bf16", "int8", "int8-dynamic", "hybrid", "int4"),
    "coreml": ("fp32", "fp16", "int8"),
}
PALETTES: tuple[PaletteBits, ...] = (8, 6, 4, 2, 1)
ENGINES = ("onnxruntime", "openvino", "coreml-reference")
REFERENCE = "PyTorch fp32"
SHEET_PROMPTS = 8
PNG_COLORS = 256  # a palette's worth: half the size in a repository
CALIBRATION_PROMPTS = 8


def variants() -> Iterator[tuple[str, FormatName, ExportSettings]]:
    """Every export, with a name for its row."""
    scenes = [scene for scene in iter_scenes() if not is_held_out(scene)]
    spread = scenes[:: len(scenes) // CALIBRATION_PROMPTS][:CALIBRATION_PROMPTS]
    for to, precisions in PRECISIONS.items():
        for precision in precisions:
            settings = ExportSettings(precision=precision)
            if precision == "hybrid":
                prompts = tuple(map(caption, spread))
                settings = replace(settings, calibration=CalibrationSettings(prompts=prompts))
            yield f"{to} {precision}", to, settings
    for bits in PALETTES:
        coreml = CoreMlSettings(palette_bits=bits)
        yield f"coreml palette{bits}", "coreml", ExportSettings(precision="fp16", coreml=coreml)


def export_all(folder: Path, *, only: str) -> tuple[list[Path], dict[str, str]]:
    """A bundle of every variant whose name has the word, in a folder that has its name.

    Returns:
        The bundles; and by name, why others were refused: too far from PyTorch for their class.
    """
    bundles, refused = [], {}
    for name, to, settings in variants():
        if only not in name:
            continue
        note(f"exporting {name}")
        request = ExportRequest(
            checkpoint=DEMO_MODEL,
            output=folder / "export",
            formats=[to],
            settings=settings,
            measure_steps=0,
        )
        try:
            bundles.append(export_bundles(request)[to].rename(folder / name))
        except VerificationError as error:
            refused[name] = str(error)
            note(f"refused: {error}")
    return bundles, refused


def draw_sheet(pictures: Mapping[str, list[Picture]]) -> Picture:
    """A row for each bundle, named, of the first prompts' pictures at half their size."""
    margin_px, edge_px, gap_px = 270, 64, 3
    columns = len(next(iter(pictures.values())))
    size = (margin_px + columns * (edge_px + gap_px), len(pictures) * (edge_px + gap_px))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, line) in enumerate(pictures.items()):
        top = row * (edge_px + gap_px)
        draw.text((6, top + 24), name, fill="black", font=ImageFont.load_default(size=14))
        for column, picture in enumerate(line):
            small = Image.fromarray(picture).resize((edge_px, edge_px), Image.Resampling.BOX)
            sheet.paste(small, (margin_px + column * (edge_px + gap_px), top))
    return np.asarray(sheet)


def markdown(report: QualityReport, *, names: list[str]) -> str:
    """The table of docs/quality.md."""
    headings = ("", "MB", "shape", "colour", "size", "place", "background", "all", "PSNR, dB")
    lines = [f"| {' | '.join(headings)} |", "|---" + "|---:" * 8 + "|"]
    for name, row in zip(names, report.rows, strict=True):
        parts = row.adherence
        shares = (parts.shape, parts.color, parts.size, parts.place, parts.background, parts.whole)
        psnr = "" if row.psnr_db is None or name == REFERENCE else f"{row.psnr_db:.1f}"
        cells = (name, f"{row.size_bytes / 1e6:.1f}", *(f"{share:.1%}" for share in shares), psnr)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def note(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Export, draw, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=200, help="held-out ones to draw")
    parser.add_argument("--only", default="", metavar="WORD", help="variants with it, such as onnx")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="the first pictures, as a PNG")
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args()

    pictures: defaultdict[int, list[Picture]] = defaultdict(list)
    with TemporaryDirectory() as scratch:
        bundles, refused = export_all(Path(scratch), only=wishes.only)

        def keep(row: int, index: int, picture: Picture) -> None:
            if index < SHEET_PROMPTS:
                pictures[row].append(picture)
            if index == 0:
                note(f"drawing, row {row + 1}")

        request = QualityRequest(
            bundles=bundles,
            runtimes=ENGINES,
            reference=DEMO_MODEL,
            num_prompts=wishes.prompts,
        )
        found = measure_quality(request, report=lambda _, __: None, on_picture=keep)
    names = [REFERENCE, *(f"{row.path.name}, {row.runtime}" for row in found.rows[1:])]
    if wishes.sheet is not None:
        rows = {name: pictures[number] for number, name in enumerate(names)}
        sheet = Image.fromarray(draw_sheet(rows))
        sheet.quantize(PNG_COLORS).save(wishes.sheet, optimize=True)
    if wishes.json:
        print(json.dumps({"report": report_document(found), "refused": refused}))
        return
    print(markdown(found, names=names))
    for name, why in refused.items():
        print(f"\n{name} was refused at export: {why}")


if __name__ == "__main__":
    main()
