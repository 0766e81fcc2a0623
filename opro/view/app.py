"""The page as a server on this machine: its tabs, the clips that it may play, and who may ask."""

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported, which asks at once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse, Response

from evaluators.errors import UserError
from opro.view import compare, listen, playground, proposer, runs, steer
from opro.view.clips import ROUTE, Clips
from opro.view.guard import Guard
from opro.view.html import STYLE
from opro.view.reading import names

HOST = "127.0.0.1"
# Gradio's filters are labelled by their titles alone, which not every screen reader reads out.
LABELS = """<script>new MutationObserver(() => document.querySelectorAll("input[title]:not([aria-label])")
.forEach((one) => one.setAttribute("aria-label", one.title))).observe(document, {childList: true, subtree: true})
</script>"""
FONTS: dict[str, Any] = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}


def blocks(runs_dir: Path, clips: Clips, checkpoint: str | None = None) -> Any:
    """The page."""
    with gr.Blocks(title="opro", analytics_enabled=False) as page:
        gr.HTML("<h1>Runs, prompts and clips of this machine</h1>", elem_classes="opro")
        found = names(runs_dir)
        chosen = gr.Dropdown(found, value=found[0] if found else None, label="Run")
        with gr.Tabs():
            with gr.Tab("Runs"):
                runs.page(runs_dir, chosen)
            with gr.Tab("Compare"):
                compare.page(runs_dir, chosen, clips)
            with gr.Tab("Proposals"):
                proposer.page(runs_dir, chosen)
            with gr.Tab("Steer"):
                steer.page(runs_dir, chosen)
            with gr.Tab("Playground"):
                playground.page(runs_dir, chosen, checkpoint)
            with gr.Tab("Listen"):
                listen.page(runs_dir, chosen, clips)
    return page


def application(runs_dir: Path, port: int, checkpoint: str | None = None) -> Any:
    """The ASGI application: it answers to this machine's own page alone."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(Guard, origins=(f"http://{HOST}:{port}", f"http://localhost:{port}"))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    clips = Clips()

    def sound(token: str) -> Response:
        try:
            return Response(clips.sound(token), media_type="audio/wav")
        except UserError as error:
            return PlainTextResponse(str(error), status_code=404)

    app.add_api_route(ROUTE + "{token}", sound, response_class=Response)
    return gr.mount_gradio_app(
        app,
        blocks(runs_dir, clips, checkpoint),
        "/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        show_error=False,  # errors of ours are shown in the page, as text
        allowed_paths=[],
        max_file_size="64mb",
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Base(**FONTS),
        css=STYLE,
        head=LABELS,
    )


def bound(port: int) -> socket.socket:
    """The socket of the page: of this machine alone.

    Raises:
        UserError: Another process has the port.
    """
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind((HOST, port))
    except OSError as error:
        one.close()
        raise UserError(
            f"--port {port} cannot be had ({error.strerror}); give another one, or end what listens there"
        ) from None
    return one


def serve(runs_dir: Path, port: int, checkpoint: str | None) -> None:
    """Serves the page until it is interrupted; what was dropped or recorded is then deleted."""
    with bound(port) as own, TemporaryDirectory(prefix="opro-view-") as scratch:
        os.environ["GRADIO_TEMP_DIR"] = scratch
        app = application(runs_dir, port, checkpoint)
        print(f"http://{HOST}:{port}/ shows {runs_dir}; Ctrl-C ends it", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[own])
