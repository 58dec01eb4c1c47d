"""The headless client without a server: workflows read, changed and refused, and a server of canned answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reneg_core.comfy_client import ComfyClient, WorkflowError, apply_settings, load_workflow

GRAPH = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "model": ["2", 0]}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a"}, "_meta": {"title": "Positive"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "b"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "c"}, "_meta": {"title": "CLIPTextEncode"}},
}


def copy() -> dict:
    return json.loads(json.dumps(GRAPH))


def test_settings_by_id_title_and_class() -> None:
    graph = copy()
    apply_settings(graph, ["1.steps=30", "Positive.text=a = b.c", "KSampler.seed=7", "3.text=12"])
    assert graph["1"]["inputs"] == {"seed": 7, "steps": 30, "model": ["2", 0]}
    assert graph["2"]["inputs"]["text"] == "a = b.c" and graph["3"]["inputs"]["text"] == 12


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "expected node.input=value"),
        ("9.steps=1", r"No node '9'.*2 \(Positive\)"),
        ("CLIPTextEncode.text=x", "which is 2 nodes: use an id, 3, 4"),
        ("1.cfg=1", "has no input 'cfg', expected one of seed, steps, model"),
    ],
)
def test_wrong_settings_name_what_there_is(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_settings(copy(), [setting])


def test_other_files_are_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No workflow at"):
        load_workflow(tmp_path / "absent.json")
    path = tmp_path / "page.json"
    path.write_text('{"nodes": [], "links": []}')
    with pytest.raises(ValueError, match=r"Export \(API\)"):
        load_workflow(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="which is no valid JSON"):
        load_workflow(path)


class Canned(BaseHTTPRequestHandler):
    """Answers as a ComfyUI does that finishes at once, refuses, or fails, by the seed it is sent."""

    history: dict = {}  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seed = body["prompt"]["1"]["inputs"]["seed"]
        if seed == 2:
            errors = {"1": {"class_type": "KSampler", "errors": [{"message": "Value too big", "details": "seed"}] * 2}}
            self.answer({"error": {"message": "Prompt outputs failed validation"}, "node_errors": errors}, 400)
            return
        status = {"status_str": "success", "messages": []}
        if seed == 3:
            failed = {"node_id": "1", "node_type": "KSampler", "exception_message": "no memory\n"}
            status = {"status_str": "error", "messages": [["execution_error", failed]]}
        image = {"filename": "a.png", "subfolder": "../up" if seed == 4 else "sub", "type": "output"}
        self.history["p"] = {"status": status, "outputs": {"5": {"images": [image, {**image, "type": "temp"}]}}}
        self.answer({"prompt_id": "p", "node_errors": {}})

    def do_GET(self) -> None:
        self.answer(self.history if self.path.startswith("/history") else {"png": 1})

    def answer(self, body: dict, code: int = 200) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args: object) -> None:
        """Nothing on the test's output."""


@pytest.fixture()
def client(monkeypatch: pytest.MonkeyPatch) -> ComfyClient:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(ComfyClient, "_websocket", lambda self: None)
    yield ComfyClient(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def run(client: ComfyClient, seed: int) -> dict:
    graph = copy()
    graph["1"]["inputs"]["seed"] = seed
    return client.run(graph)


def test_a_run_saves_its_pictures_and_leaves_previews(client: ComfyClient, tmp_path: Path) -> None:
    assert client.save_images(run(client, 1), tmp_path) == [tmp_path / "sub" / "a.png"]
    assert json.loads((tmp_path / "sub" / "a.png").read_text()) == {"png": 1}


def test_refusals_and_failures_name_node_and_reason(client: ComfyClient, tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"(?s)failed validation\n- node 1 \(KSampler\): Value too big: seed$"):
        run(client, 2)
    with pytest.raises(WorkflowError, match=r"^Node 1 \(KSampler\) failed: no memory$"):
        run(client, 3)
    outputs = run(client, 4)
    with pytest.raises(WorkflowError, match="outside its folders"):
        client.save_images(outputs, tmp_path)


def test_no_server_and_no_address_are_told() -> None:
    with pytest.raises(OSError, match=r"No ComfyUI answers at http://127\.0\.0\.1:9"):
        ComfyClient("http://127.0.0.1:9").queue(copy())
    with pytest.raises(ValueError, match=r"expected an address such as http://127"):
        ComfyClient("example")
