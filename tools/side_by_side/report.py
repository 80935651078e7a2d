"""What the rounds measured, as medians, spreads and ratios."""

import statistics

#: Name, unit, and whether less is better. The first and the last are of a process, the others of a question.
MEASURES = {
    "load": ("ms", True),
    "first token": ("ms", True),
    "speed": ("tokens/s", False),
    "peak memory": ("MiB", True),
}


#: The most over the least, above which something else must have run on the machine.
DISTURBED = 1.5


class Results:
    """Measured values by (size, backend, task, measure); a process's own count for each of its tasks."""

    def __init__(self, sizes, backends, tasks):
        self.sizes, self.backends, self.tasks = sizes, backends, tasks
        self.values, self.answers = {}, {}

    def add(self, size, backend, lines):
        """What a runner printed."""
        load, *questions, peak = lines
        for found in questions:
            key = (size, backend, found["task"])
            measured = {"load": load["load_ms"], "first token": found["first_token_ms"], "peak memory": peak["peak_mib"]}
            if found["steps"] > 0:
                measured["speed"] = found["steps"] / found["decode_ms"] * 1e3
            for measure, value in measured.items():
                self.values.setdefault((*key, measure), []).append(value)
            self.answers[key] = found

    def median(self, *key):
        return statistics.median(self.values[key]) if key in self.values else None

    def ratio(self, size, backend, task, measure):
        """How many times as good as the first backend; 1 is the same."""
        own, first = (self.median(size, name, task, measure) for name in (backend, self.backends[0]))
        if own is None or first is None:
            return None
        return first / own if MEASURES[measure][1] else own / first

    def rows(self):
        return [(size, task, backend) for size in self.sizes for task in self.tasks for backend in self.backends]

    def same_answers(self, size, task):
        return len({self.answers[size, backend, task]["text"] for backend in self.backends}) == 1

    def disturbed(self):
        """A line for each figure that is not to be trusted."""
        lines = []
        for (size, backend, task, measure), values in self.values.items():
            if max(values) > DISTURBED * min(values) and measure != "load":  # loading depends on what files are in memory
                lines.append(
                    f"{size}, {backend}, {task}: {measure} spread from {min(values):.4g} to {max(values):.4g}: repeat it on a quiet machine"
                )
        return lines

    def table(self):
        """Medians, in brackets the least and the most, and how many times as good as the first backend."""
        columns = [f"{measure}, {unit}" for measure, (unit, _) in MEASURES.items()]
        lines = [["size", "task", "backend", "precision", *columns]]
        for size, task, backend in self.rows():
            answer = self.answers[size, backend, task]
            cells = [self._cell(size, backend, task, measure) for measure in MEASURES]
            lines.append([size, task, backend, answer["dtype"], *cells])
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)

    def _cell(self, *key):
        values = self.values.get(key)
        if not values:
            return "-"
        return f"{self.median(*key):.4g} ({min(values):.4g} to {max(values):.4g}) {self.ratio(*key):.2f}x"

    def json(self):
        rows = []
        for size, task, backend in self.rows():
            row = {"size": size, "task": task, "backend": backend, **self.answers[size, backend, task]}
            for measure, (unit, _) in MEASURES.items():
                key = (size, backend, task, measure)
                if key in self.values:
                    row[measure] = {"unit": unit, "values": self.values[key], "median": self.median(*key), "ratio": self.ratio(*key)}
            for single in ("first_token_ms", "decode_ms", "total_ms"):  # of the last round only
                del row[single]
            rows.append(row)
        return rows
