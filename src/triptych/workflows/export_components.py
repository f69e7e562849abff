"""Exporting the components of one bundle, several at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol, runtime_checkable

from triptych.bundle.manifest import ComponentRecord
from triptych.exporters.base import ExportSettings
from triptych.models.checkpoint import Checkpoint
from triptych.types import ComponentName, FormatName
from triptych.workflows.export_process import ExportJob
from triptych.workflows.export_workers import ExportWorkers
from triptych.workflows.optimum_export import ExportEngine

LARGE_BYTES = 1 << 30
"""A component of more weights than this is exported alone, and its process is ended afterwards,
which gives its memory back."""


@runtime_checkable
class ExportProgress(Protocol):
    """Told how far each component of each format is; may be called from several threads."""

    def __call__(
        self, *, to: FormatName, component: ComponentName, stage: str, fraction: float
    ) -> None:
        """`stage` is a word for people, `fraction` between 0 and 1 of the component."""


def export_components(
    checkpoint: Checkpoint,
    components: Sequence[ComponentName],
    workers: ExportWorkers,
    *,
    to: FormatName,
    settings: ExportSettings,
    folder: Path,
    num_jobs: int,
    engine: ExportEngine,
    finished: Callable[[ComponentRecord], None],
    progress: ExportProgress | None,
) -> None:
    """Export and verify components into a bundle that is being made.

    When one fails, those that are running are finished, and no other is begun. Anything else that
    ends this, such as an interrupt, ends the processes.

    Args:
        checkpoint: where the weights are.
        components: which components.
        workers: processes to export in.
        to: the format.
        settings: as asked for.
        folder: the bundle.
        num_jobs: how many at once.
        engine: who converts; what optimum has written is only verified.
        finished: told of each component that stands in the folder.
        progress: told how far each is.

    Raises:
        TriptychError: what the first component that failed raised.
    """
    preview = checkpoint.preview_decoder

    def export_one(component: ComponentName) -> None:
        job = ExportJob(
            checkpoint=str(checkpoint.folder),
            variant=checkpoint.variant,
            preview_decoder=None if preview is None else str(preview),
            component=component,
            format=to,
            settings=settings,
            bundle=str(folder),
            engine=engine,
        )

        def report(stage: str, fraction: float) -> None:
            if progress is not None:
                progress(to=to, component=component, stage=stage, fraction=fraction)

        keep = weight_bytes(checkpoint, component) <= LARGE_BYTES
        finished(workers.run(job, keep=keep, report=report))
        report("done", 1.0)

    # The largest first, so that the last worker is not left alone with it.
    order = sorted(components, key=lambda name: -weight_bytes(checkpoint, name))
    with ThreadPoolExecutor(max_workers=num_jobs) as pool:
        futures = [pool.submit(export_one, name) for name in order]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.stop()
            raise
        for future in futures:
            future.cancel()  # those that are running cannot be
    for future in futures:
        if not future.cancelled():
            future.result()


def weight_bytes(checkpoint: Checkpoint, component: ComponentName) -> int:
    """Of a component's weights as the checkpoint stores them."""
    return sum(tensor.size_bytes for tensor in checkpoint.stored_tensors(component).values())


def choose_num_jobs(
    asked: int | None, checkpoint: Checkpoint, components: Sequence[ComponentName]
) -> int:
    """How many components to export at once: one by one where a large one is among them."""
    if asked is not None:
        return asked
    is_large = any(weight_bytes(checkpoint, name) > LARGE_BYTES for name in components)
    return 1 if is_large else 2
