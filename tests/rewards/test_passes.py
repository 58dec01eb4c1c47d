"""How a batch goes through a reward: apart from the caller's autocast, pass by pass, with its derivative."""

import weakref

import pytest
import torch
from torch import nn

from reneg_core.rewards import Reward, load_reward

NAMES = ("image_reward", "hpsv2.1", "pickscore", "aesthetic", "mix")


@pytest.fixture
def load(small_blip, small_clip, open_clip_file, aesthetic_folder):
    places = {
        "image_reward": small_blip.folder,
        "hpsv2.1": open_clip_file,
        "pickscore": small_clip.folder,
        "aesthetic": aesthetic_folder,
    }
    mix = "image_reward*0.5 + pickscore*2 + brightness"
    return lambda name, **options: (
        load_reward(mix, weights=places, **options)
        if name == "mix"
        else load_reward(name, weights=places[name], **options)
    )


def gradient(reward, images, prompts):
    x = images.clone().requires_grad_()
    return torch.autograd.grad(reward.score(x, prompts).sum(), x)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(load, images, prompts, name, dtype):
    """Neither score, details nor the gradient, also where the backward pass runs inside it; nor what is kept."""
    plain = load(name)
    scores, slopes = plain.score(images, prompts), gradient(plain, images, prompts)
    reward = load(name)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(reward.score(images, prompts), scores)
        assert torch.equal(reward.details(images, prompts).scores, scores)
        assert torch.equal(gradient(reward, images, prompts), slopes)
        if name != "mix":
            assert torch.equal(reward.preprocess(images), plain.preprocess(images))
    assert torch.equal(reward.score(images, prompts), scores), "no text features of the autocast are left"


def test_text_features_of_an_autocast_are_not_kept(load):
    reward, plain = load("pickscore"), load("pickscore")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reward.text_features(["a red fox"])
    assert torch.equal(reward.text_features(["a red fox"]), plain.text_features(["a red fox"]))


class Live:
    """Bytes that autograd holds for backward passes at one time, views of one storage counted once."""

    def __init__(self, reward):
        self.owned = {p.untyped_storage().data_ptr() for p in reward.parameters()}
        self.holders, self.now, self.peak = {}, 0, 0

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def _pack(self, tensor):
        held, storage = type("Held", (), {"tensor": tensor})(), tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.owned:
            count, size = self.holders.get(key, (0, storage.nbytes()))
            self.holders[key] = (count + 1, size)
            self.now += size if count == 0 else 0
            self.peak = max(self.peak, self.now)
            weakref.finalize(held, self._release, key)
        return held

    def _release(self, key):
        count, size = self.holders.pop(key)
        if count > 1:
            self.holders[key] = (count - 1, size)
        else:
            self.now -= size


def test_the_memory_budget_bounds_passes_with_gradient(load):
    """16 passes hold a small part of what one holds, and after the score only the derivative is left."""
    pictures, held = torch.rand(16, 3, 32, 32), {}
    for name in ("image_reward", "pickscore", "mix"):
        for budget in (1 << 30, 1):
            reward = load(name, memory_budget=budget)
            x = pictures.clone().requires_grad_()
            with Live(reward) as live:
                scores = reward.score(x, ["a red fox"])
                held[budget] = live.peak
                assert live.now == x.nbytes, f"{name}: activations outlive the score"
            assert scores.requires_grad
        assert held[1] <= max(x.nbytes, 0.15 * held[1 << 30]), name
        assert held[1 << 30] > 3 * x.nbytes, "else nothing was to be seen"


@pytest.mark.parametrize("name", ["image_reward", "pickscore"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_estimate_of_a_pass_is_what_it_holds(load, name, dtype):
    """Within a factor that leaves room for what is not kept, so that the budget means bytes."""
    reward = load(name, dtype=dtype)
    pixels = reward.preprocess(torch.rand(8, 3, 32, 32)).requires_grad_()
    with Live(reward) as live:
        scores = reward.score_pixels(pixels, ["a red fox"] * 8)
    assert scores.requires_grad
    assert 1 < reward.bytes_per_image(0, 0, gradient=True) / (live.peak / 8) < 2.5


@pytest.mark.parametrize("name", NAMES)
def test_the_passes_change_nothing(load, images, prompts, name):
    whole, split = load(name), load(name, memory_budget=1)
    assert torch.allclose(split.score(images, prompts), whole.score(images, prompts), atol=1e-5)
    assert torch.allclose(gradient(split, images, prompts), gradient(whole, images, prompts), atol=1e-5)


def test_the_chain_rule_weighs_each_picture(load, images, prompts):
    reward, weights = load("pickscore"), torch.tensor([2.0, 0.0, -3.0])
    x = images.clone().requires_grad_()
    (found,) = torch.autograd.grad((reward.score(x * 1, prompts) * weights).sum(), x)
    assert torch.allclose(found, gradient(reward, images, prompts) * weights.view(-1, 1, 1, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_gradient_may_be_asked_for_twice(load, images, prompts, dtype):
    x = images.clone().requires_grad_()
    score = load("pickscore", dtype=dtype).score(x, prompts).sum()
    first, second = (torch.autograd.grad(score, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().sum() > 0


def test_a_second_derivative_is_refused(load, images, prompts):
    x = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(load("pickscore").score(x, prompts).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        slope.sum().backward()


class Scaled(Reward):
    name = "scaled"

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def _score(self, images, prompts):
        return self.factor * images.mean((1, 2, 3))


def test_a_reward_that_is_itself_trained_keeps_its_graph(images):
    reward = Scaled()
    reward.score(images.clone().requires_grad_(), ["a"]).sum().backward()
    assert reward.factor.grad.item() == pytest.approx(images.mean((1, 2, 3)).sum().item())


def test_a_reward_without_gradient_is_refused_only_where_one_is_needed(images):
    class Counting(Reward):
        name = "counting"

        def _score(self, images, prompts):
            return torch.tensor([float(len(prompt)) for prompt in prompts])

    assert Counting().score(images, ["abc"]).tolist() == [3.0] * 3
    with pytest.raises(ValueError, match=r"reward 'counting' carries no gradient with respect to the pictures"):
        Counting().score(images.clone().requires_grad_(), ["abc"])
