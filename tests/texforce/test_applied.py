"""LoRAs in a model: merged, weighted, together with one of the UNet and a learned negative, in what uses models."""

import json
from pathlib import Path

import pytest
import torch
from builders import pipeline, pipeline_folder
from PIL import Image
from pipelines import sdxl
from tunable import LAYER, encoded, random_lora

from reneg_core import NegativeEmbedding
from reneg_core.backends import load_model, wrap
from reneg_core.backends.lora_terms import Weighted, parse_loras
from reneg_core.backends.loras import with_loras
from reneg_core.cli import main
from reneg_core.texforce.lora import TextLora, fuse


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, two LoRAs of its text encoder, one of its UNet, and an embedding."""
    folder = tmp_path_factory.mktemp("files")
    pipeline_folder(folder / "sd")
    model = load_model(folder / "sd", device="cpu", dtype="fp32")
    for seed, name in enumerate(("one", "two")):
        random_lora(model.text_encoders(), seed=seed).save(folder / f"{name}.safetensors")
    save_unet_lora(model.pipeline, folder)
    NegativeEmbedding(model.encode(["ugly"]).tokens, model.family).save(folder / "negative.safetensors")
    return folder


def save_unet_lora(pipe, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    torch.manual_seed(0)
    for name, parameter in pipe.unet.named_parameters():
        if "lora" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet), weight_name="unet.safetensors"
    )
    pipe.unet.delete_adapters("default")


@pytest.mark.parametrize("make", [pipeline, sdxl])
def test_merged_is_as_tuned_and_the_model_itself_stays(make, tmp_path: Path) -> None:
    model = wrap(make(), "random")
    plain, lora = encoded(model), random_lora(model.text_encoders())
    path = lora.save(tmp_path / "lora.safetensors")
    tuned = with_loras(model, [Weighted(str(path))])
    assert (encoded(tuned) - encoded(model, lora)).abs().max() < 1e-5
    assert torch.equal(encoded(model), plain) and (encoded(tuned) - plain).abs().max() > 0.01
    assert tuned.name == "random + lora.safetensors" and tuned.network is model.network
    assert {k for k, v in tuned.contents().items() if model.contents()[k] != v} == {
        name.replace("_", " ") for name in lora.encoders
    }
    shared = [
        a is b
        for name in lora.encoders
        for a, b in zip(model.text_encoders()[name].parameters(), tuned.text_encoders()[name].parameters(), strict=True)
    ]
    assert shared.count(False) == len(lora.layers)
    assert with_loras(model, []) is model


def test_weights_and_several_add_up(files: Path) -> None:
    model = load_model(files / "sd", device="cpu", dtype="fp32")
    one, two = (str(files / f"{name}.safetensors") for name in ("one", "two"))
    both = with_loras(model, [Weighted(one, 0.5), Weighted(two, -1.0)])
    loras = [random_lora(model.text_encoders(), seed=seed) for seed in (0, 1)]
    fused = fuse([(loras[0], 0.5), (loras[1], -1.0)])
    assert (encoded(both) - encoded(model, fused)).abs().max() < 1e-5


def test_a_lora_of_the_unet_is_taken_too(files: Path) -> None:
    model = load_model(files / "sd", device="cpu", dtype="fp32")
    noise, said = 3 * model.noise([1]), model.encode(["a fox"])
    plain = model.denoise(noise, torch.tensor(2.0), said)
    full, half = (with_loras(model, [Weighted(str(files / "unet.safetensors"), w)]) for w in (1.0, 0.5))
    moved = [one.denoise(noise, torch.tensor(2.0), said) - plain for one in (full, half)]
    assert moved[0].abs().max() > 1e-3 and 0.2 < moved[1].norm() / moved[0].norm() < 0.8
    assert torch.equal(model.denoise(noise, torch.tensor(2.0), said), plain)
    assert torch.equal(encoded(full), encoded(model))
    both = with_loras(model, [Weighted(str(files / "unet.safetensors")), Weighted(str(files / "one.safetensors"))])
    assert torch.equal(both.denoise(noise, torch.tensor(2.0), said), full.denoise(noise, torch.tensor(2.0), said))
    assert (encoded(both) - encoded(model)).abs().max() > 0.01


def test_a_lora_of_another_model_is_refused(files: Path, tmp_path: Path) -> None:
    model = load_model(files / "sd", device="cpu", dtype="fp32")
    wide = TextLora({LAYER.format(0): (torch.ones(1, 9), torch.ones(9, 1))}).save(tmp_path / "wide.safetensors")
    with pytest.raises(
        ValueError, match=r"of \[9, 9\] numbers for .*q_proj, which in this model has \[32, 32\] numbers"
    ):
        with_loras(model, [Weighted(str(wide))])
    deep = TextLora({LAYER.format(7): (torch.ones(1, 9), torch.ones(9, 1))}).save(tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match="which in this model it does not have"):
        with_loras(model, [Weighted(str(deep))])
    with pytest.raises(FileNotFoundError, match="No LoRA at"):
        with_loras(model, [Weighted("none.safetensors")])
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="damaged or truncated"):
        with_loras(model, [Weighted(str(tmp_path / "bad.safetensors"))])


def test_terms() -> None:
    assert parse_loras("") == [] and parse_loras("a + b*0.5") == [("a", 1.0), ("b", 0.5)]
    assert str(Weighted("a", 0.5)) == "a*0.5" and str(Weighted("a")) == "a"
    for text in ("a*much", "a + ", "*2", "a*nan"):
        with pytest.raises(ValueError, match="Got the LoRA"):
            parse_loras(text)


# in commands

SAMPLING = ["--steps", "2", "--guidance-scale", "3", "--device", "cpu", "--dtype", "fp32"]


def test_infer_draws_with_all_three(files: Path, tmp_path: Path) -> None:
    common = ["infer", "--model", str(files / "sd"), *SAMPLING, "--prompt", "a fox", "--neg-embedding"]
    common += [str(files / "negative.safetensors")]
    pictures = {}
    for name, loras in (("plain", []), ("text", ["one"]), ("both", ["one", "unet"])):
        given = [word for lora in loras for word in ("--lora", f"{files / lora}.safetensors*1")]
        assert main([*common, *given, "--output", str(tmp_path / name)]) == 0
        pictures[name] = Image.open(next((tmp_path / name).iterdir())).tobytes()
    assert len(set(pictures.values())) == 3


def test_evaluate_has_columns_for_tuned_models(files: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "p.txt").write_text("a fox\nblue\n")
    words = ["evaluate", "--model", str(files / "sd"), *SAMPLING, "--prompts", str(tmp_path / "p.txt")]
    words += ["--embedding", str(files / "negative.safetensors"), "--modes", "none", "embedding", "--noises", "1"]
    words += ["--reward", "brightness", "--pictures", "1", "--output", str(tmp_path / "out")]
    tuned = f"{files / 'one.safetensors'}*0.5 + {files / 'unet.safetensors'}"
    assert main([*words, "--tuned", f"texforce={files / 'one.safetensors'}", "--tuned", f"both={tuned}"]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    modes = ["none", "embedding", "texforce", "texforce+embedding", "both", "both+embedding"]
    assert [mode for mode in report if mode in modes] == modes
    assert len({report[mode]["reward_mean"] for mode in modes}) == 6
    for bad in ("texforce", "a b=x", "t="):
        assert main([*words, "--tuned", bad]) == 1
        assert f"Got --tuned {bad}, expected NAME=FILE[*WEIGHT]" in capsys.readouterr().err


def test_a_negative_is_learned_on_top_of_a_tuned_encoder(files: Path, tmp_path: Path) -> None:
    quick = ["steps=1", "batch_size=2", "micro_batch=2", "sampling.steps=2", "window=[0,2]", "validation_pairs=1"]
    (tmp_path / "p.txt").write_text("a fox\nblue\n")
    words = [
        "train",
        *quick,
        f"model={files / 'sd'}",
        "reward=brightness",
        f"prompts={tmp_path / 'p.txt'}",
        "device=cpu",
    ]
    lora = f"{files / 'one.safetensors'}*0.5"
    assert main([*words, f"loras={lora}", f"output={tmp_path / 'tuned'}"]) == 0
    assert main([*words, f"output={tmp_path / 'plain'}"]) == 0
    from reneg_core import load_embedding

    found = [load_embedding(tmp_path / name / "negative.safetensors") for name in ("tuned", "plain")]
    assert found[0].provenance.base_model.endswith("sd + one.safetensors")
    assert not torch.allclose(found[0].tokens, found[1].tokens, atol=0.01)
    other = [*words, f"output={tmp_path / 'tuned'}", "--resume"]
    assert main(other) == 1, "another encoder is another run"
    assert main(["train", "--config", str(tmp_path / "tuned/config.yaml"), "--resume", "steps=2"]) == 0
