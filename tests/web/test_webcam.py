"""A page of another origin that asks about the frames of a webcam, in Chromium with its fake camera."""

import functools
import http.server
import threading
import unittest
from pathlib import Path

from browser import Browser
from server import Server


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Webcam(unittest.TestCase):
    def look(self, allowed):
        handler = functools.partial(Quiet, directory=str(Path(__file__).parent))
        pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.addCleanup(pages.server_close)
        self.addCleanup(pages.shutdown)
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{pages.server_port}"
        options = ["--cors-origin", origin] if allowed else []
        server, browser = Server("--api-key", "a key", *options), Browser()
        self.addCleanup(server.__exit__)
        self.addCleanup(browser.__exit__)
        browser.open(f"{origin}/webcam.html?base={server.url}")
        browser.until("answers.length >= 3")
        return browser.run("answers.slice(0, 3)")

    def test_three_frames_are_answered(self):
        for answer in self.look(allowed=True):
            self.assertTrue(answer)
            self.assertNotIn("error:", answer)

    def test_without_leave_the_browser_keeps_the_answers(self):
        for answer in self.look(allowed=False):
            self.assertTrue(answer.startswith("error: "), answer)


if __name__ == "__main__":
    unittest.main()
