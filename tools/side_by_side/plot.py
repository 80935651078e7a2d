"""The results as bars: one panel for each measure, all axes from zero."""

from .report import MEASURES

#: Okabe and Ito's colours, which all eyes can tell apart.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
OF_A_PROCESS = ("load", "peak memory")


def draw(results, title, note, paths):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "smolvlm"  # the same file for the same results
    figure, panels = pyplot.subplots(2, 2, figsize=(13, 9))
    for panel, (measure, (unit, less)) in zip(panels.flat, MEASURES.items()):
        tasks = results.tasks[:1] if measure in OF_A_PROCESS else results.tasks
        groups = [(size, task) for size in results.sizes for task in tasks]
        _bars(panel, results, measure, groups)
        names = [size if measure in OF_A_PROCESS else f"{size}\n{task}" for size, task in groups]
        panel.set_xticks(range(len(groups)), names)
        panel.set_ylabel(unit)
        panel.set_title(f"{measure}, {unit}: {'less' if less else 'more'} is better", fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.suptitle(title, fontsize=14)
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.955), ncol=len(labels), frameon=False)
    figure.text(0.5, 0.012, note, ha="center", va="bottom", fontsize=9, color="#444444")
    figure.tight_layout(rect=(0, 0.02 + 0.02 * (1 + note.count("\n")), 1, 0.925))
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _bars(panel, results, measure, groups):
    width = 0.8 / len(results.backends)
    for number, backend in enumerate(results.backends):
        places, heights, spreads = [], [], ([], [])
        for place, (size, task) in enumerate(groups):
            values = results.values.get((size, backend, task, measure))
            if not values:
                continue
            median = results.median(size, backend, task, measure)
            places.append(place + (number - (len(results.backends) - 1) / 2) * width)
            heights.append(median)
            spreads[0].append(median - min(values))
            spreads[1].append(max(values) - median)
        dtypes = {results.answers[size, backend, task]["dtype"] for size, task in groups}
        label = f"{backend.partition(':')[0]} {'/'.join(sorted(dtypes))}"
        panel.bar(places, heights, width * 0.92, color=COLOURS[number % len(COLOURS)], label=label)
        panel.errorbar(places, heights, spreads, fmt="none", ecolor="#333333", elinewidth=1, capsize=3)
        for place, height, above in zip(places, heights, spreads[1]):
            panel.annotate(
                f"{height:.3g}" if height < 1000 else f"{height:.0f}",
                (place, height + above),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    panel.set_ylim(0, panel.get_ylim()[1] * 1.08)
