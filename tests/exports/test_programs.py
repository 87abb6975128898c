"""Programs for other programs' runtimes, run by these: skipped where the optional extra that has them is missing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from effnet_jax.weights.store import load_weights

# Each in a process of its own: TensorFlow and JAX in one take each other's threads, and a crash ends no other test.
EXPORT = "import sys; from effnet_jax.export import main; sys.argv = ['export', *sys.argv[1:]]; sys.exit(main())"
SAVEDMODEL = """
import sys, numpy, tensorflow
run = tensorflow.saved_model.load(sys.argv[1]).signatures["serving_default"]
numpy.save(sys.argv[3], run(images=tensorflow.constant(numpy.load(sys.argv[2])))["output_0"].numpy())
"""
LITERT = """
import sys, numpy, tensorflow
run = tensorflow.lite.Interpreter(model_path=sys.argv[1] + "/model.tflite")
run.allocate_tensors()
(given,), (made,) = run.get_input_details(), run.get_output_details()
outputs = []
for image in numpy.load(sys.argv[2]):
    run.set_tensor(given["index"], image[None])
    run.invoke()
    outputs.append(run.get_tensor(made["index"])[0])
numpy.save(sys.argv[3], numpy.stack(outputs))
"""
ONNX = """
import sys, numpy, onnxruntime
run = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], run.run(None, {run.get_inputs()[0].name: numpy.load(sys.argv[2])})[0])
"""
# format: (packages, the extra that has them, its runtime, the largest error in shares of the largest logit)
PROGRAMS = {
    "savedmodel": (("tensorflow",), "tensorflow", SAVEDMODEL, 1e-5),
    "litert": (("tensorflow",), "tensorflow", LITERT, 5e-5),
    "onnx": (("jax2onnx", "onnxruntime"), "onnx", ONNX, 1e-5),
}


def run(code: str, *arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("form", PROGRAMS)
@pytest.mark.parametrize("variant", ["lite0", pytest.param("b0", marks=pytest.mark.slow)])
def test_its_runtime_gives_our_logits(weights, tmp_path, variant, form):
    packages, extra, runtime, most = PROGRAMS[form]
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install 'effnet-jax[{extra}]'")
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    run(EXPORT, weights(variant), tmp_path / "out", f"--format={form}")
    run(runtime, tmp_path / "out", tmp_path / "images.npy", tmp_path / "logits.npy")
    model, variables, _ = load_weights(weights(variant))
    ours, theirs = np.asarray(jax.jit(model.apply)(variables, images)), np.load(tmp_path / "logits.npy")
    error = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    print(f"{form} of {variant}: {error:.1e} of the largest logit")
    assert ours.shape == theirs.shape and error <= most
