//! `reflash`: PID 1 of the recovery initramfs, and the same verbs by hand.

fn main() {}
