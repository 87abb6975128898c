"""Operations of convolutions and matrix products: against counting by hand, and against XLA's own analysis."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from effnet_jax.tpu.flops import instruction_flops
from effnet_jax.tpu.hlo import read_module
from effnet_jax.tpu.program import Program
from tests.tpu.programs import compile_for, conv, shape


def flops(instruction, left, right):
    module = read_module(f"""\
ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {{
  %a = f32[{left}] parameter(0)
  %b = f32[{right}] parameter(1)
  ROOT %out = {instruction}
}}
""")
    computation = module.computations["main"]
    return instruction_flops(computation["out"], computation)


def count(kernel, outputs, inputs, low, stride=1, spread=1, dilation=1):
    """Pairs of a tap and an output that meet an input's element, one by one."""
    elements = {index * spread for index in range(inputs)}
    return sum(
        output * stride - low + tap * dilation in elements
        for tap, output in itertools.product(range(kernel), range(outputs))
    )


def test_padding_is_not_counted():
    found = flops("f32[2,7,5,16] convolution(%a, %b), window={size=3x5 pad=1_1x2_2}, dim_labels=b01f_01io->b01f",
                  "2,7,5,8", "3,5,8,16")  # fmt: skip
    assert found == 2 * 2 * 8 * 16 * count(3, 7, 7, 1) * count(5, 5, 5, 2)
    assert count(3, 7, 7, 1) == 19


def test_stride_dilations_and_reversal():
    found = flops(
        "f32[2,9,4,16] convolution(%a, %b), window={size=3x3 stride=1x2 pad=2_1x0_1 lhs_dilate=2x1 rhs_dilate=1x2 "
        "rhs_reversal=1x1}, dim_labels=b01f_01oi->b01f",
        "2,4,11,8", "3,3,16,8",
    )  # fmt: skip
    assert found == 2 * 2 * 8 * 16 * count(3, 9, 4, 2, spread=2) * count(3, 4, 11, 0, stride=2, dilation=2)


@pytest.mark.parametrize(("stride", "spread"), [*itertools.product((1, 2, 3, 5), (1, 2, 4, 6))])
def test_strides_against_gaps(stride, spread):
    outputs = (7 * spread + 2) // stride + 1
    window = f"window={{size=4 stride={stride} pad=3_3 lhs_dilate={spread}}}, dim_labels=b0f_0io->b0f"
    found = flops(f"f32[1,{outputs},1] convolution(%a, %b), {window}", "1,8,1", "4,1,1")
    assert found == 2 * count(4, outputs, 8, 3, stride, spread)


def test_a_batch_as_a_window_is_counted_at_once():
    """The compiler may write products by example as a window over all examples, most of which are gaps."""
    size = 20_000
    window = f"window={{size={size} stride={size - 1} lhs_dilate={size}}}, dim_labels=b0f_0io->b0f"
    found = flops(f"f32[1,{size},16] convolution(%a, %b), {window}", f"1,{size},8", f"{size},8,16")
    assert found == 2 * 8 * 16 * size


def test_groups():
    depthwise = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, feature_group_count=32"
    found = flops(f"f32[2,8,8,32] convolution(%a, %b), {depthwise}", "2,8,8,32", "3,3,1,32")
    assert found == 2 * 2 * 32 * 22 * 22
    gradient = "window={size=8x8 pad=1_1x1_1}, dim_labels=f01b_i01o->01bf, batch_group_count=32"
    found = flops(f"f32[3,3,1,32] convolution(%a, %b), {gradient}", "2,8,8,32", "2,8,8,32")
    assert found == 2 * 2 * 32 * 22 * 22


def test_matrix_products():
    assert flops("f32[64,10] convolution(%a, %b), dim_labels=bf_io->bf", "64,1280", "1280,10") == 2 * 64 * 1280 * 10
    dims = "lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    assert flops(f"f32[4,8,32] dot(%a, %b), {dims}", "4,8,16", "4,16,32") == 2 * 4 * 8 * 16 * 32
    assert flops("f32[4,8,16] add(%a, %b)", "4,8,16", "4,8,16") == 0


def gradient(function):
    def loss(inputs, kernel):
        return jnp.sum(jnp.square(function(inputs, kernel).astype(jnp.float32)))

    return jax.grad(loss, (0, 1))


IMAGES = shape(8, 20, 20, 32)
PROGRAMS = {
    "same": (conv, IMAGES, shape(3, 3, 32, 64)),
    "strided": (
        lambda x, w: conv(x, w, window_strides=(2, 2), padding=((0, 1), (0, 1))),
        IMAGES,
        shape(3, 3, 32, 64),
    ),
    "dilated": (lambda x, w: conv(x, w, rhs_dilation=(2, 2)), IMAGES, shape(3, 3, 32, 64)),
    "grouped": (lambda x, w: conv(x, w, feature_group_count=4), IMAGES, shape(3, 3, 8, 64)),
    "gradients": (gradient(conv), IMAGES, shape(3, 3, 32, 64)),
    "strided gradients": (gradient(lambda x, w: conv(x, w, window_strides=(2, 2))), IMAGES, shape(5, 5, 32, 64)),
    "product": (lambda a, b: a @ b, shape(256, 512), shape(512, 384)),
}


def compare(devices, name):
    compiled = compile_for(devices[:1], *PROGRAMS[name])
    program = Program(compiled.as_text())
    assert program.totals.flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.02)
    return program, compiled


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_xla_counts_on_the_cpu(name):
    program, compiled = compare(jax.devices(), name)
    # There is one memory there, and no padding: the bytes are XLA's too.
    touched = sum(moved.touched_bytes for moved in program.moved)
    assert touched == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.001)


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_xla_counts_on_a_tpu(name, tpu_devices):
    compare(tpu_devices, name)
