#!/usr/bin/env python3
"""The table and the plot of a run of engines.py: ours, the best peer, the ratio, and the bar that we hold ourselves to.

    report.py build/bench/engines-small-2.json [build/quality/quality.json]

Beside each speed stands the Kullback-Leibler divergence from f32 that quality.py found for that engine and precision on real weights, of steps
or of whole prompts, whichever the work is. Of the two sides of a line, the one that keeps less is marked.
"""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from processes import DISTURBED


@dataclass
class Work:
    title: str
    column: str
    bits: int = 0  # of both sides' weights; 0: any
    bar: float = 0.0  # that our ratio shall reach; 0: none, the figure is stated
    more_is_better: bool = False
    unit: str = "s"
    ours: str = ""  # our column, where it is another than the peers'
    kept: str = ""  # what of quality.py's figures belongs to it: steps or prompts


WORKS = [
    Work("one tile", "one tile", bar=0.6),
    Work("17 tiles", "17 tiles", bar=0.6),
    Work("prefill of 1100 tokens", "prefill 1100", bar=0.5, kept="prompts"),
    Work("prefill of 128 tokens", "prefill 128", bar=0.6, kept="prompts"),
    Work("decode at 128, 8-bit", "decode 128", 8, 1.2, True, "tok/s", kept="steps"),
    Work("decode at 128, 4-bit", "decode 128", 4, 1.2, True, "tok/s", kept="steps"),
    Work("decode at 1100, 8-bit", "decode 1100", 8, 1.6, True, "tok/s", kept="steps"),
    Work("decode at 1100, 4-bit", "decode 1100", 4, 1.6, True, "tok/s", kept="steps"),
    Work("one tile, 20 + 20 tokens: first token", "answer first", bar=0.5, kept="prompts"),
    Work("one tile, 20 + 20 tokens: total", "answer total", bar=0.5, kept="prompts"),
    Work("photo of 640x480, 20 + 20 tokens: first token", "photo first", bar=0.5, kept="prompts"),
    Work("photo of 640x480, 20 + 20 tokens: total", "photo total", bar=0.5, kept="prompts"),
    Work("peak memory, one tile, 20 + 20 tokens", "peak MiB", bar=1.0, unit="MiB"),
    Work("load, page cache cold", "load cold"),
    Work("load, page cache warm", "load warm"),
    Work("load of packed weights, page cache cold", "load cold", ours="load cold, packed"),
    Work("load of packed weights, page cache warm", "load warm", ours="load warm, packed"),
]
BITS = {4: "C1", 8: "C0", 16: "C2", 32: "C7"}  # colours
COLUMNS = list(dict.fromkeys(work.ours or work.column for work in WORKS))


def medians(found):
    return {column: {row: statistics.median(values) for row, values in of.items()} for column, of in found["values"].items()}


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def best(found, middle, work, ours):
    """The name and the figure of the best row of one side, or None."""
    rows = {
        name: value
        for name, value in middle.get(ours and work.ours or work.column, {}).items()
        if name in found["rows"] and found["rows"][name]["ours"] == ours and (not work.bits or found["rows"][name]["bits"] == work.bits)
    }
    return (max if work.more_is_better else min)(rows.items(), key=lambda row: row[1], default=None)


def comparisons(found):
    """Of each work that both sides did: the work, our best row, the best peer, and the ratio."""
    middle = medians(found)
    for work in WORKS:
        sides = best(found, middle, work, True), best(found, middle, work, False)
        if all(sides):
            yield work, *sides, sides[0][1] / sides[1][1]


CHECKPOINTS = ("dithered", "plain")  # the first that was measured: on plain ones, some 4-bit recipes find the weights' own grid again
LESS, TIE = "†", 1.05  # marks what keeps less; nearer divergences are a tie


def quality_name(row):
    """The row of quality.py that computes what a row here does, or None."""
    kind, _, precision = row.partition(",")[0].partition(" ")
    if precision.startswith("f32"):
        return None  # is the reference, or as exact
    return f"{'onnx' if kind == 'onnxruntime' else kind} {precision}"


def read_quality(path, rows):
    """Divergences of these rows out of a file of quality.py's."""
    if not path.exists():
        return {}
    checkpoints = json.loads(path.read_text())["checkpoints"]
    name = next((name for name in CHECKPOINTS if name in checkpoints), None)
    if name is None:
        return {}
    known = {row["name"]: row for row in checkpoints[name]["rows"]}
    names = {row.name: quality_name(row.name) for row in rows}
    figures = {
        row: {what: known[of][what]["kl_mean"] for what in ("steps", "prompts")} | {"top1_kept": known[of]["steps"]["top1_kept"]}
        for row, of in names.items()
        if of in known
    }
    return {"checkpoint": name, "rows": figures}


def divergence(found, row, what):
    """From f32, or None where it is not known."""
    if quality_name(row) is None:
        return 0.0
    return found.get("quality", {}).get("rows", {}).get(row, {}).get(what)


def keeps_less(found, row, other, what):
    ours, theirs = divergence(found, row, what), divergence(found, other, what)
    return ours is not None and theirs is not None and ours > TIE * theirs


def side(found, work, row, other):
    """One side of a line: its figure, its name, what it keeps, and a mark if that is less than the other's."""
    (name, value), (other, _) = row, other
    kl = divergence(found, name, work.kept) if work.kept else None
    kept = "" if kl is None else f", KL {kl:.2g}"
    mark = f" {LESS}" if work.kept and keeps_less(found, name, other, work.kept) else ""
    return f"{number(value)} {work.unit} ({name}{kept}){mark}"


def summary(found):
    yield "| work | ours | best peer | ratio | wanted |"
    yield "|---|---:|---:|---:|---:|"
    for work, ours, peer, ratio in comparisons(found):
        sides = f"{side(found, work, ours, peer)} | {side(found, work, peer, ours)}"
        bar = "-" if not work.bar else f"{'at least' if work.more_is_better else 'at most'} {work.bar}"
        reached = work.bar and (ratio >= work.bar if work.more_is_better else ratio <= work.bar)
        yield f"| {work.title} | {sides} | {f'**{ratio:.2f}**' if reached else f'{ratio:.2f}'} | {bar} |"


def all_rows(found):
    middle = medians(found)
    columns = [column for column in COLUMNS if column in middle]
    kinds = ("steps", "prompts")
    yield "| | " + " | ".join([*columns, *(f"KL, {kind}" for kind in kinds)]) + " |"
    yield "|---|" + "---:|" * (len(columns) + len(kinds))
    for name, row in found["rows"].items():
        cells = [number(middle[column][name]) if name in middle[column] else "-" for column in columns]
        for kind in kinds:
            kl = divergence(found, name, kind)
            rivals = [other for other, of in found["rows"].items() if of["ours"] != row["ours"] and of["bits"] == row["bits"]]
            mark = f" {LESS}" if any(keeps_less(found, name, other, kind) for other in rivals) else ""
            cells.append("-" if kl is None else f"{kl:.2g}{mark}")
        yield f"| {f'**{name}**' if row['ours'] else name} | " + " | ".join(cells) + " |"


def spread(found):
    """How far the middle half of a cell's rounds reaches from its median, as a share of it: smaller differences mean nothing."""
    cells = []
    for column, of in found["values"].items():
        for row, values in of.items():
            if len(values) > 2:
                middle, quartiles = statistics.median(values), statistics.quantiles(values, n=4)
                cells.append((max(abs(quartile - middle) for quartile in quartiles) / middle, f"{row}, {column}"))
    if not cells:
        return "too few rounds to state their spread"
    cells.sort()
    (usual, _), (worst, where) = cells[len(cells) // 2], cells[-1]
    return f"the middle half of a cell's rounds lies within {usual:.0%} of its median, at worst {worst:.0%} ({where})"


def print_report(found):
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    prompts = ", ".join(f"{name} {tokens}" for name, tokens in found["prompt_tokens"].items())
    print(
        f"\n{found['machine']['cpu']} ({', '.join(found['machine']['flags'])}), {found['threads']} threads, {found['rounds']} rounds, medians, {found['model']}"
    )
    print(f"{versions}; tokens of the prompts: {prompts}\n")
    print(*summary(found), sep="\n")
    if found.get("quality"):
        weights = f"{found['quality']['checkpoint']} weights of SmolLM2-135M (make quality)"
        print(f"\nKL: mean divergence of the next token's distribution from f32's, {weights}.")
        print(f"{LESS}: keeps less of f32 than the other side of its line; in the table below, than one of the other side with as many bits.")
    else:
        print("\nWhat each row keeps of f32 is not known here: make quality")
    print("\nEverything; seconds, decode in tokens per second, memory in MiB; ours in bold\n")
    print(*all_rows(found), sep="\n")
    print(f"\n{spread(found)}")
    disturbed = sum(share >= DISTURBED for share in found["others"])
    print(
        f"{disturbed} of {len(found['others'])} measures were disturbed: other processes took over {DISTURBED:.0%} of the processors, time and again"
    )
    print("not run:", *(found["missing"] or ["nothing was left out"]), sep="\n  ")


def plot(found, path):
    """Our speed against the best peer's, one bar for each work, with the bars that are wanted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found_works = list(comparisons(found))[::-1]
    if not found_works:
        return
    figure, axes = pyplot.subplots(figsize=(10, 0.45 * len(found_works) + 1.6), layout="constrained")
    for y, (work, ours, peer, ratio) in enumerate(found_works):
        times = ratio if work.more_is_better else 1 / ratio
        axes.barh(y, times, color="#4878a8" if times >= 1 else "#c0c0c0")
        axes.text(
            times, y, f" {times:.2f}   {ours[0]} {number(ours[1])} {work.unit}, {peer[0]} {number(peer[1])} {work.unit}", va="center", fontsize=8
        )
        if work.bar:
            wanted = work.bar if work.more_is_better else 1 / work.bar
            axes.plot([wanted, wanted], [y - 0.4, y + 0.4], color="#b03030", linewidth=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found_works)), [work.title for work, *_ in found_works])
    axes.set_xlim(0, 1.9 * max(2, *(ratio if work.more_is_better else 1 / ratio for work, _, _, ratio in found_works)))
    axes.set_xlabel("times as good as the best peer (black line); red: what is wanted")
    axes.set_title(f"{found['model']}, {found['machine']['cpu']}, {found['threads']} threads", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_quality(found, path):
    """Time against divergence from f32, a point for each engine: the best are below and to the left."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    middle = medians(found)
    panels = [
        ("decode 128", "steps", "decode step at 128, ms"),
        ("prefill 1100", "prompts", "prefill of 1100 tokens, ms"),
        ("prefill 128", "prompts", "prefill of 128 tokens, ms"),
    ]
    points = {}
    for column, kind, label in panels:
        for name, value in middle.get(column, {}).items():
            kl = name in found["rows"] and divergence(found, name, kind)
            if kl:
                points.setdefault((label, kind), []).append((name, kl, 1e3 / value if column.startswith("decode") else 1e3 * value))
    if not points:
        return
    figure, axes = pyplot.subplots(1, len(points), figsize=(5.2 * len(points), 4.4), layout="constrained", squeeze=False)
    for panel, ((label, kind), of) in zip(axes[0], points.items()):
        for name, kl, milliseconds in of:
            row = found["rows"][name]
            panel.plot(kl, milliseconds, "o" if row["ours"] else "s", color=BITS[row["bits"]], fillstyle="full" if row["ours"] else "none")
            panel.annotate(f" {name}", (kl, milliseconds), fontsize=7, fontweight="bold" if row["ours"] else "normal")
        panel.set(xscale="log", yscale="log", xlabel=f"KL from f32, nats, {kind}", ylabel=label)
        panel.margins(x=0.25)
    weights = found["quality"]["checkpoint"]
    figure.suptitle(f"Full: ours; {found['machine']['cpu']}, {found['threads']} threads; KL on {weights} weights of SmolLM2-135M", fontsize=9)
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    path, *quality = map(Path, sys.argv[1:])
    loaded = json.loads(path.read_text())
    if quality:
        loaded["quality"] = read_quality(quality[0], [SimpleNamespace(name=name) for name in loaded["rows"]])
    print_report(loaded)
    plot(loaded, path.with_suffix(".png"))
    plot_quality(loaded, path.with_suffix(".svg"))
