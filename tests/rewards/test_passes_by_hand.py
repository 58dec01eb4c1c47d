"""Which passes a reward makes, what each gets, and what parts of a mix share, counted on rewards of a few numbers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reneg_core.rewards import Reward, RewardMix
from reneg_core.rewards import preprocess as module
from reneg_core.rewards.checkpoint import Placement
from reneg_core.rewards.clip_reward import ClipImageReward
from reneg_core.rewards.preprocess import longest_edge_pad, normalise, resize, resize_8bit, shortest_edge_crop, to_8bit
from reneg_core.rewards.published import PublishedFile
from reneg_core.rewards.weights import Source


class Counted(Reward):
    """The picture's mean; ``passes`` are the batches that it saw, ``asked`` what it was asked to estimate."""

    name, needs_prompt, memory_budget = "counted", False, 60

    def __init__(self, weights: Any = None, factor: float = 1.0) -> None:
        super().__init__()
        self.weights, self.factor = weights, nn.Parameter(torch.tensor(factor), requires_grad=False)
        self.passes: list[int] = []
        self.asked: list[tuple[int, int, bool]] = []

    def bytes_per_image(self, height: int, width: int, gradient: bool) -> int:
        self.asked.append((height, width, gradient))
        return 30 if gradient else 20

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.passes.append(len(images))
        return images.mean((1, 2, 3)) * self.factor


def pictures(count: int = 5, height: int = 3, width: int = 2) -> Tensor:
    return torch.linspace(0.1, 0.9, count).reshape(-1, 1, 1, 1).expand(count, 3, height, width).clone()


def test_passes_hold_what_the_memory_budget_allows() -> None:
    one, expected = Counted(), torch.linspace(0.1, 0.9, 5).tolist()
    assert one.score(pictures()).tolist() == pytest.approx(expected)
    assert (one.passes, one.asked) == ([3, 2], [(3, 2, False)])
    two = Counted()
    assert two.details(pictures()).scores.tolist() == pytest.approx(expected)
    assert (two.passes, two.asked) == ([3, 2], [(3, 2, False)])
    three, leaf = Counted(), pictures().requires_grad_()
    three.score(leaf).sum().backward()
    assert (three.passes, three.asked) == ([2, 2, 1], [(3, 2, True)])
    assert torch.allclose(leaf.grad, torch.full_like(leaf, 1 / 18))


def test_a_budget_below_one_picture_is_one_picture() -> None:
    one = Counted()
    one.memory_budget = 1
    one.score(pictures(2))
    assert one.passes == [1, 1]


def test_loading_passes_weights_on_only_when_given() -> None:
    place = Placement("cpu", torch.float64)
    given = Counted.load(Source(weights=Path("w.pt")), place, factor=2.0)
    assert given.weights == Path("w.pt") and given.factor.item() == 2.0 and given.factor.dtype == torch.float64
    assert Counted.load(Source(), place).weights is None
    assert Counted.load(Source(), Placement("meta")).factor.device.type == "meta"


def test_files_are_located_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reneg_core.rewards.weights._in_hub_cache", lambda file: None)
    assert Counted.locate(Source(search_dirs=(tmp_path,))) == {}
    file = PublishedFile("judge.pt")
    monkeypatch.setattr(Counted, "published_files", (file,))
    assert Counted.locate(Source(search_dirs=(tmp_path,))) == {file: None}
    (tmp_path / "judge.pt").write_bytes(b"1")
    assert Counted.locate(Source(search_dirs=(tmp_path,))) == {file: tmp_path / "judge.pt"}


class Tower(nn.Module):
    """Features are the mean pixel; ``looks`` counts how often it looked."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = SimpleNamespace(
            image_size=4,
            blocks=SimpleNamespace(checkpointing=False),
            positions=torch.zeros(1),
            bytes_per_image=lambda gradient: 7000 if gradient else 1000,
        )
        self.looks = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.looks += 1
        return pixels.mean((1, 2, 3))[:, None]


class Judge(ClipImageReward):
    """The tower's feature plus the prompt's length."""

    name, needs_prompt = "judge", True

    def score_features(self, features: Tensor, prompts: list[str]) -> Tensor:
        return features[:, 0] + torch.tensor([float(len(prompt)) for prompt in prompts])


def test_parts_that_look_through_the_same_tower_look_once() -> None:
    tower, images, prompts = Tower(), pictures(3), ["a", "bb", "ccc"]
    alone = Judge(tower).score(images, prompts)
    tower.looks = 0
    mix = RewardMix({"a": Judge(tower), "b": Judge(tower), "c": Counted()}, {"a": 1.0, "b": 2.0, "c": -1.0})
    mix.memory_budget = 1 << 20
    assert torch.allclose(mix.score(images, prompts), 3 * alone - images.mean((1, 2, 3)), atol=1e-5)
    assert tower.looks == 1 and list(mix.preprocess(images)) == ["c", mix.named_parts()["a"].feature_key]
    other = Tower()
    apart = RewardMix({"a": Judge(tower), "b": Judge(other)}, {"a": 1.0, "b": 1.0})
    apart.score(images, prompts)
    assert (tower.looks, other.looks) == (2, 1)


def test_a_mix_needs_the_memory_of_every_look_and_keeps_to_the_smallest_budget() -> None:
    tower, counted = Tower(), Counted()
    mix = RewardMix({"a": Judge(tower), "b": Judge(tower), "c": counted}, {"a": 1.0, "b": 1.0, "c": 1.0})
    preprocessing = 3 * 10 * 20 * 16
    assert mix.bytes_per_image(10, 20, True) == 7000 + preprocessing + 30
    assert mix.bytes_per_image(10, 20, False) == 1000 + preprocessing + 20
    assert counted.asked == [(10, 20, True), (10, 20, False)] and mix.memory_budget == 60
    plain = RewardMix({"c": counted}, {"c": 1.0}, normalise="none")
    assert plain.part_statistics["c"].source == "none"


def test_a_strange_statistic_is_named_beside_all_parts() -> None:
    with pytest.raises(ValueError, match=r"^statistics for 'z', which is not in the mix of a, b$"):
        RewardMix({"a": Counted(), "b": Counted()}, {"a": 1.0, "b": 1.0}, statistics={"z": Counted.statistics})


@pytest.mark.parametrize("strip", [1, 3 * 7 * 4, 3 * 7 * 4 * 2, 3 * 7 * 4 * 5])
def test_strips_change_no_pixel(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    """A picture of 3x9x7 in strips of one row, one, two and five rows."""
    image = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    whole = [resize(image, (4, 5)), resize_8bit(image, (4, 5)), resize(image, (9, 5), False)]
    monkeypatch.setattr(module, "STRIP_BYTES", strip)
    seen: list[int] = []
    module._by_strips(image, lambda part: seen.append(part.shape[-2]) or part)
    rows = max(1, strip // 84)
    assert seen == [rows] * (9 // rows) + ([9 % rows] if 9 % rows else [])
    parts = [resize(image, (4, 5)), resize_8bit(image, (4, 5)), resize(image, (9, 5), False)]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_pixels_without_a_gradient_come_back_without_detours() -> None:
    """Bit for bit what the 8 bits say: nothing is added to them and taken off again."""
    image = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(to_8bit(image), (image * 255).round().to(torch.int32) / 255)
    found = resize_8bit(image, (3, 4))
    assert torch.equal(found, (found * 255).round().to(torch.int32) / 255)
    for dtype in (torch.float64, torch.float32, torch.uint8):
        part = (image * 255).round().to(dtype) if dtype == torch.uint8 else image.to(dtype)
        expected = torch.float32 if dtype == torch.uint8 else dtype
        assert to_8bit(part).dtype == resize_8bit(part, (3, 4)).dtype == expected
    levels = (image * 255).round().to(torch.uint8)
    assert module.levels(levels) is levels and torch.equal(resize_8bit(levels, (3, 4)), found)


def test_smooth_preprocessing_rounds_nothing() -> None:
    image = torch.full((1, 3, 4, 4), 0.3)
    for mode, level in [("smooth", 0.3), ("exact", round(0.3 * 255) / 255)]:
        found = longest_edge_pad(image, 4, mode, True)
        assert torch.allclose(found, normalise(torch.full((1, 3, 4, 4), level)), atol=1e-6)


def test_the_longest_edge_is_one_of_the_picture() -> None:
    """A picture narrower and lower than its three channels."""
    found = longest_edge_pad(torch.ones(1, 3, 1, 2), 4, "smooth", True)
    assert ((found > normalise(torch.full((1, 3, 4, 4), 0.5))).all(1)[0]).sum().item() == 4 * 2


def test_offsets_of_a_crop_follow_their_rule() -> None:
    """A ramp of 7 columns cut to 4: offset 1.5 is 2 to the nearest even, and 1 rounded down."""
    ramp = torch.linspace(0, 0.9, 7).expand(1, 3, 4, 7)
    columns = normalise(ramp)
    assert torch.allclose(shortest_edge_crop(ramp, 4, "smooth", "round"), columns[..., 2:6], atol=1e-6)
    assert torch.allclose(shortest_edge_crop(ramp, 4, "smooth", "floor"), columns[..., 1:5], atol=1e-6)
