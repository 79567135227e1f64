"""The simulated audience at its two doors: a real HTTP server that answers like the api, and a broker."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from icg.evaluation.audience import Habits, Readers
from icg.evaluation.people import Population
from workers.events import UserBehavior
from workers.messaging import Follower, Producer
from workers.settings import Kafka
from workers.simulate import Audience, Totals

ITEMS = [{"item_id": f"i{k}", "title": f"title {k}", "category": "ab"[k % 2]} for k in range(30)]
USERS = [f"u{k}" for k in range(12)]


class Api:
    """Answers pages and pictures. What a reader must not see is made of `told`."""

    def __init__(self, told: str) -> None:
        self.told, self.broken = told, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.answer(json.dumps({"covers": [outer.entry(item) for item in asked["item_ids"]]}).encode())

            def do_GET(self) -> None:
                if outer.broken:
                    outer.broken -= 1
                    self.send_error(503)
                    return
                rng = np.random.default_rng(int(self.path.rsplit("/", 1)[1][:8], 16))
                image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64))
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                self.answer(buffer.getvalue())

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def entry(self, item_id: str) -> dict[str, Any]:
        cover = hashlib.sha256(item_id.encode()).hexdigest()
        told = hashlib.sha256(f"{self.told}{item_id}".encode()).hexdigest()[:8]
        return {
            "item_id": item_id,
            "cover_id": cover,
            "image": f"/pictures/{cover}",
            "segment_id": f"s-{told}",
            "cover_segment": f"s-{told}",
            "served": self.told,
            "generation": int(told, 16),
            "release": int(told, 16),
            "decision": f"token-{told}",
            "rewards": {"aesthetic": int(told, 16)},
        }


@pytest.fixture
def apis() -> Iterator[list[Api]]:
    made = [Api("segment"), Api("exploration")]
    yield made
    for api in made:
        api.server.shutdown()
        api.server.server_close()


def audience() -> Audience:
    people = Population.drawn(len(USERS), 2, seed=1)
    return Audience(USERS, Readers(people, Habits(click_rate=0.3)), ["a", "b"], seed=5)


def read(kafka: Kafka, api: Api, pages: int = 40, readers: int = 1) -> tuple[Totals, list[UserBehavior]]:
    follower, producer = Follower(kafka, UserBehavior.topic, "end"), Producer(kafka, "simulated")
    crowd = audience()
    totals = asyncio.run(crowd.read(api.address, ITEMS, producer, pages=pages, page_size=6, readers=readers))
    producer.close()
    events: list[UserBehavior] = []
    while len(events) < totals.impressions + totals.clicks:
        events += [UserBehavior.decode(message.value) for message in follower.poll(1000, 60)]
    follower.close()
    return totals, events


def test_a_choice_depends_on_pixels_and_titles_and_on_nothing_else_that_the_api_says(
    kafka: Kafka, apis: list[Api]
) -> None:
    """Segments, releases, generations, rewards and tokens differ in every entry; the clicks do not."""
    reported = []
    for api in apis:
        totals, events = read(kafka, api)
        assert totals.clicks > 10
        reported.append({(e.event_id, e.user_id, e.item_id, e.cover_id, e.position) for e in events})
        assert {e.decision for e in events} == {api.entry(item["item_id"])["decision"] for item in ITEMS}
    assert reported[0] == reported[1]


def test_a_platforms_report(kafka: Kafka, apis: list[Api]) -> None:
    totals, events = read(kafka, apis[0], readers=4)
    assert totals.impressions == 40 * 6
    shown = {e.event_id: e for e in events if e.kind == "impression"}
    assert len(shown) == totals.impressions
    assert {e.surface for e in events} == {"simulated"}
    for event in events:
        assert event.position_propensity == pytest.approx(0.85 ** (event.position or 0))
        assert f"{event.impression_id}.impression" in shown
    assert set(totals.figures()) >= {"simulated_impressions", "simulated_clicks", "simulated_click_rate"}


def test_a_page_whose_pictures_do_not_come_is_not_reported_and_reading_goes_on(kafka: Kafka, apis: list[Api]) -> None:
    apis[0].broken = 2
    totals, events = read(kafka, apis[0], pages=8)
    assert totals.failures == 2
    assert totals.pages == 6
    assert len({e.page_id for e in events}) == 6


def test_users_and_people_must_match() -> None:
    with pytest.raises(ValueError, match="1 users for 2"):
        Audience(["u"], Readers(Population.drawn(2, 1, seed=0)), ["a"])
