"""YAML configurations: the recipes damaged, values of other kinds, and what YAML itself allows."""

import random
from pathlib import Path

import yaml

from reneg_core.training.run_config import RECIPES, load_run_config

from .damage import Maker, Target, damaged, odd_value


def config_files(folder: Path) -> Maker:
    """YAML configurations: the recipes damaged, values of other kinds, and what YAML itself allows."""
    path, wholes = folder / "case.yaml", [recipe.read_bytes() for recipe in sorted(RECIPES.glob("*.yaml"))]
    laughs = b"a: &a [x]\nb: &b [*a,*a]\n"
    laughs += b"".join(b"%c: &%c [*%c,*%c]\n" % (c + 1, c + 1, c, c) for c in range(98, 121))
    odd = (
        laughs, b"[" * 100_000, b"{" * 5000, b"? [1, 2]\n: 3\n", b"1: 2\n", b"null: 2\n", b"- 1\n- 2\n", b"<<: 3\n",
        b"!!python/object/apply:os.system [true]", b"steps: !!binary aGVsbG8=\n", b"&a steps: *a\n", b"\x00",
        b"a: b: c", b"steps: 0x" + b"f" * 9000, b"steps: " + b"9" * 9000, b"\xff\xfe\x00", b"steps: 1\nsteps: 2\n",
        b"sampling: [1]\n", b"sampling: {1: 2}\n", b"sampling: &a {x: *a}\n", b"jitter: {? [1] : 2}\n",
        b"--- 1\n--- 2\n",
        b"2020-01-01: 1\n", b"steps: 2020-01-01\n", b"betas: {0.1, 0.2}\n", b"betas: &a [*a, *a]\n",
        b"jitter: &a [*a]\n",
    )  # fmt: skip

    def make(chance: random.Random) -> tuple[str, Path]:
        kind = chance.choice(("sound", "damaged", "values", "values", "odd"))
        if kind in ("sound", "damaged"):
            data = chance.choice(wholes)
            data = damaged(chance, data) if kind == "damaged" else data
        else:
            data = chance.choice(odd) if kind == "odd" else _odd_settings(chance)
        path.write_bytes(data)
        return kind, path

    return make


def _odd_settings(chance: random.Random) -> bytes:
    names = sorted(load_run_config().to_mapping())
    values = {chance.choice((name, name, name + "x", 7)): odd_value(chance) for name in chance.sample(names, 2)}
    return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")


def read_config(path: Path) -> None:
    """Read; what was accepted is written and read again as the same."""
    config = load_run_config(str(path))
    again = path.with_name("again.yaml")
    again.write_text(config.to_yaml(), encoding="utf-8")
    if load_run_config(str(again)) != config:
        raise AssertionError("what was written is not what was read")


CONFIGS = Target("configs", read_config, (ValueError,), config_files)
