"""Without a host: the node that samples video through diffusers, on folders of its own."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipelines import build, unet_3d

from reneg_core.backends import load_model
from reneg_core.embedding import NegativeEmbedding
from reneg_core.sampling import Sampling, Size, sample

from .fake_host import imported

SETTINGS = {"width": 16, "height": 16, "frames": 3, "steps": 2, "cfg": 4.0, "seed": 7, "used_in": "none"}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Any]:
    """nodes.video and nodes.host.pipelines with ZeroScope, a denoiser alone, and what is no video."""
    folder = tmp_path / "diffusers"
    build("zeroscope").save_pretrained(folder / "scope")
    unet_3d().save_pretrained(folder / "crafter")
    (folder / "picture").mkdir()
    (folder / "picture" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (folder / "broken").mkdir()
    (folder / "broken" / "model_index.json").write_text("{")
    with imported("video", "host.pipelines") as [video, pipelines]:
        pipelines.folder_paths.get_folder_paths = lambda kind: [str(folder), str(tmp_path / "nowhere")]
        pipelines.comfy.model_management.get_torch_device = lambda: torch.device("cpu")
        video.io.NodeOutput = lambda *values: values
        yield SimpleNamespace(node=video.SampleVideo, pipelines=pipelines, folder=folder, video=video)


def test_the_list_has_the_video_pipelines_alone(host: Any) -> None:
    assert host.pipelines.video_names() == ["crafter", "scope"]
    host.pipelines.folder_paths.get_folder_paths = lambda kind: [str(host.folder / "picture")]
    assert host.pipelines.video_names() == ["none"]
    with pytest.raises(FileNotFoundError, match=r"No video pipeline 'none' in .*Put the folder of ZeroScope's"):
        host.pipelines.video_folder("none")


@torch.inference_mode()
def test_a_clip_is_the_cores_own(host: Any) -> None:
    learned = NegativeEmbedding(5 * torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0)), "width-32")
    model, sampling = (
        load_model(host.folder / "scope", device="cpu"),
        Sampling("ddim", 2, size=Size(16, 16, 3)).at_scale(4),
    )
    found = {}
    for kind, embedding, negative in (
        ("text", None, model.encode(["ugly"])),
        ("learned", learned, learned.conditioning()),
    ):
        images, rate = host.node.execute(
            pipeline="scope", prompt="fox", negative_prompt="ugly", embedding=embedding, **SETTINGS
        )
        latents = sample(model, model.encode(["fox"]), negative, model.noise([7], sampling.size), sampling)
        assert torch.allclose(images, model.decode(latents)[0].movedim(1, -1), atol=1e-5)
        assert images.shape == (3, 16, 16, 3) and rate == 8.0
        found[kind] = images
    assert (found["text"] - found["learned"]).abs().max() > 1e-2


def test_a_denoiser_alone_needs_the_pipeline_that_it_is_used_in(host: Any) -> None:
    text = {"prompt": "fox", "negative_prompt": ""}
    with pytest.raises(ValueError, match=r"Got crafter, a video denoiser alone, .* Set used_in to it"):
        host.node.execute(pipeline="crafter", **text, **SETTINGS)
    images, _ = host.node.execute(pipeline="crafter", **text, **{**SETTINGS, "used_in": "scope"})
    plain, _ = host.node.execute(pipeline="scope", **text, **SETTINGS)
    assert (images - plain).abs().max() > 1e-2


def test_an_embedding_of_another_model_is_refused(host: Any) -> None:
    wrong = NegativeEmbedding(torch.ones(1, 77, 768))
    with pytest.raises(ValueError, match=r"Got an embedding for the text encoder clip-l"):
        host.node.execute(pipeline="scope", prompt="fox", negative_prompt="", embedding=wrong, **SETTINGS)


def test_without_diffusers_the_node_says_so(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.node.validate_inputs("scope") is True
    assert str(host.node.validate_inputs("picture")).startswith("No video pipeline 'picture' in ")
    find = importlib.util.find_spec
    monkeypatch.setattr(host.pipelines, "find_spec", lambda name: None if name == "diffusers" else find(name))
    sentence = "The package diffusers is missing in ComfyUI's Python; it runs the video models that ComfyUI does not."
    assert str(host.node.validate_inputs("scope")).startswith(sentence)
    with pytest.raises(ImportError, match=r"The package diffusers is missing .* Try: pip install diffusers, there"):
        host.node.execute(pipeline="scope", prompt="fox", negative_prompt="", **SETTINGS)
