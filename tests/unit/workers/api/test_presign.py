"""Presigned addresses: botocore is the judge of the signature."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from pydantic import SecretStr

from workers.api.presign import Presigner
from workers.settings import S3

KEYS = {"access_key": SecretStr("AKIDEXAMPLE"), "secret_key": SecretStr("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")}
NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC).timestamp()


def presigner(now: list[float] | None = None, **settings: object) -> Presigner:
    clock = now or [NOON]
    return Presigner(S3(**(KEYS | {"endpoint": "http://127.0.0.1:9000"} | settings)), clock=lambda: clock[0])


@pytest.mark.parametrize("key", ["covers/a~b.c-d/0f.webp", "references/über uns/a+b&c=d.png"])
@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_the_signature_is_botocores(key, region):
    ours = presigner(region=region, presign_seconds=600).sign(key, "icg", int(NOON))

    request = AWSRequest("GET", ours.url.split("?")[0])
    auth = S3SigV4QueryAuth(
        Credentials(KEYS["access_key"].get_secret_value(), KEYS["secret_key"].get_secret_value()), "s3", region, 600
    )
    request.context["timestamp"] = "20261121T120000Z"
    auth._modify_request_before_signing(request)
    canonical = auth.canonical_request(request)
    theirs = auth.signature(auth.string_to_sign(request, canonical), request)
    assert parse_qs(urlsplit(ours.url).query)["X-Amz-Signature"] == [theirs]
    assert ours.valid_until == "2026-11-21T12:10:00Z"


def test_a_session_token_is_signed_with_the_rest(monkeypatch):
    for name, value in (("ACCESS_KEY_ID", "AKID"), ("SECRET_ACCESS_KEY", "secret"), ("SESSION_TOKEN", "to/ken=")):
        monkeypatch.setenv(f"AWS_{name}", value)
    boto3.DEFAULT_SESSION = None
    url = Presigner(S3(endpoint="http://127.0.0.1:9000"), clock=lambda: NOON).address("a").url
    assert parse_qs(urlsplit(url).query)["X-Amz-Security-Token"] == ["to/ken="]


def test_an_address_stays_the_same_for_half_its_life_and_always_has_the_other_half_left():
    now = [NOON]
    signer = presigner(now, presign_seconds=600)
    seen = {}
    for second in range(1200):
        now[0] = NOON + second
        address = signer.address("covers/a/b.webp")
        left = datetime.fromisoformat(address.valid_until).timestamp() - now[0]
        assert 300 < left <= 600
        seen.setdefault(address.url, []).append(second)
    inner = list(seen.values())[1:-1]
    assert inner
    assert {len(seconds) for seconds in inner} == {300}


def test_addresses_that_nobody_asks_for_any_more_are_forgotten():
    now = [NOON]
    signer = presigner(now, presign_seconds=600)
    for second in range(3000):
        now[0] = NOON + second
        signer.address(f"covers/a/{second}.webp")
        asked_again = signer.address("covers/a/b.webp")
        assert signer.address("covers/a/b.webp") is asked_again
    assert len(signer._kept) + len(signer._older) <= 2 * 301


def test_two_replicas_give_one_address_and_keys_take_turns_to_change():
    one, other = presigner([NOON]), presigner([NOON + 1])
    keys = [f"covers/{k}/c.webp" for k in range(200)]
    same = sum(one.address(key).url == other.address(key).url for key in keys)
    assert same > 190
    assert len({one.address(key).valid_until for key in keys}) > 50


def test_the_public_endpoint_is_what_readers_get():
    signer = presigner(public_endpoint="https://covers.example/s3/")
    assert signer.origin == "https://covers.example"
    assert signer.address("a/b").url.startswith("https://covers.example/s3/icg/a/b?")


def test_amazons_own_address_names_the_region():
    signer = Presigner(S3(**KEYS, region="eu-west-1"), clock=lambda: NOON)
    assert signer.address("a").url.startswith("https://s3.eu-west-1.amazonaws.com/icg/a?")
