"""Writes the results of a card to the documentation: what was measured, beside the goals, and what methods cost."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from reports import table, write_section  # noqa: E402

from device.results import Results, cards_of  # noqa: E402 - after the path of the benchmarks
from sagittal.client.estimates import price_of  # noqa: E402

SECTION, COSTS = "device", "device-costs"
"""Markers of the sections, in the page of performance and in that of methods."""

PER = 1000
"""Explanations that a price is for."""

Rows = Mapping[str, Mapping[str, Any]]


def performance(results: Results) -> str:
    """Returns the section about everything that was measured on a card."""
    machine = results.of("card").get("machine", {})
    parts = [
        f"## On a GPU: {results.card}",
        f"Written by `make device` and `make device-report`: torch {machine.get('torch')}, CUDA {machine.get('cuda')}. "
        "All ratios are of one run. A dash is what was not measured.",
        _tests(results.of("tests")),
        _throughput(results.of("bare throughput")),
        _efficiency(results.of("explanations over the bare model")),
        _drift(results.of("drift of the reduced precision")),
        _service(results.of("service")),
        _memory(results.of("memory and batch size")),
        _failures(results),
    ]
    return "\n\n".join(part for part in parts if part)


def costs(results: Results, per_hour: float) -> str:
    """Returns the section about the cost of methods on a card."""
    rows = [
        [
            f"`{name}`",
            f"{row['evaluations']:.0f}",
            f"{PER * row['seconds']:.0f}",
            f"{price_of(PER * row['seconds'], per_hour):.3f}",
        ]
        for name, row in results.of("cost").items()
        if "error" not in row
    ]
    header = ["method", "evaluations", f"seconds for {PER:,}", f"price for {PER:,}"]
    return (
        f"## Cost on a GPU\n\nOn {results.card} with EfficientNet-Lite0, curves included, 32 explanations together, at "
        f"{per_hour:g} per GPU hour. Written by `make device-report PRICE={per_hour:g}`.\n\n{table(header, rows)}"
    )


def _tests(rows: Rows) -> str:
    if not (row := rows.get("cuda")):
        return ""
    failed = [line for line in row["summary"] if line.startswith(("FAILED", "ERROR"))]
    ended = "" if row["status"] in (0, 1, 5) else f"; the run ended with status {row['status']}"
    return f"Tests marked `cuda`: {row['passed']} passed, {len(failed)} failed{ended}."


def _throughput(rows: Rows) -> str:
    lines = [
        [*key.split(": ", 1), _number(row, "forward_images_per_second"), _number(row, "backward_images_per_second")]
        for key, row in rows.items()
    ]
    header = ["model", "way", "forward, images/s", "forward + backward, images/s"]
    return _part("### Throughput of the bare model", header, lines)


def _efficiency(rows: Rows) -> str:
    lines = [
        [key, _number(row, "over_bare", 3), _number(row, "explanations_per_second", 1), _number(row, "busy_share", 3)]
        for key, row in rows.items()
        if key != "load"
    ]
    goals = (
        "Time over the best bare passes for as many evaluations. Goals: at most 1.10 together and 1.5 for one alone; "
        "at least 30 explanations a second of `igos++`. The host alone is iGOS++ without its evaluations."
    )
    return _part(
        "### Explanations over the bare model", ["what", "time / ideal", "a second", "busy share"], lines, goals
    )


def _drift(rows: Rows) -> str:
    lines = [
        [
            key,
            f"{row.get('same_top_class', '-')} of {row.get('images', '-')}",
            _number(row, "insertion_largest", 5),
            _number(row, "deletion_largest", 5),
        ]
        for key, row in rows.items()
    ]
    goals = (
        "Reported scores after a search in reduced precision and after one in full. Goal: under 0.002, same classes."
    )
    return _part("### Drift", ["what", "same top class", "insertion, largest", "deletion, largest"], lines, goals)


def _service(rows: Rows) -> str:
    names = ("service_over_library", "service_explanations_per_second", "busy_share_exported", "busy_share_of_card")
    lines = [[key, *(_number(row, name, 3) for name in names)] for key, row in rows.items()]
    goals = "Goals: at most 1.03 over the library; busy for at least 0.95 of the time, by both counters."
    header = ["what", "service / library", "explanations/s", "busy, exported", "busy, of the card"]
    return _part("### The service", header, lines, goals)


def _memory(rows: Rows) -> str:
    found = rows.get("batch size", {})
    text = ""
    if "chosen" in found:
        text = (
            f"Batch size of the load: {found['chosen']}, at {found['chosen_over_best']:.3f} of the throughput of the "
            f"best by hand ({found['best']}). Goal: at least 0.9."
        )
    lines = [
        [key, _mebibytes(row, "allocated_bytes"), _mebibytes(row, "reserved_bytes")]
        for key, row in rows.items()
        if key != "batch size"
    ]
    shown = table(["what", "allocated at most, MiB", "held, MiB"], lines).rstrip() if lines else ""
    return "\n\n".join(each for each in ("### Memory" if text or lines else "", text, shown) if each)


def _failures(results: Results) -> str:
    failed = [[point, key, row["error"]] for point, key, row in results.failed()]
    return _part("### What failed", ["point", "measurement", "error"], failed)


def _part(title: str, header: Sequence[str], lines: Sequence[Sequence[object]], text: str = "") -> str:
    if not lines:
        return ""
    return "\n\n".join(each for each in (title, text, table(header, lines).rstrip()) if each)


def _number(row: Mapping[str, Any], name: str, digits: int = 0) -> str:
    return f"{row[name]:,.{digits}f}" if isinstance(row.get(name), int | float) else "-"


def _mebibytes(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name] / 2**20:,.0f}" if isinstance(row.get(name), int | float) else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the sections of the card that has results; of the named one if there are several."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder of the results")
    parser.add_argument("--card", help="its name as in the results, if there are several")
    parser.add_argument("--price", type=float, default=0.0, help="price of an hour of the GPU, in any currency")
    parser.add_argument("--write", type=Path, help="page of performance; by default standard output")
    parser.add_argument("--methods", type=Path, help="page of methods")
    options = parser.parse_args(arguments)
    cards = cards_of(options.results)
    card = options.card or (cards[0] if len(cards) == 1 else "")
    if card not in cards:
        parser.error(f"--card: {card!r} has no results in {options.results}; give one of {', '.join(cards) or 'none'}")
    results = Results(options.results, card)
    texts = [(options.write, SECTION, performance(results))]
    if options.price > 0:
        texts.append((options.methods, COSTS, costs(results, options.price)))
    for path, section, text in texts:
        if path is None:
            print(text)
        else:
            write_section(path, section, text)


if __name__ == "__main__":
    main()
