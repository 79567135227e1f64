from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from icg.alignment import warmup
from icg.alignment.material import Asking, Material
from icg.alignment.student import Student
from icg.alignment.teacher import guided
from icg.conditioning import FAMILIES
from icg.training import Batch, Run, split

ALSO = ("model.multi_modal_projector.",)
SMALL = warmup.WarmupConfig(matching=2, also=ALSO, watched=4, shown=2)


def batch_of(material: Material, rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    picked = torch.randint(len(material.catalogue), (rows,), generator=generator)
    asked = Asking(drop_reference=0, drop_title=0.5).draw(material.catalogue, picked, generator)
    return {**asked, **material.draw_noise(rows, generator)}


@pytest.mark.parametrize("family", [family.__name__ for family in FAMILIES])
def test_every_family_teaches_every_tensor_that_is_trained(make_material: Callable[..., Material], family: str) -> None:
    material = make_material(family)
    student = Student(material.stack.mllm, material.stack.adapter).training_all_but_users(ALSO)
    config = replace(SMALL, guidance=1.0 if family == "Flux" else 3.0)
    warmup.distillation(student, material, batch_of(material), config).backward()
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    assert {"adapter.meta", "adapter.project_out.weight"} <= trained.keys()
    assert any(name.startswith("reader.") for name in trained)
    silent = {name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0}
    assert silent == set()


def test_matching_pulls_the_tokens_to_the_text_encoders(make_material: Callable[..., Material]) -> None:
    material = make_material()
    text = material.texts(["a disc", "a box"])
    exact = warmup.matching(text.tokens[:, :4], None, text)
    assert exact == 0
    assert warmup.matching(torch.zeros(2, 4, text.tokens.shape[2]), None, text).item() == pytest.approx(1)


def test_guidance_of_one_is_the_text_and_more_goes_beyond_it(make_material: Callable[..., Material]) -> None:
    material = make_material()
    batch = batch_of(material)
    noisy, t, text = warmup.noised(material, batch), batch["times"], material.called(batch)
    plain = guided(material.base, noisy, t, text, material.blank, 1.0, 0.7)
    torch.testing.assert_close(plain, material.base.predict(noisy, t, text))
    blank = guided(material.base, noisy, t, replace(text, tokens=material.blank.tokens.expand_as(text.tokens)),
                   material.blank, 1.0, 0.7)  # fmt: skip
    bold = guided(material.base, noisy, t, text, material.blank, 3.0, 0.0)
    torch.testing.assert_close(bold, blank + 3 * (plain - blank), atol=1e-5, rtol=1e-4)
    kept = guided(material.base, noisy, t, text, material.blank, 3.0, 1.0)
    torch.testing.assert_close(kept.std(dim=(1, 2, 3)), plain.std(dim=(1, 2, 3)))


def test_it_learns_what_the_base_says_and_knows_nobody(make_material: Callable[..., Material], tmp_path: Path) -> None:
    run = Run(tmp_path, steps=40, batch=6, rate=5e-3, warmup=5, cooldown=20, ema=0.8)
    material = make_material(gates=1.0)
    before = warmup.errors(Student(material.stack.mllm, material.stack.adapter), material, SMALL)
    student = warmup.train(material, material, replace(SMALL, matching=10), run)
    after = warmup.errors(student, material, SMALL)
    assert after["error_both"] < 0.8 * before["error_both"]
    features = material.features(material.asked(batch_of(material)))
    neutral, _ = student.adapter(features)
    personal, _ = student.adapter(features, torch.randn(4, 64))
    assert torch.equal(neutral, personal)
    assert (tmp_path / "sheet-000040.png").exists()
    assert (tmp_path / "matching" / "checkpoint.pt").exists()


def test_micro_batches_change_nothing_but_rounding(make_material: Callable[..., Material]) -> None:
    material = make_material()
    student = Student(material.stack.mllm, material.stack.adapter).training_all_but_users(ALSO)
    batch = batch_of(material, 8)

    def gradients(parts: list[Batch]) -> dict[str, torch.Tensor]:
        student.zero_grad()
        for part in parts:
            (warmup.distillation(student, material, part, SMALL) / len(parts)).backward()
        return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}

    whole, parts = gradients([batch]), gradients(split(batch, 4))
    largest = max(gradient.abs().max().item() for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-4 * largest, rtol=1e-3)


def test_an_unknown_part_of_the_mllm_is_refused(make_material: Callable[..., Material]) -> None:
    material = make_material()
    with pytest.raises(ValueError, match="no parameter of LlavaForConditionalGeneration begins with tower"):
        Student(material.stack.mllm, material.stack.adapter).training_all_but_users(("tower.",))
