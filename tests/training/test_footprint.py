"""Memory computed from shapes, against the allocator's own record and against numbers that can be worked out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from pipelines import build
from torch.profiler import ProfilerActivity, profile

from reneg_core.backends import wrap
from reneg_core.model import Conditioning
from reneg_core.rewards import load_reward
from reneg_core.rewards.smoke import Sharpness
from reneg_core.sampling import Sampling, Size, State
from reneg_core.training.decoding import Decoder
from reneg_core.training.footprint import CARDS, META, SPARE, Footprint, Step, fits, footprint
from reneg_core.training.objective import Way

SAMPLING = Sampling(steps=4, size=Size(48, 64)).at_scale(3)
STEP = Step(2, SAMPLING)


def recorded(model: object, step: Step) -> int:
    """Most bytes live during a gradient point, from the allocator."""
    decoder = Decoder.read(step.decoder)
    model.checkpointing(step.recompute, step.recompute or decoder.recomputes(0))
    decode = decoder.load(model).of(model, range(step.micro_batch))
    sampling = step.sampling
    sigmas, noise, one = model.sigmas(sampling), model.noise(range(step.micro_batch), sampling.size), model.encode([""])
    leaves = Conditioning(*(None if part is None else part.clone() for part in (one.tokens, one.mask, one.pooled)))
    wanted = [part.requires_grad_() for part in (leaves.tokens, leaves.pooled) if part is not None]
    way, state = Way(model, sigmas, one, leaves, sampling), State(noise, 3 if step.through == 1 else 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        x0 = way.recorded(state, way.positive_x0(state))
        images = decode(way.ahead(state, x0, step.through), step.frames, range(step.micro_batch))
        torch.autograd.grad(images, wanted, torch.ones_like(images))
        del images
    model.checkpointing(False)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


@pytest.mark.parametrize("family", ["sd15", "pixart", "flux"])
@pytest.mark.parametrize("step", [STEP, replace(STEP, recompute=True), Step(1, SAMPLING, through=3)])
def test_the_gradient_takes_what_is_computed(family: str, step: Step) -> None:
    model = wrap(build(family), family)
    assert footprint(model, None, step).gradient == pytest.approx(recorded(model, step), rel=0.08)


@pytest.mark.parametrize("decoder", ["recomputed", "crop:0.5", "tiny"])
def test_a_decoder_takes_what_is_computed(tmp_path: Path, decoder: str) -> None:
    """Another one than the model's own has weights of its own."""
    model = wrap(build("sd15"), "sd15")
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    tiny = AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    tiny.save_pretrained(tmp_path)
    large = Sampling(steps=4, size=Size(96, 128)).at_scale(3)
    step = Step(2, large, decoder=f"tiny:{tmp_path}" if decoder == "tiny" else decoder)
    found, full = footprint(model, None, step), footprint(model, None, Step(2, large))
    assert found.gradient == pytest.approx(recorded(model, step), rel=0.08)
    assert found.gradient < 0.9 * full.gradient and found.judging < 0.7 * full.judging
    own = sum(p.nbytes for p in tiny.decoder.parameters()) if decoder == "tiny" else 0
    assert found.weights == full.weights + own


def test_nothing_is_run_and_nothing_is_changed(model) -> None:
    before = {name: part.clone() for name, part in model.network.state_dict().items()}
    calls = []
    hook = model.network.register_forward_hook(lambda *_: calls.append(1))
    footprint(model, None, replace(STEP, recompute=True))
    hook.remove()
    assert not calls and model.device == torch.device("cpu") and not model.network.is_gradient_checkpointing
    assert all(torch.equal(part, before[name]) for name, part in model.network.state_dict().items())
    assert torch.nn.functional.scaled_dot_product_attention.__module__ != footprint.__module__


def test_every_part_is_counted(model) -> None:
    found = footprint(model, None, STEP)
    parts = [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    encoder = model.pipeline.text_encoder
    assert found.text == sum(p.nbytes for p in (*encoder.parameters(), *encoder.buffers())) > 0
    assert found.weights + found.text == sum(p.nbytes for part in parts for p in (*part.parameters(), *part.buffers()))
    pictures = 2 * 3 * 48 * 64 * 4
    assert pictures < found.rollout < found.gradient and found.peak == found.weights + found.gradient
    judged = footprint(model, load_reward("sharpness"), STEP)
    assert judged.judging == found.judging
    assert Footprint(1, 5, 7, 9, 8).peak == 10 and Footprint(1, 5, 7, 9, 11).peak == 12
    assert Footprint(1, 5, 7, 9).peak == 10 and Footprint(1, 5, 9, 7).peak == 10 and Footprint(1, 9, 5, 7).peak == 10


def test_a_rewards_own_passes_are_bounded_by_its_budget(model) -> None:
    class Hungry(Sharpness):
        memory_budget = 3000

        def bytes_per_image(self, height: int, width: int, gradient: bool) -> int:
            assert (height, width, gradient) == (48, 64, True)
            return 1000

    bare = footprint(model, None, STEP).judging
    assert footprint(model, Hungry(), STEP).judging == bare + 2 * 1000
    assert footprint(model, Hungry(), replace(STEP, micro_batch=8)).judging == (
        footprint(model, None, replace(STEP, micro_batch=8)).judging + 3 * 1000
    )


def test_more_of_anything_takes_more(model) -> None:
    plain = footprint(model, None, STEP).gradient
    assert footprint(model, None, replace(STEP, micro_batch=4)).gradient == pytest.approx(2 * plain, rel=0.05)
    assert footprint(model, None, replace(STEP, recompute=True)).gradient < 0.9 * plain
    assert footprint(model, None, replace(STEP, through=2)).gradient > 1.2 * plain
    everything = footprint(model, None, replace(STEP, through=0)).gradient
    assert everything == footprint(model, None, replace(STEP, through=4)).gradient > 2 * plain
    assert footprint(model, None, replace(STEP, through="leap")).gradient == pytest.approx(
        footprint(model, None, replace(STEP, through=2)).gradient, rel=0.01
    )
    alone, together = footprint(model, None, STEP), footprint(model, None, replace(STEP, rollout=8))
    assert together.rollout == pytest.approx(4 * alone.rollout, rel=0.1) and together.gradient == alone.gradient


def test_shapes_are_enough(model) -> None:
    shapes = Conditioning(model.encode([""]).tokens.to(META))
    assert footprint(model, None, STEP, shapes) == footprint(model, None, STEP)


def test_a_size_that_the_model_refuses(model) -> None:
    with pytest.raises(ValueError, match=r"Got a picture of 51x48 pixels \(width x height\), expected multiples of"):
        footprint(model, None, Step(1, Sampling(steps=2, size=Size(48, 51))))


def test_what_fits_on_a_card() -> None:
    """2 GiB once and 1.5 GiB a picture: of 8 GiB 7.25 are there, which hold 3 pictures."""
    found = fits(lambda rows: Footprint(2 << 30, 0, rows * (3 << 29), 0))
    assert found == {8: 3, 12: 6, 16: 8, 24: 14} and SPARE == 0.75 * 2**30 and CARDS == (8, 12, 16, 24)
    assert fits(lambda rows: Footprint((29 << 28) - 1, 0, rows, 0), (8,)) == {8: 1}, "not a byte more"
    assert fits(lambda rows: Footprint((29 << 28) + 1, 0, rows, 0), (8,)) == {8: 0}


def test_a_text_encoder_must_fit_too_but_takes_nothing_from_the_step() -> None:
    """2 GiB of weights and 1 GiB a picture: 7.25 hold 5, beside an encoder of 5.25 and not of a byte more."""
    for spare, rows in ((0, 5), (1, 0)):
        text = (21 << 28) + spare
        assert fits(lambda count, text=text: Footprint(2 << 30, 0, count << 30, 0, text), (8,)) == {8: rows}
