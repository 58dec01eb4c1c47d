"""One benchmark run of an original reward package, in the package's own environment (see rewards.py, which calls it).

Reads a job from standard input as JSON, prints one JSON line: seconds of every call, scores, peak memory.
The packages are used unmodified; what their environment lacks for reasons that do not concern speed (a vocabulary that
they would download, a display, a training module's dependencies) is put in their way here and nowhere else.
"""

import importlib.util
import json
import resource
import sys
import time
import types
import warnings

warnings.filterwarnings("ignore")


def main():
    job = json.load(sys.stdin)
    prepare_torchvision()
    score, prompts = {"image_reward": image_reward, "hpsv2.1": hpsv2}[job["reward"]](job)
    seconds, cpu_seconds, scores = [], [], None
    for images in job["calls"]:
        clock, cpu = time.perf_counter(), time.process_time()
        scores = score(prompts[0], images)
        seconds.append(time.perf_counter() - clock)
        cpu_seconds.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    scores = scores if isinstance(scores, list) else [scores]
    print(
        json.dumps(
            {"seconds": seconds, "cpu_seconds": cpu_seconds, "scores": [float(x) for x in scores], "peak_bytes": peak}
        )
    )


def prepare_torchvision():
    """Its transforms are all that is needed; operators of a wheel made for another torch build are not."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")


def bare_package(name):
    """`name` importable without running its __init__ (which imports training code)."""
    package = types.ModuleType(name)
    package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = package


def image_reward(job):
    bare_package("ImageReward")
    from ImageReward.models.BLIP import blip, blip_pretrain
    from transformers import BertTokenizer

    def tokenizer_from_file():
        tokenizer = BertTokenizer(vocab_file=job["vocab"])
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        tokenizer.enc_token_id = tokenizer.additional_special_tokens_ids[0]
        return tokenizer

    blip.init_tokenizer = blip_pretrain.init_tokenizer = tokenizer_from_file
    from ImageReward.utils import load

    stdout, sys.stdout = sys.stdout, sys.stderr
    model = load(job["weights"], device="cpu", med_config=job["med_config"])
    sys.stdout = stdout
    return model.score, job["prompts"]


def hpsv2(job):
    sys.modules["turtle"] = types.ModuleType("turtle")
    sys.modules["turtle"].forward = None
    for name in ("clint", "clint.textui"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["clint.textui"].progress = None
    bare_package("hpsv2")
    from hpsv2 import img_score
    from hpsv2.src.open_clip import create_model_and_transforms

    model, _, preprocess = create_model_and_transforms(
        "ViT-H-14",
        None,
        precision="amp",
        device="cpu",
        jit=False,
        output_dict=True,
        light_augmentation=True,
        aug_cfg={},
        with_score_predictor=False,
        with_region_predictor=False,
    )
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    return (lambda prompt, images: img_score.score(images, prompt, cp=job["weights"])), job["prompts"]


if __name__ == "__main__":
    main()
