"""The page at /, in Chromium: its screenshots are left in build/web."""

import threading
import time
import unittest
import urllib.request

from browser import Browser
from server import IMAGE, ROOT, Server

THREE = "A red star, a blue arrow and an orange circle."
SCREENSHOTS = ROOT / "build/web"
FAILURES = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")


def endless(url, stop):
    """Keeps a worker busy until `stop` is set; reads each answer to its end, so that none counts as abandoned."""
    body = '{"messages": [{"role": "user", "content": "Hi"}], "stream": true, "temperature": 100, "seed": 1, "max_tokens": 1900}'
    while not stop.is_set():
        with urllib.request.urlopen(f"{url}/v1/chat/completions", body.encode()) as answer:
            while answer.read(100):
                pass


class Page(unittest.TestCase):
    def setUp(self):
        self.browser = self.enterContext(Browser())

    def enterContext(self, context):
        # unittest's own came with Python 3.11.
        self.addCleanup(context.__exit__, None, None, None)
        return context.__enter__()

    def serve(self, *options):
        self.server = self.enterContext(Server(*options))
        self.browser.open(self.server.url)
        self.browser.until("document.getElementById('model').className === 'ok'")

    def ask(self, text):
        """Types a question, as people do, and waits for the end of the answer; its text."""
        count = self.browser.run("document.querySelectorAll('.answer').length")
        self.browser.run("document.getElementById('question').focus()")
        self.browser.send("Input.insertText", text=text)
        self.browser.press("Enter", "\r")
        self.browser.until(f"document.querySelectorAll('.answer:not(.busy)').length === {count + 1}")
        return self.browser.run("[...document.querySelectorAll('.answer .text')].at(-1).textContent")

    def drop_picture(self):
        self.browser.drop(IMAGE, 300, 300)
        self.browser.until("picture && document.getElementById('shown').complete")

    def until_metrics_say(self, text):
        end = time.monotonic() + 60
        while text not in urllib.request.urlopen(f"{self.server.url}/metrics").read().decode():
            self.assertLess(time.monotonic(), end, f"/metrics never says {text}")
            time.sleep(0.01)

    def test_a_conversation_about_a_dropped_picture(self):
        self.serve()
        self.assertEqual(self.browser.run("document.getElementById('model').textContent"), "demo · candle on cpu in f32")
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.browser.screenshot(SCREENSHOTS / "empty.png", 1200, 760)
        self.drop_picture()
        self.assertEqual(self.ask("What objects are in this image?"), THREE)
        self.assertEqual(self.ask("Which way does the arrow point?"), "Left.")
        self.assertEqual(self.browser.run("messages.length"), 4)
        times = self.browser.run("[...document.querySelectorAll('.times')].map(times => times.textContent)")
        self.assertEqual(len(times), 2)
        self.assertRegex(times[0], r"pictures \d+(\.\d)? ms.*first text \d.* 13 tokens, \d+/s$")
        # Text is text, whatever it looks like.
        self.ask("<img src=/x> <b>Hi</b>")
        self.assertEqual(self.browser.run("document.querySelectorAll('#talk img, #talk b').length"), 0)
        self.browser.screenshot(SCREENSHOTS / "light.png", 1200, 760)
        light = self.browser.run("getComputedStyle(document.body).backgroundColor")
        self.browser.screenshot(SCREENSHOTS / "dark.png", 1200, 760, dark=True)
        self.assertNotEqual(light, self.browser.run("getComputedStyle(document.body).backgroundColor"))
        self.browser.screenshot(SCREENSHOTS / "narrow.png", 400, 1000)
        self.assertLessEqual(self.browser.run("document.documentElement.scrollWidth"), 400)

        self.browser.run("document.getElementById('again').click()")
        self.assertEqual(self.browser.run("messages.length"), 0)
        self.assertEqual(self.browser.run("document.querySelectorAll('.answer').length"), 0)

        requests = [e["params"]["request"]["url"] for e in self.browser.events if e["method"] == "Network.requestWillBeSent"]
        self.assertTrue(any(url.endswith("/v1/chat/completions") for url in requests))
        for url in requests:
            self.assertTrue(url.startswith((self.server.url, "data:", "blob:")), url)
        self.assertEqual([e for e in self.browser.events if e["method"] in FAILURES], [])

    def test_a_picture_from_the_webcam_and_one_that_is_drawn(self):
        self.serve()
        self.browser.run("document.getElementById('camera').click()")
        self.browser.until("!document.getElementById('snap').hidden && document.getElementById('video').videoWidth")
        # The button has the focus.
        self.browser.press("Enter", "\r")
        self.assertTrue(self.browser.until("picture").startswith("data:image/jpeg;base64,"))
        self.assertIsNone(self.browser.run("stream"), "the webcam is closed")
        self.assertNotEqual(self.ask("What objects are in this image?"), "")
        self.browser.run("document.getElementById('example').click()")
        self.browser.until("picture.startsWith('data:image/png')")
        self.assertEqual(self.browser.run("messages.length"), 0, "another picture, another conversation")
        self.browser.run("document.querySelectorAll('#ideas button')[1].click()")
        self.browser.until("!!document.querySelector('.answer:not(.busy)')")
        self.assertEqual(self.browser.run("document.querySelector('.answer .text').textContent"), "Three.")
        self.assertEqual([e for e in self.browser.events if e["method"] in FAILURES], [])

    def test_escape_stops(self):
        self.serve("--workers", "1", "--max-new-tokens", "2000")
        self.drop_picture()
        stop = threading.Event()
        busy = threading.Thread(target=endless, args=(self.server.url, stop))
        busy.start()
        try:
            self.until_metrics_say("smolvlm_questions_running 1")
            self.browser.send("Input.insertText", text="Hi")
            self.browser.press("Enter", "\r")
            self.until_metrics_say("smolvlm_questions_waiting 1")
            self.browser.press("Escape")
            self.browser.until("document.querySelector('.times')?.textContent === 'stopped'")
            self.assertEqual(self.browser.run("messages.length"), 0)
        finally:
            stop.set()
            busy.join()
        self.until_metrics_say('finish_reason="abandoned"} 1')

    def test_the_server_s_errors_are_shown(self):
        self.serve("--api-key", "open sesame", "--max-pixels", "1000")
        self.drop_picture()
        self.assertIn("authorization: send the server's key", self.ask("Hi"))
        self.assertFalse(self.browser.run("document.getElementById('key').hidden"))
        self.browser.run("document.getElementById('secret').focus()")
        self.browser.send("Input.insertText", text="open sesame")
        self.browser.press("Enter", "\r")
        self.assertTrue(self.browser.run("document.getElementById('key').hidden"))
        self.assertIn("pixels, at most 1000 accepted", self.ask("Hi"))


if __name__ == "__main__":
    unittest.main()
