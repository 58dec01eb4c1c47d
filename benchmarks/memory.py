"""Memory of one training step at the published sizes, computed from shapes: nothing of a network is run or loaded.

    python benchmarks/memory.py

Every network has its published architecture on the meta device, so this takes a minute on any machine. The reward is
HPSv2.1 (CLIP ViT-H/14), everything in bf16, the paper's gradient through one step. How the computation compares with an
allocator's own record is measured here too, on the tiny world and on small pipelines of every family.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import peak_bytes, publish, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pipelines import BUILDERS, build

from reneg_core.backends import DiffusersModel, wrap
from reneg_core.model import Conditioning
from reneg_core.rewards.clip import ImageTower, TextTower, TextTransformer
from reneg_core.rewards.hpsv2 import HPSv21
from reneg_core.rewards.transformer import Stack, VisionTransformer
from reneg_core.sampling import Sampling, Size, State
from reneg_core.training.footprint import CARDS, META, Footprint, Step, fits, footprint
from reneg_core.training.objective import Way

GIB = 2**30


class Full(NamedTuple):
    """A published model: what it is called, the small pipeline it is like, pixels, tokens, pooled width, its parts."""

    label: str
    like: str
    pixels: int
    tokens: int
    pooled: int
    parts: Callable[[], dict[str, Any]]


def vae(pixels: int, channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=pixels, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=channels == 4, use_post_quant_conv=channels == 4,
        **({} if channels == 4 else {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    )  # fmt: skip


def clip(width: int, layers: int, heads: int, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(hidden_size=width, num_hidden_layers=layers, intermediate_size=4 * width,
                               num_attention_heads=heads, projection_dim=width))  # fmt: skip


def t5_xxl() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128,
                                   feed_forward_proj="gated-gelu"))  # fmt: skip


def sd15() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return {"unet": unet, "vae": vae(512), "text_encoder": clip(768, 12, 12)}


def sd21() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    )
    return {"unet": unet, "vae": vae(768), "text_encoder": clip(1024, 23, 16)}


def sdxl() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048, attention_head_dim=(5, 10, 20), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    encoders = {"text_encoder": clip(768, 12, 12), "text_encoder_2": clip(1280, 32, 20, True)}
    return {"unet": unet, "vae": vae(1024), **encoders}


def pixart() -> dict[str, Any]:
    from diffusers import PixArtTransformer2DModel

    return {
        "transformer": PixArtTransformer2DModel(sample_size=128, caption_channels=4096),
        "vae": vae(512),
        "text_encoder": t5_xxl(),
    }


def sd3() -> dict[str, Any]:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=128, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24,
        joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
    )  # fmt: skip
    encoders = {"text_encoder": clip(768, 12, 12, True), "text_encoder_2": clip(1280, 32, 20, True)}
    return {"transformer": transformer, "vae": vae(1024, 16), **encoders, "text_encoder_3": t5_xxl()}


def flux() -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel

    encoders = {"text_encoder": clip(768, 12, 12), "text_encoder_2": t5_xxl()}
    return {"transformer": FluxTransformer2DModel(guidance_embeds=True), "vae": vae(1024, 16), **encoders}


def chroma() -> dict[str, Any]:
    from diffusers import ChromaTransformer2DModel

    return {"transformer": ChromaTransformer2DModel(), "vae": vae(1024, 16), "text_encoder": t5_xxl()}


FULL = {
    "sd15": Full("Stable Diffusion 1.5", "sd15", 512, 77, 0, sd15),
    "sd15_768": Full("Stable Diffusion 1.5", "sd15", 768, 77, 0, sd15),
    "sd21": Full("Stable Diffusion 2.1", "sd21", 768, 77, 0, sd21),
    "sdxl": Full("Stable Diffusion XL", "sdxl", 1024, 77, 1280, sdxl),
    "pixart": Full("PixArt-alpha", "pixart_told", 1024, 120, 0, pixart),
    "sd3": Full("Stable Diffusion 3 medium", "sd3", 1024, 333, 2048, sd3),
    "flux": Full("Flux (dev)", "flux_guided", 1024, 512, 768, flux),
    "chroma": Full("Chroma", "chroma", 1024, 512, 0, chroma),
}


def full_size(kind: Full) -> DiffusersModel:
    """The published architecture in bf16 without numbers; tokenizer and scheduler are a small pipeline's."""
    small = build(kind.like)
    with META:
        parts = {name: torch.nn.Module.to(part, torch.bfloat16) for name, part in kind.parts().items()}
    return wrap(type(small)(**{**small.components, **parts}), kind.label)


def hpsv21() -> HPSv21:
    with META:
        vision = VisionTransformer(
            Stack(width=1280, depth=32, heads=16, hidden=5120, eps=1e-5, act="gelu"),
            image_size=224, patch_size=14, pre_norm=True, patch_bias=False, first_only=True,
        )  # fmt: skip
        text = TextTransformer(
            Stack(width=1024, depth=24, heads=16, hidden=4096, eps=1e-5, act="gelu"), rows=49408, context=77
        )
        return HPSv21(ImageTower(vision, 1024), TextTower(text, 1024), None, 100.0).bfloat16()


def published(kind: Full, reward: HPSv21) -> dict[str, Any]:
    model = full_size(kind)
    tokens = torch.empty(1, kind.tokens, model.width, device=META)
    pooled = torch.empty(1, kind.pooled, device=META) if kind.pooled else None
    mask = (
        torch.ones(1, kind.tokens, dtype=torch.int64, device=META) if kind.like in ("pixart_told", "chroma") else None
    )
    sampling = Sampling(steps=30, size=Size(kind.pixels, kind.pixels)).at_scale(7.5)

    def of(recompute: bool) -> Callable[[int], Footprint]:
        one = Conditioning(tokens, mask, pooled)
        return lambda rows: footprint(model, reward, Step(rows, sampling, 1, recompute), one)

    plain, light = of(False), of(True)
    first = {"plain": plain(1), "recomputed": light(1)}
    return {
        "label": kind.label,
        "pixels": kind.pixels,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "gib": {way: {**asdict(found), "peak": found.peak} for way, found in first.items()},
        "fits": {"plain": fits(plain), "recomputed": fits(light)},
    }


def compared(name: str) -> dict[str, float]:
    """Bytes of a gradient point, computed and by the allocator's record, on a small pipeline in fp32."""
    model = wrap(build(name), name)
    sampling = Sampling(steps=4, size=Size(64, 64)).at_scale(3)
    sigmas, noise, one = model.sigmas(sampling), model.noise([0, 1], sampling.size), model.encode([""])
    found = {}
    for recompute in (False, True):
        model.checkpointing(recompute)

        def point() -> None:
            leaves = Conditioning(*(None if p is None else p.clone() for p in (one.tokens, one.mask, one.pooled)))
            wanted = [p.requires_grad_() for p in (leaves.tokens, leaves.pooled) if p is not None]
            way, state = Way(model, sigmas, one, leaves, sampling), State(noise, 3)
            images = model.decode(way.recorded(state))
            torch.autograd.grad(images, wanted, torch.ones_like(images))

        computed = footprint(model, None, Step(2, sampling, 1, recompute)).gradient
        found["recomputed" if recompute else "plain"] = computed / peak_bytes(point)
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    reward = hpsv21()
    models = {name: published(kind, reward) for name, kind in FULL.items()}
    rows = [
        (
            one["label"], one["pixels"], *(f"{one['gib'][way]['peak'] / GIB:.1f}" for way in one["gib"]),
            *(f"{one['fits']['plain'][card]} / {one['fits']['recomputed'][card]}" for card in CARDS),
        )
        for one in models.values()
    ]  # fmt: skip
    print(table(rows, ("model", "pixels", "GiB", "recomputed", *(f"{card} GB" for card in CARDS))))
    against = {name: compared(name) for name in BUILDERS}
    print(
        table(
            [(n, *(f"{v:.2f}" for v in one.values())) for n, one in against.items()],
            ("computed / recorded", "plain", "recomputed"),
        )
    )
    publish(
        "memory",
        {
            "models": models,
            "reward": {"label": "HPSv2.1", "bytes": sum(p.nbytes for p in reward.parameters())},
            "against": against,
        },
    )


if __name__ == "__main__":
    main()
