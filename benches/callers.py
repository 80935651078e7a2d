#!/usr/bin/env python3
"""Questions a second when several threads ask one engine at once, and how evenly they are served.

    callers.py                                     the library of this checkout, `make bench-callers`
    callers.py --against OLD/libsmolvlm.so         beside another build of it, in turn
    callers.py --quota 1.5                         under a limit of so many cores (a cgroup, as root)
    callers.py --model DIR --threads N --callers 1,2,4,8 --seconds 3 --rounds 5 --backend onnx

Each library is a process of its own, and is measured in turn with the others. `cores` is the processor time that it took.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "models/demo/test_image.jpg"
CGROUP = Path("/sys/fs/cgroup")
PERIOD = 100_000  # microseconds


def serve(model, threads, backend):
    """Answers lines of `callers seconds` with lines of JSON."""
    sys.path.insert(0, str(ROOT / "bindings/python"))
    import smolvlm

    engine = smolvlm.Model(model, num_threads=threads, backend=backend)
    image = IMAGE.read_bytes()
    print("ready", flush=True)
    for line in sys.stdin:
        callers, seconds = int(line.split()[0]), float(line.split()[1])
        asked, slowest = [0] * callers, [0.0] * callers
        end = time.perf_counter() + seconds

        def call(i, end=end, asked=asked, slowest=slowest):
            while (start := time.perf_counter()) < end:
                engine.ask(image, "What objects are in this image?", max_new_tokens=20)
                asked[i] += 1
                slowest[i] = max(slowest[i], time.perf_counter() - start)

        start, processor = time.perf_counter(), time.process_time()
        threads = [threading.Thread(target=call, args=(i,)) for i in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - start
        cores = (time.process_time() - processor) / took
        print(json.dumps({"rate": sum(asked) / took, "cores": cores, "even": min(asked) / max(asked), "slowest": max(slowest)}), flush=True)


@contextlib.contextmanager
def limited(cores):
    """A cgroup that holds its processes to so many cores."""
    second = (CGROUP / "cgroup.controllers").exists()
    group = (CGROUP if second else CGROUP / "cpu") / f"smolvlm-callers-{os.getpid()}"
    group.mkdir()
    try:
        if second:
            (group / "cpu.max").write_text(f"{round(cores * PERIOD)} {PERIOD}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(round(cores * PERIOD)))
        yield group
    finally:
        group.rmdir()


def start(library, options, group):
    command = [sys.executable, __file__, "--serve", "--model", options.model, "--threads", str(options.threads), "--backend", options.backend]
    join = (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) if group else None
    environment = {**os.environ, "SMOLVLM_LIBRARY": str(library)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=join)
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{library}: did not start")
    return process


def measure(libraries, options, group):
    processes = {name: start(library, options, group) for name, library in libraries.items()}
    found = {}
    for round_number in range(options.rounds):
        for callers in options.callers:
            for name in list(processes)[:: -1 if round_number % 2 else 1]:
                process = processes[name]
                print(callers, options.seconds, file=process.stdin, flush=True)
                found.setdefault((callers, name), []).append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="LIBRARY")
    parser.add_argument("--quota", type=float, metavar="CORES")
    parser.add_argument("--model", default=str(ROOT / "models/demo"), metavar="DIR")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: one for each core")
    parser.add_argument("--callers", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8], metavar="N,N,...")
    parser.add_argument("--seconds", type=float, default=3, metavar="S")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.model, options.threads, options.backend)
    libraries = {"other": options.against} if options.against else {}
    libraries["ours"] = ROOT / "target/release/libsmolvlm.so"
    with limited(options.quota) if options.quota else contextlib.nullcontext() as group:
        found = measure(libraries, options, group)
    for callers in options.callers:
        rates = {}
        for name in libraries:
            rounds = found[callers, name]
            middle = {key: statistics.median(measured[key] for measured in rounds) for key in rounds[0]}
            rates[name] = middle["rate"]
            print(
                f"{callers} callers, {name:>5}: {middle['rate']:6.1f} questions/s on {middle['cores']:.2f} cores, "
                f"slowest {middle['slowest'] * 1e3:4.0f} ms, who asked least asked {middle['even']:.0%} as often as who asked most"
            )
        if options.against:
            ratios = [ours["rate"] / other["rate"] for ours, other in zip(found[callers, "ours"], found[callers, "other"])]
            print(f"{callers} callers: {statistics.median(ratios):.2f} times as many questions")


if __name__ == "__main__":
    main()
