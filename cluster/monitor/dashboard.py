"""The dashboard: a page served to this machine only, which shows a growing run folder and requests interventions.

The address is the credential: it holds a secret that other users of the machine and other pages of the browser don't
know. The checks of Host, Origin and Sec-Fetch-Site also keep out pages that guessed the port.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from aiohttp import web

from cluster.monitor.snapshot import RUNNING, STARTING, RunSnapshot
from cluster.monitor.watcher import RunWatcher
from cluster.run_folder import controls
from cluster.run_folder.folder import RunFolderError
from cluster.scenario.events import EventRefused, SetAllocator, TurnEvent
from reports import files

LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "localhost")
PERIOD_S = 0.22
SILENCE_S = 15.0  # then an empty comment line keeps the connection alive
SEND_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 5.0
MAX_CLIENTS = 16
NONCE = "{{nonce}}"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_POLICY = "; connect-src 'self'; img-src data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dashboard:
    """Serves one run folder: the page, snapshots as server-sent events, and requests for interventions."""

    def __init__(self, run_dir: Path, token: str | None = None) -> None:
        """Raises RunFolderError: this isn't a run folder.

        Args:
            token: the secret of the address; default: a new one.
        """
        self._run_dir = run_dir.resolve()
        self._watcher = RunWatcher(self._run_dir)
        self._snapshot_lock = asyncio.Lock()
        self._page = resources.files("cluster.monitor").joinpath("dashboard.html").read_text(encoding="utf-8")
        self._changed = asyncio.Condition()
        self._latest = ""
        self._version = 0
        self._clients = 0
        self._closing = False
        self.token = token or secrets.token_urlsafe(16)

    def app(self) -> web.Application:
        """The web application, for one event loop."""
        app = web.Application(middlewares=[self._guard], client_max_size=controls.MAX_LINE_BYTES)
        app.router.add_get("/{token}/", self._get_page)
        app.router.add_get("/{token}/live", self._get_live)
        app.router.add_post("/{token}/control", self._post_control)
        app.on_response_prepare.append(_set_headers)
        app.cleanup_ctx.append(self._watching)
        app.on_shutdown.append(self._close)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests without the token, and requests that other sites initiate."""
        token = request.path.split("/")[1]
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise web.HTTPNotFound
        host = request.headers.get("Host", "")
        if host.partition(":")[0] not in HOSTS:  # a foreign name that resolves to this machine (DNS rebinding)
            raise web.HTTPForbidden(text=f"open this as http://{LOOPBACK}:..., not under another name")
        origin = request.headers.get("Origin")
        site = request.headers.get("Sec-Fetch-Site", "none")
        if (origin is not None and origin != f"http://{host}") or site not in ("none", "same-origin"):
            raise web.HTTPForbidden(text="requested by another site; type the address into the browser")
        return await handler(request)

    async def _get_page(self, request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        response = web.Response(text=self._page.replace(NONCE, nonce), content_type="text/html")
        response.headers["Content-Security-Policy"] = POLICY + PAGE_POLICY.format(nonce=nonce)
        return response

    async def _get_live(self, request: web.Request) -> web.StreamResponse:
        """Stream changed snapshots; a slow reader skips some and gets the latest."""
        if self._clients >= MAX_CLIENTS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_CLIENTS} pages are open; close one")
        self._clients += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            seen = 0  # the version before the first snapshot
            while not self._closing:
                text = f"data: {self._latest}\n\n" if seen != self._version else ":\n\n"
                seen = self._version
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await response.write(text.encode())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SILENCE_S), self._changed:
                        await self._changed.wait_for(lambda: self._closing or seen != self._version)  # noqa: B023
        except (ConnectionError, TimeoutError):
            pass  # the page is gone, or doesn't read
        finally:
            self._clients -= 1
        return response

    async def _post_control(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="the body must be application/json")
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                event = controls.parse(await request.read())
            snapshot = await self._snapshot()
            if snapshot.state not in (STARTING, RUNNING):
                raise web.HTTPConflict(text="the run has ended")
            if not snapshot.agents:
                raise web.HTTPConflict(text="the run isn't ready for this yet")
            if snapshot.engine == "simulated":
                raise web.HTTPConflict(text="a simulated run can't be changed while it is running")
            _check(event, snapshot)
            controls.ask(self._run_dir, event)
        except EventRefused as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        except OSError as error:
            raise web.HTTPConflict(text=f"{files.CONTROLS}: {error.strerror}") from None
        return web.json_response({"asked": str(event)}, status=202)

    async def _snapshot(self) -> RunSnapshot:
        async with self._snapshot_lock:
            return await asyncio.to_thread(self._watcher.snapshot)

    async def _watching(self, app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        """Poll the run while clients are connected; errors are shown in place of the snapshot."""
        while True:
            if self._clients:
                try:
                    text = json.dumps(asdict(await self._snapshot()), allow_nan=False)
                except (RunFolderError, OSError, ValueError) as error:
                    text = json.dumps({"problem": str(error)})
                if text != self._latest:
                    async with self._changed:
                        self._latest, self._version = text, self._version + 1
                        self._changed.notify_all()
            await asyncio.sleep(PERIOD_S)

    async def _close(self, app: web.Application) -> None:
        async with self._changed:
            self._closing = True
            self._changed.notify_all()


async def serve(run_dir: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve a run folder until SIGINT or SIGTERM.

    Args:
        port: on the loopback interface; 0 for any free one.
        ready: called with the address once it can be opened.

    Raises:
        RunFolderError: `run_dir` isn't a run folder.
        OSError: the port isn't available.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    dashboard = Dashboard(run_dir)
    # No access log: every request's path contains the token.
    runner = web.AppRunner(dashboard.app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, port).start()
        ready(f"http://{LOOPBACK}:{runner.addresses[0][1]}/{dashboard.token}/")
        await stop.wait()
    finally:
        await runner.cleanup()


def _check(event: TurnEvent, snapshot: RunSnapshot) -> None:
    """Check an event against the run. Raises EventRefused.

    Only the offered policies are allowed: `module:Class` would make the run import code that a request names.
    """
    policies = snapshot.policies
    if isinstance(event, SetAllocator) and event.policy not in policies:
        raise EventRefused(f"no allocator {event.policy!r} here; there are {', '.join(policies)}")
    if problem := event.problem(len(snapshot.agents), snapshot.workers):
        raise EventRefused(problem)


async def _set_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.setdefault("Content-Security-Policy", POLICY)
