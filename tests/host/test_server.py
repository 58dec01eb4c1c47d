"""A real ComfyUI process with the pack installed: nodes, workflows, stop, faults, queue, restart, resume, client."""

import json
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from typing import Any

import graphs
import hosting
import pytest
from hosting import PACK, Server

CONTRACT = PACK / "tests" / "nodes" / "contract.json"


def queue(server: Server, graph: dict[str, Any]) -> str:
    answer = graphs.request(server, "/prompt", {"prompt": graph})
    assert not answer["node_errors"], answer
    return answer["prompt_id"]


def refused(server: Server, graph: dict[str, Any]) -> str:
    with pytest.raises(urllib.error.HTTPError) as error:
        graphs.request(server, "/prompt", {"prompt": graph})
    assert error.value.code == 400
    return error.value.read().decode()


def contract_of(info: dict[str, Any]) -> dict[str, Any]:
    """What may never change: input names in order, their types, output types in order."""
    inputs = {
        group: {name: kind if isinstance(kind := spec[0], str) else "COMBO" for name, spec in part.items()}
        for group, part in info["input"].items()
        if group != "hidden"
    }
    return {
        "inputs": inputs,
        "outputs": info["output"],
        "output_names": info["output_name"],
        "list_outputs": info["output_is_list"],
        "display_name": info["display_name"],
    }


def test_every_node_is_registered_as_the_contract_says(server) -> None:
    info = graphs.request(server, "/object_info")
    ours = {name: contract_of(node) for name, node in info.items() if name.startswith("ReNeg")}
    assert ours == json.loads(CONTRACT.read_text()), "node ids and input names are stable for ever: see contract.json"
    assert all(info[name]["description"] and info[name]["category"] == "ReNeg" for name in ours)
    for name in ours:
        parts = [part for group, part in info[name]["input"].items() if group != "hidden"]
        bare = [field for part in parts for field, spec in part.items() if not spec[1].get("tooltip")]
        assert bare == [], f"{name}: {bare} have no tooltip"


@pytest.mark.parametrize("name", graphs.NAMES)
def test_workflow_runs_to_the_end(name: str, server) -> None:
    graph = graphs.small(name)
    absent = {node["class_type"] for node in graph.values()} - {*graphs.request(server, "/object_info")}
    if absent == {"NAGuidance"}:
        pytest.skip("THIS COMFYUI HAS NO NAGuidance: its template is not run")
    entry = graphs.wait(server, queue(server, graph))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    assert entry["outputs"]


@pytest.mark.parametrize("name", [name for name in graphs.NAMES if graphs.stood_in(graphs.load(name))])
def test_the_host_accepts_a_template_whose_loaders_are_replaced_above(name: str, server) -> None:
    """With files of the names that it has, which are empty: the first one that is loaded ends it."""
    graph = graphs.load(name)
    named = [
        (part, value) for node in graph.values() for part, value in node["inputs"].items() if part in graphs.FOLDERS
    ]
    files = [server.base / "models" / graphs.FOLDERS[part] / value for part, value in named]
    assert "not in" in refused(server, graph)
    try:
        for file in files:
            file.parent.mkdir(exist_ok=True)
            file.touch()
        entry = graphs.wait(server, queue(server, graph))
    finally:
        for file in files:
            file.unlink()
    [error] = [m[1] for m in entry["status"]["messages"] if m[0] == "execution_error"]
    assert error["node_type"] in {*graphs.LOADERS, "ReNegLoadEmbedding", "ReNegLoadReward"}


def test_bad_inputs_are_refused_before_anything_runs(server) -> None:
    for field, value, message in (
        ("embedding_name", "../../secret.safetensors", "Got the file name"),
        ("embedding_name", "absent.safetensors", "No file"),
        ("sampler_name", "no_such_sampler", "expected one of"),
        ("cfg", 1000.0, "bigger than max"),
    ):
        assert message in refused(server, graphs.small("2_sampler_node_sd15", **{field: value}))
    assert "Got the file name" in refused(server, graphs.small("4_train_embedding", run_name="../../x"))


def test_two_queued_runs_both_finish_and_the_second_is_cached(server) -> None:
    graph = graphs.small("3_score_and_pick_best", seed=77)
    ids = [queue(server, graph), queue(server, graph)]
    entries = [graphs.wait(server, i) for i in ids]
    assert all(entry["status"]["status_str"] == "success" for entry in entries)
    cached = next(m for m in entries[1]["status"]["messages"] if m[0] == "execution_cached")[1]["nodes"]
    assert len(cached) == len(graph)


def test_an_error_in_a_node_is_told_in_words(server) -> None:
    graph = graphs.small("2_sampler_node_sd15", embedding_name="test21.safetensors", seed=5)
    entry = graphs.wait(server, queue(server, graph))
    [error] = [m[1] for m in entry["status"]["messages"] if m[0] == "execution_error"]
    assert error["exception_message"].startswith("Got an embedding for the text encoder openclip-h")


def metrics(server: Server, run: str) -> list[dict[str, Any]]:
    path = server.base / "output" / "reneg" / run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_stop_keeps_the_best_and_queueing_again_goes_on(server) -> None:
    training = {"run_name": "stopped", "steps": 2000, "validate_every": 2, "batch_size": 2, "validation_pairs": 2}
    graph = graphs.tiny("4_train_embedding", {**training, "patience": 0}, steps=10)
    prompt_id = queue(server, graph)
    for _ in range(600):
        if len(metrics(server, "stopped")) > 4:
            break
        time.sleep(0.1)
    graphs.request(server, "/interrupt", {"prompt_id": prompt_id})
    entry = graphs.wait(server, prompt_id)
    assert entry["status"]["status_str"] == "success", "what follows the training runs with the best so far"
    done = max(m["step"] for m in metrics(server, "stopped"))
    assert 2 <= done < 2000
    folder = server.base / "output" / "reneg" / "stopped"
    assert (folder / "best.safetensors").exists() and (folder / "negative.safetensors").exists()
    again = queue(server, graph)
    for _ in range(600):
        if max(m["step"] for m in metrics(server, "stopped")) > done + 1:
            break
        time.sleep(0.1)
    graphs.request(server, "/interrupt", {"prompt_id": again})
    graphs.wait(server, again)
    steps = [m["step"] for m in metrics(server, "stopped") if m["event"] == "step"]
    assert steps == list(range(1, max(steps) + 1)) and max(steps) > done


def test_restart_finds_what_training_wrote_and_resumes(host, server, tmp_path) -> None:
    for folder in ("models", "custom_nodes"):
        (tmp_path / folder).symlink_to(server.base / folder, target_is_directory=True)
    for folder in ("input", "output", "user"):
        (tmp_path / folder).mkdir()
    training = {"run_name": "restarted", "steps": 3, "batch_size": 2, "validation_pairs": 2}
    graph = graphs.tiny("4_train_embedding", training, steps=10)
    for _ in range(2):
        running = hosting.start_server(*host, tmp_path)
        try:
            entry = graphs.wait(running, queue(running, graph))
            assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
            assert "restarted/negative.safetensors" in graphs.request(running, "/models/reneg")
        finally:
            running.stop()
    steps = [m["step"] for m in metrics(running, "restarted") if m["event"] == "step"]
    assert steps == [1, 2, 3], "the second process had nothing left to do"


def test_the_client_runs_a_workflow_and_saves_its_pictures(server, tmp_path) -> None:
    workflow = tmp_path / "w.json"
    workflow.write_text(json.dumps(graphs.small("2_sampler_node_sd15")))
    command = [
        sys.executable,
        "-m",
        "reneg_core",
        "comfy",
        "run",
        str(workflow),
        "--server",
        server.url,
        "--output",
        str(tmp_path),
        "--set",
        "ReNegCFGSampler.seed=123",
        "--set",
        "Positive.text=a green tree",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACK)
    assert done.returncode == 0, done.stderr
    pictures = [Path(line) for line in done.stdout.split()]
    assert len(pictures) == 2 and all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    command[-1] = "Positive.words=a"
    wrong = subprocess.run(command, capture_output=True, text=True, cwd=PACK)
    assert wrong.returncode == 1 and "has no input 'words', expected one of text, clip" in wrong.stderr


def test_the_client_says_what_is_wrong(server) -> None:
    from reneg_core.comfy_client import ComfyClient, WorkflowError

    with pytest.raises(WorkflowError, match=r"(?s)node .*Load ReNeg|ReNegLoadEmbedding.*No file"):
        ComfyClient(server.url).run(graphs.small("2_sampler_node_sd15", embedding_name="absent.safetensors"))
    with pytest.raises(WorkflowError, match=r"failed: Got an embedding for the text encoder openclip-h"):
        ComfyClient(server.url).run(graphs.small("2_sampler_node_sd15", embedding_name="test21.safetensors", seed=6))
    with pytest.raises(OSError, match=r"No ComfyUI answers at http://127\.0\.0\.1:9"):
        ComfyClient("http://127.0.0.1:9").run({})


def test_progress_comes_over_the_websocket(server) -> None:
    pytest.importorskip("websocket", reason="progress needs the package websocket-client")
    from reneg_core.comfy_client import ComfyClient

    seen = []
    ComfyClient(server.url).run(graphs.small("2_sampler_node_sd15", seed=321), seen.append)
    assert any(p.node == "ReNegCFGSampler" and p.total == 2 for p in seen)


def test_help_pages_templates_and_words_are_served(server) -> None:
    names = json.loads(CONTRACT.read_text())
    for name in names:
        assert graphs.urllib.request.urlopen(f"{server.url}/extensions/reneg/docs/{name}.md").status == 200
    templates = graphs.request(server, "/workflow_templates")["reneg"]
    assert sorted(templates) == graphs.NAMES
    words = graphs.request(server, "/i18n")
    english = words["en"]["nodeDefs"]
    assert all(english[name]["display_name"] == node["display_name"] for name, node in names.items())
    for language in ("zh", "ja"):
        assert set(words[language]["nodeDefs"]) >= set(names)
        assert {"RENEG_EMBEDDING", "RENEG_REWARD"} <= set(words[language]["dataTypes"])


def test_newer_hosts_know_the_words_that_find_the_nodes(server) -> None:
    info = graphs.request(server, "/object_info")
    if "search_aliases" not in info["KSampler"]:
        pytest.skip("this host's search knows no aliases")
    assert "textual inversion" in info["ReNegLoadEmbedding"]["search_aliases"]
    assert {name for name, node in info.items() if name.startswith("ReNeg") and not node["search_aliases"]} <= {
        "ReNegTrainEmbedding"
    }, "the older node is kept, not found"


def test_what_only_draws_may_be_missing(host, tmp_path) -> None:
    """Without the packages that draw curves and pages every node is there; what needs one says so when it runs."""
    folder, python = host
    script = (
        "import sys, logging, asyncio; sys.path.insert(0, sys.argv[1]); import comfy.cli_args as a; a.args.cpu = True; "
        "a.args.base_directory = sys.argv[3]; import importlib.util as u; "
        "sys.modules['jinja2'] = None; sys.modules['matplotlib'] = None; "
        "r = sys.argv[2]; s = u.spec_from_file_location('pack', r + '/__init__.py', submodule_search_locations=[r]); "
        "m = u.module_from_spec(s); sys.modules['pack'] = m; s.loader.exec_module(m); "
        "from pack.nodes import load_nodes; print(len(load_nodes()))"
    )
    done = subprocess.run([python, "-c", script, str(folder), str(PACK), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout.split()[-1]) == len(json.loads(CONTRACT.read_text())), done.stderr[
        -2000:
    ]


def caught(entry: dict[str, Any]) -> list[str]:
    """The nodes of a finished prompt that were served from the host's cache."""
    return next(m for m in entry["status"]["messages"] if m[0] == "execution_cached")[1]["nodes"]


def test_an_unchanged_finished_training_is_served_from_the_cache_at_once(server) -> None:
    training = {"run_name": "cached", "steps": 2, "batch_size": 2, "validation_pairs": 2, "validate_every": 2}
    graph = graphs.tiny("4_train_embedding", training, steps=10)
    for least in (0, len(graph)):
        entry = graphs.wait(server, queue(server, graph))
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        assert len(caught(entry)) >= least
    more = graphs.tiny("4_train_embedding", {**training, "steps": 3}, steps=10)
    entry = graphs.wait(server, queue(server, more))
    assert entry["status"]["status_str"] == "success" and len(caught(entry)) < len(graph)
    assert [m["step"] for m in metrics(server, "cached") if m["event"] == "step"] == [1, 2, 3]
    assert len(caught(graphs.wait(server, queue(server, more)))) == len(graph)


@pytest.mark.parametrize("path", sorted((CONTRACT.parent / "older" / "api").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_of_earlier_versions_still_run(path: Path, server) -> None:
    changes = {"run_name": f"older_{path.stem}"} | ({"width": 32, "height": 32} if path.stem[0] == "0" else {})
    entry = graphs.wait(server, queue(server, graphs.small(path, changes, **changes)))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    assert (server.base / "output" / "reneg" / f"older_{path.stem}" / "negative.safetensors").exists()
