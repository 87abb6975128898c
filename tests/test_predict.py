"""Classifying images from Python and from the command line, with the real weights of EfficientNet-Lite0."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effnet_jax import load_classifier, predict
from effnet_jax.data.decode import decode_image
from effnet_jax.errors import DataError, WeightsError, run_command
from effnet_jax.weights.port import port_checkpoint
from effnet_jax.weights.store import read_weights, write_weights


@pytest.fixture(scope="module")
def lite0(lite0_pth, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "lite0"
    port_checkpoint(lite0_pth, path)
    return path


@pytest.fixture(scope="module")
def classify(lite0) -> predict.Classifier:
    return load_classifier(lite0)


def photograph(name: str) -> str:
    datasets = pytest.importorskip("sklearn.datasets")
    return str(Path(datasets.__file__).parent / "images" / name)


def test_a_palace_is_a_palace(classify):
    (row,) = classify([photograph("china.jpg")])
    assert row.shape == (1000,) and row.sum() == pytest.approx(1, abs=1e-4)
    assert classify.class_names[int(row.argmax())] == "palace"
    assert 0.15 < row.max() < 0.35


def test_paths_and_arrays_of_all_sizes_alone_and_together(classify, golden):
    paths = [golden / "preprocess" / "china.jpg", str(golden / "preprocess" / "tiny_90x70.jpg")]
    arrays = [decode_image(path) for path in paths]
    together = classify([*paths, *arrays])
    assert together.shape == (4, 1000)
    np.testing.assert_array_equal(together[:2], together[2:])
    np.testing.assert_allclose(classify(paths[:1])[0], together[0], atol=1e-5)
    assert classify([]).shape == (0, 1000)
    np.testing.assert_allclose(classify(arrays[0][None]), together[:1], atol=1e-5)


def test_what_cannot_be_classified(classify, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        classify([tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match=r"shape \(8, 8\) cannot be classified: give \[height, width, 3\]"):
        classify([np.zeros((8, 8))])


def test_small_images_go_straight_to_the_resolution(lite0, tmp_path):
    """Weights trained on small images see them whole, not a crop of them."""
    variables, metadata = read_weights(lite0)
    metadata = dataclasses.replace(metadata, evaluation="resize", resolution=32)
    write_weights(tmp_path / "direct", variables, metadata)
    seen = load_classifier(tmp_path / "direct")._prepare(np.full((16, 16, 3), 7, np.uint8))
    assert seen.shape == (32, 32, 3) and seen.dtype == np.float32
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(load_classifier(tmp_path / "direct")._prepare(image), image)


def test_weights_without_a_classifier(lite0_pth, tmp_path):
    port_checkpoint(lite0_pth, tmp_path / "trunk", notop=True)
    with pytest.raises(WeightsError, match="has no classifier"):
        load_classifier(tmp_path / "trunk")


def test_find_images(image_folder, tmp_path, monkeypatch):
    root = image_folder()
    monkeypatch.chdir(root)
    (root / "train" / "notes.txt").touch()
    assert len(predict.find_images(["."])) == 16
    assert predict.find_images(["test/cat", "train/dog/00[01].jpg", "train/notes.txt"]) == [
        "test/cat/000.jpg",
        "test/cat/001.jpg",
        "train/dog/000.jpg",
        "train/dog/001.jpg",
        "train/notes.txt",
    ]
    assert len(predict.find_images(["**/cat/*.jpg"])) == 8
    (root / "empty").mkdir()
    for name, message in (
        ("empty", "holds no images"),
        ("nothing.jpg", r"nothing\.jpg: the file does not exist"),
        ("*.jpg", r"\*\.jpg: the pattern matches no file"),
    ):
        with pytest.raises(DataError, match=message):
            predict.find_images([name])


def test_the_command(lite0, golden, capsys):
    image = str(golden / "preprocess" / "china.jpg")
    predict.main([str(lite0), image, "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == image and len(lines) == 3 and "%  " in lines[1]
    predict.main([str(lite0), image, "--top", "3", "--json"])
    (result,) = json.loads(capsys.readouterr().out)
    assert result["image"] == image
    probabilities = [line["probability"] for line in result["predictions"]]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    assert result["predictions"][0].keys() == {"class", "index", "probability"}
    assert lines[1].endswith(result["predictions"][0]["class"])


def test_many_images_show_a_progress_bar(lite0, tmp_path, capsys, monkeypatch):
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "0.png")
    for number in range(1, predict.BATCH_SIZE + 1):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{number}.png")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    predict.main([str(lite0), str(tmp_path), "--top", "1"])
    captured = capsys.readouterr()
    assert "17/17" in captured.err
    lines = captured.out.splitlines()  # the results do not go where the bar goes
    assert lines[::2] == [str(tmp_path / name) for name in sorted(path.name for path in tmp_path.iterdir())]
    assert len(lines) == 2 * (predict.BATCH_SIZE + 1)


@pytest.mark.parametrize("arguments", [["nowhere", "x.jpg"], ["nowhere", __file__]])
def test_mistakes_end_with_one_message(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: predict.main(arguments))
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_b0_of_the_published_weights(shared, tmp_path):
    port_checkpoint(shared / "weights" / "efficientnet_b0_imagenet_tf_names.npz", tmp_path / "b0")
    classify = load_classifier(tmp_path / "b0")
    likeliest = predict.predictions(classify([photograph("china.jpg")])[0], classify.class_names, 1)
    assert likeliest[0]["class"] == "palace" and likeliest[0]["probability"] == pytest.approx(0.386, abs=0.003)

    # An independent implementation (Keras), which resized with Pillow's antialiased bicubic, said this.
    with Image.open(photograph("china.jpg")) as image:
        side = int(224 / 256 * min(image.size))
        left, top = ((length - side + 1) // 2 for length in image.size)
        square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    monkey = dataclasses.replace(classify.metadata, crop="none")
    classify.metadata = monkey
    row = classify([np.asarray(square)])[0]
    found = {classify.class_names[index]: round(float(row[index]), 3) for index in np.argsort(-row)[:5]}
    assert found == pytest.approx(
        {"palace": 0.388, "bell cote": 0.148, "castle": 0.125, "monastery": 0.076, "lakeside": 0.055}, abs=0.002
    )
