"""``reneg comfy run``: a workflow on a ComfyUI server, without a browser."""

import argparse
import sys
from typing import Any

from ..comfy_client import ComfyClient, Progress, apply_settings, load_workflow
from ..files import check_folder
from ..text_file import printable


def add_parser(subparsers: Any) -> None:
    """The command and its one action."""
    parser = subparsers.add_parser(
        "comfy",
        help="queue a workflow on a ComfyUI server",
        description="Talk to a running ComfyUI server: queue a workflow in API format, follow it, save its pictures. "
        "The exit code says whether it ran to the end.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    run = actions.add_parser(
        "run",
        help="queue a workflow, follow it, save its pictures",
        description="Exit code 0: finished, 1: refused, failed or interrupted, 130: stopped here with Ctrl-C.",
    )
    run.add_argument("workflow", help="JSON file in API format, for example workflows/api/1_use_embedding_sd15.json")
    run.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change an input; NODE is an id, a title or a class that occurs once (repeatable)",
    )
    run.add_argument("--server", default="http://127.0.0.1:8188", help="address of the server (%(default)s)")
    run.add_argument("--output", default="comfy-output", help="folder for saved pictures (%(default)s)")
    run.add_argument("--quiet", action="store_true", help="print nothing but the names of the pictures")
    run.set_defaults(run=run_workflow)


def run_workflow(args: argparse.Namespace) -> int:
    """Run it and print where the pictures are; errors pass to the command line, which explains them."""
    graph = load_workflow(args.workflow)
    apply_settings(graph, args.settings)
    client = ComfyClient(args.server)
    check_folder(args.output)
    outputs = client.run(graph, (lambda progress: None) if args.quiet else _Printer().show)
    if not args.quiet:
        for node_id, output in outputs.items():
            for text in output.get("text", []):
                print(printable(f"[{node_id}] {text}"), file=sys.stderr)
    for path in client.save_images(outputs, args.output):
        print(path)
    return 0


class _Printer:
    """One line per node, rewritten as it goes on where the output is a terminal."""

    def __init__(self) -> None:
        self.node = ""

    def show(self, progress: Progress) -> None:
        live = sys.stderr.isatty()
        if progress.node != self.node:
            self.node = progress.node
            line = ("\n{}" if live else "{}\n").format(progress.node)
            print(line, end="", file=sys.stderr, flush=True)
        if live and progress.total:
            print(f"\r{progress.node}: {progress.done}/{progress.total}", end="", file=sys.stderr, flush=True)
