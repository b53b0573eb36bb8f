"""Prints results for people, and as JSON."""

import statistics


def unit_of(seconds):
    return f"{seconds * 1000:.1f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"


def table(name, result):
    """Returns the lines that show one result."""
    lines = [f"{name}: {result.title}"]
    if result.runs:
        reference = next(iter(result.runs.values()))
        width = max(len(tool) for tool in result.runs)
        for tool, seconds in result.runs.items():
            middle = statistics.median(seconds)
            line = f"  {tool:<{width}}  {unit_of(middle):>7} ms  ({unit_of(min(seconds))} to {unit_of(max(seconds))})"
            if result.per:
                number, what = result.per
                line += f"  {middle * 1000 / number:.1f} ms a {what}"
            if "kiln" in result.runs and tool != "kiln":
                line += f"  {middle / statistics.median(reference):.2f} x kiln"
            lines.append(line)
    lines += [f"  {note}" for note in result.notes]
    for what, value, target, unit, more in result.targets:
        goal = f"target {'>=' if more else '<='} {target:.3g} {unit}"
        if value is None:
            lines.append(f"  -     {what}: not measured ({goal})")
            continue
        mark = "ok  " if is_met(value, target, more) else "MISS"
        lines.append(f"  {mark}  {what}: {value:.3g} {unit} ({goal})")
    return lines


def is_met(value, target, more):
    return value >= target if more else value <= target


def as_json(name, result):
    return {
        "scenario": name,
        "title": result.title,
        "runs_ms": {tool: [round(second * 1000, 3) for second in seconds] for tool, seconds in result.runs.items()},
        "median_ms": {tool: round(statistics.median(seconds) * 1000, 3) for tool, seconds in result.runs.items()},
        "notes": result.notes,
        "targets": [
            {"what": what, "value": value, "target": target, "unit": unit, "better": "more" if more else "less",
             "met": None if value is None else is_met(value, target, more)}
            for what, value, target, unit, more in result.targets
        ],
    }
