"""PickScore v1 (Kirstain et al. 2023, arXiv 2305.01569): human preference, a CLIP ViT-H/14."""

import math

from torch import Tensor

from reneg_core.rewards.base import Statistics
from reneg_core.rewards.clip import ClipConfig
from reneg_core.rewards.clip_reward import ClipTextImageReward
from reneg_core.rewards.published import PICKSCORE


class PickScore(ClipTextImageReward):
    """exp(logit_scale) * cosine, about 17 to 24: the same number whatever else is in the batch.

    The published preference probability among images of one prompt is the softmax of these scores.
    """

    name = "pickscore"
    file = PICKSCORE
    clip_defaults = ClipConfig(vision_head_width=80)
    statistics = Statistics(20.5, 1.75, "practical range 17 to 24 read as mean plus or minus two deviations")
    crop = "floor"
    clean = "none"

    def score_features(self, features: Tensor, prompts: list[str]) -> Tensor:
        return math.exp(self.logit_scale) * self.cosine(features, prompts)
