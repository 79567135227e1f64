"""Pictures by the api itself, where readers cannot reach the store; else a redirect to it.

A reference image is whatever a platform put into the store. It is passed on only if its first bytes say that it is a
raster picture, under that type, and never as something that a browser would run.
"""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from workers.api import problems
from workers.api.answers import Answers
from workers.api.documents import matches
from workers.api.lookup import ItemRow, Lookup
from workers.api.presign import Presigner
from workers.records import cover_key
from workers.settings import Settings
from workers.storage import ObjectStore

SAFE = {"Content-Security-Policy": "default-src 'none'; sandbox"}


def raster_type(data: bytes) -> str | None:
    """The media type of a picture by its first bytes."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


class Pictures:
    """Gives pictures to browsers.

    `proxied`: a store with an endpoint of its own and no public one is inside our network, so the bytes go through us.
    """

    def __init__(
        self, settings: Settings, store: ObjectStore, lookup: Lookup, answers: Answers, presigner: Presigner
    ) -> None:
        self.proxied = settings.s3.endpoint is not None and settings.s3.public_endpoint is None
        self.origin = None if self.proxied else presigner.origin
        self._store, self._lookup, self._answers, self._presigner = store, lookup, answers, presigner
        self._bucket, self._most_bytes = settings.s3.bucket, settings.references.max_bytes

    async def cover(self, request: Request, item_id: str, cover_id: str, cache_control: str) -> Response:
        """One cover's bytes, or where they are.

        Raises:
            Problem: unknown, blocked, or S3 is away.
        """
        if cover_id in self._answers.blocked:
            raise problems.blocked(cover_id)
        key = cover_key(item_id, cover_id)
        headers = {"Cache-Control": cache_control, "ETag": f'"{cover_id}"'}
        if not self.proxied:
            return RedirectResponse(self._presigner.address(key).url, 307, headers={"Cache-Control": cache_control})
        if matches(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        stored = await self._lookup.in_thread(lambda: self._store.get(key))
        if stored is None:
            raise problems.unknown_cover(item_id, cover_id)
        return Response(stored.data, media_type="image/webp", headers={**headers, **SAFE})

    async def reference(self, row: ItemRow, cache_control: str) -> Response:
        """The reference image's bytes, or where they are.

        Raises:
            Problem: none, too large, not a picture, or S3 is away.
        """
        where = self._answers.reference_key(row)
        if not self.proxied or where is None or where[0] != self._bucket:
            address, _ = self._answers.reference(row)
            return RedirectResponse(address, 307, headers={"Cache-Control": cache_control})

        def read() -> bytes | None:
            head = self._store.head(where[1])
            if head is None or head.size > self._most_bytes:
                return None
            stored = self._store.get(where[1])
            return stored.data if stored else None

        data = await self._lookup.in_thread(read)
        media_type = raster_type(data) if data is not None else None
        if media_type is None:
            raise problems.no_picture(row.item_id)
        return Response(data, media_type=media_type, headers={"Cache-Control": cache_control, **SAFE})
