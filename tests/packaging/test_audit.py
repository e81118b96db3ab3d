"""The audit of what is installed: it finds what a source knows, and never passes in silence where there is none."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
        vulnerable = {"vulns": [{"id": "GHSA-1"}]}
        results = [vulnerable if query["package"]["name"] == "pillow" else {} for query in queries]
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
    ("places", "name"), [(("{}", NOBODY), "GHSA-1"), ((NOBODY, "{}"), "PYSEC-1")], ids=["osv", "index"]
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
