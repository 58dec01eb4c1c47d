"""CLIP: image and text towers, the published key layouts, configuration from shapes and JSON.

Radford et al. 2021 (arXiv 2103.00020). Layouts: OpenAI / open_clip (HPSv2, OpenAI's own files) and transformers
(PickScore, openai/clip-vit-*). Shapes: B images, N prompts, T tokens, D embedding size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reneg_core.rewards.checkpoint import Checkpoint, Layout, Placement, Rule, load_network
from reneg_core.rewards.precision import at_least_float32
from reneg_core.rewards.tokenizers import Tokens
from reneg_core.rewards.transformer import Block, Blocks, Stack, VisionTransformer


def _block_rules(ours: str, theirs: str, names: Mapping[str, tuple[str, ...]]) -> tuple[Rule, ...]:
    """Rules for the parameters of every block: `names` gives the published module(s) of each of ours."""
    return tuple(
        Rule(
            rf"{ours}\.blocks\.(\d+)\.{name}\.(weight|bias)",
            tuple(rf"{theirs}.\1.{module}{'_' if module.endswith('in_proj') else '.'}\2" for module in modules),
        )
        for name, modules in names.items()
    )


_OPEN_CLIP_BLOCK = {
    "norm1": ("ln_1",),
    "qkv": ("attn.in_proj",),
    "proj": ("attn.out_proj",),
    "norm2": ("ln_2",),
    "fc1": ("mlp.c_fc",),
    "fc2": ("mlp.c_proj",),
}
_TRANSFORMERS_BLOCK = {
    "norm1": ("layer_norm1",),
    "proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "qkv": tuple(f"self_attn.{name}_proj" for name in "qkv"),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
}

OPEN_CLIP = Layout(
    "visual.conv1.weight",
    (
        Rule(r"vision\.class_token", ("visual.class_embedding",)),
        Rule(r"vision\.positions", ("visual.positional_embedding",)),
        Rule(r"vision\.patch\.weight", ("visual.conv1.weight",)),
        Rule(r"vision\.pre_norm\.(\w+)", (r"visual.ln_pre.\1",)),
        Rule(r"vision\.norm\.(\w+)", (r"visual.ln_post.\1",)),
        Rule(r"vision_projection\.weight", ("visual.proj",), transposed=True),
        Rule(r"text\.embedding\.weight", ("token_embedding.weight",)),
        Rule(r"text\.positions", ("positional_embedding",)),
        Rule(r"text\.norm\.(\w+)", (r"ln_final.\1",)),
        Rule(r"text_projection\.weight", ("text_projection",), transposed=True),
        *_block_rules("vision", "visual.transformer.resblocks", _OPEN_CLIP_BLOCK),
        *_block_rules("text", "transformer.resblocks", _OPEN_CLIP_BLOCK),
    ),
    ignored=("logit_scale", "input_resolution", "context_length", "vocab_size"),
)

TRANSFORMERS = Layout(
    "vision_model.embeddings.class_embedding",
    (
        Rule(r"vision\.class_token", ("vision_model.embeddings.class_embedding",)),
        Rule(r"vision\.positions", ("vision_model.embeddings.position_embedding.weight",)),
        Rule(r"vision\.patch\.weight", ("vision_model.embeddings.patch_embedding.weight",)),
        Rule(r"vision\.pre_norm\.(\w+)", (r"vision_model.pre_layrnorm.\1",)),
        Rule(r"vision\.norm\.(\w+)", (r"vision_model.post_layernorm.\1",)),
        Rule(r"vision_projection\.weight", ("visual_projection.weight",)),
        Rule(r"text\.embedding\.weight", ("text_model.embeddings.token_embedding.weight",)),
        Rule(r"text\.positions", ("text_model.embeddings.position_embedding.weight",)),
        Rule(r"text\.norm\.(\w+)", (r"text_model.final_layer_norm.\1",)),
        Rule(r"text_projection\.weight", ("text_projection.weight",)),
        *_block_rules("vision", "vision_model.encoder.layers", _TRANSFORMERS_BLOCK),
        *_block_rules("text", "text_model.encoder.layers", _TRANSFORMERS_BLOCK),
    ),
    ignored=("logit_scale", r"(text|vision)_model\.embeddings\.position_ids"),
)

LAYOUTS = (OPEN_CLIP, TRANSFORMERS)
CONFIG_KEYS = ("vision_config", "text_config", "vision_cfg", "text_cfg", "vision_heads", "text_heads", "quick_gelu")
IMAGE_KEYS = (r"visual\..*", r"vision_model\..*", r"visual_projection\.weight")
TEXT_KEYS = (
    r"token_embedding\.weight",
    "positional_embedding",
    r"ln_final\..*",
    r"text_projection(\.weight)?",
    r"transformer\..*",
    r"text_model\..*",
)


@dataclass(frozen=True)
class ClipConfig:
    """What tensor shapes do not tell: attention heads (0: width / head width), activation, LayerNorm epsilon."""

    vision_heads: int = 0
    text_heads: int = 0
    vision_head_width: int = 64
    act: str = "gelu"
    eps: float = 1e-5


def is_clip_config(raw: Mapping[str, object]) -> bool:
    """Whether `read_clip_config` finds anything in `raw`."""
    inner = raw.get("config", raw)
    return isinstance(inner, Mapping) and any(key in inner for key in CONFIG_KEYS)


def read_clip_config(raw: Mapping[str, object], default: ClipConfig) -> ClipConfig:
    """Configuration from the JSON beside the weights: transformers' `config.json`, open_clip's `vision_cfg` and
    `text_cfg`, or the flat names of `ClipConfig`; possibly under a "config" key. What is absent keeps `default`."""
    raw = raw.get("config", raw)
    if "vision_config" in raw or "text_config" in raw:
        vision, text = raw.get("vision_config") or {}, raw.get("text_config") or {}
        return ClipConfig(
            int(vision.get("num_attention_heads", 12)),
            int(text.get("num_attention_heads", 8)),
            64,
            vision.get("hidden_act", "quick_gelu"),
            float(vision.get("layer_norm_eps", 1e-5)),
        )
    vision, text = raw.get("vision_cfg") or {}, raw.get("text_cfg") or {}
    act = {True: "quick_gelu", False: "gelu"}.get(raw.get("quick_gelu"), raw.get("act", default.act))
    return ClipConfig(
        vision_heads=int(vision.get("heads", raw.get("vision_heads", default.vision_heads))),
        text_heads=int(text.get("heads", raw.get("text_heads", default.text_heads))),
        vision_head_width=int(vision.get("head_width", raw.get("vision_head_width", default.vision_head_width))),
        act=str(act),
        eps=float(raw.get("layer_norm_eps", raw.get("eps", default.eps))),
    )


class TextTransformer(nn.Module):
    """CLIP's causal text tower, read at the end token."""

    def __init__(self, stack: Stack, *, rows: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, stack.width)
        self.positions = nn.Parameter(torch.zeros(context, stack.width))
        self.blocks = Blocks(Block(stack) for _ in range(stack.depth))
        self.norm = nn.LayerNorm(stack.width, stack.eps)

    def forward(self, tokens: Tokens) -> Tensor:
        """tokens of N prompts -> [N,W]. Padding stands after the end token and is invisible to it."""
        ids = tokens.ids.to(self.positions.device)
        hidden = self.blocks.run(self.embedding(ids) + self.positions[: ids.shape[1]], causal=True)
        ends = tokens.lengths.to(ids.device) - 1
        return self.norm(hidden[torch.arange(len(ids), device=ids.device), ends])


class ImageTower(nn.Module):
    """Vision transformer and projection into the shared space."""

    def __init__(self, vision: VisionTransformer, width: int) -> None:
        super().__init__()
        self.vision = vision
        self.vision_projection = nn.Linear(vision.positions.shape[1], width, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B,3,S,S] normalised -> [B,D], not yet of unit length; float32 or wider."""
        return at_least_float32(self.vision_projection(self.vision(pixels.to(self.vision.positions.dtype))[:, 0]))


class TextTower(nn.Module):
    """Text transformer and projection into the shared space."""

    def __init__(self, text: TextTransformer, width: int) -> None:
        super().__init__()
        self.text = text
        self.text_projection = nn.Linear(text.positions.shape[1], width, bias=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """tokens of N prompts -> unit vectors [N,D], float32 or wider."""
        return F.normalize(at_least_float32(self.text_projection(self.text(tokens))), dim=-1)


def clip_layout(checkpoint: Checkpoint) -> Layout:
    """The layout of a CLIP checkpoint by its signature key; raises ValueError if it has none."""
    keys = set(checkpoint.keys())
    for layout in LAYOUTS:
        if layout.signature in keys:
            return layout
    expected = " or ".join(layout.signature for layout in LAYOUTS)
    raise ValueError(f"{checkpoint.path}: not a CLIP checkpoint; expected the key {expected}")


def load_image_tower(checkpoint: Checkpoint, config: ClipConfig, placement: Placement) -> ImageTower:
    """The image half of `checkpoint`, every dimension from its tensors and the rest from `config`."""
    layout = clip_layout(checkpoint)
    with torch.device("meta"):
        vision = _vision(checkpoint, layout, config)
        tower = ImageTower(vision, layout.shape(checkpoint, "vision_projection.weight")[0])
    return load_network(tower, checkpoint, layout.ignoring(TEXT_KEYS), placement)


def load_text_tower(checkpoint: Checkpoint, config: ClipConfig, placement: Placement) -> TextTower:
    """The text half of `checkpoint`."""
    layout = clip_layout(checkpoint)
    with torch.device("meta"):
        text = _text(checkpoint, layout, config)
        tower = TextTower(text, layout.shape(checkpoint, "text_projection.weight")[0])
    return load_network(tower, checkpoint, layout.ignoring(IMAGE_KEYS), placement)


def _vision(checkpoint: Checkpoint, layout: Layout, config: ClipConfig) -> VisionTransformer:
    width, _, patch, _ = layout.shape(checkpoint, "vision.patch.weight")
    patches = layout.shape(checkpoint, "vision.positions")[0] - 1
    heads = heads_of(width, config.vision_heads, config.vision_head_width, "vision")
    return VisionTransformer(
        _stack(checkpoint, layout, "vision.blocks.", width, heads, config),
        image_size=isqrt(patches) * patch,
        patch_size=patch,
        pre_norm=True,
        patch_bias=False,
        first_only=True,
    )


def _text(checkpoint: Checkpoint, layout: Layout, config: ClipConfig) -> TextTransformer:
    rows, width = layout.shape(checkpoint, "text.embedding.weight")
    heads = heads_of(width, config.text_heads, 64, "text")
    return TextTransformer(
        _stack(checkpoint, layout, "text.blocks.", width, heads, config),
        rows=rows,
        context=layout.shape(checkpoint, "text.positions")[0],
    )


def _stack(checkpoint: Checkpoint, layout: Layout, blocks: str, width: int, heads: int, config: ClipConfig) -> Stack:
    hidden = layout.shape(checkpoint, f"{blocks}0.fc1.weight")[0]
    return Stack(width, hidden, layout.depth(checkpoint, blocks), heads, config.eps, config.act)


def heads_of(width: int, heads: int, head_width: int, tower: str) -> int:
    """Configured heads, else width / head_width; raises ValueError if they do not divide the width."""
    heads = heads or width // head_width
    if heads < 1 or width % heads:
        raise ValueError(
            f"{tower} tower: width {width} cannot be split into attention heads "
            f"({heads} heads, head width {head_width}); give the configuration file or config="
        )
    return heads
