"""Mixes, their normalisation, and how a spec becomes a reward."""

import pytest
import torch

from reneg_core.rewards import (
    Reward,
    RewardMix,
    Statistics,
    available_rewards,
    load_reward,
    measure_statistics,
    registry,
)

USER_FILE = """
from reneg_core.rewards import Reward

class Blueness(Reward):
    name = "blueness"
    needs_prompt = False

    def _score(self, images, prompts):
        return images[:, 2].mean((1, 2))
"""


def test_a_mix_is_the_weighted_sum_of_standardised_parts(images):
    statistics = {"brightness": Statistics(0.4, 0.1, "here"), "sharpness": Statistics(0.3, 0.05, "here")}
    mix = load_reward("brightness*2.0 + sharpness*-0.5", statistics=statistics)
    bright, sharp = (load_reward(name).score(images) for name in ("brightness", "sharpness"))
    expected = 2 * (bright - 0.4) / 0.1 - 0.5 * (sharp - 0.3) / 0.05
    details = mix.details(images)
    assert torch.allclose(mix.score(images), expected)
    assert torch.allclose(details.scores, expected)
    assert torch.equal(details.parts["brightness"], bright) and torch.equal(details.parts["sharpness"], sharp)
    assert mix.name == "brightness*2 + sharpness*-0.5"


def test_without_normalisation_the_scores_are_added_as_they_are(images):
    mix = load_reward("brightness + sharpness*3", normalise="none")
    expected = load_reward("brightness").score(images) + 3 * load_reward("sharpness").score(images)
    assert torch.allclose(mix.score(images), expected)


def test_a_mix_is_differentiable(images):
    assert load_reward("brightness + sharpness").differentiable is True
    assert load_reward("brightness + jpeg_compressibility").differentiable is False
    x = images.clone().requires_grad_()
    load_reward("brightness*2", normalise="none").score(x).sum().backward()
    assert x.grad[0].sum((1, 2)).tolist() == pytest.approx([2 * 0.299, 2 * 0.587, 2 * 0.114], rel=1e-4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("brightness*x", "'x' is not a finite number"),
        ("brightness*inf", "'inf' is not a finite number"),
        ("brightness + ", "has an empty term"),
        ("brightness + brightness", "names 'brightness' twice"),
        ("brightness*1 + nothing*1", "unknown reward 'nothing'"),
        ("hpsv2", r"unknown reward 'hpsv2'; name the version: hpsv2.0, hpsv2.1"),
        ("hpsv2*1 + brightness", "name the version"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        load_reward(spec)


def test_bad_mix_arguments():
    part = {"brightness": load_reward("brightness")}
    with pytest.raises(ValueError, match="got 'max', expected one of zscore, none"):
        RewardMix(part, {"brightness": 1.0}, normalise="max")
    with pytest.raises(ValueError, match=r"std is 0\.0, expected > 0"):
        RewardMix(part, {"brightness": 1.0}, statistics={"brightness": Statistics(0.0, 0.0, "x")})
    with pytest.raises(ValueError, match="statistics for 'sharpness', which is not in the mix"):
        RewardMix(part, {"brightness": 1.0}, statistics={"sharpness": Statistics(0.0, 1.0, "x")})


def test_measured_statistics_standardise(images):
    reward = load_reward("brightness")
    stats = measure_statistics(reward, images, [], "three random pictures")
    mix = load_reward("brightness*1", statistics={"brightness": stats})
    scores = mix.score(images)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4) and scores.std().item() == pytest.approx(1, rel=1e-4)
    with pytest.raises(ValueError, match="without spread"):
        measure_statistics(reward, torch.full((2, 3, 4, 4), 0.5), [], "flat")


def test_a_users_file_is_a_reward(tmp_path, images):
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    reward = load_reward(str(path))
    assert reward.name == "blueness" and not reward.training
    assert torch.allclose(reward.score(images), images[:, 2].mean((1, 2)))
    mix = load_reward(f"{path}*2 + brightness", normalise="none")
    assert torch.allclose(mix.score(images), 2 * reward.score(images) + load_reward("brightness").score(images))


def test_a_users_file_must_define_one_reward_or_name_it(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(USER_FILE + "\nclass Other(Blueness):\n    name = 'other'\n")
    with pytest.raises(ValueError, match="defines Blueness, Other; expected exactly one Reward subclass"):
        load_reward(str(path))
    assert load_reward(f"{path}:Other").name == "other"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_reward(str(tmp_path / "none.py"))


def test_an_entry_point_is_a_reward(tmp_path, monkeypatch, images):
    (tmp_path / "mypack.py").write_text(USER_FILE)
    meta = tmp_path / "mypack-1.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: mypack\nVersion: 1\n")
    (meta / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\nblue = mypack:Blueness\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert available_rewards()["blue"].summary == "from mypack:Blueness"
    assert torch.allclose(load_reward("blue").score(images), images[:, 2].mean((1, 2)))


def test_loaded_rewards_are_frozen(small_clip):
    reward = load_reward("pickscore", weights=small_clip.folder)
    assert not reward.training and not any(parameter.requires_grad for parameter in reward.parameters())


def test_every_built_in_name_resolves_to_its_class():
    for name, info in available_rewards().items():
        if name != "tiny":  # has its own tests with its weights
            cls = registry.reward_class_of(info.name)
            assert issubclass(cls, Reward) and cls.name == name
