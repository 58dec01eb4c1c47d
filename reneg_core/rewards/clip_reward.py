"""Base of the rewards that judge with CLIP features: towers, preprocessing, cached text features."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reneg_core.rewards.base import Reward, ordinary_tensors
from reneg_core.rewards.checkpoint import Checkpoint
from reneg_core.rewards.clip import (
    ClipConfig,
    ImageTower,
    TextTower,
    is_clip_config,
    load_image_tower,
    load_text_tower,
    read_clip_config,
)
from reneg_core.rewards.precision import at_least_float32, isolated_float16_gradient
from reneg_core.rewards.preprocess import check_mode, preprocessing_bytes, shortest_edge_crop
from reneg_core.rewards.tokenizers import Tokenizer
from reneg_core.rewards.vocabulary import CLIP_TOKENIZER, VocabPath, find_clip_tokenizer
from reneg_core.rewards.weights import PublishedFile, Source, find_file, read_json, read_json_beside

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
        {
            "config",
            "vocab",
            "merges",
            "search_dirs",
            "download",
            "preprocess",
            "checkpointing",
            "memory_budget",
            "shared",
        }
    )

    def __init__(
        self, tower: ImageTower, preprocess: str, checkpointing: bool = False, memory_budget: int | None = None
    ) -> None:
        super().__init__()
        check_mode(preprocess)
        self.tower, self.mode = tower, preprocess
        self.memory_budget = memory_budget or self.memory_budget
        tower.vision.blocks.checkpointing = checkpointing

    @property
    def feature_key(self) -> Hashable:
        """Equal for rewards whose `image_features` are equal on every image."""
        return (id(self.tower), self.crop, self.mode)

    def preprocess(self, images: Tensor) -> Tensor:
        """images [B,3,H,W] in [0,1] -> the network's normalised pixels [B,3,S,S]."""
        return shortest_edge_crop(images, self.tower.vision.image_size, self.mode, self.crop)

    def image_features(self, images: Tensor) -> Tensor:
        """images [B,3,H,W] in [0,1] -> features [B,D], not of unit length."""
        chunks = images.split(self.images_per_pass(images))
        return torch.cat([self._pixel_features(self.preprocess(at_least_float32(chunk))) for chunk in chunks])

    def score_features(self, features: Tensor, prompts: list[str]) -> Tensor:
        """features [B,D] of images and prompts of length B -> [B]."""
        raise NotImplementedError

    def score_pixels(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """The network alone: pixels [B,3,S,S] already preprocessed and normalised, prompts of length B -> [B]."""
        return self.score_features(self._pixel_features(pixels), prompts)

    def bytes_per_image(self, height: int, width: int, gradient: bool) -> int:
        return self.tower.vision.bytes_per_image(gradient) + preprocessing_bytes(height, width)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.score_pixels(self.preprocess(at_least_float32(images)), prompts)

    def _pixel_features(self, pixels: Tensor) -> Tensor:
        return isolated_float16_gradient(self.tower, pixels, self.tower.vision.positions.dtype)


class ClipTextImageReward(ClipImageReward):
    """A CLIP reward that compares image with prompt; text features are computed once per prompt.

    clean: how the published tokenizer cleans prompts, see `Tokenizer`.
    """

    clean = "ftfy"

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        if "file" in cls.__dict__:
            cls.published_files = (cls.file, CLIP_TOKENIZER)

    def __init__(
        self, tower: ImageTower, text: TextTower, tokenizer: Tokenizer, logit_scale: float, **options: object
    ) -> None:
        super().__init__(tower, **options)
        self.text, self.tokenizer, self.logit_scale = text, tokenizer, logit_scale
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def load(
        cls,
        *,
        weights: object = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        config: object = None,
        vocab: VocabPath | None = None,
        merges: VocabPath | None = None,
        search_dirs: Sequence[str] = (),
        download: bool = False,
        preprocess: str = "exact",
        shared: dict[Hashable, object] | None = None,
        **options: object,
    ) -> "ClipTextImageReward":
        """See `load_reward`. config: mapping or JSON path with what the shapes do not tell (`read_clip_config`)."""
        check_mode(preprocess)
        source = Source.of(weights, search_dirs, download)
        checkpoint = Checkpoint(find_file(cls.file, source))
        settings = clip_settings(checkpoint, config, cls.clip_defaults)
        tower = shared_tower(checkpoint, settings, device, dtype, shared)
        text = load_text_tower(checkpoint, settings, device, dtype)
        tokenizer = find_clip_tokenizer(
            vocab,
            merges,
            source.beside(checkpoint.path),
            rows=text.text.embedding.num_embeddings,
            context=len(text.text.positions),
            clean=cls.clean,
        )
        logit_scale = float(checkpoint.tensor("logit_scale"))
        return cls(tower, text, tokenizer, logit_scale, preprocess=preprocess, **options)

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        return self.tokenizer(prompts).truncated if prompts else []

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """prompts of any number N >= 1 -> unit vectors [N,D] without graph; each different prompt is encoded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        with ordinary_tensors():
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


def shared_tower(
    checkpoint: Checkpoint,
    settings: ClipConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    shared: dict[Hashable, object] | None,
) -> ImageTower:
    """The image tower of the file, loaded once per mix."""
    shared = {} if shared is None else shared
    key = ("image tower", checkpoint.path.resolve(), settings, str(device), dtype)
    if key not in shared:
        shared[key] = load_image_tower(checkpoint, settings, device, dtype)
    return shared[key]
