"""Findings of an audit: confirmed candidates, their severity, and their changes between two audits."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sagittal.audit.statistics import Effect
from sagittal.audit.sufficiency import Sufficiency
from sagittal.client import InvalidRequest

#: Severities, least first.
SEVERITIES = ("low", "medium", "high")

#: File of an audit with everything.
FINDINGS = "findings.json"

#: Version of the format of that file.
FORMAT = 1

#: Findings of two audits at one place have boxes with at least this intersection over union.
_SAME_PLACE = 0.3

#: Change of a finding's effect from which it counts as stronger or weaker, if the intervals do not overlap either.
_CHANGED = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Limits from which a candidate is a finding, and of the severities. A TOML file has the same names."""

    false_discovery_rate: float = 0.05
    """Largest expected share of false findings."""
    low: float = 0.02
    """Lower end of the effect's interval from which a finding has severity low; below it is no finding."""
    medium: float = 0.1
    high: float = 0.3

    @classmethod
    def read(cls, path: Path) -> "Thresholds":
        """Returns the thresholds in a TOML file. Raises InvalidRequest."""
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{path} is no TOML: {error}", field="thresholds") from error
        names = {each.name for each in fields(cls)}
        for name, value in given.items():
            if name not in names:
                text = f"{path}: no threshold {name!r}; there are {', '.join(sorted(names))}"
                raise InvalidRequest(text, field=name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise InvalidRequest(f"{path}: {name} is {value!r}; give a number above 0, at most 1", field=name)
        found = cls(**given)
        if not found.low <= found.medium <= found.high:
            raise InvalidRequest(f"{path}: expected low <= medium <= high", field="medium")
        return found

    def severity(self, effect: float) -> str:
        """Returns the severity of an effect, given the lower end of its interval; empty if it is no finding."""
        reached = [name for name in SEVERITIES if effect >= getattr(self, name)]
        return reached[-1] if reached else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """An image of a finding's group, with how strongly it has the cause."""

    key: str
    presence: float
    listed: bool
    """Whether it is in the cleaning list."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom of the region in the model's input, right and bottom exclusive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A spurious reason that an intervention confirmed."""

    id: str
    group: str
    kinds: tuple[str, ...]
    """How it was found; see `sagittal.audit.candidates.KINDS`."""
    severity: str
    place: str
    """"outside the object", "on the object" or "unknown"."""
    confirmed_by: tuple[str, ...]
    """"removing", "adding" or both."""
    images: int
    """Images of the group in whose explanation it was found."""
    of: int
    """Images of the group."""
    removed: Effect | None
    added: Effect | None
    q: float
    """p-value of the smaller test, adjusted for all candidates of the audit."""
    chance: float | None = None
    """Probability that it would recur as often by chance; None if it was found otherwise."""
    score: float = 0.0
    """Mean probability of the class on the images with it."""
    score_removed: float | None = None
    score_added: float | None = None
    score_added_control: float | None = None
    """Mean probability on images of other classes with a region of another class instead."""
    outside_share: float | None = None
    kept: float | None = None
    """Share of the score that a region at the border keeps alone."""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Box in the model's input in which it mostly is."""
    fixed: bool = False
    concept: str = ""
    """Name of the concept that fires there, if it was found by one."""
    listing: tuple[ListedImage, ...] = ()
    """The images of the group, those with the strongest presence first."""

    @property
    def effect(self) -> float:
        """The larger of both confirmed effects."""
        return max(each.mean for each in self._confirmed)

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the larger confirmed effect."""
        largest = max(self._confirmed, key=lambda each: each.mean)
        return largest.low, largest.high

    @property
    def _confirmed(self) -> Sequence[Effect]:
        effects = {"removing": self.removed, "adding": self.added}
        return [each for name in self.confirmed_by if (each := effects[name]) is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The result of an audit."""

    model: str
    model_version: str
    model_digest: str
    source: str
    method: str
    size: int
    """Side of the model's input in pixels."""
    images: int
    """Images that were explained and searched."""
    groups: Mapping[str, int]
    """Number of searched images of each group."""
    findings: tuple[Finding, ...]
    """Most severe first."""
    tested: tuple[Mapping[str, Any], ...]
    """Every candidate that was tested, with its p-value and adjusted p-value."""
    thresholds: Thresholds = Thresholds()
    outside: Mapping[str, float] = field(default_factory=dict)
    """Mean share of saliency (or of sufficient sets) outside the object, of each group whose objects are known."""
    sufficient_sets: Sufficiency | None = None
    """Statistics of the sufficient sets; None if the method gives none."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why a group was not searched, by its name."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Why an image was not explained, by its key."""
    doubtful: tuple[str, ...] = ()
    """Keys of images that were not searched, because the model hardly gives them their class."""
    notes: tuple[str, ...] = ()

    def at_least(self, severity: str) -> list[Finding]:
        """Returns the findings of this severity and above."""
        return [each for each in self.findings if SEVERITIES.index(each.severity) >= SEVERITIES.index(severity)]

    def only(self, findings: Sequence[Finding]) -> "Audit":
        """Returns this audit with some of its findings."""
        return replace(self, findings=tuple(findings))

    def save(self, directory: Path) -> Path:
        """Writes `findings.json` and returns its path."""
        path, temporary = directory / FINDINGS, directory / f"{FINDINGS}.tmp"
        document = {"format": FORMAT, **asdict(self)}
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
        return path

    @classmethod
    def load(cls, path: Path) -> "Audit":
        """Returns an audit from its file or directory. Raises InvalidRequest."""
        file = path / FINDINGS if path.is_dir() else path
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
            if (number := given["format"]) != FORMAT:
                text = f"{file} has format {number}, and this program reads {FORMAT}: audit again"
                raise InvalidRequest(text, field="audit")
            return cls.parse(given)
        except FileNotFoundError as error:
            text = f"{path} has no {FINDINGS}: give the directory of `sagittal audit run`"
            raise InvalidRequest(text, field="audit") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidRequest(f"{file} is no audit: {error}", field="audit") from error

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "Audit":
        """Returns an audit from the content of its file."""
        values = {name: value for name, value in given.items() if name != "format"}
        values |= {name: tuple(given[name]) for name in ("tested", "doubtful", "notes")}
        findings = tuple(_finding(each) for each in given["findings"])
        values |= {"findings": findings, "thresholds": Thresholds(**given["thresholds"])}
        return cls(**values | {"sufficient_sets": Sufficiency.parse(given.get("sufficient_sets"))})


def _finding(given: Mapping[str, Any]) -> Finding:
    effects = {name: Effect(**given[name]) if given[name] else None for name in ("removed", "added")}
    listed = tuple(ListedImage(**{**each, "box": tuple(each["box"])}) for each in given["listing"])
    texts = {name: tuple(given[name]) for name in ("kinds", "confirmed_by", "box")}
    return Finding(**{**given, **effects, **texts, "listing": listed})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A finding of one or both of two audits."""

    state: str
    """"new", "stronger", "same", "weaker" or "gone"."""
    before: Finding | None
    after: Finding | None

    @property
    def finding(self) -> Finding:
        """The later of both."""
        found = self.after or self.before
        assert found is not None  # noqa: S101 - one of them is given
        return found

    @property
    def worse(self) -> bool:
        """Whether the later model relies more on it."""
        return self.state in ("new", "stronger")


def compare(old: Audit, new: Audit) -> list[Change]:
    """Returns the change of each finding of both audits: new and stronger ones first, then the others."""
    left = list(old.findings)
    changes = []
    for after in new.findings:
        before = next((each for each in left if _same(each, after)), None)
        if before is not None:
            left.remove(before)
        changes.append(Change(state=_state(before, after), before=before, after=after))
    changes += [Change(state="gone", before=each, after=None) for each in left]
    return sorted(changes, key=lambda each: not each.worse)


def _state(before: Finding | None, after: Finding) -> str:
    if before is None:
        return "new"
    difference = after.effect - before.effect
    apart = after.interval[0] > before.interval[1] or after.interval[1] < before.interval[0]
    if not apart or abs(difference) < _CHANGED:
        return "same"
    return "stronger" if difference > 0 else "weaker"


def _same(one: Finding, other: Finding) -> bool:
    if one.group != other.group or not set(one.kinds) & set(other.kinds):
        return False
    return not (one.fixed and other.fixed) or _box_overlap(one.box, other.box) >= _SAME_PLACE


def _box_overlap(one: Sequence[int], other: Sequence[int]) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    common = max(across, 0) * max(down, 0)
    area = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (one, other)) - common
    return common / area if area else 0.0


def describe(finding: Finding) -> str:
    """Returns a finding in one line."""
    what = ", ".join(finding.kinds) + (f" ({finding.concept})" if finding.concept else "")
    parts = [f"{finding.group}: {what} in {finding.images} of {finding.of} images"]
    for name, effect, sign in (("removing", finding.removed, -1), ("adding", finding.added, 1)):
        if effect is not None and name in finding.confirmed_by:
            parts.append(f"{name} it changes the score by {effect.change(sign).text}")
    return f"{parts[0]}; {', '.join(parts[1:])}; {finding.place}"


def junit(audit: Audit, severe: Sequence[Finding]) -> str:
    """Returns JUnit XML: a test case for each group, which fails if one of the severe findings is its own."""
    suite = ElementTree.Element("testsuite", name="sagittal audit", tests=str(len(audit.groups) + len(audit.left_out)))
    suite.set("failures", str(len({each.group for each in severe})))
    suite.set("skipped", str(len(audit.left_out)))
    for group in audit.groups:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"{audit.model}@{audit.model_version}", name=_text(group)
        )
        found = [describe(each) for each in severe if each.group == group]
        if found:
            failure = ElementTree.SubElement(case, "failure", message=_text(found[0]))
            failure.text = _text("\n".join(found))
    for group, why in audit.left_out.items():
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"{audit.model}@{audit.model_version}", name=_text(group)
        )
        ElementTree.SubElement(case, "skipped", message=_text(why))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _text(text: str) -> str:
    """Returns text without the control characters that XML does not allow."""
    return "".join(sign if sign in "\n\t" or sign >= " " else "?" for sign in text)
