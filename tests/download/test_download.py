"""download_models.sh against a hub on this machine."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fake_hub import FakeHub  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "download_models.sh"
DEMO = ROOT / "models/demo"
NAME = "SmolVLM-256M-Instruct"
WEIGHTS = "model.safetensors"
TOKEN = "hf_aSecretOfTheTests"


def noise(seed, size):
    return random.Random(seed).getrandbits(8 * size).to_bytes(size, "big")


class Download(unittest.TestCase):
    def setUp(self):
        self.place = Path(tempfile.mkdtemp(prefix="smolvlm-download-"))
        self.addCleanup(shutil.rmtree, self.place)
        self.source = self.place / "hub"
        self.files = {
            "config.json": b'{"model_type": "idefics3"}\n',
            "tokenizer.json": b"{}",
            "empty.json": b"",
            "chat_template.jinja": b"{# a template #}",
            WEIGHTS: noise(1, 300_000),
        }
        for graph in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
            self.files[f"onnx/{graph}_q4.onnx"] = noise(graph, 1000)
        self.files["onnx/decoder_model_merged_q4.onnx_data"] = b"weights beside a graph"
        for name, content in {**self.files, "README.md": b"not asked for", "pickle.bin": b"nor this"}.items():
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            (self.source / name).write_bytes(content)
        self.hub = self.serve(self.source)
        self.models = self.place / "models"
        self.model = self.models / NAME

    def serve(self, source):
        hub = FakeHub(source)
        self.addCleanup(hub.close)
        return hub

    def command(self, *arguments, script=SCRIPT, **environment):
        settings = {k: v for k, v in os.environ.items() if k != "HF_TOKEN" and not k.lower().endswith("_proxy")}
        settings.update({"HF_ENDPOINT": self.hub.url, **environment})
        return {"args": [script, "--dir", self.models, *arguments], "env": settings, "text": True}

    def run_script(self, *arguments, code=0, **options):
        done = subprocess.run(**self.command(*arguments, **options), capture_output=True, timeout=120)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def fails(self, *expected, code=1, arguments=(), **options):
        """The script ends with one line that says `expected`, and nothing has a final name."""
        done = self.run_script(*arguments, code=code, **options)
        for text in expected:
            self.assertIn(text, done.stderr.splitlines()[-1])
        self.assertEqual(self.there(), [])
        return done

    def there(self):
        """The files under final names."""
        files = (p for p in self.model.rglob("*") if p.is_file() and ".parts" not in p.parts)
        return sorted(p.relative_to(self.model).as_posix() for p in files)

    def parts(self):
        return sorted(self.model.glob(".parts/*"))

    def assert_complete(self, *onnx):
        expected = {n: c for n, c in self.files.items() if "/" not in n or n in onnx}
        self.assertEqual(self.there(), sorted(["SHA256SUMS", *expected]))
        for name, content in expected.items():
            self.assertEqual((self.model / name).read_bytes(), content, name)
        record = [f"{hashlib.sha256(c).hexdigest()}  {n}" for n, c in expected.items()]
        self.assertEqual(sorted((self.model / "SHA256SUMS").read_text().splitlines()), sorted(record))
        self.assertFalse((self.model / ".parts").exists())

    def test_a_checkpoint_and_nothing_else(self):
        self.run_script("small")
        self.assert_complete()

    def test_a_second_run_downloads_nothing(self):
        self.run_script("small")
        self.hub.requests.clear()
        self.run_script("small")
        self.assertEqual([what for what, _, _ in self.hub.requests], ["tree"])
        self.assert_complete()

    def test_onnx_graphs_are_added_to_what_is_there(self):
        self.run_script("small")
        self.hub.requests.clear()
        self.run_script("small", "--onnx", "q4")
        graphs = [name for name in self.files if name.startswith("onnx/")]
        self.assertEqual(sorted(what for what, _, _ in self.hub.requests), sorted(["tree", *graphs]))
        self.assert_complete(*graphs)

    def test_an_onnx_variant_that_is_not_published(self):
        self.fails("--onnx int8", "onnx/vision_encoder_int8.onnx", arguments=["--onnx", "q4,int8"])
        self.fails('--onnx: "int3" is none of', code=2, arguments=["--onnx", "int3"])

    def test_every_size_and_generation_has_its_name(self):
        self.run_script("all")
        self.run_script("--smolvlm2", "all")
        self.assertEqual(
            sorted(path.name for path in self.models.iterdir()),
            ["SmolVLM-256M-Instruct", "SmolVLM-500M-Instruct", "SmolVLM-Instruct"]
            + ["SmolVLM2-2.2B-Instruct", "SmolVLM2-256M-Video-Instruct", "SmolVLM2-500M-Video-Instruct"],
        )

    def test_a_cut_is_resumed_where_it_was(self):
        self.hub.cuts[WEIGHTS] = [100_000, 150_000]
        self.run_script("small")
        self.assertEqual(self.hub.asked(WEIGHTS), [None, "bytes=100000-", "bytes=250000-"])
        self.assert_complete()

    def test_an_interrupted_run_is_resumed_by_the_next(self):
        self.hub.stalls[WEIGHTS] = 120_000
        # Where tests run in the background, the signal is ignored, and a shell does not take it back.
        unignore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        process = subprocess.Popen(
            **self.command("small"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=unignore,
        )
        # curl keeps some kilobytes back.
        while not any(p.stat().st_size >= 100_000 for p in self.parts()):
            self.assertIsNone(process.poll())
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 130, said)
        self.assertIn(f"to go on: {SCRIPT} --dir {self.models} small", said)
        self.assertEqual(self.there(), [])
        self.assertTrue(all(p.suffix == ".part" for p in self.parts()))
        (part,) = (p for p in self.parts() if p.name.startswith(WEIGHTS))
        begun = part.stat().st_size
        self.run_script("small")
        self.assertEqual(self.hub.asked(WEIGHTS), [None, f"bytes={begun}-"])
        self.assertEqual(self.hub.asked("config.json"), [None])
        self.assert_complete()

    def test_a_server_without_ranges_starts_anew(self):
        self.hub.ranges = False
        self.hub.cuts[WEIGHTS] = [100_000]
        self.run_script("small")
        self.assert_complete()

    def test_a_server_that_is_down_for_a_moment(self):
        self.hub.statuses = {"tree": [503], WEIGHTS: [503, 429]}
        self.run_script("small")
        self.assert_complete()

    def test_a_server_that_stays_down(self):
        self.hub.statuses[WEIGHTS] = [500] * 9
        self.fails(WEIGHTS, "in 4 tries (HTTP 500")
        self.assertEqual(len(self.hub.asked(WEIGHTS)), 4)

    def test_a_wrong_digest_leaves_nothing(self):
        self.hub.digests[WEIGHTS] = "ab" * 32
        self.fails(f"{NAME}/{WEIGHTS}: digest is {hashlib.sha256(self.files[WEIGHTS]).hexdigest()}", "ab" * 32)
        self.assertFalse([p for p in self.parts() if p.name.startswith(WEIGHTS)])

    def test_a_file_that_is_shorter_than_listed(self):
        self.hub.sizes[WEIGHTS] = 300_001
        for _ in range(2):  # the second run finds a part and asks for what is not there
            self.fails(f"{NAME}/{WEIGHTS}: 300000 bytes came, the hub's list says 300001")

    def test_a_small_file_is_verified_too(self):
        tree = self.hub.tree()
        self.hub.tree = lambda: tree
        (self.source / "config.json").write_bytes(b'{"model_type": "iDefics3"}\n')
        self.fails(f"{NAME}/config.json: digest is ")

    def test_the_manifest_goes_before_the_hub(self):
        script = self.place / "repository/download_models.sh"
        manifest = script.parent / "models/manifest.sha256"
        manifest.parent.mkdir(parents=True)
        shutil.copy(SCRIPT, script)
        true = hashlib.sha256(self.files[WEIGHTS]).hexdigest()
        for line, expected in [
            (f"{'cd' * 32}  {NAME}/{WEIGHTS}", f"the hub says SHA-256 {true}"),
            (f"{'ef' * 32}  {NAME}/config.json", f"{NAME}/config.json: digest is "),
        ]:
            manifest.write_text(f"# a comment\n{line}\n")
            self.fails(expected, line[:64], script=script)
        manifest.write_text(f"{true}  {NAME}/{WEIGHTS}\n")
        self.run_script("small", script=script)
        self.assert_complete()

    def test_a_damaged_file_is_found_by_the_record(self):
        self.run_script("small")
        weights = self.model / WEIGHTS
        weights.write_bytes(b"X" + weights.read_bytes()[1:])
        self.assertIn(f"{weights}: SHA-256 is ", self.run_script("small", code=1).stderr)
        weights.unlink()
        self.run_script("small")
        self.assert_complete()

    def test_what_changed_on_the_hub_is_fetched(self):
        self.run_script("small")
        self.files["config.json"] += b"\n"
        (self.source / "config.json").write_bytes(self.files["config.json"])
        self.assertIn(f"{NAME}/config.json: has changed on the hub", self.run_script("small").stderr)
        self.assert_complete()

    def test_a_file_of_somebody_else_is_left_alone(self):
        self.model.mkdir(parents=True)
        (self.model / WEIGHTS).write_bytes(b"a fine-tuned model")
        self.assertIn(f"{self.model / WEIGHTS}: is not the hub's file", self.run_script(code=1).stderr)
        self.assertEqual((self.model / WEIGHTS).read_bytes(), b"a fine-tuned model")

    def test_not_enough_disk(self):
        self.hub.sizes[WEIGHTS] = 10**16
        self.fails(f"{self.models}: {10**16 + 45} bytes needed, ", " available")
        self.assertEqual([what for what, _, _ in self.hub.requests], ["tree"])

    def test_a_disk_that_fills_up(self):
        self.models.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", self.models]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            self.skipTest("only root can mount a small disk")
        self.addCleanup(subprocess.run, ["umount", self.models], check=True)
        self.hub.sizes[WEIGHTS] = 1000  # so that the disk seems large enough
        self.fails(f"{NAME}/{WEIGHTS}: 0 bytes available")

    def test_what_the_hub_refuses(self):
        for what, status, environment, expected in [
            ("tree", 404, {}, [f"{NAME}: HTTP 404"]),
            (WEIGHTS, 404, {}, [f"{NAME}/{WEIGHTS}: HTTP 404"]),
            ("tree", 401, {}, [f"{NAME}: HTTP 401", "set HF_TOKEN", f"{self.hub.url}/HuggingFaceTB/{NAME}"]),
            (WEIGHTS, 403, {"HF_TOKEN": TOKEN}, [f"{NAME}/{WEIGHTS}: HTTP 403: HF_TOKEN gives no access"]),
        ]:
            self.hub.statuses = {what: [status]}
            done = self.fails(*expected, **environment)
            self.assertNotIn(TOKEN, done.stdout + done.stderr)

    def test_the_token_goes_to_the_hub_only(self):
        elsewhere = self.serve(self.source)
        for host in ("localhost", "127.0.0.1"):  # another name, then the same name with another port
            self.hub.requests.clear()
            self.hub.redirect = f"http://{host}:{elsewhere.server_port}"
            done = self.run_script("small", HF_TOKEN=TOKEN)
            self.assertEqual({token for _, _, token in self.hub.requests}, {f"Bearer {TOKEN}"})
            self.assertEqual({token for _, _, token in elsewhere.requests}, {None})
            self.assertNotIn(TOKEN, done.stdout + done.stderr)
            self.assert_complete()
            shutil.rmtree(self.model)
        self.fails("HF_TOKEN: holds a character", code=2, HF_TOKEN='x"\nurl = "http://elsewhere')

    def test_a_list_that_is_none(self):
        for text in (b"<html>", b'[{"type":"file"', b"[]"):
            self.hub.tree = lambda text=text: text
            self.fails(f"{NAME}: ")

    def test_a_list_leads_nowhere_else(self):
        tree = self.hub.tree()
        for path in (b"../config.json", b"/config.json", b"a/../../config.json", b"-o.json"):
            self.hub.tree = lambda path=path: tree.replace(b'"config.json"', b'"' + path + b'"')
            self.fails(f"{NAME}: no config.json")

    def test_wrong_arguments(self):
        self.fails('"tiny" is none of small, medium, large, all', code=2, arguments=["tiny"])
        self.fails("--onnx: a value is missing", code=2, arguments=["--onnx"])
        self.fails("--revision: ", code=2, arguments=["--revision", "../x"])
        self.fails("HF_ENDPOINT: ", code=2, HF_ENDPOINT="file:///etc")
        self.assertIn("Usage:", self.run_script("--help").stdout)
        self.assertEqual(self.hub.requests, [])

    def test_the_library_answers_from_a_download(self):
        program = ROOT / "target/release/examples/smolvlm_demo"
        self.assertTrue(program.exists(), "cargo build --release --example smolvlm_demo")
        self.hub.root = DEMO
        self.run_script("small", "--onnx", "fp16,int8")
        digests = [line.split() for line in (DEMO / "SHA256SUMS").read_text().splitlines()]
        self.assertEqual(self.there(), sorted(["SHA256SUMS", *(name for _, name in digests)]))
        ask = [program, "--model", self.model, "--image", DEMO / "test_image.jpg"]
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=120)
        self.assertEqual(answer.stdout, "A red star, a blue arrow and an orange circle.\n", answer.stderr)


if __name__ == "__main__":
    unittest.main()
