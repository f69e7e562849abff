"""One step, a cold start and the memory of a run, beside other pipelines on the same weights.

Every contestant is a process of its own, one after the other: text encoders, then a few steps at
guidance 5 without a picture. None finds its model in the system's file cache. A ratio below 1 means
that triptych takes less than the other. The same network in the same engine is up to 10 % faster or
slower from one process to the next; --repeat 3 goes through all of them three times, and the
medians are compared. For Linux.

    python benchmarks/peers.py --checkpoint FOLDER --onnx BUNDLE --openvino BUNDLE [--size 512]

The bundles are ours, which the other libraries open too; --optimum-onnx and --optimum-openvino name
others, such as what optimum-cli wrote, to be run by optimum and GenAI in their place.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TypeAlias

from process_tree import measure

PROMPT = "a photo of an astronaut riding a horse on the moon"
GUIDANCE = 5.0
STARTED = "PEERS_STARTED"
PACKAGES = ("torch", "diffusers", "optimum-onnx", "optimum-intel", "openvino", "openvino-genai",
            "onnxruntime")  # fmt: skip
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}

Tick: TypeAlias = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a contestant is to do.

    Attributes:
        folder: the model.
        precision: fp32 or bf16.
        steps: how many.
        size_px: of both edges.
    """

    folder: Path
    precision: str
    steps: int
    size_px: int


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One pipeline at one precision.

    Attributes:
        name: of its row.
        worker: what runs it.
        rival: the name of the triptych row that it is compared with; empty for those themselves.
        run: its model and precision.
    """

    name: str
    worker: str
    rival: str
    run: Run


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run took, or several.

    Attributes:
        cold_start: seconds from the start of the process to the first latents.
        step: median seconds of the later steps.
        peak_bytes: of private memory.
        steps: the median of each run, where there were several.
    """

    cold_start: float
    step: float
    peak_bytes: int
    steps: tuple[float, ...] = ()


def run_triptych(runtime_name: str, *, map_weights: bool = True) -> Callable[[Run, Tick], None]:
    """Our pipeline on one engine."""

    def run(asked: Run, tick: Tick) -> None:
        from triptych.bundle.bundle import open_bundle
        from triptych.runtimes import make_runtime
        from triptych.runtimes.base import RuntimeSettings
        from triptych.sampling.pipeline import denoise, prepare
        from triptych.sampling.prompt_encoding import Prompts
        from triptych.sampling.settings import Settings

        bundle = open_bundle(asked.folder)
        chosen = RuntimeSettings(
            precision="bf16" if asked.precision == "bf16" else None, map_weights=map_weights
        )
        runtime = make_runtime(runtime_name, chosen)
        settings = Settings(
            prompts=Prompts(prompt=(PROMPT,)),
            num_inference_steps=asked.steps,
            guidance_scale=GUIDANCE,
            height_px=asked.size_px,
            width_px=asked.size_px,
        )
        for _ in denoise(bundle, runtime, prepare(bundle, runtime, settings)):
            tick()

    return run


def run_optimum_openvino(asked: Run, tick: Tick) -> None:
    """optimum-intel's pipeline."""
    from optimum.intel import OVStableDiffusionXLPipeline

    hint = {"fp32": "f32", "bf16": "bf16"}[asked.precision]
    pipeline = OVStableDiffusionXLPipeline.from_pretrained(
        asked.folder, ov_config={"INFERENCE_PRECISION_HINT": hint, "CACHE_DIR": ""}
    )
    _run_pipeline(pipeline, asked, tick)


def run_optimum_onnx(asked: Run, tick: Tick) -> None:
    """optimum-onnx's pipeline."""
    from optimum.onnxruntime import ORTStableDiffusionXLPipeline

    pipeline = ORTStableDiffusionXLPipeline.from_pretrained(
        asked.folder, provider="CPUExecutionProvider"
    )
    _run_pipeline(pipeline, asked, tick)


def run_diffusers(asked: Run, tick: Tick) -> None:
    """Diffusers' pipeline in PyTorch."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[asked.precision]
    pipeline = StableDiffusionXLPipeline.from_pretrained(asked.folder, torch_dtype=dtype)
    _run_pipeline(pipeline, asked, tick)


def _run_pipeline(pipeline: Callable[..., object], asked: Run, tick: Tick) -> None:
    def told(_pipeline: object, _step: int, _timestep: object, tensors: object) -> object:
        tick()
        return tensors

    pipeline(
        PROMPT,
        num_inference_steps=asked.steps,
        guidance_scale=GUIDANCE,
        height=asked.size_px,
        width=asked.size_px,
        output_type="latent",
        callback_on_step_end=told,
    )


def run_genai(asked: Run, tick: Tick) -> None:
    """OpenVINO GenAI's pipeline. It decodes a picture at the end, after the last tick."""
    import openvino_genai

    hint = {"fp32": "f32", "bf16": "bf16"}[asked.precision]
    pipeline = openvino_genai.Text2ImagePipeline(
        str(asked.folder), "CPU", INFERENCE_PRECISION_HINT=hint
    )

    def told(_step: int, _steps: int, _latents: object) -> bool:
        tick()
        return False

    pipeline.generate(
        PROMPT,
        num_inference_steps=asked.steps,
        guidance_scale=GUIDANCE,
        height=asked.size_px,
        width=asked.size_px,
        callback=told,
    )


WORKERS: Mapping[str, Callable[[Run, Tick], None]] = {
    "triptych-openvino": run_triptych("openvino"),
    "triptych-onnxruntime": run_triptych("onnxruntime"),
    "triptych-onnxruntime-repacked": run_triptych("onnxruntime", map_weights=False),
    "optimum-openvino": run_optimum_openvino,
    "optimum-onnxruntime": run_optimum_onnx,
    "genai": run_genai,
    "diffusers": run_diffusers,
}


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """Who runs, ours first of each group."""
    found = []

    def add(worker: str, folder: Path | None, precision: str, rival: str = "") -> str:
        name = f"{worker} {precision}"
        if folder is not None:
            run = Run(
                folder=folder.absolute(),
                precision=precision,
                steps=options.steps,
                size_px=options.size,
            )
            found.append(Contestant(name=name, worker=worker, rival=rival, run=run))
        return name

    ir = options.optimum_openvino or options.openvino
    for precision in ("fp32", "bf16"):
        ours = add("triptych-openvino", options.openvino, precision)
        add("optimum-openvino", ir, precision, ours)
        add("genai", ir, precision, ours)
        add("diffusers", options.checkpoint, precision, ours)
    add("triptych-onnxruntime-repacked", options.onnx, "fp32")
    ours = add("triptych-onnxruntime", options.onnx, "fp32")
    add("optimum-onnxruntime", options.optimum_onnx or options.onnx, "fp32", ours)
    return [one for one in found if not options.only or one.name in options.only]


def compete(contestant: Contestant, log: Path) -> Result | str:
    """Run one in a process of its own; what it said last, where it failed."""
    ticks = log.with_suffix(".json")
    asked = {**asdict(contestant.run), "folder": str(contestant.run.folder)}
    measured = measure(
        [sys.executable, __file__, "--worker", contestant.worker, json.dumps(asked), str(ticks)],
        log=log,
        memory_limit_bytes=22 * 2**30,
        seconds_limit=1800,
        environment={**OFFLINE, STARTED: repr(time.time())},
    )
    if measured.exit_code:
        return measured.ending.splitlines()[-1] if measured.ending else "failed"
    seconds = json.loads(ticks.read_text())
    steps = [after - before for before, after in pairwise(seconds)]
    return Result(
        cold_start=seconds[0], step=median(steps or seconds), peak_bytes=measured.peak_bytes
    )


def work(worker: str, asked: str, ticks: Path) -> None:
    """A contestant's process: note when each step was done, since the process was started."""
    fields = json.loads(asked)
    run = Run(**{**fields, "folder": Path(fields["folder"])})
    started = float(os.environ[STARTED])
    seconds: list[float] = []
    WORKERS[worker](run, lambda: seconds.append(time.time() - started))
    ticks.write_text(json.dumps(seconds))


def evict(folder: Path) -> None:
    """Have the system forget what it keeps of a model's files, so that everybody starts cold."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compete_repeatedly(
    found: list[Contestant], repeats: int, scratch: Path
) -> dict[str, Result | str]:
    """Everybody once, then everybody again; who fails once is not asked again."""
    runs: dict[str, list[Result]] = {}
    failures: dict[str, Result | str] = {}
    for turn in range(repeats):
        for contestant in found:
            name = contestant.name
            if name in failures:
                continue
            evict(contestant.run.folder)
            result = compete(contestant, scratch / f"{name.replace(' ', '-')}.log")
            print(f"{turn + 1} of {repeats}, {name}: {result}", file=sys.stderr, flush=True)
            if isinstance(result, Result):
                runs.setdefault(name, []).append(result)
            else:
                failures[name] = result
    return {**{name: middle(results) for name, results in runs.items()}, **failures}


def middle(results: list[Result]) -> Result:
    """The medians of several runs' seconds, and the most memory."""
    return Result(
        cold_start=median(result.cold_start for result in results),
        step=median(result.step for result in results),
        peak_bytes=max(result.peak_bytes for result in results),
        steps=tuple(result.step for result in results),
    )


def row_text(contestant: Contestant, result: Result | str, ours: Result | str | None) -> str:
    """A row of the table, in Markdown: figures, and ours divided by theirs."""
    if isinstance(result, str):
        return f"| {contestant.name} | {result} |||||"
    ratios = ("", "")
    if isinstance(ours, Result):
        ratios = (
            f"{ours.step / result.step:.2f}",
            f"{ours.cold_start / result.cold_start:.2f}, {ours.peak_bytes / result.peak_bytes:.2f}",
        )
    ends = f" ({min(result.steps):.2f} to {max(result.steps):.2f})" if result.steps[1:] else ""
    return (
        f"| {contestant.name} | {result.step:.2f}{ends} | {result.cold_start:.1f} | "
        f"{result.peak_bytes / 2**30:.2f} | {ratios[0]} | {ratios[1]} |"
    )


def main() -> None:
    """Run everybody and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("checkpoint", "onnx", "openvino", "optimum-onnx", "optimum-openvino"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=1, metavar="TIMES")
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker, asked, ticks = options.worker
        work(worker, asked, Path(ticks))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{os.cpu_count()} cores, {options.size} px, {options.steps} steps; {versions}\n")
    print("| pipeline | s a step | s to first latents | peak private GiB | step: ours / theirs "
          "| start, memory: ours / theirs |")  # fmt: skip
    print("|---|---|---|---|---|---|", flush=True)
    found = contestants(options)
    with TemporaryDirectory(prefix="peers-") as scratch:
        results = compete_repeatedly(found, options.repeat, Path(scratch))
    for contestant in found:
        print(row_text(contestant, results[contestant.name], results.get(contestant.rival)))
    if options.json:
        document = {
            name: asdict(result) for name, result in results.items() if isinstance(result, Result)
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
