"""The embedding as it climbs: AdamW's state, its loss scale and rates, and the checkpoint that holds them."""

import math
from pathlib import Path

import pytest
import torch

from reneg_core.model import Conditioning
from reneg_core.training import TrainConfig, schedule
from reneg_core.training.learner import Climber, Learner
from reneg_core.training.loss_scale import GROWTH, MAX_SKIPPED, LossScale
from reneg_core.training.state import LearnerState, Progress, TrainState, load_state


def learner(state: LearnerState | None = None, **settings: object) -> Learner:
    tokens = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    return Learner(Conditioning(tokens, None, torch.ones(1, 3)), TrainConfig(**settings), state)


def test_a_learner_goes_on_from_its_state_bit_for_bit() -> None:
    """Five steps at once, and three, a copy through the state, and two."""
    gradients = [
        {"tokens": torch.randn(1, 4, 8, generator=source), "pooled": torch.randn(1, 3, generator=source)}
        for source in (torch.Generator().manual_seed(step) for step in range(5))
    ]
    whole, first = learner(), learner()
    for gradient in gradients:
        assert whole.ascend(gradient, 0.1) > 0
    for gradient in gradients[:3]:
        first.ascend(gradient, 0.1)
    second = learner(first.state())
    for gradient in gradients[3:]:
        second.ascend(gradient, 0.1)
    for name in ("tokens", "pooled"):
        assert torch.equal(whole.parameters[name], second.parameters[name])
    assert whole.distance() == second.distance() > 0


def test_a_learner_hands_every_part_to_the_denoiser() -> None:
    tokens, mask, pooled = torch.ones(1, 4, 8), torch.tensor([[1, 1, 0, 0]]), torch.full((1, 3), 2.0)
    one = Learner(Conditioning(tokens, mask, pooled), TrainConfig())
    found = one.negative(torch.device("cpu"))
    assert torch.equal(found.tokens, tokens) and torch.equal(found.mask, mask) and torch.equal(found.pooled, pooled)
    assert not found.tokens.requires_grad and not found.pooled.requires_grad


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    one = learner()
    before = one.state()
    assert one.ascend({"tokens": torch.full((1, 4, 8), math.inf), "pooled": torch.zeros(1, 3)}, 0.1) is None
    assert torch.equal(one.parameters["tokens"], before.tensors["tokens"]) and one.updates == 0


def test_gradient_clip_limits_the_norm() -> None:
    """After one step AdamW's first moment is a tenth of the clipped gradient."""
    one = learner(gradient_clip=0.5)
    norm = one.ascend({"tokens": torch.ones(1, 4, 8), "pooled": torch.zeros(1, 3)}, 0.1)
    assert norm == pytest.approx(32**0.5)
    assert 10 * one.state().first["tokens"].norm().item() == pytest.approx(0.5, rel=1e-4)


def test_the_loss_scale_falls_and_grows_back() -> None:
    scale = LossScale(1024.0, 1024.0)
    for _ in range(3):
        scale.update(False)
    assert scale.value == 128.0 and not scale.hopeless
    for _ in range(2 * GROWTH):
        scale.update(True)
    assert scale.value == 512.0
    for _ in range(9 + MAX_SKIPPED):
        assert not scale.hopeless
        scale.update(False)
    assert scale.value == 1.0 and scale.hopeless


def test_warm_up_and_cosine() -> None:
    config = TrainConfig(steps=10, warmup=4, learning_rate=1.0)
    rates = [schedule.learning_rate(config, step) for step in range(11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert rates[7] == pytest.approx(0.5) and rates[10] == pytest.approx(0)


def test_a_checkpoint_is_whole(tmp_path: Path) -> None:
    one = learner()
    one.ascend({"tokens": torch.ones(1, 4, 8), "pooled": torch.ones(1, 3)}, 0.1)
    state = TrainState(one.state(), Progress(one.state().tensors, step=7, best_reward=0.5), LossScale(8.0, 16.0, 3, 1))
    state.save(tmp_path / "c.safetensors", {"steps": 9})
    found, context = load_state(tmp_path / "c.safetensors")
    assert context == {"steps": 9} and vars(found.scale) == vars(state.scale)
    for name in ("tensors", "first", "second"):
        for part in ("tokens", "pooled"):
            assert torch.equal(getattr(found.learner, name)[part], getattr(state.learner, name)[part])
    plain = [{k: v for k, v in vars(s.progress).items() if k != "best"} for s in (found, state)]
    assert plain[0] == plain[1] and found.learner.updates == 1


def test_the_norm_limit_pulls_each_token_back_into_its_ball() -> None:
    """Radius a third of the mean norm 3 is 1: the first token went 3 away and comes back to 1, the second stays."""
    origin, moved = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]), torch.tensor([[[3.0, 7.0], [0.3, 1.4]]])
    one = Learner(Conditioning(origin), TrainConfig(norm_limit=1 / 3))
    with torch.no_grad():
        one.parameters["tokens"].copy_(moved)
    one._project()
    assert torch.allclose(one.parameters["tokens"], torch.tensor([[[3.0, 5.0], [0.3, 1.4]]]), atol=1e-6)
    one.ascend({"tokens": torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])}, 5.0)
    assert torch.allclose(one.parameters["tokens"], torch.tensor([[[3.0, 5.0], [0.3, 1.4]]]), atol=1e-3)


def test_the_distance_of_several_tensors_is_that_of_all_their_numbers() -> None:
    one = Climber({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}, TrainConfig())
    with torch.no_grad():
        one.parameters["a"].copy_(torch.tensor([4.0]))
        one.parameters["b"].copy_(torch.tensor([[6.0]]))
    assert one.distance() == pytest.approx(5**0.5 / 5)
