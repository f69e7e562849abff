"""What exporting a full-size SDXL takes of memory, time and disk, beside other exporters.

All in one go on one checkpoint, so that the figures can be divided by each other. Everything is
exported with verification; the others check what they check by default.

    python benchmarks/export.py [--checkpoint FOLDER] [--only NAME ...] [--json FILE]

Without --checkpoint one of random weights and published size is made: 6.9 GB. The scratch folder
needs 40 GB. An exporter that takes more than --memory-gib is stopped, and its row says so.
"""

import argparse
import json
import os
import platform
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from process_tree import Measured, measure
from typing_extensions import override

PACKAGES = (
    "torch", "diffusers", "optimum-onnx", "optimum-intel", "openvino", "onnxruntime", "coremltools"
)  # fmt: skip
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One exporter's way to one format.

    Attributes:
        name: of its row.
        arguments: of Python; OUT stands for the output folder.
    """

    name: str
    arguments: tuple[str, ...]


def candidates(checkpoint: Path) -> list[Candidate]:
    """Ours and others', each pair next to each other."""
    ours = ("-m", "triptych.cli", "export", str(checkpoint), "OUT")
    optimum = ("-m", "optimum.commands.optimum_cli", "export")
    model = ("--model", str(checkpoint), "--task", "text-to-image")
    plain = (__file__, "--plain-coreml", str(checkpoint), "OUT")
    return [
        Candidate(name="triptych onnx fp16", arguments=(*ours, "--to", "onnx", *FP16)),
        Candidate(name="triptych onnx fp32", arguments=(*ours, "--to", "onnx")),
        Candidate(
            name="triptych onnx fp16 in place",
            arguments=(*ours, "--to", "onnx", *FP16, "--weights-in-place"),
        ),
        Candidate(name="optimum-cli onnx", arguments=(*optimum, "onnx", *model, "OUT")),
        Candidate(name="triptych openvino fp16", arguments=(*ours, "--to", "openvino", *FP16)),
        Candidate(
            name="optimum-cli openvino fp16",
            arguments=(*optimum, "openvino", *model, "--weight-format", "fp16", "OUT"),
        ),
        *(
            Candidate(
                name=f"triptych coreml fp16 {size}",
                arguments=(*ours, "--to", "coreml", *FP16, *_size(size)),
            )
            for size in (512, 1024)
        ),
        Candidate(name="plain coreml fp16 512, U-Net alone", arguments=(*plain, "512")),
    ]


FP16 = ("--precision", "fp16")


def _size(size_px: int) -> tuple[str, ...]:
    return ("--height-px", str(size_px), "--width-px", str(size_px))


def export_plainly(checkpoint: Path, output: Path, size_px: int) -> None:
    """What one does who reads coremltools' guide: load in float32, trace, convert, save."""
    import coremltools
    import numpy as np
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)
    unet.requires_grad_(False)  # else the tracer refuses it

    class Plain(torch.nn.Module):
        @override
        def forward(
            self,
            sample: torch.Tensor,
            timestep: torch.Tensor,
            hidden_states: torch.Tensor,
            text_embeds: torch.Tensor,
            time_ids: torch.Tensor,
        ) -> torch.Tensor:
            added = {"text_embeds": text_embeds, "time_ids": time_ids}
            prediction: torch.Tensor = unet(
                sample, timestep, hidden_states, added_cond_kwargs=added, return_dict=False
            )[0]
            return prediction

    edge = size_px // 8
    shapes = ((2, 4, edge, edge), (2,), (2, 77, 2048), (2, 1280), (2, 6))
    examples = tuple(torch.zeros(shape) for shape in shapes)
    traced = torch.jit.trace(Plain().eval(), examples, check_trace=False)  # type: ignore[no-untyped-call]
    model = coremltools.convert(
        traced,
        convert_to="mlprogram",
        inputs=[coremltools.TensorType(shape=shape, dtype=np.float32) for shape in shapes],
        minimum_deployment_target=coremltools.target.macOS13,
        skip_model_load=True,
    )
    output.mkdir(parents=True)
    model.save(str(output / "unet.mlpackage"))


def folder_bytes(folder: Path, *, besides: Path) -> int:
    """Of a folder's files on the disk; those that the checkpoint has too take none."""
    kept = {file.stat().st_ino for file in besides.rglob("*") if file.is_file()}
    files = (file.stat() for file in folder.rglob("*") if file.is_file())
    return sum(file.st_size for file in files if file.st_ino not in kept)


def run(
    candidate: Candidate, scratch: Path, checkpoint: Path, options: argparse.Namespace
) -> tuple[Measured, int]:
    """Measure one exporter, and remove what it wrote unless that is to be kept."""
    output = scratch / candidate.name.replace(" ", "-")
    command = [argument.replace("OUT", str(output)) for argument in candidate.arguments]
    measured = measure(
        [sys.executable, *command],
        log=scratch / f"{candidate.name.replace(' ', '-')}.log",
        memory_limit_bytes=int(options.memory_gib * 2**30),
        seconds_limit=options.minutes * 60,
        environment=OFFLINE,
    )
    size = folder_bytes(output, besides=checkpoint) if output.is_dir() else 0
    if not options.keep:
        shutil.rmtree(output, ignore_errors=True)
    return measured, size


def scratch_folder(options: argparse.Namespace) -> AbstractContextManager[str]:
    """Where everything is written: removed at the end, unless it is to be kept."""
    if options.keep:
        return nullcontext(str(options.scratch))
    return TemporaryDirectory(dir=options.scratch, prefix="bench-export-")


def row_text(name: str, measured: Measured, size: int) -> str:
    """A row of the table, in Markdown."""
    return (
        f"| {name} | {measured.peak_bytes / 2**30:.2f} | {measured.seconds:.0f} | "
        f"{size / 1e9:.2f} | {measured.written_bytes / 1e9:.2f} | {measured.ending or 'done'} |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the models in --scratch")
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("--memory-gib", type=float, default=19.0)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plain-coreml", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain_coreml:
        checkpoint, output, size_px = options.plain_coreml
        export_plainly(Path(checkpoint), Path(output), int(size_px))
        return
    if options.keep and options.scratch is None:
        parser.error("--keep needs --scratch, a folder that is there")
    with scratch_folder(options) as folder:
        scratch = Path(folder)
        checkpoint = options.checkpoint
        if checkpoint is None:
            from triptych.testing import full_size_checkpoint

            checkpoint = full_size_checkpoint(scratch / "checkpoint")
        versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        print(f"{platform.machine()}, {os.cpu_count()} cores; {versions}\n")
        print("| exporter | peak private GiB | seconds | bundle GB | written GB | ending |")
        print("|---|---|---|---|---|---|", flush=True)
        found = {}
        for candidate in candidates(checkpoint.absolute()):
            if options.only and candidate.name not in options.only:
                continue
            measured, size = run(candidate, scratch, checkpoint, options)
            found[candidate.name] = {**asdict(measured), "bundle_bytes": size}
            print(row_text(candidate.name, measured, size), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
