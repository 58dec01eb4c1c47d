"""LoRAs as people write them: files with weights."""

from typing import NamedTuple


class Weighted(NamedTuple):
    """A LoRA's file or folder, and how much of it."""

    path: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.path if self.weight == 1 else f"{self.path}*{self.weight:g}"


def parse_loras(text: str) -> list[Weighted]:
    """``"a.safetensors*0.7 + b.safetensors"`` as files with weights, none for an empty text.

    Errors: ValueError for an empty term and a weight that is no finite number.
    """
    found = []
    for term in text.split(" + ") if text.strip() else []:
        path, star, weight = term.strip().rpartition("*")
        try:
            found.append(Weighted(path.strip(), float(weight)) if star else Weighted(weight.strip()))
        except ValueError:
            raise ValueError(
                f"Got the LoRA {term.strip()!r}, expected FILE or FILE*WEIGHT, joined with ' + '."
            ) from None
    bad = [one for one in found if not one.path or not abs(one.weight) < float("inf")]
    if bad:
        raise ValueError(f"Got the LoRA {str(bad[0])!r}, expected a file and a finite weight.")
    return found
