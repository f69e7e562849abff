"""What a document tells about a check or a machine: names and values, for comparing two of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Literal, TypeAlias, get_args

import msgspec

from triptych.parity.fingerprint import CPU_FEATURES, PACKAGES
from triptych.parity.preconditions import precondition_texts
from triptych.parity.report import ParityReport, Row
from triptych.runtimes.base import Execution
from triptych.types import ComponentName

FactKind: TypeAlias = Literal[
    "precondition", "setting", "execution", "engine", "machine", "environment", "package"
]
"""precondition: what must be equal before numbers mean anything. setting: of the run. execution:
what was seen to compute. engine: versions of what computes. machine: processor and system.
environment: variables that engines read. package: versions of everything else."""

FACT_KINDS: tuple[FactKind, ...] = get_args(FactKind)
"""Most likely to change numbers first."""

Facts: TypeAlias = dict[FactKind, dict[str, str]]
"""Values by kind and name. What a document does not tell is not there; an environment that is there
is told in full."""

ENGINE_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "coremltools")
"""Those of `fingerprint.PACKAGES` that run networks."""

_MACHINE = {
    "processor": "processor",
    "gpu": "GPU",
    "system": "system",
    "num_cpus": "number of processors",
}


def report_facts(report: ParityReport) -> Facts:
    """What a report of `check --json` tells."""
    facts = fingerprint_facts(asdict(report.fingerprint))
    facts["precondition"] = dict(report.preconditions)
    facts["setting"] = {name: value_text(value) for name, value in report.settings.items()}
    facts["execution"] = {}
    for candidate in report.candidates:
        facts["precondition"].update(_feed_facts(candidate.rows))
        facts["execution"].update(_execution_facts(candidate.runtime, candidate.executions))
    facts["execution"]["engines"] = ", ".join(
        sorted(candidate.runtime for candidate in report.candidates)
    )
    return facts


def reference_facts(report: ParityReport) -> Facts:
    """What a report tells of the machine that its reference was recorded on."""
    if report.reference is None:
        return {}
    facts = fingerprint_facts(asdict(report.reference.fingerprint))
    facts["execution"] = dict(_execution_facts("unet", {"unet": report.reference.execution}))
    return facts


def document_facts(document: Mapping[str, object]) -> Facts:
    """What `doctor --json` or a golden's manifest tells; nothing, for any other JSON object."""
    engines = document.get("engines")
    probes = [_mapping(probe) for probe in engines] if isinstance(engines, list) else []
    fingerprint = _mapping(document.get("fingerprint")) or (document if probes else {})
    facts = fingerprint_facts(fingerprint)
    facts["precondition"] = precondition_texts(_mapping(document.get("preconditions")))
    facts["setting"] = _texts(document.get("settings"))
    facts["execution"] = {}
    for probe in probes:
        runtime = value_text(probe.get("runtime"))
        facts["execution"].update(
            {
                f"{runtime} float32 models on {device}": precision
                for device, precision in _texts(probe.get("precision")).items()
            }
        )
        facts["machine"][f"{runtime} devices"] = value_text(probe.get("devices"))
        for name, version in _texts(probe.get("versions")).items():
            facts["engine" if name in ENGINE_PACKAGES else "package"].setdefault(name, version)
    return facts


def golden_facts(document: Mapping[str, object]) -> Facts:
    """What a golden's manifest tells of the machine that it was recorded on."""
    if "preconditions" not in document:
        return {}
    facts = fingerprint_facts(_mapping(document.get("fingerprint")))
    try:
        execution = msgspec.convert(document.get("execution"), Execution)
    except msgspec.ValidationError:
        return facts
    return {**facts, "execution": dict(_execution_facts("unet", {"unet": execution}))}


def fingerprint_facts(fingerprint: Mapping[str, object]) -> Facts:
    """What a fingerprint tells, which may lack any of its fields."""
    machine = {
        name: value_text(fingerprint[key]) for key, name in _MACHINE.items() if key in fingerprint
    }
    features = fingerprint.get("cpu_features")
    if isinstance(features, list | tuple) and features:  # empty where the system does not tell
        for feature in CPU_FEATURES:
            machine[feature] = "there" if feature in features else "absent"
    versions = _texts(fingerprint.get("packages"))
    if versions:
        versions = {**dict.fromkeys(PACKAGES, "not installed"), **versions}
    for name in ("triptych", "python"):
        if name in fingerprint:
            versions[name] = value_text(fingerprint[name])
    facts: Facts = {
        "engine": {name: found for name, found in versions.items() if name in ENGINE_PACKAGES},
        "machine": machine,
        "package": {name: found for name, found in versions.items() if name not in ENGINE_PACKAGES},
    }
    if "environment" in fingerprint:
        facts["environment"] = _texts(fingerprint["environment"])
    return facts


def value_text(value: object) -> str:
    """A value in one line: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _execution_facts(
    name: str, executions: Mapping[ComponentName, Execution]
) -> Iterable[tuple[str, str]]:
    """For each thing that engines tell the value, and of which components where they differ."""
    told: dict[str, dict[str, list[str]]] = {}
    for component, execution in executions.items():
        fields = {
            "precision": execution.precision,
            "device": execution.device,
            "version": execution.version,
            **execution.details,
        }
        if execution.declared_precision is not None:
            fields["declared precision"] = execution.declared_precision
        for field, value in fields.items():
            told.setdefault(field, {}).setdefault(value, []).append(component)
    for field, components in told.items():
        shown = [f"{value} ({', '.join(found)})" for value, found in sorted(components.items())]
        yield f"{name} {field}", next(iter(components)) if len(shown) == 1 else "; ".join(shown)


def _feed_facts(rows: Iterable[Row]) -> dict[str, str]:
    """A hash over the inputs of each component: with others, other outputs are to be expected."""
    hashes: dict[str, set[str]] = {}
    for row in rows:
        if row.stage == "component" and row.feed_sha256:
            hashes.setdefault(row.component, set()).add(row.feed_sha256)
    return {
        f"feeds of {component}": f"{len(found)}, sha256 "
        + hashlib.sha256("".join(sorted(found)).encode()).hexdigest()[:12]
        for component, found in hashes.items()
    }


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> dict[str, str]:
    return {name: value_text(found) for name, found in _mapping(value).items()}
