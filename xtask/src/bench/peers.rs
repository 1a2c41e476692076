//! What others offer for the same work, each used as its documentation says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::step::{run, step};

/// A peer: how to ask for its version, what it is good for, and how to get it.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub name: &'static str,
    /// Program that must be there.
    program: &'static str,
    version: &'static str,
    /// How to install it.
    pub hint: &'static str,
    /// Makes use of what is on the device.
    pub updates: bool,
}

const APT: &str = "apt-get install zstd curl bmap-tools casync zsync swupdate cpio";

/// All of them, the yardstick first.
pub const PEERS: [Peer; 7] = [
    Peer { name: YARDSTICK, program: "zstd", version: "zstd --version", hint: APT, updates: false },
    Peer { name: "bmaptool", program: "bmaptool", version: "bmaptool --version", hint: APT, updates: false },
    Peer { name: "swupdate", program: "swupdate", version: "swupdate --version", hint: APT, updates: false },
    Peer {
        name: "coreos-installer",
        program: "coreos-installer",
        version: "coreos-installer --version",
        hint: "cargo install coreos-installer --root target/work/bench/tools",
        updates: false,
    },
    Peer { name: "casync", program: "casync", version: "casync --version", hint: APT, updates: true },
    Peer { name: "zsync", program: "zsync", version: "zsync -V", hint: APT, updates: true },
    Peer {
        name: "bita",
        program: "bita",
        version: "bita --version",
        hint: "cargo install bita --root target/work/bench/tools",
        updates: true,
    },
];

/// What everything is compared with.
pub const YARDSTICK: &str = "curl|zstd|dd";

impl Peer {
    /// The first line of what it says about its version; `None` when it is not installed.
    pub fn version(&self, path: &str) -> Option<String> {
        let shell = |script: &str| Command::new("sh").args(["-c", script]).env("PATH", path).output().ok();
        let found = shell(&format!("command -v {}", self.program))?;
        if !found.status.success() {
            return None;
        }
        let told = shell(self.version)?;
        let text = [told.stdout, told.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        Some(text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()))?.trim().to_owned())
    }

    /// Makes what it serves for an image, below `root`, once.
    pub fn prepare(&self, image: &Path, name: &str, root: &Path, link: &Path, path: &str) -> Result<()> {
        let done = root.join(format!("{name}.{}.done", self.program));
        if done.exists() {
            return Ok(());
        }
        let image = image.display();
        let script = match self.name {
            YARDSTICK => format!("zstd -q -f -3 -T0 {image} -o {name}.zst"),
            // zstd is not among what Debian 12's bmaptool unpacks.
            "bmaptool" => format!("bmaptool create -o {name}.bmap {image} && gzip -c -3 {image} > {name}.gz"),
            "swupdate" => swu(&image.to_string(), name, link),
            "coreos-installer" => format!("gzip -c -3 {image} > {name}.gz"),
            "casync" => format!("casync make --store={name}.castr {name}.caibx {image}"),
            "zsync" => format!(
                "ln -f {image} {name}.raw || cp {image} {name}.raw; zsyncmake -u {name}.raw -o {name}.zsync {name}.raw"
            ),
            "bita" => format!("bita compress --force-create -i {image} {name}.cba"),
            _ => return Ok(()),
        };
        step(&format!("{} of {name}", self.name), || {
            run("prepare-peer", Command::new("sh").args(["-ec", &script]).current_dir(root).env("PATH", path))
        })?;
        fs::write(&done, "").with_context(|| format!("write {}", done.display()))
    }

    /// The command that brings the image `name` from `url` to `device`; with `seed`, making use of what is on it.
    pub fn command(&self, url: &str, name: &str, device: &str, seed: bool, memory: &Path, root: &Path) -> String {
        let (memory, root) = (memory.display(), root.display());
        match self.name {
            "bmaptool" => {
                format!("curl -sf {url}/{name}.gz | gzip -dc | bmaptool copy --bmap {root}/{name}.bmap - {device}")
            }
            "swupdate" => format!("ln -sfn {device} {memory}/target; swupdate -d '-u {url}/{name}.swu'"),
            "coreos-installer" => {
                format!("coreos-installer install --insecure --image-url {url}/{name}.gz --preserve-on-error {device}")
            }
            // The output is a seed by itself.
            "casync" => format!(
                "casync extract --seed-output={} --store={url}/{name}.castr {url}/{name}.caibx {device}",
                if seed { "yes" } else { "no" }
            ),
            // It only writes files.
            "zsync" => {
                let from = if seed { format!("-i {device}") } else { String::new() };
                format!(
                    "cd {memory}; zsync -q {from} -o result {url}/{name}.zsync; \
                     dd if=result of={device} bs=4M oflag=direct status=none; rm result"
                )
            }
            "bita" => {
                let from = if seed { "--seed-output" } else { "--force-create" };
                format!("bita clone {from} {url}/{name}.cba {device}")
            }
            _ => format!(
                "curl -sf {url}/{name}.zst | zstd -dcq | dd of={device} bs=4M iflag=fullblock oflag=direct status=none"
            ),
        }
    }
}

/// An update file whose one image is streamed to the device behind `link`.
fn swu(image: &str, name: &str, link: &Path) -> String {
    let link = link.display();
    format!(
        "mkdir -p {name}.d; cd {name}.d; zstd -q -f -3 -T0 {image} -o image.zst; \
         printf '%s' 'software = {{ version = \"1\"; images: ({{ filename = \"image.zst\"; device = \"{link}\"; \
         compressed = \"zstd\"; installed-directly = true; }}); }}' > sw-description; \
         printf 'sw-description\\nimage.zst\\n' | cpio -o --quiet -H crc > ../{name}.swu"
    )
}

/// Programs installed for the benchmark alone come first.
pub fn path_with_tools(work: &Path) -> String {
    let mut paths: Vec<PathBuf> = vec![work.join("tools/bin")];
    paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    std::env::join_paths(paths).unwrap_or_default().to_string_lossy().into_owned()
}
