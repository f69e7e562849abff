import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from triptych.errors import UsageError
from triptych.types import Array
from triptych.workflows.generation.ledger import LedgerWriter, read_ledgers
from triptych.workflows.generation.plan import Plan, PlanRequest, plan_dataset
from triptych.workflows.generation.queries import Query
from triptych.workflows.generation.shards import WHOLE, Shard
from triptych.workflows.generation.writer import Picture, WriterSettings, open_writer

STEPS = (1, 4, 8)
REQUEST = PlanRequest(num_prompts=2, save_steps=STEPS, max_inference_steps=8)
QUERIES = [
    Query(id="5", prompts=("a cat", "a dog"), line=1),
    Query(id="é", prompts=("a car", "a bus"), line=2),
    Query(id="5", prompts=("a hat",), line=3),
]
SETTINGS = WriterSettings(fingerprint="f", runtime="none", durable=False)


def plan_of(
    output: Path,
    queries: Sequence[Query] = QUERIES,
    request: PlanRequest = REQUEST,
    *,
    fingerprint: str = "f",
    hashes: bool = True,
) -> Plan:
    return plan_dataset(queries, request, output=output, fingerprint=fingerprint, hashes=hashes)


def pixels_of(seed: int, step: int) -> Array:
    generator = np.random.default_rng([seed, step])
    return generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def carry_out(output: Path, plan: Plan, *, settings: WriterSettings = SETTINGS) -> None:
    with open_writer(output, settings, shard=WHOLE) as writer:
        for work in plan.work:
            writer.save(
                [
                    Picture(
                        unit=work.unit,
                        step=step,
                        pixels=pixels_of(work.unit.seed, step),
                        seconds=0.5,
                    )
                    for step in work.reasons
                ]
            )


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A dataset with every file."""
    output = tmp_path / "dataset"
    carry_out(output, plan_of(output))
    return output


def picture(output: Path, name: str, *, step: int = 4) -> Path:
    return output / f"proxy_images_sdxl_step{step}" / "combined" / f"combined_{name}.jpg"


def to_do(plan: Plan) -> list[tuple[str, int, int, str]]:
    return [
        (work.unit.id, work.unit.n, step, reason)
        for work in plan.work
        for step, reason in work.reasons.items()
    ]


def test_of_an_empty_folder_everything_is_missing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "dataset")
    assert (len(plan.units), len(plan.work), plan.num_files, plan.num_files_to_do) == (5, 5, 15, 15)
    assert plan.reasons == {"missing": 15}
    assert plan.num_steps_to_do == 5 * 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hashes", [True, False])
def test_of_a_complete_one_nothing_is_to_do(
    hashes: bool,  # noqa: FBT001  # pytest hands parameters over by name
    complete: Path,
) -> None:
    plan = plan_of(complete, hashes=hashes)
    assert plan.work == ()
    assert (plan.num_files, plan.num_files_to_do, plan.num_steps_to_do) == (15, 0, 0)
    assert (plan.strangers, plan.stale_caches, plan.num_skipped_records) == ((), (), 0)


def test_both_queries_of_one_id_are_done(complete: Path) -> None:
    """Where an id was complete when it had enough files, the second was passed over."""
    record = read_ledgers(complete).by_path["proxy_images_sdxl_step4/combined/combined_5_2.jpg"][0]
    assert record.prompt == "a hat"
    assert picture(complete, "5_2").is_file()


def test_a_hole_is_filled_with_its_own_prompt(complete: Path) -> None:
    """Where files were counted, what came after a hole had the prompts of others."""
    before = picture(complete, "5_0").read_bytes()
    picture(complete, "5_0").unlink()
    plan = plan_of(complete)
    assert to_do(plan) == [("5", 0, 4, "missing")]
    assert plan.work[0].unit.prompt == "a cat"
    assert plan.num_steps_to_do == 4, "the run need not go further than its last missing file"
    carry_out(complete, plan)
    assert picture(complete, "5_0").read_bytes() == before
    assert plan_of(complete).work == ()


def test_a_step_more_makes_that_step_alone(complete: Path) -> None:
    request = replace(REQUEST, save_steps=(1, 2, 4, 8))
    plan = plan_of(complete, request=request)
    assert {(step, reason) for _, _, step, reason in to_do(plan)} == {(2, "missing")}
    carry_out(complete, plan)
    assert plan_of(complete, request=request).work == ()
    assert plan_of(complete).work == ()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="cut off"),
        pytest.param(lambda content: content[:0], id="empty"),
        pytest.param(lambda content: content + b"\0", id="longer"),
    ],
)
@pytest.mark.parametrize("hashes", [True, False])
def test_a_file_of_another_length_is_damaged(
    hashes: bool,  # noqa: FBT001  # pytest hands parameters over by name
    damage: Callable[[bytes], bytes],
    complete: Path,
) -> None:
    path = picture(complete, "é_1")
    path.write_bytes(damage(path.read_bytes()))
    assert to_do(plan_of(complete, hashes=hashes)) == [("é", 1, 4, "damaged")]


def test_a_flipped_bit_is_damage_that_only_a_hash_shows(complete: Path) -> None:
    path = picture(complete, "é_1")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert to_do(plan_of(complete)) == [("é", 1, 4, "damaged")]
    assert plan_of(complete, hashes=False).work == ()


def test_a_folder_in_the_place_of_a_file_is_damage(complete: Path) -> None:
    picture(complete, "5_0").unlink()
    picture(complete, "5_0").mkdir()
    assert to_do(plan_of(complete)) == [("5", 0, 4, "damaged")]


def test_without_its_ledger_nothing_is_done(complete: Path) -> None:
    for path in (complete / "ledger").iterdir():
        path.unlink()
    assert plan_of(complete).reasons == {"unrecorded": 15}


def test_another_fingerprint_is_other_settings(complete: Path) -> None:
    plan = plan_of(complete, fingerprint="g")
    assert plan.reasons == {"other settings": 15}
    carry_out(complete, plan, settings=replace(SETTINGS, fingerprint="g"))
    assert plan_of(complete, fingerprint="g").work == ()
    assert plan_of(complete).work == (), "these settings happen to give the same pictures"


def test_another_prompt_is_made_anew(complete: Path) -> None:
    queries = [replace(QUERIES[0], prompts=("a cat", "a fox")), *QUERIES[1:]]
    assert to_do(plan_of(complete, queries)) == [("5", 1, step, "other prompt") for step in STEPS]


def test_another_seed_is_made_anew(complete: Path) -> None:
    plan = plan_of(complete, request=replace(REQUEST, base_seed=1))
    assert plan.reasons == {"other seed": 15}


def test_a_record_whose_picture_never_came_into_place_does_no_harm(complete: Path) -> None:
    """A writer was killed between the two, or another's clock is ahead: the content decides."""
    (record,) = read_ledgers(complete).by_path["proxy_images_sdxl_step4/combined/combined_5_0.jpg"]
    ledger = LedgerWriter(complete / "ledger" / "later.jsonl")
    later = record.time.replace(year=record.time.year + 1)
    ledger.append(
        [
            replace(record, sha256="0" * 64, time=later),
            replace(record, sha256="1" * 64, fingerprint="g", time=later),
        ]
    )
    ledger.close()
    assert plan_of(complete).work == ()
    assert plan_of(complete, fingerprint="g").reasons == {"damaged": 1, "other settings": 14}


def test_a_cut_off_ledger_is_counted_and_its_pictures_made_anew(complete: Path) -> None:
    (path,) = (complete / "ledger").iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    plan = plan_of(complete)
    assert to_do(plan) == [("5", 2, 8, "unrecorded")]
    assert plan.num_skipped_records == 1


# Parts, numbers, and what else lies there


def test_shards_plan_the_whole_between_them(complete: Path) -> None:
    picture(complete, "5_0").unlink()
    picture(complete, "5_2").unlink()
    plans = [
        plan_of(complete, request=replace(REQUEST, shard=Shard(index=index, count=2)))
        for index in range(2)
    ]
    assert [to_do(plan) for plan in plans] == [
        [("5", 0, 4, "missing")],
        [("5", 2, 4, "missing")],
    ]
    assert plans[0].units + plans[1].units == plan_of(complete).units
    assert [plan.num_units for plan in plans] == [5, 5]
    assert [plan.strangers for plan in plans] == [(), ()]


def test_more_shards_than_prompts_leave_some_with_nothing(tmp_path: Path) -> None:
    plans = [
        plan_of(tmp_path, request=replace(REQUEST, shard=Shard(index=index, count=9)))
        for index in range(9)
    ]
    assert sorted(len(plan.units) for plan in plans) == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_several_images_of_a_prompt_are_files_of_their_own(tmp_path: Path) -> None:
    request = replace(REQUEST, images_per_prompt=3)
    carry_out(tmp_path, plan_of(tmp_path, request=request))
    names = sorted(path.name for path in picture(tmp_path, "é_0").parent.glob("combined_é_*"))
    assert names == [f"combined_é_{n}.jpg" for n in range(6)]
    assert len({picture(tmp_path, f"é_{n}").read_bytes() for n in range(6)}) == 6


def test_what_lies_among_the_pictures_is_told(complete: Path) -> None:
    (picture(complete, "5_0").parent / "Thumbs.db").write_bytes(b"")
    plan = plan_of(complete, QUERIES[:2])
    folder = "proxy_images_sdxl_step{step}/combined/{name}"
    assert set(plan.strangers) == {
        folder.format(step=4, name="Thumbs.db"),
        *(folder.format(step=step, name="combined_5_2.jpg") for step in STEPS),
    }


def test_another_format_leaves_the_old_files_as_strangers(complete: Path) -> None:
    plan = plan_of(complete, request=replace(REQUEST, picture_format="png"))
    assert plan.reasons == {"missing": 15}
    assert len(plan.strangers) == 15


def test_caches_are_stale_where_pictures_are_to_be_made(complete: Path) -> None:
    caches = [complete / "aug_features_clip.npz"] + [
        complete / f"proxy_images_sdxl_step{step}" / "aug_features_clip.npz" for step in STEPS
    ]
    for path in caches:
        path.write_bytes(b"")
    assert plan_of(complete).stale_caches == ()
    picture(complete, "5_0").unlink()
    assert plan_of(complete).stale_caches == (caches[0], caches[2])


def test_an_id_with_its_accent_written_otherwise_is_no_stranger(tmp_path: Path) -> None:
    query = Query(id=unicodedata.normalize("NFD", "é"), prompts=("a",), line=1)
    carry_out(tmp_path, plan_of(tmp_path, [query]))
    plan = plan_of(tmp_path, [query])
    assert (plan.work, plan.strangers) == ((), ())


def test_warnings_and_unused_prompts_are_of_the_whole_input(tmp_path: Path) -> None:
    request = replace(REQUEST, num_prompts=1, shard=Shard(index=1, count=2))
    plan = plan_of(tmp_path, request=request)
    assert (plan.num_prompts_unused, plan.num_queries) == (2, 3)
    assert len(plan.warnings) == 1
    assert "'5' on lines 1, 3" in plan.warnings[0]


@pytest.mark.parametrize(
    "wish",
    [
        {"save_steps": (1, 64)},
        {"save_steps": ()},
        {"num_prompts": 0},
        {"images_per_prompt": 0},
        {"base_seed": -1},
        {"shard": Shard(index=2, count=2)},
    ],
)
def test_wishes_that_make_no_sense_are_refused(wish: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        plan_of(tmp_path, request=replace(REQUEST, **wish))  # type: ignore[arg-type]  # of any type
