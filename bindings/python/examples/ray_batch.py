#!/usr/bin/env python3
"""Answers a question over a folder of images on a Ray cluster; the answers go to Parquet files, and a second run does only what is left.

    python3 ray_batch.py --model models/demo --images FOLDER --out ANSWERS -p "What objects are in this image?" --workers 4

It joins the cluster that RAY_ADDRESS or --address names; without one, a local one is started. Folders and the model must be the same
path on each node (a shared file system). Needs `pip install smolvlm ray[data] pandas`. Each worker loads the model once, and computes on
--threads cores. The output has a row for each image: path, answer, finish_reason, milliseconds, error; one of `answer` and `error`
is null. What failed is tried again by the next run.
"""

import argparse
import os
import time
from pathlib import Path

import pyarrow
import pyarrow.dataset
import ray

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
SCHEMA = pyarrow.schema(
    [
        ("path", pyarrow.string()),
        ("answer", pyarrow.string()),
        ("finish_reason", pyarrow.string()),
        ("milliseconds", pyarrow.float64()),
        ("error", pyarrow.string()),
    ]
)


class Answerer:
    """One worker: a loaded model."""

    def __init__(self, options):
        import smolvlm

        self.smolvlm, self.options = smolvlm, options
        self.model = smolvlm.Model(options["model"], backend=options["backend"], dtype=options["dtype"], num_threads=options["threads"])

    def __call__(self, batch):
        rows = [self.answer(path) for path in batch["path"].to_pylist()]
        return pyarrow.Table.from_pylist(rows, schema=SCHEMA)

    def answer(self, path):
        row = dict.fromkeys(SCHEMA.names)
        row["path"] = path
        start = time.perf_counter()
        try:
            answer = self.model.ask(path, self.options["prompt"], max_new_tokens=self.options["max_new_tokens"])
            row.update(answer=answer.text, finish_reason=answer.finish_reason.name)
        except self.smolvlm.Error as error:  # one bad picture is one row
            row["error"] = str(error)
        row["milliseconds"] = (time.perf_counter() - start) * 1e3
        return row


def answered(out):
    """The paths that have an answer from an earlier run. A file that was cut off has another ending."""
    if not any(out.glob("*.parquet")):
        return set()
    rows = pyarrow.dataset.dataset(str(out), format="parquet", exclude_invalid_files=True).to_table(columns=["path", "answer"])
    return {path for path, answer in zip(rows["path"].to_pylist(), rows["answer"].to_pylist()) if answer is not None}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="with all folders below it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("-p", "--prompt", default="What objects are in this image?", help="default: %(default)s")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="each loads the model; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="cores of each worker; default: %(default)s")
    parser.add_argument(
        "--batch", type=int, default=16, metavar="N", help="images of one task, what an interrupted run loses; default: %(default)s"
    )
    parser.add_argument("--address", help="of the cluster, as ray.init takes it")
    options = parser.parse_args()
    if not options.images.is_dir():
        parser.error(f"--images: {options.images}: no such directory")
    return options


def main():
    options = arguments()
    found = sorted(str(path.resolve()) for path in options.images.rglob("*") if path.suffix.lower() in PICTURES)
    options.out.mkdir(parents=True, exist_ok=True)
    done = answered(options.out)
    left = [path for path in found if path not in done]
    print(f"{len(found)} images, {len(found) - len(left)} answered before, {len(left)} to do", flush=True)
    if not left:
        return
    # By itself it would look for a cluster that was once started here, and wait for it if that is gone.
    ray.init(address=options.address or os.environ.get("RAY_ADDRESS") or "local", log_to_driver=False)
    names = ("backend", "dtype", "threads", "prompt", "max_new_tokens")
    job = {"model": str(options.model.resolve()), **{name: getattr(options, name) for name in names}}
    batches = [pyarrow.table({"path": left[start : start + options.batch]}) for start in range(0, len(left), options.batch)]
    answers = ray.data.from_arrow(batches).map_batches(
        Answerer,
        fn_constructor_args=[job],
        batch_size=None,  # a batch is a block, is a file
        batch_format="pyarrow",
        num_cpus=options.threads,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
    )
    # Writing takes no core: the workers may have them all, and would be waited for.
    answers.write_parquet(str(options.out.resolve()), mode="append", ray_remote_args={"num_cpus": 0})
    print(f"{len(answered(options.out))} of {len(found)} images have an answer in {options.out}")


if __name__ == "__main__":
    main()
