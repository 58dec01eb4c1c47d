"""CLIPScore: agreement of image and prompt by OpenAI's CLIP (Radford et al. 2021; Hessel et al. 2021, 2104.08718)."""

from torch import Tensor

from reneg_core.rewards.base import Statistics
from reneg_core.rewards.clip import LAYOUTS, ClipConfig
from reneg_core.rewards.clip_reward import ClipTextImageReward
from reneg_core.rewards.weights import PublishedFile

SIGNATURES = tuple(layout.signature for layout in LAYOUTS)
CLIP_L14 = PublishedFile(
    "model.safetensors",
    "openai/clip-vit-large-patch14",
    1_710_000_000,
    aliases=("ViT-L-14.safetensors",),
    copies="clipscore|clipvitl|vitl14",
    signatures=SIGNATURES,
)
CLIP_B32 = PublishedFile(
    "model.safetensors",
    "openai/clip-vit-base-patch32",
    605_000_000,
    aliases=("ViT-B-32.safetensors",),
    copies="clipvitb|vitb32",
    signatures=SIGNATURES,
)
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
