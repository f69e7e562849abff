"""triptych generate."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, final

import typer

from triptych.cli.console import note, print_json, progress_bars, say, working
from triptych.cli.options import (
    CacheOption,
    ComputeUnitsOption,
    DeviceOption,
    JsonOption,
    MapWeightsOption,
    PrecisionOption,
    PromptCacheOption,
    RuntimeOption,
    ThreadsOption,
    VariantOption,
    runtime_settings,
)
from triptych.cli.sample_options import (
    GuidanceRescaleOption,
    HeightOption,
    WidthOption,
    steps_from,
)
from triptych.cli.scheduler_options import (
    EtaOption,
    SchedulerOption,
    SigmasOption,
    scheduler_choice,
)
from triptych.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from triptych.workflows.generation.generate import Generation
    from triptych.workflows.generation.painter import Painted


def generate(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle, or a checkpoint.")] = None,
    prompts: Annotated[
        Path | None, typer.Argument(help="Ids and prompts: .json, .jsonl or .csv.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", help="The dataset's folder.")],
    max_inference_steps: Annotated[
        int, typer.Option("--max-inference-steps", min=1, help="Steps of every run.")
    ] = 32,
    save_steps: Annotated[
        str, typer.Option("--save-steps", metavar="1,4,8", help="Whose pictures are kept.")
    ] = "1,4,8,16,32",
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", min=1, help="Of each id, the first so many.")
    ] = 5,
    images_per_prompt: Annotated[int, typer.Option("--images-per-prompt", min=1)] = 1,
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", help="Up to 1: no guidance.")
    ] = 7.5,
    guidance_rescale: GuidanceRescaleOption = 0.0,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", help="For every picture.")
    ] = None,
    seed_rule: Annotated[
        Literal["picture", "image", "fixed"],
        typer.Option(
            "--seed-rule",
            help="A seed for every picture; or --seed plus the number of the image, the same for "
            "all prompts; or --seed itself.",
        ),
    ] = "picture",
    seed: Annotated[int, typer.Option("--seed", help="What the rule starts from.")] = 0,
    scheduler: SchedulerOption = None,
    sigmas: SigmasOption = None,
    eta: EtaOption = 0.0,
    height_px: HeightOption = None,
    width_px: WidthOption = None,
    picture_format: Annotated[
        Literal["jpg", "png"], typer.Option("--format", help="Of the pictures.")
    ] = "jpg",
    quality: Annotated[int, typer.Option("--quality", help="Of jpg, 1 to 100.")] = 95,
    decoder: Annotated[
        Literal["vae", "linear"],
        typer.Option("--decoder", help="linear: small previews instead of pictures, at no cost."),
    ] = "vae",
    id_key: Annotated[
        str | None, typer.Option("--id-key", help="Default: reference_img_id, or id.")
    ] = None,
    prompts_key: Annotated[
        str | None,
        typer.Option("--prompts-key", help="Default: multi_gpt-3.5_opt, or prompts, or prompt."),
    ] = None,
    shard: Annotated[
        str,
        typer.Option("--shard", metavar="0/2", help="Make this part only; parts may run at once."),
    ] = "0/1",
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes, with a model each.")
    ] = 1,
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option(
            "--executor",
            help="Where the workers are: on this machine, or on the Ray cluster that RAY_ADDRESS "
            "names or that runs here.",
        ),
    ] = "local",
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    compute_units: ComputeUnitsOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheOption = None,
    map_weights: MapWeightsOption = True,
    num_threads: ThreadsOption = None,
    prompt_cache: PromptCacheOption = None,
    keep_loaded: Annotated[
        bool,
        typer.Option(
            "--keep-loaded/--no-keep-loaded",
            help="Keep the text encoders in memory between prompts, or open them for each.",
        ),
    ] = True,
    variant: VariantOption = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the bundle's hashes first.")
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Make anew what was made with other settings."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Remove the pictures of OUTPUT and what was computed from them. --dry-run lists.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a dataset: for every prompt one run, and pictures of chosen steps.

    Pictures are OUTPUT/proxy_images_sdxl_step8/combined/combined_ID_0.jpg and so on. Give the same
    command again after whatever has ended it: only what is missing or damaged is made.
    """
    from triptych.sampling.settings import Settings
    from triptych.workflows.generation.generate import (
        NO_PROMPTS,
        GenerateRequest,
        plan_generation,
    )
    from triptych.workflows.generation.generate import generate as make
    from triptych.workflows.generation.plan import PlanRequest
    from triptych.workflows.generation.shards import parse_shard

    if clean:
        _clean(output, dry_run=dry_run, json=json)
        return
    if bundle is None or prompts is None:
        raise UsageError("generate: got no BUNDLE or no PROMPTS, want both.")
    request = GenerateRequest(
        bundle=bundle,
        prompts=prompts,
        output=output,
        pictures=PlanRequest(
            num_prompts=num_prompts,
            images_per_prompt=images_per_prompt,
            seed_rule=seed_rule,
            base_seed=seed,
            max_inference_steps=max_inference_steps,
            save_steps=steps_from(save_steps),
            picture_format=picture_format,
            shard=parse_shard(shard),
        ),
        settings=Settings(
            prompts=NO_PROMPTS,
            scheduler=scheduler_choice(
                name=scheduler, sigmas=sigmas, timesteps="", sigma_values="", edm={}, eta=eta
            ),
            guidance_scale=guidance_scale,
            guidance_rescale=float(guidance_rescale),
            height_px=height_px,
            width_px=width_px,
        ),
        negative_prompt=negative_prompt,
        id_key=id_key,
        prompts_key=prompts_key,
        quality=quality,
        saved_by=decoder,
        num_workers=workers,
        executor=executor,
        runtime=runtime,
        runtime_settings=runtime_settings(
            device=device,
            compute_units=compute_units,
            precision=precision,
            num_threads=num_threads,
            cache_dir=cache_dir,
            map_weights=map_weights,
        ),
        variant=variant,
        prompt_cache=prompt_cache,
        keep_loaded=keep_loaded,
        verify=verify,
        overwrite=overwrite,
    )
    with working("looking at what is there"):
        generation = plan_generation(request)
    for warning in generation.plan.warnings:
        note(f"note: {warning}")
    if strangers := generation.plan.strangers:
        note(
            f"note: {len(strangers)} files that are no pictures of this dataset, such as "
            f"{strangers[0]}: readers take them for pictures, remove them"
        )
    if dry_run:
        _show_plan(generation, json=json)
        return
    with progress_bars() as bars:
        meter = _Meter(bars=bars, total=len(generation.plan.work))
        make(generation, report=meter.painted)
    if json:
        print_json({"output": str(output), **meter.summary()})
        return
    say(f"{output}: {meter.pictures} pictures made, {meter.files} files, {meter.rate()}")


@final
@dataclass(slots=True, kw_only=True)
class _Meter:
    """Counts what is painted, and shows it: all of it, and by worker."""

    bars: "Progress"
    total: int
    pictures: int = 0
    files: int = 0
    steps: int = 0
    by_worker: dict[int, int] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    tasks: dict[int, "TaskID"] = field(default_factory=dict)

    def painted(self, painted: "Painted", *, worker: int) -> None:
        """Count one picture at all of its steps."""
        self.pictures += 1
        self.files += len(painted.work.reasons)
        self.steps += painted.num_steps
        self.by_worker[worker] = self.by_worker.get(worker, 0) + 1
        if not self.tasks:
            self.tasks[-1] = self.bars.add_task("pictures", total=self.total, stage="")
        self.bars.update(self.tasks[-1], completed=self.pictures, stage=self._stage())
        if worker not in self.tasks:
            self.tasks[worker] = self.bars.add_task(f"worker {worker}", total=None, stage="")
        self.bars.update(self.tasks[worker], stage=f"{self.by_worker[worker]} pictures")

    def rate(self) -> str:
        """Pictures an hour."""
        return f"{self.pictures / self.seconds * 3600:.0f} pictures an hour"

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return max(time.monotonic() - self.begun, 1e-9)

    def summary(self) -> dict[str, object]:
        """For scripts."""
        return {
            "pictures": self.pictures,
            "files": self.files,
            "steps": self.steps,
            "seconds": self.seconds,
            "by_worker": {str(worker): count for worker, count in sorted(self.by_worker.items())},
        }

    def _stage(self) -> str:
        left = (self.total - self.pictures) * self.seconds / max(self.pictures, 1)
        return f"{self.rate()}, {_time_text(left)} left"


def _show_plan(generation: "Generation", *, json: bool) -> None:
    from triptych.workflows.generation.estimate import seconds_left
    from triptych.workflows.generation.plan_summary import plan_record, plan_rows

    seconds = seconds_left(generation)
    if json:
        print_json({**plan_record(generation.plan), "seconds_left": seconds})
        return
    for label, text in plan_rows(generation.plan):
        say(f"{label:24} {text}")
    estimate = (
        "nothing here to measure it by" if seconds is None else f"about {_time_text(seconds)}"
    )
    say(f"{'time':24} {estimate}")


def _clean(output: Path, *, dry_run: bool, json: bool) -> None:
    from triptych.workflows.generation.clean import clean, find_removals

    removed = find_removals(output) if dry_run else clean(output)
    if json:
        print_json({"removed": [str(path) for path in removed], "dry_run": dry_run})
        return
    for path in removed:
        say(f"{'would remove' if dry_run else 'removed'} {path}")
    if not removed:
        say(f"{output}: nothing to remove")


def _time_text(seconds: float) -> str:
    """2 h 05 min, 3 min 20 s, 12 s."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
