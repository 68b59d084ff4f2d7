"""What the golden back end must do and every other one too: tests to collect again beside other ``device`` fixtures."""

from __future__ import annotations

from collections.abc import Callable

import test_host_driver
import test_host_registers

_CHOSEN = (
    (test_host_driver, (
        "test_identify", "test_bits_and_counters", "test_output_is_fresh_every_time",
        "test_errors_in_the_record_are_decoded", "test_program_without_end", "test_missing_job_entry_is_noticed",
        "test_two_bundles_resident", "test_double_close_and_use_after_close", "test_driver_closes_what_it_loaded",
        "test_sizes_are_checked_before_any_register",
    )),
    (test_host_registers, (
        "test_arguments_hold_what_is_written", "test_unmapped_addresses", "test_addresses_that_no_bus_carries",
        "test_value_wider_than_the_bus", "test_start_clears_itself_done_and_ready_clear_on_read",
        "test_auto_restart_runs_until_cleared", "test_interrupt_needs_both_enables_and_isr_toggles",
    )),
)  # fmt: skip

TESTS: dict[str, Callable[..., None]] = {name: getattr(module, name) for module, names in _CHOSEN for name in names}
