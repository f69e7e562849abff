import json
from collections.abc import Callable
from pathlib import Path

from triptych.workflows.generation.plan import PlanRequest, plan_dataset
from triptych.workflows.generation.plan_summary import plan_record, plan_rows
from triptych.workflows.generation.queries import Query
from triptych.workflows.generation.shards import Shard


def queries(count: int) -> list[Query]:
    return [Query(id=str(line), prompts=tuple("abcde"), line=line) for line in range(1, count + 1)]


def test_a_plan_for_800_ids_is_told(tmp_path: Path) -> None:
    plan = plan_dataset(queries(800), PlanRequest(), output=tmp_path, fingerprint="f")
    assert dict(plan_rows(plan)) == {
        "queries": "800",
        "pictures": "4,000",
        "files": "20,000 at steps 1, 4, 8, 16, 32",
        "to do": "20,000 files (20,000 missing)",
        "steps a picture": "32 in one run, 61 in a run for each: 47.5% fewer",
        "steps for all": "128,000 against 244,000; 128,000 to do",
    }
    record = json.loads(json.dumps(plan_record(plan)))
    assert record["steps"]["total_separately"] == 244_000
    assert record["num_files_to_do"] == 20_000
    assert record["reasons"] == {"missing": 20_000}


def test_a_shard_without_work_says_so(tmp_path: Path) -> None:
    request = PlanRequest(shard=Shard(index=0, count=9))
    plan = plan_dataset(queries(1), request, output=tmp_path, fingerprint="f")
    rows = dict(plan_rows(plan))
    assert rows["pictures"] == "0 of 5 in shard 0/9"
    assert rows["to do"] == "nothing: there are more shards than prompts, and this one has none"


def test_a_complete_dataset_says_so_and_what_lies_in_it(save: Callable[..., Path]) -> None:
    output = save(1)
    (output / "proxy_images_sdxl_step1" / "combined" / "notes.txt").write_text("mine")
    (output / "ledger" / "garbled.jsonl").write_text("{")
    request = PlanRequest(num_prompts=2, save_steps=(1,))
    made_of = [Query(id=str(number), prompts=("a cat", "a dog"), line=1) for number in range(3)]
    plan = plan_dataset(made_of, request, output=output, fingerprint="0123456789abcdef")
    rows = dict(plan_rows(plan))
    assert rows["to do"] == "nothing: every file is there"
    assert rows["files of no picture"] == "1"
    assert rows["unreadable ledger lines"] == "1"
