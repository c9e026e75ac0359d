"""Every overlay as kustomize builds it: schemas, the restricted Pod Security Standard, who may speak to whom."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import RedisServer

from wsisam_service import metrics
from wsisam_service.stores.redis_store import RedisStore

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERNETES = REPOSITORY / "deploy" / "k8s"
OVERLAYS = ("single-gpu", "gpu-pool", "cpu-trial")
Objects = Mapping[tuple[str, str], dict[str, Any]]
"""By (kind, name)."""

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl for kustomize")


@pytest.fixture(scope="module", params=OVERLAYS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("overlay") / f"{request.param}.yaml"
    with file.open("wb") as output:
        subprocess.run(
            ["kubectl", "kustomize", str(KUBERNETES / "overlays" / request.param)], check=True, stdout=output
        )
    return file


@pytest.fixture
def objects(built: Path) -> Objects:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(built.read_text())}


def pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """Pod templates by name of what makes them."""
    return {
        name: one["spec"]["template"] for (kind, name), one in objects.items() if kind in ("Deployment", "StatefulSet")
    }


def test_every_object_fits_the_schema(built: Path) -> None:
    validator = str(Path(sys.executable).with_name("kubernetes-validate"))
    if not Path(validator).exists():
        pytest.skip("needs kubernetes-validate")
    checked = subprocess.run(
        [validator, "--strict", "-k", "1.32", str(built)], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    unknown = set(re.findall(r"schema for kind (\w+)", checked.stdout + checked.stderr))
    assert unknown <= {"ServiceMonitor", "ScaledObject"}


def test_every_pod_passes_the_restricted_standard(objects: Objects) -> None:
    labels = objects["Namespace", "wsisam"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, template in pods(objects).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        allowed = {"persistentVolumeClaim", "emptyDir", "configMap", "secret"}
        assert all(allowed & volume.keys() for volume in spec["volumes"]), name
        assert not spec["automountServiceAccountToken"], name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"], name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert {"readinessProbe", "livenessProbe"} <= container.keys(), name
            assert re.search(r":[\w.-]*\d", container["image"]), f"{name}: the image has no version"


def test_slides_are_mounted_on_gateways_alone_and_read_only(objects: Objects) -> None:
    mounted = {
        name: volume["persistentVolumeClaim"]["readOnly"]
        for name, template in pods(objects).items()
        for volume in template["spec"]["volumes"]
        if volume.get("persistentVolumeClaim", {}).get("claimName") == "slides"
    }
    assert mounted == {"gateway": True}


def _selected(selector: Mapping[str, Any], app: str) -> bool:
    named = selector.get("matchLabels", {}).get("app")
    listed = [
        value for rule in selector.get("matchExpressions", []) for value in rule["values"] if rule["key"] == "app"
    ]
    return app == named or app in listed or not selector


def callers(objects: Objects, app: str, port: int) -> set[str]:
    """Apps of this namespace, and namespaces, that network policies let in to `port` of `app`."""
    found: set[str] = set()
    for (kind, _), policy in objects.items():
        if kind != "NetworkPolicy" or not _selected(policy["spec"]["podSelector"], app):
            continue
        for rule in policy["spec"].get("ingress", []):
            if port not in [one["port"] for one in rule["ports"]]:
                continue
            for peer in rule["from"]:
                if namespace := peer.get("namespaceSelector"):
                    found.add("namespace " + namespace["matchLabels"]["kubernetes.io/metadata.name"])
                else:
                    found |= {
                        one for one in ("gateway", "router", "worker", "redis") if _selected(peer["podSelector"], one)
                    }
    return found


def test_workers_and_redis_answer_those_who_need_them_and_nobody_else(objects: Objects) -> None:
    deny = objects["NetworkPolicy", "deny-all"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    monitoring = {"namespace monitoring"} if ("ServiceMonitor", "worker") in objects else set()
    assert callers(objects, "worker", 8100) == {"router"} | monitoring
    assert callers(objects, "router", 8200) == {"gateway"}
    assert callers(objects, "gateway", 8000) == {"namespace ingress-nginx"} | monitoring
    if ("StatefulSet", "redis") in objects:
        assert callers(objects, "redis", 6379) == {"worker"}


def test_services_budgets_and_scalers_mean_pods_that_exist(objects: Objects) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods(objects).items()}
    for (kind, name), one in objects.items():
        if kind == "Service":
            assert one["spec"]["selector"].items() <= labels[name].items()
            ports = [
                port["name"] for container in pods(objects)[name]["spec"]["containers"] for port in container["ports"]
            ]
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= set(ports)
        if kind == "PodDisruptionBudget":
            assert one["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
        if kind in ("HorizontalPodAutoscaler", "ScaledObject"):
            assert ("Deployment", one["spec"]["scaleTargetRef"]["name"]) in objects
            assert "replicas" not in objects["Deployment", name]["spec"], "a scaler and a number would fight"
        if kind == "ServiceMonitor":
            service = objects["Service", name]
            assert one["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            assert one["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert {name for kind, name in objects if kind == "PodDisruptionBudget"} == {"gateway", "worker", "router"}
    assert objects["Service", "worker"]["spec"]["clusterIP"] == "None"


def test_workers_are_scaled_on_a_metric_that_they_have(objects: Objects) -> None:
    scaled = objects.get(("ScaledObject", "worker"))
    if scaled is None:
        pytest.skip("this overlay scales by hand")
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    assert all(metrics.INFLIGHT._name in query for query in queries)
    assert 'kind="decode"' in queries[0]
    assert scaled["spec"]["minReplicaCount"] >= 1


def test_gateways_ask_their_callers_for_a_key(objects: Objects) -> None:
    spec = pods(objects)["gateway"]["spec"]
    (container,) = spec["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert "WSISAM_INSECURE" not in environment
    (volume,) = [one for one in spec["volumes"] if one.get("secret") == {"secretName": "wsisam-keys"}]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == volume["name"]]
    assert (mount["readOnly"], "subPath" in mount) == (True, False), "with a subPath a changed Secret is never seen"
    assert environment["WSISAM_KEYS"] == f"{mount['mountPath']}/keys.toml"
    monitor = objects.get(("ServiceMonitor", "gateway"))
    assert monitor is None or monitor["spec"]["endpoints"][0]["authorization"]["type"] == "Bearer"
    ingress = objects.get(("Ingress", "gateway"))
    logs = "nginx.ingress.kubernetes.io/enable-access-log"
    assert ingress is None or ingress["metadata"]["annotations"][logs] == "false", "keys in paths would be in it"


def test_behind_the_ingress_wrong_keys_count_by_the_clients_address(objects: Objects) -> None:
    """The controller's word for it may be taken, as nobody else is let in (`test_workers_and_redis_answer_…`)."""
    (container,) = pods(objects)["gateway"]["spec"]["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    believed = "*" if ("Ingress", "gateway") in objects else None
    assert environment.get("FORWARDED_ALLOW_IPS") == believed


def test_the_ingress_has_tls_for_every_host(objects: Objects) -> None:
    ingress = objects.get(("Ingress", "gateway"))
    if ingress is None:
        pytest.skip("this overlay has no ingress")
    assert {rule["host"] for rule in ingress["spec"]["rules"]} == set(ingress["spec"]["tls"][0]["hosts"])


def test_the_router_runs_the_configuration_that_is_tested(objects: Objects) -> None:
    (config,) = [one for (kind, name), one in objects.items() if kind == "ConfigMap" and name.startswith("router-")]
    assert yaml.safe_load(config["data"]["envoy.yaml"]) == yaml.safe_load((KUBERNETES / "base/envoy.yaml").read_text())
    mounted = pods(objects)["router"]["spec"]["volumes"][0]["configMap"]["name"]
    assert mounted == config["metadata"]["name"]


@pytest.mark.redis
async def test_redis_with_the_arguments_of_its_pod_serves_the_workers_user(objects: Objects, tmp_path: Path) -> None:
    if ("StatefulSet", "redis") not in objects:
        pytest.skip("this overlay's Redis is elsewhere")
    password = "0123456789abcdef"
    (container,) = pods(objects)["redis"]["spec"]["containers"]
    arguments = [argument.replace("$(REDIS_PASSWORD)", password) for argument in container["args"]]
    server = RedisServer(tmp_path, *arguments)
    (worker,) = pods(objects)["worker"]["spec"]["containers"]
    url = next(one["value"] for one in worker["env"] if one["name"] == "WSISAM_STORE")
    store = RedisStore(
        url.replace("$(REDIS_PASSWORD)", password).replace("redis:6379", f"127.0.0.1:{server.port}"), "emb"
    )
    try:
        await store.put("a:b", b"x")
        assert await store.get("a:b") == b"x"
        claim = await store.claim("c:d")
        assert not isinstance(claim, bytes)
        await claim.release()
        assert await store.delete_matching("b") == 1
        assert store.size_bytes > 0
    finally:
        await store.aclose()
        server.close()
