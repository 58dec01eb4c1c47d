"""Our networks against transformers' on the same random weights, in every published layout; sharing and caching."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from reneg_core.rewards import load_reward
from reneg_core.rewards.image_reward import MEAN, STD


@pytest.fixture
def open_clip_folder(open_clip_file, small_clip, tmp_path):
    """The small CLIP as HPSv2 publishes it: a pickle with a state dict inside, open_clip's names and configuration."""
    torch.save({"state_dict": load_file(open_clip_file), "epoch": 3}, tmp_path / "HPS_v2.1_compressed.pt")
    (tmp_path / "config.json").write_text(json.dumps({"vision_cfg": {"head_width": 12}, "text_cfg": {"heads": 4}}))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(small_clip.folder / name, tmp_path / name)
    return tmp_path


def reference_cosine(small_clip, reward, pixels, prompts):
    tokens = reward.tokenizer(prompts)
    mask = torch.arange(tokens.ids.shape[1]) < tokens.lengths[:, None]
    with torch.no_grad():
        output = small_clip.model(pixel_values=pixels, input_ids=tokens.ids, attention_mask=mask.long())
    return (F.normalize(output.image_embeds, dim=-1) * F.normalize(output.text_embeds, dim=-1)).sum(-1)


def test_clip_equals_transformers(small_clip, images, prompts):
    reward = load_reward("pickscore", weights=small_clip.folder)
    pixels = reward.preprocess(images)
    expected = torch.e**2 * reference_cosine(small_clip, reward, pixels, prompts)
    assert torch.allclose(reward.score_pixels(pixels, prompts), expected, atol=1e-5)
    assert expected.std() > 0.05


def test_open_clip_layout_in_the_published_pickle(small_clip, open_clip_folder, images, prompts):
    reward = load_reward("hpsv2.1", weights=open_clip_folder)
    pixels = reward.preprocess(images)
    assert torch.allclose(
        reward.score_pixels(pixels, prompts), reference_cosine(small_clip, reward, pixels, prompts), atol=1e-6
    )


def test_image_reward_equals_transformers_blip(small_blip, images, prompts):
    reward = load_reward("image_reward", weights=small_blip.folder)
    pixels, tokens = reward.preprocess(images), reward.tokenizer(prompts)
    mask = torch.arange(tokens.ids.shape[1]) < tokens.lengths[:, None]
    with torch.no_grad():
        seen = small_blip.vision(pixel_values=pixels).last_hidden_state
        read = small_blip.text(input_ids=tokens.ids, attention_mask=mask.long(), encoder_hidden_states=seen)
        expected = (small_blip.head(read.last_hidden_state[:, 0])[:, 0] - MEAN) / STD
    assert torch.allclose(reward.score_pixels(pixels, prompts), expected, atol=1e-5)
    assert expected.std() > 0.01


def test_configuration_and_vocabulary_given_at_call_time(small_blip, small_clip, images, prompts, tmp_path):
    weights = tmp_path / "any name.safetensors"
    shutil.copy(small_blip.folder / "ImageReward.safetensors", weights)
    given = load_reward(
        "image_reward",
        weights=weights,
        vocab=small_blip.folder / "vocab.txt",
        config={"med_config": {"num_attention_heads": 4}, "vision": {"heads": 4}},
    )
    beside = load_reward("image_reward", weights=small_blip.folder)
    assert torch.equal(given.score(images, prompts), beside.score(images, prompts))
    weights = tmp_path / "clip.safetensors"
    shutil.copy(small_clip.folder / "model.safetensors", weights)
    given = load_reward(
        "pickscore",
        weights=weights,
        vocab=small_clip.folder / "vocab.json",
        merges=small_clip.folder / "merges.txt",
        config=small_clip.folder / "config.json",
    )
    beside = load_reward("pickscore", weights=small_clip.folder)
    assert torch.equal(given.score(images, prompts), beside.score(images, prompts))


def test_configuration_beside_the_weights_under_any_name(small_blip, images, prompts, tmp_path):
    for name in ("ImageReward.safetensors", "vocab.txt"):
        shutil.copy(small_blip.folder / name, tmp_path / name)
    whole = {"vision": {"num_heads": 4}, "med_config": {"num_attention_heads": 4}, "prompts": []}
    (tmp_path / "shrunken.json").write_text(json.dumps(whole))
    (tmp_path / "other.json").write_text("[1]")
    found = load_reward("image_reward", weights=tmp_path)
    beside = load_reward("image_reward", weights=small_blip.folder)
    assert torch.equal(found.score(images, prompts), beside.score(images, prompts))


def test_any_batch_size_gives_the_same_numbers(small_blip, small_clip, images, prompts):
    for reward in (
        load_reward("image_reward", weights=small_blip.folder),
        load_reward("pickscore", weights=small_clip.folder),
    ):
        whole = reward.score(images, prompts)
        single = torch.cat([reward.score(images[i : i + 1], prompts[i : i + 1]) for i in range(3)])
        assert torch.allclose(whole, single, atol=2e-6)
        reward.memory_budget = 1
        assert torch.allclose(reward.score(images, prompts), whole, atol=2e-6)


def test_text_features_are_computed_once_per_prompt(small_clip, images, monkeypatch):
    reward = load_reward("pickscore", weights=small_clip.folder)
    calls = []
    monkeypatch.setattr(
        reward.text,
        "forward",
        lambda tokens, real=reward.text.forward: (calls.append(len(tokens.ids)), real(tokens))[1],
    )
    first = reward.score(images, ["a fox", "a fox", "snow"])
    assert calls == [2]
    assert torch.equal(reward.score(images, ["a fox", "a fox", "snow"]), first) and calls == [2]
    reward.score(images[:1], ["a boat"])
    assert calls == [2, 1]
    reward.to(torch.float64)
    reward.score(images[:1], ["a boat"])
    assert calls == [2, 1, 1]  # features of another precision are not reused


def test_features_cached_in_inference_mode_serve_a_later_backward(small_clip, images):
    with torch.inference_mode():
        reward = load_reward("pickscore", weights=small_clip.folder)
        reward.score(images, ["a fox"])
    x = images.clone().requires_grad_()
    reward.score(x, ["a fox"]).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_mix_shares_one_image_tower_and_its_features(aesthetic_folder, images, prompts, monkeypatch):
    mix = load_reward("clip_score*1 + aesthetic*0.5", weights=aesthetic_folder, normalise="none")
    clip_part, aesthetic_part = mix.parts
    assert clip_part.tower is aesthetic_part.tower
    passes = []
    monkeypatch.setattr(
        clip_part.tower,
        "forward",
        lambda pixels, real=clip_part.tower.forward: (passes.append(len(pixels)), real(pixels))[1],
    )
    total = mix.score(images, prompts)
    assert passes == [3]
    alone = [load_reward(name, weights=aesthetic_folder).score(images, prompts) for name in ("clip_score", "aesthetic")]
    assert torch.allclose(total, alone[0] + 0.5 * alone[1], atol=1e-5)


def test_truncated_prompts_are_flagged(small_blip, small_clip):
    long = "fox " * 80
    image_reward = load_reward("image_reward", weights=small_blip.folder)
    assert image_reward.truncated(["fox " * 33, "fox " * 34]) == [False, True]
    pickscore = load_reward("pickscore", weights=small_clip.folder)
    assert pickscore.truncated(["fox " * 75, "fox " * 76, ""]) == [False, True, False]
    details = pickscore.details(torch.rand(2, 3, 16, 16), ["fox", long])
    assert details.truncated == [False, True]
    assert pickscore.tokenizer([long]).ids[0, -1] == pickscore.tokenizer.end


def test_rewards_import_no_optional_package():
    code = (
        "import sys, reneg_core.rewards.image_reward, reneg_core.rewards.hpsv2, reneg_core.rewards.aesthetic\n"
        "bad = {'transformers', 'diffusers', 'timm', 'fairscale', 'clip', 'open_clip', 'hpsv2', 'ImageReward', "
        "'torchvision', 'matplotlib', 'comfy'} & set(sys.modules)\nassert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_and_unexpected_keys_are_named_in_the_files_own_terms(small_clip, small_blip, tmp_path):
    state = load_file(small_clip.folder / "model.safetensors")
    del state["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    state["vision_model.encoder.extra"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    for name in ("config.json", "vocab.json", "merges.txt"):
        shutil.copy(small_clip.folder / name, tmp_path / name)
    with pytest.raises(
        ValueError,
        match=r"missing 1 key\(s\): vision_model.encoder.layers.1.self_attn.k_proj.bias; "
        r"unexpected 1 key\(s\): vision_model.encoder.extra",
    ):
        load_reward("pickscore", weights=tmp_path)
    state = load_file(small_blip.folder / "ImageReward.safetensors")
    del state["mlp.layers.4.bias"]
    save_file(state, tmp_path / "ImageReward.safetensors")
    with pytest.raises(ValueError, match=r"missing 1 key\(s\): mlp.layers.4.bias"):
        load_reward(
            "image_reward",
            weights=tmp_path / "ImageReward.safetensors",
            config={"vision": {"heads": 4}, "med_config": {"num_attention_heads": 4}},
        )


def test_a_tensor_of_another_shape_is_named(small_clip, tmp_path):
    state = load_file(small_clip.folder / "model.safetensors")
    state["text_model.encoder.layers.0.mlp.fc2.bias"] = torch.zeros(31)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers.0.mlp.fc2.bias has shape \(31,\), expected \(32,\)"):
        load_reward(
            "pickscore",
            weights=tmp_path / "model.safetensors",
            config=small_clip.folder / "config.json",
            vocab=small_clip.folder,
        )


def test_heads_that_do_not_fit_ask_for_the_configuration(small_clip, tmp_path):
    shutil.copy(small_clip.folder / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"width 48 cannot be split into attention heads.*give the configuration"):
        load_reward("pickscore", weights=tmp_path)
