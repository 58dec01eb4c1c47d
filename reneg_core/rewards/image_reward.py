"""ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977): human preference for image and prompt, standardised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor

from reneg_core.rewards.base import Reward, Statistics
from reneg_core.rewards.blip import LAYOUT, BlipNetwork, TextEncoder
from reneg_core.rewards.checkpoint import Checkpoint, Placement, load_network
from reneg_core.rewards.clip import heads_of
from reneg_core.rewards.linear_head import LinearHead, load_head
from reneg_core.rewards.precision import isolated_float16_gradient
from reneg_core.rewards.preprocess import check_mode, preprocessing_bytes, shortest_edge_crop
from reneg_core.rewards.published import BERT_VOCAB, IMAGE_REWARD
from reneg_core.rewards.tokenizers import Tokenizer
from reneg_core.rewards.transformer import Stack, VisionTransformer
from reneg_core.rewards.vocabulary import find_bert_tokenizer
from reneg_core.rewards.weights import Source, open_published, read_json, read_json_beside

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw head output, published with the model
CONTEXT = 35  # tokens of the prompt that the published pipeline reads

MED_CONFIG = "med_config.json"
HEADS = ("heads", "num_heads", "num_attention_heads")  # names of the number of heads in a "vision" section


@dataclass(frozen=True)
class BlipConfig:
    """What tensor shapes do not tell. Heads 0: width / 64. The epsilons are those of timm's ViT and of BERT."""

    vision_heads: int = 0
    vision_eps: float = 1e-6
    vision_act: str = "gelu"
    text_heads: int = 0
    text_eps: float = 1e-12
    text_act: str = "gelu"


class ImageReward(Reward):
    """(head - MEAN) / STD of the [CLS] token; roughly standard normal on diffusion images.

    The image's shortest edge is resized to 224 and its centre cropped; the prompt is cut after 35 tokens.
    """

    name = "image_reward"
    statistics = Statistics(0.0, 1.0, "published with the model: its score is standardised")
    options_for_loading: ClassVar[frozenset[str]] = frozenset(
        {"weights", "config", "vocab", "preprocess", "checkpointing", "memory_budget"}
    )
    published_files = (IMAGE_REWARD, BERT_VOCAB)

    def __init__(
        self,
        network: BlipNetwork,
        head: LinearHead,
        tokenizer: Tokenizer,
        *,
        preprocess: str = "exact",
        checkpointing: bool = False,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        check_mode(preprocess)
        self.network, self.head, self.tokenizer, self.mode = network, head, tokenizer, preprocess
        self.memory_budget = memory_budget or self.memory_budget
        network.vision.blocks.checkpointing = network.text.checkpointing = checkpointing

    @classmethod
    def load(cls, source: Source, placement: Placement, **options: object) -> "ImageReward":
        """See `load_reward`. source.config: mapping or JSON path, the published `med_config.json` or
        {"med_config": ..., "vision": {"heads": ...}}; source.vocab: bert-base-uncased's `vocab.txt`, a directory or
        hub id."""
        check_mode(options.get("preprocess", "exact"))
        checkpoint = open_published(IMAGE_REWARD, source)
        given = {} if source.config is None else _nested(read_json(source.config))
        network = load_blip(checkpoint, read_blip_config(_merged(_beside(checkpoint), given)), placement)
        head = load_head(checkpoint, "mlp.layers.", placement, ignored=(r"blip\..*",))
        rows, positions = len(network.text.embedding.weight), len(network.text.positions)
        tokenizer = find_bert_tokenizer(source.beside(checkpoint.path), rows, min(CONTEXT, positions))
        return cls(network, head, tokenizer, **options)

    def preprocess(self, images: Tensor) -> Tensor:
        """images [B,3,H,W] in [0,1] or uint8 -> the network's normalised pixels [B,3,S,S]."""
        return shortest_edge_crop(images, self.network.vision.image_size, self.mode, "round")

    def _score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(prompts)
        features = isolated_float16_gradient(
            lambda part: self.network(part, tokens), pixels, self.network.vision.positions.dtype
        )
        return (self.head(features) - MEAN) / STD

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        return self.tokenizer(prompts).truncated if prompts else []

    def bytes_per_image(self, height: int, width: int, gradient: bool) -> int:
        vision, text = self.network.vision, self.network.text
        cross = 2 * len(vision.positions) * text.positions.shape[1] * vision.positions.element_size()
        kept = len(text.layers) if gradient and not text.checkpointing else 1
        return vision.bytes_per_image(gradient) + kept * cross + preprocessing_bytes(height, width)


def load_blip(checkpoint: Checkpoint, config: BlipConfig, placement: Placement) -> BlipNetwork:
    """The network of `checkpoint`, every dimension from its tensors and the rest from `config`."""
    with torch.device("meta"):
        network = BlipNetwork(_vision(checkpoint, config), _text(checkpoint, config))
    return load_network(network, checkpoint, LAYOUT, placement)


def read_blip_config(raw: Mapping[str, object]) -> BlipConfig:
    """Configuration from {"med_config": {...}, "vision": {...}}; what is absent keeps the published model's value."""
    med, vision, default = raw["med_config"], raw["vision"], BlipConfig()
    return BlipConfig(
        vision_heads=int(next((vision[key] for key in HEADS if key in vision), default.vision_heads)),
        vision_eps=float(vision.get("layer_norm_eps", default.vision_eps)),
        vision_act=str(vision.get("act", default.vision_act)),
        text_heads=int(med.get("num_attention_heads", default.text_heads)),
        text_eps=float(med.get("layer_norm_eps", default.text_eps)),
        text_act=str(med.get("hidden_act", default.text_act)),
    )


def _beside(checkpoint: Checkpoint) -> dict[str, object]:
    """Configuration files beside the weights; a nested one wins over the published `med_config.json`."""
    path = checkpoint.path.with_name(MED_CONFIG)
    published = {"med_config": read_json(path)} if path.is_file() else {}
    return _merged(published, read_json_beside(checkpoint.path, ("config.json",), _is_nested))


def _merged(base: dict[str, object], over: dict[str, object]) -> dict[str, object]:
    """Both sections of `base`, entry by entry replaced by those of `over`."""
    return {section: {**(base.get(section) or {}), **(over.get(section) or {})} for section in ("med_config", "vision")}


def _nested(raw: dict[str, object]) -> dict[str, object]:
    """{"med_config": ..., "vision": ...} from itself or from the content of a `med_config.json`."""
    return raw if _is_nested(raw) else {"med_config": raw}


def _is_nested(raw: Mapping[str, object]) -> bool:
    return any(isinstance(raw.get(section), Mapping) for section in ("med_config", "vision"))


def _vision(checkpoint: Checkpoint, config: BlipConfig) -> VisionTransformer:
    width, _, patch, _ = LAYOUT.shape(checkpoint, "vision.patch.weight")
    patches = LAYOUT.shape(checkpoint, "vision.positions")[1] - 1
    hidden = LAYOUT.shape(checkpoint, "vision.blocks.0.fc1.weight")[0]
    heads = heads_of(width, config.vision_heads, 64, "vision")
    depth = LAYOUT.depth(checkpoint, "vision.blocks.")
    return VisionTransformer(
        Stack(width, hidden, depth, heads, config.vision_eps, config.vision_act),
        image_size=isqrt(patches) * patch,
        patch_size=patch,
        pre_norm=False,
        patch_bias=True,
        first_only=False,
    )


def _text(checkpoint: Checkpoint, config: BlipConfig) -> TextEncoder:
    rows, width = LAYOUT.shape(checkpoint, "text.embedding.weight")
    hidden = LAYOUT.shape(checkpoint, "text.layers.0.fc1.weight")[0]
    heads = heads_of(width, config.text_heads, 64, "text")
    depth = LAYOUT.depth(checkpoint, "text.layers.")
    return TextEncoder(
        Stack(width, hidden, depth, heads, config.text_eps, config.text_act),
        rows=rows,
        context=LAYOUT.shape(checkpoint, "text.positions")[0],
        image_width=LAYOUT.shape(checkpoint, "vision.patch.weight")[0],
    )
