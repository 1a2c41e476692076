//! Fuzz targets of reflash: `cargo xtask fuzz` builds and runs them.
//!
//! One program has all targets, so that it is linked once. With the feature `libfuzzer` it is libFuzzer's, and the
//! variable `REFLASH_FUZZ_TARGET` chooses the target. Without it, the program needs no instrumentation and no C++: it
//! feeds each target the kept inputs, and then inputs made of them by chance ([`blind`]), for so many seconds. That is
//! the short run of CI, where an instrumented build would take longer than the run.
//!
//! `seeds/TARGET` has small inputs to begin with, `regressions/TARGET` those that once found something.

#![cfg_attr(feature = "libfuzzer", no_main)]

#[cfg(not(feature = "libfuzzer"))]
mod blind;
mod raw_index;
mod targets;

#[cfg(feature = "libfuzzer")]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static TARGET: std::sync::OnceLock<targets::Target> = std::sync::OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("REFLASH_FUZZ_TARGET").expect("REFLASH_FUZZ_TARGET names the target");
        targets::by_name(&name).expect("there is a target of this name")
    });
    (target.run)(data);
});

#[cfg(not(feature = "libfuzzer"))]
fn main() -> std::process::ExitCode {
    blind::main()
}
