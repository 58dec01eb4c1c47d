"""Base of the rewards that judge with CLIP features: towers, preprocessing, cached text features."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reneg_core.rewards.base import Reward, device_of, ordinary_tensors
from reneg_core.rewards.checkpoint import Checkpoint, Placement, check_finite
from reneg_core.rewards.clip import (
    ClipConfig,
    ImageTower,
    TextTower,
    is_clip_config,
    load_image_tower,
    load_text_tower,
    read_clip_config,
)
from reneg_core.rewards.precision import isolated_float16_gradient, own_precision
from reneg_core.rewards.preprocess import check_mode, preprocessing_bytes, shortest_edge_crop
from reneg_core.rewards.published import PublishedFile
from reneg_core.rewards.tokenizers import Tokenizer
from reneg_core.rewards.vocabulary import find_clip_tokenizer, locate_clip
from reneg_core.rewards.weights import Source, open_published, read_json, read_json_beside

CACHED_PROMPTS = 8192
PROMPTS_PER_PASS = 32


class ClipImageReward(Reward):
    """A reward on the image features of a CLIP tower.

    Subclasses set `file`, `clip_defaults` and `crop`, and implement `score_features`. `tower` may be shared with
    other rewards; rewards with the same `feature_key` read identical features.
    """

    file: PublishedFile
    clip_defaults = ClipConfig()
    crop = "round"
    options_for_loading: ClassVar[frozenset[str]] = frozenset(
        {"weights", "config", "vocab", "merges", "preprocess", "checkpointing", "memory_budget"}
    )

    def __init__(
        self,
        tower: ImageTower,
        preprocess: str = "exact",
        checkpointing: bool = False,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        check_mode(preprocess)
        self.tower, self.mode = tower, preprocess
        self.memory_budget = memory_budget or self.memory_budget
        tower.vision.blocks.checkpointing = checkpointing

    @property
    def feature_key(self) -> Hashable:
        """Equal for rewards whose `features` are equal on every image."""
        return (id(self.tower), self.crop, self.mode)

    def preprocess(self, images: Tensor) -> Tensor:
        """images [B,3,H,W] in [0,1] or uint8 -> the network's normalised pixels [B,3,S,S]."""
        return shortest_edge_crop(images, self.tower.vision.image_size, self.mode, self.crop)

    def features(self, pixels: Tensor) -> Tensor:
        """The network alone: pixels [B,3,S,S] preprocessed and normalised -> features [B,D], not of unit length."""
        return isolated_float16_gradient(self.tower, pixels, self.tower.vision.positions.dtype)

    def score_features(self, features: Tensor, prompts: list[str]) -> Tensor:
        """features [B,D] of images and prompts of length B -> [B]."""
        raise NotImplementedError

    def bytes_per_image(self, height: int, width: int, gradient: bool) -> int:
        return self.tower.vision.bytes_per_image(gradient) + preprocessing_bytes(height, width)

    def _score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self.score_features(self.features(pixels), prompts)


class ClipTextImageReward(ClipImageReward):
    """A CLIP reward that compares image with prompt; text features are computed once per prompt.

    clean: how the published tokenizer cleans prompts, see `Tokenizer`.
    """

    clean = "ftfy"

    def __init__(
        self, tower: ImageTower, text: TextTower, tokenizer: Tokenizer, logit_scale: float, **options: object
    ) -> None:
        super().__init__(tower, **options)
        self.text, self.tokenizer, self.logit_scale = text, tokenizer, logit_scale
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def load(cls, source: Source, placement: Placement, **options: object) -> "ClipTextImageReward":
        """See `load_reward`. source.config: mapping or JSON path with what the shapes do not tell
        (`read_clip_config`)."""
        check_mode(options.get("preprocess", "exact"))
        checkpoint = open_published(cls.file, source)
        settings = clip_settings(checkpoint, source.config, cls.clip_defaults)
        tower = shared_tower(checkpoint, settings, placement)
        text = load_text_tower(checkpoint, settings, placement)
        tokenizer = find_clip_tokenizer(
            source.beside(checkpoint.path),
            rows=text.text.embedding.num_embeddings,
            context=len(text.text.positions),
            clean=cls.clean,
        )
        return cls(tower, text, tokenizer, _logit_scale(checkpoint), **options)

    @classmethod
    def locate(cls, source: Source) -> dict[PublishedFile, Path | None]:
        return locate_clip([cls.file], source)

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        return self.tokenizer(prompts).truncated if prompts else []

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """prompts of any number N >= 1 -> unit vectors [N,D] without graph; each different prompt is encoded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        with ordinary_tensors(), own_precision(device_of(self)):
            for start in range(0, len(new), PROMPTS_PER_PASS):
                batch = new[start : start + PROMPTS_PER_PASS]
                self._cache.update(zip(batch, self.text(self.tokenizer(batch)), strict=True))
        features = torch.stack([self._cache[prompt] for prompt in prompts])
        while len(self._cache) > CACHED_PROMPTS:
            self._cache.popitem(last=False)
        return features

    def cosine(self, features: Tensor, prompts: list[str]) -> Tensor:
        """Cosine similarity [B] of image features [B,D] and prompts of length B."""
        return (F.normalize(features, dim=-1) * self.text_features(prompts)).sum(-1)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "ClipTextImageReward":
        self._cache.clear()  # the cached features belong to the old device and dtype
        return super()._apply(function, recurse)


def clip_settings(checkpoint: Checkpoint, config: object, defaults: ClipConfig) -> ClipConfig:
    """Configuration as given, else from the JSON beside the weights, else the published model's."""
    raw = (
        read_json(config)
        if config is not None
        else read_json_beside(checkpoint.path, ("config.json", "open_clip_config.json"), is_clip_config)
    )
    return read_clip_config(raw, defaults)


def shared_tower(checkpoint: Checkpoint, settings: ClipConfig, placement: Placement) -> ImageTower:
    """The image tower of the file, loaded once per placement."""
    key = ("image tower", checkpoint.path.resolve(), settings)
    if key not in placement.shared:
        placement.shared[key] = load_image_tower(checkpoint, settings, placement)
    return placement.shared[key]


def _logit_scale(checkpoint: Checkpoint) -> float:
    return float(check_finite(checkpoint, "logit_scale", checkpoint.tensor("logit_scale")))
