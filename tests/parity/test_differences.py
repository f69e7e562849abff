"""What differs, in the order of what changes numbers, and nothing that is equal."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace

import pytest

from triptych.parity.differences import (
    Difference,
    Evidence,
    count_shared,
    find_differences,
    report_results,
)
from triptych.parity.facts import (
    Facts,
    document_facts,
    fingerprint_facts,
    golden_facts,
    reference_facts,
    report_facts,
)
from triptych.parity.fingerprint import Fingerprint
from triptych.parity.report import CandidateReport, ParityReport, Row

MACHINE = Fingerprint(
    system="Linux 6.1 x86_64",
    processor="Xeon",
    num_cpus=8,
    cpu_features=("avx2", "avx512f"),
    python="3.11.7",
    triptych="0.1.0",
    packages={"numpy": "2.3.5", "openvino": "2026.4.1"},
    environment={},
)
ROW = Row(
    stage="free_running",
    component="unet",
    case="seed 0",
    tensor="latents",
    precision="fp32",
    rel_l2=1e-6,
    limit=1e-4,
    verdict="passed",
)


def evidence(report: ParityReport) -> Evidence:
    return Evidence(
        facts=report_facts(report),
        reference=reference_facts(report),
        results=report_results(report),
    )


def of_machine(machine: Fingerprint) -> Evidence:
    return Evidence(facts=fingerprint_facts(asdict(machine)))


def of_rows(*rows: Row) -> Evidence:
    names = (f"{row.component} {row.case} {row.step}" for row in rows)
    return Evidence(facts={}, results=dict(zip(names, rows, strict=True)))


def lines(found: tuple[Difference, ...]) -> list[str]:
    return [f"{one.kind} {one.name}: {one.first} → {one.second}" for one in found]


def test_equal_reports_do_not_differ(parity_report: ParityReport) -> None:
    assert find_differences(evidence(parity_report), evidence(parity_report)) == ()


def test_bfloat16_that_ran_is_named_first_and_the_processor_that_allows_it(
    parity_report: ParityReport,
) -> None:
    """One machine has avx512_bf16, and OpenVINO used it."""
    with_bf16 = parity_report.candidates[1]
    ran = {
        name: replace(
            execution, precision="fp32", details={"inference_precision_hint": "f32", "threads": "4"}
        )
        for name, execution in with_bf16.executions.items()
    }
    healthy = replace(with_bf16, executions=ran, rows=(), verdict="passed")
    machine = replace(
        parity_report.fingerprint,
        cpu_features=("avx2", "avx512f"),
        processor="Intel Xeon",
        packages={**parity_report.fingerprint.packages, "numpy": "1.26"},
        environment={},
    )
    without = replace(
        parity_report, fingerprint=machine, candidates=(parity_report.candidates[0], healthy)
    )
    with_it = replace(
        parity_report, candidates=(parity_report.candidates[0], replace(with_bf16, rows=()))
    )
    found = find_differences(evidence(without), evidence(with_it))
    ran_in = "bf16 (text_encoder, text_encoder_2, unet); fp32 (vae_decoder)"
    assert lines(found) == [
        f"execution openvino precision: fp32 → {ran_in}",
        "execution openvino inference_precision_hint: f32 → bf16",
        "execution openvino threads: 4 → 8",
        "machine avx512_bf16: absent → there",
        "machine processor: Intel Xeon → AMD EPYC 9R14",
        "environment OMP_NUM_THREADS: not set → 1",
        "package numpy: 1.26 → 2.3.5",
    ]
    assert [one.rank for one in found] == [1, 2, 3, 4, 5, 6, 7]
    assert found[0].why == "bfloat16 costs about 1e-2, float32 1e-6"
    assert found[3].why == "with it, engines compute in bfloat16 unasked"


def test_what_is_most_likely_to_change_numbers_comes_first(parity_report: ParityReport) -> None:
    machine = parity_report.fingerprint
    other = replace(
        parity_report,
        preconditions={**parity_report.preconditions, "timesteps": "sha256 00"},
        settings={**parity_report.settings, "guidance_scale": 7.5},
        fingerprint=replace(
            machine,
            packages={**machine.packages, "openvino": "2026.3", "numpy": "2.4"},
            environment={"OMP_NUM_THREADS": "2"},
            cpu_features=(*machine.cpu_features, "amx_bf16"),
            python="3.12",
            triptych="0.2.0",
        ),
        candidates=tuple(
            replace(
                candidate,
                executions={
                    name: replace(found, device="GPU")
                    for name, found in candidate.executions.items()
                },
                rows=tuple(replace(row, verdict="warned") for row in candidate.rows[:1]),
            )
            for candidate in parity_report.candidates
        ),
    )
    kinds = [one.kind for one in find_differences(evidence(parity_report), evidence(other))]
    assert list(dict.fromkeys(kinds)) == [
        "precondition",
        "setting",
        "execution",
        "engine",
        "machine",
        "environment",
        "package",
        "result",
    ]


def test_other_feeds_are_a_precondition() -> None:
    def fed(*hashes: str) -> Mapping[str, str]:
        rows = tuple(
            replace(ROW, stage="component", case=str(place), feed_sha256=found)
            for place, found in enumerate(hashes)
        )
        report = ParityReport(
            triptych="0",
            created="now",
            reference=None,
            fingerprint=MACHINE,
            settings={},
            candidates=(CandidateReport(runtime="x", bundle="y", format="onnx", rows=rows),),
            verdict="passed",
        )
        return report_facts(report)["precondition"]

    assert fed("a", "b") == fed("b", "a")
    assert fed("a", "b") != fed("a", "c")
    assert fed("a", "b")["feeds of unet"].startswith("2, sha256 ")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"cpu_features": ("avx2",)}, "machine avx512f: there → absent"),
        ({"processor": "EPYC"}, "machine processor: Xeon → EPYC"),
        ({"num_cpus": 16}, "machine number of processors: 8 → 16"),
        ({"packages": {"numpy": "2.3.5"}}, "engine openvino: 2026.4.1 → not installed"),
        (
            {"packages": {"numpy": "2.3.5", "openvino": "2026.4.10"}},
            "engine openvino: 2026.4.1 → 2026.4.10",
        ),
        ({"environment": {"ORT_X": "1"}}, "environment ORT_X: not set → 1"),
        ({"python": "3.12"}, "package python: 3.11.7 → 3.12"),
        ({"triptych": "0.10"}, "package triptych: 0.1.0 → 0.10"),
    ],
)
def test_one_thing_that_differs_is_one_line(changes: dict[str, object], line: str) -> None:
    other = replace(MACHINE, **changes)  # type: ignore[arg-type]  # fields by name
    assert lines(find_differences(of_machine(MACHINE), of_machine(other))) == [line]


def test_a_system_that_does_not_tell_its_features_has_not_lost_them() -> None:
    assert (
        find_differences(of_machine(MACHINE), of_machine(replace(MACHINE, cpu_features=()))) == ()
    )


@pytest.mark.parametrize(("first", "second", "count"), [("1.1", "1.10", 1), ("1.1", "1.1", 0)])
def test_versions_are_no_numbers(first: str, second: str, count: int) -> None:
    documents = (Evidence(facts={"engine": {"x": found}}) for found in (first, second))
    assert len(find_differences(*documents)) == count


def test_preconditions_may_be_numbers() -> None:
    first, second, third = (
        Evidence(facts={"precondition": {"scale": found}}) for found in ("5", "5.0", "5.5")
    )
    assert find_differences(first, second) == ()
    assert len(find_differences(first, third)) == 1


def test_rows_that_changed_their_verdict_come_first_then_the_largest_factor() -> None:
    errors = {"same": 1e-6, "a bit": 2e-6, "verdict": 2e-6, "much": 1e-3, "nearer": 1e-8}
    before = of_rows(*(replace(ROW, case=case) for case in errors))
    after = of_rows(
        *(
            replace(
                ROW, case=case, rel_l2=error, verdict="failed" if case == "verdict" else "passed"
            )
            for case, error in errors.items()
        )
    )
    found = find_differences(before, after)
    assert [one.name.split()[1] for one in found] == ["verdict", "much", "nearer", "a"]
    assert (found[0].first, found[0].second) == ("passed 1.00e-06", "failed 2.00e-06")
    assert found[1].why == "1,000 times further from the reference"
    assert found[2].why == "100 times nearer to the reference"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1e-6, math.nan),
        (math.nan, 1e-6),
        (1e-6, math.inf),
        (math.inf, math.nan),
        (None, 1e-6),
        (math.nan, None),
        (0.0, 1e-6),
        (1e-6, 0.0),
    ],
)
def test_what_is_no_number_on_one_side_is_the_largest_of_differences(
    before: float | None, after: float | None
) -> None:
    ordinary = replace(ROW, case="ordinary")
    found = find_differences(
        of_rows(ordinary, replace(ROW, rel_l2=before)),
        of_rows(replace(ordinary, rel_l2=1.0), replace(ROW, rel_l2=after)),
    )
    assert [one.name for one in found] == ["unet seed 0 None", "unet ordinary None"]
    assert found[0].why == "no factor lies between these"


@pytest.mark.parametrize("value", [math.nan, math.inf, None, 0.0, 1e-6])
def test_equal_numbers_do_not_differ_nan_and_nothing_among_them(value: float | None) -> None:
    assert find_differences(*[of_rows(replace(ROW, rel_l2=value))] * 2) == ()


def test_a_row_without_a_counterpart_is_said_to_have_none() -> None:
    both, one = of_rows(ROW, replace(ROW, case="other")), of_rows(replace(ROW, case="other"))
    (found,) = lines(find_differences(both, one))
    assert found == "result unet seed 0 None: passed 1.00e-06 → not there"
    (found,) = lines(find_differences(one, both))
    assert found == "result unet seed 0 None: not there → passed 1.00e-06"
    assert find_differences(both, of_rows()) == ()  # no report at all


def test_rows_of_one_name_are_all_kept(parity_report: ParityReport) -> None:
    candidate = replace(parity_report.candidates[0], rows=(ROW, ROW, replace(ROW, branch="guided")))
    found = report_results(replace(parity_report, candidates=(candidate,)))
    assert list(found) == [
        "onnxruntime free running: unet, seed 0, latents",
        "onnxruntime free running: unet, seed 0, latents (again)",
        "onnxruntime free running: unet, seed 0, latents, guided",
    ]


def test_the_reference_s_machine_is_compared_with_the_other_s(parity_report: ParityReport) -> None:
    assert parity_report.reference is not None
    recorded = replace(parity_report.reference.fingerprint, processor="another")
    other = replace(parity_report, reference=replace(parity_report.reference, fingerprint=recorded))
    (line,) = lines(find_differences(evidence(parity_report), evidence(other)))
    assert line == "machine reference's processor: Intel(R) Xeon(R) Gold 6148 → another"


def test_a_difference_of_both_machines_is_said_once(parity_report: ParityReport) -> None:
    assert parity_report.reference is not None

    def on(machine: Fingerprint) -> Evidence:
        assert parity_report.reference is not None
        recorded = replace(parity_report.reference, fingerprint=machine)
        return evidence(replace(parity_report, fingerprint=machine, reference=recorded))

    found = find_differences(on(MACHINE), on(replace(MACHINE, processor="other")))
    assert lines(found) == ["machine processor: Xeon → other"]


def test_a_golden_tells_its_machine_and_preconditions(parity_report: ParityReport) -> None:
    assert parity_report.reference is not None
    golden: Mapping[str, object] = {
        "fingerprint": asdict(parity_report.reference.fingerprint),
        "preconditions": {"timesteps": [999, 500], "initial latents": "other", "long": [1.5] * 99},
        "execution": asdict(parity_report.reference.execution),
        "tensors": {},
    }
    facts = document_facts(golden)
    assert facts["precondition"]["timesteps"] == "[999, 500]"
    assert facts["precondition"]["long"].startswith("sha256 ")
    assert facts["machine"]["processor"] == "Intel(R) Xeon(R) Gold 6148"
    found = find_differences(
        evidence(parity_report), Evidence(facts=facts, reference=golden_facts(golden))
    )
    assert lines(found)[:2] == [
        'precondition initial latents: sha256 4f1c0d0e → "other"',
        "precondition timesteps: sha256 77aa31b2 → [999, 500]",
    ]
    assert not any("reference's" in line for line in lines(found))


@pytest.mark.parametrize("is_nested", [True, False])
def test_doctor_tells_what_engines_would_compute_in(*, is_nested: bool) -> None:
    def told(precision: str, devices: list[str]) -> Evidence:
        machine = asdict(MACHINE)
        engine = {
            "runtime": "openvino",
            "versions": {"openvino": "2026.4.1"},
            "devices": devices,
            "precision": {"CPU": precision},
        }
        document = {"fingerprint": machine} if is_nested else machine
        return Evidence(facts=document_facts({**document, "engines": [engine]}))

    found = find_differences(told("float32", ["CPU"]), told("bfloat16", ["CPU", "GPU"]))
    assert lines(found) == [
        "execution openvino float32 models on CPU: float32 → bfloat16",
        'machine openvino devices: ["CPU"] → ["CPU", "GPU"]',
    ]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"fingerprint": 3, "preconditions": [], "engines": {}},
        {"engines": [None, 3]},
        {"fingerprint": {"cpu_features": 3, "packages": None, "environment": []}},
    ],
)
def test_any_object_can_be_read(document: dict[str, object]) -> None:
    facts: Facts = document_facts(document)
    evidence = Evidence(facts=facts, reference=golden_facts(document))
    assert find_differences(evidence, evidence) == ()


def test_what_can_be_compared_is_counted(parity_report: ParityReport) -> None:
    whole, machine = evidence(parity_report), of_machine(parity_report.fingerprint)
    assert count_shared(whole, machine) > 15
    assert count_shared(whole, whole) > count_shared(whole, machine) + 59
    assert count_shared(of_machine(MACHINE), of_rows(ROW)) == 0
