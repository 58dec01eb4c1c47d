"""Every model against values from the original implementations, within the tolerances stated with the data."""

import json

import pytest
import torch
from safetensors.torch import load_file

from reneg_core.rewards import load_reward
from reneg_core.rewards.preprocess import normalise

# name, golden stem, float32 field, float64 field, float32 tolerance of the network from stored pixels
MODELS = [
    ("image_reward", "imagereward", "score_network", "score_network_float64", 5e-5),
    ("hpsv2.1", "hpsv2", "score_network_antialias", "score_network_antialias_float64", 2e-6),
    ("pickscore", "pickscore", "score", "score_float64", 5e-5),
    ("clip_score", "clipscore", "cosine", "cosine_float64", 2e-6),
]
IDS = [model[0] for model in MODELS]


def stored_pixels(data, reward, index):
    """The pixel tensor the original network was fed, float32 and normalised."""
    if "pixels_u8" in data.tensors:
        return normalise(data.tensors["pixels_u8"][index][None].float() / 255)
    if index < len(data.tensors["pixels_antialias"]):
        return data.tensors["pixels_antialias"][index][None]
    return reward.preprocess(data.image(index))


@pytest.mark.parametrize(("name", "stem", "field", "field64", "tolerance"), MODELS, ids=IDS)
def test_network_from_stored_pixels(golden, name, stem, field, field64, tolerance):
    data = golden(stem)
    for dtype, key, bound in ((torch.float32, field, tolerance), (torch.float64, field64, 1e-9)):
        reward = load_reward(name, weights=data.weights, dtype=dtype)
        for pair in data.pairs:
            pixels = stored_pixels(data, reward, pair["image"])
            score = reward.score_pixels(pixels, [data.prompts[pair["prompt"]]])
            assert score.item() == pytest.approx(pair[key], abs=bound, rel=0), (dtype, pair)


@pytest.mark.parametrize(("name", "stem", "field", "field64", "tolerance"), MODELS, ids=IDS)
def test_end_to_end_from_png(golden, name, stem, field, field64, tolerance):
    """The PIL resize is reproduced bit for bit, so the tolerance is the network's own."""
    data = golden(stem)
    reward = load_reward(name, weights=data.weights)
    field = {"image_reward": "score", "hpsv2.1": "score_antialias"}.get(name, field)
    for pair in data.pairs:
        score = reward.score(data.image(pair["image"]), [data.prompts[pair["prompt"]]])
        assert score.item() == pytest.approx(pair[field], abs=tolerance, rel=0), pair


@pytest.mark.parametrize(("name", "stem", "field", "field64", "tolerance"), MODELS, ids=IDS)
def test_gradient_with_respect_to_normalised_pixels(golden, name, stem, field, field64, tolerance):
    data = golden(stem)
    reward = load_reward(name, weights=data.weights)
    for pair in data.pairs:
        pixels = stored_pixels(data, reward, pair["image"]).clone().requires_grad_()
        reward.score_pixels(pixels, [data.prompts[pair["prompt"]]]).sum().backward()
        assert pixels.grad.norm().item() == pytest.approx(pair["grad_l2"], rel=1e-4)
        assert pixels.grad.abs().max().item() == pytest.approx(pair["grad_linf"], rel=1e-4)
        known = data.json["gradient_pair0"]
        if (pair["image"], pair["prompt"]) == (known["image"], known["prompt"]):
            entries = torch.tensor([pixels.grad[0, c, y, x] for c, y, x, _ in known["entries_c_y_x_value"]])
            wanted = torch.tensor([value for *_, value in known["entries_c_y_x_value"]])
            assert (entries - wanted).norm() / wanted.norm() < 1e-4


def test_full_image_reward_gradient(golden):
    data = golden("imagereward")
    reward = load_reward("image_reward", weights=data.weights)
    pixels = stored_pixels(data, reward, 0).requires_grad_()
    reward.score_pixels(pixels, data.prompts[:1]).sum().backward()
    wanted = data.tensors["grad_pair0"]
    assert (pixels.grad - wanted).norm() / wanted.norm() < 1e-4


def test_image_reward_ranks_the_images_as_published(golden):
    data = golden("imagereward")
    reward = load_reward("image_reward", weights=data.weights)
    scores = torch.cat([reward.score(data.image(i), [data.prompts[0]]) for i in data.json["rank"]["images"]])
    order = scores.argsort(descending=True).argsort() + 1
    assert order.tolist() == data.json["rank"]["rank"]
    assert scores.tolist() == pytest.approx(data.json["rank"]["scores"], abs=5e-5)


def test_hpsv2_without_antialias(golden):
    data = golden("hpsv2")
    for name in ("hpsv2.0-no-antialias", "hpsv2.1-no-antialias"):
        reward = load_reward(name, weights=data.weights)
        for pair in data.pairs:
            score = reward.score(data.image(pair["image"]), [data.prompts[pair["prompt"]]])
            assert score.item() == pytest.approx(pair["score_no_antialias"], abs=2e-6, rel=0)
        for i, pixels in enumerate(data.tensors["pixels_no_antialias"]):
            assert torch.allclose(reward.preprocess(data.image(i))[0], pixels, atol=2e-6, rtol=0)


def test_pickscore_probabilities_are_the_softmax_of_the_scores(golden):
    data = golden("pickscore")
    reward = load_reward("pickscore", weights=data.weights)
    known = data.json["probs"]
    scores = torch.cat([reward.score(data.image(i), [data.prompts[known["prompt"]]]) for i in known["images"]])
    assert scores.tolist() == pytest.approx(known["scores"], abs=5e-5)
    assert scores.softmax(0).tolist() == pytest.approx(known["softmax"], abs=1e-5)


def test_clip_score_variants(golden):
    data = golden("clipscore")
    for variant, field in (("hessel", "clipscore_2_5"), ("percent", "clipscore_100")):
        reward = load_reward("clip_score", weights=data.weights, variant=variant)
        assert reward.name == f"clip_score-{variant}"
        for pair in data.pairs:
            score = reward.score(data.image(pair["image"]), [data.prompts[pair["prompt"]]])
            assert score.item() == pytest.approx(pair[field], abs=2e-4, rel=0)


def test_aesthetic_head_and_end_to_end(golden, golden_dir):
    known = json.loads((golden_dir / "aesthetic.json").read_text())
    embeddings = load_file(golden_dir / "clipscore_tensors.safetensors")["embeddings"]
    data = golden("clipscore")
    for dtype, field, bound in ((torch.float32, "score", 2e-5), (torch.float64, "score_float64", 1e-9)):
        reward = load_reward("aesthetic", weights=golden_dir, dtype=dtype)
        scores = reward.score_features(embeddings.to(dtype), [])
        assert scores.tolist() == pytest.approx([row[field] for row in known["head_only"]], abs=bound, rel=0)
    reward = load_reward("aesthetic", weights=golden_dir)
    for row in known["end_to_end"]:
        assert reward.score(data.image(row["image"])).item() == pytest.approx(row["score"], abs=2e-5, rel=0)


def test_aesthetic_gradients(golden, golden_dir):
    known = json.loads((golden_dir / "aesthetic.json").read_text())
    reward = load_reward("aesthetic", weights=golden_dir)
    row = load_file(golden_dir / "clipscore_tensors.safetensors")["embeddings"][:1].requires_grad_()
    reward.score_features(row, []).sum().backward()
    assert row.grad.norm().item() == pytest.approx(known["gradient_head_row0"]["l2"], rel=1e-4)
    assert row.grad[0, :8].tolist() == pytest.approx(known["gradient_head_row0"]["first8"], rel=1e-3)
    pixels = stored_pixels(golden("clipscore"), reward, 0).requires_grad_()
    reward.score_pixels(pixels, [""]).sum().backward()
    assert pixels.grad.norm().item() == pytest.approx(known["gradient_end_to_end_image"]["l2"], rel=1e-4)


@pytest.mark.parametrize(("name", "stem", "field", "field64", "tolerance"), MODELS, ids=IDS)
def test_token_ids(golden, name, stem, field, field64, tolerance):
    data = golden(stem)
    reward = load_reward(name, weights=data.weights)
    for prompt, ids in zip(data.prompts, data.json["input_ids"], strict=True):
        tokens = reward.tokenizer([prompt])
        length = int(tokens.lengths[0])
        assert tokens.ids[0, :length].tolist() == ids[:length]
        assert set(ids[length:]) <= {0, reward.tokenizer.pad}


# What goes wrong when a detail of the published network is left at a library's default.
TRAPS = [
    ("image_reward", "imagereward", {"vision": {"layer_norm_eps": 1e-5}}),
    ("image_reward", "imagereward", {"med_config": {"num_attention_heads": 4, "layer_norm_eps": 1e-5}}),
    ("image_reward", "imagereward", {"med_config": {"num_attention_heads": 8}}),
    ("image_reward", "imagereward", {"vision": {"heads": 4, "act": "quick_gelu"}}),
    ("hpsv2.1", "hpsv2", {"quick_gelu": True, "vision_heads": 4, "text_heads": 4}),
    ("hpsv2.1", "hpsv2", {"vision_cfg": {"heads": 6}, "text_heads": 4}),
    (
        "pickscore",
        "pickscore",
        {"vision_config": {"num_attention_heads": 4}, "text_config": {"num_attention_heads": 4}},
    ),  # transformers' default: quick_gelu
]


@pytest.mark.parametrize(("name", "stem", "config"), TRAPS)
def test_a_wrong_detail_is_seen_by_the_golden_values(golden, name, stem, config):
    data = golden(stem)
    field, tolerance = next((m[2], m[4]) for m in MODELS if m[0] == name)
    reward = load_reward(
        name,
        weights=data.weights,
        config={**data.json.get("config", {}), **config} if "vision_config" not in config else config,
    )
    errors = []
    for pair in data.pairs:
        pixels = stored_pixels(data, reward, pair["image"])
        score = reward.score_pixels(pixels, [data.prompts[pair["prompt"]]])
        errors.append(abs(score.item() - pair[field]))
    assert max(errors) > 2 * tolerance
