from types import SimpleNamespace

import pytest

from effnet_jax.tpu.chips import CHIPS
from effnet_jax.tpu.program import Program
from effnet_jax.tpu.report import report, too_large
from effnet_jax.tpu.units import origin
from tests.tpu.programs import DATA

TEXT = (DATA / "microbatches.hlo").read_text()
V5E = CHIPS["v5e"]


class Compiled:
    """What `report` asks of a compiled step."""

    def __init__(self, text=TEXT, temporaries=0):
        self.text, self.temporaries = text, temporaries

    def as_text(self):
        return self.text

    def cost_analysis(self):
        return {"bytes accessed": 8_619_008.0}

    def memory_analysis(self):
        return SimpleNamespace(
            argument_size_in_bytes=300,
            output_size_in_bytes=100,
            alias_size_in_bytes=90,
            temp_size_in_bytes=self.temporaries,
            generated_code_size_in_bytes=7,
        )


def test_figures_are_by_image():
    found = report(Compiled(), V5E, 32, compile_seconds=1.5)
    totals = Program(TEXT).totals
    assert found.flops_per_image == totals.flops / 32
    assert found.hbm_bytes_per_image == totals.hbm_bytes / 32
    assert found.bytes_accessed_per_image == pytest.approx(32.9e6 / 32, rel=0.05)
    assert found.collective_bytes_per_image == 36_864 / 32
    assert found.sent_bytes_per_image == 36_864 * 1.5 / 32
    assert (found.collectives, found.host_transfers, found.unknown_loops) == (1, 0, 0)
    assert found.compile_seconds == 1.5
    assert set(found.to_json()) >= {"fits", "bytes_per_chip", "images_per_second", "dearest"}


def test_a_step_takes_what_its_dearest_resource_takes():
    found = report(Compiled(), V5E, 32)
    assert found.bound == "compute"
    assert found.step_seconds == found.seconds["compute"] == Program(TEXT).totals.flops / 197e12
    assert found.images_per_second_per_chip == pytest.approx(32 / found.step_seconds)
    assert found.images_per_second == pytest.approx(4 * 32 / found.step_seconds)  # the program runs on four chips
    assert found.seconds["memory"] == Program(TEXT).totals.hbm_bytes / 819e9
    assert found.seconds["interconnect"] == 36_864 * 1.5 / 200e9
    slow = [("memory", "hbm_bandwidth"), ("interconnect", "interchip_bandwidth")]
    for bound, field in slow:
        chip = SimpleNamespace(**{**vars(V5E), "usable_bytes": V5E.usable_bytes, field: 1.0})
        assert report(Compiled(), chip, 32).bound == bound


def test_memory_counts_what_is_donated_once():
    assert report(Compiled(), V5E, 32).bytes_per_chip == 300 + 100 - 90 + 7
    usable = 16 * 2**30 - 2**28
    assert report(Compiled(temporaries=usable - 317), V5E, 32).fits
    full = report(Compiled(temporaries=usable - 316), V5E, 32)
    assert not full.fits
    assert (full.bytes_per_chip, full.usable_bytes) == (usable + 1, usable)


def test_the_compilers_message_about_memory():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (51.50G) exceeds "
        "available HBM (15.75G)."
    )
    found = too_large(message, V5E, 64)
    assert not found.fits
    assert found.bytes_per_chip == 51.5 * 2**30
    assert found.to_json()["flops_per_image"] is None
    older = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeds hbm capacity"
    assert too_large(older, V5E, 64).bytes_per_chip == 17.5 * 2**30
    assert (
        too_large("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17M of 16M vmem", V5E, 64) is None
    )
    assert too_large("INTERNAL: something else", V5E, 64) is None


def test_the_dearest_come_first():
    found = report(Compiled(), V5E, 32).dearest
    sizes = [row.mb_per_image for row in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(32 * 32 * 8 / 1e6, rel=0.01)  # the images
    assert len(found) <= 10


UNITS = """\
HloModule jit_step, num_partitions=1

%fused (p0: f32[8,128]) -> f32[8,128] {
  %p0 = f32[8,128]{1,0} parameter(0)
  %neg = f32[8,128]{1,0} negate(%p0), metadata={op_name="jit(step)/mul"}
  ROOT %exp = f32[8,128]{1,0} exponential(%neg), metadata={op_name="transpose(jvp(EfficientNet.run))/block2a/bn/mul"}
}

ENTRY %main (k: f32[8,128], m: f32[8,128]) -> (f32[8,128], f32[8,128]) {
  %k = f32[8,128]{1,0} parameter(0), metadata={op_name="state.params[\\'top\\'][\\'conv\\'][\\'kernel\\']"}
  %m = f32[8,128]{1,0} parameter(1), metadata={op_name="state.opt_state.trace[\\'stem\\'][\\'conv\\'][\\'kernel\\']"}
  %bring = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%k)
  %brought = f32[8,128]{1,0:S(1)} copy-done(%bring)
  %conv = f32[8,128]{1,0:S(1)} negate(%brought), metadata={op_name="jit(step)/jvp(EfficientNet.run)/block1a/conv"}
  %named = f32[8,128]{1,0:S(1)} fusion(%conv), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp()/stem/conv"}
  %inner = f32[8,128]{1,0:S(1)} fusion(%named), kind=kLoop, calls=%fused
  %put = (f32[8,128]{1,0}, f32[8,128]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%inner)
  %away = f32[8,128]{1,0} copy-done(%put)
  %desktop = f32[8,128]{1,0} negate(%away), metadata={op_name="jit(step)/desktop/top_k/mul"}
  %fetch = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%m)
  %fetched = f32[8,128]{1,0:S(1)} copy-done(%fetch)
  %moved = f32[8,128]{1,0} add(%fetched, %desktop), metadata={op_name="jit(step)/add"}
  ROOT %out = (f32[8,128]{1,0}, f32[8,128]{1,0}) tuple(%moved, %desktop)
}
"""


@pytest.mark.parametrize(
    ("name", "unit", "direction"),
    [
        ("conv", "block1a", "forward"),
        ("named", "stem", "forward"),  # its own name before those of what was fused
        ("inner", "block2a", "backward"),  # the first name that has a unit
        ("bring", "block1a", "forward"),  # onto the chip: who reads it
        ("put", "block2a", "backward"),  # off the chip: who made it
        ("desktop", "optimizer/other", ""),
        ("fetch", "optimizer/other", ""),  # momentum of the stem is the optimizer's
        ("moved", "optimizer/other", ""),
    ],
)
def test_units_of_instructions(name, unit, direction):
    program = Program(UNITS)
    found = origin(program.module, next(m for m in program.moved if m.instruction.name == name))
    assert (found.unit, found.direction) == (unit, direction)
