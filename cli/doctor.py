"""`vidllm doctor`: what works here, what is missing, how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .output import write, write_json

if TYPE_CHECKING:
    from vidllm.doctor import Finding, Report

MARKS = {"ok": "+", "missing": "-", "broken": "!"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> int:
    """Versions, readers that really load, devices, caches; what is missing and how to get it.

    \b
    Examples:
      vidllm doctor
      vidllm doctor --json | jq .readers

    Exit code 1 when no question can be answered here.
    """
    from vidllm.doctor import examine

    report = examine()
    if as_json:
        write_json(report.to_dict())
    else:
        write("\n".join(_lines(report)) + "\n")
    return 0 if report.healthy else 1


def _lines(report: Report) -> list[str]:
    lines = [report.system, ""]
    lines += [f"  {name:<14}{version or 'not installed'}" for name, version in report.versions.items()]
    rooms = (
        ("wrong versions", report.unmet), ("readers", report.readers), ("devices", report.devices),
        ("models", report.models),
    )  # fmt: skip
    for title, findings in rooms:
        if findings:
            lines += ["", title, *(line for finding in findings for line in _finding(finding))]
    lines += ["", "caches"]
    for use in report.caches:
        lines.append(f"  {use.kind:<14}{use.bytes / 1e6:.1f} MB in {use.files} files, {use.folder}")
        lines += [f"! {'':<14}{use.trouble}"] if use.trouble else []
    return lines


def _finding(finding: Finding) -> list[str]:
    lines = [f"{MARKS[finding.status]} {finding.name:<13} {finding.detail}"]
    return lines + ([f"  {'':<14}{finding.cure}"] if finding.cure else [])
