"""The gallery is one page that asks nobody else and runs nothing that came with the data."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

import pytest

from workers.api.gallery import policy

HTML = (files("workers.api") / "gallery.html").read_text()


def script() -> str:
    return re.search(r"<script>(.*?)</script>", HTML, re.DOTALL)[1]


def test_the_policy_allows_exactly_this_script_and_style():
    given = policy(HTML, None)
    for tag in ("script", "style"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in given
    assert "unsafe" not in given
    assert given.startswith("default-src 'none'; img-src 'self' data:;")


def test_pictures_may_come_from_the_public_store_and_from_nowhere_else():
    assert "img-src 'self' data: https://covers.example;" in policy(HTML, "https://covers.example")


def test_a_page_without_a_script_is_refused():
    with pytest.raises(ValueError, match="<script>"):
        policy("<style></style>", None)


def test_nothing_is_fetched_from_elsewhere():
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+", HTML.replace("http://www.w3.org/2000/svg", "")))
    assert addresses == set()
    assert len(re.findall(r"<script\b", HTML)) == 1


def test_data_reaches_the_page_as_text_only():
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert sink not in script()
    assert " style=" not in HTML
    assert not re.search(r"\son\w+=", HTML)
