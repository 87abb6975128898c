"""Small programs, compiled for the tests. `python -m tests.tpu.programs` writes tests/tpu/data (needs libtpu)."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = Path(__file__).parent / "data"
MICROBATCHES = 4


def compile_for(devices, function, *shapes, sharded=()):
    """Compiles a function for devices; the arguments in `sharded` are split by their first axis."""
    mesh = Mesh(np.array(devices), ("data",))
    specs = [PartitionSpec("data") if index in sharded else PartitionSpec() for index in range(len(shapes))]
    arguments = [
        jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(function).lower(*arguments).compile()


def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype)


def conv(inputs, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lax.conv_general_dilated(inputs, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def compile_microbatches(devices, unroll=1):
    """The gradient of one convolution, over four pieces of each device's share, one after the other."""
    mesh = Mesh(np.array(devices), ("data",))

    def local(kernel, images):
        def piece(total, images):
            def loss(kernel):
                with jax.named_scope("block1a"):
                    return jnp.mean(jnp.square(conv(images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))))

            return total + jax.grad(loss)(kernel), None

        pieces = images.reshape(MICROBATCHES, -1, *images.shape[1:])
        total, _ = lax.scan(piece, jnp.zeros_like(kernel), pieces, unroll=unroll)
        return kernel - lax.pmean(total, "data")

    specs = (PartitionSpec(), PartitionSpec("data"))
    step = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    images = shape(32 * len(devices), 32, 32, 8, dtype=jnp.uint8)
    return compile_for(devices, step, shape(3, 3, 8, 128, dtype=jnp.float32), images, sharded=(1,))


def main():
    from effnet_jax.tpu.chips import topology_devices

    compiled = compile_microbatches(topology_devices("v5e:2x2"))
    text = re.sub(r", (backend_config|metadata)=\{.*", lambda found: _short(found[0]), compiled.as_text())
    text = re.sub(r"\nFileNames\n.*?\n\n\n", "\n", text, flags=re.DOTALL)  # where the lines of code lie
    (DATA / "microbatches.hlo").write_text(text)
    print(len(text), compiled.cost_analysis()["flops"], compiled.cost_analysis()["bytes accessed"])


def _short(attributes):
    """Keeps of an instruction's notes only the name that JAX gave."""
    op_name = re.search(r'op_name="[^"]*"', attributes)
    return f", metadata={{{op_name[0]}}}" if op_name else ""


if __name__ == "__main__":
    main()
