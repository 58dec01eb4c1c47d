"""What holds for every reward: validation, shapes, chunking, gradient on and off."""

import pytest
import torch

from reneg_core.rewards import Reward, load_reward


class MeanOfRed(Reward):
    """Closed form: mean of the red channel plus 10 times the prompt's length; 1000 bytes per image."""

    name = "red"

    def __init__(self):
        super().__init__()
        self.batches = []

    def bytes_per_image(self, height, width, gradient):
        return 1000

    def _score(self, images, prompts):
        self.batches.append(len(images))
        return images[:, 0].mean((1, 2)) + 10 * torch.tensor([len(p) for p in prompts], device=images.device)


def test_known_numbers_one_prompt_or_one_each():
    images = torch.stack([torch.full((3, 4, 5), value) for value in (0.25, 0.5)])
    assert MeanOfRed().score(images, ["ab"]).tolist() == pytest.approx([20.25, 20.5])
    assert MeanOfRed().score(images, ["ab", ""]).tolist() == pytest.approx([20.25, 0.5])
    assert MeanOfRed().score(images[:1], ["ab"]).shape == (1,)
    assert MeanOfRed().score(images.half(), ["ab"]).dtype == torch.float32


def test_chunks_obey_the_memory_budget_and_change_nothing(images):
    reward = MeanOfRed()
    whole = reward.score(images, ["a", "b", "ccc"])
    reward.memory_budget = 2500
    assert torch.equal(reward.score(images, ["a", "b", "ccc"]), whole)
    assert reward.batches == [3, 2, 1]
    reward.memory_budget = 1
    reward.score(images, ["a"])
    assert reward.batches[3:] == [1, 1, 1]


def test_gradient_follows_autograd(images):
    reward = MeanOfRed()
    reward.memory_budget = 1000
    x = images.clone().requires_grad_()
    reward.score(x, ["a"]).sum().backward()
    expected = torch.zeros_like(x)
    expected[:, 0] = 1 / (40 * 56)
    assert torch.allclose(x.grad, expected)
    with pytest.raises(RuntimeError, match="does not require grad"):
        reward.score(images, ["a"]).sum().backward()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("x", TypeError, r"got str, expected a torch tensor \[B,3,H,W\]"),
        (torch.zeros(3, 4, 4), ValueError, r"got shape \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), ValueError, r"B >= 1"),
        (torch.zeros(1, 4, 4, 4), ValueError, r"\(RGB, no alpha\)"),
        (torch.zeros(1, 8, 8, 3), ValueError, r"channels last: permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, r"got dtype torch.uint8.*divide 8-bit by 255"),
        (torch.full((1, 3, 4, 4), float("nan")), ValueError, "NaN or infinite"),
        (torch.full((1, 3, 4, 4), float("inf")), ValueError, "NaN or infinite"),
        (torch.full((1, 3, 4, 4), -1.0), ValueError, r"values span \[-1, -1\], expected \[0,1\]; map a \[-1,1\]"),
        (torch.full((1, 3, 4, 4), 255.0), ValueError, r"values span \[255, 255\]"),
    ],
)
def test_bad_images_are_refused_with_a_reason(images, error, message):
    with pytest.raises(error, match=message):
        MeanOfRed().score(images, ["a"])


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("a fox", TypeError, r"got a str, expected a list of strings; wrap it: \[prompt\]"),
        ([], ValueError, "got none, expected 1 or 3"),
        (["a", "b"], ValueError, r"got 2, expected 1 \(for all images\) or 3 \(one per image\)"),
        ([None], TypeError, "entry of type NoneType"),
    ],
)
def test_bad_prompts_are_refused_with_a_reason(images, prompts, error, message):
    with pytest.raises(error, match=message):
        MeanOfRed().score(images, prompts)


def test_a_reward_that_returns_another_shape_is_named(images):
    class Wrong(MeanOfRed):
        def _score(self, images, prompts):
            return images.mean()

    with pytest.raises(ValueError, match=r"reward 'red' returned shape \(\); expected a tensor of shape \(3,\)"):
        Wrong().score(images, ["a"])


def test_smoke_rewards_in_closed_form():
    grey = torch.full((2, 3, 6, 6), 0.5)
    grey[1, :, :, 3:] = 1.0
    assert load_reward("brightness").score(grey).tolist() == pytest.approx([0.5, 0.75])
    assert load_reward("sharpness").score(grey).tolist() == pytest.approx([0.0, 0.5 / 5 / 2])
    with pytest.raises(ValueError, match="at least 2x2"):
        load_reward("sharpness").score(grey[..., :1])


def test_details_carry_scores_parts_and_flags(images):
    details = load_reward("brightness").details(images)
    assert details.truncated == [False] * 3
    assert torch.equal(details.parts["brightness"], details.scores)
