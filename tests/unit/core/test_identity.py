import pytest

from sagittal.core.jobs import content_key, new_job_id

QUESTION = {"model": ["lamp", "1"], "parameters": {"mask_size": 28}}
IMAGES = {"image": b"picture"}


def test_job_ids_are_32_hexadecimal_digits_and_never_the_same() -> None:
    ids = {new_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in ids)


def test_the_same_question_has_the_same_key_in_any_order() -> None:
    reordered = dict(reversed(QUESTION.items()))
    assert content_key(QUESTION, IMAGES) == content_key(reordered, IMAGES)


@pytest.mark.parametrize(
    ("question", "images"),
    [
        (QUESTION | {"model": ["lamp", "2"]}, IMAGES),
        (QUESTION | {"parameters": {"mask_size": 29}}, IMAGES),
        (QUESTION | {"seed": 1}, IMAGES),
        (QUESTION | {"metrics": b"\x01"}, IMAGES),
        (QUESTION, {"image": b"another picture"}),
        (QUESTION, IMAGES | {"baseline": b"picture"}),
        (QUESTION, {"baseline": b"picture"}),
    ],
)
def test_another_question_has_another_key(question: dict[str, object], images: dict[str, bytes]) -> None:
    assert content_key(question, images) != content_key(QUESTION, IMAGES)


def test_what_has_no_stable_form_is_refused() -> None:
    with pytest.raises(TypeError, match="content key"):
        content_key({"x": object()}, IMAGES)
