"""A training step through ComfyUI's MODEL against the core's own loop with diffusers on the same shapes, run in turn.

    python benchmarks/host_training.py [--pairs 10]

Both sides have a UNet of the same blocks (320 channels, two levels) and the tiny autoencoder's decoder, with random
weights; the work is the core's reward gradient at one late step.
"""

import argparse
from collections.abc import Callable
from typing import Any

import host_inside


def core_model() -> Any:
    """The test checkpoint's shapes in diffusers."""
    import torch
    from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from reneg_core.backends import wrap

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(320, 320),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=1, num_attention_heads=12)
    )
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny(),
        text_encoder=text,
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return wrap(pipeline, "diffusers")


def tokenizer() -> Any:
    """The host's CLIP tokenizer."""
    import os

    from transformers import CLIPTokenizer

    folder = os.path.join(os.environ["COMFYUI_PATH"], "comfy", "sd1_tokenizer")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def measure(pairs: int, steps: int, side: int, batch: int) -> None:
    nodes = host_inside.host_and_pack()
    import torch
    from reneg_pack.nodes.host.model import HostModel

    from reneg_core.rewards import load_reward
    from reneg_core.sampling import Size

    with torch.inference_mode():
        parts = nodes.CheckpointLoaderSimple().load_checkpoint("reneg-test-sd15.safetensors")[:3]
    reward = load_reward("brightness")
    host = HostModel(*parts, size=Size(side, side), batch=batch)
    core = core_model()
    parameters = [
        sum(p.numel() for p in network.parameters()) for network in (parts[0].model.diffusion_model, core.pipeline.unet)
    ]

    def both(host_model: Any) -> tuple[float, float, float]:
        works = [step_of(model, reward, steps, side, batch) for model in (host_model, core)]
        return host_inside.ratios(*works, pairs)

    ratio, own, theirs = host.run(both)
    rows = [
        ("UNet parameters, host and core", f"{parameters[0]:,} and {parameters[1]:,}"),
        ("core with diffusers, median", f"{theirs:.3f} s"),
        ("through ComfyUI, median", f"{own:.3f} s"),
        ("median ratio of pairs (aim: at most 1.2)", f"{ratio:.3f}"),
    ]
    host_inside.report(
        "host_training",
        rows,
        {"pairs": pairs, "steps": steps, "side": side, "batch": batch, "ratio": ratio, "host_s": own, "core_s": theirs},
    )


def step_of(model: Any, reward: Any, steps: int, side: int, batch: int) -> Callable[[], Any]:
    """One reward gradient at the last step but one, with everything that does not belong to it prepared."""
    from reneg_core.sampling import Sampling, Size
    from reneg_core.training.objective import Batch, Reach, reward_gradient

    prompts, size = ["a red house"] * batch, Size(side, side)
    inputs = Batch(prompts, model.encode(prompts), model.noise(list(range(batch)), size))
    negative, sampling = model.encode([""]), Sampling(steps=steps, size=size)
    return lambda: reward_gradient(model, reward, inputs, negative, sampling, Reach([steps - 2]))


if __name__ == "__main__":
    host_inside.enter(__file__)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="steps of each, run in turn (%(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="denoising steps (%(default)s)")
    parser.add_argument("--side", type=int, default=128, help="side of the picture in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="pictures in a step (%(default)s)")
    args = parser.parse_args()
    measure(args.pairs, args.steps, args.side, args.batch)
