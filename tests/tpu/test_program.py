# ruff: noqa: E501
"""What a compiled program moves, computes and sends: small programs written by hand, and one that the compiler made."""

import pytest

from effnet_jax.tpu.program import Program
from tests.tpu.programs import DATA

VMEM = "{1,0:T(8,128)S(1)}"
HEAD = "HloModule jit_step, is_scheduled=true, num_partitions=4\n\n"


def read(text):
    """A program from text whose lines stand as the compiler writes them."""
    return Program(HEAD + text)


def moved(program, name):
    return next(m for m in program.moved if m.instruction.name == name)


def test_only_what_lies_in_hbm_counts_as_hbm():
    program = read("""\
%fused (p0: f32[8,128], p1: f32[8,128]) -> f32[8,128] {
  %p0 = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %p1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  ROOT %add = f32[8,128]{1,0:T(8,128)} add(%p0, %p1)
}

ENTRY %main (a: f32[8,128], b: f32[8,128]) -> bf16[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)} parameter(1)
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[8,128]{1,0:T(8,128)}), f32[2,128]{1,0:T(2,128)S(1)}, s32[]{:S(2)}) slice-start(%b), slice={[0:2], [0:128]}
  %slice-done = f32[2,128]{1,0:T(2,128)S(1)} slice-done(%slice-start)
  %fusion = f32[8,128]{1,0:T(8,128)S(1)} fusion(%copy-done, %b), kind=kLoop, calls=%fused
  ROOT %out = bf16[8,128]{1,0:T(8,128)(2,1)} convert(%fusion)
}
""")
    whole = 8 * 128 * 4
    assert moved(program, "copy-start").hbm_bytes == whole  # read once, written to the chip
    assert moved(program, "slice-start").hbm_bytes == whole / 4
    assert moved(program, "fusion").hbm_bytes == whole  # `b` alone
    assert moved(program, "out").hbm_bytes == whole / 2
    assert program.totals.hbm_bytes == 2.75 * whole
    assert moved(program, "fusion").touched_bytes == 3 * whole


def test_what_a_nested_fusion_hands_on_is_read_whole():
    """A nested fusion that only reinterprets its operand looks at all of it: its users do."""
    program = read("""\
%bitcast_fusion (p0: bf16[64,32]) -> bf16[64,32] {
  ROOT %p0 = bf16[64,32]{1,0} parameter(0)
}

%bitcast_fusion.1 (p0: bf16[64,32]) -> bf16[32,64] {
  %p0 = bf16[64,32]{1,0} parameter(0)
  ROOT %bitcast = bf16[32,64]{1,0} bitcast(%p0)
}

%fused (p0: bf16[64,32], p1: bf16[64,32]) -> bf16[32,64] {
  %p0 = bf16[64,32]{1,0} parameter(0)
  %p1 = bf16[64,32]{1,0} parameter(1)
  %first = bf16[64,32]{1,0} fusion(%p0), kind=kLoop, calls=%bitcast_fusion
  %transposed = bf16[32,64]{1,0} transpose(%first), dimensions={1,0}
  %second = bf16[32,64]{1,0} fusion(%p1), kind=kLoop, calls=%bitcast_fusion.1
  ROOT %add = bf16[32,64]{1,0:S(1)} add(%transposed, %second)
}

ENTRY %main (a: bf16[64,32], b: bf16[64,32]) -> bf16[32,64] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  ROOT %fusion = bf16[32,64]{1,0:S(1)} fusion(%a, %b), kind=kLoop, calls=%fused
}
""")
    assert program.totals.hbm_bytes == 2 * 64 * 32 * 2


LOOP = """\
%inner (p0: f32[4,2,128]) -> f32[4,2,128] {
  %p0 = f32[4,2,128]{2,1,0} parameter(0)
  ROOT %same = f32[4,2,128]{2,1,0} bitcast(%p0)
}

%take (p0: f32[4,2,128], p1: s32[]) -> f32[1,2,128] {
  %p0 = f32[4,2,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %fusion.9 = f32[4,2,128]{2,1,0} fusion(%p0), kind=kLoop, calls=%inner
  ROOT %slice = f32[1,2,128]{2,1,0} dynamic-slice(%fusion.9, %p1, %zero, %zero), dynamic_slice_sizes={1,2,128}
}

%put (p0: f32[4,2,128], p1: f32[1,2,128], p2: s32[]) -> f32[4,2,128] {
  %p0 = f32[4,2,128]{2,1,0} parameter(0)
  %p1 = f32[1,2,128]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = f32[4,2,128]{2,1,0} dynamic-update-slice(%p0, %p1, %p2, %zero, %zero)
}

%body (state: (s32[], f32[4,2,128], f32[4,2,128], s32[])) -> (s32[], f32[4,2,128], f32[4,2,128], s32[]) {
  %state = (s32[], f32[4,2,128]{2,1,0}, f32[4,2,128]{2,1,0}, s32[]) parameter(0)
  %count = s32[]{:S(6)} get-tuple-element(%state), index=0
  %from = f32[4,2,128]{2,1,0} get-tuple-element(%state), index=1
  %to = f32[4,2,128]{2,1,0} get-tuple-element(%state), index=2
  %bound = s32[]{:S(6)} get-tuple-element(%state), index=3
  %step = s32[]{:S(6)} constant(STEP)
  %next = s32[]{:S(6)} add(%count, %step)
  %taken = f32[1,2,128]{2,1,0:S(1)} fusion(%from, %count), kind=kLoop, calls=%take
  %given = f32[4,2,128]{2,1,0} fusion(%to, %taken, %count), kind=kLoop, calls=%put
  ROOT %tuple = (s32[], f32[4,2,128]{2,1,0}, f32[4,2,128]{2,1,0}, s32[]) tuple(%next, %from, %given, %bound)
}

%condition (state: (s32[], f32[4,2,128], f32[4,2,128], s32[])) -> pred[] {
  %state = (s32[], f32[4,2,128]{2,1,0}, f32[4,2,128]{2,1,0}, s32[]) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %far = s32[] constant(1000)
  BOUND
  ROOT %below = pred[] compare(%count, %bound), direction=DIRECTION
}

ENTRY %main (a: f32[4,2,128], b: f32[4,2,128], n: s32[]) -> f32[4,2,128] {
  %a = f32[4,2,128]{2,1,0} parameter(0)
  %b = f32[4,2,128]{2,1,0} parameter(1)
  %n = s32[] parameter(2)
  %start = s32[]{:S(6)} constant(START)
  %limit = s32[]{:S(6)} constant(4)
  %tuple.1 = (s32[], f32[4,2,128]{2,1,0}, f32[4,2,128]{2,1,0}, s32[]) tuple(%start, %a, %b, %STATE)
  %while = (s32[], f32[4,2,128]{2,1,0}, f32[4,2,128]{2,1,0}, s32[]) while(%tuple.1), condition=%condition, body=%bodyNOTED
  ROOT %out = f32[4,2,128]{2,1,0} get-tuple-element(%while), index=2
}
"""
CONSTANT, FROM_STATE = "%bound = s32[] constant(4)", "%bound = s32[] get-tuple-element(%state), index=3"
NOTED = ', backend_config={"known_trip_count":{"n":"7"},"other":{}}'


def loop(bound=CONSTANT, start=0, step=1, direction="LT", state="limit", noted=""):
    text = LOOP.replace("BOUND", bound).replace("START", str(start)).replace("STEP", str(step))
    return read(text.replace("DIRECTION", direction).replace("STATE", state).replace("NOTED", noted))


@pytest.mark.parametrize(
    ("keys", "trips"),
    [
        ({}, 4),
        ({"bound": FROM_STATE}, 4),
        ({"start": 1}, 3),
        ({"step": 2}, 2),
        ({"start": 1, "step": 2}, 2),
        ({"direction": "LE"}, 5),
        ({"start": 9}, 0),
        ({"noted": NOTED}, 7),
        ({"bound": FROM_STATE, "state": "n", "noted": NOTED}, 7),
    ],
)
def test_a_loop_counts_its_slices_as_often_as_it_runs(keys, trips):
    program = loop(**keys)
    piece = 2 * 128 * 4
    assert program.totals.hbm_bytes == trips * 2 * piece  # one slice read, one written in place
    assert program.unknown_loops() == []
    if trips:
        assert {moved(program, name).hbm_bytes for name in ("taken", "given")} == {trips * piece}
        assert moved(program, "given").times == trips


@pytest.mark.parametrize("keys", [{"bound": FROM_STATE, "state": "n"}, {"direction": "GT"}])
def test_a_loop_that_data_ends_is_told(keys):
    program = loop(**keys)
    assert program.unknown_loops() == ["while"]
    assert program.totals.hbm_bytes == 2 * 2 * 128 * 4


def test_bytes_accessed_of_a_loop_are_xlas_times_its_repetitions():
    assert loop().bytes_accessed(1000.0) == pytest.approx(4000.0)
    assert read(COLLECTIVES).bytes_accessed(1000.0) == 1000.0


def test_of_a_conditional_the_dearer_branch_counts():
    program = read("""\
%cheap (p0: f32[8,128]) -> f32[8,128] {
  ROOT %p0 = f32[8,128]{1,0} parameter(0)
}

%dear (p0: f32[8,128]) -> f32[8,128] {
  %p0 = f32[8,128]{1,0} parameter(0)
  ROOT %negate = f32[8,128]{1,0} negate(%p0)
}

ENTRY %main (c: s32[], a: f32[8,128]) -> f32[8,128] {
  %c = s32[] parameter(0)
  %a = f32[8,128]{1,0} parameter(1)
  ROOT %out = f32[8,128]{1,0} conditional(%c, %a, %a, %a), branch_computations={%cheap, %dear, %cheap}
}
""")
    assert program.totals.hbm_bytes == 2 * 8 * 128 * 4


COLLECTIVES = """\
%scatter (input: f32[64,32]) -> f32[16,32] {
  %input = f32[64,32]{1,0:S(1)} parameter(0)
  %all-reduce.7 = f32[64,32]{1,0} all-reduce(%input), channel_id=8, replica_groups={{0,1},{2,3}}, to_apply=%add
  %index = s32[] constant(0)
  ROOT %mine = f32[16,32]{1,0:S(1)} dynamic-slice(%all-reduce.7, %index, %index), dynamic_slice_sizes={16,32}
}

%start (p0: f32[16,32]) -> (f32[16,32], f32[64,32], u32[]) {
  %p0 = f32[16,32]{1,0} parameter(0)
  %all-gather.1 = f32[64,32]{1,0} all-gather(%p0), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %call = (f32[16,32]{1,0}, f32[64,32]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p0: f32[16,32], p1: f32[64,32], p2: u32[], p3: f32[16,32]) -> (f32[16,32], f32[16,32], f32[64,32], f32[64,32], u32[]) {
  %p0 = f32[16,32]{1,0} parameter(0)
  %p1 = f32[64,32]{1,0} parameter(1)
  %p2 = u32[]{:S(2)} parameter(2)
  %p3 = f32[16,32]{1,0:S(1)} parameter(3)
  %work = f32[16,32]{1,0:S(1)} negate(%p3)
  %all-gather.2 = f32[64,32]{1,0} all-gather(%p0), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %tuple = (f32[16,32]{1,0:S(1)}, f32[16,32]{1,0}, f32[64,32]{1,0}, f32[64,32]{1,0}, u32[]{:S(2)}) tuple(%work, %p0, %p1, %all-gather.2, %p2)
}

%done (p0: f32[16,32], p1: f32[64,32], p2: u32[]) -> f32[64,32] {
  %p0 = f32[16,32]{1,0} parameter(0)
  %p1 = f32[64,32]{1,0} parameter(1)
  %p2 = u32[]{:S(2)} parameter(2)
  %all-gather.3 = f32[64,32]{1,0} all-gather(%p0), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %call = f32[64,32]{1,0} custom-call(%all-gather.3, %p1, %p2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: f32[64,32], b: f32[16,32]) -> f32[64,32] {
  %a = f32[64,32]{1,0:S(1)} parameter(0)
  %b = f32[16,32]{1,0} parameter(1)
  %reduced = f32[64,32]{1,0:S(1)} all-reduce(%a), channel_id=1, replica_groups=mesh['x'=2,'y'=2] {'x','y'}, to_apply=%add
  %pairs = f32[64,32]{1,0:S(1)} all-reduce(%reduced), channel_id=1, replica_groups=mesh['x'=2,'y'=2] {'y'}, to_apply=%add
  %share = f32[16,32]{1,0:S(1)} fusion(%pairs), kind=kCustom, calls=%scatter
  %passed = f32[16,32]{1,0:S(1)} collective-permute(%share), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %begun = (f32[16,32]{1,0}, f32[64,32]{1,0}, u32[]{:S(2)}) fusion(%b), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%start
  %e0 = f32[16,32]{1,0} get-tuple-element(%begun), index=0
  %e1 = f32[64,32]{1,0} get-tuple-element(%begun), index=1
  %e2 = u32[]{:S(2)} get-tuple-element(%begun), index=2
  %busy = (f32[16,32]{1,0:S(1)}, f32[16,32]{1,0}, f32[64,32]{1,0}, f32[64,32]{1,0}, u32[]{:S(2)}) fusion(%e0, %e1, %e2, %passed), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (1, {}), {4}: (2, {})}, calls=%meanwhile
  %f0 = f32[16,32]{1,0} get-tuple-element(%busy), index=1
  %f1 = f32[64,32]{1,0} get-tuple-element(%busy), index=2
  %f2 = u32[]{:S(2)} get-tuple-element(%busy), index=4
  ROOT %gathered = f32[64,32]{1,0} fusion(%f0, %f1, %f2), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%done
}
"""


def test_collectives_by_their_groups():
    program = read(COLLECTIVES)
    whole = 64 * 32 * 4
    sent = {m.instruction.name: (m.collectives, m.collective_bytes, m.sent_bytes) for m in program.moved}
    assert sent["reduced"] == (1, whole, 2 * whole * 3 // 4)
    assert sent["pairs"] == (1, whole, whole)  # two by two
    assert sent["share"] == (1, whole, whole // 2)  # a reduce-scatter of two
    assert sent["passed"] == (1, whole // 4, whole // 4)
    assert program.totals.collectives == 5


def test_a_collective_spread_over_fusions_counts_once():
    program = read(COLLECTIVES)
    whole = 64 * 32 * 4
    begun, busy, done = (moved(program, name) for name in ("begun", "busy", "gathered"))
    assert (begun.collectives, begun.collective_bytes, begun.sent_bytes) == (1, whole, whole * 3 // 4)
    assert busy.collectives == done.collectives == 0
    assert busy.hbm_bytes == 0  # what it computes is on the chip
    assert begun.hbm_bytes + done.hbm_bytes == whole + whole // 4  # written, and its share read


def test_the_older_form_of_asynchronous_collectives():
    program = read("""\
ENTRY %main (b: f32[16,32]) -> f32[64,32] {
  %b = f32[16,32]{1,0} parameter(0)
  %all-gather-start = (f32[16,32]{1,0}, f32[64,32]{1,0}) all-gather-start(%b), channel_id=9, replica_groups={}, dimensions={0}
  ROOT %all-gather-done = f32[64,32]{1,0} all-gather-done(%all-gather-start)
}
""")
    whole = 64 * 32 * 4
    assert program.totals.hbm_bytes == whole + whole // 4
    assert (program.totals.collectives, program.totals.sent_bytes) == (1, whole * 3 // 4)


def test_exchanges_with_the_host():
    program = read("""\
ENTRY %main (a: f32[8,128], h: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %h = f32[8,128]{1,0:S(5)} parameter(1)
  %token = token[] after-all()
  %send = (f32[8,128]{1,0}, u32[], token[]) send(%a, %token), channel_id=1, is_host_transfer=true
  %send-done = token[] send-done(%send), channel_id=1
  %to_chip = (f32[8,128]{1,0}, u32[], token[]) send(%a, %token), channel_id=2
  %from_host = (f32[8,128]{1,0}, f32[8,128]{1,0:S(5)}, u32[]{:S(2)}) copy-start(%h)
  %b = f32[8,128]{1,0} copy-done(%from_host)
  %called = f32[8,128]{1,0} custom-call(%b), custom_call_target="xla_ffi_python_cpu_callback"
  ROOT %kernel = f32[8,128]{1,0} custom-call(%called), custom_call_target="tpu_custom_call"
}
""")
    assert [m.instruction.name for m in program.host_transfers()] == ["send", "from_host", "called"]
    assert moved(program, "from_host").hbm_bytes == 8 * 128 * 4  # the host's memory is not the chip's


def test_a_program_of_the_compiler():
    """Four microbatches of a convolution's gradient on four chips, as `tests/tpu/programs.py` made it for v5e:2x2."""
    program = Program((DATA / "microbatches.hlo").read_text())
    kernel, images = 3 * 3 * 8 * 128 * 4, 32 * 32 * 32 * 8
    # The images once, the kernel twice (to convert and to update it), the result; and some counters.
    assert program.totals.hbm_bytes == pytest.approx(images + 3 * kernel, abs=256)
    positions = 94 * 94  # of 96: the first and the last row of taps meet padding once
    assert program.totals.flops == 2 * 32 * 8 * 128 * positions * 2  # forward, and the kernel's gradient
    assert (program.totals.collectives, program.totals.collective_bytes) == (1, kernel)
    assert program.totals.sent_bytes == kernel * 3 // 2
    assert program.devices == 4
    assert program.host_transfers() == program.unknown_loops() == []
    # XLA counts the body once: 8.6 MB. With the loop unrolled it says 32.9 MB.
    assert program.bytes_accessed(8_619_008.0) == pytest.approx(32.9e6, rel=0.05)
