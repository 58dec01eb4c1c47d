"""HPSv2 and HPSv2.1 (Wu et al. 2023, arXiv 2306.09341): human preference, a CLIP ViT-H/14 fine-tuned twice."""

from torch import Tensor

from reneg_core.rewards.base import Statistics
from reneg_core.rewards.clip import ClipConfig
from reneg_core.rewards.clip_reward import ClipTextImageReward
from reneg_core.rewards.preprocess import longest_edge_pad
from reneg_core.rewards.published import HPSV20, HPSV21

TABLE = "mean and spread of the 22 generators in the published benchmark table (HPSv2 README), cosine"


class HPSv2(ClipTextImageReward):
    """Cosine of image and prompt, about 0.15 to 0.35; the benchmark tables show it times 100.

    The version is part of the name because the two are not comparable. The image is padded to a square, not cropped.
    antialias: True is what the `hpsv2` package computes with torchvision >= 0.17; False is what it computed when the
    models were trained and the published tables were made. The names ending in "-no-antialias" select it.
    """

    clip_defaults = ClipConfig(vision_head_width=80)
    antialias = True

    @property
    def feature_key(self) -> tuple[object, ...]:
        return (*super().feature_key, self.antialias)

    def preprocess(self, images: Tensor) -> Tensor:
        return longest_edge_pad(images, self.tower.vision.image_size, self.mode, self.antialias)

    def score_features(self, features: Tensor, prompts: list[str]) -> Tensor:
        return self.cosine(features, prompts)


class HPSv20(HPSv2):
    """HPSv2 as first released ("v2.0")."""

    name = "hpsv2.0"
    file = HPSV20
    statistics = Statistics(0.2667, 0.0116, TABLE)


class HPSv21(HPSv2):
    """HPSv2.1, the release that ReNeg trains on."""

    name = "hpsv2.1"
    file = HPSV21
    statistics = Statistics(0.2501, 0.0462, TABLE)


class HPSv20NoAntialias(HPSv20):
    """HPSv2.0 with the resize of its published tables."""

    name = "hpsv2.0-no-antialias"
    antialias = False


class HPSv21NoAntialias(HPSv21):
    """HPSv2.1 with the resize of its published tables."""

    name = "hpsv2.1-no-antialias"
    antialias = False
