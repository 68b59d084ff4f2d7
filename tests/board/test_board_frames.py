"""PYNQ's own library, the unmodified driver and the verilated engine: whole frames, tasks in turn, equal to golden."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

pynq = pytest.importorskip("pynq", reason="pynq is not installed; see `make test-pynq`")

from board_programs import CI, one_layer, runs_correctly  # noqa: E402

from accel import pack  # noqa: E402
from accel.compiler import RecordedFrame, compile_replay  # noqa: E402
from accel.errors import DeviceError  # noqa: E402
from accel.golden import GoldenEngine, run_frame  # noqa: E402
from host.backends import open_device  # noqa: E402
from host.backends.board_ip import EngineIP  # noqa: E402
from host.driver import Driver  # noqa: E402
from host.overlay import ENGINE_VLNV  # noqa: E402
from host.queued import ProgramQueue  # noqa: E402
from host.runner import EncoderRunner  # noqa: E402

TASKS = ("semseg", "depth")


def golden(bundle, frames, tasks):
    engine = GoldenEngine(bundle.encoder)
    pairs = zip(frames, tasks, strict=True)
    return [run_frame(bundle.encoder, frame, task, engine, record=True) for frame, task in pairs]


def test_tasks_alternate_over_frames(rtl_board, bundle, frames):
    assert len(frames) >= 4
    jobs = [(frame, task) for frame in frames for task in TASKS]
    expected = golden(bundle, *zip(*jobs, strict=True))
    with rtl_board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        assert isinstance(device.engine, EngineIP) and device.interrupts and device.simulated
        runner = EncoderRunner(loaded, routing=True)
        for (frame, task), wanted in zip(jobs, expected, strict=True):
            found = runner.run(frame, [task], record=True)[0]
            assert set(found.trace) == set(wanted.trace)
            for name, values in wanted.trace.items():
                assert (found.trace[name] == values).all(), (task, name)
        result = runner.replay(
            [RecordedFrame(task, frame, wanted.trace) for (frame, task), wanted in zip(jobs, expected, strict=True)]
        )
    assert result.compared > 10_000 and result.mismatches == 0
    assert len(result.record.jobs) == len(jobs)
    assert rtl_board.allocated == 0


def test_switching_tasks_takes_no_cycle(rtl_board, twins, frames):
    """Jobs A A A A … against A B A B …, where B has gates of its own at other addresses, but equal queues."""
    image = frames[0]
    results = {item.task: item for item in golden(twins, [image] * 2, TASKS)}
    orders = {"same": ["semseg"] * 4, "alternating": list(TASKS) * 2}
    records = {}
    with rtl_board.open() as device, Driver(device) as driver, driver.load(twins) as loaded:
        runner = EncoderRunner(loaded)
        for name, order in orders.items():
            outcome = runner.replay([RecordedFrame(task, image, results[task].trace) for task in order])
            assert outcome.mismatches == 0
            records[name] = outcome.record
    assert records["same"].counters["cycles"] > 0
    assert records["alternating"].counters == records["same"].counters
    names = ("cycles", "boundary_idle", "bytes_ahead", "layer_idle", "array_cycles", "queue_crc")
    jobs = {name: [[job[item] for item in names] for job in record.jobs] for name, record in records.items()}
    assert jobs["alternating"] == jobs["same"]


@pytest.mark.parametrize("engine", list(ENGINE_VLNV))
def test_both_implementations_are_found_by_their_identity(make_board, bundle, engine):
    board = make_board(engine=engine)
    with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        assert device.overlay.ip_dict["engine"]["type"] == ENGINE_VLNV[engine]
        assert isinstance(device.engine, EngineIP)
        assert runs_correctly(loaded)


def test_without_an_interrupt_the_registers_are_polled(make_board, bundle):
    board = make_board(interrupts=False)
    with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        assert device.engine.line is None and not device.interrupts
        assert runs_correctly(loaded)


def test_the_interrupt_wakes_the_driver(board, bundle, monkeypatch):
    """Without it every run would take a whole period of the driver's own looking."""
    monkeypatch.setattr("host.driver.POLL_SECONDS", 5.0)
    with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        program, right = one_layer(loaded)
        for _ in range(5):
            loaded.run(program, timeout=4.0)
        assert right()


def test_inside_a_running_event_loop(board, bundle):
    """As in a notebook, whose cells run inside one."""

    async def cell() -> bool:
        with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
            return runs_correctly(loaded)

    assert asyncio.run(cell())


def test_open_by_name(board, bundle, monkeypatch):
    monkeypatch.setenv("M3VIT_OVERLAY", str(board.bit))
    config = bundle.config
    lock = board.bit.with_suffix(".lock")
    with open_device("board", config.hardware, config.formats, lock=lock) as device, Driver(device) as driver:
        assert driver.identify().engine_hash == config.engine_hash


def test_several_bundles_resident_and_open_again(board, bundle, twins):
    for _ in range(2):
        with board.open() as device, Driver(device) as driver:
            with driver.load(bundle) as one, driver.load(twins) as other:
                assert board.allocated == 2
                for _ in range(2):
                    assert runs_correctly(one) and runs_correctly(other)
        assert board.allocated == 0


def test_pynq_knows_the_registers(board):
    from accel.registers import REGISTERS

    with board.open() as device:
        found = device.overlay.ip_dict["engine"]["registers"]
    assert {name: item["address_offset"] for name, item in found.items()} == {r.name: r.offset for r in REGISTERS}


@pytest.mark.parametrize("left_out", ["flush", "invalidate"])
def test_a_missing_flush_or_invalidate_would_show(board, bundle, monkeypatch, left_out):
    """The simulated cache is worth something: without either, old data is seen by one side or the other."""
    with board.open() as device, Driver(device) as driver, driver.load(bundle) as loaded:
        assert runs_correctly(loaded)
        monkeypatch.setattr(f"host.backends.board.BoardBuffer.{left_out}", lambda *_: None)
        program, right = one_layer(loaded, seed=1)
        try:
            loaded.run(program, timeout=1.0)
            wrong = not right()
        except DeviceError as error:
            wrong = "no engine wrote here" in str(error)
        assert wrong


def test_frames_and_tasks_flow_through_a_queue(rtl_board, bundle, frames):
    """Two threads, a task and a resident copy of the bundle each, over all frames: the engine has always work."""
    expected = {task: golden(bundle, frames, [task] * len(frames)) for task in TASKS}
    with rtl_board.open() as device, Driver(device) as driver:
        with driver.load(bundle) as one, driver.load(bundle) as other, ProgramQueue(driver) as queue:

            def stream(loaded, task):
                runner = EncoderRunner(queue.attach(loaded))
                return [runner.run(frame, [task])[0] for frame in frames]

            with ThreadPoolExecutor(2) as pool:
                pairs = zip((one, other), TASKS, strict=True)
                streams = {task: pool.submit(stream, loaded, task) for loaded, task in pairs}
            for task, stream_of_task in streams.items():
                for found, wanted in zip(stream_of_task.result(), expected[task], strict=True):
                    assert (found.residual == wanted.residual).all()


def test_chains_of_jobs_submitted_ahead(rtl_board, bundle, twins, frames):
    """Chains of two bundles, tasks and frames in turn within each, all submitted before the first has ended."""
    tasks = [TASKS[index % 2] for index in range(len(frames))]
    with ExitStack() as stack:
        device = stack.enter_context(rtl_board.open())
        driver = stack.enter_context(Driver(device))
        chains = []
        for model in (bundle, twins):
            recorded = [
                RecordedFrame(task, frame, result.trace)
                for task, frame, result in zip(tasks, frames, golden(model, frames, tasks), strict=True)
            ]
            program = compile_replay(model, recorded)
            loaded = stack.enter_context(driver.load(model, program.arena))
            for offset, data in program.placements:
                loaded.write(offset, data)
            chains.append((loaded, program))
        queue = stack.enter_context(ProgramQueue(driver))
        submitted = [queue.submit(loaded, program) for loaded, program in chains * 3]
        assert not submitted[-1].done
        for submission in submitted:
            record = submission.wait(60)
            assert len(record.jobs) == len(frames)
        for loaded, program in chains:
            for item in program.expected:
                tokens, width = item.values.shape
                size = pack.token_bytes(tokens, width, item.values.dtype.itemsize, CI)
                found = pack.unpack_tokens(loaded.read(item.offset, size), tokens, width, item.values.dtype.type, CI)
                assert (found == item.values).all()
