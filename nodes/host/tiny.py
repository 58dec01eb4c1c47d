"""The embedded tiny world as the host's own MODEL, CLIP and VAE.

Nothing is detected: the configuration, the UNet, the autoencoder and the text encoder are built from the pipeline's own
settings, and its weights are renamed to the host's layout. All of it stays float32, as the core computes it on a CPU.
"""

import json
import re
from typing import Any, ClassVar

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as memory
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import torch
from safetensors.torch import load_file
from torch import Tensor

from reneg_core.tiny import pipeline_path
from reneg_core.tiny.pictures import draw

from .probing import resident_options

PREVIEW_PICTURES = 64


def _settings(part: str) -> dict[str, Any]:
    return json.loads((pipeline_path() / part / "config.json").read_text(encoding="utf-8"))


def _weights(part: str) -> dict[str, Tensor]:
    [file] = (pipeline_path() / part).glob("*.safetensors")
    return {name: tensor.float() for name, tensor in load_file(file).items()}


def load() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE; no file but the repository's own is read."""
    vae = load_vae()
    return load_model(vae), load_clip(), vae


class TinyLatents(comfy.latent_formats.LatentFormat):
    """Latents ``[B,12,8,8]`` of 32x32 pictures."""

    latent_channels = _settings("vae")["latent_channels"]
    scale_factor = _settings("vae")["scaling_factor"]
    spacial_downscale_ratio = 2 ** (len(_settings("vae")["block_out_channels"]) - 1)


class TinyWorld(comfy.supported_models_base.BASE):
    """Stable Diffusion's noise levels and prediction on a small UNet."""

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    latent_format = TinyLatents

    def inpaint_model(self) -> bool:
        """More than four channels are no mask here."""
        return False


def load_model(vae: Any) -> Any:
    """The UNet; vae: for the colours of previews."""
    config = TinyWorld(_unet_config(_settings("unet")))
    config.set_inference_dtype(torch.float32, None)
    rest = memory.unet_offload_device()
    model = comfy.model_base.BaseModel(config, device=rest)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    model.diffusion_model.load_state_dict({names[k]: v for k, v in _weights("unet").items()})
    _set_preview(model.latent_format, vae)
    return comfy.model_patcher.ModelPatcher(model, load_device=memory.get_torch_device(), offload_device=rest)


def _unet_config(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the host's UNet for a diffusers configuration with one attention block per resnet."""
    widths, blocks = settings["block_out_channels"], settings["layers_per_block"]
    attends = [int(kind.startswith("CrossAttn")) for kind in settings["down_block_types"]]
    return {
        "image_size": settings["sample_size"],
        "in_channels": settings["in_channels"],
        "out_channels": settings["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [blocks] * len(widths),
        "transformer_depth": [depth for depth in attends for _ in range(blocks)],
        "transformer_depth_output": [depth for depth in attends for _ in range(blocks + 1)],
        "transformer_depth_middle": 1,
        "context_dim": settings["cross_attention_dim"],
        "num_heads": settings["attention_head_dim"],  # what diffusers calls so is the number of heads
        "use_spatial_transformer": True,
        "legacy": False,
    }


def _set_preview(latent_format: TinyLatents, vae: Any) -> None:
    """The colours of a sampler's preview: those nearest to the latents of drawn pictures, by least squares."""
    pictures = draw(PREVIEW_PICTURES, "train", torch.Generator().manual_seed(0)).images
    latents = latent_format.process_in(vae.encode(pictures.movedim(1, -1)).cpu().float())
    small = torch.nn.functional.interpolate(2 * pictures - 1, latents.shape[-2:], mode="area")
    rows = torch.cat([latents.movedim(1, -1), torch.ones_like(latents[:, :1]).movedim(1, -1)], -1).flatten(0, 2)
    found = torch.linalg.lstsq(rows, small.movedim(1, -1).flatten(0, 2)).solution.tolist()
    latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias = found[:-1], found[-1]


def load_vae() -> Any:
    """The autoencoder."""
    settings = _settings("vae")
    widths, channels = settings["block_out_channels"], settings["latent_channels"]
    network = {
        "double_z": True,
        "z_channels": channels,
        "resolution": settings["sample_size"],
        "in_channels": settings["in_channels"],
        "out_ch": settings["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": settings["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    renamed = dict(_renamed(name, tensor, len(widths)) for name, tensor in _weights("vae").items())
    config = {"params": {"embed_dim": channels, "ddconfig": network}}
    vae = comfy.sd.VAE(sd=renamed, config=config, dtype=torch.float32)
    vae.latent_channels = channels
    vae.downscale_ratio = vae.upscale_ratio = TinyLatents.spacial_downscale_ratio
    return vae


VAE_NAMES = (
    (r"\.resnets\.", ".block."),
    (r"mid_block\.block\.0", "mid.block_1"),
    (r"mid_block\.block\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"(down|up)_blocks", r"\1"),
    (r"(down|up)samplers\.0", r"\1sample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def _renamed(name: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    """A tensor of diffusers' autoencoder in the original layout: levels of the decoder count from the last one, and
    attention is a convolution of one pixel."""
    for pattern, replacement in VAE_NAMES:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"\.up\.(\d+)", lambda level: f".up.{levels - 1 - int(level[1])}", name)
    return name, tensor[..., None, None] if tensor.ndim == 2 else tensor


class TinyTransformer(comfy.clip_model.CLIPTextModel):
    """CLIP's text transformer with the world's vocabulary, and without a pooled vector, which nothing here reads."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config, dtype, device, operations)
        sizes = (config["vocab_size"], config["hidden_size"])
        self.set_input_embeddings(operations.Embedding(*sizes, dtype=dtype, device=device))
        del self.text_projection

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, None]:
        """The last layer after its norm, the layer that was asked for, nothing."""
        last, asked, _ = self.text_model(*args, **kwargs)
        return last, asked, None


class TinyEncoder(comfy.sd1_clip.SDClipModel):
    """The text encoder by its own settings."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
        config = _settings("text_encoder")
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=config["max_position_embeddings"],
            textmodel_json_config=config,
            special_tokens={
                "start": config["bos_token_id"],
                "end": config["eos_token_id"],
                "pad": config["pad_token_id"],
            },
            model_class=TinyTransformer,
            model_options=model_options or {},
        )


class TinyWorldText(comfy.sd1_clip.SD1ClipModel):
    """What the host calls a CLIP's model."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, clip_name="l", clip_model=TinyEncoder
        )


class TinyWords(comfy.sd1_clip.SDTokenizer):
    """The tokenizer: a token per known word."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        config = _settings("text_encoder")
        super().__init__(
            tokenizer_path=str(pipeline_path() / "tokenizer"),
            max_length=config["max_position_embeddings"],
            embedding_directory=embedding_directory,
            embedding_size=config["hidden_size"],
            embedding_key="clip_l",
            tokenizer_data=tokenizer_data or {},
        )


class TinyTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """What the host calls a CLIP's tokenizer."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(embedding_directory, tokenizer_data or {}, clip_name="l", tokenizer=TinyWords)


def load_clip() -> Any:
    """The text encoder with its tokenizer."""
    target = comfy.supported_models_base.ClipTarget(TinyTokenizer, TinyWorldText)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32}, **resident_options(comfy.sd.CLIP))
    weights = {f"text_model.{name}": tensor for name, tensor in _weights("text_encoder").items()}
    clip.cond_stage_model.clip_l.transformer.load_state_dict(weights)
    return clip


def empty_latent(pictures: int) -> dict[str, Tensor]:
    """An empty LATENT of so many 32x32 pictures."""
    side = _settings("unet")["sample_size"]
    shape = (pictures, TinyLatents.latent_channels, side, side)
    return {"samples": torch.zeros(shape, device=memory.intermediate_device())}
