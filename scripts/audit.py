#!/usr/bin/env python3
"""Looks up known vulnerabilities of all packages that images and tests install, at OSV or at the package index.

One query to OSV covers all packages. If OSV cannot be reached, each package is looked up at the index. If neither
answers, nothing is audited; the script prints this in capitals and exits with 0, or with 3 under --strict. Accepted
findings are in deploy/audit-exceptions.txt, each with its reason.
"""

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "constraints.txt", *sorted((ROOT / "deploy").glob("requirements-*.txt")))
EXCEPTIONS = ROOT / "deploy" / "audit-exceptions.txt"

#: Longest time to wait for an answer, in seconds.
PATIENCE = 20.0

Pin = tuple[str, str]


class NoAdvisories(Exception):
    """A source cannot be reached, or has no advisories."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A known vulnerability of a release."""

    pin: Pin
    name: str

    def __str__(self) -> str:
        """Returns the finding as one line."""
        return f"{self.pin[0]} {self.pin[1]}: {self.name}: https://osv.dev/vulnerability/{self.name}"


def main() -> int:
    """Runs the audit; returns 1 if something was found, 3 if nothing could be looked up under --strict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true", help="fail if no advisories are available")
    parser.add_argument("--osv", default="https://api.osv.dev", help="URL of OSV")
    parser.add_argument("--index", default="https://pypi.org", help="URL of the package index")
    given = parser.parse_args()
    pins = sorted({pin for file in FILES for pin in read_pins(file.read_text())})
    try:
        findings = _ask(pins, given.osv, given.index)
    except NoAdvisories as error:
        sys.stderr.write(
            f"audit: VULNERABILITIES NOT AUDITED: {error}. None of the {len(pins)} releases was looked up; "
            "run this with access to one of the two.\n"
        )
        return 3 if given.strict else 0
    excepted = read_exceptions(EXCEPTIONS.read_text())
    found = [finding for finding in findings if finding.name not in excepted]
    sys.stderr.writelines(f"audit: {finding}\n" for finding in found)
    sys.stdout.write(f"audit: {len(pins)} releases looked up, {len(found)} vulnerabilities found\n")
    return int(bool(found))


def _ask(pins: Sequence[Pin], osv: str, index: str) -> list[Finding]:
    try:
        return list(ask_osv(pins, osv))
    except NoAdvisories as away:
        try:
            return list(ask_index(pins, index))
        except NoAdvisories as error:
            raise NoAdvisories(f"{away}; {error}") from error


def ask_osv(pins: Sequence[Pin], url: str) -> Iterable[Finding]:
    """Yields the findings of OSV, which splits long answers into pages. Raises NoAdvisories."""
    pages = dict.fromkeys(pins, "")
    while pages:
        queries = [
            {"version": version, "package": {"name": name, "ecosystem": "PyPI"}}
            | ({"page_token": page} if page else {})
            for (name, version), page in pages.items()
        ]
        answer = _get(f"{url}/v1/querybatch", json.dumps({"queries": queries}).encode())
        if "results" not in answer:
            raise NoAdvisories(f"{url} does not answer like OSV; check --osv")
        results = dict(zip(pages, answer["results"], strict=True))
        for pin, result in results.items():
            yield from (Finding(pin, known["id"]) for known in result.get("vulns", ()))
        pages = {pin: result["next_page_token"] for pin, result in results.items() if result.get("next_page_token")}


def ask_index(pins: Sequence[Pin], url: str) -> Iterable[Finding]:
    """Yields the findings of the index, package by package. Raises NoAdvisories."""
    for name, version in pins:
        answer = _get(f"{url}/pypi/{name}/{version}/json")
        if "vulnerabilities" not in answer:
            raise NoAdvisories(f"{url} has no advisories")
        known = (entry for entry in answer["vulnerabilities"] if not entry.get("withdrawn"))
        yield from (Finding((name, version), entry["id"]) for entry in known)


def read_pins(text: str) -> Iterable[Pin]:
    """Yields name and version of each pinned requirement."""
    for match in re.finditer(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE):
        yield re.sub(r"[-_.]+", "-", match.group(1)).lower(), match.group(2)


def read_exceptions(text: str) -> Mapping[str, str]:
    """Returns the reason of each accepted finding; lines are `NAME: reason`."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {name.strip(): reason.strip() for name, _, reason in (line.partition(":") for line in lines)}


def _get(url: str, data: bytes | None = None) -> Any:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - the URL comes from the caller
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise NoAdvisories(f"{url}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
