import pytest
from pydantic import SecretStr, ValidationError

from workers.settings import S3, Covers, References, Settings, environment


def test_what_a_supervisor_passes_on_is_what_the_child_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {
        "s3": S3(endpoint="http://127.0.0.1:1", access_key=SecretStr("a"), secret_key=SecretStr("s")),
        "covers": Covers(batch_items=9, branch=0.25),
        "references": References(allowed_buckets=("one", "two")),
    }
    for name, value in environment(**sections).items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert {name: getattr(read, name) for name in sections} == sections


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICG_COVERS_STEPS", "0")
    with pytest.raises(ValidationError, match=r"covers\.steps"):
        Settings()


def test_secrets_are_not_printed() -> None:
    assert "hush" not in repr(Settings(s3=S3(access_key=SecretStr("me"), secret_key=SecretStr("hush"))))
