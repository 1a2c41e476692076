//! Rules about the source itself that no lint knows.

use std::path::{Path, PathBuf};

/// Modules of the agent from the story down to the syscalls: a module may use those behind it, never those before.
const LAYERS: &[&str] = &[
    "main",
    "verbs",
    "agent",
    "sysroot",
    "cli",
    "watchdog",
    "provision",
    "recovery",
    "reset",
    "boot",
    "verify",
    "write",
    "readback",
    "report",
    "state",
    "blackbox",
    "bootenv",
    "fetch",
    "clock",
    "target",
    "journal",
    "plan",
    "patches",
    "hints",
    "slots",
    "manifest",
    "index",
    "layout",
    "arbiter",
    "grubenv",
    "hostname",
    "bootcode",
    "efi",
    "progress",
    "digest",
    "sys", // Pure data that even the system calls take their settings from.
    "chain",
    "placeholder",
    "config",
    "media",
    "filesystem",
];

/// No I/O in these, so that they are tested without root and shared with the builder.
const PURE: &[&str] = &[
    "cli",
    "config",
    "filesystem",
    "plan",
    "patches",
    "hints",
    "slots",
    "manifest",
    "index",
    "layout",
    "arbiter",
    "grubenv",
    "hostname",
    "bootcode",
    "efi",
    "progress",
    "digest",
    "clock",
    "placeholder",
    "media",
];

/// Lines of a file without its tests. A file beyond holds two stories.
const MAX_LINES: usize = 420;

fn root() -> PathBuf {
    xtask::paths::Paths::of_checkout().root
}

fn sources(below: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(below).sort_by_file_name().into_iter().map(|entry| entry.unwrap().into_path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The code of a file up to its tests, without comments.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// `fetch` for `src/fetch.rs` and everything in `src/fetch/`.
fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn dependencies_point_down() {
    for path in sources(&root().join("src")) {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let own = LAYERS.iter().position(|layer| *layer == module).unwrap_or_else(|| panic!("{module} has no layer"));
        for above in &LAYERS[..own] {
            let used = code(&path).contains(&format!("crate::{above}::"));
            assert!(!used, "{} uses crate::{above}, which is above {module}", path.display());
        }
    }
}

#[test]
fn pure_modules_do_no_io() {
    for path in sources(&root().join("src")) {
        if !PURE.contains(&module_of(&path).as_str()) {
            continue;
        }
        for io in ["std::fs", "std::process", "std::net::Tcp", "crate::sys", "Instant::now", "SystemTime::now"] {
            assert!(!code(&path).contains(io), "{} uses {io}", path.display());
        }
    }
}

#[test]
fn syscalls_and_unsafe_live_in_sys() {
    for path in sources(&root().join("src")) {
        if module_of(&path) == "sys" {
            continue;
        }
        for only_there in ["unsafe {", "unsafe fn", " nix::", "(nix::", "rustix::", "libc::"] {
            assert!(!code(&path).contains(only_there), "{} uses {only_there}", path.display());
        }
    }
    for path in sources(&root().join("xtask/src")) {
        assert!(!code(&path).contains("reflash::sys"), "{} uses reflash::sys", path.display());
    }
}

#[test]
fn files_are_of_readable_size() {
    for folder in ["src", "xtask/src"] {
        for path in sources(&root().join(folder)) {
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().lines().count();
            assert!(lines <= MAX_LINES, "{} has {lines} lines without tests", path.display());
        }
    }
}

#[test]
fn the_top_level_holds_what_it_should() {
    let output = std::process::Command::new("git").arg("ls-files").current_dir(root()).output().unwrap();
    let files = String::from_utf8(output.stdout).unwrap();
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "rustfmt.toml",
        "clippy.toml",
        "src",
        "initramfs",
        "grub",
        "xtask",
        "tests",
        "docs",
    ];
    for file in files.lines() {
        let first = file.split('/').next().unwrap_or_default();
        assert!(first.starts_with('.') || allowed.contains(&first), "{file}");
    }
}
