"""docker-compose.yml, Dockerfiles and their locks: against the Compose specification's schema and against the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from workers.cli import SERVICES as ICG_SERVICES
from workers.settings import Settings, environment

ROOT = Path(__file__).resolve().parents[3]
DOCKER = ROOT / "infra" / "docker"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("topics", "features", "bootstrap", "covers-gpu", *ICG_SERVICES)
ONCE = {"topics", "features", "bootstrap", "icg", "tests"}
PIN = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)
FOREIGN = ("OTEL_", "FEAST_", "AWS_", "KAFKA_", "GF_", "ROOT_", "ICG_TEST_", "CI")
"""Variables that are not ours to know: OpenTelemetry's, Feast's, Amazon's, the servers' own, and the tests'."""


def variables() -> set[str]:
    """Every variable that `workers.settings` reads."""
    names: set[str] = set()
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if hasattr(section, "model_fields"):
            names |= {f"ICG_{name}_{inner}".upper() for inner in section.model_fields}
        else:
            names.add(str(field.validation_alias or f"ICG_{name}".upper()))
    return names


def pins(lock: Path) -> dict[str, str]:
    return dict(PIN.findall(lock.read_text()))


def test_it_is_what_the_compose_specification_allows() -> None:
    spec = find_spec("check_jsonschema")
    assert spec is not None
    assert spec.origin is not None
    schema = Path(spec.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    problems = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft7Validator(json.loads(schema.read_text())).iter_errors(COMPOSE)
    ]
    assert problems == []


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no Compose here")
def test_compose_itself_reads_it() -> None:
    done = subprocess.run(
        ["docker-compose", "--profile", "*", "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_watched_or_ends(name: str) -> None:
    service = SERVICES[name]
    if name in ONCE:
        assert "healthcheck" not in service
        assert "restart" not in service
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service.get("restart") == "unless-stopped" or service["profiles"] == ["test"]


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    image, _, tag = service["image"].partition(":")
    if "build" in service:
        assert image.startswith("icg-")
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    else:
        assert re.search(r"\d+\.\d+", tag), f"{image}:{tag} says no version"


def test_the_tests_use_the_same_servers() -> None:
    from tests.servers import IMAGES

    for part in ("kafka", "s3"):
        assert SERVICES[part]["image"] == IMAGES[part]


@pytest.mark.parametrize("name", SERVICES)
def test_variables_are_known_to_somebody(name: str) -> None:
    given = set(SERVICES[name].get("environment", ()))
    ours = {variable for variable in given if not variable.startswith(FOREIGN)} | given & {"OTEL_TRACES_EXPORTER"}
    assert ours <= variables()


@pytest.mark.parametrize(
    "name", ["topics", "features", "bootstrap", "covers", "covers-gpu", "preferences", "audit", "api"]
)
def test_our_settings_take_these_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value)))
    read = Settings()
    assert read.kafka.bootstrap_servers == "kafka:19092"
    assert read.s3.endpoint == "http://s3:7070"
    assert environment(kafka=read.kafka)["ICG_KAFKA_BOOTSTRAP_SERVERS"] == "kafka:19092"


@pytest.mark.parametrize("name", SERVICES)
def test_what_it_waits_for_can_come_about(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how["condition"] == ("service_completed_successfully" if other in ONCE else "service_healthy")
        assert set(SERVICES[other].get("profiles", ())) <= set(SERVICES[name].get("profiles", ()))


@pytest.mark.parametrize("name", [*OURS, "icg"])
def test_ours_have_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_ports_are_open_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("file", ["services", "covers", "tests"])
def test_images_are_pinned_and_run_as_nobody(file: str) -> None:
    text = (DOCKER / f"{file}.Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON=3\.11\.\d+-", text, re.MULTILINE)
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "--require-hashes" in text
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        for path in source.split():
            assert (ROOT / path).exists(), path
    ports = {"9400"} | ({"8080"} if file == "services" else set())
    if file != "tests":
        assert set(re.findall(r"\d+", re.search(r"^EXPOSE (.*)$", text, re.MULTILINE)[1])) == ports  # type: ignore[index]
        assert "ICG_HEALTH_PORT=9400" in text
        ours = set(re.findall(r"\b(ICG_[A-Z0-9_]+)=", text))
        assert ours <= variables()


@pytest.mark.parametrize("name", ["services", "covers"])
def test_a_lock_is_part_of_the_one_lock(name: str) -> None:
    everything = pins(ROOT / "requirements.lock")
    these = pins(DOCKER / f"{name}.lock")
    assert len(these) > 50
    assert {package: version for package, version in these.items() if everything.get(package) != version} == {}
    text = (DOCKER / f"{name}.lock").read_text()
    assert text.count("--hash=sha256:") >= len(these)


def test_api_audit_and_preferences_carry_no_torch() -> None:
    heavy = re.compile(r"^(torch|torchvision|diffusers|transformers|accelerate|triton|nvidia-.*|cuda-.*)$")
    assert [package for package in pins(DOCKER / "services.lock") if heavy.match(package)] == []
    assert {"torch", "diffusers"} <= pins(DOCKER / "covers.lock").keys()


@pytest.mark.parametrize(("extras", "name"), [(("api", "audit", "preferences"), "services"), (("covers",), "covers")])
def test_a_lock_has_all_that_its_extras_name(extras: tuple[str, ...], name: str) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted, waiting = set(project["dependencies"]), [*extras, "tracing"]
    while waiting:
        for requirement in optional[waiting.pop()]:
            own = re.match(r"icg-worker\[(.*)\]", requirement)
            waiting += own[1].split(",") if own else []
            wanted |= set() if own else {requirement}
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= pins(DOCKER / f"{name}.lock").keys()
