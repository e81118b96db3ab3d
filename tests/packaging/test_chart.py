import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging_support import CHART, ROOT, load_script

from sagittal.core.models import parse_entries
from sagittal.page.settings import PageSettings
from sagittal.queue.settings import QueueSettings
from sagittal.server.settings import ServiceSettings
from sagittal.worker.process_metrics import PATIENCE
from sagittal.worker.settings import WorkerSettings

CI = sorted(path.name for path in (CHART / "ci").iterdir())
#: Fields that Kubernetes lets nobody change, of the objects of chart 0.1.0, by ci file.
EARLIER = json.loads((Path(__file__).parent / "immutable_0.1.0.json").read_text())["objects"]
#: Kinds that are no part of Kubernetes itself.
FOREIGN = {"ScaledObject", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
#: Oldest and newest minor version that the chart is checked against.
MINORS = ("1.30", "1.37")
#: Time that the programs take after their drain time at most, in seconds; see Service.stop and Worker.run.
AFTER_DRAIN = {"service": 5, "worker": 25, "page": 5}

every_ci_file = pytest.mark.parametrize("values", CI)


def kinds(documents, kind: str) -> list[Mapping[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def workloads(documents) -> list[Mapping[str, Any]]:
    return [each for kind in ("Deployment", "StatefulSet", "DaemonSet") for each in kinds(documents, kind)]


def containers(documents) -> Iterator[Mapping[str, Any]]:
    for workload in workloads(documents):
        yield from workload["spec"]["template"]["spec"]["containers"]


def environment(container) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def component(workload) -> str:
    return workload["metadata"]["labels"]["app.kubernetes.io/component"]


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


@every_ci_file
def test_lint_is_content(helm: Path, values: str) -> None:
    done = subprocess.run(
        [helm, "lint", "--strict", CHART, "--values", CHART / "ci" / values],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@every_ci_file
@pytest.mark.parametrize("minor", MINORS)
def test_kubernetes_takes_every_object(render, values: str, minor: str) -> None:
    for document in render(values):
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, minor, strict=True)


@every_ci_file
def test_names_are_unique_and_everything_is_in_the_namespace(render, values: str) -> None:
    documents = render(values)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    assert {document["metadata"].get("namespace") for document in documents} == {"ns"}


@every_ci_file
def test_containers_can_do_nothing_that_they_need_not(render, values: str) -> None:
    documents = render(values)
    for container in containers(documents):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"]["cpu"]
    for workload in workloads(documents):
        context = workload["spec"]["template"]["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@every_ci_file
def test_no_pod_has_a_token_or_the_environment_of_other_services(render, values: str) -> None:
    documents = render(values)
    accounts = {account["metadata"]["name"]: account for account in kinds(documents, "ServiceAccount")}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    for workload in workloads(documents):
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["serviceAccountName"] in accounts


@every_ci_file
def test_pods_are_given_the_time_that_draining_takes(render, values: str) -> None:
    for workload in kinds(render(values), "Deployment"):
        pod = workload["spec"]["template"]["spec"]
        container = pod["containers"][0]
        variables = environment(container)
        drains = [variables[name] for name in ("SAGITTAL_DRAIN", "SAGITTAL_PAGE_DRAIN") if name in variables]
        assert drains
        drain = sum(map(float, drains))
        stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["terminationGracePeriodSeconds"] >= stop + drain + AFTER_DRAIN[component(workload)]


@every_ci_file
def test_every_container_is_probed(render, values: str) -> None:
    for container in containers(render(values)):
        assert "livenessProbe" in container
        assert "readinessProbe" in container


@every_ci_file
def test_probes_of_a_worker_wait_longer_than_it_waits_for_its_processes(render, values: str) -> None:
    for worker in (w for w in kinds(render(values), "Deployment") if component(w) == "worker"):
        (container, *_) = worker["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["timeoutSeconds"] > PATIENCE


@every_ci_file
def test_settings_in_the_environment_are_settings_of_the_programs(
    render, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = {"service": ServiceSettings, "worker": WorkerSettings, "page": PageSettings}
    for workload in kinds(render(values), "Deployment"):
        settings = classes[component(workload)]
        prefix = str(settings.model_config["env_prefix"])
        with monkeypatch.context() as patch:
            for name, value in environment(workload["spec"]["template"]["spec"]["containers"][0]).items():
                if settings is ServiceSettings and name.startswith("SAGITTAL_PAGE_"):
                    assert name.removeprefix("SAGITTAL_PAGE_").lower() in PageSettings.model_fields, name
                    continue
                top = name.removeprefix(prefix).split("__")[0].lower()
                assert top in settings.model_fields, name
                filled = {
                    "SAGITTAL_WORKER_NAME": "pod-1",
                    "SAGITTAL_QUEUE__URL": "redis://x",
                    "SAGITTAL_TOKENS": "{}",
                    "SAGITTAL_THREADS": "2",
                }
                patch.setenv(name, value or filled.get(name, "secret"))
            settings()


@every_ci_file
def test_selectors_find_exactly_their_pods(render, values: str) -> None:
    documents = render(values)
    pods = {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["labels"] for w in workloads(documents)}
    for workload in workloads(documents):
        selector = workload["spec"]["selector"]["matchLabels"]
        assert [name for name, labels in pods.items() if selects(selector, labels)] == [workload["metadata"]["name"]]
    for budget in kinds(documents, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"]
        assert sum(selects(selector, labels) for labels in pods.values()) == 1
    for service in kinds(documents, "Service"):
        assert sum(selects(service["spec"]["selector"], labels) for labels in pods.values()) == 1
    jobs = [job["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"] for job in kinds(documents, "CronJob")]
    for policy in kinds(documents, "NetworkPolicy"):
        wanted = policy["spec"]["podSelector"]["matchLabels"]
        assert any(selects(wanted, labels) for labels in (*pods.values(), *jobs))


@every_ci_file
def test_ports_of_services_and_policies_are_ports_of_containers(render, values: str) -> None:
    documents = render(values)
    for service in kinds(documents, "Service"):
        named = {
            port["name"]
            for workload in workloads(documents)
            if selects(service["spec"]["selector"], workload["spec"]["template"]["metadata"]["labels"])
            for container in workload["spec"]["template"]["spec"]["containers"]
            for port in container["ports"]
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


@every_ci_file
def test_everything_is_denied_that_is_not_allowed(render, values: str) -> None:
    documents = render(values)
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in kinds(documents, "NetworkPolicy")}
    deny = policies["rel-sagittal-default-deny"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    assert "egress" not in deny
    for workload in workloads(documents):
        assert selects(deny["podSelector"]["matchLabels"], workload["spec"]["template"]["metadata"]["labels"])


@every_ci_file
def test_models_files_can_be_read_by_a_worker(render, values: str) -> None:
    documents = render(values)
    files = [m["data"]["models.toml"] for m in kinds(documents, "ConfigMap") if "models.toml" in m["data"]]
    assert files
    for file in files:
        parse_entries(tomllib.loads(file), "models.toml")


@every_ci_file
def test_the_service_is_given_the_models_file_of_every_worker(render, values: str) -> None:
    documents = render(values)
    (service,) = (each for each in kinds(documents, "Deployment") if component(each) == "service")
    pod = service["spec"]["template"]["spec"]
    container = pod["containers"][0]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    given = {
        f"{mounts[volume['name']]}/models.toml": volume["configMap"]["name"]
        for volume in pod["volumes"]
        if "configMap" in volume and volume["name"].startswith("models-")
    }
    assert environment(container)["SAGITTAL_MODELS_FILES"].split(",") == list(given)
    files = [m["metadata"]["name"] for m in kinds(documents, "ConfigMap") if "models.toml" in m["data"]]
    assert sorted(given.values()) == sorted(files)


def test_selectors_never_change_by_an_upgrade(render) -> None:
    plain = workloads(render("cpu-only-values.yaml", "page.separate=true"))
    labels = ("commonLabels.team=vision", "service.podLabels.tier=front")
    changed = workloads(render("cpu-only-values.yaml", "page.separate=true", *labels))
    assert [w["spec"]["selector"] for w in plain] == [w["spec"]["selector"] for w in changed]
    common = {"app.kubernetes.io/name": "sagittal", "app.kubernetes.io/instance": "rel"}
    assert {w["metadata"]["name"]: w["spec"]["selector"]["matchLabels"] for w in plain} == {
        "rel-sagittal": {**common, "app.kubernetes.io/component": "service"},
        "rel-sagittal-worker-cpu": {**common, "app.kubernetes.io/component": "worker", "sagittal/worker": "cpu"},
        "rel-sagittal-valkey": {**common, "app.kubernetes.io/component": "valkey"},
        "rel-sagittal-page": {**common, "app.kubernetes.io/component": "page"},
    }


@pytest.mark.parametrize("values", EARLIER)
def test_an_upgrade_from_the_chart_of_0_1_0_changes_nothing_that_kubernetes_lets_nobody_change(render, values) -> None:
    now = {f"{w['kind']}/{w['metadata']['name']}": w["spec"] for w in workloads(render(values))}
    for name, fields in EARLIER[values].items():
        assert {field: now[name].get(field, []) for field in fields} == fields


def test_workers_are_scaled_by_the_jobs_of_their_own_models(render) -> None:
    scaled = {s["metadata"]["name"]: s["spec"] for s in kinds(render("gpu-values.yaml"), "ScaledObject")}
    large = scaled["rel-sagittal-worker-large"]
    assert large["minReplicaCount"] == 0
    assert large["maxReplicaCount"] == 16
    query = large["triggers"][0]["metadata"]["query"]
    pattern = re.search(r'model=~"([^"]*)"', query)
    assert pattern
    models = re.compile(pattern.group(1).replace("\\\\", "\\"))
    assert models.fullmatch("resnet50")
    assert models.fullmatch("vgg19.bn")
    assert not models.fullmatch("vgg19xbn")
    assert not models.fullmatch("efficientnet-lite0")
    assert scaled["rel-sagittal-worker-small"]["minReplicaCount"] == 1


def test_a_scaled_deployment_does_not_fix_its_replicas(render) -> None:
    gpu = {d["metadata"]["name"]: d["spec"] for d in kinds(render("gpu-values.yaml"), "Deployment")}
    assert "replicas" not in gpu["rel-sagittal-worker-large"]
    assert gpu["rel-sagittal"]["replicas"] == 2
    ha = {d["metadata"]["name"]: d["spec"] for d in kinds(render("ha-values.yaml"), "Deployment")}
    assert "replicas" not in ha["rel-sagittal"]


def test_new_models_make_new_workers(render) -> None:
    def sums(*options: str) -> list[str]:
        deployments = kinds(render("cpu-only-values.yaml", *options), "Deployment")
        return [
            d["spec"]["template"]["metadata"]["annotations"]["checksum/models"]
            for d in deployments
            if component(d) == "worker"
        ]

    other = 'models.efficientnet-lite0=[[models]]\nname = "efficientnet-lite0"\nsource = { kind = "x" }'
    assert sums() != sums(other)


def test_tls_tokens_and_passwords_come_from_secrets_alone(render) -> None:
    documents = render("locked-down-values.yaml")
    assert not kinds(documents, "Secret")
    service = next(w for w in kinds(documents, "Deployment") if component(w) == "service")
    container = service["spec"]["template"]["spec"]["containers"][0]
    sources = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container["env"] if "valueFrom" in e}
    assert sources["SAGITTAL_TOKENS"] == {"name": "sagittal-tokens", "key": "tokens.json"}
    assert sources["SAGITTAL_QUEUE__PASSWORD"] == {"name": "sagittal-redis", "key": "password"}
    assert sources["SAGITTAL_QUEUE__URL"] == {"name": "sagittal-redis", "key": "url"}
    assert environment(container)["SAGITTAL_TLS__CLIENT_CA"] == "/etc/sagittal/client-ca/ca.crt"
    assert "grpc" not in container["livenessProbe"], "the kubelet's gRPC probe speaks no TLS"


@pytest.mark.parametrize(
    ("options", "first"),
    [((), "redis://rel-sagittal-valkey:6379/0"), (("valkey.enabled=false", "queue.url=redis://a/0"), "redis://a/0")],
)
def test_further_servers_of_the_queue_follow_the_first_one(render, options, first: str) -> None:
    documents = render("cpu-only-values.yaml", "queue.shards={redis://b:6379/0,redis://c:6379/0#draining}", *options)
    containers = [each["spec"]["template"]["spec"]["containers"][0] for each in kinds(documents, "Deployment")]
    urls = {environment(each).get("SAGITTAL_QUEUE__URL") for each in containers}
    assert urls - {None} == {f"{first},redis://b:6379/0,redis://c:6379/0#draining"}


def test_the_bundled_valkey_throws_nothing_away(render) -> None:
    documents = render("cpu-only-values.yaml")
    maps = {m["metadata"]["name"]: m["data"] for m in kinds(documents, "ConfigMap")}
    configuration = maps["rel-sagittal-valkey"]["valkey.conf"].splitlines()
    assert "maxmemory-policy noeviction" in configuration
    assert "appendonly yes" in configuration
    (stateful,) = kinds(documents, "StatefulSet")
    assert stateful["spec"]["volumeClaimTemplates"]
    assert stateful["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("service.settings.misspelt=1", "misspelt"),
        ("workerDefaults.settings.misspelt=1", "misspelt"),
        ("queue.settings.misspelt=1", "misspelt"),
        ("service.port=99999", "port"),
        ("misspelt=1", "misspelt"),
        ("workers[0].models={unknown}", "serves the model unknown"),
        ("workers[1].name=second", "second has no models"),
        ("workers[0].keda.enabled=true", "keda.enabled without keda.prometheusUrl"),
        ("valkey.enabled=false", "queue.url: not set"),
        (
            "queue.shards={redis://b},queue.existingSecret=s,queue.secretUrlKey=url,valkey.enabled=false",
            "queue.shards: queue.secretUrlKey is set too",
        ),
        ("queue.url=redis://elsewhere", "set valkey.enabled to false"),
        ("tls.clientCaSecret=ca", "set without tls.existingSecret"),
        ("ingress.enabled=true", "ingress.host: needed"),
        ("queue.settings.max_stored_bytes=1073741825", "valkey.maxMemory: 1gb is less than the 1073741825 bytes"),
        ("valkey.maxMemory=8gb", "valkey.maxMemory: 8gb is more than three quarters of the pod's limit"),
        (
            "valkey.resources.limits.memory=1100M",
            "valkey.maxMemory: 1gb is more than three quarters of the pod's limit",
        ),
        ("workers[1].name=cpu,workers[1].models={efficientnet-lite0}", "workers: two entries have the name cpu"),
        (
            "service.autoscaling.enabled=true,service.autoscaling.minReplicas=11",
            "service.autoscaling.minReplicas: 11 is more than maxReplicas (10)",
        ),
        (
            "keda.prometheusUrl=http://p,workers[0].keda.enabled=true,workers[0].keda.minReplicas=5",
            "workers: cpu has keda.minReplicas 5, which is more than keda.maxReplicas (4)",
        ),
        (
            "modelCache.existingClaim=a,modelCache.claim.size=1Gi",
            "modelCache: existingClaim and claim.size are both set",
        ),
        ("modelCache.hostPath=/a,modelCache.claim.size=1Gi", "modelCache: hostPath is set together with a claim"),
        (
            "workers[0].resources.requests.memory=5Gi",
            "workers: cpu, resources.requests.memory: 5Gi is more than the limit (4Gi)",
        ),
        ("valkey.replicas=3,valkey.persistence.enabled=false", "valkey.replicas: needs valkey.persistence.enabled"),
        ("page.resources.limits.cpu=20m", "page resources.requests.cpu: 50m is more than the limit (20m)"),
        (
            "workers[0].settings.memory_ceiling_mib=4097",
            "memory_ceiling_mib: 4097 MiB is more than the pod's limit (4Gi)",
        ),
        ("workers[0].settings.model_memory_mib=5000", "model_memory_mib: 5000 MiB is more than the pod's limit (4Gi)"),
        ("service.settings.images__decode_processes=4", "4 image decoders of images__decode_memory 268435456"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(render, option: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        render("cpu-only-values.yaml", option)


@pytest.mark.parametrize(
    ("option", "path"),
    [
        ("misspelt=1", ""),
        ("service.settings.misspelt=1", "/service/settings"),
        ("service.settings.log_level=verbose", "/service/settings/log_level"),
        ("workers[0].settings.log_level=verbose", "/workers/0/settings/log_level"),
        ("workers[0].settings.sources__stores.a.misspelt=1", "/workers/0/settings/sources__stores/a"),
        ("queue.settings.lease_seconds=abc", "/queue/settings/lease_seconds"),
        ("queue.settings.lease_seconds=0", "/queue/settings/lease_seconds"),
        ("queue.settings.max_queued.batch=none", "/queue/settings/max_queued/batch"),
        ("models.Capital=x", "/models"),
        ("workers[0].models={A B}", "/workers/0/models/0"),
        ("workers[0].resources.limits.memory=1Gib", "/workers/0/resources/limits/memory"),
        ("service.resources.limit.memory=1Gi", "/service/resources"),
        ("networkPolicy.redis[0].ipBlok.cidr=10.0.0.0/8", "/networkPolicy/redis/0"),
        ("networkPolicy.workerEgress[0].port=1", "/networkPolicy/workerEgress/0"),
        ("service.tolerations[0].effekt=NoSchedule", "/service/tolerations/0"),
        ("service.extraEnv[0].value=x", "/service/extraEnv/0"),
        ("service.podDisruptionBudget.maxUnavailable=half", "/service/podDisruptionBudget/maxUnavailable"),
        ("workers[0].rollingUpdate.maxSurge=-1", "/workers/0/rollingUpdate/maxSurge"),
        ("service.podAnnotations.scrape=true", "/service/podAnnotations/scrape"),
        ("modelStorage.claim.size=20GB", "/modelStorage/claim/size"),
        ("valkey.replicas=2", "/valkey/replicas"),
        ("conceptStorage.claim.accessMode=Shared", "/conceptStorage/claim/accessMode"),
        ("modelCache.hostPath=relative", "/modelCache/hostPath"),
    ],
)
def test_an_error_of_the_schema_names_the_path_of_its_value_and_no_other(render, option: str, path: str) -> None:
    with pytest.raises(ValueError, match="at '") as raised:
        render("cpu-only-values.yaml", option)
    assert set(re.findall(r"at '([^']*)'", str(raised.value))) == {path}


@pytest.mark.parametrize(
    "option",
    [
        "valkey.resources.limits.memory=1e10",
        "valkey.resources.limits.memory=2000000000",
        "workers[0].resources.limits.cpu=1.5",
        "queue.settings.heartbeat_seconds=0.5",
        "workers[0].settings.serve=a@1",
        "workers[0].settings.sources__factories={a:b}",
        "networkPolicy.redis[0].ipBlock.cidr=10.0.0.0/8",
        "service.podDisruptionBudget.maxUnavailable=25%",
    ],
)
def test_values_in_each_of_their_notations_are_taken(render, option: str) -> None:
    assert render("cpu-only-values.yaml", option)


def test_backups_are_made_with_the_services_settings_on_a_volume_of_their_own(render) -> None:
    claims = ("backup.existingClaim=backups", "conceptStorage.existingClaim=concepts")
    documents = render("cpu-only-values.yaml", "backup.enabled=true", *claims, "backup.keep=3")
    (cron,) = kinds(documents, "CronJob")
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "sagittal.registry.backup", "save", "/backups", "3"]
    service = next(d for d in kinds(documents, "Deployment") if d["metadata"]["name"] == "rel-sagittal")
    given = {each["name"]: each for each in container["env"]}
    for each in service["spec"]["template"]["spec"]["containers"][0]["env"]:
        if each["name"].startswith(("SAGITTAL_QUEUE__", "SAGITTAL_CONCEPTS__")):
            assert given[each["name"]] == each
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/concepts"]["readOnly"] is True
    assert {"name": "backups", "persistentVolumeClaim": {"claimName": "backups"}} in pod["volumes"]
    labels = cron["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    for policy in kinds(documents, "NetworkPolicy"):
        if policy["metadata"]["name"] == "rel-sagittal-valkey":
            admitted = [peer["podSelector"]["matchLabels"] for peer in policy["spec"]["ingress"][0]["from"]]
            assert any(each.items() <= labels.items() for each in admitted)
        if policy["metadata"]["name"] == "rel-sagittal-backup":
            assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    with pytest.raises(ValueError, match=r"backup\.existingClaim: needed"):
        render("cpu-only-values.yaml", "backup.enabled=true")


def test_weights_can_be_fetched_into_a_volume_before_a_worker_starts(render) -> None:
    (worker,) = (
        d["spec"]["template"]["spec"]
        for d in kinds(
            render(
                "cpu-only-values.yaml",
                "workerDefaults.initContainers[0].name=fetch",
                "workerDefaults.initContainers[0].image=fetcher",
                "workerDefaults.extraVolumes[0].name=node",
                "workerDefaults.extraVolumes[0].hostPath.path=/weights",
                "workerDefaults.extraVolumeMounts[0].name=node",
                "workerDefaults.extraVolumeMounts[0].mountPath=/weights",
                "serviceAccounts.workerAnnotations.role=reader",
            ),
            "Deployment",
        )
        if "worker" in d["metadata"]["name"]
    )
    assert worker["initContainers"] == [{"name": "fetch", "image": "fetcher"}]
    assert {"name": "node", "hostPath": {"path": "/weights"}} in worker["volumes"]
    assert {"name": "node", "mountPath": "/weights"} in worker["containers"][0]["volumeMounts"]


def test_what_the_chart_creates_claims_for_is_mounted_and_kept(render) -> None:
    documents = render("prefetch-values.yaml", "modelStorage.claim.size=50Gi")
    claims = {claim["metadata"]["name"]: claim for claim in kinds(documents, "PersistentVolumeClaim")}
    assert {name: claim["spec"]["resources"]["requests"]["storage"] for name, claim in claims.items()} == {
        "rel-sagittal-weights": "50Gi",
        "rel-sagittal-concepts": "20Gi",
        "rel-sagittal-backups": "5Gi",
    }
    assert claims["rel-sagittal-concepts"]["spec"]["storageClassName"] == "nfs"
    assert claims["rel-sagittal-concepts"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "storageClassName" not in claims["rel-sagittal-weights"]["spec"], "the cluster's default"
    for claim in claims.values():
        assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    pods = [each["spec"]["template"]["spec"] for each in kinds(documents, "Deployment")]
    pods += [each["spec"]["jobTemplate"]["spec"]["template"]["spec"] for each in kinds(documents, "CronJob")]
    claimed = [v["persistentVolumeClaim"] for pod in pods for v in pod["volumes"] if "persistentVolumeClaim" in v]
    mounted = {claim["claimName"] for claim in claimed}
    assert mounted == claims.keys()


def test_images_and_weights_are_on_every_node_that_a_worker_may_use(render) -> None:
    placed = ("workers[0].nodeSelector.gpu=a100", "workers[0].tolerations[0].operator=Exists")
    documents = render("prefetch-values.yaml", *placed)
    (worker,) = (w["spec"]["template"]["spec"] for w in kinds(documents, "Deployment") if component(w) == "worker")
    (prefetch,) = (each["spec"]["template"]["spec"] for each in kinds(documents, "DaemonSet"))
    for same in ("nodeSelector", "tolerations", "serviceAccountName"):
        assert prefetch[same] == worker[same]
    (fetching,), (working,) = prefetch["containers"], worker["containers"]
    assert fetching["image"] == working["image"]
    for name in ("SAGITTAL_SOURCES__STORES", "SAGITTAL_SOURCES__CACHE", "SAGITTAL_MODELS_FILE"):
        assert environment(fetching)[name] == environment(working)[name]
    for volume in ("cache", "models"):
        assert volumes(prefetch)[volume] == volumes(worker)[volume]
        assert mounts(prefetch)[volume] == mounts(worker)[volume]
    assert volumes(worker)["cache"]["hostPath"]["path"] == "/var/lib/sagittal"


def test_workers_on_spot_nodes_end_within_the_notice_and_slices_ask_for_no_whole_gpu(render) -> None:
    pods = {
        deployment["metadata"]["labels"]["sagittal/worker"]: deployment["spec"]["template"]["spec"]
        for deployment in kinds(render("gpu-sharing-values.yaml"), "Deployment")
        if component(deployment) == "worker"
    }
    assert pods["spot"]["terminationGracePeriodSeconds"] <= 30
    gpus = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pods.items()}
    assert [name for name, limits in gpus.items() if "nvidia.com/gpu" in limits] == ["whole-node", "spot"]
    assert environment(pods["whole-node"]["containers"][0])["SAGITTAL_DEVICE"] == "cuda:*"


def test_a_valkey_with_replicas_is_reached_through_its_sentinels_alone(render) -> None:
    documents = render("valkey-replicas-values.yaml")
    (group,) = kinds(documents, "StatefulSet")
    name = group["metadata"]["name"]
    assert group["spec"]["replicas"] == 3
    (service,) = (s for s in kinds(documents, "Service") if component(s) == "valkey")
    assert service["metadata"]["name"] == group["spec"]["serviceName"] == name
    assert service["spec"]["clusterIP"] == "None"
    for deployment in kinds(documents, "Deployment"):
        if component(deployment) in ("service", "worker"):
            told = environment(deployment["spec"]["template"]["spec"]["containers"][0])
            assert json.loads(told["SAGITTAL_QUEUE__SENTINELS"]) == [
                f"{name}-{i}.{name}.ns.svc:26379" for i in range(3)
            ]
            assert told["SAGITTAL_QUEUE__SYNCHRONOUS_REPLICAS"] == "1"
    containers = {each["name"]: each for each in group["spec"]["template"]["spec"]["containers"]}
    for role in ("valkey", "sentinel"):
        assert environment(containers[role])["QUORUM"] == "2"
        assert environment(containers[role])["FIRST"] == f"{name}-0"
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in kinds(documents, "NetworkPolicy")}
    among = policies["rel-sagittal-valkey"]
    assert {port["port"] for port in among["ingress"][0]["ports"]} == {"redis", "sentinel"}
    assert {port["port"] for rule in among["egress"] for port in rule["ports"]} == {53, 6379, 26379}


def start_replicated(directory: Path, pod: str, role: str) -> list[str]:
    """Returns the configuration with which a pod's program starts; a script stands for the server."""
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "valkey-server").write_text("#!/bin/sh\ncat $1\n")
    (programs / "valkey-server").chmod(0o755)
    (directory / "settings").write_text("maxmemory 1gb\n")
    told = {"NAME": pod, "FIRST": "v-0", "DOMAIN": "v.ns.svc", "QUORUM": "2", "VALKEY_PASSWORD": "secret"}
    places = {
        "DATA": str(directory),
        "SETTINGS": str(directory / "settings"),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    command = ["sh", CHART / "files" / "valkey-replicated.sh", role]
    done = subprocess.run(command, env=told | places, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines()


def test_a_valkey_that_starts_again_is_what_the_last_failover_made_it(tmp_path: Path) -> None:
    for pod in ("v-0", "v-1"):
        (tmp_path / pod).mkdir()
    assert not any(line.startswith("replicaof") for line in start_replicated(tmp_path / "v-0", "v-0", "valkey"))
    assert "replicaof v-0.v.ns.svc 6379" in start_replicated(tmp_path / "v-1", "v-1", "valkey")
    # Sentinel promotes v-1: both servers rewrite their configuration
    (tmp_path / "v-0" / "replication.conf").write_text("maxmemory 2gb\nreplicaof v-1.v.ns.svc 6379\n")
    (tmp_path / "v-1" / "replication.conf").write_text("maxmemory 2gb\n")
    follows = start_replicated(tmp_path / "v-0", "v-0", "valkey")
    assert "replicaof v-1.v.ns.svc 6379" in follows
    assert "maxmemory 1gb" in follows, "the chart's settings take effect"
    assert "maxmemory 2gb" not in follows
    assert not any(line.startswith("replicaof") for line in start_replicated(tmp_path / "v-1", "v-1", "valkey"))


def test_a_sentinel_that_starts_again_knows_the_primary_of_the_last_failover(tmp_path: Path) -> None:
    first = start_replicated(tmp_path, "v-2", "sentinel")
    assert "sentinel monitor sagittal v-0.v.ns.svc 6379 2" in first
    assert "sentinel auth-pass sagittal secret" in first
    state = tmp_path / "sentinel.conf"
    state.write_text(state.read_text().replace("v-0", "v-1").replace("secret", "earlier"))
    again = start_replicated(tmp_path, "v-2", "sentinel")
    assert "sentinel monitor sagittal v-1.v.ns.svc 6379 2" in again
    assert "sentinel auth-pass sagittal secret" in again
    assert "sentinel auth-pass sagittal earlier" not in again


def test_a_grpc_route_leads_from_a_gateway_to_the_service(render) -> None:
    gateway = ("grpcRoute.parentRefs[0].name=public", "grpcRoute.parentRefs[0].namespace=gateways")
    documents = render(
        "cpu-only-values.yaml", "grpcRoute.enabled=true", *gateway, "grpcRoute.hostnames[0]=a.example.com"
    )
    (route,) = kinds(documents, "GRPCRoute")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    assert route["spec"]["hostnames"] == ["a.example.com"]
    ((backend,),) = (rule["backendRefs"] for rule in route["spec"]["rules"])
    (service,) = (d for d in kinds(documents, "Service") if d["metadata"]["name"] == backend["name"])
    assert backend["port"] in {port["port"] for port in service["spec"]["ports"]}
    with pytest.raises(ValueError, match=r"grpcRoute\.parentRefs: needed"):
        render("cpu-only-values.yaml", "grpcRoute.enabled=true")


def test_an_ingress_has_the_clusters_default_class_unless_it_names_one(render) -> None:
    enabled = ("ingress.enabled=true", "ingress.host=explain.example.com", "ingress.tlsSecret=cert")
    (ingress,) = kinds(render("cpu-only-values.yaml", *enabled), "Ingress")
    assert "ingressClassName" not in ingress["spec"]
    assert "annotations" not in ingress["metadata"]
    (ingress,) = kinds(render("cpu-only-values.yaml", *enabled, "ingress.className=nginx"), "Ingress")
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"] == "GRPC"


def test_comments_of_several_lines_are_whole_in_the_readme() -> None:
    script = load_script("chart_docs")
    assert script.read_comments("# -- One line\n# and another.\na: 1\n# -- Next.\nb: 2\n") == {
        "a": "One line and another.",
        "b": "Next.",
    }


def test_a_valkey_smaller_than_what_the_queue_keeps_untold_is_refused(render) -> None:
    kept = QueueSettings().max_stored_bytes
    with pytest.raises(ValueError, match=f"2047mb is less than the {kept} bytes"):
        render("gpu-values.yaml", "valkey.maxMemory=2047mb")


def test_the_helm_commands_of_the_tutorial_render(render) -> None:
    page = (ROOT / "docs" / "operations.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    helm (install|upgrade) sagittal helm/sagittal (.*)$", page, re.MULTILINE)
    assert [verb for verb, _ in commands] == ["install", "upgrade", "install"]
    kept: tuple[str, ...] = ()
    values = ""
    for verb, options in commands:
        files = re.findall(r"--values helm/sagittal/ci/(\S+)", options)
        values, kept = (files[0], ()) if verb == "install" else (values, kept)
        kept += tuple(re.findall(r"--set (\S+)", options))
        rendered = yaml.safe_dump_all(render(values, *kept))
        for secret in ("sagittal-tls", "sagittal-tokens"):
            assert (secret in rendered) == (verb == "upgrade")


def test_readme_and_schema_are_current() -> None:
    script = load_script("chart_docs")
    text = (CHART / "values.yaml").read_text()
    values, comments = yaml.safe_load(text), script.read_comments(text)
    assert (CHART / "README.md").read_text() == script.readme(list(script.documented(values, comments)))
    assert json.loads((CHART / "values.schema.json").read_text()) == script.schema(values, comments)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ("cpu-only-values.yaml", ("valkey.persistence.enabled=false", "networkPolicy.enabled=false")),
        (
            "cpu-only-values.yaml",
            ("valkey.existingSecret=mine", "workers[0].podLabels.tier=back", "imagePullSecrets[0].name=r"),
        ),
        (
            "cpu-only-values.yaml",
            ("service.podAnnotations.a=b", "service.podLabels.c=d", "workers[0].podAnnotations.e=f"),
        ),
        ("cpu-only-values.yaml", ("service.preStopSeconds=0", "service.priorityClassName=high", "nameOverride=other")),
        ("gpu-values.yaml", ("keda.authentication=token", "valkey.nodeSelector.disk=ssd", "fullnameOverride=s")),
        (
            "locked-down-values.yaml",
            (
                "ingress.grpcWeb.enabled=true",
                "ingress.grpcWeb.host=w.example.com",
                "ingress.grpcWeb.serviceName=gateway",
            ),
        ),
        (
            "ha-values.yaml",
            (
                "workers[0].extraEnv[0].name=A",
                "workers[0].extraEnv[0].value=b",
                "service.type=LoadBalancer",
                "networkPolicy.serviceEgress[0].ports[0].port=4317",
                "networkPolicy.workerEgress[0].ports[0].port=4317",
            ),
        ),
    ],
)
def test_every_other_branch_makes_objects_that_kubernetes_takes(render, values: str, options: tuple[str, ...]) -> None:
    for document in render(values, *options):
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, MINORS[-1], strict=True)


def test_a_workers_pods_are_labelled_as_it_asks(render) -> None:
    documents = render("cpu-only-values.yaml", "workers[0].podLabels.tier=back", "service.podLabels.tier=front")
    tiers = {component(w): w["spec"]["template"]["metadata"]["labels"].get("tier") for w in workloads(documents)}
    assert tiers == {"service": "front", "worker": "back", "valkey": None}


def test_a_worker_has_as_many_threads_as_it_requests_processors_unless_it_is_told(render) -> None:
    requested = {"resource": "requests.cpu"}
    for options, sources in (((), [requested]), (("workers[0].settings.threads=3",), [])):
        (worker,) = (
            w for w in kinds(render("cpu-only-values.yaml", *options), "Deployment") if component(w) == "worker"
        )
        (container, *_) = worker["spec"]["template"]["spec"]["containers"]
        told = [entry for entry in container["env"] if entry["name"] == "SAGITTAL_THREADS"]
        assert [entry["valueFrom"]["resourceFieldRef"] for entry in told if "valueFrom" in entry] == sources
        assert len(told) == 1


def test_metrics_are_not_exposed_with_the_api(render) -> None:
    services = {s["metadata"]["name"]: s["spec"] for s in kinds(render("cpu-only-values.yaml"), "Service")}
    assert [port["name"] for port in services["rel-sagittal"]["ports"]] == ["grpc"]
    assert services["rel-sagittal-headless"]["clusterIP"] == "None"


def test_traces_of_service_and_workers_go_to_one_collector(render) -> None:
    documents = render("gpu-values.yaml", "tracing.endpoint=http://collector:4317")
    deployments = [document for document in documents if document["kind"] == "Deployment"]
    assert len(deployments) >= 2
    for deployment in deployments:
        (container, *_) = deployment["spec"]["template"]["spec"]["containers"]
        assert environment(container)["SAGITTAL_TRACING__ENDPOINT"] == "http://collector:4317"


def test_service_and_workers_keep_concept_sets_on_the_claim_that_they_share(render) -> None:
    documents = render("cpu-only-values.yaml", "conceptStorage.existingClaim=sets")
    deployments = [each for each in kinds(documents, "Deployment") if component(each) in ("service", "worker")]
    assert {component(each) for each in deployments} == {"service", "worker"}
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        (container, *_) = pod["containers"]
        assert environment(container)["SAGITTAL_CONCEPTS__DIRECTORY"] == "/concepts"
        assert {"name": "concepts", "mountPath": "/concepts"} in container["volumeMounts"]
        assert {"name": "concepts", "persistentVolumeClaim": {"claimName": "sets"}} in pod["volumes"]
        kubernetes_validate.validate(deployment, MINORS[-1], strict=True)


def volumes(pod) -> dict[str, Any]:
    return {volume["name"]: volume for volume in pod["volumes"]}


def mounts(pod) -> dict[str, str]:
    (container, *_) = pod["containers"]
    return {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ((), {"emptyDir": {"sizeLimit": "8Gi"}}),
        (("modelCache.existingClaim=shared",), {"persistentVolumeClaim": {"claimName": "shared"}}),
    ],
)
def test_workers_keep_what_they_fetched_and_measured_in_a_directory_of_their_own(
    render, options: tuple[str, ...], kept: Mapping[str, Any]
) -> None:
    (worker,) = (w for w in kinds(render("cpu-only-values.yaml", *options), "Deployment") if component(w) == "worker")
    pod = worker["spec"]["template"]["spec"]
    cache = Path(environment(pod["containers"][0])["SAGITTAL_SOURCES__CACHE"])
    assert str(cache.parent) == mounts(pod)["cache"], "the volume itself may be written by its group: it is refused"
    assert volumes(pod)["cache"] == {"name": "cache", **kept}
    kubernetes_validate.validate(worker, MINORS[-1], strict=True)


def test_a_worker_that_is_told_where_its_cache_is_is_told_once(render) -> None:
    (worker,) = (
        w
        for w in kinds(render("cpu-only-values.yaml", "workers[0].settings.sources__cache=/mine"), "Deployment")
        if component(w) == "worker"
    )
    (container, *_) = worker["spec"]["template"]["spec"]["containers"]
    told = [entry["value"] for entry in container["env"] if entry["name"] == "SAGITTAL_SOURCES__CACHE"]
    assert told == ["/mine"]


def test_service_and_workers_are_given_what_tls_to_redis_needs(render) -> None:
    for deployment in kinds(render("locked-down-values.yaml"), "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        assert mounts(pod)["redis-tls"] == "/etc/redis-tls"
        assert volumes(pod)["redis-tls"]["secret"]["secretName"] == "sagittal-redis-ca"
        for path in mounts(pod).values():
            nested = [other for other in mounts(pod).values() if other != path and other.startswith(f"{path}/")]
            assert not nested, "a mount within a read-only one cannot be made"
    for deployment in kinds(render("cpu-only-values.yaml"), "Deployment"):
        assert "redis-tls" not in mounts(deployment["spec"]["template"]["spec"])


NOTES = {
    "no tokens": ("cpu-only-values.yaml", (), "auth.existingSecret is empty"),
    "an Ingress that nobody lets in": (
        "locked-down-values.yaml",
        ("networkPolicy.clients=null",),
        "networkPolicy.clients is empty",
    ),
    "traces that nobody lets out": (
        "gpu-values.yaml",
        ("tracing.endpoint=http://collector:4317",),
        "must both allow http://collector:4317",
    ),
    "a queue in memory": (
        "cpu-only-values.yaml",
        ("valkey.persistence.enabled=false",),
        "jobs and results are lost",
    ),
}


@pytest.mark.parametrize(("values", "options", "warning"), NOTES.values(), ids=NOTES)
def test_whoever_installs_is_warned_of(helm: Path, values: str, options: tuple[str, ...], warning: str) -> None:
    command = [
        helm,
        "install",
        "rel",
        CHART,
        "--dry-run=client",
        "--namespace",
        "ns",
        "--values",
        CHART / "ci" / values,
    ]
    for option in options:
        command += ["--set", option]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    _, _, notes = done.stdout.partition("NOTES:")
    assert warning in notes


def test_the_page_is_one_value_and_runs_in_the_service_or_by_itself(render) -> None:
    inside, beside = (
        render("locked-down-values.yaml", "tls.clientCaSecret=", "page.enabled=true", "page.port=8181", *options)
        for options in (
            ("page.clients[0].podSelector.matchLabels.proxy=yes",),
            ("page.separate=true", "page.caSecret=ca", "page.podLabels.tier=front"),
        )
    )
    programs = {
        component(workload): container
        for workload in workloads(inside)
        for container in workload["spec"]["template"]["spec"]["containers"][:1]
    }
    assert "page" not in programs
    assert environment(programs["service"]).items() >= {
        "SAGITTAL_PAGE": "true", "SAGITTAL_PAGE_LISTEN_PORT": "8181"
    }.items()  # fmt: skip
    assert {"name": "http", "containerPort": 8181, "protocol": "TCP"} in programs["service"]["ports"]
    policies = {each["metadata"]["name"]: each["spec"] for each in kinds(inside, "NetworkPolicy")}
    assert "rel-sagittal-page" not in policies
    (rule,) = (each for each in policies["rel-sagittal-service"]["ingress"] if each["ports"][0]["port"] == "http")
    assert rule["from"] == [{"podSelector": {"matchLabels": {"proxy": "yes"}}}]

    (service,) = (each for each in kinds(beside, "Deployment") if component(each) == "service")
    (container, *_) = service["spec"]["template"]["spec"]["containers"]
    assert not {name for name in environment(container) if name.startswith("SAGITTAL_PAGE")}
    assert "page" in {component(workload) for workload in workloads(beside)}
    names = [each["metadata"]["name"] for each in (*kinds(inside, "Service"), *kinds(beside, "Service"))]
    assert names.count("rel-sagittal-page") == 2, "the Service has one name, wherever the page runs"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("tls.existingSecret=tls", "page.separate=true"), r"page\.caSecret: the service uses TLS"),
        (
            ("tls.existingSecret=tls", "tls.clientCaSecret=ca"),
            r"page\.enabled: the service asks for client certificates",
        ),
        (("page.caSecret=ca",), r"page\.caSecret: the page runs in the pods of the service"),
        (("page.podLabels.tier=front",), r"page\.podLabels: the page runs in the pods of the service"),
        (("page.port=9090",), r"page\.port: the service has the port 9090"),
        (("service.resources.limits.memory=800Mi",), r"2 image decoders .* and the page may use more"),
        (("service.settings.page=true",), r"page"),
    ],
)
def test_values_of_the_page_that_cannot_work_are_refused(render, options: tuple[str, ...], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        render("cpu-only-values.yaml", *options)
