//! Makes an ext4 image of a directory: the same bytes for the same content, on every host, and, given the image of the
//! release before, with everything that did not change in the place it had there.
//!
//! Neither mke2fs -d nor debugfs lets a caller choose where a file goes, nor does a kernel that mounts the image. So
//! mke2fs makes the empty file system, and the content is placed ([`mod@place`]) and written ([`mod@write`]) here;
//! e2fsck then judges the result. Nothing is copied from the image before: it only shows where things were. So nothing
//! old can be left in free blocks, and the result is a function of the content and of those places, whatever was built
//! here before. The alternative was to change a copy of the old image with debugfs: bytes that were deleted stay in it,
//! directories never shrink, and a file cannot keep those of its blocks that did not change.

pub mod attributes;
mod bytes;
pub mod content;
pub mod digest;
pub mod directory;
pub mod extents;
pub mod geometry;
pub mod inspect;
pub mod place;
pub mod placed;
pub mod read;
pub mod space;
pub mod tree;
pub mod write;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use self::content::Content;
use self::geometry::{BLOCK, Geometry, INODE};
use self::place::BlockPlan;
use self::read::Old;
use crate::recipe::ImageSize;
use crate::size::to_usize;
use crate::step;

const MIB: u64 = 1 << 20;

/// Features of the file system: only those that GRUB 2.06 reads, named one by one because the default differs between
/// versions and distributions. There is no journal, since nothing is ever written. `metadata_csum_seed`, `orphan_file`
/// and `inline_data` are left out because GRUB does not read them. `flex_bg` is left out because it puts the tables of
/// many groups together, and an image that grows by a group would move all of them.
const FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,64bit,sparse_super,large_file,huge_file,\
                        dir_nlink,extra_isize,metadata_csum";

/// Percentage of the content's blocks that have to stay in place, or everything is laid out anew: with fewer there is
/// little to gain, and a new layout puts in order what earlier images left scattered. Half would be too many: a new
/// kernel and four months of Debian's updates leave 46 of a hundred, and a robot then writes a hundred MiB less of 350.
const LEAST_KEPT_PERCENT: u64 = 25;

/// Largest number of pieces that a hundred files may lie in.
const MOST_PIECES_PERCENT: u64 = 130;

/// Largest size of an image, in percent of the size that it would have if it was made afresh.
const MOST_BYTES_PERCENT: u64 = 125;

/// Result of building an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// Size of the image, bytes.
    pub bytes: u64,
    /// Reason why the places of the previous image were not kept; `None` if they were, or if there is no previous
    /// image.
    pub fresh_because: Option<String>,
}

/// Writes `tree` as an image of `size` to `image`, a name that the file gets only when it is complete. `uuid_of`
/// decides the UUID of the file system. What the image `previous` has too stays in its place there, unless that does
/// not pay.
///
/// # Errors
/// Fails when the content does not fit or has types that an image cannot have, or when a tool failed.
pub fn build(tree: &Path, image: &Path, size: ImageSize, uuid_of: &str, previous: Option<&Path>) -> Result<BuiltImage> {
    let content = Content::read(tree)?;
    let temporary = image.with_added_extension("tmp");
    let job = Job { content: &content, image: &temporary, size, uuid: &uuid(uuid_of) };
    let result = job.run(previous).and_then(|built| {
        // An image is never repaired, so a fault must be seen now.
        step::run("e2fsck", tool("e2fsck").args(["-f", "-n"]).arg(&temporary))?;
        fs::rename(&temporary, image).with_context(|| format!("rename {}", temporary.display()))?;
        Ok(built)
    });
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

struct Job<'a> {
    content: &'a Content,
    image: &'a Path,
    size: ImageSize,
    uuid: &'a str,
}

/// File system that has no content yet.
struct Empty {
    file: File,
    geometry: Geometry,
    old: Old,
}

impl Job<'_> {
    fn run(&self, previous: Option<&Path>) -> Result<BuiltImage> {
        let mut fresh_because = None;
        if let Some(previous) = previous {
            match self.keep(previous) {
                Ok((empty, layout, bytes)) => {
                    write::write(&empty.file, &empty.geometry, self.content, &layout)?;
                    return Ok(BuiltImage { bytes, fresh_because: None });
                }
                Err(reason) => fresh_because = Some(format!("{reason:#}")),
            }
        }
        let bytes = match self.size {
            ImageSize::Mib(mib) => u64::from(mib) * MIB,
            ImageSize::Auto => self.content.bytes_wanted()?,
        };
        let hint =
            || format!("put the content into {} MiB (image.size_mib; \"auto\" makes it large enough)", bytes / MIB);
        let empty = self.empty(bytes, self.content.inodes_wanted()).with_context(hint)?;
        let layout = place::place(self.content, &empty.old, &empty.geometry).with_context(hint)?;
        write::write(&empty.file, &empty.geometry, self.content, &layout)?;
        Ok(BuiltImage { bytes, fresh_because })
    }

    /// Makes the layout that keeps the places of `previous`, in the size that `previous` has, or in a larger one if it
    /// must be.
    ///
    /// # Errors
    /// Fails with the reason why the old places are better not kept.
    fn keep(&self, previous: &Path) -> Result<(Empty, BlockPlan, u64)> {
        let file = File::open(previous).with_context(|| format!("open {}", previous.display()))?;
        let before = file.metadata().context("ask for the size of the previous image")?.len();
        let geometry = Geometry::read(&file).context("the previous image")?;
        let old = Old::read(&file, &geometry).context("the previous image is damaged")?;
        let wanted = self.content.bytes_wanted()?;
        let sizes = match self.size {
            ImageSize::Mib(mib) => {
                let bytes = u64::from(mib) * MIB;
                ensure!(bytes >= before, "image.size_mib asks for {mib} MiB, the previous image has {}", before / MIB);
                vec![bytes]
            }
            ImageSize::Auto => {
                ensure!(
                    before * 100 <= wanted * MOST_BYTES_PERCENT,
                    "the previous image has {} MiB, the content needs {}",
                    before / MIB,
                    wanted / MIB
                );
                vec![before, wanted.max((before + before / 16).next_multiple_of(MIB))]
            }
        };
        let mut result = Err(anyhow::anyhow!("there is no size to try"));
        for bytes in sizes {
            result = self.keep_in(bytes, &geometry, &old);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn keep_in(&self, bytes: u64, before: &Geometry, old: &Old) -> Result<(Empty, BlockPlan, u64)> {
        let groups = (bytes / BLOCK).div_ceil(geometry::GROUP);
        let empty = self.empty(bytes, u64::from(before.inodes_per_group) * groups)?;
        empty.geometry.continues(before)?;
        let layout = place::place(self.content, old, &empty.geometry)
            .with_context(|| format!("beside what stays, in {} MiB", bytes / MIB))?;
        let figures = layout.figures;
        ensure!(
            figures.kept_blocks * 100 >= figures.blocks * LEAST_KEPT_PERCENT,
            "only {1} of {0} blocks would stay where they were",
            figures.blocks,
            figures.kept_blocks
        );
        ensure!(
            figures.pieces * 100 <= figures.files * MOST_PIECES_PERCENT,
            "{} files would lie in {} pieces",
            figures.files,
            figures.pieces
        );
        Ok((empty, layout, bytes))
    }

    /// Makes an empty file system. The few blocks of its directories are cleared again: they are written with the
    /// content.
    fn empty(&self, bytes: u64, inodes: u64) -> Result<Empty> {
        // Asked for more, mke2fs makes smaller groups, and the image before could not be continued.
        let most = (bytes / BLOCK).div_ceil(geometry::GROUP) * geometry::MOST_INODES;
        ensure!(inodes <= most, "the content needs {inodes} inodes, and so many MiB have at most {most}");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(self.image);
        let file = file.with_context(|| format!("create {}", self.image.display()))?;
        file.set_len(bytes).with_context(|| format!("set the size of {}", self.image.display()))?;
        let (block, inode, inodes) = (BLOCK.to_string(), INODE.to_string(), inodes.to_string());
        let mut mke2fs = tool("mke2fs");
        mke2fs.args(["-q", "-F", "-b", &block, "-I", &inode, "-m", "0", "-O", FEATURES, "-U", self.uuid]);
        mke2fs.args(["-N", &inodes, "-E"]);
        mke2fs.arg(format!("lazy_itable_init=0,nodiscard,root_owner=0:0,hash_seed={}", self.uuid));
        step::run("mke2fs", mke2fs.arg(self.image))?;
        let geometry = Geometry::read(&file).context("the empty file system")?;
        let old = Old::read(&file, &geometry).context("the empty file system")?;
        for run in old.places.iter().flat_map(|place| &place.runs) {
            let zeros = vec![0; to_usize(run.blocks * BLOCK)];
            file.write_all_at(&zeros, run.physical * BLOCK).context("empty the root directory")?;
        }
        Ok(Empty { file, geometry, old })
    }
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("E2FSPROGS_FAKE_TIME", write::TIME.to_string()).env("MKE2FS_CONFIG", "/dev/null");
    command.env("TZ", "UTC").env("LC_ALL", "C");
    command
}

/// Makes a UUID from a name, by BLAKE3 instead of the SHA-1 of version 5: hence version 8, "custom" (RFC 9562). The
/// name is that of the branch, not the commit: the checksums of all metadata blocks start with the UUID, so another one
/// for every release would change every such block. Nothing finds this file system by its UUID.
fn uuid(name: &str) -> String {
    let digest = blake3::hash(format!("reflash system image {name}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().hyphenated().to_string()
}

#[cfg(test)]
mod tests {
    use super::content::Content;
    use super::{Job, build, uuid};
    use crate::recipe::ImageSize;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::process::Command;

    fn debugfs(image: &Path, command: &str) -> String {
        let output = Command::new("debugfs").arg("-R").arg(command).arg(image).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn fill(tree: &Path) {
        fs::create_dir_all(tree.join("many")).unwrap();
        fs::write(tree.join("a \"quoted\" name"), "hello").unwrap();
        fs::set_permissions(tree.join("a \"quoted\" name"), fs::Permissions::from_mode(0o4750)).unwrap();
        symlink("x".repeat(100), tree.join("long")).unwrap();
        // These are far more names than fit into one block, and links are among them.
        for number in 0..400 {
            fs::hard_link(tree.join("a \"quoted\" name"), tree.join(format!("many/{number:0>40}"))).unwrap();
        }
        fs::write(tree.join("sparse"), vec![0; 3 << 20]).unwrap();
        fs::create_dir(tree.join("tmp")).unwrap();
        fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    }

    #[test]
    fn the_same_content_gives_the_same_sound_image() {
        let directory = tempfile::tempdir().unwrap();
        let mut images = Vec::new();
        for name in ["one", "two"] {
            let tree = directory.path().join(name);
            fill(&tree);
            let image = directory.path().join(format!("{name}.img"));
            // The build ends with e2fsck, which counts links and blocks.
            build(&tree, &image, ImageSize::Auto, "branch", None).unwrap();
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2 * images.len() + 2, "nothing else is left");
            images.push(image);
        }
        assert!(fs::read(&images[0]).unwrap() == fs::read(&images[1]).unwrap());
        let image = &images[0];
        let stat = debugfs(image, "stat \"/a \"\"quoted\"\" name\"");
        assert!(stat.contains("Mode:  04750") && stat.contains("Links: 401"), "{stat}");
        assert_eq!(debugfs(image, "cat /many/0000000000000000000000000000000000000399"), "hello");
        assert!(debugfs(image, "stat /tmp").contains("Mode:  01777"));
        assert!(debugfs(image, "stat /long").contains("Size: 100"));
        let out = directory.path().join("out");
        debugfs(image, &format!("dump /sparse {}", out.display()));
        assert!(fs::read(out).unwrap() == vec![0; 3 << 20]);
    }

    #[test]
    fn too_small_an_image_is_an_error_that_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("big"), vec![1; 4 << 20]).unwrap();
        let image = directory.path().join("x.img");
        let error = build(&tree, &image, ImageSize::Mib(2), "branch", None).unwrap_err();
        assert!(format!("{error:#}").contains("size_mib"), "{error:#}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    /// From our own list of what breaks writers of ext4: inodes need more room than blocks.
    #[test]
    fn more_inodes_than_blocks_fit_an_automatic_size() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let mut content = Content::read(directory.path()).unwrap();
        let file = content.inodes[1].clone();
        let image = directory.path().join("x.img");
        for count in [10_000, 29_000, 30_000, 100_000, 300_000] {
            content.inodes.resize(count, file.clone());
            let job = Job { content: &content, image: &image, size: ImageSize::Auto, uuid: &uuid("x") };
            let wanted = content.inodes_wanted();
            let empty = job.empty(content.bytes_wanted().unwrap(), wanted).unwrap();
            assert!(u64::from(empty.geometry.inodes()) >= wanted, "{count}");
        }
        let job = Job { content: &content, image: &image, size: ImageSize::Auto, uuid: &uuid("x") };
        let error = job.empty(128 << 20, content.inodes_wanted()).err().unwrap().to_string();
        assert!(error.contains("at most 32768"), "{error}");
    }

    #[test]
    #[ignore = "takes long: cargo xtask test --full"]
    fn full_a_hundred_thousand_empty_files_keep_their_places() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for part in 0..100 {
            fs::create_dir_all(at("tree").join(format!("{part}"))).unwrap();
            (0..1000).for_each(|number| fs::write(at("tree").join(format!("{part}/{number}")), "").unwrap());
        }
        let bytes = build(&at("tree"), &at("x.img"), ImageSize::Auto, "branch", None).unwrap().bytes;
        fs::write(at("tree/0/0"), "1").unwrap();
        let built = build(&at("tree"), &at("next.img"), ImageSize::Auto, "branch", Some(&at("x.img"))).unwrap();
        assert_eq!((built.bytes, built.fresh_because), (bytes, None));
    }

    #[test]
    fn uuids_depend_on_the_name() {
        assert_ne!(uuid("a"), uuid("b"));
        assert_eq!((uuid("a").len(), &uuid("a")[14..15]), (36, "8"));
    }
}
