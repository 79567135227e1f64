"""The command itself: what a person reads when it cannot do what was asked."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("pyarrow", ["users", "import", "users.parquet"], "feast"),
        ("torch", ["init", "tiny", "model"], "model"),
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
