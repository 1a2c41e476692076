//! Images to measure with: given ones, ones built from a recipe, or small synthetic ones.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::args::BenchArgs;
use crate::image;
use crate::paths::Paths;

/// Paths of the images.
pub struct BenchImages {
    pub old: PathBuf,
    pub new: Option<PathBuf>,
    pub stable: Option<PathBuf>,
    pub large: Option<PathBuf>,
}

const SMALL_BLOCKS: u64 = 8 * 1024;

impl BenchImages {
    /// Takes the images that were given, or builds them.
    pub fn find_or_build(paths: &Paths, options: &BenchArgs, assume_yes: bool, work: &Path) -> Result<Self> {
        let (old, new, stable, large) = match (&options.old, &options.new, options.quick) {
            (Some(old), new, _) => {
                // The paths are made absolute, because the peers' commands run in another directory.
                let found = |path: &PathBuf| path.canonicalize().with_context(|| format!("find {}", path.display()));
                let other = |path: &Option<PathBuf>| path.as_ref().map(found).transpose();
                (found(old)?, other(new)?, other(&options.stable)?, other(&options.large)?)
            }
            (None, Some(_), _) => bail!("--new needs --old"),
            (None, None, true) => synthetic(&work.join("quick"))?,
            (None, None, false) => built(paths, assume_yes, &work.join("images"))?,
        };
        Ok(Self { old, new, stable, large })
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let optional = [("new", &self.new), ("stable", &self.stable), ("large", &self.large)];
        let optional = optional.into_iter().filter_map(|(name, path)| Some((name, path.as_deref()?)));
        std::iter::once(("old", self.old.as_path())).chain(optional)
    }

    /// Returns the image of a channel, if there is one.
    pub fn of(&self, channel: &str) -> Option<&Path> {
        self.named().find(|(name, _)| *name == channel).map(|(_, path)| path)
    }

    /// Returns the size of each image for the report, bytes.
    pub fn sizes(&self) -> Result<BTreeMap<String, u64>> {
        self.named().map(|(name, path)| Ok((name.to_owned(), path.metadata()?.len()))).collect()
    }

    /// Returns a digest over the content of all images.
    pub fn key(&self) -> Result<String> {
        let mut key = blake3::Hasher::new();
        for (name, path) in self.named() {
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            let content = blake3::Hasher::new().update_reader(file).context("hash an image")?.finalize();
            key.update(name.as_bytes()).update(content.as_bytes());
        }
        Ok(key.finalize().to_hex().to_string())
    }
}

type Four = (PathBuf, Option<PathBuf>, Option<PathBuf>, Option<PathBuf>);

/// Builds the recipe three times: as released, with updates except the kernel's, and with all updates; the second in
/// two layouts, the third over the first.
fn built(paths: &Paths, assume_yes: bool, place: &Path) -> Result<Four> {
    fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
    let recipe = fs::read_to_string(paths.root.join("xtask/recipes/bench.toml")).context("read the recipe")?;
    let old = place.join("old.img");
    for (name, version, key, previous) in [
        ("old", "1", "updates = false", None),
        ("small", "2", "hold = [\"linux-image*\"]", None),
        ("stable", "2", "hold = [\"linux-image*\"]", Some(&old)),
        ("large", "3", "updates = true", Some(&old)),
    ] {
        let out = place.join(format!("{name}.img"));
        if out.exists() {
            continue; // Delete target/work/bench to build anew.
        }
        let with = |found: &str, wanted: &str| format!("{found}\n{wanted}");
        let text = recipe
            .replace("version = \"1\"", &format!("version = \"{version}\""))
            .replace("suite = \"bookworm\"", &with("suite = \"bookworm\"", key));
        let file = place.join(if name == "stable" { "small.toml".to_owned() } else { format!("{name}.toml") });
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        // The figures compare states of the archive that belong together.
        let previous = previous.map(PathBuf::as_path);
        let options = image::ImageOptions { fresh: false, keep_packages: true, assume_yes, previous, keys: &[] };
        image::build(paths, &file, &out, &options)?;
    }
    Ok((old, Some(place.join("small.img")), Some(place.join("stable.img")), Some(place.join("large.img"))))
}

/// Makes images of 32 MiB: random blocks, half of them compressible; in the new image some are inserted, in the stable
/// one some are replaced, and in the large one half.
fn synthetic(place: &Path) -> Result<Four> {
    fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
    let block = |number: u64| {
        let mut content = vec![0; 4096];
        let mut reader = blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof();
        reader.fill(&mut content[..if number.is_multiple_of(2) { 4096 } else { 700 }]);
        content
    };
    let write = |name: &str, blocks: &mut dyn Iterator<Item = u64>| -> Result<PathBuf> {
        let path = place.join(name);
        let mut file = std::io::BufWriter::new(File::create(&path)?);
        for number in blocks {
            file.write_all(&block(number))?;
        }
        file.flush()?;
        Ok(path)
    };
    let inserted = (0..100).chain(SMALL_BLOCKS..SMALL_BLOCKS + 50).chain(100..SMALL_BLOCKS - 50);
    let replaced = (0..SMALL_BLOCKS).map(|number| if number / 50 == 40 { SMALL_BLOCKS + number } else { number });
    let other =
        (0..SMALL_BLOCKS).map(|number| if number < SMALL_BLOCKS / 2 { number } else { 3 * SMALL_BLOCKS + number });
    Ok((
        write("old.img", &mut (0..SMALL_BLOCKS))?,
        Some(write("new.img", &mut inserted.clone())?),
        Some(write("stable.img", &mut replaced.clone())?),
        Some(write("large.img", &mut other.clone())?),
    ))
}
