"""The host's text encoders as the core tunes them: a copy, with a gradient, and nothing is left behind."""

from typing import Any

import pytest
import torch
from reneg_pack.nodes.host.model import HostModel
from reneg_pack.nodes.host.text import encode

import nodes
from reneg_core.model import TunableModel
from reneg_core.texforce.adapter import attached
from reneg_core.texforce.objective import Branches, direct_gradient, through_encoder

PROMPTS = ["a (red:1.3) circle on a blue background", "a green ring on a white background"]
MODELS = ["world", "checkpoint"]


def host(request: pytest.FixtureRequest, name: str) -> Any:
    from reneg_core.sampling import Size

    side = 32 if name == "world" else 64
    return HostModel(*request.getfixturevalue(name), size=Size(side, side))


@pytest.mark.parametrize("name", MODELS)
def test_the_copy_says_what_the_host_says_and_the_users_clip_is_left_alone(
    request: pytest.FixtureRequest, name: str
) -> None:
    model, clip = host(request, name), request.getfixturevalue(name)[1]
    before = [(name, id(value)) for name, value in clip.cond_stage_model.state_dict(keep_vars=True).items()]
    wanted = model.encode(PROMPTS).tokens

    def work(inside: Any) -> None:
        assert list(inside.text_encoders()) == ["text_encoder"]
        assert torch.equal(inside.encode(PROMPTS).tokens, wanted)
        assert not inside.encode(PROMPTS, gradient=True).tokens.requires_grad, "nothing in it asks for one"
        with attached(inside.text_encoders(), 4, 4.0, seed=0) as adapter:
            said = inside.encode(PROMPTS, gradient=True).tokens
            assert said.requires_grad and torch.equal(said, wanted), "B is 0"
            for parameter in adapter.parameters.values():
                parameter.data.add_(0.02)
            assert not torch.equal(inside.encode(PROMPTS).tokens, wanted)
            assert not inside.encode(PROMPTS).tokens.requires_grad
        assert torch.equal(inside.encode(PROMPTS).tokens, wanted)
        raise KeyboardInterrupt

    assert isinstance(model, TunableModel)
    with pytest.raises(KeyboardInterrupt):
        model.run(work)
    assert torch.equal(model.encode(PROMPTS).tokens, wanted)
    assert torch.equal(encode(clip, PROMPTS[0])[0].tokens, wanted[:1].cpu())
    after = [(name, id(value)) for name, value in clip.cond_stage_model.state_dict(keep_vars=True).items()]
    assert len(before) == len(after) and [n for n, _ in before] == [n for n, _ in after]
    assert not any("lora" in name for name, _ in clip.cond_stage_model.named_modules())
    with pytest.raises(RuntimeError, match="only inside run"):
        model.text_encoders()


def test_a_lora_on_the_users_clip_is_part_of_the_copy(request: pytest.FixtureRequest, world: tuple) -> None:
    model, clip, vae = world
    tuned = clip.clone()
    key = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    tuned.add_patches({key: ("diff", (torch.full((128, 128), 0.05),))})
    wanted = nodes.CLIPTextEncode().encode(tuned, PROMPTS[1])[0][0][0].clone()
    plain = nodes.CLIPTextEncode().encode(clip, PROMPTS[1])[0][0][0]

    def work(inside: Any) -> torch.Tensor:
        inside.text_encoders()
        return inside.encode(PROMPTS[1:]).tokens

    found = HostModel(model, tuned, vae).run(work)
    assert torch.equal(found.cpu(), wanted) and not torch.equal(plain, wanted)


@pytest.mark.parametrize("through", [1, 2])
def test_the_gradient_by_the_lora_is_that_of_finite_differences(
    request: pytest.FixtureRequest, world: tuple, through: int
) -> None:
    """Through sampler, guidance, denoiser and encoder, along the gradient itself, in both branches."""
    from reneg_pack.nodes.host import rewards

    from reneg_core.guidance import Guidance
    from reneg_core.sampling import Sampling, Size

    sampling = Sampling("euler", 2, "karras", Guidance(3.0), Size(32, 32))
    judge = rewards.load("tiny", None, torch.float32).reward

    def work(inside: Any) -> tuple[float, float]:
        noise = inside.noise([1, 2], sampling.size)
        with attached(inside.text_encoders(), 4, 4.0, seed=0) as adapter:
            parameters = list(adapter.parameters.values())
            generator = torch.Generator().manual_seed(3)
            for parameter in parameters:
                parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))

            def branches() -> Branches:
                return Branches(inside.encode(PROMPTS, gradient=True), inside.encode(["blurry"], gradient=True))

            def reward(told: Branches) -> torch.Tensor:
                return direct_gradient(inside, told, judge, PROMPTS, noise, sampling, through=through)

            _, gradients = through_encoder(branches, parameters, reward)
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            found = []
            for sign in (1, -1):
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.data.add_(sign * STEP * gradient / norm)
                found.append(through_encoder(branches, parameters, reward)[0].double().sum().item())
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.data.sub_(sign * STEP * gradient / norm)
            return norm.item(), (found[0] - found[1]) / (2 * STEP)

    norm, difference = HostModel(*world, scheduler="karras", size=Size(32, 32)).run(work)
    assert norm > 1e-3
    if through == 2:
        assert difference == pytest.approx(norm, rel=0.03)
    else:
        assert difference != pytest.approx(norm, rel=1e-4), "the first step is left out"


STEP = 2e-3


def test_other_encoders_are_refused_in_a_sentence() -> None:
    from types import SimpleNamespace

    from reneg_pack.nodes.host.tuning import require_tunable

    kind = type("FluxClipModel", (), {})
    with pytest.raises(ValueError, match=r"Got a CLIP of flux, .* Expected that of Stable Diffusion 1\.x"):
        require_tunable(SimpleNamespace(cond_stage_model=kind()))
