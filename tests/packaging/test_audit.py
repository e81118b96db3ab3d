"""The audit of what is installed: it finds what a source knows, and never passes in silence where there is none."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging_support import ROOT, load_script

#: Where nobody listens.
NOBODY = "http://127.0.0.1:9"


class Source(BaseHTTPRequestHandler):
    """Advisories: OSV's where `osv`, the index's where `index`; all know that pillow is vulnerable."""

    offers = frozenset({"osv", "index"})

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        first, second = {"vulns": [{"id": "GHSA-1"}], "next_page_token": "2"}, {"vulns": [{"id": "GHSA-2"}]}
        vulnerable = [second if query.get("page_token") == "2" else first for query in queries]
        results = [
            answer if query["package"]["name"] == "pillow" else {}
            for query, answer in zip(queries, vulnerable, strict=True)
        ]
        self._answer("osv", {"results": results})

    def do_GET(self) -> None:
        known = [{"id": "PYSEC-1"}, {"id": "PYSEC-2", "withdrawn": "2026"}] if "/pillow/" in self.path else []
        self._answer("index", {"vulnerabilities": known})

    def _answer(self, offer: str, body: Mapping[str, Any]) -> None:
        self.send_response(200 if offer in self.offers else 404)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode() if offer in self.offers else b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def source() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Source) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def audit(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "audit.py", *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("places", "name"),
    [(("{}", NOBODY), "GHSA-1"), (("{}", NOBODY), "GHSA-2"), ((NOBODY, "{}"), "PYSEC-1")],
    ids=["osv", "osv, next page", "index"],
)
def test_a_known_vulnerability_fails_the_audit_by_name(source: str, places: tuple[str, str], name: str) -> None:
    osv, index = (place.format(source) for place in places)
    done = audit("--osv", osv, "--index", index)
    assert done.returncode == 1
    assert f": {name}:" in done.stderr
    assert "pillow" in done.stderr
    assert "PYSEC-2" not in done.stderr, "a withdrawn advisory is none"


def test_without_advisories_the_audit_says_that_it_was_not_done() -> None:
    done, strict = audit("--osv", NOBODY, "--index", NOBODY), audit("--strict", "--osv", NOBODY, "--index", NOBODY)
    assert "VULNERABILITIES NOT AUDITED" in done.stderr
    assert (done.returncode, strict.returncode) == (0, 3)
    assert "looked up," not in done.stdout


def test_everything_that_is_installed_by_a_lock_file_is_audited() -> None:
    audited = {path.name for path in load_script("audit").FILES}
    assert audited == {"constraints.txt", *(path.name for path in (ROOT / "deploy").glob("requirements-*.txt"))}


FAKE_TRIVY = """#!/bin/sh
echo "$@"
exit $TRIVY_FINDS
"""


@pytest.mark.parametrize(
    ("installed", "finds", "strict", "status", "says"),
    [
        (True, 0, "", 0, "config --quiet --severity HIGH,CRITICAL --exit-code 1 chart"),
        (True, 1, "", 1, "config"),
        (False, 0, "", 0, "TRIVY SKIPPED"),
        (False, 0, "yes", 1, "TRIVY SKIPPED"),
    ],
)
def test_what_trivy_finds_fails_and_its_absence_is_said(
    tmp_path: Path, installed: bool, finds: int, strict: str, status: int, says: str
) -> None:
    if installed:
        (tmp_path / "trivy").write_text(FAKE_TRIVY)
        (tmp_path / "trivy").chmod(0o755)
    environment = {"PATH": str(tmp_path), "STRICT": strict, "TRIVY_FINDS": str(finds)}
    command = ["/bin/bash", ROOT / "scripts" / "trivy.sh", "config", "chart"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == status
    assert says in done.stdout + done.stderr


def test_the_tests_that_the_document_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named
    assert not named - defined


def test_every_exception_has_its_reason() -> None:
    script = load_script("audit")
    exceptions = script.read_exceptions(script.EXCEPTIONS.read_text())
    assert all(len(reason) > 20 for reason in exceptions.values())
    assert script.read_exceptions("# no\n\nGHSA-9: not reachable: until 2027\n") == {
        "GHSA-9": "not reachable: until 2027"
    }
