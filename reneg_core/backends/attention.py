"""Attention guidance in diffusers' networks with cross-attention: processors around those that are there."""

from typing import Any

from torch import Tensor, nn

from ..guidance import attend


class GuidedProcessor:
    """Does what ``inner`` does; in a cross-attention that is told of ``negative`` tokens, guides its output away from
    what they give for the same query.

    What to do comes with each call, so that activations that are computed again in the backward pass are the same.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *rest: Any,
        negative: Tensor | None = None,
        strength: float = 0.0,
        **others: Any,
    ) -> Tensor:
        def output(tokens: Tensor | None) -> Tensor:
            return self.inner(attn, hidden_states, tokens, attention_mask, temb, *rest, **others)

        positive = output(encoder_hidden_states)
        if negative is None or encoder_hidden_states is None:
            return positive
        return attend(positive, output(negative), strength)


def guide_attention(network: nn.Module) -> None:
    """Put processors that can be told of a negative around all of the network's own, once."""
    own = network.attn_processors
    if not all(isinstance(processor, GuidedProcessor) for processor in own.values()):
        network.set_attn_processor({name: GuidedProcessor(processor) for name, processor in own.items()})
