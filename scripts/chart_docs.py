#!/usr/bin/env python3
"""Writes what is derived from helm/sagittal/values.yaml and its comments: README.md and values.schema.json.

With --check it writes nothing, and fails where a file is not current.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from sagittal.runtime.settings import QueueSettings
from sagittal.server.settings import ServiceSettings
from sagittal.worker.settings import WorkerSettings

CHART = Path(__file__).parents[1] / "helm" / "sagittal"

INTRODUCTION = """# The Sagittal chart

Installs the service, workers and, if wanted, a Valkey. How to deploy, drain and scale: docs/operations.md.

    helm install sagittal helm/sagittal --values helm/sagittal/ci/cpu-only-values.yaml

`ci/` holds values to begin with: `cpu-only`, `gpu` (two pools, scaled from zero), `ha` (external Redis, autoscaling)
and `locked-down` (mTLS, tokens, digests). Needs Kubernetes 1.30 or later, and Helm 3.17 or later.

This file and `values.schema.json` are generated from `values.yaml` by `make chart`.

| value | default | what it is |
| --- | --- | --- |
"""

PORT = {"minimum": 1, "maximum": 65535}
COUNT = {"minimum": 0}
NAME = {"pattern": "^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$"}
DIGEST = {"pattern": "^(sha256:[0-9a-f]{64})?$"}
PULL = {"enum": ["Always", "IfNotPresent", "Never"]}
QUANTITY = {"pattern": "^[0-9]+([.][0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"}
MODEL = {"pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"}

#: What a key's value must be, beyond the type of its default, by the last parts of its path.
RULES: Mapping[str, Mapping[str, Any]] = {
    "digest": DIGEST,
    "pullPolicy": PULL,
    "replicas": COUNT,
    "minReplicas": COUNT,
    "maxReplicas": {"minimum": 1},
    "jobsPerWorker": {"minimum": 1},
    "port": PORT,
    "metricsPort": PORT,
    "servicePort": PORT,
    "redisPorts": {"items": {"type": "integer", **PORT}, "minItems": 1},
    "drainSeconds": COUNT,
    "preStopSeconds": COUNT,
    "startupSeconds": {"minimum": 5},
    "pollSeconds": {"minimum": 1},
    "cooldownSeconds": COUNT,
    "tmpSize": QUANTITY,
    "persistence.size": QUANTITY,
    "modelCache.size": QUANTITY,
    "variant": {"enum": ["cpu", "cuda"]},
    "appendFsync": {"enum": ["always", "everysec"]},
    "maxMemory": {"pattern": "^[1-9][0-9]*(kb|mb|gb)$"},
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "interval": {"pattern": "^[0-9]+(ms|s|m)$"},
    "targetCPUUtilizationPercentage": {"minimum": 1, "maximum": 100},
    "maxUnavailable": {"type": ["integer", "string"]},
    "workerDefaults.models": {"items": {"type": "string", **MODEL}},
    "models": {"type": "object", "propertyNames": MODEL, "additionalProperties": {"type": "string"}},
}

#: Settings that the chart sets by values of their own.
OWNED = frozenset(
    {"listen", "metrics_host", "metrics_port", "log_format", "drain", "tokens", "worker_name", "models_file"}
)


@dataclass(frozen=True, slots=True)
class Documented:
    """A commented value."""

    path: str
    default: Any
    text: str


def setting_names(settings: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields the settings that a chart's `settings` may name: in lower case, `__` between levels."""
    for name, field in settings.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            if nested is not QueueSettings and name != "tls":
                yield from setting_names(nested, f"{name}__")
        elif prefix or name not in OWNED:
            yield prefix + name


def read_comments(text: str) -> Mapping[str, str]:
    """Returns the `# --` comment of each key by its path."""
    comments: dict[str, str] = {}
    path: list[str] = []
    comment = ""
    for line in text.splitlines():
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if stripped.startswith("# -- "):
            comment = stripped.removeprefix("# -- ")
        elif ":" in stripped and not stripped.startswith(("#", "-")):
            path = [*path[: indent // 2], stripped.split(":", 1)[0]]
            if comment:
                comments[".".join(path)], comment = comment, ""
    return comments


def documented(values: Mapping[str, Any], comments: Mapping[str, str], above: str = "") -> Iterator[Documented]:
    """Yields every value that has a comment, in the order of the file. Raises ValueError where one has none."""
    for name, value in values.items():
        path = f"{above}{name}"
        if path in comments:
            yield Documented(path, value, comments[path])
        elif isinstance(value, dict) and value:
            yield from documented(value, comments, f"{path}.")
        else:
            raise ValueError(f"values.yaml: {path} has no `# --` comment")


def readme(values: list[Documented]) -> str:
    """Returns the chart's README."""
    rows = []
    for value in values:
        shown = "see values.yaml" if value.path in {"models", "workers"} else f"`{json.dumps(value.default)}`"
        rows.append(f"| `{value.path}` | {shown} | {value.text} |".replace("<", "&lt;"))
    return INTRODUCTION + "\n".join(rows) + "\n"


def schema(values: Mapping[str, Any], comments: Mapping[str, str]) -> dict[str, Any]:
    """Returns the JSON schema of the values: types of the defaults, RULES, and no key that is not known."""
    whole = _object(values, comments, "")
    worker = json.loads(json.dumps(whole["properties"]["workerDefaults"]))
    worker["properties"]["name"] = {"type": "string", **NAME}
    worker["required"] = ["name"]
    whole["properties"]["workers"] = {"type": "array", "items": worker, "description": comments["workers"]}
    whole["properties"]["global"] = {"type": "object"}  # Helm's own, for charts that include this one
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the Sagittal chart", **whole}


def _object(values: Mapping[str, Any], comments: Mapping[str, str], above: str) -> dict[str, Any]:
    properties = {name: _property(f"{above}{name}", value, comments) for name, value in values.items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(path: str, value: Any, comments: Mapping[str, str]) -> dict[str, Any]:
    if path not in comments:
        return _object(value, comments, f"{path}.")
    kinds = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    last = path.rsplit(".", 1)[-1]
    rule = RULES.get(path) or RULES.get(".".join(path.split(".")[-2:])) or RULES.get(last, {})
    named = _settings(path) if last == "settings" else {}
    return {"description": comments[path], "type": kinds[type(value)], **rule, **named}


def _settings(path: str) -> dict[str, Any]:
    owners: Mapping[str, type[BaseModel]] = {
        "queue": QueueSettings,
        "service": ServiceSettings,
        "workerDefaults": WorkerSettings,
    }
    settings = owners[path.partition(".")[0]]
    taken = {"url", "password"} if settings is QueueSettings else set()
    return {"propertyNames": {"enum": sorted(set(setting_names(settings)) - taken)}}


def main() -> int:
    """Writes the files, or with --check says which are not current."""
    text = (CHART / "values.yaml").read_text()
    values, comments = yaml.safe_load(text), read_comments(text)
    wanted = {
        CHART / "README.md": readme(list(documented(values, comments))),
        CHART / "values.schema.json": json.dumps(schema(values, comments), indent=2) + "\n",
    }
    stale = [path for path, content in wanted.items() if not path.exists() or path.read_text() != content]
    if "--check" in sys.argv[1:]:
        sys.stderr.write("".join(f"{path.name} is not current: run make chart\n" for path in stale))
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
