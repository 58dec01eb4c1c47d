"""The files that rewards and ReNeg's embeddings are published as: where they are, how they are called, what they are
recognised by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Shape = tuple[int, ...]
HUB = "https://huggingface.co"

OPEN_CLIP_PATCHES = "visual.conv1.weight"
TRANSFORMERS_PATCHES = "vision_model.embeddings.patch_embedding.weight"
BLIP_PATCHES = "blip.visual_encoder.patch_embed.proj.weight"
HEAD_LAST = "layers.7.weight"

LAYOUTS = {
    OPEN_CLIP_PATCHES: "a CLIP in the layout of OpenAI and open_clip (HPSv2)",
    TRANSFORMERS_PATCHES: "a CLIP in the layout of transformers (PickScore)",
    BLIP_PATCHES: "ImageReward's BLIP",
    HEAD_LAST: "an aesthetic head",
}
VIT_H14, VIT_L14, VIT_B32 = (1280, 3, 14, 14), (1024, 3, 14, 14), (768, 3, 32, 32)
ARCHITECTURES = {
    VIT_H14: "ViT-H/14",
    VIT_L14: "ViT-L/14",
    VIT_B32: "ViT-B/32",
    (768, 3, 16, 16): "ViT-B/16",
    (1408, 3, 14, 14): "ViT-g/14",
    (1664, 3, 14, 14): "ViT-bigG/14",
}


@dataclass(frozen=True)
class PublishedFile:
    """A file of a reward.

    repository: hub id; url: direct link of a file outside the hub, with `homepage` to read about it. size: bytes.
    aliases: further exact names. copies: regex for the beginning of a renamed copy's letters and digits in lower case.
    marks: keys of which one is in the file, with that tensor's published shape. sha256: where it is known.
    """

    name: str
    repository: str = ""
    size: int = 0
    aliases: tuple[str, ...] = ()
    copies: str = ""
    marks: Mapping[str, Shape] = field(default_factory=dict, hash=False)
    url: str = ""
    homepage: str = ""
    sha256: str = ""

    @property
    def page(self) -> str:
        return self.homepage or f"{HUB}/{self.repository}"

    @property
    def address(self) -> str:
        """The file itself."""
        return self.url or f"{HUB}/{self.repository}/resolve/main/{self.name}"

    @property
    def folder(self) -> str:
        """Subfolder of a search directory where the file is put: the repository's own name."""
        return self.page.rsplit("/", 1)[-1]

    @property
    def place(self) -> Path:
        """Where in a search directory the file is put; no two rewards share one."""
        return Path(self.folder) / self.name

    @property
    def own_names(self) -> tuple[str, ...]:
        """Exact names that tell this file from those of other rewards."""
        return tuple(name for name in (self.name, *self.aliases) if name not in SHARED_NAMES)


def size_text(size: int | None) -> str:
    """ " (about 1.97 GB)", or nothing where the size is not known."""
    if not size:
        return ""
    return f" (about {size / 1e9:.3g} GB)" if size >= 1e9 else f" (about {size / 1e6:.3g} MB)"


SHARED_NAMES = ("model.safetensors", "pytorch_model.bin")  # what hub repositories call whatever they hold


def _hpsv2(version: str, copies: str, sha256: str = "") -> PublishedFile:
    return PublishedFile(
        f"HPS_v{version}_compressed.pt",
        "xswu/HPSv2",
        1_972_490_005,
        aliases=(f"HPS_v{version}_compressed.safetensors",),
        copies=copies,
        marks={OPEN_CLIP_PATCHES: VIT_H14},
        sha256=sha256,
    )


HPSV20 = _hpsv2("2", "hpsv2(?!1)")
HPSV21 = _hpsv2("2.1", "hpsv2(?!0|compressed)", "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837")
PICKSCORE = PublishedFile(
    "model.safetensors",
    "yuvalkirstain/PickScore_v1",
    3_940_000_000,
    aliases=("PickScore_v1.safetensors", "pytorch_model.bin"),
    copies="pickscore",
    marks={TRANSFORMERS_PATCHES: VIT_H14},
)
CLIP_L14 = PublishedFile(
    "model.safetensors",
    "openai/clip-vit-large-patch14",
    1_710_540_580,
    aliases=("clip-vit-large-patch14.safetensors", "ViT-L-14.safetensors"),
    copies="clipscore|clipvitl|vitl14",
    marks={TRANSFORMERS_PATCHES: VIT_L14, OPEN_CLIP_PATCHES: VIT_L14},
    sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
)
CLIP_B32 = PublishedFile(
    "model.safetensors",
    "openai/clip-vit-base-patch32",
    605_000_000,
    aliases=("clip-vit-base-patch32.safetensors", "ViT-B-32.safetensors"),
    copies="clipvitb|vitb32",
    marks={TRANSFORMERS_PATCHES: VIT_B32, OPEN_CLIP_PATCHES: VIT_B32},
)
IMAGE_REWARD = PublishedFile(
    "ImageReward.pt",
    "zai-org/ImageReward",
    1_786_880_927,
    aliases=("ImageReward.safetensors",),
    copies="imagereward",
    marks={BLIP_PATCHES: (1024, 3, 16, 16)},
)
AESTHETIC_PAGE = "https://github.com/christophschuhmann/improved-aesthetic-predictor"
AESTHETIC_HEAD = PublishedFile(
    "sac+logos+ava1-l14-linearMSE.pth",
    size=3_714_759,
    aliases=("sac+logos+ava1-l14-linearMSE.safetensors",),
    copies="saclogosava1|aesthetic",
    marks={HEAD_LAST: (1, 16)},
    homepage=AESTHETIC_PAGE,
    url=f"{AESTHETIC_PAGE}/raw/main/sac+logos+ava1-l14-linearMSE.pth",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
)
WEIGHTS = (HPSV20, HPSV21, PICKSCORE, CLIP_L14, CLIP_B32, IMAGE_REWARD, AESTHETIC_HEAD)

PACKED_BPE = "bpe_simple_vocab_16e6.txt.gz"
BERT_VOCAB = PublishedFile("vocab.txt", "google-bert/bert-base-uncased", aliases=("bert_vocab.txt",))
CLIP_VOCAB = PublishedFile("vocab.json", "openai/clip-vit-large-patch14", aliases=("clip_vocab.json",))
CLIP_MERGES = PublishedFile("merges.txt", "openai/clip-vit-large-patch14", aliases=("clip_merges.txt",))
CLIP_BPE = PublishedFile(PACKED_BPE, "openai/clip-vit-large-patch14")

RENEG_PAGE = "https://github.com/AMD-AIG-AIMA/ReNeg"


def _embedding(name: str, size: int, sha256: str) -> PublishedFile:
    url = f"{RENEG_PAGE}/raw/main/checkpoints/{name}"
    return PublishedFile(name, size=size, homepage=RENEG_PAGE, url=url, sha256=sha256)


EMBEDDINGS = (
    _embedding("sd1.4_reneg_emb.bin", 237_739, "5c00f225bb7f5f437aba6bf27bbae3cf596dcf39d147bdce69915134913a125c"),
    _embedding("sd1.5_reneg_emb.bin", 237_739, "3124786328b54bd48e5a8c552d12685978baddbd52f9bb18cbc78451891dba6d"),
    _embedding("sd2.1_reneg_emb.bin", 316_587, "ed766ee46458683bebe53b4a66abb8b1d5541d38dbcf5fb4d4980264c9d25f11"),
    _embedding(
        "pixart-alpha_reneg_emb.bin", 1_966_836, "c70177f76e893ddb94e46e87544b72989425e3d7a5ed04d94702a7290434325d"
    ),
)
"""The embeddings that the paper's authors publish."""
