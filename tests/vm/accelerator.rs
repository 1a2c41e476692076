//! The probe that decides whether virtual machines use KVM.

use std::time::{Duration, Instant};

use xtask::vm::{Accelerator, PROBE_CODE};

/// Far more than emulation needs for a boot sector on a busy machine.
const LONG: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn the_probe_believes_a_guest_that_runs() {
    Accelerator::Emulation.probe(PROBE_CODE, LONG).unwrap();
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn the_probe_gives_up_a_guest_that_hangs_at_its_deadline() {
    let started = Instant::now();
    // cli, hlt: the processor stops for good.
    let error = Accelerator::Emulation.probe(&[0xfa, 0xf4], Duration::from_secs(1)).unwrap_err();
    assert!(error.to_string().contains("did not run within 1 s"), "{error:#}");
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn the_probe_does_not_take_another_end_of_qemu_for_a_guest_that_runs() {
    // mov al, 0x11; out 0xf4, al: the guest ends QEMU with another status.
    let error = Accelerator::Emulation.probe(&[0xb0, 0x11, 0xe6, 0xf4], LONG).unwrap_err();
    assert!(error.to_string().contains("QEMU ended with exit status: 35"), "{error:#}");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn the_accelerator_that_was_chosen_runs_guests() {
    Accelerator::of_this_machine().probe(PROBE_CODE, LONG).unwrap();
}
