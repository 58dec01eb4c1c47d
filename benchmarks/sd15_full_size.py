"""Stable Diffusion 1.5 at full size with random weights: where the time and the memory of a training step go.

    python benchmarks/sd15_full_size.py [--latent 16] [--batch 1] [--dtype auto] [--repeat 3] [--save FOLDER]

On a GPU the default is 512 px (64x64 latents); on the CPU small latents. The floor is what cannot be avoided:
two forward passes per rollout step, and at the gradient point one backward pass of the negative branch, one decode and
one reward, forward and backward. The UNet's part of the gradient is also measured as one would write it plainly: both
branches in one batch, the graph kept for both. ``--save`` keeps the random model as a pipeline folder (fp16, 2 GB).
"""

import argparse
from collections.abc import Callable

import torch
from gradient_part import backward, our_x0, plain_x0
from measure import in_turn, peak_bytes, publish, table

from reneg_core.backends import DiffusersModel, wrap
from reneg_core.backends.devices import pick_device, pick_dtype
from reneg_core.model import Conditioning
from reneg_core.rewards import load_reward
from reneg_core.sampling import Sampling, Size
from reneg_core.training import Batch, Reach, reward_gradient

STEPS, POINT = 30, 24


def build(dtype: torch.dtype, device: torch.device) -> DiffusersModel:
    """The published configuration of SD1.5 with random weights; the tokenizer is a letter tokenizer."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77, pad_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    text = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12, intermediate_size=3072,
                                        num_attention_heads=12, eos_token_id=53, bos_token_id=52))  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    return wrap(pipeline.to(device, dtype), "sd1.5-random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--latent", type=int, default=64 if gpu else 16, help="latent side; pixels / 8")
    parser.add_argument("--batch", type=int, default=4 if gpu else 1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", metavar="FOLDER")
    args = parser.parse_args()
    device = pick_device()
    model = build(pick_dtype(args.dtype, device), device)
    if args.save:
        model.pipeline.to(dtype=torch.float16).save_pretrained(args.save)
        model.pipeline.to(dtype=model.dtype)
    reward = load_reward("sharpness", device=device)
    prompts, size = ["a red fox"] * args.batch, Size(args.latent * 8, args.latent * 8)
    noise, positive, negative = model.noise(range(args.batch), size), model.encode(prompts), model.encode([""])
    sampling = Sampling(steps=STEPS, size=size)
    sigmas = model.sigmas(sampling)
    both = Conditioning(torch.cat([positive.tokens, negative.tokens.expand(args.batch, -1, -1)]))
    x0 = noise

    def denoise_backward() -> None:
        leaf = negative.tokens.clone().requires_grad_()
        backward(model.denoise(noise, sigmas[POINT], Conditioning(leaf.expand(args.batch, -1, -1))), leaf)

    def unet_part(x0_of: Callable[..., torch.Tensor]) -> None:
        leaf = negative.tokens.clone().requires_grad_()
        backward(x0_of(model, noise, sigmas[POINT], positive, leaf, 7.5), leaf)

    def decode_backward() -> None:
        leaf = x0.clone().requires_grad_()
        torch.autograd.grad(reward.score(model.decode(leaf), prompts).sum(), leaf)

    batch = Batch(prompts, positive, noise)
    step = lambda: reward_gradient(model, reward, batch, negative, sampling, Reach([POINT]))  # noqa: E731
    light = lambda: _checkpointed(model, step)  # noqa: E731
    stages = {
        "guided denoise, no gradient": torch.no_grad()(
            lambda: model.denoise(torch.cat([noise, noise]), sigmas[POINT], both)
        ),
        "denoise, no gradient": torch.no_grad()(lambda: model.denoise(noise, sigmas[POINT], positive)),
        "denoise of the negative, forward + backward": denoise_backward,
        "decode + reward, forward + backward": decode_backward,
    }
    parts = {"UNet part, plain": lambda: unet_part(plain_x0), "UNet part, ours": lambda: unet_part(our_x0)}
    every = in_turn({**stages, **parts, "whole step": step}, args.repeat)
    times, whole = {name: every[name] for name in stages}, every["whole step"]
    floor = POINT * times["guided denoise, no gradient"] + sum(list(times.values())[1:])
    memory = {"step": peak_bytes(step) / 2**20, "step, checkpointed": peak_bytes(light) / 2**20}
    memory |= {name: peak_bytes(work) / 2**20 for name, work in parts.items()}
    rollout_share = POINT * times["guided denoise, no gradient"] / whole
    rows = [(name, f"{value:.3f}") for name, value in times.items()]
    rows += [(name, f"{every[name]:.3f}") for name in parts]
    rows += [("whole step", f"{whole:.3f}"), ("floor: sum of unavoidable passes", f"{floor:.3f}")]
    print(table(rows, ("stage", "s")))
    print(table([(name, f"{value:,.0f}") for name, value in memory.items()], ("peak above weights", "MiB")))
    publish("sd15_full_size", {
        "latent": args.latent, "batch": args.batch, "dtype": str(model.dtype), "seconds": times, "whole_step": whole,
        "floor": floor, "over_floor": whole / floor, "rollout_share": rollout_share, "peak_mib": memory,
        "unet_part_time": every["UNet part, ours"] / every["UNet part, plain"],
        "unet_part_memory": memory["UNet part, ours"] / memory["UNet part, plain"],
    })  # fmt: skip


def _checkpointed(model: DiffusersModel, step: object) -> None:
    model.checkpointing(True)
    try:
        step()
    finally:
        model.checkpointing(False)


if __name__ == "__main__":
    main()
