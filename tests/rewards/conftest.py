"""Shared fixtures: the golden data (skips loudly without it) and small self-made models in the published layouts."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[3] / "shared" / "data" / "golden"
BERT_WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "fox",
    "in",
    "the",
    "snow",
    "blue",
    "boat",
    "##s",
    ",",
    ".",
    "at",
    "night",
]
PROMPTS = ["a red fox in the snow", "blue boats at night, snow", ""]


class Golden:
    """One model of the golden data: its JSON, tensors, and the pictures as PNG readers see them."""

    def __init__(self, stem: str) -> None:
        self.weights = GOLDEN / f"{stem}_tiny.safetensors"
        self.json = json.loads((GOLDEN / f"{stem}_tiny.json").read_text())
        self.tensors = load_file(GOLDEN / f"{stem}_tensors.safetensors")
        self.prompts, self.pairs = self.json["prompts"], self.json["pairs"]

    def image(self, index: int) -> torch.Tensor:
        return read_png(GOLDEN / self.json["images"][index])


def read_png(path: Path) -> torch.Tensor:
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="session")
def golden():
    if not GOLDEN.is_dir():
        pytest.skip(f"golden data not found at {GOLDEN}: the published numbers were NOT checked")
    return Golden


@pytest.fixture(scope="session")
def golden_dir(golden) -> Path:
    return GOLDEN


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return PROMPTS


def fill(module: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every part of a small network moves the score."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * (0.1 if parameter.ndim == 1 else 0.15)
        is_scale = name.lower().endswith(("norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight"))
        parameter.data = noise + 1 if is_scale or "layrnorm.weight" in name else noise


def write_clip_vocabulary(folder: Path) -> int:
    """vocab.json and merges.txt of a byte-level BPE with three merges; returns the number of entries."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merges = ["f o", "fo x</w>", "r e"]
    entries = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(m.replace(" ", "") for m in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return len(entries)


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory):
    """A transformers CLIPModel with random weights, saved as published: folder, model."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    rows = write_clip_vocabulary(folder)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "gelu"}
    config = CLIPConfig(
        text_config={
            **tower,
            "hidden_size": 32,
            "intermediate_size": 64,
            "vocab_size": rows,
            "eos_token_id": rows - 1,
            "bos_token_id": rows - 2,
            "max_position_embeddings": 77,
        },
        vision_config={**tower, "hidden_size": 48, "intermediate_size": 96, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    fill(model, 1)
    model.logit_scale.data.fill_(2.0)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    return SimpleNamespace(folder=folder, model=model)


def open_clip_state(state):
    """transformers' CLIP names as open_clip writes them."""
    out = {
        "logit_scale": state["logit_scale"],
        "visual.proj": state["visual_projection.weight"].t().contiguous(),
        "text_projection": state["text_projection.weight"].t().contiguous(),
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        out[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        for old, new in (
            ("vision_model.encoder.layers", "visual.transformer.resblocks"),
            ("text_model.encoder.layers", "transformer.resblocks"),
        ):
            for i in range(2):
                layer, block = f"{old}.{i}", f"{new}.{i}"
                out[f"{block}.attn.in_proj_{kind}"] = torch.cat(
                    [state[f"{layer}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
                )
                for a, b in (
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    out[f"{block}.{b}.{kind}"] = state[f"{layer}.{a}.{kind}"]
    return out


@pytest.fixture(scope="session")
def open_clip_file(small_clip) -> Path:
    """The same network as HPSv2 is published: OpenAI's and open_clip's names; its configuration is `config.json`."""
    path = small_clip.folder / "open_clip" / "weights.safetensors"
    path.parent.mkdir()
    save_file(open_clip_state(load_file(small_clip.folder / "model.safetensors")), path)
    for name in ("config.json", "vocab.json", "merges.txt"):
        shutil.copy(small_clip.folder / name, path.parent / name)
    return path


@pytest.fixture(scope="session")
def small_blip(tmp_path_factory):
    """transformers' Blip towers with random weights, saved under ImageReward's names: folder, vision, text, head."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    folder = tmp_path_factory.mktemp("blip")
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            layer_norm_eps=1e-6,
            hidden_act="gelu",
        )
    ).eval()
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=len(BERT_WORDS) + 2,
            hidden_size=32,
            encoder_hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=40,
            is_decoder=True,
            layer_norm_eps=1e-12,
            bos_token_id=None,
            hidden_act="gelu",
        ),
        add_pooling_layer=False,
    ).eval()
    head = torch.nn.Sequential(
        *(torch.nn.Linear(a, b) for a, b in zip((32, 20, 16, 12, 8), (20, 16, 12, 8, 1), strict=True))
    )
    for seed, module in enumerate((vision, text, head)):
        fill(module, seed)
    for linear in head:
        linear.weight.data *= 3
    save_file(image_reward_state(vision, text, head), folder / "ImageReward.safetensors")
    (folder / "med_config.json").write_text(
        json.dumps({"num_attention_heads": 4, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "encoder_width": 768})
    )
    (folder / "config.json").write_text(json.dumps({"vision": {"heads": 4}}))
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    return SimpleNamespace(folder=folder, vision=vision, text=text, head=head)


def image_reward_state(vision, text, head) -> dict[str, torch.Tensor]:
    """State dict under the published names."""
    renames = (
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding.", "patch_embed.proj."),
        ("encoder.layers.", "blocks."),
        ("layer_norm", "norm"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn.qkv", "attn.qkv"),
        ("post_layernorm", "norm"),
    )
    state = {}
    for key, value in vision.state_dict().items():
        for old, new in renames:
            key = key.replace(old, new)
        state[f"blip.visual_encoder.{key}"] = value.clone()
    state |= {f"blip.text_encoder.{key}": value.clone() for key, value in text.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    state |= {f"blip.{side}_proj.weight": torch.zeros(4, 4) for side in ("vision", "text")}
    for layer, linear in zip((0, 2, 4, 6, 7), head, strict=True):
        state[f"mlp.layers.{layer}.weight"], state[f"mlp.layers.{layer}.bias"] = linear.weight.data, linear.bias.data
    return state


@pytest.fixture
def aesthetic_folder(small_clip, tmp_path) -> Path:
    """The small CLIP with an aesthetic head in the published layout beside it."""
    for name in ("model.safetensors", "config.json", "vocab.json", "merges.txt"):
        shutil.copy(small_clip.folder / name, tmp_path / name)
    generator, head = torch.Generator().manual_seed(5), {}
    for i, o, n in zip((24, 20, 16, 12, 8), (20, 16, 12, 8, 1), (0, 2, 4, 6, 7), strict=True):
        head[f"layers.{n}.weight"] = torch.randn(o, i, generator=generator)
        head[f"layers.{n}.bias"] = torch.randn(o, generator=generator)
    torch.save(head, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    return tmp_path
