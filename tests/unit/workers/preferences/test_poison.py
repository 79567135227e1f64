from bench.poison import measure


def test_bots_move_clean_peoples_order_of_covers_little() -> None:
    found = measure(people=120, pages=3000, before=10_000)
    assert found["bot_events"] > 4 * 3000
    assert found["order_poisoned"] > 0.98
    assert found["order_poisoned"] > found["order_uncapped"] + 0.02  # so the caps are what keeps it
    assert found["accepted_clean"]
