"""The Feast repository of ICG Worker: entities, push sources, views, services.

Each view has one writer, because a push replaces a whole row. Vectors are float32 of the dimension of their space
(64 by default). Rows do not expire: a reader judges by `space`, `state` and `generation`, not by age.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource
from feast.types import Array, Bytes, Float32, Int64, String
from feast.value_type import ValueType

user = Entity(name="user_id", join_keys=["user_id"], value_type=ValueType.STRING, description="A reader.")
item = Entity(name="item_id", join_keys=["item_id"], value_type=ValueType.STRING, description="A published item.")
segment = Entity(
    name="segment_id", join_keys=["segment_id"], value_type=ValueType.STRING, description="A group of users."
)


def pushed(name: str, entity: Entity, description: str, **features: object) -> FeatureView:
    """A view that is only ever pushed to; its offline file is where `feast materialize` would look for history."""
    batch = FileSource(name=f"{name}_batch", path=f"data/{name}.parquet", timestamp_field="event_timestamp")
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=[
            Field(name=entity.join_key, dtype=String),
            *(Field(name=feature, dtype=dtype) for feature, dtype in features.items()),
        ],
        source=PushSource(name=name, batch_source=batch),
        online=True,
        description=description,
    )


user_embedding = pushed(
    "user_embedding",
    user,
    "The recommender's embedding of a user, mapped into our space. Writer: icg users import.",
    embedding=Array(Float32),
    space=String,
)
user_taste = pushed(
    "user_taste",
    user,
    "What we learned on top: a residual of bounded norm. Writer: preferences.",
    residual=Array(Float32),
    space=String,
    pairs=Int64,
)
user_history = pushed(
    "user_history",
    user,
    "The last 50 liked items and the covers under which they were liked. Writer: preferences.",
    liked_items=Array(String),
    liked_covers=Array(String),
)
user_segment = pushed(
    "user_segment",
    user,
    "The segment a user is in; `segments` is the revision of the set. Writer: icg segments build.",
    segment_id=String,
    parent=String,
    segments=String,
)
segment_profile = pushed(
    "segment_profile",
    segment,
    "A segment's vector. Writer: icg segments build.",
    vector=Array(Float32),
    parent=String,
    space=String,
    segments=String,
    users=Int64,
)
item_covers = pushed(
    "item_covers",
    item,
    "An item's covers in the default rendition, one entry a segment in each array: one row, so that no reader mixes "
    "two generations. `fallbacks` is '' where the segment has its own; `embeddings` are the covers' preference "
    "embeddings in `space`, float16, row after row. Writer: covers.",
    item_version=Int64,
    state=String,
    generation=Int64,
    release=Int64,
    reference_image=String,
    segment_ids=Array(String),
    cover_ids=Array(String),
    fallbacks=Array(String),
    scores=Array(Float32),
    embeddings=Bytes,
    space=String,
    width=Int64,
    height=Int64,
)

cover_generation = FeatureService(
    name="cover_generation",
    features=[segment_profile],
    description="What `covers` asks, once an item: the vectors of all segments.",
)
cover_selection = FeatureService(
    name="cover_selection",
    features=[user_segment, user_taste, user_embedding, item_covers],
    description="What chooses a cover for (user, item).",
)
