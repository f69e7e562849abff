"""What a benchmark is asked for, and what of it can be measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import BackendError, BundleError, MissingDependencyError, UsageError
from triptych.models.checkpoint import NETWORK_FOLDERS
from triptych.models.configs import read_json
from triptych.models.flops import count_flops
from triptych.runtimes.base import Probe, Runtime, RuntimeSettings
from triptych.sampling.pipeline import TOKENIZER_FOLDERS
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings, picture_size
from triptych.types import ComponentName
from triptych.workflows.bench_process import PROMPT, BenchJob, bench_feed
from triptych.workflows.runtime_choice import choose_runtime


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """What to measure.

    Attributes:
        bundle: a bundle, a folder made by optimum-cli, or a checkpoint.
        runtimes: engines, one after another; none takes the one that reads the bundle's format.
        runtime_settings: what each of them is told.
        components: which; none takes every one. The sampler is measured with the U-Net.
        height_px: of the pictures; None as `sample` takes it.
        width_px: as `height_px`.
        num_calls: calls of each component, and steps, to measure; at least 1.
        num_warmup: calls and steps before them.
        variant: the weight variant, for a checkpoint.
    """

    bundle: Path
    runtimes: tuple[str, ...] = ()
    runtime_settings: RuntimeSettings
    components: tuple[str, ...] = ()
    height_px: int | None = None
    width_px: int | None = None
    num_calls: int = 3
    num_warmup: int = 1
    variant: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """A request that can be met, as far as the bundle tells.

    Attributes:
        request: as asked for.
        bundle: opened.
        size_px: of the pictures, height and width.
        engines: to measure, and what they are here.
        components: to measure, in the order they run.
        flops: of one call of each; those are missing that were not counted.
        has_sampler: the sampler is measured too.
        notes: what is not measured, and why.
    """

    request: BenchRequest
    bundle: Bundle
    size_px: tuple[int, int]
    engines: tuple[tuple[Runtime, Probe], ...]
    components: tuple[ComponentName, ...]
    flops: Mapping[ComponentName, int]
    has_sampler: bool
    notes: tuple[str, ...]

    def sampler_job(self, runtime: Runtime) -> BenchJob:
        """The sampler on an engine; other jobs differ from it in what they do."""
        return BenchJob(
            what="sampler",
            bundle=str(self.bundle.folder),
            variant=self.request.variant,
            runtime=runtime.name,
            settings=self.request.runtime_settings,
            height_px=self.size_px[0],
            width_px=self.size_px[1],
            num_calls=self.request.num_calls,
            num_warmup=self.request.num_warmup,
        )


def plan_bench(request: BenchRequest) -> BenchPlan:
    """Open the bundle, check what is asked for, and count operations.

    Raises:
        UsageError: a size that cannot be, a component that is not there, or an engine that does
            not read the bundle.
        BundleError: the bundle is incomplete.
        BackendError: an engine cannot run here.
    """
    bundle = open_bundle(request.bundle, variant=request.variant)
    settings = Settings(
        prompts=Prompts(prompt=(PROMPT,)), height_px=request.height_px, width_px=request.width_px
    )
    size_px = picture_size(bundle, settings)
    unknown = [name for name in request.components if name not in bundle.artifacts]
    if unknown:
        raise UsageError(
            f"components: got {', '.join(unknown)}, this bundle has {', '.join(bundle.artifacts)}."
        )
    if not bundle.artifacts:
        raise BundleError(
            f"{bundle.folder}: got no components, want at least one. Export it again."
        )
    components = tuple(
        name for name in bundle.artifacts if name in (request.components or bundle.artifacts)
    )
    engines = tuple(_engine(bundle, name, request) for name in request.runtimes or (None,))
    lacking = sampler_lacks(bundle) if "unet" in components else "the U-Net, which was left out"
    notes = [f"the sampler was not measured: it needs {lacking}"] if lacking else []
    flops: dict[ComponentName, int] = {}
    try:
        flops.update(_counted(bundle, components, size_px))
    except MissingDependencyError as error:
        notes.append(f"operations were not counted: {error}")
    return BenchPlan(
        request=request,
        bundle=bundle,
        size_px=size_px,
        engines=engines,
        components=components,
        flops=flops,
        has_sampler=not lacking,
        notes=tuple(notes),
    )


def _engine(bundle: Bundle, name: str | None, request: BenchRequest) -> tuple[Runtime, Probe]:
    """An engine that is there: nothing is measured before all of them are known to be."""
    runtime = choose_runtime(bundle, name, request.runtime_settings)
    probe = runtime.probe()
    if not probe.installed:
        raise BackendError(f"runtime: got {runtime.name}, which cannot run here. {probe.remedy}")
    return runtime, probe


def sampler_lacks(bundle: Bundle) -> str:
    """What a run from a prompt alone lacks; empty where there is everything."""
    if bundle.config.kind == "refiner" or bundle.config.is_inpainting:
        return "a picture to start from, by this U-Net"
    needed = [name for name in bundle.config.components if name in (*TOKENIZER_FOLDERS, "unet")]
    return ", ".join(name for name in needed if name not in bundle.artifacts)


def _counted(
    bundle: Bundle, components: tuple[ComponentName, ...], size_px: tuple[int, int]
) -> Iterator[tuple[ComponentName, int]]:
    for name in components:
        config = _network_config(bundle, name)
        if config.is_file():
            feed = bench_feed(bundle, name, height_px=size_px[0], width_px=size_px[1])
            yield name, count_flops(bundle.artifact(name).spec, read_json(config), feed)


def _network_config(bundle: Bundle, component: ComponentName) -> Path:
    """A network's config, which the VAE's halves may share; foreign bundles may have none."""
    checkpoint = bundle.artifact(component).checkpoint
    if checkpoint is not None:
        return checkpoint.component_folder(component) / "config.json"
    own = bundle.folder / component / "config.json"
    return own if own.is_file() else bundle.folder / NETWORK_FOLDERS[component] / "config.json"
