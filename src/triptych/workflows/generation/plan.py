"""What of a dataset is done, and what is to do and why: from the input and the disk alone."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.workflows.generation.file_state import Reason, find_reason
from triptych.workflows.generation.ledger import Ledger, read_ledgers
from triptych.workflows.generation.names import PictureFormat, normal_form, picture_path
from triptych.workflows.generation.queries import Query
from triptych.workflows.generation.query_warnings import find_warnings
from triptych.workflows.generation.save_steps import (
    StepArithmetic,
    check_saved_steps,
    step_arithmetic,
)
from triptych.workflows.generation.shards import WHOLE, Shard, checked_shard, shard_units
from triptych.workflows.generation.tree import find_feature_caches, find_strangers
from triptych.workflows.generation.units import SeedRule, Unit, plan_units


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Which pictures a dataset is to have, and which part of it is made.

    Attributes:
        num_prompts: of each query, the first so many.
        images_per_prompt: pictures for each prompt.
        seed_rule: which noise each starts from.
        base_seed: what the rule starts from.
        max_inference_steps: of the schedule.
        save_steps: whose pictures are wanted.
        picture_format: how they are stored.
        shard: the part.
    """

    num_prompts: int = 5
    images_per_prompt: int = 1
    seed_rule: SeedRule = "picture"
    base_seed: int = 0
    max_inference_steps: int = 32
    save_steps: Collection[int] = (1, 4, 8, 16, 32)
    picture_format: PictureFormat = "jpg"
    shard: Shard = WHOLE


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One run of the sampler that is to do.

    Attributes:
        unit: the picture.
        reasons: the steps whose files are to be made, ascending, and why.
    """

    unit: Unit
    reasons: Mapping[int, Reason]

    @property
    def num_steps(self) -> int:
        """How far the run must go."""
        return max(self.reasons)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to do in one part of a dataset.

    Attributes:
        units: every picture of the part, done or not.
        work: those with files to make.
        save_steps: sorted, each once.
        shard: the part.
        num_queries: of the whole input.
        num_units: of the whole input.
        num_prompts_unused: of the whole input, those beyond the number wanted of each query.
        warnings: what may not be meant in the input.
        strangers: files in the picture folders that belong to no picture of the whole input.
            Readers take them for pictures: remove them.
        stale_caches: what readers computed from pictures of which some are to be made.
        num_skipped_records: lines of ledgers that are cut off or garbled.
    """

    units: tuple[Unit, ...]
    work: tuple[Work, ...]
    save_steps: tuple[int, ...]
    shard: Shard
    num_queries: int
    num_units: int
    num_prompts_unused: int
    warnings: tuple[str, ...]
    strangers: tuple[str, ...]
    stale_caches: tuple[Path, ...]
    num_skipped_records: int

    @property
    def num_files(self) -> int:
        """Files of the part, done or not."""
        return len(self.units) * len(self.save_steps)

    @property
    def num_files_to_do(self) -> int:
        """Files of the part that are to be made."""
        return sum(len(work.reasons) for work in self.work)

    @property
    def num_steps_to_do(self) -> int:
        """Steps of the sampler that are left: each run goes to its last file that is to do."""
        return sum(work.num_steps for work in self.work)

    @property
    def reasons(self) -> Mapping[Reason, int]:
        """How many files are to be made for each reason."""
        return Counter(reason for work in self.work for reason in work.reasons.values())

    @property
    def arithmetic(self) -> StepArithmetic:
        """What the part costs from its beginning, and what a run for each saved step would."""
        return step_arithmetic(self.save_steps, num_pictures=len(self.units))


def plan_dataset(
    queries: Sequence[Query],
    request: PlanRequest,
    *,
    output: Path,
    fingerprint: str,
    hashes: bool = True,
) -> Plan:
    """Compare what is asked for with what is on the disk. Writes nothing.

    Args:
        queries: the whole input, also for a part of it.
        request: which pictures.
        output: the dataset's folder; it need not be there.
        fingerprint: of the settings that the pictures are made with.
        hashes: read every file that seems done; otherwise only its size is looked at.

    Raises:
        UsageError: steps, numbers or a shard that cannot be.
        BrokenInputError: a ledger or a picture folder cannot be read.
    """
    save_steps = check_saved_steps(
        request.save_steps, max_inference_steps=request.max_inference_steps
    )
    every_unit = plan_units(
        queries,
        num_prompts=request.num_prompts,
        images_per_prompt=request.images_per_prompt,
        seed_rule=request.seed_rule,
        base_seed=request.base_seed,
    )
    units = shard_units(every_unit, checked_shard(request.shard))
    ledger = read_ledgers(output)
    disk = _Disk(
        output=output, ledger=ledger, request=request, fingerprint=fingerprint, hashes=hashes
    )
    found = ((unit, disk.reasons(unit, save_steps)) for unit in units)
    work = tuple(Work(unit=unit, reasons=reasons) for unit, reasons in found if reasons)
    expected = {normal_form(disk.path(unit, step)) for unit in every_unit for step in save_steps}
    stale_steps = sorted({step for item in work for step in item.reasons})
    return Plan(
        units=units,
        work=work,
        save_steps=save_steps,
        shard=request.shard,
        num_queries=len(queries),
        num_units=len(every_unit),
        num_prompts_unused=sum(len(query.prompts[request.num_prompts :]) for query in queries),
        warnings=find_warnings(queries, num_prompts=request.num_prompts),
        strangers=find_strangers(output, steps=save_steps, expected=expected),
        stale_caches=find_feature_caches(output, steps=stale_steps) if stale_steps else (),
        num_skipped_records=ledger.num_skipped,
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Disk:
    """What is there, and what it should be."""

    output: Path
    ledger: Ledger
    request: PlanRequest
    fingerprint: str
    hashes: bool

    def path(self, unit: Unit, step: int) -> str:
        return picture_path(
            step=step, query_id=unit.id, n=unit.n, picture_format=self.request.picture_format
        )

    def reasons(self, unit: Unit, save_steps: Sequence[int]) -> dict[int, Reason]:
        """The steps whose files are to be made, and why."""
        found: dict[int, Reason] = {}
        for step in save_steps:
            path = self.path(unit, step)
            reason = find_reason(
                self.output / path,
                unit,
                records=self.ledger.by_path.get(path, ()),
                fingerprint=self.fingerprint,
                hashes=self.hashes,
            )
            if reason is not None:
                found[step] = reason
        return found
