"""Dashboard, alerts and scraping speak of metrics, labels, services and ports that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metrics import FOREIGN, in_code, problems

ROOT = Path(__file__).resolve().parents[3]
INFRA = ROOT / "infra"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DASHBOARD = json.loads((INFRA / "grafana" / "dashboards" / "icg.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = yaml.safe_load((INFRA / "prometheus" / "rules" / "icg.yml").read_text())["groups"][0][
    "rules"
]


def test_metrics_are_found_in_the_code() -> None:
    found = {metric.name: metric for metric in in_code()}
    assert len(found) > 40
    assert found["icg_covers_stage_seconds"].labels == ("stage",)
    assert "icg_covers_drawn_total" in found["icg_covers_drawn"].series


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("sum(icg_covers_drawn)", ["icg_covers_drawn is no metric"]),
        ('icg_covers_lag{group="x"}', ["icg_covers_lag has no label group"]),
        ("sum by (segment) (icg_covers_pending)", ["nothing here has a label segment"]),
    ],
)
def test_a_wrong_expression_is_found(expression: str, says: list[str]) -> None:
    assert problems(expression) == says


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_shows_what_there_is(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        expression = target["expr"]
        assert problems(expression) == []
        assert re.search(r"\bicg_", expression) or any(name in expression for name in FOREIGN)
        names = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        grouped = re.findall(r"\bby \(([^)]*)\)", expression)
        assert not grouped or names <= {name.strip() for each in grouped for name in each.split(",")}
    assert panel["datasource"]["uid"] == "prometheus"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_can_fire(rule: dict[str, Any]) -> None:
    assert problems(rule["expr"]) == []
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_in_the_runbook(rule: dict[str, Any]) -> None:
    assert f"**{rule['alert']}**" in (ROOT / "docs" / "operations.md").read_text()


def test_every_service_is_scraped_where_it_serves() -> None:
    config = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())
    scraped = {
        name: each["port"]
        for job in config["scrape_configs"]
        for each in job["dns_sd_configs"]
        for name in each["names"]
    }
    assert scraped == {
        "covers": 9400,
        "covers-gpu": 9400,
        "preferences": 9400,
        "audit": 9400,
        "people": 9400,
        "api": 8080,
    }
    for name, port in scraped.items():
        service = SERVICES[name]
        assert str(port) in service.get("expose", []) or any(p.endswith(f":{port}") for p in service["ports"])
        assert f":{port}/readyz" in service["healthcheck"]["test"][-1]
    assert list(INFRA.joinpath("prometheus").glob(config["rule_files"][0]))


def test_grafana_finds_its_source_and_dashboard() -> None:
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    [source] = yaml.safe_load((INFRA / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((INFRA / "grafana/provisioning/dashboards/icg.yml").read_text())["providers"]
    assert source["url"] == "http://prometheus:9090"
    assert source["uid"] == "prometheus"
    assert mounts["./infra/grafana/dashboards"] == provider["options"]["path"]
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == (
        f"{provider['options']['path']}/icg.json"
    )
