"""What analysts ask most: where a cover comes from, how a day went, what was clicked, how an item stood at a time.

The queries use only columns, never time travel: a table's old versions are swept. An event may lie in Kafka twice,
under two offsets (a service that was killed repeats its last ones), so nothing here counts a repeated one twice.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from workers.audit.views import Record, Views
from workers.exceptions import UserError
from workers.records import Sidecar, sidecar_key
from workers.storage import ObjectStore

Z = 1.959963984540054
"""Two-sided 95 %."""

_PREFIX = re.compile(r"^[0-9a-f]{6,64}$")


def lineage(views: Views, store: ObjectStore, cover_id: str) -> Record:
    """Where one cover comes from: who asked for it, from what it was drawn, how it was judged, where it stands.

    Args:
        cover_id: all 64 hex digits, or at least the first 6 if no other cover begins so.

    Returns:
        Where the cover is, `drawn` (with all revisions of that release), `event` (that asked), `published` (title and
        picture as they came), `inputs` (what decided the pixels: segment vector, revisions, seed, sampler), `rewards`,
        `shown_as` (each segment and generation it stood in), `drew_nothing` (the item's last ten events that changed no
        cover, and why).

    Raises:
        UserError: no such cover, or several.
    """
    if not _PREFIX.match(cover_id):
        raise UserError(f"{cover_id[:80]!r} is no cover id: 64 hex digits, or at least the first 6 of them")
    rows = views.records(
        """
        select cover_id, segment_id, rendition, fallback, item_id, item_version, release, generation, outcome, time,
               source_topic, source_partition, source_offset, source_event_id, address, sha256, rewards, trace_id
        from cover_ready where starts_with(cover_id, $cover)
        qualify row_number() over (
            partition by cover_id, segment_id, rendition, generation order by kafka_time, kafka_offset) = 1
        order by generation, time, segment_id
        """,
        {"cover": cover_id},
    )
    found = sorted({row["cover_id"] for row in rows})
    if not found:
        raise UserError(f"no cover {cover_id} in the audit tables (they are a few seconds behind the stream)")
    if len(found) > 1:
        raise UserError(f"{len(found)} covers begin with {cover_id}: {', '.join(each[:16] for each in found[:5])}, …")
    first = rows[0]
    item_id, key = first["item_id"], sidecar_key(first["item_id"], first["cover_id"])
    stored = store.get(key)
    sidecar = Sidecar.decode(stored.data) if stored else None
    event = _source(sidecar, first)
    published = views.records(
        """
        select event_id, time, action, title, reference_image, category, language,
               kafka_partition as partition, kafka_offset as offset
        from item_publish where item_id = $item and item_version = $version
        order by kafka_partition = $partition and kafka_offset = $offset desc, kafka_offset limit 1
        """,
        {
            "item": item_id,
            "version": first["item_version"],
            "partition": event["partition"],
            "offset": event["offset"] if event["topic"] == "item-publish" else -1,
        },
    )
    idle = views.records(
        """
        select time, outcome, reason, source_topic as topic, source_partition as partition, source_offset as offset
        from cover_ready where item_id = $item and reason is not null
        group by all order by time desc limit 10
        """,
        {"item": item_id},
    )
    release = sidecar.release if sidecar else first["release"]
    return {
        "cover_id": first["cover_id"],
        "item_id": item_id,
        "item_version": first["item_version"],
        "address": first["address"],
        "sha256": first["sha256"],
        "drawn": {
            "time": sidecar.time if sidecar else first["time"],
            "release": release,
            "segment_id": sidecar.segment_id if sidecar else first["segment_id"],
            "trace_id": sidecar.trace_id if sidecar else first["trace_id"],
            "revisions": _revisions(views, release),
        },
        "event": event,
        "published": published[0] if published else None,
        "inputs": sidecar.inputs.model_dump(mode="json") if sidecar else f"s3://{store.bucket}/{key} is gone",
        "rewards": sidecar.rewards if sidecar else first["rewards"],
        "space": sidecar.space if sidecar else None,
        "shown_as": [
            {name: row[name] for name in ("segment_id", "rendition", "fallback", "release", "generation", "time")}
            for row in rows
        ],
        "drew_nothing": idle,
    }


def _revisions(views: Views, release: int) -> Record | None:
    """What a release was made of, as it was announced; None where the announcement is not in the tables."""
    rows = views.records("select * from model_updates where number = $number limit 1", {"number": release})
    ending = "_revision"
    return (
        {name.removesuffix(ending): value for name, value in rows[0].items() if name.endswith(ending) and value}
        if rows
        else None
    )


def _source(sidecar: Sidecar | None, row: Record) -> Record:
    if sidecar:
        return sidecar.source.model_dump()
    names = ("topic", "partition", "offset", "event_id")
    return {name: row[f"source_{name}"] for name in names}


def days(views: Views) -> list[Record]:
    """Events by day and topic, newest day first; `covers` counts distinct covers that became ready."""
    tables = ("item_publish", "item_refresh", "cover_ready", "user_behavior", "model_updates", "dead_letters")
    counts = "\n union all by name ".join(
        f"select day, '{name}' as name, count(distinct (kafka_partition, kafka_offset)) as n from {name} group by day"
        for name in (*tables, "unreadable")
    )
    # `unreadable` holds several topics, whose partitions and offsets overlap.
    counts = counts.replace(
        "count(distinct (kafka_partition, kafka_offset)) as n from unreadable", "count(*) as n from unreadable"
    )
    columns = ",\n".join(
        f"coalesce(sum(n) filter (name = '{name}'), 0)::bigint as {name}" for name in (*tables, "unreadable")
    )
    return views.records(
        f"""
        with counts as ({counts}), covers as (
            select day, count(distinct cover_id) as covers from cover_ready where fallback is null group by day)
        select counts.day, {columns}, coalesce(any_value(covers.covers), 0) as covers
        from counts left join covers on covers.day = counts.day
        group by counts.day order by counts.day desc
        """
    )


def clicks(views: Views, since: datetime | None = None, until: datetime | None = None) -> list[Record]:
    """Click-through rates by segment and by the release that drew the cover, each with a 95 % Wilson interval.

    Of impressions within the time, whenever they were clicked. An impression counts once, and as clicked once, however
    often either was reported. `stray_clicks` answer no impression that is here, and are in no rate. A cover that stays
    through later releases keeps the first one's number.
    """
    rows = views.records(
        """
        with drawn as (select cover_id, min(release) as release from cover_ready where cover_id is not null
                       group by cover_id),
        answers as (
            select coalesce(impression_id, event_id) as id, bool_or(kind = 'impression') as is_seen,
                   bool_or(kind = 'click') as is_clicked,
                   coalesce(min(time) filter (kind = 'impression'), min(time)) as began,
                   coalesce(min_by(segment_id, kafka_time) filter (kind = 'impression'),
                            any_value(segment_id)) as segment_id,
                   coalesce(min_by(cover_id, kafka_time) filter (kind = 'impression'), any_value(cover_id)) as cover_id
            from user_behavior where kind in ('impression', 'click') group by id
            having began >= $since and began < $until)
        select segment_id, release, count(*) filter (is_seen) as impressions,
               count(*) filter (is_seen and is_clicked) as clicks,
               count(*) filter (not is_seen) as stray_clicks
        from answers left join drawn using (cover_id)
        group by segment_id, release order by segment_id nulls last, release nulls last
        """,
        {
            "since": since or datetime(1, 1, 1, tzinfo=UTC),
            "until": until or datetime(9999, 1, 1, tzinfo=UTC),
        },
    )
    for row in rows:
        row["ctr"], row["ctr_low"], row["ctr_high"] = wilson(row["clicks"], row["impressions"])
    return rows


def wilson(successes: int, trials: int, z: float = Z) -> tuple[float | None, float | None, float | None]:
    """Rate and Wilson score interval (Wilson 1927): unlike the normal one it holds for few trials and near 0."""
    if trials == 0:
        return None, None, None
    rate = successes / trials
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * ((rate * (1 - rate) + z * z / (4 * trials)) / trials) ** 0.5 / (1 + z * z / trials)
    return rate, max(0.0, middle - half), min(1.0, middle + half)


def state(views: Views, item_id: str, as_of: datetime) -> list[Record]:
    """The covers that an item had at a time, one row a segment and rendition; one row without a cover if retired.

    Returns:
        No rows where the item had nothing yet.

    Raises:
        UserError: the item was never heard of.
    """
    rows = views.records(
        f"""
        with then_ready as (select * from cover_ready where item_id = $item and time <= $at)
        select {", ".join(STATE)}
        from then_ready where generation = (select max(generation) from then_ready)
        qualify row_number() over (partition by segment_id, rendition order by kafka_time, kafka_offset) = 1
        order by segment_id, rendition
        """,
        {"item": item_id, "at": as_of},
    )
    if not rows and not views.records("select 1 from cover_ready where item_id = $item limit 1", {"item": item_id}):
        raise UserError(f"no item {item_id[:128]} in the audit tables (they are a few seconds behind the stream)")
    return rows


STATE = (
    "item_id",
    "item_version",
    "generation",
    "action",
    "outcome",
    "release",
    "time",
    "segment_id",
    "rendition",
    "cover_id",
    "fallback",
)
"""The columns of `state`."""


def parse_time(text: str) -> datetime:
    """ISO 8601; a time without a zone is UTC, a date is its first moment.

    Raises:
        UserError: it is neither.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{text[:60]!r} is no time: write 2026-11-21, 2026-11-21T14:30 or 2026-11-21T14:30:00+01:00"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
