"""The sampler of a release: the adapter's own, but for what the settings decide; all of it is recorded."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from icg.sampling import BOUNDS, SamplerConfig
from icg.tuned import save_tuned
from workers.covers.loading import sampler_config, sampler_record
from workers.settings import Covers


def test_the_adapter_decides_where_the_settings_do_not(tmp_path: Path) -> None:
    save_tuned(tmp_path, SamplerConfig(steps=12, branch=0.7, personalization=0.6))
    found = sampler_config(Covers(steps=5, slots=4), tmp_path)
    assert (found.steps, found.branch, found.slots) == (5, 0.7, 4)
    assert sampler_config(Covers(personalization=0), tmp_path).personalization == 0
    assert sampler_record(found) == {
        "steps": 5,
        "branch": 0.7,
        "scheduler": None,
        "guidance": 1.0,
        "guided": 1.0,
        "personalization": 0.6,
        "dtype": "float32",
        "slots": 4,
    }


@pytest.mark.parametrize("name", BOUNDS)
def test_a_setting_that_no_sampler_takes_is_refused_at_the_start(name: str) -> None:
    """And not by every release in turn."""
    _, _, most = BOUNDS[name]
    assert getattr(Covers(**{name: most}), name) == most
    with pytest.raises(ValidationError):
        Covers(**{name: most + 1})
