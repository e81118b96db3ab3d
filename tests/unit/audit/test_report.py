"""The report shows the evidence of each finding, and no text of a data set becomes markup."""

from dataclasses import replace

from audited_world import SIZE, draw, evidence_of, scorer

from sagittal.audit.confirmation import confirm
from sagittal.audit.findings import Audit, Thresholds
from sagittal.audit.report import audit_html

NAME = "<script>red</script>"


def test_a_report_has_evidence_images_scores_and_everything_tested() -> None:
    images = evidence_of(draw(10, marked=6), reads_mark=True)
    evidence = [replace(each, group=NAME, key=f"{NAME}{each.key}") if not each.label else each for each in images]
    score = scorer(reads_mark=True)
    found = confirm(evidence, score, Thresholds())
    audit = Audit(
        model="lamp", model_version="1", model_digest="d", source=NAME, method="igos++", size=SIZE, images=20,
        groups={NAME: 10, "blue": 10}, findings=tuple(each.finding for each in found.confirmed),
        tested=tuple(found.tested), failures={NAME: NAME}, notes=(NAME,),
    )  # fmt: skip
    page = audit_html(audit, found.confirmed, found.laboratory)
    assert "<script" not in page
    assert "&lt;script&gt;red&lt;/script&gt;: regions that recur at one place" in page
    shown = page[page.index("<h2>1.") :]
    shown = shown[: shown.index("</section>")]
    assert shown.count("data:image/jpeg") == 3 * 4 + 3
    assert "with other regions; +0." in shown
    assert page.count("no finding") + len(found.confirmed) >= len(found.tested)
