"""ImageReward's network: a BLIP vision tower and a BERT that attends to it in every layer.

Xu et al. 2023 (arXiv 2304.05977) on Li et al. 2022 (BLIP, arXiv 2201.12086). Written here rather than taken from
transformers' Blip classes: those are eager-only, keep 23 % more memory for backward (269 against 219 MB per image at
full size, measured), cannot checkpoint a frozen network in eval mode, and need a key mapping as well.
Shapes: B images with one prompt each, T text tokens, I image tokens, W text width, V vision width.
"""

import torch
from torch import Tensor, nn

from reneg_core.rewards.checkpoint import Layout, Rule
from reneg_core.rewards.tokenizers import Tokens
from reneg_core.rewards.transformer import Stack, VisionTransformer, activation, attend, remember_less

_TEXT = "blip.text_encoder."
_LAYER = rf"{_TEXT}encoder.layer.\1."


def _attention_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    layer = rf"text\.layers\.(\d+)\.{ours}\."
    return (
        Rule(layer + r"query\.(\w+)", (rf"{_LAYER}{theirs}.self.query.\2",)),
        Rule(layer + r"key_value\.(\w+)", (rf"{_LAYER}{theirs}.self.key.\2", rf"{_LAYER}{theirs}.self.value.\2")),
        Rule(layer + r"dense\.(\w+)", (rf"{_LAYER}{theirs}.output.dense.\2",)),
        Rule(layer + r"norm\.(\w+)", (rf"{_LAYER}{theirs}.output.LayerNorm.\2",)),
    )


_BLOCK = r"blip.visual_encoder.blocks.\1."
LAYOUT = Layout(
    "blip.visual_encoder.cls_token",
    (
        Rule(r"vision\.class_token", ("blip.visual_encoder.cls_token",)),
        Rule(r"vision\.positions", ("blip.visual_encoder.pos_embed",)),
        Rule(r"vision\.patch\.(\w+)", (r"blip.visual_encoder.patch_embed.proj.\1",)),
        Rule(r"vision\.blocks\.(\d+)\.(norm[12]\.\w+)", (_BLOCK + r"\2",)),
        Rule(r"vision\.blocks\.(\d+)\.((qkv|proj)\.\w+)", (_BLOCK + r"attn.\2",)),
        Rule(r"vision\.blocks\.(\d+)\.(fc[12]\.\w+)", (_BLOCK + r"mlp.\2",)),
        Rule(r"vision\.norm\.(\w+)", (r"blip.visual_encoder.norm.\1",)),
        Rule(r"text\.embedding\.weight", (_TEXT + "embeddings.word_embeddings.weight",)),
        Rule(r"text\.positions", (_TEXT + "embeddings.position_embeddings.weight",)),
        Rule(r"text\.norm\.(\w+)", (_TEXT + r"embeddings.LayerNorm.\1",)),
        *_attention_rules("attention", "attention"),
        *_attention_rules("cross", "crossattention"),
        Rule(r"text\.layers\.(\d+)\.fc1\.(\w+)", (_LAYER + r"intermediate.dense.\2",)),
        Rule(r"text\.layers\.(\d+)\.fc2\.(\w+)", (_LAYER + r"output.dense.\2",)),
        Rule(r"text\.layers\.(\d+)\.norm\.(\w+)", (_LAYER + r"output.LayerNorm.\2",)),
    ),
    ignored=(r"blip\.text_encoder\.embeddings\.position_ids", r"blip\.(vision|text)_proj\..*", r"mlp\.layers\..*"),
)


class Attention(nn.Module):
    """norm(x + dense(attention of x over context)), BERT's post-norm attention."""

    def __init__(self, width: int, context_width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(context_width, 2 * width)
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B,Tq,W], context [B,Tk,C], mask [B,1,1,Tk] True where visible -> [B,Tq,W]."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        return self.norm(x + self.dense(attend(self.query(x), key, value, self.heads, mask=mask)))


class TextLayer(nn.Module):
    """Self-attention, attention to the image, MLP; each followed by a LayerNorm."""

    def __init__(self, stack: Stack, image_width: int) -> None:
        super().__init__()
        width, hidden, heads, eps = stack.width, stack.hidden, stack.heads, stack.eps
        self.attention, self.cross = Attention(width, width, heads, eps), Attention(width, image_width, heads, eps)
        self.fc1, self.fc2, self.norm = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.LayerNorm(width, eps)
        self.act = activation(stack.act)

    def forward(self, x: Tensor, image: Tensor, mask: Tensor, first_only: bool) -> Tensor:
        """x [B,T,W], image [B,I,V] -> [B,T,W], or [B,1,W] if only the first token's output is wanted."""
        x = self.cross(self.attention(x[:, :1] if first_only else x, x, mask), image)
        return self.norm(x + self.fc2(self.act(self.fc1(x))))


class TextEncoder(nn.Module):
    """BERT over the prompt, bidirectional, read at [CLS]."""

    checkpointing = False

    def __init__(self, stack: Stack, *, rows: int, context: int, image_width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, stack.width)
        self.positions = nn.Parameter(torch.zeros(context, stack.width))
        self.norm = nn.LayerNorm(stack.width, stack.eps)
        self.layers = nn.ModuleList(TextLayer(stack, image_width) for _ in range(stack.depth))

    def forward(self, tokens: Tokens, image: Tensor) -> Tensor:
        """tokens of B prompts, image [B,I,V] -> [B,W]."""
        ids, lengths = tokens.ids.to(image.device), tokens.lengths.to(image.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])[:, None, None]
        x = self.norm(self.embedding(ids) + self.positions[: ids.shape[1]])
        for i, layer in enumerate(self.layers):
            arguments = (image, mask, i == len(self.layers) - 1)
            x = self._checkpointed(layer, x, *arguments) if self.checkpointing else layer(x, *arguments)
        return x[:, 0]

    @staticmethod
    def _checkpointed(layer: TextLayer, x: Tensor, image: Tensor, mask: Tensor, first_only: bool) -> Tensor:
        return remember_less(lambda context: layer(x, context, mask, first_only), image)


class BlipNetwork(nn.Module):
    """Image tokens, then the prompt's [CLS] after it has looked at them."""

    def __init__(self, vision: VisionTransformer, text: TextEncoder) -> None:
        super().__init__()
        self.vision, self.text = vision, text

    def forward(self, pixels: Tensor, tokens: Tokens) -> Tensor:
        """pixels [B,3,S,S] normalised, tokens of B prompts -> [B,W]."""
        return self.text(tokens, self.vision(pixels.to(self.vision.positions.dtype)))
