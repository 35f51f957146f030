"""A real NGINX before the service, as most who run it will have one, with its buffers as they are unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.integration.servers import free_port, program, start_server

_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://{upstream};
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      {more}
    }}
  }}
}}
"""


class Nginx:
    """Passes everything on to one service, by HTTP/1.0 and buffering what is answered: that is its default."""

    host = "127.0.0.1"

    def __init__(self, directory: Path, upstream: str, more: str) -> None:
        self.port = 0  # until it is started
        self._directory = directory
        self._upstream = urlsplit(upstream).netloc
        self._more = more

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @classmethod
    @contextmanager
    def running(cls, directory: Path, upstream: str, more: str = "") -> Iterator[Self]:
        """Start one before the service at ``upstream``, in ``directory``, which users other than root's must be able
        to enter. ``more`` are directives of the location."""
        nginx = cls(directory, upstream, more)
        process = start_server(nginx._configure, ready=b"start worker process ")
        try:
            yield nginx
        finally:
            process.stop()

    def _configure(self) -> list[str | Path]:
        self.port = free_port()
        configuration = self._directory / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                directory=self._directory,
                port=self.port,
                upstream=self._upstream,
                more=self._more,
            )
        )
        return [program("nginx"), "-e", "stderr", "-p", self._directory, "-c", configuration]
