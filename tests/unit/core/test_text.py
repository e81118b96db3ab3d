"""Text of others is shown short, and without what drives a terminal."""

import pytest

from sagittal.core.errors import MAX_FIELD, MAX_MESSAGE, InvalidRequest, to_status
from sagittal.core.text import printable, shortened, shown


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\rb\x9bc\x7f", "a\\x0db\\x9bc\\x7f"),
        ("\u202egnp.exe\ud800", "\\u202egnp.exe\\ud800"),
        ("Größe 灯 שלום", "Größe 灯 שלום"),
    ],
)
def test_control_characters_are_escaped_and_all_others_stay(given: str, safe: str) -> None:
    assert printable(given) == safe


@pytest.mark.parametrize("text", ["x" * 10_000, "灯" * 10_000, "🪔" * 300, "\ud800" * 5_000])
def test_a_long_text_is_cut_to_its_bytes_and_says_its_length(text: str) -> None:
    cut = shortened(text, 256)
    assert len(cut.encode()) <= 256
    assert cut.endswith(f"... ({len(text):,} characters)")


def test_a_short_text_stays_whole() -> None:
    assert shortened("灯" * 85, 256) == "灯" * 85


def test_a_value_is_repeated_as_an_excerpt() -> None:
    assert shown("lamp") == "'lamp'"
    assert len(shown("x" * 30_000_000)) < 100
    assert len(shown(list(range(100_000)))) < 100


def test_every_error_fits_into_the_metadata_of_its_call() -> None:
    error = InvalidRequest("灯" * 100_000, field="x." * 100_000)
    assert len(str(error).encode()) <= MAX_MESSAGE
    assert len(error.field.encode()) <= MAX_FIELD
    assert 3 * MAX_MESSAGE + len(to_status(error).SerializeToString()) * 4 / 3 < 8 * 1024
