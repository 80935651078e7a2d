"""Loads the web server with many clients at once, and reports latencies, what went wrong, and the server's memory.

    cargo build --release --example web_api
    python tools/load_web_api.py --clients 64 --seconds 300 -- --queue 64

It starts the server itself; what follows `--` are the server's options. Each client asks one question after the other, in turn as
a form, as a chat and as a streamed chat, over a connection that it keeps. A 429 is obeyed: the client waits as long as it
says. Any other failure is an error, and so is an answer that differs from an earlier one to the same question.
"""

import argparse
import base64
import collections
import http.client
import json
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "models/demo/test_image.jpg"
QUESTIONS = ("What objects are in this image?", "How many objects are there?", "Which way does the arrow point?")
JSON = {"Content-Type": "application/json"}
RSS_EVERY_S = 10


def form(question):
    fields = (('name="prompt"', question.encode()), ('name="image"; filename="a.jpg"', IMAGE.read_bytes()))
    parts = [b'--limit\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n' % (name.encode(), value) for name, value in fields]
    return "/analyze", b"".join(parts) + b"--limit--\r\n", {"Content-Type": "multipart/form-data; boundary=limit"}


def chat(question, stream):
    url = "data:image/jpeg;base64," + base64.b64encode(IMAGE.read_bytes()).decode()
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"messages": [{"role": "user", "content": content}], "stream": stream}
    return "/v1/chat/completions", json.dumps(body).encode(), JSON


def text(kind, body):
    if kind == "form":
        return json.loads(body)["text"]
    if kind == "chat":
        return json.loads(body)["choices"][0]["message"]["content"]
    events = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    if events.pop() != "[DONE]":
        raise ValueError("the stream ends without [DONE]")
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


class Load:
    def __init__(self, address, seconds):
        self.address, self.end = address, time.monotonic() + seconds
        self.lock = threading.Lock()
        self.latencies = collections.defaultdict(list)
        self.refused, self.errors, self.answers = 0, collections.Counter(), {}
        self.requests = [(kind, question, make(question)) for question in QUESTIONS for kind, make in (
            ("form", form), ("chat", lambda q: chat(q, False)), ("stream", lambda q: chat(q, True)))]

    def client(self, number):
        connection = http.client.HTTPConnection(*self.address, timeout=120)
        while time.monotonic() < self.end:
            kind, question, request = self.requests[number % len(self.requests)]
            try:
                wait = self.ask(connection, kind, question, request)
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                with self.lock:
                    self.errors[f"{type(error).__name__}: {error}"] += 1
                connection.close()
                wait = 0
            if wait:
                time.sleep(wait)
            else:
                number += 1

    def ask(self, connection, kind, question, request):
        """Seconds to wait before the same question is asked again, 0 where it was answered."""
        path, body, headers = request
        start = time.perf_counter()
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        seconds = time.perf_counter() - start
        with self.lock:
            if response.status == 429:
                self.refused += 1
                return int(response.headers["Retry-After"])
            if response.status != 200:
                self.errors[f"{response.status}: {answer[:200]!r}"] += 1
                return 0
            self.latencies[kind].append(seconds)
            said = text(kind, answer)
            if self.answers.setdefault(question, said) != said:
                self.errors[f"{question} {self.answers[question]} / {said}"] += 1
        return 0


def rss_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)] * 1000


def report(load, seconds, rss):
    everything = [value for values in load.latencies.values() for value in values]
    print(f"{len(everything)} answers in {seconds:.0f} s, {len(everything) / seconds:.1f} per second; {load.refused} times 429")
    for name, values in [*sorted(load.latencies.items()), ("all", everything)]:
        figures = ", ".join(f"p{p} {percentile(values, p):.0f} ms" for p in (50, 90, 99))
        print(f"  {name:6} {len(values):6}  {figures}, max {max(values) * 1000:.0f} ms")
    print(f"memory (RSS, MiB, each {RSS_EVERY_S} s): {' '.join(f'{value:.0f}' for value in rss)}")
    for question, answer in load.answers.items():
        print(f"{question} {answer}")
    for error, count in load.errors.most_common():
        print(f"ERROR {count} times: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("options", nargs="*", help="the server's, after --")
    args = parser.parse_args()
    command = [ROOT / "target/release/examples/web_api", "--port", "0", *args.options]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        host, port = server.stdout.readline().split("http://")[1].split(":")
        load = Load((host, int(port)), args.seconds)
        rss = [rss_mib(server.pid)]
        start = time.monotonic()
        clients = [threading.Thread(target=load.client, args=(number,)) for number in range(args.clients)]
        for client in clients:
            client.start()
        while time.monotonic() < load.end:
            time.sleep(min(RSS_EVERY_S, max(0.01, load.end - time.monotonic())))
            rss.append(rss_mib(server.pid))
        for client in clients:
            client.join()
        report(load, time.monotonic() - start, rss)
    finally:
        server.terminate()
        code = server.wait()
    print(f"the server ended with {code}")
    return 1 if load.errors or code else 0


if __name__ == "__main__":
    raise SystemExit(main())
