"""The example of sign-in by a reverse proxy: its parts agree, and only the proxy reaches the page."""

import json
import re

import yaml
from packaging_support import ROOT

from sagittal.page.settings import PageSettings
from sagittal.server.settings import ServiceSettings

FOLDER = ROOT / "examples" / "oidc"
BASE = yaml.safe_load((ROOT / "compose.yaml").read_text())
ADDED = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
NGINX = (FOLDER / "nginx.conf.template").read_text()


def test_the_proxy_sets_the_header_that_the_page_reads(monkeypatch) -> None:
    environment = ADDED["service"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SAGITTAL_TOKENS", json.dumps({"a" * 64: {"tenant": "vision", "roles": ["explain"]}}))
    page = PageSettings()
    assert ServiceSettings().page
    headers = dict(re.findall(r"proxy_set_header (\S+) (\S+);", _location("/")))
    assert headers[page.token_header] == "${SAGITTAL_TOKEN}"
    assert f"proxy_pass http://service:{page.listen_port};" in _location("/")
    assert page.listen_host == "0.0.0.0"  # noqa: S104 - inside the network of the containers


def test_only_the_proxy_is_reached_from_outside() -> None:
    published = [port for service in (BASE["services"] | ADDED).values() for port in service.get("ports", [])]
    assert not any(str(port).endswith(f":{PageSettings().listen_port}") for port in published)
    assert ADDED["proxy"]["ports"] == ["127.0.0.1:4180:80"]
    assert "auth_request /oauth2/auth;" in _location("/")
    assert "internal;" in _location("= /oauth2/auth")


def test_every_variable_is_in_the_walk_through() -> None:
    told = (ROOT / "docs" / "page.md").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", (FOLDER / "compose.yaml").read_text()))
    assert used
    assert all(f"\n{name}=" in told for name in used)


def test_the_configuration_of_nginx_is_balanced_and_its_networks_exist() -> None:
    assert NGINX.count("{") == NGINX.count("}")
    for service in ("sign-in", "proxy"):
        assert set(ADDED[service]["networks"]) <= set(BASE["networks"])


def _location(name: str) -> str:
    """Returns the directives of a location."""
    found = re.search(rf"location {re.escape(name)} {{(.*?)\n    }}", NGINX, re.DOTALL)
    assert found is not None
    return found.group(1)
