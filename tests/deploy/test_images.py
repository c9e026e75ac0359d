"""Dockerfile, compose file and dashboard, as far as they can be judged without a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_cluster import compose_services
from prometheus_client.metrics import MetricWrapperBase

from wsisam_service import metrics

REPOSITORY = Path(__file__).resolve().parents[2]
EXPRESSIONS = re.compile(r"wsisam_[a-z0-9_]+")


def tool(name: str) -> str:
    """A command of this environment."""
    found = shutil.which(name) or str(Path(sys.executable).with_name(name))
    if not Path(found).exists():
        pytest.skip(f"needs {name}")
    return found


def known_metrics() -> set[str]:
    """Every sample name that a service of ours exports."""
    names: set[str] = set()
    for collector in vars(metrics).values():
        if isinstance(collector, MetricWrapperBase):
            for family in collector.describe():
                suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
                names |= {family.name + suffix for suffix in suffixes}
    return names


def dockerfile_stage(name: str) -> str:
    text = (REPOSITORY / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)
    return next(stage for stage in stages if stage.splitlines()[0].endswith(f" AS {name}"))


def test_the_dockerfile_passes_its_linter() -> None:
    subprocess.run([tool("hadolint"), str(REPOSITORY / "Dockerfile")], check=True)


def test_both_images_run_as_nobody_from_a_pinned_base_with_a_healthcheck() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert base
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base[1])
    assert "USER 10001:10001" in dockerfile_stage("run")
    assert "pip uninstall --yes pip setuptools wheel" in dockerfile_stage("run")
    for stage in ("gateway", "worker"):
        assert dockerfile_stage(stage).startswith(f"run AS {stage}")
        assert "HEALTHCHECK" in dockerfile_stage(stage)
        assert "RUN" not in dockerfile_stage(stage)


def test_the_gateways_requirements_have_no_torch_and_the_workers_have() -> None:
    def listed(extras: str) -> str:
        command = [sys.executable, "docker/requirements.py", extras]
        return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout

    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert listed("gateway").split() == " ".join(extras["gateway"]).split()
    assert "torch" not in listed("gateway")
    assert "torch>" in listed("worker,fast")
    assert set(listed("gateway").splitlines()) < set(listed("worker").splitlines())


def test_what_the_images_copy_is_let_through_by_dockerignore() -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    text = (REPOSITORY / "Dockerfile").read_text()
    copied = [words for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for words in line.split()[:-1]]
    assert copied
    assert set(copied) <= allowed
    assert all((REPOSITORY / path).exists() for path in copied)


def test_the_gateways_image_carries_the_page_that_it_builds() -> None:
    built = "/src/service/wsisam_service/page"
    assert f"COPY --from=page {built} service/wsisam_service/page\nRUN pip" in dockerfile_stage("build-gateway")
    assert "npm ci" in dockerfile_stage("page")
    assert 'outDir: "../service/wsisam_service/page"' in (REPOSITORY / "web/vite.config.ts").read_text()


@pytest.mark.parametrize("files", [["docker-compose.yml"], ["docker-compose.yml", "docker-compose.gpu.yml"]])
def test_compose_accepts_the_files(files: list[str]) -> None:
    chosen = [part for file in files for part in ("-f", str(REPOSITORY / file))]
    environment = {**os.environ, "WSISAM_WORKER_TOKEN": "a", "WSISAM_SECRET": "b"}
    command = [tool("docker-compose"), *chosen, "--profile", "monitoring", "config", "-q"]
    subprocess.run(command, check=True, env=environment)
    del environment["WSISAM_WORKER_TOKEN"]
    assert subprocess.run(command, check=False, env=environment, capture_output=True).returncode != 0


def test_every_compose_service_is_hardened_and_workers_are_not_published() -> None:
    services = compose_services()
    assert set(services) == {"redis", "worker", "envoy", "gateway"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    published = {name: [port["host_ip"] for port in service.get("ports", [])] for name, service in services.items()}
    assert published == {"redis": [], "worker": [], "envoy": [], "gateway": ["127.0.0.1"]}
    slides = [
        volume
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume["target"] == "/slides"
    ]
    assert [volume["read_only"] for volume in slides] == [True]
    assert "front" not in services["worker"]["networks"]
    gateway = services["gateway"]
    assert "WSISAM_INSECURE" not in gateway["environment"]
    assert gateway["environment"]["WSISAM_KEYS"] == f"/run/secrets/{gateway['secrets'][0]['source']}"
    assert gateway["environment"]["FORWARDED_ALLOW_IPS"] == "127.0.0.1"


def test_the_worker_of_compose_has_a_folder_for_own_adapters() -> None:
    (folder,) = compose_services()["worker"]["volumes"]
    assert (folder["target"], folder["read_only"]) == ("/adapters", True)
    assert "WSISAM_OWN_ADAPTERS=/adapters/" in (REPOSITORY / "docker-compose.yml").read_text()


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard: dict[str, Any] = json.loads((REPOSITORY / "docker/grafana/dashboards/wsisam.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in EXPRESSIONS.findall(query)}
    assert asked <= known_metrics()
    titles = " ".join(panel["title"] for panel in dashboard["panels"]).lower()
    for wanted in ("click latency", "tier", "batch size", "queue", "gpu memory"):
        assert wanted in titles
    assert 'route="/v1/slides/{slide_id}/segment"' in queries[0]


def test_prometheus_finds_every_part_by_name() -> None:
    config = yaml.safe_load((REPOSITORY / "docker/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    environments = {name: service.get("environment", {}) for name, service in compose_services().items()}
    for name in ("gateway", "worker"):
        (found,) = jobs[name]["dns_sd_configs"]
        assert found["names"] == [name]
        assert str(found["port"]) == environments[name]["WSISAM_PORT"]
    checker = shutil.which("promtool")
    if checker:
        subprocess.run([checker, "check", "config", str(REPOSITORY / "docker/prometheus.yml")], check=True)
