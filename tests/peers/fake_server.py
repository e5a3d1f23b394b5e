"""A llama-server for the tests: counts upwards. Run as a program of its own."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._send({"status": "ok"})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, request["ignore_eos"], request["temperature"]) == ("/completion", True, 0)
        last = request["prompt"][-1]
        time.sleep(0.01)
        tokens = list(range(last, last + request["n_predict"]))
        self._send({"tokens": tokens, "timings": {"prompt_ms": 1.0}})

    def _send(self, record):
        data = json.dumps(record).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if "--version" in sys.argv:
    print("version: 77 (fake)", file=sys.stderr)
elif "--help" in sys.argv:
    print("--spec-type ngram-mod")
else:
    port = int(sys.argv[sys.argv.index("--port") + 1])
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()
