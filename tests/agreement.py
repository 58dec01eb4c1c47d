"""How far a family's pictures are from those of diffusers' own pipeline, and its gradients from finite differences, on
the small pipelines of ``pipelines``; the tests assert on these numbers and a benchmark publishes them."""

from dataclasses import replace

import torch
from doubles import Curved
from torch import Tensor

from reneg_core.backends import DiffusersModel
from reneg_core.model import Conditioning
from reneg_core.sampling import Sampling, Size, sample
from reneg_core.training import Batch, Reach, reward_gradient

PROMPTS, NEGATIVE, SCALE = ["a red circle", "blue"], "ugly blur", 4.0
SIZE, STEPS = Size(16, 32), 4
CLIPS = {"zeroscope": Size(16, 32, 3), "ltx": Size(32, 64, 3)}
DPM = {"pixart", "pixart_told", "pixart_sigma"}
PIXART = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 24}
OPTIONS = {
    **dict.fromkeys(DPM, PIXART),
    "sd3": {"max_sequence_length": 24},
    "chroma": {"max_sequence_length": 24},
    "ltx": {"max_sequence_length": 24},
    "flux": {"max_sequence_length": 24, "true_cfg_scale": SCALE, "guidance_scale": 3.5},
    "flux_guided": {"max_sequence_length": 24, "true_cfg_scale": SCALE, "guidance_scale": 3.5},
}


def sampling_of(model: DiffusersModel, **changes: object) -> Sampling:
    """A few steps on the pipeline's own grid with the solver that it has."""
    solver = "dpmpp_2m" if model.name in DPM else "euler"
    return Sampling(solver, STEPS, size=CLIPS.get(model.name, SIZE)).at_scale(SCALE).changed(**changes)


def negative_of(model: DiffusersModel) -> Conditioning:
    """As a learned one may be: every token moved and attended to, the pooled vector too."""
    null, source = model.encode([""]), torch.Generator().manual_seed(5)
    moved = null.map(lambda t: t + 0.3 * torch.randn(t.shape, generator=source) if t.is_floating_point() else t)
    return replace(moved, mask=None if null.mask is None else torch.ones_like(null.mask))


def ours(model: DiffusersModel, negative: Conditioning, sampling: Sampling) -> Tensor:
    return model.decode(sample(model, model.encode(PROMPTS), negative, model.noise([3, 4], sampling.size), sampling))


def theirs(model: DiffusersModel, steps: int, **text: object) -> Tensor:
    pipe = model.pipeline
    pipe.set_progress_bar_config(disable=True)
    size, video = CLIPS.get(model.name, SIZE), model.name in CLIPS
    options = {"guidance_scale": SCALE, "height": size.height, "width": size.width, **OPTIONS.get(model.name, {})}
    options |= {"num_frames": size.frames} if video else {}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    found = pipe(num_inference_steps=steps, generator=generators, output_type="pt", **options, **text)
    return (found.frames if video else found.images).float()


def as_options(model: DiffusersModel, positive: Conditioning, negative: Conditioning) -> dict[str, Tensor]:
    """Conditionings as diffusers' pipelines take them."""
    found = {}
    for prefix, part in (("", positive), ("negative_", negative.expand(2))):
        mask = part.mask.float() if model.name == "chroma" else part.mask
        names = {"prompt_embeds": part.tokens, "prompt_attention_mask": mask, "pooled_prompt_embeds": part.pooled}
        found |= {f"{prefix}{name}": tensor for name, tensor in names.items() if tensor is not None}
    return found | ({"negative_prompt": None} if model.name in DPM else {})


def picture_difference(model: DiffusersModel, kind: str) -> float:
    """Largest difference of any pixel in [0,1] with a negative of ``kind``: text, or embedding."""
    if kind == "text":
        negative = model.encode([NEGATIVE])
        options = {"prompt": PROMPTS, "negative_prompt": [NEGATIVE] * 2}
    else:
        negative = negative_of(model)
        options = as_options(model, model.encode(PROMPTS), negative)
    expected = theirs(model, STEPS, **options)
    return (ours(model, negative, sampling_of(model)) - expected).abs().max().item()


def reward_of(model: DiffusersModel, negative: Conditioning, through: int, of: str = "") -> tuple[float, Tensor | None]:
    """The reward of the estimate ``through`` steps on from pure noise, and its gradient."""
    batch = Batch(PROMPTS, model.encode(PROMPTS), model.noise([1, 2], sampling_of(model).size))
    found = reward_gradient(model, Curved(), batch, negative, sampling_of(model), Reach([0], through))
    return found.rewards.double().sum().item(), getattr(found, of, None)


def gradient_error(model: DiffusersModel, of: str, through: int) -> float:
    """Relative error of the gradient with respect to ``tokens`` or ``pooled`` against a central difference along it,
    which a wrong direction cannot pass either. The step moves the tensor by 0.0025 of its norm: less is lost in fp32's
    rounding, more passes kinks, since pixels saturate."""
    negative = negative_of(model)
    gradient, tensor = reward_of(model, negative, through, of)[1], getattr(negative, of)
    step = 0.0025 * tensor.norm() / gradient.norm() * gradient
    up, down = (reward_of(model, replace(negative, **{of: tensor + sign * step}), through)[0] for sign in (1, -1))
    return abs((up - down) / (2 * step.norm().item()) / gradient.norm().item() - 1)
