"""The demo's own checks; the demo as a whole is in tests/integration/test_demo.py."""

import re
from pathlib import Path

import pytest

from workers.demo import DemoError, check_space


def test_a_full_disk_is_a_line_that_names_folder_and_room(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(DemoError, match=rf"^{re.escape(str(tmp_path))}: [\d,]+ MiB free, 1,073,741,824 MiB needed$"):
        check_space(tmp_path, 2**50)
