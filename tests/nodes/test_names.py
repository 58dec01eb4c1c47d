"""Without a host: a file of whatever name a graph holds lies in its folder and can be written, or is refused."""

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from .fake_host import imported

TRICKS = [
    "..",
    ".",
    "~",
    "",
    " ",
    "/",
    "\\",
    "C:",
    "con",
    "NUL.safetensors",
    "COM1",
    "\0",
    "\n",
    "\ud800",
    "x" * 300,
    "é" * 130,
]
PARTS = st.one_of(st.sampled_from(TRICKS), st.text(max_size=12), st.text(string.ascii_letters + " .", max_size=12))
NAMES = st.lists(PARTS, max_size=4).flatmap(
    lambda parts: st.sampled_from(["/", "", "\\"]).map(lambda by: by.join(parts))
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """nodes.host.files with an output folder of its own."""
    with imported("host.files") as [found]:
        folder = tmp_path_factory.mktemp("output")
        found.folder_paths.get_output_directory = lambda: str(folder)
        (folder / found.EMBEDDINGS).mkdir()
        yield found


@given(NAMES)
@example("good.safetensors")
@example("folder/good name v1.2")
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_stays_in_its_folder_and_can_be_written_or_is_refused(files: Any, name: str) -> None:
    root: Path = files.output_root()
    try:
        path, run = files.new_file(name), files.run_folder(name)
    except ValueError as error:
        assert str(error).startswith("Got ") and "expected" in str(error) and "\n" not in str(error)
        return
    assert path.resolve().is_relative_to(root.resolve()) and run.resolve().is_relative_to(root.resolve())
    assert path.suffix == ".safetensors" and not path.exists() and run != root
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1")
    assert files.new_file(name) != path, "a second file of the name is another file"
    assert path.read_bytes() == b"1"
    assert files.listed_name(path) == path.relative_to(root).as_posix()
    path.unlink()


@pytest.mark.parametrize(
    "name",
    ["con", "NUL.safetensors", "a/aux.x/b", "com1", "LPT9.txt", "dot.", "folder./x", "space /x", "x" * 260, "\ud800"],
)
def test_names_that_some_system_cannot_have_are_refused_everywhere(files: Any, name: str) -> None:
    """A workflow is shared, so a name that works here must work for who gets it."""
    with pytest.raises(ValueError, match=r"^Got the file name .*, expected a plain name"):
        files.new_file(name)


@pytest.mark.parametrize("name", ["console", "run 1", "v1.2/best", ".hidden", "négatif", "負", "auxiliary.con"])
def test_ordinary_names_are_taken(files: Any, name: str) -> None:
    assert files.new_file(name) == files.output_root() / f"{name}.safetensors"
