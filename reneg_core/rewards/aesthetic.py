"""LAION aesthetic predictor v2 (improved-aesthetic-predictor): beauty of the picture alone, about 1 to 10."""

from pathlib import Path
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from reneg_core.rewards.base import Statistics
from reneg_core.rewards.checkpoint import Placement
from reneg_core.rewards.clip import ClipConfig, ImageTower
from reneg_core.rewards.clip_reward import ClipImageReward, clip_settings, shared_tower
from reneg_core.rewards.linear_head import LinearHead, load_head
from reneg_core.rewards.preprocess import check_mode
from reneg_core.rewards.published import AESTHETIC_HEAD, AESTHETIC_PAGE, CLIP_L14
from reneg_core.rewards.recognition import open_as
from reneg_core.rewards.weights import Source, find_file, open_published


class Aesthetic(ClipImageReward):
    """A linear head on the unit-length image embedding of OpenAI's CLIP ViT-L/14; prompts are not read.

    The sibling heads with ReLU ("ava+logos-l14-reluMSE.pth") are another network and refused.
    """

    name = "aesthetic"
    needs_prompt = False
    file = CLIP_L14
    published_files = (AESTHETIC_HEAD, CLIP_L14)
    clip_defaults = ClipConfig(act="quick_gelu")
    statistics = Statistics(5.5, 0.75, "practical range 4 to 7 read as mean plus or minus two deviations")
    options_for_loading: ClassVar[frozenset[str]] = ClipImageReward.options_for_loading - {"vocab", "merges"} | {
        "clip_weights"
    }

    def __init__(self, tower: ImageTower, head: LinearHead, **options: object) -> None:
        super().__init__(tower, **options)
        if head.weight.shape[1] != tower.vision_projection.out_features:
            raise ValueError(
                f"the aesthetic head reads {head.weight.shape[1]} features, the CLIP tower gives "
                f"{tower.vision_projection.out_features}; expected the weights of ViT-L/14"
            )
        self.head = head

    @classmethod
    def load(cls, source: Source, placement: Placement, **options: object) -> "Aesthetic":
        """See `load_reward`. source.weights: the head or a directory with it; source.clip_weights: the CLIP weights (a
        file or a directory), looked for beside the head if not given; source.config: of the CLIP tower."""
        check_mode(options.get("preprocess", "exact"))
        head_file = open_as(AESTHETIC_HEAD, _not_relu(find_file(AESTHETIC_HEAD, source)))
        head = load_head(head_file, "layers.", placement)
        beside = source.clip_weights is None
        checkpoint = open_published(
            cls.file, source.beside(head_file.path) if beside else source.at(source.clip_weights)
        )
        settings = clip_settings(checkpoint, source.config, cls.clip_defaults)
        return cls(shared_tower(checkpoint, settings, placement), head, **options)

    def score_features(self, features: Tensor, prompts: list[str]) -> Tensor:
        return self.head(F.normalize(features, dim=-1))


def _not_relu(path: Path) -> Path:
    if "relu" in path.name.lower():
        raise ValueError(
            f"{path} is a head with ReLU activations, another network; "
            f"expected {AESTHETIC_HEAD.name} ({AESTHETIC_PAGE})"
        )
    return path
