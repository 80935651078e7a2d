"""OpenAI's own client, which knows nothing of this server but its address."""

import base64
import importlib.metadata
import os
import re
import tempfile
import unittest
from pathlib import Path

import openai

from server import IMAGE, Server

THREE = "A red star, a blue arrow and an orange circle."


class OpenAI(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--api-key", "a key")
        os.environ["OPENAI_BASE_URL"] = f"{cls.server.url}/v1"
        os.environ["OPENAI_API_KEY"] = "a key"

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_the_package_s_own_vision_example(self):
        """Its README, word for word; the base URL comes from the environment."""
        readme = importlib.metadata.metadata("openai")["Description"]
        section = readme.split("### Vision")[1].split("\n## ")[0]
        example = [code for code in re.findall(r"```python\n(.*?)```", section, re.S) if "base64" in code][0]
        self.assertIn("OpenAI()", example)
        path = re.search(r'open\("(.*?)"', example)[1]
        here = os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, path)
            target.parent.mkdir(parents=True)
            target.write_bytes(IMAGE.read_bytes())
            os.chdir(folder)
            try:
                names = {}
                exec(example, names)
            finally:
                os.chdir(here)
        self.assertEqual(names["response"].output_text, THREE)

    def question(self, text):
        image = base64.b64encode(IMAGE.read_bytes()).decode()
        url = {"url": f"data:image/jpeg;base64,{image}"}
        return {"role": "user", "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]}

    def test_chat_completions(self):
        client = openai.OpenAI()
        messages = [self.question("What objects are in this image?")]
        first = client.chat.completions.create(model="gpt-4o", messages=messages, max_tokens=50)
        self.assertEqual(first.choices[0].message.content, THREE)
        self.assertEqual(first.usage.total_tokens, first.usage.prompt_tokens + first.usage.completion_tokens)
        messages += [first.choices[0].message, {"role": "user", "content": "Which way does the arrow point?"}]
        second = client.chat.completions.create(model="gpt-4o", messages=messages)
        self.assertEqual(second.choices[0].message.content, "Left.")

    def test_streaming(self):
        chunks = list(openai.OpenAI().chat.completions.create(
            model="any", messages=[self.question("How many objects are there?")], stream=True,
            stream_options={"include_usage": True}))
        texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
        self.assertEqual("".join(texts), "Three.")
        self.assertGreater(len(texts), 1)
        self.assertGreater(chunks[-1].usage.completion_tokens, 0)
        with openai.OpenAI().chat.completions.stream(model="any", messages=[self.question("How many objects are there?")]) as stream:
            self.assertEqual(stream.get_final_completion().choices[0].message.content, "Three.")

    def test_models_and_errors(self):
        client = openai.OpenAI(max_retries=0)
        self.assertEqual([model.id for model in client.models.list()], ["demo"])
        with self.assertRaisesRegex(openai.NotFoundError, "not served here"):
            client.models.retrieve("gpt-4o")
        with self.assertRaisesRegex(openai.BadRequestError, "n: only 1 accepted") as caught:
            client.chat.completions.create(model="any", messages=[self.question("Hi")], n=2)
        self.assertEqual((caught.exception.param, caught.exception.code), ("n", "invalid_value"))
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(api_key="another").models.list()


if __name__ == "__main__":
    unittest.main()
