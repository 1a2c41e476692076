//! Peers: other tools for the same work, each used as its documentation says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::step::{run, step};

/// Peer: how to ask for its version, what it can do, and how to get it.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub name: &'static str,
    /// Program that must be there.
    program: &'static str,
    version: &'static str,
    /// Command that installs the peer.
    pub install_hint: &'static str,
    /// Endings of the files that the peer fetches.
    files: &'static [&'static str],
    /// Whether the peer writes a device afresh.
    pub fresh: bool,
    /// Whether the peer makes use of what is on the device.
    pub updates: bool,
}

const APT: &str = "apt-get install zstd curl bmap-tools casync zsync swupdate cpio openssl";

/// Command for the version of swupdate: Debian's build does not know its own.
const SWUPDATE_VERSION: &str = "dpkg-query --show swupdate || swupdate --version";

/// All peers, the yardstick first.
pub const PEERS: [Peer; 7] = [
    Peer { files: &[".zst"], ..fresh(YARDSTICK, "zstd", "zstd --version") },
    Peer { files: &[".zst", ".bmap"], ..fresh("bmaptool", "bmaptool", "bmaptool --version") },
    Peer { files: &[".swu"], ..fresh("swupdate", "swupdate", SWUPDATE_VERSION) },
    Peer {
        files: &[".zst"],
        install_hint: "cargo install --locked --root target/work/bench/tools coreos-installer",
        ..fresh("coreos-installer", "coreos-installer", "coreos-installer --version")
    },
    Peer { files: &[".caibx", ".castr"], updates: true, ..fresh("casync", "casync", "casync --version") },
    // It does not write afresh, since there it does the same as curl.
    Peer { files: &[".zsync", ".raw"], updates: true, fresh: false, ..fresh("zsync", "zsync", "zsync -V") },
    Peer {
        files: &[".cba"],
        updates: true,
        install_hint: "cargo install --locked --root target/work/bench/tools --features zstd-compression bita",
        ..fresh("bita", "bita", "bita --version")
    },
];

const fn fresh(name: &'static str, program: &'static str, version: &'static str) -> Peer {
    Peer { name, program, version, install_hint: APT, files: &[], fresh: true, updates: false }
}

/// Name of the peer that everything is compared with.
pub const YARDSTICK: &str = "curl|zstd|dd";

impl Peer {
    /// Returns the line in which the peer names its version; `None` when it is not installed.
    pub fn version(&self, path: &str) -> Option<String> {
        let shell = |script: &str| Command::new("sh").args(["-c", script]).env("PATH", path).output().ok();
        let found = shell(&format!("command -v {}", self.program))?;
        if !found.status.success() {
            return None;
        }
        let output = shell(self.version)?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let numbered = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()));
        Some(numbered.map_or_else(|| "version unknown".to_owned(), |line| line.trim().replace('\t', " ")))
    }

    /// Lists the files below `root` that the peer fetches for an image.
    pub fn files(&self, name: &str, root: &Path) -> Vec<PathBuf> {
        self.files.iter().map(|ending| root.join(format!("{name}{ending}"))).collect()
    }

    /// Makes the peer's files for an image, below `root`, once.
    pub fn prepare(&self, image: &Path, name: &str, root: &Path, link: &Path, path: &str) -> Result<()> {
        let done = root.join(format!("{name}.{}.done", self.program));
        if done.exists() {
            return Ok(());
        }
        let image = image.display();
        let zst =
            format!("[ -e {name}.zst ] || {{ zstd -q -f -3 -T0 {image} -o {name}.part; mv {name}.part {name}.zst; }}");
        let script = match self.name {
            YARDSTICK | "coreos-installer" => zst,
            "bmaptool" => format!("bmaptool create -o {name}.bmap {image}; {zst}"),
            "swupdate" => swu(&image.to_string(), name, link),
            "casync" => format!("casync make --store={name}.castr {name}.caibx {image}"),
            "zsync" => format!(
                "ln -f {image} {name}.raw || cp {image} {name}.raw; zsyncmake -u {name}.raw -o {name}.zsync {name}.raw"
            ),
            // A bita with zstd unpacks several times as fast as with its default, brotli.
            "bita" => format!(
                "if bita compress --help | grep -q zstd; then with='--compression zstd'; fi; \
                 bita compress --force-create $with -i {image} {name}.cba"
            ),
            _ => return Ok(()),
        };
        step(&format!("{} of {name}", self.name), || {
            run("prepare-peer", Command::new("sh").args(["-ec", &script]).current_dir(root).env("PATH", path))
        })?;
        fs::write(&done, "").with_context(|| format!("write {}", done.display()))
    }

    /// Returns the command that brings the image `name` from `url` to `device`; with `seed`, it makes use of what is on
    /// the device.
    ///
    /// `root` is the directory in which [`prepare`](Self::prepare) put the peer's files.
    pub fn command(&self, url: &str, name: &str, device: &str, seed: bool, memory: &Path, root: &Path) -> String {
        let (memory, certificate) = (memory.display(), root.join(SWUPDATE_CERTIFICATE));
        match self.name {
            "bmaptool" => {
                format!("bmaptool copy --bmap {url}/{name}.bmap {url}/{name}.zst {device}")
            }
            "swupdate" => format!(
                "ln -sfn {device} {memory}/target; \
                 swupdate -H {SWUPDATE_BOARD} -k {certificate} -d '-u {url}/{name}.swu'",
                certificate = certificate.display()
            ),
            // coreos-installer writes everything, and then fails where it would wait for a udevd that is not there, as
            // in containers.
            "coreos-installer" => format!(
                "coreos-installer install --insecure --image-url {url}/{name}.zst --preserve-on-error {device} || \
                 [ ! -S /run/udev/control ]"
            ),
            // casync takes the output for a seed by itself.
            "casync" => format!(
                "casync extract --seed-output={} --store={url}/{name}.castr {url}/{name}.caibx {device}",
                if seed { "yes" } else { "no" }
            ),
            // zsync only writes files.
            "zsync" => {
                let from = if seed { format!("-i {device}") } else { String::new() };
                format!(
                    "cd {memory}; zsync -q {from} -o result {url}/{name}.zsync; \
                     dd if=result of={device} bs=4M oflag=direct status=none; rm result"
                )
            }
            "bita" => {
                // bita's --seed-output takes a device for an empty file.
                let from = if seed { format!("--seed {device}") } else { String::new() };
                format!("bita clone --force-create {from} {url}/{name}.cba {device}")
            }
            _ => format!(
                "curl -sf {url}/{name}.zst | zstd -dcq | dd of={device} bs=4M iflag=fullblock oflag=direct status=none"
            ),
        }
    }
}

/// Certificate of the update files: Debian's swupdate takes only signed ones, and asks which board they are for.
const SWUPDATE_CERTIFICATE: &str = "swupdate.pem";
const SWUPDATE_BOARD: &str = "bench:1.0";

/// Returns the script that makes an update file, whose only image is streamed to the device behind `link`.
fn swu(image: &str, name: &str, link: &Path) -> String {
    let link = link.display();
    format!(
        "[ -e {SWUPDATE_CERTIFICATE} ] || openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=bench \
         -keyout swupdate.key -out {SWUPDATE_CERTIFICATE} 2>/dev/null; \
         mkdir -p {name}.d; cd {name}.d; ln -f ../{name}.zst image.zst || zstd -q -f -3 -T0 {image} -o image.zst; \
         printf '%s' \"software = {{ version = \\\"1\\\"; hardware-compatibility: [ \\\"1.0\\\" ]; images: ({{ \
         filename = \\\"image.zst\\\"; sha256 = \\\"$(sha256sum image.zst | cut -d' ' -f1)\\\"; device = \\\"{link}\\\"; \
         compressed = \\\"zstd\\\"; installed-directly = true; }}); }}\" > sw-description; \
         openssl cms -sign -in sw-description -out sw-description.sig -signer ../{SWUPDATE_CERTIFICATE} \
         -inkey ../swupdate.key -outform DER -nosmimecap -binary; \
         printf 'sw-description\\nsw-description.sig\\nimage.zst\\n' | cpio -o --quiet -H crc > ../{name}.swu; \
         cd ..; rm -r {name}.d"
    )
}

/// Returns a PATH in which programs that were installed for the benchmark alone come first.
pub fn path_with_tools(work: &Path) -> String {
    let mut paths: Vec<PathBuf> = vec![work.join("tools/bin")];
    paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    std::env::join_paths(paths).unwrap_or_default().to_string_lossy().into_owned()
}
