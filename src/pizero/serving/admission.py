"""What a request for a connection is answered: plain HTTP, a refusal, or nothing, and then it becomes one."""

from __future__ import annotations

from http import HTTPStatus

from websockets.http11 import Request, Response

from pizero.serving.feed import ADDRESS_PAGES, MOST_PAGES, Feed
from pizero.serving.gate import LIVE, not_found, page_file, respond, wants_websocket
from pizero.serving.log import log
from pizero.serving.robots import Robots
from pizero.serving.service import Service


class Admission:
    """Decides who comes in, by the gate's rules and by who is in already."""

    def __init__(self, service: Service, robots: Robots, feed: Feed) -> None:
        self._service, self._robots, self._feed = service, robots, feed

    def admit(self, request: Request, address: str) -> Response | None:
        """An HTTP answer, or None: it becomes a connection."""
        response = self._answer(request, address)
        if response is not None and response.status_code >= 400:
            self._service.metrics.refused.labels(str(response.status_code)).inc()
            reason = response.body.decode().strip()
            log("refused", at_most=1, status=response.status_code, reason=reason, address=address,
                path=request.path[:100])  # fmt: skip
        return response

    def _answer(self, request: Request, address: str) -> Response | None:
        gate = self._service.gate
        if wrong := gate.malformed(request):
            return respond(HTTPStatus.BAD_REQUEST, f"{wrong}\n")
        path, upgrade = request.path.split("?")[0], wants_websocket(request)
        if path in ("/healthz", "/health"):
            ill = self._service.ill()
            return respond(HTTPStatus.SERVICE_UNAVAILABLE if ill else HTTPStatus.OK, f"{ill or 'OK'}\n")
        if not upgrade and (found := page_file(path)) is not None:
            return found
        if gate.foreign(request):
            return respond(HTTPStatus.FORBIDDEN, "this page may not use the server; see --origins\n")
        if path == LIVE and upgrade:  # gives its key in its first message: a browser cannot send it sooner
            return self._page(address)
        owner = gate.owner(request, address)
        if owner is None:
            return respond(HTTPStatus.UNAUTHORIZED, "an API key is needed: Authorization: Api-Key ...\n")
        if path == "/metrics":
            if not self._service.config.api_keys and gate.strange_name(request):
                return respond(HTTPStatus.FORBIDDEN, "the server does not know this name of it; see --origins\n")
            return respond(HTTPStatus.OK, self._service.metrics.text())
        if self._service.find(path) is None:
            return not_found(list(self._service.hosted))
        if not upgrade:
            return respond(HTTPStatus.UPGRADE_REQUIRED, "robots connect by websocket\n")
        return self._robot(owner)

    def _page(self, address: str) -> Response | None:
        waiting = self._feed.waiting
        if waiting.total() < MOST_PAGES and waiting[address] < ADDRESS_PAGES:
            return None
        text = f"{waiting.total()} pages have not given a key yet, {waiting[address]} of this address\n"
        return respond(HTTPStatus.SERVICE_UNAVAILABLE, text)

    def _robot(self, owner: str) -> Response | None:
        most, own = self._service.config.max_connections, self._robots.of(owner)
        if self._service.draining:
            text = "the server ends"
        elif len(self._robots.connected) >= most:
            text = f"{most} robots are connected"
        elif own >= self._service.gate.share(most):
            text = f"{own} robots of {owner} are connected, its share"
        else:
            return None
        return respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{text}\n")
