"""A private JupyterLab on 127.0.0.1 and a Chromium, Chrome or Edge that drives it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


def _run_py() -> Any:
    """The course's run.py, which knows where browsers are; it is no package: loaded by path."""
    spec = importlib.util.spec_from_file_location("run", NOTEBOOKS.parent / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chromium() -> str | None:
    """The browser of this machine: $CHROMIUM, one on the path, or one in the usual place."""
    return str(found) if (found := _run_py().find_browser()) else None


@contextlib.contextmanager
def lab_server(root: Path, settings: dict[str, Any] | None = None) -> Iterator[tuple[str, str]]:
    """Yield (address, token) of a server whose files are all in a private folder."""
    with tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True) as folder:
        home, port, token = Path(folder), _free_port(), secrets.token_hex(16)
        _write_settings(home / "settings", {**SETTINGS, **(settings or {})})
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            "--expose-app-in-browser",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={token}",
            f"--ServerApp.root_dir={root}",
        ]
        with open(home / "server.log", "w+") as log:
            server = subprocess.Popen(
                command, env=_environment(home), stdout=log, stderr=subprocess.STDOUT, cwd=root
            )
            try:
                _wait_for(server, f"http://127.0.0.1:{port}", token, home / "server.log")
                yield f"http://127.0.0.1:{port}", token
            finally:
                with contextlib.suppress(OSError):
                    stop_kernels(f"http://127.0.0.1:{port}", token)
                server.terminate()
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()


@contextlib.contextmanager
def browser(playwright: Any, size: tuple[int, int] = (1400, 1000)) -> Iterator[Any]:
    """Yield a browser with a profile of its own; its cache spares later pages JupyterLab's code."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=chromium(),
            args=ARGS,
            viewport={"width": size[0], "height": size[1]},
        )
        try:
            yield context
        finally:
            context.close()


@contextlib.contextmanager
def page_in(context: Any, init: str = "") -> Iterator[Any]:
    """Yield a new page; ``page.problems`` collects what goes to the error console."""
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda e: page.problems.append(f"pageerror: {e}"))
    page.on("console", lambda m: _note(page, m))
    if init:
        page.add_init_script(init)
    try:
        yield page
    finally:
        page.close()


def _note(page: Any, message: Any) -> None:
    if message.type == "error":
        page.problems.append(f"console: {message.text[:300]}")


def open_lab(page: Any, address: str, token: str, timeout: int = 90_000) -> None:
    """Load JupyterLab itself, with nothing open."""
    page.goto(f"{address}/lab?token={token}&reset")
    page.wait_for_function(
        """() => window.jupyterapp?.commands.hasCommand('docmanager:open')
          && !document.querySelector('#jupyterlab-splash')""",
        timeout=timeout,
    )
    page.evaluate("() => jupyterapp.restored")


def open_notebook(page: Any, name: str, timeout: int = 90_000) -> None:
    """Open a notebook and wait for its kernel."""
    opened = "async path => { await jupyterapp.commands.execute('docmanager:open', { path }); }"
    page.evaluate(opened, name)  # without its result, the widget, which is too deep to be sent
    page.wait_for_function(
        """name => {
          const w = jupyterapp.shell.currentWidget, c = w?.sessionContext;
          return w?.context?.path === name && !!c && c.isReady
                 && c.session?.kernel?.status === 'idle'
                 && c.session.kernel.connectionStatus === 'connected'; }""",
        arg=name,
        timeout=timeout,
    )


def close_all(page: Any) -> None:
    """Close what is open, unsaved and unasked."""
    page.evaluate("() => { for (const w of [...jupyterapp.shell.widgets('main')]) w.dispose(); }")


def settled(element: Any, quiet: int = 200, timeout: int = 5000) -> None:
    """Wait until nothing in it has changed for so many milliseconds."""
    element.evaluate(
        """(root, [quiet, timeout]) => new Promise(done => {
          let last = performance.now(), first = last;
          const seen = new MutationObserver(() => { last = performance.now(); });
          seen.observe(root, { attributes: true, childList: true, characterData: true,
                               subtree: true });
          const look = setInterval(() => {
            const now = performance.now();
            if (now - last < quiet && now - first < timeout) return;
            clearInterval(look); seen.disconnect(); done();
          }, 20); })""",
        [quiet, timeout],
    )


def run_all(page: Any, timeout: int = 180_000) -> None:
    """Run > Run All Cells by the menu, then wait until every code cell has its number."""
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.wait_for_function(
        """() => {
          const cells = jupyterapp.shell.currentWidget.content.widgets
            .filter(c => c.model.type === 'code' && c.model.sharedModel.getSource().trim());
          return cells.length && cells.every(c => c.model.executionCount !== null
            && c.node.querySelector('.jp-InputPrompt')?.textContent.includes('*') !== true); }""",
        timeout=timeout,
    )


def in_kernel(page: Any, code: str) -> str:
    """Run code in the notebook's kernel without a cell; what it printed."""
    return str(
        page.evaluate(
            """async (code) => {
            const k = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            let text = '';
            const f = k.requestExecute({code, store_history: false});
            f.onIOPub = m => {
                if (m.header.msg_type === 'stream') text += m.content.text;
                if (m.header.msg_type === 'error') text += m.content.traceback.join('\\n'); };
            await f.done; return text; }""",
            code,
        )
    )


def _environment(home: Path) -> dict[str, str]:
    env = dict(os.environ, IPYTHONDIR=str(home / "ipython"))
    for kind in ("config", "data", "runtime"):
        env[f"JUPYTER_{kind.upper()}_DIR"] = str(home / kind)
    env["JUPYTER_CONFIG_PATH"] = str(NOTEBOOKS.parent / "tools" / "jupyter")  # as run.py lab
    env["JUPYTERLAB_WORKSPACES_DIR"] = str(home / "workspaces")
    env["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    return env


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    for plugin, values in settings.items():
        package, name = plugin.split(":")
        file = folder / package / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _request(address: str, token: str, path: str, method: str = "GET") -> bytes:
    request = urllib.request.Request(f"{address}{path}?token={token}", method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bytes(answer.read())


def _wait_for(server: subprocess.Popen[bytes], address: str, token: str, log: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended at once:\n{log.read_text()}")
        with contextlib.suppress(OSError, urllib.error.URLError):
            _request(address, token, "/api/status")
            return
        time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not answer in 90 s:\n{log.read_text()}")


def stop_kernels(address: str, token: str, wait: bool = True) -> None:
    """End those that run now; without ``wait`` they end while the next test opens its page."""

    def stop(path: str) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            _request(address, token, path, "DELETE")

    for kernel in json.loads(_request(address, token, "/api/kernels")):
        thread = threading.Thread(target=stop, args=[f"/api/kernels/{kernel['id']}"])
        thread.start()
        if wait:
            thread.join()
