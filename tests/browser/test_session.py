"""A session as people work: train, stop, change a prompt, run, take more steps, reload the page in the middle, run
again unchanged. Nothing fails, nothing is lost, and what is finished is not done again."""

import json
from pathlib import Path
from typing import Any

import graphs
from convert import arranged
from test_browser import finish, keep, run_by_the_button

NAME = "4_train_embedding"
TRAINING = {"steps": 300, "batch_size": 2, "validation_pairs": 4, "validate_every": 2, "size": 32}


def steps_of(folder: Path) -> list[int]:
    """The steps that a run has taken, in the order of its metrics."""
    file = folder / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [record["step"] for record in records if record["event"] == "step"]


def wait_for(opened: Any, done: Any, seconds: int = 400) -> None:
    for _ in range(seconds * 5):
        if done():
            return
        opened.page.wait_for_timeout(200)
    raise TimeoutError("nothing came of it")


def give(opened: Any, **values: Any) -> None:
    """Values for the widgets of the training node, as typing gives them."""
    opened.page.evaluate(
        "values => { const node = app.graph._nodes.find(n => n.type == 'ReNegTrain');"
        " for (const w of node.widgets) if (values[w.name] !== undefined) w.value = values[w.name]; }",
        values,
    )


def told(opened: Any) -> str:
    return "\n".join(opened.page.evaluate("window.__texts"))


def test_a_session_loses_nothing(opened, server, tmp_path) -> None:
    run = f"session_{opened.drawing}"
    first, second = (server.base / "output" / "reneg" / name for name in (run, f"{run}_002"))
    graph = graphs.tiny(NAME, {**TRAINING, "run_name": run}, steps=10)
    [training] = [key for key, node in graph.items() if node["class_type"] == "ReNegTrain"]
    opened.load(arranged(opened, graph, NAME), NAME)

    run_by_the_button(opened)
    wait_for(opened, lambda: len(steps_of(first)) >= 3)
    opened.page.evaluate("app.api.interrupt()")
    finish(opened)
    stopped = steps_of(first)
    assert stopped == list(range(1, len(stopped) + 1)) and (first / "negative.safetensors").exists()
    assert "loading the model" in told(opened) and "stopped at step" in told(opened)

    prompts = graph[training]["inputs"]["prompts"] + "\na white cross on a black background"
    give(opened, prompts=prompts, steps=3)
    run_by_the_button(opened)
    finish(opened)
    assert f"{run}_002 is a new run, because {run} is another one:" in told(opened)
    assert "'a white cross on a black background' was added" in told(opened)
    assert steps_of(second) == [1, 2, 3] and steps_of(first) == stopped
    keep(opened, tmp_path, f"session-another-prompt-{opened.drawing}")

    give(opened, steps=12)
    opened.page.wait_for_timeout(2000)  # the page keeps its draft a moment after a change
    run_by_the_button(opened)
    wait_for(opened, lambda: len(steps_of(second)) >= 5)
    opened.reload()
    wait_for(opened, lambda: steps_of(second) == list(range(1, 13)))
    wait_for(opened, lambda: not graphs.request(server, "/queue")["queue_running"])
    wait_for(opened, lambda: training in opened.prompt())  # a page restores its draft a moment after it can be used
    kept = opened.prompt()[training]["inputs"]
    assert (kept["prompts"], kept["steps"]) == (prompts, 12), "the page still has what was typed"
    assert (first / "negative.safetensors").exists() and steps_of(first) == stopped

    before = sorted(graphs.request(server, "/history"))
    run_by_the_button(opened)
    finish(opened)
    wait_for(opened, lambda: len(graphs.request(server, "/history")) > len(before))  # a moment after the event
    [again] = [entry for key, entry in graphs.request(server, "/history").items() if key not in before]
    cached = next(m for m in again["status"]["messages"] if m[0] == "execution_cached")[1]["nodes"]
    assert training in cached and steps_of(second) == list(range(1, 13)), "what is finished is not done again"
    keep(opened, tmp_path, f"session-done-{opened.drawing}")
    assert [
        error for error in opened.errors if "reneg" in error
    ] == []  # page 1.27 stumbles by itself in such a session
