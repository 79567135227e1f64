import pytest

from workers.events import BadEvent, ItemPublish, ItemRefresh, UserBehavior


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "^not JSON: EOF"),
        (b'{"item_id": "a", "item_id": "b", "item_version": 1, "title": "x"}', "^the key 'item_id' is there twice$"),
        (b'{"item_id": "a", "item_version": 1, "title": "x", "more": {"n": 1, "n": 2}}', "the key 'n' is there twice"),
        (b'{"item_id": "a", "item_version": 1, "title": "x", "time": 1}', "^time: a time is written as in 2026"),
        (b'{"item_id": "a", "item_version": 1, "title": "x", "time": "1"}', "^time: a time is written as in 2026"),
        (b'{"item_id": "a", "item_version": 1, "title": "x", "time": "2026-11-21T12:00:00"}', "^time: .*timezone"),
        (b'{"item_id": "a b", "item_version": 1, "title": "x"}', "^item_id: an id is 1 to 128 of A-Z a-z 0-9 . _ ~ -$"),
        (
            b'{"item_id": "a", "item_version": 1, "reference_image": "ftp://x"}',
            "^reference_image: an address begins",
        ),
        (b'{"item_id": "a", "item_version": 1, "title": "x", "language": "German"}', "^language: .*en or pt-BR$"),
        (b'{"item_id": "a", "item_version": 1, "title": "\xff"}', "^the value is not UTF-8: byte 0xff at 46$"),
        (b'\xef\xbb\xbf{"item_id": "a", "item_version": 1, "title": "x"}', "byte order mark"),
        ('{"item_id": "a"}'.encode("utf-16"), "byte order mark"),
        (b"[]", "should be an object"),
        (b'{"item_id": "..", "item_version": 1, "title": "x"}', "item_id: .*may not be"),
        (b'{"item_id": "a", "item_version": true, "title": "x"}', "item_version: Input should be a valid integer"),
        (b'{"item_id": "a", "item_version": "7", "title": "x"}', "item_version: Input should be a valid integer"),
        (b'{"item_id": "a", "item_version": 9223372036854775808, "title": "x"}', "item_version: "),
        (b'{"item_id": "a", "item_version": 1}', "^a published item needs a title, a reference_image or both"),
        (b'{"item_id": "a", "item_version": 1, "title": "x", "action": "burn"}', "action: "),
    ],
)
def test_a_bad_publish_event_is_refused_with_a_reason(value: bytes, reason: str) -> None:
    with pytest.raises(BadEvent, match=reason):
        ItemPublish.decode(value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_value_that_is_no_number_is_refused(number: str) -> None:
    value = '{"event_id": "e", "user_id": "u", "item_id": "a", "kind": "dwell", "value": ' + number + "}"
    with pytest.raises(BadEvent, match="finite number"):
        UserBehavior.decode(value.encode())


def test_a_refresh_names_no_more_than_there_can_be() -> None:
    with pytest.raises(BadEvent, match="segments: "):
        ItemRefresh.decode(b'{"item_id": "a", "segments": [' + b",".join([b'"s"'] * 1001) + b"]}")
    with pytest.raises(BadEvent, match="release: "):
        ItemRefresh.decode(b'{"item_id": "a", "release": 99999999999999999999999}')


def test_no_value_is_a_bad_event() -> None:
    with pytest.raises(BadEvent, match="no value"):
        ItemPublish.decode(None)
