"""LAION aesthetic predictor v2 (improved-aesthetic-predictor): beauty of the picture alone, about 1 to 10."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reneg_core.rewards.base import Statistics
from reneg_core.rewards.checkpoint import Checkpoint
from reneg_core.rewards.clip import ClipConfig, ImageTower
from reneg_core.rewards.clip_reward import ClipImageReward, clip_settings, shared_tower
from reneg_core.rewards.clip_score import CLIP_L14
from reneg_core.rewards.linear_head import LinearHead, load_head
from reneg_core.rewards.preprocess import check_mode
from reneg_core.rewards.weights import PublishedFile, Source, find_file

REPOSITORY = "https://github.com/christophschuhmann/improved-aesthetic-predictor"
HEAD = PublishedFile(
    "sac+logos+ava1-l14-linearMSE.pth",
    size=3_714_759,
    aliases=("sac+logos+ava1-l14-linearMSE.safetensors",),
    copies="saclogosava1|aesthetic",
    signatures=("layers.7.weight",),
    homepage=REPOSITORY,
    url=f"{REPOSITORY}/raw/main/sac+logos+ava1-l14-linearMSE.pth",
)


class Aesthetic(ClipImageReward):
    """A linear head on the unit-length image embedding of OpenAI's CLIP ViT-L/14; prompts are not read.

    The sibling heads with ReLU ("ava+logos-l14-reluMSE.pth") are another network and refused.
    """

    name = "aesthetic"
    needs_prompt = False
    file = CLIP_L14
    published_files = (HEAD, CLIP_L14)
    clip_defaults = ClipConfig(act="quick_gelu")
    statistics = Statistics(5.5, 0.75, "practical range 4 to 7 read as mean plus or minus two deviations")
    options_for_loading: ClassVar[frozenset[str]] = ClipImageReward.options_for_loading - {"vocab", "merges"}

    def __init__(self, tower: ImageTower, head: LinearHead, **options: object) -> None:
        super().__init__(tower, **options)
        if head.weight.shape[1] != tower.vision_projection.out_features:
            raise ValueError(
                f"the aesthetic head reads {head.weight.shape[1]} features, the CLIP tower gives "
                f"{tower.vision_projection.out_features}; expected the weights of ViT-L/14"
            )
        self.head = head

    @classmethod
    def load(
        cls,
        *,
        weights: object = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        clip_weights: object = None,
        config: object = None,
        search_dirs: Sequence[str] = (),
        download: bool = False,
        preprocess: str = "exact",
        shared: dict[Hashable, object] | None = None,
        **options: object,
    ) -> "Aesthetic":
        """See `load_reward`. weights: the head or a directory with it; clip_weights: the CLIP weights (a file or a
        directory), looked for beside the head if not given; config: of the CLIP tower."""
        check_mode(preprocess)
        source = Source.of(weights, search_dirs, download)
        head_file = Checkpoint(_not_relu(find_file(HEAD, source)))
        head = load_head(head_file, "layers.", device=device, dtype=dtype)
        clip_source = (
            source.beside(head_file.path) if clip_weights is None else Source.of(clip_weights, search_dirs, download)
        )
        checkpoint = Checkpoint(find_file(cls.file, clip_source))
        settings = clip_settings(checkpoint, config, cls.clip_defaults)
        tower = shared_tower(checkpoint, settings, device, dtype, shared)
        return cls(tower, head, preprocess=preprocess, **options)

    def score_features(self, features: Tensor, prompts: list[str]) -> Tensor:
        return self.head(F.normalize(features, dim=-1))


def _not_relu(path: Path) -> Path:
    if "relu" in path.name.lower():
        raise ValueError(
            f"{path} is a head with ReLU activations, another network; expected {HEAD.name} ({REPOSITORY})"
        )
    return path
