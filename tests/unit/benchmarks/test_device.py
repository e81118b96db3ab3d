"""The minutes on a card are spent on measurements: each is kept, none is repeated, and a failure costs only itself."""

import json
import secrets
import subprocess
import time
from pathlib import Path

import known_models
import pytest
import torch
from device import __main__ as program
from device import explanations, memory, report, throughput
from device.bench import SMALL, Bench, Sizes
from device.results import OutOfTime, Results
from e2e_stack import wait_until

CPU = torch.device("cpu")


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path, "a card")


def part_of(*measurements):
    return program.Part("part", "point", lambda _bench, _results: measurements, 60.0)


def test_a_result_is_stored_when_it_is_measured_and_not_measured_again(results, tmp_path):
    measured = []

    def work():
        measured.append(True)
        return {"value": 1.5}

    assert results.measure("point", "key", work, seconds=1)["value"] == 1.5
    again = Results(tmp_path, "a card")
    assert again.measure("point", "key", work, seconds=1)["value"] == 1.5
    assert measured == [True]


def test_results_of_another_card_are_never_mixed_with_these(results, tmp_path):
    results.store("point", "key", {"value": 1})
    assert Results(tmp_path, "another card").find("point", "key") is None
    assert Results(tmp_path, "a card").of("point") == {"key": {"value": 1}}


def test_a_line_that_a_killed_run_left_incomplete_is_skipped(results, tmp_path):
    results.store("point", "key", {"value": 1})
    with results.path.open("a") as file:
        file.write('{"card": "a card", "poi')
    assert Results(tmp_path, "a card").of("point") == {"key": {"value": 1}}


def test_a_measurement_that_would_end_after_the_run_is_not_begun(tmp_path):
    late = Results(tmp_path, "a card", until=time.time() + 5)
    with pytest.raises(OutOfTime, match="needs about 60 s"):
        late.measure("point", "key", dict, seconds=60)


def test_what_fails_is_recorded_and_measured_again_by_the_next_run(results, tmp_path):
    outcomes = iter([RuntimeError("by construction"), {"value": 2}])

    def work():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    bench = Bench(CPU, SMALL)
    part = part_of(("first", 1.0, work), ("second", 1.0, lambda: {"value": 3}))
    assert not program.run_part(part, bench, results)
    assert results.find("point", "first") == {"error": "RuntimeError: by construction"}
    assert results.find("point", "second")["value"] == 3
    assert results.failed() == [("point", "first", {"error": "RuntimeError: by construction"})]
    again = Results(tmp_path, "a card")
    assert program.run_part(part, bench, again)
    assert Results(tmp_path, "a card").find("point", "first")["value"] == 2


def test_a_run_continues_where_the_one_before_ran_out_of_time(tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "on_card", property(lambda _bench: True))  # expected times count
    done = []
    part = part_of(*((f"{number}", 30.0, lambda number=number: done.append(number) or {}) for number in range(3)))
    bench = Bench(CPU, SMALL)
    clock = [0.0]
    monkeypatch.setattr("device.results.time.time", lambda: clock[0])
    first = Results(tmp_path, "a card", until=50.0)
    results = {}

    def measure(self, point, key, work, *, seconds):
        value = results_measure(self, point, key, work, seconds=seconds)
        clock[0] += seconds if key not in results else 0
        results[key] = value
        return value

    results_measure = Results.measure
    monkeypatch.setattr(Results, "measure", measure)
    assert not program.run_part(part, bench, first)
    assert done == [0]
    clock[0] = 0.0
    assert program.run_part(part, bench, Results(tmp_path, "a card", until=1000.0))
    assert done == [0, 1, 2]


def test_a_part_that_does_not_end_is_stopped_with_what_it_started(tmp_path):
    mark = f"600.{secrets.randbelow(10**9):09}"
    with (tmp_path / "log").open("w") as file:
        assert program._run(["sh", "-c", f"sleep {mark} & wait"], 3.0, file) == 124
    wait_until(lambda: mark.encode() not in b"".join(map(_command, Path("/proc").glob("[0-9]*"))), "it is gone")


def _command(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_parts_run_in_processes_most_valuable_first_until_the_time_is_over(tmp_path, monkeypatch):
    ran, now = [], [1000.0]

    def run(command, seconds, _output, **_options):
        ran.append(command[command.index("--part") + 1])
        now[0] += 150
        return 0

    monkeypatch.setattr(program, "_run", run)
    monkeypatch.setattr(program.time, "time", lambda: now[0])
    program.main(["--out", str(tmp_path), "--device", "cpu", "--seconds", "420", "--no-tests"])
    assert ran == ["bare", "explanations", "service"]
    machine = Results(tmp_path, "no card (cpu)").find("card", "machine")
    assert machine["torch"] == torch.__version__


def test_the_tests_of_a_card_run_until_all_have_passed_on_it(results, monkeypatch):
    runs = []

    def run(_command, _seconds, output, *, environment):
        runs.append(environment["SAGITTAL_TEST_DEVICE"])
        Path(environment["SAGITTAL_TEST_PASSED"]).write_text("one\ntwo\n")
        output.write("FAILED tests/cuda/a.py::b - by construction\n1 failed, 2 passed in 3 s\n")
        return 1 if len(runs) == 1 else 0

    monkeypatch.setattr(program, "_run", run)
    for _ in range(3):
        program.run_tests("cuda:0", results, seconds=60.0)
    assert runs == ["cuda", "cuda"]
    found = results.find("tests", "cuda")
    assert (found["status"], found["passed"]) == (0, 2)
    assert found["summary"][0].startswith("FAILED tests/cuda/a.py::b")


class Known(Bench):
    """A bench whose models are small."""

    def module(self, name):
        return known_models.sees_colours().eval().requires_grad_(False).to(self.device)


@pytest.mark.parametrize("way", throughput.WAYS[:2], ids=lambda way: way.name)
def test_a_bare_model_is_measured_in_both_modes(way):
    found = throughput.measure(Known(CPU, SMALL), "EfficientNet-Lite0", way)
    assert found["forward_images_per_second"] > 0
    assert found["backward_images_per_second"] > 0


def test_the_best_bare_rates_are_those_of_the_fastest_way(results):
    assert throughput.best(results) is None
    rates = {"a": (10.0, 3.0), "b": (20.0, 2.0)}
    for way, (forward, backward) in rates.items():
        value = {"forward_images_per_second": forward, "backward_images_per_second": backward}
        results.store(throughput.POINT, f"EfficientNet-Lite0: {way}", value)
    results.store(throughput.POINT, "EfficientNet-Lite0: c", {"error": "none"})
    assert throughput.best(results) == (20.0, 3.0)


def test_every_point_of_the_issue_has_measurements_on_a_card(results, monkeypatch):
    monkeypatch.setattr(Bench, "on_card", property(lambda _bench: True))
    bench = Bench(CPU, Sizes())
    keys = {part.name: [key for key, _, _ in part.measurements(bench, results)] for part in program.PARTS}
    assert len(keys["bare"]) + len(keys["compiled"]) == 3 * len(throughput.WAYS)
    assert {"igos++: 1 together", "igos++: 32 together", "rise: 32 together"} <= set(keys["explanations"])
    assert keys["drift"] == ["igos++ on 40 images"]
    assert keys["service"] == ["igos++ over 32 streams"]
    assert "batch size" in keys["memory"]
    assert set(keys["cost"]) == set(explanations.EXPLAINERS) - set(explanations.NOT_PRICED)


def test_results_become_a_page_with_the_card_and_the_costs_with_a_price(results, tmp_path, monkeypatch):
    results.store("card", "machine", {"torch": "2.14", "cuda": "13.0"})
    results.store(
        "tests", "cuda", {"status": 1, "passed": 48, "summary": ["FAILED tests/cuda/a.py::b", "1 failed in 9 s"]}
    )
    rates = {"forward_images_per_second": 12345.0, "backward_images_per_second": 4567.0}
    results.store(throughput.POINT, "resnet50: eager", rates)
    results.store(
        explanations.EFFICIENCY, "igos++: 32 together", {"over_bare": 1.0812, "explanations_per_second": 31.25}
    )
    results.store(explanations.DRIFT, "igos++ on 40 images", {"error": "RuntimeError: none"})
    results.store(memory.POINT, "batch size", {"chosen": 128, "best": 256, "chosen_over_best": 0.97})
    results.store(explanations.COST, "igos++", {"seconds": 0.04, "evaluations": 550.0})
    page, methods = tmp_path / "performance.md", tmp_path / "methods.md"
    report.main(["--results", str(tmp_path), "--price", "3.6", "--write", str(page), "--methods", str(methods)])
    text = page.read_text()
    for expected in (
        "a card",
        "48 passed, 1 failed.",
        "| resnet50 | eager | 12,345 | 4,567 |",
        "1.081",
        "RuntimeError: none",
        "0.970",
    ):
        assert expected in text
    assert "| `igos++` | 550 | 40 | 0.040 |" in methods.read_text()


def test_a_folder_of_several_cards_asks_for_one(tmp_path, capsys):
    for card in ("one", "other"):
        Results(tmp_path, card).store("card", "machine", {})
    with pytest.raises(SystemExit):
        report.main(["--results", str(tmp_path)])
    assert "give one of one, other" in capsys.readouterr().err


def test_the_script_asks_for_a_folder():
    done = subprocess.run(["scripts/device.sh"], cwd=program.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "make device FOLDER=path" in done.stderr


def test_every_line_of_results_is_readable_by_others(results):
    results.store("point", "key", {"value": 1})
    (line,) = results.path.read_text().splitlines()
    assert json.loads(line) == {"card": "a card", "point": "point", "key": "key", "value": {"value": 1}}
