#!/usr/bin/env python3
"""Generates the chart's README.md and values.schema.json from helm/sagittal/values.yaml and its comments.

With --check it writes nothing, and fails if a file is not current.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_settings import NoDecode

from sagittal.queue.settings import QueueSettings
from sagittal.server.settings import ServiceSettings
from sagittal.worker.settings import WorkerSettings

CHART = Path(__file__).parents[1] / "helm" / "sagittal"

INTRODUCTION = """# The Sagittal chart

Installs the service, workers and, optionally, Valkey. See docs/operations.md for deploying, draining and scaling.

On a plain cluster without a GPU, such as kind, build the images and load them first:

    make image COMPUTE=cpu
    kind load docker-image sagittal-service:0.1.0 sagittal-worker:0.1.0-cpu
    helm install sagittal helm/sagittal --values helm/sagittal/ci/cpu-only-values.yaml \\
      --set service.image.repository=sagittal-service --set workerDefaults.image.repository=sagittal-worker

`ci/` has examples to start from: `cpu-only`, `gpu` (two pools, scaled from zero), `gpu-sharing` (MIG, time slices,
several GPUs in a pod, spot nodes), `ha` (external Redis, autoscaling),
`locked-down` (mTLS, tokens, digests), `prefetch` (weights and images on each node ahead of the workers) and
`valkey-replicas` (three bundled Valkeys with Sentinels). Requires Kubernetes 1.30 or later and Helm 3.17 or later.

This file and `values.schema.json` are generated from `values.yaml` by `make chart`.

| value | default | description |
| --- | --- | --- |
"""

PORT = {"minimum": 1, "maximum": 65535}
COUNT = {"minimum": 0}
NAME = {"pattern": "^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$"}
DIGEST = {"pattern": "^(sha256:[0-9a-f]{64})?$"}
PULL = {"enum": ["Always", "IfNotPresent", "Never"]}
MODEL = "^[a-z0-9][a-z0-9._-]{0,63}$"
TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
#: A number. Helm passes a fraction from `--set`, such as `0.5`, as text.
NUMBER = {"type": ["number", "string"], "pattern": "^[0-9]+([.][0-9]+)?$"}
#: A quantity in Kubernetes notation: `1500Mi`, `0.5`, `250m`.
QUANTITY = {
    "type": ["string", "number"],
    "pattern": "^[0-9]+([.][0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][0-9]+)?$",
    "exclusiveMinimum": 0,
}
SIZE = {"pattern": "^[0-9]+([.][0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"}
SHARE = {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+%$"}


def closed(**properties: Any) -> dict[str, Any]:
    """Returns the schema of an object with these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def listed(item: Mapping[str, Any], **rule: Any) -> dict[str, Any]:
    """Returns the schema of a list."""
    return {"type": "array", "items": item, **rule}


#: Parts of Kubernetes objects in values, as far as a misspelling in them would go unnoticed.
SELECTOR = closed(
    matchLabels=TEXTS,
    matchExpressions=listed(
        {
            **closed(
                key=TEXT, operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]}, values=listed(TEXT)
            ),
            "required": ["key", "operator"],
        }
    ),
)
PEERS = listed(
    {
        **closed(
            ipBlock={**closed(cidr=TEXT, **{"except": listed(TEXT)}), "required": ["cidr"]},
            namespaceSelector=SELECTOR,
            podSelector=SELECTOR,
        ),
        "minProperties": 1,
    }
)
EGRESS = listed(
    closed(
        to=PEERS,
        ports=listed(
            closed(
                port={"type": ["integer", "string"]},
                endPort={"type": "integer", **PORT},
                protocol={"enum": ["TCP", "UDP", "SCTP"]},
            )
        ),
    )
)
RESOURCES = closed(
    requests={"type": "object", "additionalProperties": QUANTITY},
    limits={"type": "object", "additionalProperties": QUANTITY},
    claims=listed({"type": "object"}),
)
TOLERATIONS = listed(
    closed(
        key=TEXT,
        operator={"enum": ["Exists", "Equal", "Lt", "Gt"]},
        value=TEXT,
        effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute", ""]},
        tolerationSeconds={"type": "integer"},
    )
)
SPREAD = listed(
    {
        **closed(
            maxSkew={"type": "integer", "minimum": 1},
            topologyKey=TEXT,
            whenUnsatisfiable={"enum": ["DoNotSchedule", "ScheduleAnyway"]},
            labelSelector=SELECTOR,
            minDomains={"type": "integer", "minimum": 1},
            matchLabelKeys=listed(TEXT),
            nodeAffinityPolicy={"enum": ["Honor", "Ignore"]},
            nodeTaintsPolicy={"enum": ["Honor", "Ignore"]},
        ),
        "required": ["maxSkew", "topologyKey", "whenUnsatisfiable"],
    }
)
AFFINITY = closed(**{name: {"type": "object"} for name in ("nodeAffinity", "podAffinity", "podAntiAffinity")})
ENVIRONMENT = listed({**closed(name=TEXT, value=TEXT, valueFrom={"type": "object"}), "required": ["name"]})


def alert_changes() -> dict[str, Any]:
    """Returns the schema of `prometheusRule.rules`: what may change of each rule of files/alerts.yaml."""
    changes = {}
    for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            threshold = {"threshold": NUMBER} if "threshold" in rule["annotations"] else {}
            changes[rule["alert"]] = closed(
                enabled={"type": "boolean"},
                severity={"enum": ["warning", "critical"]},
                **{"for": {"type": "string", "pattern": "^[0-9]+(s|m|h|d)$"}},
                **threshold,
            )
    return closed(**changes)


#: Rules for values beyond the type of the default, by the last parts of their path.
RULES: Mapping[str, Mapping[str, Any]] = {
    "digest": DIGEST,
    "pullPolicy": PULL,
    "imagePullSecrets": listed({**closed(name=TEXT), "required": ["name"]}),
    "valkey.replicas": {"enum": [1, 3, 5]},
    "replicas": COUNT,
    "autoscaling.minReplicas": {"minimum": 1},
    "keda.minReplicas": COUNT,
    "maxReplicas": {"minimum": 1},
    "jobsPerWorker": {"minimum": 1},
    "keep": {"minimum": 1},
    "schedule": {"pattern": "^(@[a-z]+|[0-9*/,-]+( [0-9A-Za-z*/,-]+){4})$"},
    "initContainers": listed({"type": "object", "required": ["name", "image"]}),
    "extraVolumes": listed({"type": "object", "required": ["name"]}),
    "extraVolumeMounts": listed({"type": "object", "required": ["name", "mountPath"]}),
    "serviceAnnotations": TEXTS,
    "workerAnnotations": TEXTS,
    "evaluationsPerWorker": COUNT,
    "keda.behavior": closed(scaleUp={"type": "object"}, scaleDown={"type": "object"}),
    "prometheusRule.rules": alert_changes(),
    "runbookUrl": {"pattern": "^(https?://.+)?$"},
    "parentRefs": listed(
        {
            **closed(
                group=TEXT, kind=TEXT, name=TEXT, namespace=TEXT, sectionName=TEXT, port={"type": "integer", **PORT}
            ),
            "required": ["name"],
        }
    ),
    "hostnames": listed(TEXT),
    "port": PORT,
    "metricsPort": PORT,
    "servicePort": PORT,
    "redisPorts": listed({"type": "integer", **PORT}, minItems=1),
    "drainSeconds": COUNT,
    "preStopSeconds": COUNT,
    "startupSeconds": {"minimum": 5},
    "pollSeconds": {"minimum": 1},
    "cooldownSeconds": COUNT,
    "tmpSize": SIZE,
    "persistence.size": SIZE,
    "claim.size": {"pattern": SIZE["pattern"].replace("^", "^(").replace("$", ")?$")},
    "accessMode": {"enum": ["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]},
    "hostPath": {"pattern": "^(/.*)?$"},
    "modelCache.size": SIZE,
    "variant": {"enum": ["cpu", "cuda"]},
    "appendFsync": {"enum": ["always", "everysec"]},
    "maxMemory": {"pattern": "^[1-9][0-9]*(kb|mb|gb)$"},
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "interval": {"pattern": "^[0-9]+(ms|s|m)$"},
    "targetCPUUtilizationPercentage": {"minimum": 1, "maximum": 100},
    "maxUnavailable": SHARE,
    "rollingUpdate": closed(maxSurge=SHARE, maxUnavailable=SHARE),
    "resources": RESOURCES,
    "extraEnv": ENVIRONMENT,
    "nodeSelector": TEXTS,
    "tolerations": TOLERATIONS,
    "affinity": AFFINITY,
    "topologySpreadConstraints": SPREAD,
    "commonLabels": TEXTS,
    "labels": TEXTS,
    "podLabels": TEXTS,
    "annotations": TEXTS,
    "podAnnotations": TEXTS,
    "clients": PEERS,
    "monitoring": PEERS,
    "redis": PEERS,
    "dns": PEERS,
    "serviceEgress": EGRESS,
    "workerEgress": EGRESS,
    "workerDefaults.models": listed({**TEXT, "pattern": MODEL}, uniqueItems=True),
    # Not `propertyNames`, with which Helm reports a wrong name under another value's path.
    "models": {"type": "object", "additionalProperties": False, "patternProperties": {MODEL: TEXT}},
}

#: Settings for which the chart has separate values.
OWNED = frozenset(
    {
        "listen",
        "metrics_host",
        "metrics_port",
        "log_format",
        "drain",
        "page",
        "tokens",
        "worker_name",
        "models_file",
        "models_files",
    }
)


@dataclass(frozen=True, slots=True)
class Documented:
    """A commented value."""

    path: str
    default: Any
    text: str


def setting_schemas(settings: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the allowed names in `settings`, in lower case with `__` between levels, and their schemas."""
    written = settings.model_json_schema()
    for name, field in settings.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            if nested is not QueueSettings and name != "tls":
                yield from setting_schemas(nested, f"{name}__")
        elif prefix or name not in OWNED:
            in_text = NoDecode in field.metadata  # comma separated, not JSON
            yield (
                prefix + name,
                dict(TEXT) if in_text else _plain(written["properties"][name], written.get("$defs", {})),
            )


def _plain(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Returns a schema without titles and descriptions, and with its definitions inlined."""
    if isinstance(schema, list):
        return [_plain(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:  # optional: a chart omits the value instead
        return _plain(next(each for each in schema["anyOf"] if each.get("type") != "null"), definitions)
    spared = {"title", "description", "default", "format", "writeOnly"}
    kept = {key: value for key, value in schema.items() if key == "properties" or key not in spared}
    if "properties" in kept:
        properties = {name: _plain(value, definitions) for name, value in kept.pop("properties").items()}
        return {**_plain(kept, definitions), "properties": properties}
    if kept.get("type") == "number":
        kept = {**kept, **NUMBER}
    return {key: _plain(value, definitions) for key, value in kept.items()}


def read_comments(text: str) -> Mapping[str, str]:
    """Returns the `# --` comment of each key by its path, including continuation lines."""
    comments: dict[str, str] = {}
    path: list[str] = []
    comment = ""
    for line in text.splitlines():
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if stripped.startswith("# -- "):
            comment = stripped.removeprefix("# -- ")
        elif stripped.startswith("# ") and comment:
            comment += f" {stripped.removeprefix('# ')}"
        elif ":" in stripped and not stripped.startswith(("#", "-")):
            path = [*path[: indent // 2], stripped.split(":", 1)[0]]
            if comment:
                comments[".".join(path)], comment = comment, ""
    return comments


def documented(values: Mapping[str, Any], comments: Mapping[str, str], above: str = "") -> Iterator[Documented]:
    """Yields every value that has a comment, in the order of the file. Raises ValueError if one has none."""
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
        rows.append(f"| `{value.path}` | {shown} | {value.text} |")
    return INTRODUCTION + "\n".join(rows) + "\n"


def schema(values: Mapping[str, Any], comments: Mapping[str, str]) -> dict[str, Any]:
    """Returns the JSON schema of the values: types of the defaults, RULES, and no unknown keys."""
    whole = _object(values, comments, "")
    worker = json.loads(json.dumps(whole["properties"]["workerDefaults"]))
    worker["properties"]["name"] = {"type": "string", **NAME}
    worker["required"] = ["name"]
    whole["properties"]["workers"] = {"type": "array", "items": worker, "description": comments["workers"]}
    whole["properties"]["global"] = {"type": "object"}  # Helm's, for charts that include this one
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the Sagittal chart", **whole}


def _object(values: Mapping[str, Any], comments: Mapping[str, str], above: str) -> dict[str, Any]:
    properties = {name: _property(f"{above}{name}", value, comments) for name, value in values.items()}
    return closed(**properties)


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
    known = {name: schema for name, schema in setting_schemas(settings) if name not in taken}
    return closed(**dict(sorted(known.items())))


def main() -> int:
    """Writes the files, or with --check reports which are not current."""
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
