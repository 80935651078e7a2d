"""libsmolvlm for tools and benchmarks, through the Python package."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bindings" / "python"))


class Library:
    def __init__(self, path, model, backend="auto", dtype="auto", num_threads=0, packed_cache_dir=None):
        os.environ["SMOLVLM_LIBRARY"] = os.path.abspath(path)
        import smolvlm  # loads the library

        self.model = smolvlm.Model(
            model, backend=backend, dtype=dtype, num_threads=num_threads, packed_cache_dir=packed_cache_dir
        )

    def ask(self, encoded, question, **parameters):
        """The answer to a question about a picture (`encoded`: the bytes of its file), and its metrics. `parameters`: of `Model.ask`."""
        answer = self.model.ask(encoded, question, **parameters)
        return answer.text, answer.metrics


def answer_questions(library, questions_path, answers_path):
    """Answers a questions.jsonl greedily; the answers go to another file of its kind."""
    with open(answers_path, "w") as out:
        for line in questions_path.read_text().splitlines():
            entry = json.loads(line)
            answer, _ = library.ask((questions_path.parent / entry["image"]).read_bytes(), entry["question"])
            out.write(json.dumps({**entry, "answer": answer}) + "\n")
