"""A report as JUnit XML, which CI systems show: a suite for each engine, a case for each row."""

import re
import xml.etree.ElementTree as ET

from triptych.parity.facts import report_facts
from triptych.parity.report import CandidateReport, ParityReport, Row
from triptych.types import Verdict

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, even escaped. Source: w3.org/TR/xml, production 2, Char."""


def junit_xml(report: ParityReport) -> str:
    """The report as one document in the form that CI systems read.

    What failed is a failure. What did not run is skipped, with its reason. A warning is a pass
    that says so in its output.
    """
    suites = ET.Element("testsuites", name="triptych check")
    for candidate in report.candidates:
        suite = ET.SubElement(
            suites,
            "testsuite",
            name=_text(candidate.runtime),
            timestamp=_text(report.created.partition("+")[0]),
        )
        _properties(suite, candidate, report)
        for row in candidate.rows:
            _case(suite, candidate.runtime, row)
        if not candidate.rows:
            _nothing(suite, candidate)
        _count(suite)
    _count(suites)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _properties(suite: ET.Element, candidate: CandidateReport, report: ParityReport) -> None:
    """What was checked, against what and where: what a later reader asks first."""
    told = {"bundle": candidate.bundle, "format": candidate.format}
    if report.reference is not None:
        told["reference"] = report.reference.name
    for kind, facts in report_facts(report).items():
        told.update({f"{kind}: {name}": value for name, value in facts.items()})
    properties = ET.SubElement(suite, "properties")
    for name, value in told.items():
        ET.SubElement(properties, "property", name=_text(name), value=_text(value))


def _case(suite: ET.Element, runtime: str, row: Row) -> None:
    step = f"step {row.step}" if row.step is not None else ""
    named = (row.component, row.case, row.tensor, row.branch or "", step)
    case = ET.SubElement(
        suite,
        "testcase",
        classname=_text(f"triptych.{runtime}.{row.stage}"),
        name=_text(", ".join(part for part in named if part)),
        time="0",
    )
    _outcome(case, row.verdict, row.reason, _numbers(row))


def _nothing(suite: ET.Element, candidate: CandidateReport) -> None:
    """An engine without a single row has not passed: one case says why."""
    case = ET.SubElement(
        suite, "testcase", classname=_text(f"triptych.{candidate.runtime}"), name="run", time="0"
    )
    _outcome(case, candidate.verdict, candidate.unavailable or "nothing was compared", "")


def _outcome(case: ET.Element, verdict: Verdict, reason: str, numbers: str) -> None:
    if verdict == "failed":
        failure = ET.SubElement(case, "failure", type="parity", message=_text(reason))
        failure.text = _text(numbers)
    elif verdict == "not_run":
        ET.SubElement(case, "skipped", message=_text(reason))
    elif verdict == "warned":
        ET.SubElement(case, "system-out").text = _text(f"warned: {reason}\n{numbers}")


def _numbers(row: Row) -> str:
    """What was measured, one line a number."""
    measured = {
        "relative L2": row.rel_l2,
        "limit": row.limit,
        "floor": row.floor,
        "ratio": row.ratio,
        "cosine": row.cosine,
        "max abs": row.max_abs,
    }
    lines = [f"{name}: {value:g}" for name, value in measured.items() if value is not None]
    return "\n".join([*lines, f"class: {row.precision}", f"ran: {row.ran or 'not told'}"])


def _count(element: ET.Element) -> None:
    """The numbers that CI systems show beside a suite's name."""
    element.set("tests", str(len(list(element.iter("testcase")))))
    element.set("failures", str(len(list(element.iter("failure")))))
    element.set("errors", "0")
    element.set("skipped", str(len(list(element.iter("skipped")))))
    element.set("time", "0")


def _text(value: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", value)
