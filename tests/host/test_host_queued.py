"""Programs submitted ahead run in order, without anybody waiting, and one that fails does not take others with it."""

from __future__ import annotations

import threading
import time

import pytest
from test_host_driver import changed, qkv_program

from accel.config import Formats, hardware
from accel.errors import DeviceError, DeviceTimeout
from accel.golden import GoldenEngine, run_frame
from host.backends.golden import Faults, GoldenDevice
from host.driver import Driver
from host.queued import ProgramQueue, Submission
from host.runner import EncoderRunner

CI = hardware("ci")


@pytest.fixture
def device():
    with GoldenDevice(CI, Formats()) as opened:
        yield opened


@pytest.fixture
def driver(device):
    with Driver(device) as opened:
        yield opened


@pytest.fixture
def resets(device, monkeypatch):
    """Resets of the device so far, one entry each."""
    found, reset = [], device.reset

    def counted():
        found.append(threading.current_thread().name)
        reset()

    monkeypatch.setattr(device, "reset", counted)
    return found


def test_submitting_does_not_wait_and_keeps_the_order(device, driver, bundle, other_bundle):
    with driver.load(bundle) as one, driver.load(other_bundle) as other, ProgramQueue(driver) as queue:
        work = [qkv_program(loaded) for loaded in (one, other)]
        driver.identify()
        device.faults.delay = 0.5
        turns = [(one, work[0][0]), (other, work[1][0])] * 3
        submitted = [queue.submit(loaded, program) for loaded, program in turns]
        assert len(queue) >= 4 and not any(item.done for item in submitted)
        device.faults.delay = 0.01
        ends = []
        for submission in submitted:
            submission.wait(10)
            ends.append([item.done for item in submitted].count(True))
        assert ends == sorted(ends) and all(item.done for item in submitted)
        for _, expected, output in work:
            assert (output() == expected).all()


def test_two_threads_share_the_engine(driver, bundle, image):
    tasks = ("semseg", "depth")
    expected = {task: run_frame(bundle.encoder, image, task, GoldenEngine(bundle.encoder)) for task in tasks}
    found = {}
    with driver.load(bundle) as one, driver.load(bundle) as other, ProgramQueue(driver) as queue:

        def stream(loaded, task):
            runner = EncoderRunner(queue.attach(loaded))
            found[task] = [runner.run(image, [task])[0] for _ in range(3)]

        threads = [threading.Thread(target=stream, args=pair) for pair in zip((one, other), tasks, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for task in tasks:
        assert len(found[task]) == 3
        for result in found[task]:
            assert (result.residual == expected[task].residual).all()


def test_a_failure_belongs_to_its_program(device, driver, bundle, resets):
    with driver.load(bundle) as loaded, ProgramQueue(driver) as queue:
        program, expected, output = qkv_program(loaded)
        bad = queue.submit(loaded, changed(program, input=3))
        good = queue.submit(loaded, program)
        with pytest.raises(DeviceError, match="not aligned to a stripe"):
            bad.wait(10)
        assert good.wait(10).jobs and (output() == expected).all()
        assert not resets, "nothing was started that would need one"
        device.faults = Faults(hangs=1)
        hung, good = queue.submit(loaded, program, timeout=0.05), queue.submit(loaded, program)
        with pytest.raises(DeviceTimeout, match="expected its end within 0.05 s"):
            hung.wait(10)
        assert good.wait(10).jobs and (output() == expected).all()
        assert len(resets) == 1


def test_waiting_has_a_time_of_its_own(device, driver, bundle):
    with driver.load(bundle) as loaded, ProgramQueue(driver) as queue:
        program, _, _ = qkv_program(loaded)
        device.faults.delay = 0.1
        submission = queue.submit(loaded, program)
        with pytest.raises(DeviceTimeout, match="within 0.01 s, found it waiting or running"):
            submission.wait(0.01)
        assert submission.wait(10).jobs


def test_closing_drops_what_has_not_started(device, driver, bundle):
    with driver.load(bundle) as loaded:
        program, expected, output = qkv_program(loaded)
        device.faults.delay = 0.1
        queue = ProgramQueue(driver)
        submitted = [queue.submit(loaded, program) for _ in range(3)]
        while len(queue) == 3:
            time.sleep(0.001)
        attached = queue.attach(loaded)
        queue.close()
        queue.close()
        assert submitted[0].wait(0).jobs
        for dropped in submitted[1:]:
            with pytest.raises(DeviceError, match="closed before the program's turn"):
                dropped.wait(0)
        for late in (lambda: queue.submit(loaded, program), lambda: attached.run(program)):
            with pytest.raises(DeviceError, match="found a closed one"):
                late()
        attached.close()
        assert loaded.run(program).jobs and (output() == expected).all(), "the driver is free again"


def test_placed_while_another_runs(device, driver, bundle, other_bundle, monkeypatch):
    """Of a program in other memory only the launch is left when its turn comes; in the same memory, everything."""
    placed = []
    place = Driver.place

    def noticed(self, program, memory):
        placed.append((threading.current_thread().name, memory))
        return place(self, program, memory)

    monkeypatch.setattr(Driver, "place", noticed)
    with driver.load(bundle) as one, driver.load(other_bundle) as other, ProgramQueue(driver) as queue:
        work = {id(loaded): qkv_program(loaded) for loaded in (one, other)}
        driver.identify()
        placed.clear()
        device.faults.delay = 0.2
        here, there = threading.current_thread().name, "program queue"
        submitted = [queue.submit(loaded, work[id(loaded)][0]) for loaded in (one, other, one)]
        assert not any(item.done for item in submitted)
        assert placed == [(here, one.memory), (here, other.memory)], "the third waits for the first one's memory"
        for item in submitted:
            assert item.wait(10).jobs
        assert placed[2:] == [(there, one.memory)]
        for _, expected, output in work.values():
            assert (output() == expected).all()


def test_memory_closed_before_its_turn(device, driver, bundle, other_bundle, resets):
    with driver.load(bundle) as one, ProgramQueue(driver) as queue:
        other = driver.load(other_bundle)
        programs = [qkv_program(loaded)[0] for loaded in (one, other)]
        device.faults.delay = 0.2
        first, second = (queue.submit(*pair) for pair in zip((one, other), programs, strict=True))
        other.close()
        assert first.wait(10).jobs
        with pytest.raises(DeviceError, match="expected a loaded bundle, found a closed one"):
            second.wait(10)
        assert queue.submit(one, programs[0]).wait(10).jobs
        assert not resets


@pytest.mark.parametrize("part", ["before placing", "while placing"])
def test_an_interrupted_caller(driver, bundle, other_bundle, monkeypatch, part):
    """Ctrl-C in submit(): the program does not run, the queue goes on, and closing it does not hang."""
    with driver.load(bundle) as one, driver.load(other_bundle) as other:
        queue = ProgramQueue(driver)
        program, expected, output = qkv_program(one)
        interrupted = qkv_program(other)[0]
        launched, launch = [], Driver.launch
        monkeypatch.setattr(Driver, "launch", lambda *two: launched.append(two[1].memory) or launch(*two))

        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(*((Submission, "_place") if part == "before placing" else (Driver, "place")), interrupt)
            queue.submit(other, interrupted)
        assert queue.submit(one, program).wait(10).jobs and (output() == expected).all()
        assert launched == [one.memory]
        closing = threading.Thread(target=queue.close, daemon=True)
        closing.start()
        closing.join(10)
        assert not closing.is_alive()


def test_closing_waits_for_what_is_being_placed(device, driver, bundle, other_bundle, monkeypatch):
    """When close() has returned, no thread writes to the memory of a program that it dropped."""
    with driver.load(bundle) as one, driver.load(other_bundle) as other:
        programs = {id(loaded): qkv_program(loaded)[0] for loaded in (one, other)}
        driver.identify()
        placing, may_place, place = threading.Event(), threading.Event(), Driver.place

        def slowly(self, program, memory):
            if memory is other.memory:
                placing.set()
                assert may_place.wait(10)
            return place(self, program, memory)

        monkeypatch.setattr(Driver, "place", slowly)
        device.faults.delay = 0.2
        queue, submitted = ProgramQueue(driver), []
        first = queue.submit(one, programs[id(one)])
        caller = threading.Thread(target=lambda: submitted.append(queue.submit(other, programs[id(other)])))
        caller.start()
        assert placing.wait(10) and len(queue) == 1
        closing = threading.Thread(target=queue.close, daemon=True)
        closing.start()
        assert first.wait(10).jobs
        closing.join(0.1)
        assert closing.is_alive()
        may_place.set()
        for thread in (closing, caller):
            thread.join(10)
            assert not thread.is_alive()
        with pytest.raises(DeviceError, match="closed before the program's turn"):
            submitted[0].wait(0)
