//! Comparison of two images: what differs in what they hold, then block by block, and to which files the blocks belong.
//! It is for engineers who want to know what an update brings, and why it is as large as it is.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::ext4::geometry::{BLOCK, Geometry};
use super::ext4::read::Old;
use super::ext4::tree::NodeKind;
use crate::contents::ImageContents;
use crate::contents::difference::{self, ContentsDifference};
use crate::invocation::program;
use crate::paths::RELEASED_IMAGE;
use crate::size::to_usize;
use crate::step::answer;

/// Chunk sizes of a release that are reported, bytes.
const CHUNKS: &[u64] = &[16 << 10, 64 << 10, 256 << 10];
/// Blocks read at a time.
const STRETCH: u64 = 256;

/// Returns the number of bytes in blocks of `new` that differ from `old`. Behind its end `old` counts as zeros.
///
/// # Errors
/// Fails when an image cannot be read.
pub fn changed_bytes(old: &Path, new: &Path) -> Result<u64> {
    Ok(states(old, new)?.iter().filter(|state| **state != State::Same).count() as u64 * BLOCK)
}

/// Options of `compare`.
#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    /// The image that robots have. Default: the one that the project's last release was made of.
    pub old: Option<PathBuf>,
    /// The image that they are to get. Default: the one that the project built last.
    pub new: Option<PathBuf>,
    /// Files to list, those with most changed blocks first.
    #[arg(long, default_value_t = 10)]
    files: usize,
    /// Print everything that differs as JSON.
    #[arg(long)]
    json: bool,
}

/// Everything that `compare` finds, as it is printed with `--json`.
#[derive(Debug, Serialize)]
struct Comparison {
    /// `null` where the image before was not made by the builder.
    contents: Option<ContentsDifference>,
    blocks: Report,
}

/// Checks that a path leads to what may be an image: a description beside one has nearly its name.
///
/// # Errors
/// When there is none, or its size is not that of an image.
pub fn is_image(path: &Path) -> Result<()> {
    let (shown, program) = (path.display(), program());
    ensure!(path.exists(), "there is no image {shown}: `{program} image` makes one");
    let metadata = path.metadata().with_context(|| format!("look at {shown}"))?;
    ensure!(metadata.is_file(), "{shown} is not a file, and an image is one");
    let bytes = metadata.len();
    ensure!(
        bytes > 0 && bytes.is_multiple_of(BLOCK),
        "{shown} is no image: it has {bytes} bytes, and images have a multiple of {BLOCK}"
    );
    Ok(())
}

/// Compares two images as the command line says, and prints the report.
///
/// # Errors
/// When an image cannot be read, or the new one was not made by the builder.
pub fn run(args: &CompareArgs) -> Result<()> {
    let (old, new) = (args.old.as_deref(), args.new.as_deref());
    let old = old.context("give the image that robots have and the one that they are to get")?;
    let new = new.context("give the image that they are to get, too")?;
    ensure!(
        old.exists() || !old.ends_with(RELEASED_IMAGE),
        "there is no image {} that robots would have: in a project `{} release` keeps there what it released, so that \
         the first image has none before it",
        old.display(),
        program()
    );
    is_image(old).and_then(|()| is_image(new))?;
    let contents = match ImageContents::read(old) {
        Ok(before) => Some(difference::between(&before, &ImageContents::read(new)?)),
        // Whatever is on a partition can be compared by its blocks.
        Err(error) => {
            eprintln!("  only blocks are compared: {error:#}");
            None
        }
    };
    let blocks = compare(old, new, args.files)?;
    if args.json {
        return answer(&format!("{}\n", serde_json::to_string_pretty(&Comparison { contents, blocks })?));
    }
    let contents = contents.map_or_else(String::new, |contents| format!("{contents}\n"));
    answer(&format!("{contents}{blocks}"))
}

/// Compares two images; the report names the `files` with most changed blocks.
///
/// # Errors
/// Fails when an image cannot be read, or `new` was not made by the builder.
pub fn compare(old: &Path, new: &Path, files: usize) -> Result<Report> {
    let states = states(old, new)?;
    let mut report = Report { bytes: states.len() as u64 * BLOCK, ..Report::default() };
    let owners = Owners::of(new).with_context(|| format!("read {}", new.display()))?;
    let mut by_path: BTreeMap<&str, Count> = BTreeMap::new();
    for (block, state) in states.iter().enumerate() {
        let (part, path) = owners.of_block(block);
        report.parts.entry(part).or_default().add(*state);
        report.all.add(*state);
        if let Some(path) = path {
            by_path.entry(path).or_default().add(*state);
        }
    }
    for bytes in CHUNKS {
        let chunks = states.chunks(to_usize(bytes / BLOCK));
        let mut count = Count::default();
        for chunk in chunks {
            // A chunk is in the most expensive state of its blocks.
            count.add(chunk.iter().copied().max().unwrap_or(State::Same));
        }
        report.chunks.push((*bytes, count));
    }
    let mut list: Vec<(&str, Count)> = by_path.into_iter().filter(|(_, count)| count.new > 0).collect();
    list.sort_by_key(|(path, count)| (std::cmp::Reverse(count.new), *path));
    report.files_changed = list.len();
    report.files = list.into_iter().take(files).map(|(path, count)| (path.to_owned(), count)).collect();
    Ok(report)
}

/// State of a block for a robot with the old image, in the order of what the block costs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Same,
    /// The block becomes zeros.
    Zero,
    /// The content lies elsewhere in the old image.
    Moved,
    /// The content has to be downloaded.
    New,
}

fn states(old: &Path, new: &Path) -> Result<Vec<State>> {
    let mut known: HashSet<[u8; 16]> = HashSet::new();
    let mut before = Vec::new();
    each_block(old, |block| {
        let digest = short_digest(block);
        known.insert(digest);
        before.push(digest);
    })?;
    let (mut states, zero) = (Vec::new(), short_digest(&[0; to_usize(BLOCK)]));
    each_block(new, |block| {
        let digest = short_digest(block);
        let there = before.get(states.len()).unwrap_or(&zero);
        states.push(match digest {
            same if same == *there => State::Same,
            digest if digest == zero => State::Zero,
            digest if known.contains(&digest) => State::Moved,
            _ => State::New,
        });
    })?;
    Ok(states)
}

fn short_digest(block: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(block).as_bytes()[..16]);
    short
}

fn each_block(image: &Path, mut seen: impl FnMut(&[u8])) -> Result<()> {
    let context = || format!("read {}", image.display());
    let file = File::open(image).with_context(context)?;
    let bytes = file.metadata().with_context(context)?.len();
    let mut buffer = vec![0; to_usize(STRETCH * BLOCK)];
    let mut at = 0;
    while at < bytes {
        let stretch = &mut buffer[..to_usize((STRETCH * BLOCK).min(bytes - at))];
        file.read_exact_at(stretch, at).with_context(context)?;
        stretch.chunks(to_usize(BLOCK)).for_each(&mut seen);
        at += stretch.len() as u64;
    }
    Ok(())
}

/// Numbers of blocks, or chunks, in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Number with other content than the old image has at the same place: zeros, moved or new.
    pub changed: u64,
    /// Number of the changed ones that are zeros now.
    pub zero: u64,
    /// Number of the changed ones whose content the old image has elsewhere.
    pub moved: u64,
    /// Number of the changed ones whose content the old image does not have.
    pub new: u64,
}

impl Count {
    fn add(&mut self, state: State) {
        self.changed += u64::from(state != State::Same);
        match state {
            State::Same => {}
            State::Zero => self.zero += 1,
            State::Moved => self.moved += 1,
            State::New => self.new += 1,
        }
    }
}

/// Result of [`compare`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Bytes of the new image.
    pub bytes: u64,
    /// Counts of all blocks.
    pub all: Count,
    /// Blocks by what they are in the new image.
    pub parts: BTreeMap<&'static str, Count>,
    /// Chunks by their size in bytes: one is new if any of its blocks is.
    pub chunks: Vec<(u64, Count)>,
    /// Files with content that the old image does not have.
    pub files_changed: usize,
    /// Files with the most new content.
    pub files: Vec<(String, Count)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |count: u64, bytes: u64| count as f64 * bytes as f64 / 1_048_576.0;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, count: &Count, bytes: u64| {
            let [changed, zero, moved, new] =
                [count.changed, count.zero, count.moved, count.new].map(|count| mib(count, bytes));
            writeln!(f, "{name:<28}{changed:>10.2}{zero:>10.2}{moved:>10.2}{new:>10.2}")
        };
        writeln!(f, "{:<28}{:>10}{:>10}{:>10}{:>10}", "MiB", "changed", "zero", "moved", "new")?;
        line(f, &format!("image of {:.0} MiB", mib(1, self.bytes)), &self.all, BLOCK)?;
        for (part, count) in self.parts.iter().filter(|(_, count)| count.changed > 0) {
            line(f, &format!("  {part}"), count, BLOCK)?;
        }
        for (bytes, count) in &self.chunks {
            line(f, &format!("chunks of {} KiB", bytes >> 10), count, *bytes)?;
        }
        writeln!(f, "{} files and directories have new content", self.files_changed)?;
        for (path, count) in &self.files {
            writeln!(f, "{:>10.2} MiB  {path}", mib(count.new, BLOCK))?;
        }
        Ok(())
    }
}

/// Owners of the blocks of an image.
struct Owners {
    parts: Vec<&'static str>,
    /// Index into `paths`, by block.
    files: BTreeMap<u64, usize>,
    paths: Vec<String>,
}

impl Owners {
    fn of(image: &Path) -> Result<Self> {
        let file = File::open(image).context("open it")?;
        let geometry = Geometry::read(&file)?;
        let content = Old::read(&file, &geometry)?;
        let mut owners =
            Self { parts: vec!["free"; to_usize(geometry.blocks)], files: BTreeMap::new(), paths: paths(&content) };
        geometry.tables().for_each(|block| owners.set(block, "superblocks and descriptors"));
        for group in &geometry.groups {
            owners.set(group.block_bitmap, "bitmaps");
            owners.set(group.inode_bitmap, "bitmaps");
            let table = group.inode_table..group.inode_table + geometry.inode_table_blocks();
            table.for_each(|block| owners.set(block, "inode tables"));
        }
        for (at, (node, place)) in content.nodes.iter().zip(&content.places).enumerate() {
            let part = if node.kind == NodeKind::Directory { "directories" } else { "content of files" };
            for block in place.runs.iter().flat_map(|run| run.physical..run.physical + run.blocks) {
                owners.set(block, part);
                owners.files.insert(block, at);
            }
            place.tree_blocks.iter().chain(&place.attribute_block).for_each(|block| {
                owners.set(*block, "extents and attributes");
            });
        }
        Ok(owners)
    }

    fn set(&mut self, block: u64, part: &'static str) {
        if let Some(slot) = self.parts.get_mut(to_usize(block)) {
            *slot = part;
        }
    }

    fn of_block(&self, block: usize) -> (&'static str, Option<&str>) {
        let part = self.parts.get(block).copied().unwrap_or("behind the file system");
        (part, self.files.get(&(block as u64)).map(|file| self.paths[*file].as_str()))
    }
}

/// Returns one path for every node. A file with several names gets one outside of OSTree's repository, where the name
/// is a digest; a file of the deployment gets the path that it has in the running system.
fn paths(content: &Old) -> Vec<String> {
    let mut paths = vec![String::new(); content.nodes.len()];
    let mut queue: Vec<usize> = vec![0];
    let mut seen = BTreeSet::new();
    while let Some(at) = queue.pop() {
        if content.nodes[at].kind != NodeKind::Directory || !seen.insert(at) {
            continue;
        }
        for (name, &child) in &content.nodes[at].children {
            let path = format!("{}/{}", paths[at], String::from_utf8_lossy(name));
            if paths[child].is_empty() || paths[child].starts_with("/ostree/repo/") {
                paths[child] = path;
            }
            queue.push(child);
        }
    }
    paths.iter().map(|path| in_system(path).to_owned()).collect()
}

/// Returns the path in the running system: `/usr/bin/x` for `/ostree/deploy/system/deploy/COMMIT.0/usr/bin/x`.
fn in_system(path: &str) -> &str {
    let deployed = path.strip_prefix("/ostree/deploy/").and_then(|rest| rest.split_once("/deploy/"));
    deployed.and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::{State, changed_bytes, in_system, is_image, states};
    use std::fs;

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("system.json");
        fs::write(&path, "{}").unwrap();
        assert!(is_image(&path).unwrap_err().to_string().contains("system.json is no image: it has 2 bytes"));
        assert!(is_image(directory.path()).unwrap_err().to_string().contains("is not a file"));
        let none = directory.path().join("none.img");
        assert!(is_image(&none).unwrap_err().to_string().contains("there is no image"));
    }

    #[test]
    fn every_block_has_one_state() {
        let directory = tempfile::tempdir().unwrap();
        let image = |name: &str, blocks: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, blocks.iter().flat_map(|byte| [*byte; 4096]).collect::<Vec<u8>>()).unwrap();
            path
        };
        let (old, new) = (image("old", &[1, 2, 3, 0]), image("new", &[1, 3, 0, 4, 0, 2, 5]));
        let expected = [State::Same, State::Moved, State::Zero, State::New, State::Same, State::Moved, State::New];
        assert_eq!(states(&old, &new).unwrap(), expected);
        assert_eq!(changed_bytes(&old, &new).unwrap(), 5 * 4096);
        assert_eq!(changed_bytes(&new, &new).unwrap(), 0);
        assert!(states(&old, &directory.path().join("none")).is_err());
    }

    #[test]
    fn paths_are_those_of_the_running_system() {
        assert_eq!(in_system("/ostree/deploy/system/deploy/ab.0/usr/bin/x"), "/usr/bin/x");
        for other in ["/ostree/deploy/system/deploy/ab.0.origin", "/boot/x", "/ostree/repo/objects/ab/cd.file"] {
            assert_eq!(in_system(other), other);
        }
    }
}
