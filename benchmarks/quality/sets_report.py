"""The report's sections on minimal sufficient explanations."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from quality import sets
from quality.cache import Record
from quality.goals import Goal
from quality.measuring import ORDERINGS, Measurements
from quality.statistics import bootstrap
from subject import table

OURS, THEIRS = "mse", "mse-reference"

KNOWN = {"chelsea": (2701, 580, 4), "coffee": (4139, 946, 5)}
"""Evaluations, distinct sets among them and smallest root of the published code, same model and baseline."""

SUBSET_MINIMAL_TO = 8
MOST = sets.AREA * sets.GRID**2
"""Patches within a fifth of the area."""

TITLES = {"igos++": "iGOS++", "igos": "I-GOS", "grad-cam": "Grad-CAM"}


class Sets:
    """Records of searches, compared image by image."""

    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements
        self.records = {name: measurements.records(name) for name in sets.SEARCHES}

    def table(self) -> str:
        """Returns the table of both searches."""
        header = ["search", "pictures", "with a set", "smallest", "sets", "diverse", "certificates", "evaluations"]
        rows = []
        for name, title in ((OURS, "ours"), (THEIRS, "reimplemented beam")):
            found = list(self.records[name].values())
            if found:
                smallest = [smallest_of(each) for each in found if len(each["sizes"])]
                levels = Counter(str(level) for each in found for level in each["levels"])
                rows.append(
                    [
                        title,
                        len(found),
                        sum(bool(len(each["sizes"])) for each in found),
                        f"{bootstrap(smallest, seed=0):.1f}",
                        f"{fmean(len(each['sizes']) for each in found):.1f}",
                        f"{bootstrap([sets.family(each, 1) for each in found], seed=0):.2f}",
                        ", ".join(f"{level} {count}" for level, count in sorted(levels.items())),
                        f"{fmean(each['evaluations'] for each in found):,.0f}",
                    ]
                )
        return table(header, rows)

    def goals(self) -> list[Goal]:
        """Returns the goals of the search."""
        ours, theirs = self.records[OURS], self.records[THEIRS]
        pictures = [picture for picture in ours if picture in theirs]
        if not pictures:
            return []
        count = len(pictures)
        pairs = [(ours[picture], theirs[picture]) for picture in pictures]
        smaller = sum(smallest_of(our) <= smallest_of(their) for our, their in pairs)
        diverse = sum(sets.family(our, 1) >= sets.family(their, 1) for our, their in pairs)
        ratio = sum(their["evaluations"] for _, their in pairs) / sum(our["evaluations"] for our, _ in pairs)
        known = [picture for picture in KNOWN if picture in ours]
        against = sum(KNOWN[each][0] for each in known) / max(1, sum(ours[each]["evaluations"] for each in known))
        return [
            Goal(
                "smallest set no larger than the reimplemented beam's on 95 %",
                share(smaller, count),
                smaller >= 0.95 * count,
                count,
            ),
            Goal("at least as many diverse sets at overlap 1", share(diverse, count), diverse == count, count),
            Goal(
                "at most 1/5 of the evaluations of the reimplemented beam",
                f"1/{ratio:.1f}",
                ratio >= 5,
                count,
            ),
            Goal(
                "at most 1/5 of those of the published code on chelsea and coffee",
                f"1/{against:.1f}",
                against >= 5,
                len(known),
                wanted=2,
            ),
            *self._certainty(list(ours.values())),
        ]

    def _certainty(self, found: Sequence[Record]) -> list[Goal]:
        some = sum(bool(len(each["sizes"])) for each in found)
        levels = [
            (int(size), str(level)) for each in found for size, level in zip(each["sizes"], each["levels"], strict=True)
        ]
        minimal = sum(level != "sufficient" for _, level in levels)
        small = [level for size, level in levels if size <= SUBSET_MINIMAL_TO]
        proven = sum(level in ("subset-minimal", "minimum-size") for level in small)
        count = len(found)
        return [
            Goal("a set on 95 % of the images", share(some, count), some >= 0.95 * count, count),
            Goal("every set at least one-minimal", share(minimal, len(levels)), minimal == len(levels), count),
            Goal("every set of up to 8 patches subset-minimal", share(proven, len(small)), proven == len(small), count),
        ]

    def known(self) -> str:
        """Returns the table of the published code's figures beside both searches."""
        rows = []
        for picture, (evaluations, distinct, smallest) in KNOWN.items():
            ours, theirs = self.records[OURS].get(picture), self.records[THEIRS].get(picture)
            if ours and theirs:
                rows.append(
                    (
                        picture,
                        f"{evaluations:,} ({distinct} distinct)",
                        smallest,
                        f"{theirs['evaluations']:,}",
                        smallest_of(theirs),
                        f"{ours['evaluations']:,}",
                        smallest_of(ours),
                    )
                )
        header = ("image", "published code: evaluations", "smallest", "reimplemented: evaluations", "smallest")
        return table((*header, "ours: evaluations", "smallest"), rows)

    def findings(self) -> str:
        """Returns the paper's two findings for this model."""
        rows = []
        if found := list(self.records[OURS].values()):
            within = sum(smallest_of(each) <= MOST for each in found)
            rows.append(["beam search", len(found), share(within, len(found))])
        for name in ORDERINGS:
            orders = list(self._measurements.records(f"order-{name}").values())
            if orders:
                within = sum(each["size"] <= MOST for each in orders)
                rows.append([f"order of {TITLES[name]}", len(orders), share(within, len(orders))])
        return table(["method", "images", "with a set within 20 % of the area"], rows) + "\n" + self._several()

    def _several(self) -> str:
        rows = []
        for allowed, name in ((0, OURS), (1, OURS), (2, "mse-overlap-2")):
            found = list(self.records[name].values())
            if found:
                several = sum(sets.family(each, allowed) > 1 for each in found)
                rows.append([allowed, len(found), share(several, len(found))])
        return table(["overlap", "images", "with more than one diverse set"], rows)


def smallest_of(record: Record) -> int:
    """Returns the number of patches of the smallest set; more than any grid has if there is none."""
    return min(record["sizes"].tolist(), default=10_000)


def share(part: int, whole: int) -> str:
    """Formats a share with its count."""
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "none"
