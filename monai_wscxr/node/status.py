"""Status of the node: a page, JSON and metrics on the loopback, without patient data."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable, Mapping
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.label.server.guard import LOOPBACK, host_name
from monai_wscxr.model.description import ModelDescription
from monai_wscxr.node.measures import SHARES, Sample, drift, metrics_text, per_minute, quantiles
from monai_wscxr.node.queue import Queue
from monai_wscxr.node.weekly import weekly
from monai_wscxr.report.page import DISCLAIMER
from monai_wscxr.report.weekly import Weekly, weekly_page

_RECENT = 1000  # images that latency and drift are computed from
_ERRORS = 20
_WEEKLY = 100_000  # images of the weekly report
_WEEKLY_SECONDS = 60.0
_REFRESH = 10.0  # seconds
_SECONDS = 10.0  # that a request for the page may take to arrive


class Status:
    """Collects the status of a node.

    Args:
        queue: its queue.
        model: its model.
        more: returns further values: `archive_failures`, `rejected_associations`, `open_associations`.
    """

    def __init__(self, queue: Queue, model: ModelDescription, more: Callable[[], Mapping[str, int]]) -> None:
        self.queue, self.model, self.more = queue, model, more
        self.began = time.time()
        self._lock = threading.Lock()
        self._drift: tuple[float, dict[str, Any]] = (0.0, {})
        self._weekly: tuple[float, Weekly] | None = None

    def values(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        rows = self.queue.rows(_RECENT)
        ended = [row for row in rows if row["finished"] is not None]
        latency = quantiles([row["finished"] - row["received"] for row in ended])
        return {
            "model": self.model.sha256,
            "seconds": round(time.time() - self.began, 1),
            "queue": self.queue.states(),
            "totals": self.queue.totals(),
            "latency": {f"p{share * 100:.0f}": value for share, value in zip(SHARES, latency, strict=True)},
            "scored_per_minute": per_minute([row["scored"] for row in rows]),
            "flagged_share": _share([bool(row["outcome"]["abnormal"]) for row in rows if row["outcome"]]),
            "drift": self._recent_drift(rows),
            "errors": self.queue.errors(_ERRORS),
            **self.more(),
        }

    def _recent_drift(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        with self._lock:
            at, found = self._drift
            if not found or time.time() - at > _REFRESH:
                found = drift(self.model, [row["outcome"] for row in rows])
                self._drift = time.time(), found
            return found

    def weekly(self) -> Weekly:
        """Return the weekly report; it is made again at most once a minute."""
        with self._lock:
            if self._weekly is None or time.time() - self._weekly[0] > _WEEKLY_SECONDS:
                self._weekly = time.time(), weekly(self.queue.rows(_WEEKLY), self.model)
            return self._weekly[1]

    def weekly_page(self) -> str:
        """Return the weekly report as an HTML page."""
        return weekly_page(self.weekly(), self.model.colour_scale)

    def metrics(self) -> str:
        """Return the status as metrics of Prometheus."""
        found = self.values()
        totals = found["totals"]
        reasons: list[Sample] = [
            ({"reason": name.removeprefix("reason_")}, count)
            for name, count in totals.items()
            if name.startswith("reason_")
        ]
        latency: list[Sample] = [
            ({"quantile": f"{share:g}"}, value)
            for share, value in zip(SHARES, found["latency"].values(), strict=True)
            if value is not None
        ]
        shift: list[Sample] = [] if found["drift"]["shift"] is None else [({}, found["drift"]["shift"])]
        return metrics_text(
            [
                ("images", "gauge", "Images by state", [({"state": s}, n) for s, n in found["queue"].items()]),
                ("received_total", "counter", "Images received", [({}, totals["received"])]),
                ("repeated_total", "counter", "Images received again", [({}, totals["repeated"])]),
                ("without_score", "gauge", "Images without a score or not stored, by reason", reasons),
                ("latency_seconds", "gauge", "From arrival to the end, recent images", latency),
                ("scored_per_minute", "gauge", "Images scored, last ten minutes", [({}, found["scored_per_minute"])]),
                ("drift_shift", "gauge", "Shift of recent images, in variances of normals", shift),
                ("archive_failures", "gauge", "Failed attempts in a row", [({}, found["archive_failures"])]),
                ("open_associations", "gauge", "Open connections", [({}, found["open_associations"])]),
                ("rejected_associations", "gauge", "Associations rejected", [({}, found["rejected_associations"])]),
            ]
        )

    def page(self) -> str:
        """Return the status as an HTML page."""
        found = self.values()
        latency = " / ".join("-" if value is None else f"{value:.1f} s" for value in found["latency"].values())
        share = "-" if found["flagged_share"] is None else f"{found['flagged_share']:.1%}"
        rows = [
            *((f"images {state}", str(count)) for state, count in found["queue"].items()),
            ("received, received again", f"{found['totals']['received']}, {found['totals']['repeated']}"),
            ("scored per minute, last ten minutes", f"{found['scored_per_minute']:.1f}"),
            ("from arrival to the end, median / 95 %", latency),
            ("flagged, of recent images", share),
            ("drift", "; ".join(found["drift"]["sentences"])),
            ("failed attempts to reach the archive, in a row", str(found["archive_failures"])),
            ("associations open, rejected", f"{found['open_associations']}, {found['rejected_associations']}"),
            ("model", found["model"][:16]),
        ]
        reasons = [
            (name.removeprefix("reason_"), str(count))
            for name, count in found["totals"].items()
            if name.startswith("reason_")
        ]
        errors = [
            (f"{_moment(entry['time'])} {entry['id']}", f"{entry['reason']}: {entry['message']}")
            for entry in found["errors"]
        ]
        body = _table("Now", rows) + _table("Without a score, or not stored", reasons) + _table("Last errors", errors)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{_REFRESH:.0f}">'
            f"<title>WSCXR node</title><style>{_STYLE}</style></head><body><h1>WSCXR node</h1><p>{DISCLAIMER}</p>{body}"
            '<p><a href="/weekly">Weekly report</a> <a href="/status.json">JSON</a> <a href="/metrics">Metrics</a></p>'
            "</body></html>"
        )


class StatusServer:
    """HTTP server of the status on a loopback address.

    Args:
        status: what it shows.
        host: a loopback address.
        port: 0 takes a free one.

    Attributes:
        port: port it listens on.

    Raises:
        InputError: when it cannot listen there.
    """

    def __init__(self, status: Status, host: str, port: int) -> None:
        answers: dict[str, tuple[str, Callable[[], str]]] = {
            "/": ("text/html; charset=utf-8", status.page),
            "/status.json": ("application/json", lambda: json.dumps(status.values())),
            "/weekly": ("text/html; charset=utf-8", status.weekly_page),
            "/weekly.json": ("application/json", lambda: json.dumps(status.weekly().to_dict())),
            "/metrics": ("text/plain; version=0.0.4; charset=utf-8", status.metrics),
            "/health": ("application/json", lambda: '{"status": "ok"}'),
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = _SECONDS

            def do_GET(self) -> None:
                # a name of this machine, so that no web page reaches it under a name of its own (DNS rebinding)
                if host_name(self.headers.get("Host", "").strip().lower()) not in (*LOOPBACK, host):
                    self.send_error(421)
                    return
                kind, answer = answers.get(self.path.partition("?")[0], ("", None))
                if answer is None:
                    self.send_error(404)
                    return
                content = answer().encode()
                self.send_response(200)
                for name, value in (("Content-Type", kind), ("Content-Length", str(len(content))), *_HEADERS):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                """Log no requests."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}, port {port} ({error.strerror or error}); choose another --status_port"
            ) from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


_HEADERS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}caption{text-align:left;font-weight:600}"
    "th,td{text-align:left;padding:.2rem .6rem;border-bottom:1px solid #8884;vertical-align:top}th{font-weight:400;width:22rem}"
)


def _table(caption: str, rows: list[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td></tr>' for a, b in rows)
    return f"<table><caption>{caption}</caption><tbody>{body or '<tr><td>none</td></tr>'}</tbody></table>"


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _share(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None
