"""Other clients of OpenAI's protocol, unchanged but for the base URL: a picture, a stream, three turns each."""

import base64
import json
import os
import subprocess
import unittest
from pathlib import Path

from server import IMAGE, ROOT, Server

URL = "data:image/jpeg;base64," + base64.b64encode(IMAGE.read_bytes()).decode()
TURNS = [
    ("What objects are in this image?", "A red star, a blue arrow and an orange circle."),
    ("Which way does the arrow point?", "Left."),
    ("How many objects are there?", "Three."),
]


def first(text):
    return {"role": "user", "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": URL}}]}


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--api-key", "a key")
        cls.base = f"{cls.server.url}/v1"

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def hold_three_turns(self, ask):
        messages = []
        for text, expected in TURNS:
            messages.append({"role": "user", "content": text} if messages else first(text))
            self.assertEqual(ask(messages), expected)
            messages.append({"role": "assistant", "content": expected})

    def test_openai(self):
        import openai
        client = openai.OpenAI(base_url=self.base, api_key="a key")
        self.hold_three_turns(lambda messages: client.chat.completions.create(
            model="demo", messages=messages).choices[0].message.content)

    def test_langchain(self):
        from langchain_openai import ChatOpenAI
        chat = ChatOpenAI(model="demo", base_url=self.base, api_key="a key")
        self.hold_three_turns(lambda messages: chat.invoke(messages).content)
        pieces = [chunk.content for chunk in chat.stream([first("How many objects are there?")])]
        self.assertEqual("".join(pieces), "Three.")
        self.assertGreater(len([piece for piece in pieces if piece]), 1)

    def test_litellm(self):
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
        import litellm

        def complete(messages, **more):
            return litellm.completion("openai/demo", messages=messages, api_base=self.base, api_key="a key", **more)
        self.hold_three_turns(lambda messages: complete(messages).choices[0].message.content)
        pieces = [chunk.choices[0].delta.content or "" for chunk in complete(
            [first("How many objects are there?")], stream=True)]
        self.assertEqual("".join(pieces), "Three.")
        self.assertGreater(len([piece for piece in pieces if piece]), 1)

    def test_openai_of_npm(self):
        script = Path(__file__).with_name("openai.mjs")
        command = ["node", script, self.base, IMAGE, ROOT / "build/web-npm"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertEqual(json.loads(ran.stdout), [answer for _, answer in TURNS] + ["Three."])


if __name__ == "__main__":
    unittest.main()
