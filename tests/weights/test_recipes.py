"""What file names say about the weights in them."""

import types

import pytest

from effnet_jax.errors import VariantError
from effnet_jax.model.variants import VARIANTS
from effnet_jax.weights import recipes


@pytest.mark.parametrize(
    "path, variant, family",
    [
        ("noisy_student_efficientnet-b1.tar.gz", "b1", "noisy_student"),
        ("noisy-student-efficientnet-b1/model.ckpt", "b1", "noisy_student"),
        ("noisystudent/x.tar.gz", "b1", "noisy_student"),
        ("advprop/efficientnet-b0.tar.gz", "b0", "advprop"),
        ("ckptsaug/efficientnet-b0.tar.gz", "b0", "imagenet"),
        ("randaug/efficientnet-b7-randaug.tar.gz", "b7", "imagenet"),
        ("efficientnet_b0_imagenet_tf_names.npz", "b0", "imagenet"),
        ("imagenet/efficientnet-lite0.tar.gz", "lite0", "lite"),
        ("anything.npz", "l2", "noisy_student"),
    ],
)
def test_the_family_that_a_name_tells(tmp_path, path, variant, family):
    assert recipes.choose_family(tmp_path / path, VARIANTS[variant], None).name == family


@pytest.mark.parametrize("path", ["efficientnet-b0.tar.gz", "imagenet/efficientnet-b0.tar.gz"])
def test_a_family_that_no_name_tells_is_asked_for(tmp_path, path):
    with pytest.raises(VariantError) as caught:
        recipes.choose_family(tmp_path / path, VARIANTS["b0"], None)
    for family in ("imagenet", "noisy_student", "advprop"):
        assert f"--family {family}" in str(caught.value)
    assert "lite" not in str(caught.value)


def test_families_that_are_given(tmp_path):
    assert recipes.choose_family(tmp_path / "noisy_student.npz", VARIANTS["b0"], "advprop").name == "advprop"
    with pytest.raises(VariantError, match="the family lite has no b0"):
        recipes.choose_family(tmp_path / "x", VARIANTS["b0"], "lite")


def test_weights_of_another_size(tmp_path):
    """`…-l2_475` is l2 at 475 pixels."""
    assert recipes.choose_resolution(tmp_path / "noisy_student_efficientnet-l2_475.tar.gz", VARIANTS["l2"]) == 475
    assert recipes.choose_resolution(tmp_path / "noisy_student_efficientnet-l2.tar.gz", VARIANTS["l2"]) == 800


@pytest.mark.parametrize(
    ("path", "variant", "num_classes", "name"),
    [
        ("noisy_student_efficientnet-b1.tar.gz", "b1", 1000, "noisy_student_b1"),
        ("noisy-student-efficientnet-b1/model.ckpt", "b1", 0, "noisy_student_b1"),
        ("tf_efficientnet_b0_ns-c0e6a31c.pth", "b0", 1000, "noisy_student_b0"),
        ("efficientnet-lite0.tar.gz", "lite0", 1000, "lite0"),
        ("noisy_student_efficientnet-b1/model.ckpt", "b1", 10, ""),  # of one's own
        ("efficientnet-b8/model.ckpt", "b8", 1000, ""),  # a name that only one file has, and any folder may have
        ("randaug/efficientnet-b8/model.ckpt", "b8", 1000, ""),
        ("efficientnet-lite0/model.ckpt", "lite0", 1000, ""),
        ("efficientnet-b0.tar.gz", "b0", 1000, ""),  # three recipes' name
    ],
)
def test_published_weights_that_a_name_tells(tmp_path, path, variant, num_classes, name):
    plan = types.SimpleNamespace(variant=VARIANTS[variant], num_classes=num_classes)
    found = recipes._published_in_name(tmp_path / path, plan)
    assert (found.name if found else "") == name
