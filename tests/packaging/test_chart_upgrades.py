"""What an upgrade of the chart changes, and what it leaves alone."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging_support import CHART

CI = sorted(path.name for path in (CHART / "ci").iterdir())
WORKLOADS = {"Deployment", "StatefulSet"}


def workloads(helm: Path, chart: Path, values: str) -> Mapping[str, Mapping[str, Any]]:
    """Returns the specs of the workloads of a chart, with images that do not follow its version."""
    pinned = ["--set", "service.image.tag=v1", "--set", "workerDefaults.image.tag=v1"]
    command = [helm, "template", "rel", chart, "--namespace", "ns", "--values", CHART / "ci" / values, *pinned]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    return {document["metadata"]["name"]: document["spec"] for document in documents if document["kind"] in WORKLOADS}


@pytest.mark.parametrize("values", CI)
def test_a_release_of_the_chart_that_changes_nothing_restarts_no_pod(helm: Path, tmp_path: Path, values: str) -> None:
    newer = tmp_path / "sagittal"
    shutil.copytree(CHART, newer)
    described = yaml.safe_load((newer / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(yaml.safe_dump({**described, "version": "9.8.7", "appVersion": "6.5.4"}))
    before, after = workloads(helm, CHART, values), workloads(helm, newer, values)
    assert before == after, "templates of pods and of volumes, selectors and all"
    for spec in after.values():
        assert "9.8.7" not in yaml.safe_dump(spec)


#: What the chart's objects are in Kubernetes's API: the plural and the kind, by group and version.
RESOURCES = {
    "api/v1": {
        "services": "Service",
        "configmaps": "ConfigMap",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
    },
    "apis/apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "apis/policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "apis/networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy", "ingresses": "Ingress"},
}


def installed_valkey(name: str, release: str = "rel") -> Mapping[str, Any]:
    """Returns the StatefulSet of a bundled Valkey as a cluster has it."""
    labels = {"app.kubernetes.io/instance": release, "app.kubernetes.io/component": "valkey"}
    metadata = {"name": name, "namespace": "ns", "labels": labels}
    metadata["annotations"] = {"meta.helm.sh/release-name": release}
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata}


def discovery(group_version: str, resources: Mapping[str, str]) -> Mapping[str, Any]:
    listed = [
        {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
        for name, kind in resources.items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}


def answers(stateful_sets: list[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Returns what an API server answers to what Helm asks for a dry run."""
    groups = []
    found: dict[str, Mapping[str, Any]] = {
        "/version": {"major": "1", "minor": "31", "gitVersion": "v1.31.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis/apps/v1/namespaces/ns/statefulsets": {
            "apiVersion": "apps/v1",
            "kind": "StatefulSetList",
            "metadata": {},
            "items": stateful_sets,
        },
    }
    for place, resources in RESOURCES.items():
        version = place.partition("/")[2]
        found[f"/{place}"] = discovery(version, resources)
        if place.startswith("apis/"):
            served = {"groupVersion": version, "version": "v1"}
            groups.append({"name": version.partition("/")[0], "versions": [served], "preferredVersion": served})
    found["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return found


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The address of an API server, and the StatefulSets that it has."""
    stateful_sets: list[Mapping[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers(stateful_sets).get(self.path.partition("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", stateful_sets
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def upgrade(helm: Path, address: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Renders an upgrade of the release as Helm does with a cluster at hand."""
    command = [helm, "template", "rel", CHART, "--namespace", "ns", "--is-upgrade", "--dry-run=server"]
    command += ["--disable-openapi-validation", "--kube-apiserver", address]
    for option in options:
        command += ["--set", option]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("option", ["nameOverride=other", "fullnameOverride=other"])
def test_an_upgrade_that_would_leave_the_queue_behind_is_refused(helm: Path, cluster, option: str) -> None:
    address, stateful_sets = cluster
    stateful_sets.append(installed_valkey("rel-sagittal-valkey"))
    done = upgrade(helm, address, option)
    assert done.returncode
    assert "leave the queue of rel-sagittal-valkey behind in the volume data-rel-sagittal-valkey-0" in done.stderr
    assert "kubectl --namespace ns delete statefulset rel-sagittal-valkey" in done.stderr


def test_an_upgrade_under_the_same_name_is_taken_whatever_else_is_installed(helm: Path, cluster) -> None:
    address, stateful_sets = cluster
    stateful_sets += [installed_valkey("rel-sagittal-valkey"), installed_valkey("two-sagittal-valkey", release="two")]
    assert not upgrade(helm, address).returncode


def test_an_upgrade_to_another_name_is_taken_once_the_old_queue_is_deleted(helm: Path, cluster) -> None:
    address, _ = cluster
    assert not upgrade(helm, address, "nameOverride=other").returncode
