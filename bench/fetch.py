"""How fast the api answers: one cover, and a page of 200, against a bare route that does the same Feast reads.

A real uvicorn with a SQLite feature store, in a process of its own on loopback; one client, one request at a time, on a
connection that stays open. Items are drawn anew for each request from a catalogue larger than a page. The bare route
reads the same columns from Feast with the same port and answers with nothing else: no choice, no token, no address.

    python bench/fetch.py [--json FILE] [--requests N] [--policy POLICY]
"""

from __future__ import annotations

import argparse
import http.client
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import orjson

from bench import api_world
from icg.evaluation.report import Figure, report, versions
from workers.embedded import Embedded
from workers.features import Features
from workers.settings import Api, Policy, Settings

ITEMS, USERS, PAGE = 2000, 2000, 200

BARE = """
import asyncio, signal, sys, threading
import orjson, prometheus_client, uvicorn
from fastapi import FastAPI, Request, Response
from workers.api.lookup import ITEM_COLUMNS, USER_COLUMNS
from workers.features import Features
from workers.settings import settings

features = Features(settings().feast)
app = FastAPI()

def read(user_id, item_ids):
    features.read(USER_COLUMNS, [{"user_id": user_id}])
    return features.read(ITEM_COLUMNS, [{"item_id": item_id} for item_id in item_ids])

@app.get("/readyz")
async def ready():
    return {}

@app.get("/metrics")
async def metrics():
    return Response(prometheus_client.generate_latest())

@app.get("/one/{item_id}")
async def one(item_id: str, user_id: str):
    rows = await asyncio.to_thread(read, user_id, [item_id])
    return Response(orjson.dumps(rows[0]["generation"]))

@app.post("/page")
async def page(request: Request):
    body = orjson.loads(await request.body())
    rows = await asyncio.to_thread(read, body["user_id"], body["item_ids"])
    return Response(orjson.dumps([row["generation"] for row in rows]))

uvicorn.run(app, host="127.0.0.1", port=settings().api.port, log_level="warning", access_log=False)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--requests", type=int, default=300, help="of each kind (default 300)")
    parser.add_argument("--policy", choices=get_args(Policy), default="segment")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder), parts=("s3", "feast")) as servers:
        features = Features(servers.feast)
        segments = api_world.SEGMENTS
        items = [f"item-{k:05d}" for k in range(ITEMS)]
        api = Api(policy=arguments.policy)
        settings = Settings(s3=servers.s3, feast=servers.feast, api=api, cache=Path(folder) / "cache")
        space = api_world.tastes(features, settings, [f"user-{k}" for k in range(USERS)])
        api_world.publish_rows(features, items, space=space)
        api_world.readers(features, {f"user-{k}": (segments[1 + k % 8], "s-1") for k in range(USERS)})
        page = [{"item_id": item} for item in items[:PAGE]]
        features.close()
        with api_world.served(settings) as ours, api_world.served(settings, program=BARE) as bare:
            measured = measure(ours, bare, items, arguments.requests)
            measured["cpu"] = cpu_times(ours, bare, items)
        floor = feast_alone(settings, page)
    (get, get_bare), (batch, batch_bare) = measured["get"], measured["batch"]
    cpu, cpu_bare = measured["cpu"]
    how = f"{arguments.requests} requests, policy {arguments.policy}, {ITEMS} items, {len(segments)} covers each"
    figures = [
        Figure("get_p50_ms", quantile(get, 0.5), note=how),
        Figure("get_p95_ms", quantile(get, 0.95)),
        Figure("batch_p50_ms", quantile(batch, 0.5), most=30, note=f"batchGet of {PAGE} items"),
        Figure("batch_p95_ms", quantile(batch, 0.95)),
        Figure("get_vs_feast", quantile(get, 0.5) / quantile(get_bare, 0.5), note="p50 over the bare route's"),
        Figure("vs_feast", quantile(batch, 0.5) / quantile(batch_bare, 0.5), note="batch p50 over the bare route's"),
        Figure(
            "batch_bare_p50_ms", quantile(batch_bare, 0.5), note="a bare FastAPI route with the same two Feast reads"
        ),
        Figure("get_bare_p50_ms", quantile(get_bare, 0.5)),
        Figure("batch_cpu_ms", quantile(cpu, 0.5), note="server CPU of one batchGet: neighbours disturb it less"),
        Figure("batch_bare_cpu_ms", quantile(cpu_bare, 0.5), note="of the bare route"),
        Figure("vs_feast_cpu", quantile(cpu, 0.5) / quantile(cpu_bare, 0.5)),
        Figure("feast_p50_ms", quantile(floor, 0.5), note=f"the read of {PAGE} items alone, in process"),
    ]
    facts = versions("feast", "fastapi", "uvicorn")
    return 0 if report("Fetching covers", figures, arguments.json, facts) else 1


def measure(ours: str, bare: str, items: list[str], requests: int) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of each request; both servers take turns, so that noise of the machine meets both."""
    random.seed(0)
    a, b = (http.client.HTTPConnection(address.removeprefix("http://")) for address in (ours, bare))
    taken: dict[str, tuple[list[float], list[float]]] = {"get": ([], []), "batch": ([], [])}
    for turn in range(requests + 20):
        user, one, page = f"user-{random.randrange(USERS)}", random.choice(items), random.sample(items, PAGE)
        body = orjson.dumps({"user_id": user, "item_ids": page})
        times = (
            timed(a, "GET", f"/v1/covers/{one}?user_id={user}"),
            timed(b, "GET", f"/one/{one}?user_id={user}"),
            timed(a, "POST", "/v1/covers:batchGet", body),
            timed(b, "POST", "/page", body),
        )
        if turn >= 20:  # the first ones warm up
            for (kind, side), spent in zip((("get", 0), ("get", 1), ("batch", 0), ("batch", 1)), times, strict=True):
                taken[kind][side].append(spent)
    return taken


def timed(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> float:
    began = time.perf_counter()
    connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
    answer = connection.getresponse()
    answer.read()
    spent = (time.perf_counter() - began) * 1000
    if answer.status != 200:
        raise RuntimeError(f"{method} {path.split('?')[0]} answered {answer.status}")
    return spent


def cpu_times(
    ours: str, bare: str, items: list[str], rounds: int = 20, pages: int = 5
) -> tuple[list[float], list[float]]:
    """Milliseconds of the servers' CPU for one page, from /metrics before and after a few of them."""
    a, b = (http.client.HTTPConnection(address.removeprefix("http://")) for address in (ours, bare))
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        bodies = [orjson.dumps({"user_id": "user-1", "item_ids": random.sample(items, PAGE)}) for _ in range(pages)]
        for side, connection, path in ((0, a, "/v1/covers:batchGet"), (1, b, "/page")):
            before = cpu_seconds(connection)
            for body in bodies:
                timed(connection, "POST", path, body)
            spent[side].append((cpu_seconds(connection) - before) * 1000 / pages)
    return spent


def cpu_seconds(connection: http.client.HTTPConnection) -> float:
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_cpu_seconds_total"))


def feast_alone(settings: Settings, page: list[dict[str, str]], times: int = 100) -> list[float]:
    from workers.api.lookup import ITEM_COLUMNS

    features = Features(settings.feast)
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        features.read(ITEM_COLUMNS, page)
        spent.append((time.perf_counter() - began) * 1000)
    features.close()
    return spent


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


if __name__ == "__main__":
    raise SystemExit(main())
