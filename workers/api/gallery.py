"""The gallery at `/`: one HTML file without any request to elsewhere, under a policy that would forbid one."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter, Response

from workers.api.pictures import Pictures


def policy(html: str, pictures_at: str | None) -> str:
    """A Content-Security-Policy that runs the style and script inside this page, and nothing else.

    Args:
        pictures_at: origin to which the api redirects for pictures, None where it gives them itself.
    """
    style, script = (_hash(html, tag) for tag in ("style", "script"))
    images = " ".join(("'self'", "data:", *([pictures_at] if pictures_at else [])))
    return (
        f"default-src 'none'; img-src {images}; style-src '{style}'; script-src '{script}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(html: str, tag: str) -> str:
    inner = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    if inner is None:
        raise ValueError(f"gallery.html has no <{tag}>")
    return "sha256-" + base64.b64encode(hashlib.sha256(inner[1].encode()).digest()).decode()


def router(pictures: Pictures) -> APIRouter:
    routes = APIRouter()
    html = (files("workers.api") / "gallery.html").read_text()
    headers = {
        "Content-Security-Policy": policy(html, pictures.origin),
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    @routes.get("/", include_in_schema=False)
    async def gallery() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=headers)

    return routes
