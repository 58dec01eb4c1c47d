"""Running a workflow on a ComfyUI server over HTTP and its websocket; nothing of ComfyUI is imported."""

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .files import write_bytes
from .text_file import read_json

Graph = dict[str, dict[str, Any]]
POLL_SECONDS = 1.0


class WorkflowError(ValueError):
    """A workflow the server refused or could not finish."""


@dataclass(frozen=True)
class Progress:
    """What the server is doing: the node (title or class), and how far it is; total is 0 where the node has no bar."""

    node: str
    done: int = 0
    total: int = 0


def load_workflow(path: str | Path) -> Graph:
    """Read a workflow in API format. ValueError for anything else, saying how to get one."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No workflow at {path}. Expected a JSON file in ComfyUI's API format.")
    graph = read_json(path)
    if not isinstance(graph, dict) or not all(map(_is_node, graph.values())):
        own = isinstance(graph, dict) and "nodes" in graph
        hint = "It is in the page's own format: use Workflow > Export (API). " if own else ""
        raise ValueError(f"Got {path.name}, expected ComfyUI's API format: nodes by id with class_type. {hint}".strip())
    return graph


def _is_node(node: Any) -> bool:
    """Whether it has what is read of a node: its class, its inputs by name, and a title if it has any notes."""
    notes = node.get("_meta", {}) if isinstance(node, dict) else None
    inputs = isinstance(node, dict) and isinstance(node.setdefault("inputs", {}), dict)
    return inputs and isinstance(node.get("class_type"), str) and isinstance(notes, dict)


def apply_settings(graph: Graph, settings: Sequence[str]) -> None:
    """Set inputs in place. Each setting is ``node.input=value``: node is an id, a title or a class that occurs once;
    the value is JSON where it can be read so, else text. ValueError names what there is."""
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, dot, field = target.rpartition(".")
        if not equals or not dot:
            raise ValueError(f"Got the setting {setting!r}, expected node.input=value, for example 3.steps=20.")
        inputs = graph[find_node(graph, name)]["inputs"]
        if field not in inputs:
            raise ValueError(f"Node {name} has no input {field!r}, expected one of {', '.join(inputs) or 'none'}.")
        inputs[field] = _value(text)


def find_node(graph: Graph, name: str) -> str:
    """The id of the node called ``name``: by id, else by title, else by class, if that is unambiguous."""
    if name in graph:
        return name
    for key in (_title, lambda node: node["class_type"]):
        found = [node_id for node_id, node in graph.items() if key(node) == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"Got the node {name!r}, which is {len(found)} nodes: use an id, {', '.join(found)}.")
    known = ", ".join(f"{node_id} ({_title(node)})" for node_id, node in graph.items())
    raise ValueError(f"No node {name!r} in the workflow, expected one of {known}.")


def _title(node: Mapping[str, Any]) -> str:
    return node.get("_meta", {}).get("title", node["class_type"])


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        return False


class ComfyClient:
    """One server. url: for example ``http://127.0.0.1:8188``."""

    def __init__(self, url: str = "http://127.0.0.1:8188") -> None:
        self.url = url.rstrip("/")
        if not _is_address(self.url):
            raise ValueError(f"Got the server {url!r}, expected an address such as http://127.0.0.1:8188.")
        self.client_id = uuid.uuid4().hex

    def run(self, graph: Graph, on_progress: Callable[[Progress], Any] = lambda progress: None) -> dict[str, Any]:
        """Queue the workflow, follow it to its end, and return its outputs by node id.

        Errors: WorkflowError for a workflow that is refused, fails or is interrupted, naming node and reason; OSError
        if the server cannot be reached. KeyboardInterrupt interrupts the server's run too.
        """
        socket = self._websocket()
        try:
            prompt_id = self.queue(graph)
            try:
                for progress in self._follow(socket, prompt_id, graph):
                    on_progress(progress)
            except KeyboardInterrupt:
                self._request("/interrupt", {"prompt_id": prompt_id})
                raise
        finally:
            if socket is not None:
                socket.close()
        return self._outputs(prompt_id)

    def queue(self, graph: Graph) -> str:
        """Put the workflow into the server's queue; returns its id. WorkflowError lists every fault found."""
        answer = self._request("/prompt", {"prompt": graph, "client_id": self.client_id})
        if answer.get("node_errors"):
            self._request("/interrupt", {"prompt_id": answer.get("prompt_id")})
            raise WorkflowError(_refusal(answer, graph))
        if "prompt_id" not in answer:
            raise OSError(f"{self.url} took the workflow without a prompt_id, as ComfyUI gives. Check the address.")
        return answer["prompt_id"]

    def save_images(self, outputs: Mapping[str, Any], folder: str | Path) -> list[Path]:
        """Fetch every saved picture of a run into ``folder``, keeping subfolders; previews are left out."""
        images = [image for output in outputs.values() for image in output.get("images", [])]
        return [self._save(image, Path(folder)) for image in images if image.get("type") == "output"]

    def _save(self, image: Mapping[str, str], folder: Path) -> Path:
        parts = PurePosixPath(image.get("subfolder", "").replace("\\", "/")).parts
        if any(part in ("..", "/") or ":" in part for part in parts) or "/" in image["filename"]:
            raise WorkflowError(f"The server named a picture outside its folders: {image!r}.")
        target = folder.joinpath(*parts, image["filename"])
        query = urllib.parse.urlencode({key: image.get(key, "") for key in ("filename", "subfolder", "type")})
        with self._open(urllib.request.Request(f"{self.url}/view?{query}")) as answer:
            return write_bytes(target, answer.read())

    def _follow(self, socket: Any, prompt_id: str, graph: Graph) -> Iterator[Progress]:
        if socket is None:
            yield from self._poll(prompt_id)
            return
        while not self._ended(prompt_id):
            for message in _messages(socket):
                data = message.get("data", {})
                if data.get("prompt_id") != prompt_id:
                    continue
                name = _title(graph[data["node"]]) if data.get("node") in graph else ""
                if message["type"] == "executing" and name:
                    yield Progress(name)
                elif message["type"] == "progress":
                    yield Progress(name, int(data["value"]), int(data["max"]))
                elif message["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    break

    def _poll(self, prompt_id: str) -> Iterator[Progress]:
        while not self._ended(prompt_id):
            time.sleep(POLL_SECONDS)
            yield Progress("working")

    def _ended(self, prompt_id: str) -> bool:
        return prompt_id in self._request(f"/history/{prompt_id}")

    def _outputs(self, prompt_id: str) -> dict[str, Any]:
        entry = self._request(f"/history/{prompt_id}")[prompt_id]
        if entry["status"]["status_str"] != "success":
            raise WorkflowError(_failure(entry["status"].get("messages", [])))
        return entry["outputs"]

    def _websocket(self) -> Any:
        """A connection for progress messages, or None without the package websocket-client."""
        try:
            import websocket
        except ImportError:
            return None
        address = f"ws{self.url[4:]}/ws?clientId={self.client_id}"
        try:
            return websocket.create_connection(address, timeout=POLL_SECONDS, suppress_origin=True)
        except (websocket.WebSocketException, OSError) as error:
            raise OSError(f"No ComfyUI answers at {self.url} ({error}). Start it, or give its address.") from error

    def _request(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with self._open(request) as answer:
            text = answer.read()
        try:
            return json.loads(text) if text else {}
        except ValueError as error:
            raise OSError(f"{self.url} answered {path} with no JSON, as ComfyUI does. Check the address.") from error

    def _open(self, request: urllib.request.Request) -> Any:
        try:
            return urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = _json_or_empty(error.read())
            if error.code == 400 and "error" in answer:
                sent = json.loads(request.data or b"{}").get("prompt", {})
                raise WorkflowError(_refusal(answer, sent)) from error
            raise OSError(f"{self.url} answered {error.code} {error.reason} to {request.selector}.") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise OSError(f"No ComfyUI answers at {self.url} ({reason}). Start it, or give its address.") from error


def _messages(socket: Any) -> Iterator[dict[str, Any]]:
    """Text messages until none comes for a moment; previews are skipped."""
    import websocket

    while True:
        try:
            message = socket.recv()
        except websocket.WebSocketTimeoutException:
            return
        except websocket.WebSocketException as error:
            raise OSError(f"The server closed the connection ({error}).") from error
        if isinstance(message, str) and message:
            yield json.loads(message)


def _json_or_empty(text: bytes) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _refusal(answer: Mapping[str, Any], graph: Graph) -> str:
    error = answer.get("error")
    lines = [error.get("message", "") if isinstance(error, Mapping) else str(error or "The workflow is not valid.")]
    for node_id, found in (answer.get("node_errors") or {}).items():
        title = _title(graph[node_id]) if node_id in graph else found.get("class_type", "")
        details = dict.fromkeys(f"{e['message']}: {e['details']}" for e in found["errors"])
        lines += [f"- node {node_id} ({title}): {text}" for text in details]
    return "\n".join(lines)


def _failure(messages: Sequence[Sequence[Any]]) -> str:
    for kind, data in messages:
        if kind == "execution_error":
            return f"Node {data['node_id']} ({data['node_type']}) failed: {data['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return "The run was interrupted on the server."
    return "The run failed; the server's log says why."
