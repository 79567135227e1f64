"""Who may import whom: the rooms of the architecture, held by a test that reads the imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("covers", "preferences", "audit", "api", "people")
MODULES = [path for room in ("icg", "workers") for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module named by an import, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def offenders(paths: list[Path], packages: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if any(within(name, package) for package in packages)
    ]


def test_the_library_imports_nothing_of_the_workers() -> None:
    assert offenders([path for path in MODULES if path.is_relative_to(ROOT / "icg")], ("workers",)) == []


@pytest.mark.parametrize("service", SERVICES)
def test_services_import_nothing_of_each_other(service: str) -> None:
    others = tuple(f"workers.{other}" for other in SERVICES if other != service)
    assert offenders(sorted((ROOT / "workers" / service).rglob("*.py")), others) == []


def test_what_trains_never_sees_what_judges() -> None:
    trains = [
        path
        for path in MODULES
        if path.is_relative_to(ROOT / "icg") and not path.is_relative_to(ROOT / "icg" / "evaluation")
    ]
    learns = [*sorted((ROOT / "workers" / "preferences").rglob("*.py")), ROOT / "workers" / "realignment.py"]
    # The simulated audience has the hidden tastes in its hands, so it must not be imported either.
    assert offenders(trains + learns, ("icg.evaluation", "workers.simulate")) == []


def test_the_simulated_audience_has_two_doors_and_no_third() -> None:
    """HTTP and Kafka: no store, no features, no releases, nothing of a service or of a model."""
    simulate, audience = ROOT / "workers" / "simulate.py", ROOT / "icg" / "evaluation" / "audience.py"
    ours = {name for name in imports(simulate) if within(name, "workers") and _is_module(name)}
    assert ours == {"workers.events", "workers.exceptions", "workers.messaging"}
    known = {"icg.evaluation.attributes", "icg.evaluation.audience", "icg.evaluation.people"}
    assert {name for name in imports(simulate) if within(name, "icg") and _is_module(name)} == known
    assert offenders([audience], ("icg.alignment", "icg.rewards", "icg.preference", "icg.generator", "torch")) == []
    users = [path for path in MODULES if offenders([path], ("workers.simulate",))]
    assert {path.name for path in users} == {"cli.py", "demo.py"}


def _is_module(name: str) -> bool:
    """Not a name out of a module."""
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_events_need_pydantic_only() -> None:
    allowed = {*sys.stdlib_module_names, "pydantic"}
    assert {name.split(".")[0] for name in imports(ROOT / "workers" / "events.py")} <= allowed


def test_only_the_settings_read_the_environment() -> None:
    readers = [
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    ]
    assert set(readers) <= {"workers/settings.py"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("icg", ("torch", "numpy", "diffusers")),
        ("workers.cli", ("torch", "feast", "boto3", "confluent_kafka", "pandas")),
        ("workers.api.service", ("torch", "diffusers", "transformers")),
        ("workers.audit.service", ("torch", "diffusers", "transformers", "feast")),
        ("workers.preferences.service", ("diffusers", "transformers")),
    ],
)
def test_a_light_import_loads_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
