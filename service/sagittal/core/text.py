"""Makes text from callers, models and other machines safe to display: short, and without control characters."""

import re

#: Characters that a terminal may interpret instead of displaying: C0, DEL, C1, line and paragraph separators, and marks
#: that change the direction of text. Tab and newline are allowed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

#: Characters of a caller's value that an error repeats.
EXCERPT = 64


def printable(text: str) -> str:
    r"""Returns the text with control characters replaced by escapes such as `\x1b`; tabs and newlines stay."""
    return _CONTROL.sub(lambda found: _escape(found.group()), text)


def shortened(text: str, most: int) -> str:
    """Returns text of at most `most` UTF-8 bytes: if truncated, it ends with the character count of the original."""
    if len(text) <= most // 4 or len(text.encode(errors="backslashreplace")) <= most:
        return text
    ending = f"... ({len(text):,} characters)"
    kept = text[:most].encode(errors="backslashreplace")[: max(0, most - len(ending))]
    return kept.decode(errors="ignore") + ending


def shown(value: object) -> str:
    """Returns a caller's value as an error repeats it: quoted if it is text, and truncated to an excerpt."""
    if not isinstance(value, str):
        return shortened(repr(value), EXCERPT)
    if len(value) <= EXCERPT:
        return repr(value)
    return f"{value[:EXCERPT]!r}... ({len(value):,} characters)"


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
