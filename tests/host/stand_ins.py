"""A node for the tests, which lies beside the pack in custom_nodes: a small random network of any architecture as
MODEL, CLIP and VAE, in place of the loaders of what has no small file."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "inside"))

from networks import NETWORKS, Clip, model_of, vae_of


class StandIn:
    """A network of ``networks.NETWORKS``."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "build"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"network": (sorted(NETWORKS),)}}

    def build(self, network: str) -> tuple[Any, Any, Any]:
        model = model_of(NETWORKS[network])
        return model, Clip(NETWORKS[network].text), vae_of(model)


NODE_CLASS_MAPPINGS = {"StandIn": StandIn}
