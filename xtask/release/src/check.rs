//! `cargo xtask release --check`: reads a whole release tree as an agent would, and more: every chunk and the
//! digest of the whole image.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::{IntoParallelIterator, ParallelIterator};
use reflash::release::digest::{Digest, hex};
use reflash::release::index::{ChunkContent, Index, Pack};
use reflash::release::manifest::{Manifest, Object, TrustedKeys, manifest_path, object_path};
use reflash::release::patches::Patches;
use reflash::release::weak_hashes::WeakHashes;
use sha2::{Digest as _, Sha256};

/// Checks the release of `channel` in the tree `root` against the keys.
///
/// # Errors
/// The first thing that is wrong, by name.
pub fn check(root: &Path, channel: &str, keys: &TrustedKeys) -> Result<Manifest> {
    let path = root.join(manifest_path(channel));
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let signature_path = path.with_added_extension("minisig");
    let signature = String::from_utf8(read(&signature_path)?).context("the signature is not text")?;
    let signed = keys.authenticate(read(&path)?, &signature).with_context(|| format!("check {}", path.display()))?;
    let manifest = Manifest::parse(&signed)?;
    for file in &manifest.files {
        object(root, &file.object).with_context(|| format!("file {:?}", file.name))?;
    }
    for image in &manifest.images {
        let index =
            Index::from_object(&object(root, &image.index)?).with_context(|| format!("image {:?}", image.name))?;
        if let Some(weak_hashes) = &image.weak_hashes {
            WeakHashes::decode(object(root, weak_hashes)?, &index)
                .with_context(|| format!("image {:?}", image.name))?;
        }
        if let Some(patches) = &image.patches {
            object(root, &patches.pack).with_context(|| format!("image {:?}", image.name))?;
            let pack = Pack { digest: patches.pack.blake3, size_bytes: patches.pack.size_bytes };
            Patches::from_object(&object(root, &patches.table)?, pack, &index)
                .with_context(|| format!("image {:?}", image.name))?;
        }
        ensure!(index.image_bytes() == image.size_bytes, "image {:?}: index and manifest differ in size", image.name);
        let sha256 = check_image(root, &index).with_context(|| format!("image {:?}", image.name))?;
        ensure!(
            sha256 == image.sha256,
            "image {:?} has SHA-256 {sha256}, the manifest says {}",
            image.name,
            image.sha256
        );
    }
    Ok(manifest)
}

/// Every object a release consists of: what must be copied with its manifest.
///
/// # Errors
/// When an index cannot be read.
pub fn objects(root: &Path, manifest: &Manifest) -> Result<Vec<Digest>> {
    let mut found: Vec<Digest> = manifest.files.iter().map(|file| file.object.blake3).collect();
    for image in &manifest.images {
        let index =
            Index::from_object(&object(root, &image.index)?).with_context(|| format!("image {:?}", image.name))?;
        found.push(image.index.blake3);
        found.extend(image.weak_hashes.map(|weak_hashes| weak_hashes.blake3));
        found.extend(image.patches.iter().flat_map(|patches| [patches.table.blake3, patches.pack.blake3]));
        found.extend(index.packs().iter().map(|pack| pack.digest));
    }
    Ok(found)
}

fn object(root: &Path, object: &Object) -> Result<Vec<u8>> {
    let path = root.join(object_path(&object.blake3));
    let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let found = Digest::of(&content);
    if found != object.blake3 || content.len() as u64 != object.size_bytes {
        let len = content.len();
        bail!("{} is damaged: it has {len} bytes with digest {found}; make the release again", path.display());
    }
    Ok(content)
}

fn check_image(root: &Path, index: &Index) -> Result<String> {
    let packs =
        index.packs().iter().map(|pack| object(root, &Object { blake3: pack.digest, size_bytes: pack.size_bytes }));
    let packs: Vec<Vec<u8>> = packs.collect::<Result<_>>()?;
    let mut sha256 = Sha256::new();
    let chunks: Vec<u32> = (0..index.chunk_count()).collect();
    for batch in chunks.chunks(256) {
        let contents: Vec<Vec<u8>> = batch
            .into_par_iter()
            .map(|chunk| {
                let range = index.chunk_range(*chunk);
                let len = usize::try_from(range.end - range.start)?;
                let content = match index.chunk_content(*chunk) {
                    ChunkContent::Zero => vec![0; len],
                    ChunkContent::Stored(stored) => {
                        let place = index.location(stored);
                        let range = usize::try_from(place.range.start)?..usize::try_from(place.range.end)?;
                        let bytes = &packs[place.pack as usize][range];
                        zstd::bulk::decompress(bytes, len).with_context(|| format!("decompress chunk {chunk}"))?
                    }
                };
                ensure!(index.matches(*chunk, &content), "chunk {chunk} has a wrong digest");
                Ok(content)
            })
            .collect::<Result<_>>()?;
        contents.iter().for_each(|content| sha256.update(content));
    }
    Ok(hex(&sha256.finalize()))
}
