"""The api as a process: its port, its end, and how soon a switch acts."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from bench import api_world
from infra.servers.process import free_port
from tests.waiting import until
from workers.api.service import listen, run
from workers.embedded import Embedded
from workers.features import Features
from workers.settings import Api, Feast, Settings, environment
from workers.storage import ObjectStore
from workers.switches import POLL_SECONDS


@pytest.fixture
def settings(embedded: Embedded, tmp_path: Path) -> Settings:
    repo = tmp_path / "feast"
    shutil.copytree(embedded.feast.repo, repo)
    s3 = embedded.s3.model_copy(update={"bucket": f"service-{uuid.uuid4().hex[:12]}"})
    ObjectStore(s3).ensure_bucket()
    return Settings(s3=s3, feast=Feast(repo=repo, yaml=repo / "feature_store.yaml"), api=Api(exploration=0.0))


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_in_use_gets_one_line_and_status_2(settings: Settings, taken: int, capsys):
    chosen = settings.model_copy(update={"api": Api(port=taken)})
    assert run(chosen, threading.Event()) == 2
    error = capsys.readouterr().err
    assert error == f"icg: the api's address 127.0.0.1:{taken} is in use; choose another with ICG_API_PORT\n"


def test_an_address_that_is_not_ours_gets_one_line_too(settings: Settings, capsys):
    chosen = settings.model_copy(update={"api": Api(host="192.0.2.1", port=0)})
    assert run(chosen, threading.Event()) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_answers_are_not_held_back_for_acknowledgements():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        with far:
            assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        near.close()


@pytest.mark.slow
def test_a_switch_acts_by_itself_and_outlasts_the_store(settings: Settings, embedded: Embedded):
    features, store = Features(settings.feast), ObjectStore(settings.s3)
    covers = api_world.publish(features, store, "item", segments=("neutral", "s-1"))
    features.close()
    variables = environment(s3=settings.s3) | {"OMP_NUM_THREADS": "1"}

    def icg(*words: str) -> subprocess.CompletedProcess[str]:
        program = f"from workers.switches import app; app({list(words)!r})"
        return subprocess.run(
            [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True
        )

    with api_world.running(settings) as address:

        def shown() -> str:
            return httpx.get(f"{address}/v1/covers/item", params={"segment_id": "s-1"}, timeout=60).json()["cover_id"]

        assert shown() == covers["s-1"]
        icg("block", covers["s-1"], "--reason", "a logo in it", "--by", "ada")
        until(lambda: shown() == covers["neutral"])
        assert 2 * POLL_SECONDS < 10  # what is promised
        assert "ada: block" in icg("switches").stdout
        embedded.pause_s3()
        try:
            time.sleep(POLL_SECONDS + 1)  # S3 is away, the last known switches hold
            assert shown() == covers["neutral"]
        finally:
            embedded.resume_s3()
        icg("unblock", covers["s-1"])
        until(lambda: shown() == covers["s-1"])
        icg("personalization", "off", "--reason", "complaints")
        until(lambda: shown() == covers["neutral"])


def test_sigterm_ends_it_though_a_connection_stays_open(settings: Settings, tmp_path: Path):
    port = free_port()
    api = settings.api.model_copy(update={"host": "127.0.0.1", "port": port})
    variables = environment(s3=settings.s3, feast=settings.feast, api=api) | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", api_world._RUN], env=variables, stderr=subprocess.DEVNULL)
    try:
        until(lambda: api_world._ready(f"http://127.0.0.1:{port}"))
        open_one = http.client.HTTPConnection(urlsplit(f"http://127.0.0.1:{port}").netloc)
        open_one.request("GET", "/healthz")
        assert open_one.getresponse().read()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_no_torch_in_the_process(settings: Settings):
    program = (
        "import sys\nfrom workers.api import service\nfrom workers.features import Features\n"
        "from workers.settings import settings\nFeatures(settings().feast).close()\n"
        "print(sorted(name for name in sys.modules if name in {'torch', 'transformers', 'diffusers'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(feast=settings.feast),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
