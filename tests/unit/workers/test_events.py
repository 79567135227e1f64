import pytest

from workers.events import BadEvent, ItemPublish, ItemRefresh


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b'{"item_id": "..", "item_version": 1, "title": "x"}', "item_id: .*may not be"),
        (b'{"item_id": "a", "item_version": true, "title": "x"}', "item_version: Input should be a valid integer"),
        (b'{"item_id": "a", "item_version": "7", "title": "x"}', "item_version: Input should be a valid integer"),
        (b'{"item_id": "a", "item_version": 9223372036854775808, "title": "x"}', "item_version: "),
        (b'{"item_id": "a", "item_version": 1}', "needs a title, a reference_image or both"),
        (b'{"item_id": "a", "item_version": 1, "title": "x", "action": "burn"}', "action: "),
    ],
)
def test_a_bad_publish_event_is_refused_with_a_reason(value: bytes, reason: str) -> None:
    with pytest.raises(BadEvent, match=reason):
        ItemPublish.decode(value)


def test_a_refresh_names_no_more_than_there_can_be() -> None:
    with pytest.raises(BadEvent, match="segments: "):
        ItemRefresh.decode(b'{"item_id": "a", "segments": [' + b",".join([b'"s"'] * 1001) + b"]}")
    with pytest.raises(BadEvent, match="release: "):
        ItemRefresh.decode(b'{"item_id": "a", "release": 99999999999999999999999}')


def test_no_value_is_a_bad_event() -> None:
    with pytest.raises(BadEvent, match="no value"):
        ItemPublish.decode(None)
