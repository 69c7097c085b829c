"""The work in a plain loop, in one process: what a server would reach if serving cost nothing.

`POST /predict` answers once, so that the answer can be checked like any server's; `POST /loop` with
the number of seconds as its path's end (`/loop/2`) repeats the body's work in batches for so long
and says in JSON how many bodies were answered in how many seconds.
"""

import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import tasks
from common import BATCH_SIZE, PORT, TASK

work = tasks.load(TASK)
# The server that is compared with runs one thread too.
if TASK in ("cnn", "resnet"):
    import torch

    torch.set_num_threads(1)


def repeat(body, seconds):
    batch = [body] * BATCH_SIZE
    batches = 0
    began_s = time.perf_counter()
    while (elapsed_s := time.perf_counter() - began_s) < seconds:
        work(batch)
        batches += 1
    return {"requests": batches * BATCH_SIZE, "seconds": elapsed_s}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/loop/"):
            answer = json.dumps(repeat(body, float(self.path.rpartition("/")[2]))).encode()
        else:
            answer = work([body])[0]
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words):
        pass


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
