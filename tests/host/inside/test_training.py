"""Training through the host's MODEL: the gradient is right, the host is as before, stop and resume keep the best."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import comfy.sd
import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from reneg_pack.nodes.adapting import AdaptEmbedding
from reneg_pack.nodes.embedding import LoadEmbedding
from reneg_pack.nodes.host import files, rewards
from reneg_pack.nodes.host.model import HostModel
from reneg_pack.nodes.host.probing import resident_clone
from reneg_pack.nodes.host.tensors import unusable
from reneg_pack.nodes.layout import to_host
from reneg_pack.nodes.older import TrainEmbedding

import nodes
from reneg_core.guidance import Guidance
from reneg_core.model import Conditioning
from reneg_core.sampling import Sampling, Size
from reneg_core.training import Batch, Reach, reward_gradient

SIZE = Size(64, 64)

OPTIONS = {
    "width": 64,
    "height": 64,
    "sampling_steps": 4,
    "cfg": 4.0,
    "learning_rate": 0.1,
    "points": 1,
    "micro_batch": 4,
    "scheduler": "normal",
    "solver": "euler",
    "checkpointing": False,
}
TRAIN = {
    **OPTIONS,
    "steps": 6,
    "batch_size": 2,
    "seed": 0,
    "validate_every": 3,
    "validation_pairs": 2,
    "patience": 0,
    "norm_limit": 0.0,
    "prompts": "a red house\na blue bird",
    "prompt_file": "none",
}


@pytest.fixture(scope="module")
def brightness() -> Any:
    return rewards.load("brightness", None, torch.float32)


def render(checkpoint: tuple, positive: list, negative: list) -> tuple[torch.Tensor, torch.Tensor]:
    """What the stock nodes make: latents and picture."""
    latent = nodes.KSampler().sample(
        checkpoint[0], 5, 2, 7.0, "euler", "normal", positive, negative, {"samples": torch.zeros(1, 4, 8, 8)}
    )[0]
    return latent["samples"], nodes.VAEDecode().decode(checkpoint[2], latent)[0]


def parts(checkpoint: tuple, **options: Any) -> dict[str, Any]:
    return dict(zip(("model", "clip", "vae"), checkpoint, strict=True)) | options


class _Late:
    """A model whose schedule begins two levels late."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def sigmas(self, sampling: Sampling) -> torch.Tensor:
        return self._model.sigmas(sampling)[2:]


def gradient_of(
    model: HostModel,
    reward: Any,
    tokens: torch.Tensor,
    checkpointing: bool = False,
    through: int = 1,
    decoder: bool | None = None,
) -> Any:
    """Reward gradient of the first estimate of a schedule that begins late, for one prompt and one seed: no earlier
    step depends on the negative, so that finite differences of the whole measure the same."""

    def work(host: HostModel) -> Any:
        host.checkpointing(checkpointing, decoder)
        batch = Batch(["a red house"], host.encode(["a red house"]), host.noise([3]))
        sampling = Sampling(steps=4, guidance=Guidance(4.0))
        return reward_gradient(_Late(host), reward, batch, Conditioning(tokens), sampling, Reach([0], through))

    return model.run(work)


@pytest.fixture(scope="module")
def models(checkpoint) -> dict[str, tuple]:
    """MODEL, CLIP, VAE of every kind of prediction: the stock nodes read the same weights as another kind."""
    v_model = ModelSamplingDiscrete().patch(checkpoint[0], "v_prediction", False)[0]
    flow = ModelSamplingSD3().patch(checkpoint[0], 3.0)[0]
    sd21 = nodes.CheckpointLoaderSimple().load_checkpoint("reneg-test-sd21.safetensors")[:3]
    return {"epsilon": checkpoint, "v": (v_model, *checkpoint[1:]), "flow": (flow, *checkpoint[1:]), "SD2.1": sd21}


@pytest.mark.parametrize(("kind", "through"), [("epsilon", 1), ("epsilon", 2), ("v", 2), ("flow", 2), ("SD2.1", 2)])
def test_gradient_agrees_with_finite_differences(models, brightness, kind: str, through: int) -> None:
    null = nodes.CLIPTextEncode().encode(models[kind][1], "blurry, dark")[0]
    with torch.inference_mode(False):
        model = HostModel(*models[kind], companions=brightness.patchers, size=SIZE)
        tokens = null[0][0].clone()
        found = gradient_of(model, brightness.reward, tokens, through=through)
        direction = found.tokens / found.tokens.norm()
        step = 0.3
        sides = [
            gradient_of(model, brightness.reward, tokens + sign * step * direction, through=through)
            .rewards.double()
            .sum()
            for sign in (1, -1)
        ]
    numeric = ((sides[0] - sides[1]) / (2 * step)).item()
    assert found.tokens.norm().item() == pytest.approx(numeric, rel=0.05)
    assert numeric > 1e-6


def kept_by(work: Callable[[], Any]) -> tuple[Any, int]:
    """The answer of ``work`` and the bytes that autograd keeps for its backward passes, each storage once; weights are
    there anyway."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        return work(), sum(kept.values())


def test_checkpoints_give_the_same_gradient_keep_less_and_leave(checkpoint, brightness, embedding) -> None:
    with torch.inference_mode(False):
        model, tokens = HostModel(*checkpoint, size=SIZE), embedding.tokens.clone()
        plain, much = kept_by(lambda: gradient_of(model, brightness.reward, tokens, through=2))
        again, little = kept_by(lambda: gradient_of(model, brightness.reward, tokens, checkpointing=True, through=2))
        half, between = kept_by(lambda: gradient_of(model, brightness.reward, tokens, through=2, decoder=True))
    off, alone = (float((one.tokens - plain.tokens).norm() / plain.tokens.norm()) for one in (again, half))
    assert off < 1e-5 and alone < 1e-5
    print(f"off by {off:.1e} and {alone:.1e}, kept {little / 2**20:.1f}, {between / 2**20:.1f}, {much / 2**20:.1f} MiB")
    assert little < between < much
    assert little < 0.5 * much
    assert not any("forward" in vars(module) for module in checkpoint[0].model.modules())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_weights_of_every_type_train(checkpoint, brightness, embedding, dtype: str) -> None:
    """The gradient through weights in fewer bits points where the float32 one does."""
    path = folder_paths.get_full_path_or_raise("checkpoints", "reneg-test-sd15.safetensors")
    options = {"dtype": getattr(torch, dtype)}
    smaller = comfy.sd.load_checkpoint_guess_config(path, model_options=options)[0]
    assert smaller.model.get_dtype() == options["dtype"]
    with torch.inference_mode(False):
        full, other = (
            gradient_of(HostModel(model, *checkpoint[1:], size=SIZE), brightness.reward, embedding.tokens.clone())
            for model in (checkpoint[0], smaller)
        )
    assert other.tokens.isfinite().all()
    assert torch.nn.functional.cosine_similarity(full.tokens.flatten(), other.tokens.flatten(), dim=0) > 0.9


def test_a_fresh_load_is_repaired_again(checkpoint, brightness, embedding) -> None:
    memory.unload_all_models()
    memory.load_models_gpu([checkpoint[0]], force_full_load=True)
    weight = next(iter(checkpoint[0].model.diffusion_model.parameters()))
    with torch.inference_mode(False):
        model = HostModel(*checkpoint, size=SIZE)
        gradient = gradient_of(model, brightness.reward, embedding.tokens.clone()).tokens
    assert gradient.abs().sum() > 0
    assert not weight.requires_grad
    assert not any(unusable(p) for p in checkpoint[0].model.diffusion_model.parameters())


def test_lora_trains_and_the_base_is_unchanged(checkpoint, positive, brightness, embedding) -> None:
    before = render(checkpoint, positive, to_host(embedding))
    patched = nodes.LoraLoader().load_lora(checkpoint[0], checkpoint[1], "reneg-test-lora.safetensors", 1.0, 0.0)
    with torch.inference_mode(False):
        plain = gradient_of(HostModel(*checkpoint, size=SIZE), brightness.reward, embedding.tokens.clone())
        lora = gradient_of(HostModel(*patched, checkpoint[2], size=SIZE), brightness.reward, embedding.tokens.clone())
    assert not torch.equal(plain.tokens, lora.tokens)
    assert all(map(torch.equal, render(checkpoint, positive, to_host(embedding)), before))


def test_training_raises_the_reward_and_leaves_the_host_as_it_was(call, checkpoint, positive, brightness, embedding):
    before = render(checkpoint, positive, to_host(embedding))
    out = call(TrainEmbedding, **parts(checkpoint), reward=brightness, run_name="test_rise", **TRAIN)
    report = json.loads(out[4])
    assert report["reason"] == "done" and report["steps"] == 6
    assert report["best_reward"] > report["start_reward"] + 1e-3
    assert all(map(torch.equal, render(checkpoint, positive, to_host(embedding)), before))
    assert out[2].ndim == 4 and out[3].shape == (4, 64, 64, 3)
    assert "test_rise/negative.safetensors" in files.embedding_names()
    assert not any("checkpoints" in name for name in files.embedding_names())
    _, picture = render(checkpoint, positive, out[0])
    assert not torch.equal(picture, before[1])


def test_the_embedding_records_what_it_was_learned_for(call, checkpoint, brightness) -> None:
    changes = {"steps": 1, "scheduler": "karras", "solver": "dpmpp_2m", "sampling_steps": 5, "last_steps": 2}
    out = call(TrainEmbedding, **parts(checkpoint), reward=brightness, run_name="test_records", **{**TRAIN, **changes})
    wanted = Sampling("dpmpp_2m", 5, "karras", Guidance(4.0), SIZE)
    assert out[1].sampling == wanted and out[1].provenance.base_model == "SD15 (scheduler karras)"
    report = json.loads(out[4])
    assert Sampling.from_mapping(report["sampling"]) == wanted
    assert report["training"] == {"window": [3, 5], "points": 1, "through": 1}
    loaded = call(LoadEmbedding, embedding_name="test_records/negative.safetensors", strength=1.0)
    assert loaded[1].sampling == wanted and f"learned for {wanted.describe()}" in loaded.ui["text"][0]


@pytest.mark.parametrize("vary", [None, "off", "samplers and guidance"])
def test_varying_reaches_the_rollout_and_the_record(
    call, checkpoint, brightness, monkeypatch, vary: str | None
) -> None:
    original, asked = HostModel.sigmas, []

    def noting(self: HostModel, sampling: Sampling) -> torch.Tensor:
        asked.append(sampling)
        return original(self, sampling)

    monkeypatch.setattr(HostModel, "sigmas", noting)
    monkeypatch.setattr("reneg_pack.nodes.running.check_levels", lambda *_: None)
    name, options = f"test_vary_{str(vary)[:3]}", {**TRAIN, "steps": 4, "validate_every": 4, "sampling_steps": 6}
    given = {} if vary is None else {"vary": vary}
    out = call(TrainEmbedding, **parts(checkpoint), reward=brightness, run_name=name, **options, **given)
    base = Sampling("euler", 6, "model", Guidance(4.0), SIZE)
    drawn = {s for s in asked if s.size == SIZE}
    if vary == "samplers and guidance":
        assert len(drawn) > 2 and {s.steps for s in drawn} <= {2, 4, 6}
        assert {s.guidance.scale for s in drawn} <= {2.5, 4.0, 5.5}
        assert {s.spacing for s in drawn} <= {"model", "trailing", "karras"}
        assert out[1].provenance.notes["training"]["jitter"]["steps"] == [2, 4, 6]
        assert (
            "with samplers and guidance around it"
            in call(LoadEmbedding, embedding_name=f"{name}/negative.safetensors", strength=1.0).ui["text"][0]
        )
    else:
        assert drawn == {base} and "jitter" not in out[1].provenance.notes["training"]
    assert asked.count(base) >= 2, "validation is sampled as it was set"
    assert out[1].sampling == base


def test_a_scheduler_without_levels_is_refused_before_the_run(call, checkpoint, brightness) -> None:
    options = {**TRAIN, "scheduler": "ddim_uniform", "sampling_steps": 30}
    with pytest.raises(ValueError, match="ddim_uniform gives 31 steps for 30"):
        call(TrainEmbedding, **parts(checkpoint), reward=brightness, run_name="test_levels", **options)
    assert not (files.run_folder("test_levels") / "metrics.jsonl").exists()


def test_the_scheduler_changes_what_is_learned(call, checkpoint, brightness) -> None:
    found = [
        call(
            TrainEmbedding,
            **parts(checkpoint),
            reward=brightness,
            run_name=f"test_{scheduler}",
            **{**TRAIN, "steps": 1, "validate_every": 1, "scheduler": scheduler},
        )[4]
        for scheduler in ("normal", "karras", "simple")
    ]
    assert len({json.loads(report)["start_reward"] for report in found}) == 3


def test_a_model_that_cannot_be_loaded_again_is_refused_in_words(checkpoint) -> None:
    """Models of other loaders, on hosts that stage weights piece by piece."""

    class Staged:
        model = checkpoint[0].model

        def clone(self, disable_dynamic: bool = False) -> Any:
            raise RuntimeError("Cannot create non-dynamic delegate: cached_patcher_init is not initialized.")

    with pytest.raises(ValueError, match=r"Got a SD15 from a loader .*Load Checkpoint.*--disable-dynamic-vram"):
        resident_clone(Staged())


def test_other_settings_take_a_number_and_say_why(call, checkpoint, brightness, monkeypatch) -> None:
    told = []
    monkeypatch.setattr("reneg_pack.nodes.watching.say", lambda text, node_id: told.append(text))
    inputs = {**parts(checkpoint), "reward": brightness, "run_name": "test_same", **TRAIN, "steps": 1}
    call(TrainEmbedding, **inputs)
    out = call(TrainEmbedding, **{**inputs, "learning_rate": 0.2})
    assert json.loads(out[4])["file"] == "test_same_002/negative.safetensors"
    assert "test_same_002 is a new run, because test_same is another one: learning_rate: the run was" in told[-1]
    again = call(TrainEmbedding, **inputs)
    assert json.loads(again[4])["file"] == "test_same/negative.safetensors"


def test_second_run_does_not_leak(call, checkpoint, brightness) -> None:
    import gc

    def living() -> int:
        gc.collect()
        return sum(t.numel() for t in gc.get_objects() if isinstance(t, torch.Tensor))

    sizes = []
    for name in ("leak_a", "leak_b", "leak_c"):
        call(TrainEmbedding, **parts(checkpoint), reward=brightness, run_name=name, **{**TRAIN, "steps": 1})
        sizes.append(living())
    assert sizes[2] <= sizes[1] * 1.001


def test_adapting_never_lowers_the_reward(call, checkpoint, brightness, embedding) -> None:
    out = call(
        AdaptEmbedding,
        **parts(checkpoint),
        reward=brightness,
        embedding=embedding,
        prompt="a house",
        seed=4,
        pictures=2,
        steps=2,
        patience=2,
        **{**OPTIONS, "learning_rate": 0.02},
    )
    report = json.loads(out[4])
    assert len(out[3]) == 2 and all(a >= b for a, b in zip(report["rewards"], report["start_rewards"], strict=True))
    assert max(report["rewards"]) > max(report["start_rewards"])
    assert out[0].shape == (2, 64, 64, 3)
    assert out[2].sampling == Sampling("euler", 4, "model", Guidance(4.0), SIZE)


def test_what_cannot_be_trained_is_refused_with_the_reason(checkpoint) -> None:
    from reneg_pack.nodes.host.checks import check_trainable, explained

    class Double:
        """The few attributes the checks read, of a distilled model and of an inpainting model."""

        def __init__(self, **changes: Any) -> None:
            config = type("Flux", (), {"unet_config": changes})()
            self.model_options = {}
            self.model = type(
                "M",
                (),
                {
                    "model_config": config,
                    "concat_keys": changes.get("concat_keys", ()),
                    "latent_format": checkpoint[0].model.latent_format,
                },
            )()

    with pytest.raises(ValueError, match=r"a Flux, which as published is guidance-distilled.*Model For Training"):
        check_trainable(Double(guidance_embed=True), checkpoint[2])
    with pytest.raises(ValueError, match="needs more than text"):
        check_trainable(Double(concat_keys=("mask",)), checkpoint[2])
    with pytest.raises(ValueError, match="cannot compute the gradient of SD15"), explained(checkpoint[0]):
        raise RuntimeError("Trying to backward through comfy_kitchen but no autograd formula was registered")


def test_folder_holds_what_the_core_writes() -> None:
    folder = Path(files.run_folder("test_rise"))
    assert {"best.safetensors", "negative.safetensors", "metrics.jsonl"} <= {p.name for p in folder.iterdir()}
