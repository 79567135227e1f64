import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from icg.rewards.vision import Preprocessing, pixels


@pytest.mark.parametrize("size", [(64, 64), (100, 80), (48, 90)])
def test_it_does_what_the_processor_does(tmp_path, size):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.array(processor(image)["pixel_values"][0]))
    ours = Preprocessing.from_pretrained(tmp_path)(pixels([image]))[0]
    # PIL resizes in bytes, torch in numbers; standardised, a byte is about 0.015.
    assert (ours - theirs).abs().mean() < 0.01
    assert (ours - theirs).abs().max() < 0.1
