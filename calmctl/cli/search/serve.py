"""`calmctl serve`: a search that stays warm, as a page on this machine or as tools for a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli import options
from calmctl.cli.console import loading, note, printable, progress_bar, stdout
from calmctl.cli.results import choose_run
from calmctl.cli.search.opening import are_drawn, choose_model, note_left_out, open_search
from calmctl.cli.search.search import CACHE, Cache, Calibrate, Shots, Stride, Window, calibrated
from calmctl.data.locate import require_folder
from calmctl.device import choose_device
from calmctl.errors import BadInput
from calmctl.runtime import require_packages

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from calmctl.samples import Clip
    from calmctl.search.serve import Engine

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of videos, or a feature store.")]
Captioner = Annotated[
    str | None,
    typer.Option(
        "--captioner",
        metavar="RUN",
        help="A captioning run, for the tool caption.",
        autocompletion=options.complete_run,
        rich_help_panel=options.MODEL,
    ),
]
PORT = options.Range(0, 65_535)

EXAMPLES = options.examples(
    "calmctl serve holidays",
    "calmctl serve matches --window 10 --stride 5 --browse",
    "calmctl serve features/msrvtt --videos /data/msrvtt/videos --port 8080",
    "calmctl serve holidays --mcp --captioner msrvtt-caption-001",
)


def serve(
    where: Folder = Path("."),
    port: Annotated[int, PORT(help="Port of the page; 0 takes a free one.")] = 8765,
    browse: Annotated[bool, typer.Option("--browse", help="Show the page in the browser.")] = False,
    mcp: Annotated[bool, typer.Option("--mcp", help="Tools for a language model, and no page.")] = False,
    captioner: Captioner = None,
    calibrate: Calibrate = None,
    window: Window = None,
    stride: Stride = None,
    shots: Shots = False,
    videos: options.Videos = None,
    cache: Cache = CACHE,
    run: options.Run = None,
    backbone: options.Backbone = None,
    weights: options.BackboneWeights = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Search a folder on a page that answers as you type.

    It is reached from this machine alone. Ctrl-C ends it.

    Without --run it is the newest run that knows such clips, or else the bare backbone.
    """
    from calmctl.search.windows import check_windows

    stride_s = check_windows(window, stride, shots)
    options.is_bare(run, backbone, weights)
    if captioner is not None and not mcp:
        raise BadInput("--captioner gives a language model the tool `caption`; give --mcp too, or leave it out")
    require_folder(where, "name a folder of videos or a feature store")
    needed, extra = (("mcp",), "mcp") if mcp else (("starlette", "uvicorn"), "serve")
    require_packages(needed, extra=extra, what="serve --mcp" if mcp else "serve")
    # Taken before a model is loaded: a port in use is told at once.
    place = None if mcp else bound(port)
    drawn = are_drawn(where)
    describe = None if captioner is None else clip_captioner(captioner, runs, device, drawn)
    search_model = choose_model(run, runs, backbone, weights, device, True, drawn)
    from calmctl.search.confidence import Rule
    from calmctl.search.serve import Engine, tool_server

    with progress_bar("items") as bar:
        engine = open_search(search_model, where, window, stride_s, videos, cache, bar, shots)
        calibrated(engine, Rule(), calibrate)
        # Once, before anybody waits for it: tables of clips are made, and torch's first product is its slowest.
        engine.sentences(["warm"], 1, rule=Rule())
        engine.like(0, 1)
        engine.measure_all()
    engine.end_progress()
    note_left_out(engine)
    if place is None:
        note(f"serving tools for {printable(str(where))} on standard input and output")
        tool_server(Engine(engine, Rule()), describe).run("stdio")
    else:
        _serve_page(Engine(engine, Rule()), place, browse)


def clip_captioner(name: str, runs: Path, device: str, drawn: bool) -> Callable[[Clip], str]:
    """What writes a sentence for a clip, by a captioning run. Raises `RunNotFound` where there is none of that name."""
    run = choose_run(name, runs, drawn, "captioning", task="caption")
    loading(str(run.folder))
    from calmctl.captions.generate import caption_clip
    from calmctl.runs.checkpoint import load_captioner

    model, data = load_captioner(run, "best", choose_device(device)), run.recipe().data
    return lambda clip: caption_clip(model, data, clip).text


def bound(port: int) -> socket:
    """A socket of the loopback address alone. Raises `BadInput` where the port is taken or not ours to take."""
    import os
    import socket

    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # a port that was just used; on Windows it would let two programs have one
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind(("127.0.0.1", port))
    except OSError as fault:
        place.close()
        raise BadInput(f"port {port} cannot be taken ({fault.strerror}); give another one with --port") from None
    return place


def _serve_page(engine: Engine, place: socket, browse: bool) -> None:
    import uvicorn

    from calmctl.search.serve import web_app

    port = place.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    config = uvicorn.Config(
        web_app(engine, port), log_level="warning", lifespan="off", server_header=False, timeout_graceful_shutdown=2
    )
    stdout().print(f"[bold]{address}[/]", "  Ctrl-C ends it", sep="")
    if browse:
        import webbrowser

        webbrowser.open(address)
    try:
        uvicorn.Server(config).run(sockets=[place])
    except KeyboardInterrupt:
        note("stopped")
