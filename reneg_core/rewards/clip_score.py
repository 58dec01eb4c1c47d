"""CLIPScore: agreement of image and prompt by OpenAI's CLIP (Radford et al. 2021; Hessel et al. 2021, 2104.08718)."""

from typing import ClassVar

from torch import Tensor

from reneg_core.rewards.base import Statistics
from reneg_core.rewards.clip import ClipConfig
from reneg_core.rewards.clip_reward import ClipTextImageReward
from reneg_core.rewards.published import CLIP_B32, CLIP_L14

VARIANTS = {"cosine": "", "hessel": "-hessel", "percent": "-percent"}
RANGE = "practical range 0.15 to 0.35 read as mean plus or minus two deviations"


class ClipScore(ClipTextImageReward):
    """CLIPScore with ViT-L/14.

    variant: "cosine" (as shipped with ImageReward, about 0.15 to 0.35), "hessel" 2.5 * max(cosine, 0), or "percent"
    100 * max(cosine, 0) (torchmetrics). The reward's name carries the variant.
    """

    name = "clip_score"
    file = CLIP_L14
    clip_defaults = ClipConfig(act="quick_gelu")
    options_for_loading: ClassVar[frozenset[str]] = ClipTextImageReward.options_for_loading | {"variant"}

    def __init__(self, *towers: object, variant: str = "cosine", **options: object) -> None:
        super().__init__(*towers, **options)
        if variant not in VARIANTS:
            raise ValueError(f"variant: got {variant!r}, expected one of {', '.join(VARIANTS)}")
        self.variant, self.name = variant, self.name + VARIANTS[variant]
        factor = self._factor()
        self.statistics = Statistics(0.25 * factor, 0.05 * factor, RANGE)

    def score_features(self, features: Tensor, prompts: list[str]) -> Tensor:
        cosine = self.cosine(features, prompts)
        return cosine if self.variant == "cosine" else self._factor() * cosine.clamp(min=0)

    def _factor(self) -> float:
        return {"cosine": 1.0, "hessel": 2.5, "percent": 100.0}[self.variant]


class ClipScoreB32(ClipScore):
    """CLIPScore with ViT-B/32."""

    name = "clip_score_b32"
    file = CLIP_B32
