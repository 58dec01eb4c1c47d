"""What is installed, published and promised: requirements, the registry's entry, its archive, the workflows."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from reneg_core.conventions import FAMILIES
from reneg_core.rewards.published import WEIGHTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="reading TOML needs Python 3.11")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMFY = PROJECT["tool"]["comfy"]
ADDRESS = PROJECT["project"]["urls"]["Repository"]
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview"}
BROUGHT = {"torch", "numpy", "PIL", "safetensors", "tokenizers", "transformers", "tqdm", "yaml"}
"""What ComfyUI's own requirements install."""
BROUGHT_ALONG = {"filelock": "torch", "jinja2": "torch", "huggingface_hub": "transformers"}
"""What these in turn install, always."""
OPTIONAL = {
    "accelerate": ("reneg_core/training/workers.py",),
    "diffusers": ("nodes/host/pipelines.py", "reneg_core/backends/"),
    "peft": ("reneg_core/texforce/adapter.py",),
    "pyiqa": ("reneg_core/rewards/pyiqa_metric.py",),
}
"""What is imported late, in these modules alone, for those who have it: processes of ``accelerate launch``, the video
models that ComfyUI does not run, a LoRA's layers while a text encoder is tuned, the metrics of pyiqa."""


def requirements() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {found.name: found for found in (Requirement(line) for line in lines if line and line[0] != "#")}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module of this repository imports, also where it does so late."""
    package = path.relative_to(ROOT).parent.parts
    for found in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(found, ast.Import):
            yield from (name.name for name in found.names)
        elif isinstance(found, ast.ImportFrom):
            parents = package[: len(package) + 1 - found.level] if found.level else ()
            module = ".".join([*parents, *filter(None, [found.module])])
            yield from (module, *(f"{module}.{name.name}" for name in found.names))


def reached_by_the_nodes() -> dict[str, set[str]]:
    """Foreign packages by name, and which of this repository's modules import them."""
    left, seen, foreign = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py")], set(), {}
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            top = name.split(".")[0]
            if top in ("nodes", "reneg_core"):
                place = ROOT.joinpath(*name.split("."))
                left += [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
            elif top and top not in sys.stdlib_module_names:
                foreign.setdefault(top, set()).add(path.relative_to(ROOT).as_posix())
    return foreign


def test_requirements_are_what_the_nodes_import_and_comfyui_lacks() -> None:
    reached = reached_by_the_nodes()
    for name, places in OPTIONAL.items():
        assert {file for file in reached.get(name, ()) if not file.startswith(places)} == set(), name
    assert set(reached) - HOST - BROUGHT - set(BROUGHT_ALONG) - set(OPTIONAL) == set(requirements())


def test_requirements_are_the_packages_own_and_only_lower_bounds() -> None:
    own = {str(Requirement(line)) for line in PROJECT["project"]["dependencies"]}
    assert {str(line) for line in requirements().values()} <= own
    for line in PROJECT["project"]["dependencies"]:
        assert {part.operator for part in Requirement(line).specifier} == {">="}, line


@pytest.mark.parametrize("page", ["README.md", "docs/comfyui.md"])
def test_what_is_promised_to_be_installed_is_installed(page: str) -> None:
    """Each package of requirements.txt is named where the command is, and no other way of installing is offered."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "pip install -r custom_nodes/reneg/requirements.txt" in text
    for name in requirements():
        assert name in text
    assert not re.search(r"comfy node install|search for \*ReNeg\*", text)


def test_the_placeholder_of_the_address_is_told_in_one_place() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "web").rglob("*.md")]
    found = [page.name for page in pages if "reneg-project" in page.read_text(encoding="utf-8")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert found == [] and readme.count("not published yet") == 1 and "placeholder" in readme
    assert COMFY["Icon"].startswith(ADDRESS.replace("github.com", "raw.githubusercontent.com"))


def test_the_icon_is_there_and_small_enough() -> None:
    path = COMFY["Icon"].split("/main/")[1]
    with Image.open(ROOT / path) as icon:
        assert icon.format == "PNG" and max(icon.size) <= 400
    assert (ROOT / path).with_suffix(".svg").is_file()


def test_the_registry_is_told_of_every_published_file() -> None:
    models = {entry["location"]: entry["model_url"] for entry in COMFY["Models"]}
    assert len(models) == len(COMFY["Models"])
    rewards = {
        f"/reward_models/{file.place.as_posix()}": file.url
        or f"https://huggingface.co/{file.repository}/resolve/main/{file.name}"
        for file in WEIGHTS
    }
    told = " ".join(family.published for family in FAMILIES.values())
    embeddings = {f"/reneg/{name}" for name in re.findall(r"\S+_reneg_emb\.bin", told)}
    assert models == rewards | {place: models.get(place) for place in embeddings}
    assert all(models[place].endswith(place.rsplit("/", 1)[1]) for place in embeddings)


def test_the_archive_leaves_out_what_does_not_run_and_nothing_else() -> None:
    lines = (ROOT / ".comfyignore").read_text().splitlines()
    left_out = {line.rstrip("/") for line in lines if line and line[0] != "#"}
    assert all((ROOT / name).exists() for name in left_out)
    kept = {"__init__.py", "nodes", "reneg_core", "web", "locales", "workflows", "pyproject.toml", "requirements.txt"}
    assert not left_out & (kept | {"docs", "LICENSE", "README.md", "CHANGELOG.md", "subgraphs"})
    assert {"tests", "benchmarks", "scripts", ".github"} <= left_out


def test_the_workflows_run_what_the_documents_say() -> None:
    tests, publish = (
        yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text()) for name in ("tests", "publish")
    )
    jobs = tests["jobs"]
    assert jobs["core"]["strategy"]["matrix"]["os"] == ["ubuntu-latest", "windows-latest"]
    versions = jobs["comfyui"]["strategy"]["matrix"]["version"]
    told = " ".join((ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8").split())
    assert all(f"{version} (page" in told for version in versions) and len(versions) == 2
    assert f">={versions[0]}" == COMFY["requires-comfyui"]
    assert tests[True]["workflow_call"] is None and publish[True]["push"]["branches"] == ["main"]  # YAML reads "on"
    assert publish["jobs"]["tests"]["uses"] == "./.github/workflows/tests.yml"
    [*_, action] = publish["jobs"]["publish"]["steps"]
    assert publish["jobs"]["publish"]["needs"] == "tests"
    assert action["uses"].startswith("Comfy-Org/publish-node-action@")
    assert action["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}
