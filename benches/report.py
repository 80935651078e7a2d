#!/usr/bin/env python3
"""The table and the plot of a run of engines.py: ours, the best peer, the ratio, and the bar that we hold ourselves to.

report.py build/bench/engines-small-2.json
"""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

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


WORKS = [
    Work("one tile", "one tile", bar=0.6),
    Work("17 tiles", "17 tiles", bar=0.6),
    Work("prefill of 1100 tokens", "prefill 1100", bar=0.5),
    Work("prefill of 128 tokens", "prefill 128", bar=0.6),
    Work("decode at 128, 8-bit", "decode 128", 8, 1.2, True, "tok/s"),
    Work("decode at 128, 4-bit", "decode 128", 4, 1.2, True, "tok/s"),
    Work("decode at 1100, 8-bit", "decode 1100", 8, 1.6, True, "tok/s"),
    Work("decode at 1100, 4-bit", "decode 1100", 4, 1.6, True, "tok/s"),
    Work("one tile, 20 + 20 tokens: first token", "answer first", bar=0.5),
    Work("one tile, 20 + 20 tokens: total", "answer total", bar=0.5),
    Work("photo of 640x480, 20 + 20 tokens: first token", "photo first", bar=0.5),
    Work("photo of 640x480, 20 + 20 tokens: total", "photo total", bar=0.5),
    Work("peak memory, one tile, 20 + 20 tokens", "peak MiB", bar=1.0, unit="MiB"),
    Work("load, page cache cold", "load cold"),
    Work("load, page cache warm", "load warm"),
    Work("load of packed weights, page cache cold", "load cold", ours="load cold, packed"),
    Work("load of packed weights, page cache warm", "load warm", ours="load warm, packed"),
]
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


def summary(found):
    yield "| work | ours | best peer | ratio | wanted |"
    yield "|---|---:|---:|---:|---:|"
    for work, ours, peer, ratio in comparisons(found):
        sides = " | ".join(f"{number(value)} {work.unit} ({name})" for name, value in (ours, peer))
        bar = "-" if not work.bar else f"{'at least' if work.more_is_better else 'at most'} {work.bar}"
        reached = work.bar and (ratio >= work.bar if work.more_is_better else ratio <= work.bar)
        yield f"| {work.title} | {sides} | {f'**{ratio:.2f}**' if reached else f'{ratio:.2f}'} | {bar} |"


def all_rows(found):
    middle = medians(found)
    columns = [column for column in COLUMNS if column in middle]
    yield "| | " + " | ".join(columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for name, row in found["rows"].items():
        cells = [number(middle[column][name]) if name in middle[column] else "-" for column in columns]
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


if __name__ == "__main__":
    path = Path(sys.argv[1])
    loaded = json.loads(path.read_text())
    print_report(loaded)
    plot(loaded, path.with_suffix(".png"))
