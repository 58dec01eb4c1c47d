"""The pre-norm transformer blocks and the vision tower that all published reward models share.

One implementation serves BLIP (ImageReward) and CLIP (the others): they differ in key names, epsilon, activation and
two norms, all of which are arguments. Our own code rather than transformers' modules because it attends with
torch's fused kernel everywhere, evaluates only the token that is read in the last block, checkpoints in eval mode,
and does not follow API changes of a modelling library that the user may upgrade. Shapes: B batch, T tokens, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}
SAVED_BY_ACTIVATION = {"gelu": 1, "quick_gelu": 2}  # tensors of its input's size, for backward


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation by its configuration name; raises ValueError for one that no supported model uses."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: got {name!r}, expected one of {', '.join(ACTIVATIONS)} (exact, not tanh, GELU)")
    return ACTIVATIONS[name]


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Multi-head attention of query [B,Tq,W] over key, value [B,Tk,W]; mask [B,1,1,Tk] is True where visible."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
    mixed = F.scaled_dot_product_attention(*split, attn_mask=mask, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Stack:
    """What a stack of transformer blocks is built from: token width, width inside the MLP, number of blocks, attention
    heads, LayerNorm epsilon, activation by name."""

    width: int
    hidden: int
    depth: int
    heads: int
    eps: float
    act: str


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); `qkv` is fused in that order."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        width, hidden = stack.width, stack.hidden
        self.heads, self.act = stack.heads, activation(stack.act)
        self.norm1, self.norm2 = nn.LayerNorm(width, stack.eps), nn.LayerNorm(width, stack.eps)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, causal: bool = False, first_only: bool = False) -> Tensor:
        """x [B,T,W] -> [B,T,W], or [B,1,W] if only the first token's output is wanted."""
        h = self.norm1(x)
        if first_only:
            x = x[:, :1]
            query, (key, value) = self._project(h[:, :1], 0, 1), self._project(h, 1, 3).chunk(2, dim=-1)
        else:
            query, key, value = self.qkv(h).chunk(3, dim=-1)
        x = x + self.proj(attend(query, key, value, self.heads, causal=causal))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))

    def _project(self, h: Tensor, first: int, last: int) -> Tensor:
        rows = slice(first * h.shape[-1], last * h.shape[-1])
        return F.linear(h, self.qkv.weight[rows], self.qkv.bias[rows])


class Blocks(nn.ModuleList):
    """A stack of blocks; `checkpointing` recomputes each in backward instead of keeping its activations."""

    checkpointing = False

    def run(self, x: Tensor, causal: bool = False, first_only: bool = False) -> Tensor:
        """x [B,T,W] through all blocks; `first_only` applies to the last."""
        for i, block in enumerate(self):
            arguments = (x, causal, first_only and i == len(self) - 1)
            x = remember_less(block, *arguments) if self.checkpointing else block(*arguments)
        return x


def remember_less(module: Callable[..., Tensor], x: Tensor, *arguments: object) -> Tensor:
    """module(x, *arguments), recomputed in backward when x carries a graph."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return module(x, *arguments)
    return checkpoint(module, x, *arguments, use_reentrant=False, preserve_rng_state=False)


class VisionTransformer(nn.Module):
    """ViT over patches with a class token and learned positions.

    first_only: the caller reads only the class token (CLIP); otherwise all tokens (BLIP).
    pre_norm: a LayerNorm before the blocks (CLIP). patch_bias: bias of the patch embedding (BLIP).
    """

    def __init__(
        self, stack: Stack, *, image_size: int, patch_size: int, pre_norm: bool, patch_bias: bool, first_only: bool
    ) -> None:
        super().__init__()
        width = stack.width
        self.stack, self.image_size, self.first_only = stack, image_size, first_only
        self.patch = nn.Conv2d(3, width, patch_size, patch_size, bias=patch_bias)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros((image_size // patch_size) ** 2 + 1, width))
        self.pre_norm = nn.LayerNorm(width, stack.eps) if pre_norm else nn.Identity()
        self.blocks = Blocks(Block(stack) for _ in range(stack.depth))
        self.norm = nn.LayerNorm(width, stack.eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B,3,S,S], normalised -> tokens after the final norm [B,T,W], T = 1 if `first_only`."""
        patches = self.patch(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(pixels), 1, -1), patches], dim=1) + self.positions
        return self.norm(self.blocks.run(self.pre_norm(tokens), first_only=self.first_only))

    def bytes_per_image(self, gradient: bool) -> int:
        """Working memory of one image: the activations alive at once, and with gradient those kept for backward.

        With frozen weights a block keeps the inputs of its norms (2 widths), query, key and value (3), what attention
        gives (1) and one more for the residual, and what its activation saves of the MLP's hidden layer.
        """
        stack = self.stack
        block = 7 * stack.width + SAVED_BY_ACTIVATION[stack.act] * stack.hidden
        kept = stack.depth * (stack.width if self.blocks.checkpointing else block) if gradient else 0
        working = 8 * stack.width + 2 * stack.hidden
        return len(self.positions) * self.positions.element_size() * (kept + working)
