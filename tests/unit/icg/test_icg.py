import subprocess
import sys

import pytest

import icg


def test_importing_icg_loads_nothing_heavy():
    heavy = "[name for name in ('torch', 'transformers', 'diffusers', 'numpy', 'PIL') if name in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", f"import icg, sys; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_preference_head_needs_no_torch():
    program = "import icg.preference, icg.quality, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there():
    for name in icg.__all__:
        assert getattr(icg, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Painter'"):
        _ = icg.Painter
