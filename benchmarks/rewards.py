"""Full-size reward models (random weights in the official layout) against the original packages.

  python benchmarks/rewards.py --reward image_reward --original /path/to/python/with/image-reward
  python benchmarks/rewards.py --reward hpsv2.1 --original /path/to/python/with/hpsv2 --dtype bf16

Both sides read the same PNG files, load the same weight file, and run in processes of their own, in turn. Measured:
wall-clock and CPU seconds per call from file names to scores, peak resident memory of the process, and the difference
of the scores. On a machine that does other work too, set OMP_NUM_THREADS=1 and read the CPU seconds.
ImageReward: one call with 32 pictures. HPSv2: calls with one picture each, as its package is used.
"""

import argparse
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from measure import publish, table

PROMPT = "a photograph of a red fox in the snow at night, highly detailed"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BERT = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", choices=("image_reward", "hpsv2.1"), required=True)
    parser.add_argument("--original", help="python of an environment with the original package; without: ours alone")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="ours only; the original computes in fp32")
    parser.add_argument("--images", type=int, default=32, help="pictures of the ImageReward call (%(default)s)")
    parser.add_argument("--repeat", type=int, default=2, help="processes of each side (%(default)s)")
    parser.add_argument("--folder", type=Path, help="keep the random weights here (several GB) and reuse them")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(json.load(sys.stdin))
    with tempfile.TemporaryDirectory() as temporary:
        return compare(args, args.folder or Path(temporary))


def compare(args, folder):
    job = prepare(args, folder)
    sides = {"ours": [sys.executable, __file__, "--reward", args.reward, "--worker"]}
    if args.original:
        sides["original"] = [args.original, str(Path(__file__).with_name("rewards_original.py"))]
    runs = {name: [] for name in sides}
    for _ in range(args.repeat):
        for name, command in sides.items():
            runs[name].append(run(command, job))
    result = {name: summary(found, job) for name, found in runs.items()}
    result |= {"reward": args.reward, "dtype": args.dtype, "pictures_per_call": len(job["calls"][-1])}
    if args.original:
        result |= ratios(result, runs)
    columns = ("seconds_per_call", "cpu_seconds_per_call", "pictures_per_second", "peak_gib")
    rows = [[name, *(f"{result[name][column]:.3f}" for column in columns)] for name in sides]
    print(table(rows, ["side", "s/call", "CPU s/call", "pictures/s", "peak GiB"]))
    publish(f"rewards_{args.reward}_{args.dtype}", result)
    return 0


def run(command, job):
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(runs, job):
    """The first call of a process warms up and is left out."""
    calls = [seconds for found in runs for seconds in found["seconds"][1:]]
    cpu = statistics.median(seconds for found in runs for seconds in found["cpu_seconds"][1:])
    per_call = statistics.median(calls)
    return {
        "seconds_per_call": per_call,
        "cpu_seconds_per_call": cpu,
        "pictures_per_second": len(job["calls"][-1]) / per_call,
        "calls": calls,
        "peak_gib": max(found["peak_bytes"] for found in runs) / 2**30,
    }


def ratios(result, runs):
    ours, original = (torch.tensor(runs[name][0]["scores"]) for name in ("ours", "original"))
    return {
        "speed_up": result["original"]["seconds_per_call"] / result["ours"]["seconds_per_call"],
        "speed_up_cpu_time": result["original"]["cpu_seconds_per_call"] / result["ours"]["cpu_seconds_per_call"],
        "memory_ratio": result["ours"]["peak_gib"] / result["original"]["peak_gib"],
        "largest_score_difference": (ours - original).abs().max().item(),
        "score_spread": original.std().item() if len(original) > 1 else None,
    }


def worker(job):
    """Ours: the library behind `reneg score`."""
    from reneg_core.rewards import load_reward
    from reneg_core.score import score_files

    reward = load_reward(job["reward"], weights=job["weights"], vocab=job["vocab"], dtype=DTYPES[job["dtype"]])
    seconds, cpu_seconds, results = [], [], []
    for images in job["calls"]:
        clock, cpu = time.perf_counter(), time.process_time()
        results = score_files(reward, [Path(image) for image in images], job["prompts"] * len(images))
        seconds.append(time.perf_counter() - clock)
        cpu_seconds.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {"seconds": seconds, "cpu_seconds": cpu_seconds, "scores": [r.score for r in results], "peak_bytes": peak}
        )
    )
    return 0


def prepare(args, folder):
    """Random weights, vocabulary and pictures; one warm-up call, then the measured ones."""
    folder.mkdir(parents=True, exist_ok=True)
    images = write_pictures(folder, args.images if args.reward == "image_reward" else 4)
    job = {"reward": args.reward, "dtype": args.dtype, "prompts": [PROMPT]}
    if args.reward == "image_reward":
        weights, vocab = folder / "ImageReward.pt", folder / "vocab.txt"
        (folder / "med_config.json").write_text(json.dumps(BERT))
        write_bert_vocabulary(vocab)
        make_once(weights, image_reward_state)
        return job | {
            "weights": str(weights),
            "vocab": str(vocab),
            "med_config": str(folder / "med_config.json"),
            "calls": [images[:1], images],
        }
    weights, vocab = folder / "HPS_v2.1_compressed.pt", folder / "bpe_simple_vocab_16e6.txt.gz"
    make_once(weights, hpsv2_state)
    write_bpe(vocab)
    return job | {"weights": str(weights), "vocab": str(vocab), "calls": [[image] for image in images]}


def make_once(path, state):
    if not path.exists():
        torch.save(state(), path)


def image_reward_state():
    """The 625 published tensors with random values."""
    from reneg_core.rewards.blip import LAYOUT, BlipNetwork, TextEncoder
    from reneg_core.rewards.transformer import Stack, VisionTransformer

    with torch.device("meta"):
        vision = VisionTransformer(
            Stack(width=1024, hidden=4096, depth=24, heads=16, eps=1e-6, act="gelu"),
            image_size=224,
            patch_size=16,
            pre_norm=False,
            patch_bias=True,
            first_only=False,
        )
        bert = Stack(width=768, hidden=3072, depth=12, heads=12, eps=1e-12, act="gelu")
        text = TextEncoder(bert, rows=30524, context=512, image_width=1024)
    state = published(BlipNetwork(vision, text), LAYOUT)
    state["blip.visual_encoder.cls_token"] = state["blip.visual_encoder.cls_token"].view(1, 1, -1)
    state["blip.visual_encoder.pos_embed"] = state["blip.visual_encoder.pos_embed"][None]
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    for side, width in (("vision", 1024), ("text", 768)):
        state |= {f"blip.{side}_proj.weight": torch.zeros(256, width), f"blip.{side}_proj.bias": torch.zeros(256)}
    sizes = (768, 1024, 128, 64, 16, 1)
    for layer, source, target in zip((0, 2, 4, 6, 7), sizes[:-1], sizes[1:], strict=True):
        state[f"mlp.layers.{layer}.weight"] = torch.randn(target, source) / source**0.5
        state[f"mlp.layers.{layer}.bias"] = torch.zeros(target)
    return state


def hpsv2_state():
    """ViT-H/14 in float16 under open_clip's names, wrapped as released."""
    from torch import nn

    from reneg_core.rewards.clip import OPEN_CLIP, ImageTower, TextTower, TextTransformer
    from reneg_core.rewards.transformer import Stack, VisionTransformer

    with torch.device("meta"):
        vision = VisionTransformer(
            Stack(width=1280, hidden=5120, depth=32, heads=16, eps=1e-5, act="gelu"),
            image_size=224,
            patch_size=14,
            pre_norm=True,
            patch_bias=False,
            first_only=True,
        )
        prompt = Stack(width=1024, hidden=4096, depth=24, heads=16, eps=1e-5, act="gelu")
        text = TextTransformer(prompt, rows=49408, context=77)
        network = nn.ModuleDict({"image": ImageTower(vision, 1024), "text": TextTower(text, 1024)})
    state = published(network["image"], OPEN_CLIP) | published(network["text"], OPEN_CLIP)
    state["logit_scale"] = torch.tensor(4.6052)
    return {"state_dict": {key: value.half() for key, value in state.items()}}


def published(network, layout):
    """Random values for every parameter of `network` under the published names."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, parameter in network.named_parameters():
        rule, keys = layout.rule(name)
        table_like = parameter.ndim == 1 or "embedding" in name or "positions" in name
        scale = 0.02 if table_like else parameter[0].numel() ** -0.5
        value = torch.randn(parameter.shape, generator=generator) * scale
        value = value + 1 if "norm" in name and name.endswith("weight") else value
        value = value.t().contiguous() if rule.transposed else value
        state |= dict(zip(keys, (part.clone() for part in value.chunk(len(keys))), strict=True))
    return state


def write_bert_vocabulary(path):
    """As many entries as bert-base-uncased: the special tokens, letters, and fillers."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.!?'"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
        *sorted(set(PROMPT.replace(",", "").split()) - set(letters)),
    ]
    path.write_text("\n".join([*words, *(f"filler{i}" for i in range(30522 - len(words)))]) + "\n")


def write_bpe(path):
    """A merge list of the published length. To compare scores too, put the published file there beforehand."""
    if path.exists():
        return
    stems = [f"{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz"]
    merges = [" ".join(stem) for stem in stems]
    merges += [f"{first} {second}" for first in stems for second in stems][: 48894 - len(merges)]
    path.write_bytes(gzip.compress(("#version\n" + "\n".join(merges) + "\n").encode()))


def write_pictures(folder, count):
    from PIL import Image

    paths = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        coarse = torch.rand(1, 3, 16, 16, generator=generator)
        picture = torch.nn.functional.interpolate(coarse, (512, 512), mode="bicubic").clamp(0, 1)[0]
        pixels = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        paths.append(folder / f"picture{i:02d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return [str(path) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
