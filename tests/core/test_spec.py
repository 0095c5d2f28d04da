"""SampleSpec: what one sample is."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from mmf_deploy.errors import SpecError
from mmf_deploy.spec import SampleSpec


def test_image_knows_its_size_and_its_conditioning():
    spec = SampleSpec(shape=(3, 4, 5), classes=2, class_names=("a", "b"), guidance=(1, 4))
    assert (spec.is_image, spec.conditional, spec.guided, spec.elements) == (True, True, True, 60)


def test_vector_knows_its_size_and_its_conditioning():
    spec = SampleSpec(shape=(7,))
    assert (spec.is_image, spec.conditional, spec.guided, spec.elements) == (False, False, False, 7)


def test_default_labels_are_the_classes_in_turn():
    spec = SampleSpec(shape=(2,), classes=3)
    assert [spec.default_label(s) for s in range(5)] == [0, 1, 2, 0, 1]
    assert spec.default_label(2**63 - 1) == (2**63 - 1) % 3
    assert SampleSpec(shape=(2,)).default_label(5) == 0


def test_spec_comes_back_from_json():
    spec = SampleSpec(shape=(1, 8, 8), classes=1, class_names=("ä",), guidance=(1.0, 2.5))
    assert SampleSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": ()}, r"expected \(C, H, W\) or \(D,\)"),
        ({"shape": (8, 8)}, r"expected \(C, H, W\) or \(D,\)"),
        ({"shape": (0,)}, "all positive"),
        ({"shape": (1, 8, -8)}, "all positive"),
        ({"shape": (4, 8, 8)}, "1 or 3 channels, not 4"),
        ({"shape": (2,), "classes": -1}, "classes = -1"),
        ({"shape": (2,), "classes": 2, "class_names": ("a",)}, "1 class names for 2 classes"),
        ({"shape": (2,), "class_names": ("a",)}, "1 class names for 0 classes"),
        ({"shape": (2,), "guidance": (0.5, 2)}, "expected 1 <= low <= high"),
        ({"shape": (2,), "guidance": (3, 2)}, "expected 1 <= low <= high"),
        ({"shape": (2,), "guidance": (1, math.nan)}, "expected 1 <= low <= high"),
        ({"shape": (2,), "guidance": (1, math.inf)}, "expected 1 <= low <= high"),
    ],
)
def test_specification_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        SampleSpec(**fields)


def test_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="clases"):
        SampleSpec(shape=(2,), clases=3)


def test_spec_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        SampleSpec(shape=(2,)).classes = 3
