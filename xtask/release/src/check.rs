//! `cargo xtask release --check`: reads a whole release tree as an agent would, and more: every chunk and the
//! digest of the whole image.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::{IntoParallelIterator, ParallelIterator};
use reflash::flash::survey::content_of;
use reflash::release::deltas::{self, Deltas};
use reflash::release::digest::{Digest, hex};
use reflash::release::frames;
use reflash::release::groups::{ChunkGroup, Groups};
use reflash::release::index::outline::Outline;
use reflash::release::index::{ChunkContent, ChunkNo, Index, Location, Pack, StoredChunkNo};
use reflash::release::manifest::{
    DeltaObjects, FrameObjects, Image, IndexParts, Manifest, Object, TrustedKeys, manifest_path, object_path,
};
use reflash::release::weak_hashes::{WeakHash, WeakHashes};
use reflash::release::zstd_frame;
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
    check_objects(root, &manifest)?;
    Ok(manifest)
}

/// Checks every object of a release.
///
/// # Errors
/// The first object that is missing or damaged.
pub fn check_objects(root: &Path, manifest: &Manifest) -> Result<()> {
    for file in &manifest.files {
        object(root, &file.object).with_context(|| format!("file {:?}", file.name))?;
    }
    for image in &manifest.images {
        check_image(root, image).with_context(|| format!("image {:?}", image.name))?;
    }
    Ok(())
}

/// Every object a release consists of: what must be copied with its manifest.
///
/// # Errors
/// When an index cannot be read.
pub fn objects(root: &Path, manifest: &Manifest) -> Result<Vec<Digest>> {
    objects_by(manifest, |described| object(root, described))
}

/// Lists every object a release consists of, wherever it lies: `read` returns the content of a chunk index or of a
/// table of groups.
///
/// # Errors
/// When an index cannot be read, or is not what the manifest says.
pub fn objects_by(manifest: &Manifest, read: impl Fn(&Object) -> Result<Vec<u8>>) -> Result<Vec<Digest>> {
    let mut found: Vec<Digest> = manifest.files.iter().map(|file| file.object.blake3).collect();
    for image in &manifest.images {
        let content = read(&image.index).with_context(|| format!("image {:?}", image.name))?;
        let index = Index::from_object(&content).with_context(|| format!("image {:?}", image.name))?;
        found.push(image.index.blake3);
        found.extend(image.weak_hashes.map(|weak_hashes| weak_hashes.blake3));
        found.extend(image.parts.iter().flat_map(|parts| [parts.outline.blake3, parts.digests.blake3]));
        found.extend(image.frames.iter().flat_map(|frames| [frames.sums.blake3, frames.digests.blake3]));
        let of = |it: &DeltaObjects| [Some(it.table.blake3), Some(it.pack.blake3), it.digests.map(|it| it.blake3)];
        found.extend(image.deltas.iter().flat_map(of).flatten());
        found.extend(index.packs().iter().map(|pack| pack.digest));
        if let Some(described) = &image.groups {
            let groups =
                Groups::from_object(&read(described)?, &index).with_context(|| format!("image {:?}", image.name))?;
            found.extend(std::iter::once(described.blake3).chain(groups.packs().iter().map(|pack| pack.digest)));
        }
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

fn check_image(root: &Path, image: &Image) -> Result<()> {
    let index = Index::from_object(&object(root, &image.index)?)?;
    let (index_bytes, manifest_bytes) = (index.image_bytes(), image.size_bytes);
    ensure!(
        index_bytes == manifest_bytes,
        "the chunk index describes {index_bytes} bytes and the manifest {manifest_bytes}"
    );
    let weak_hashes =
        image.weak_hashes.as_ref().map(|described| anyhow::Ok(WeakHashes::decode(object(root, described)?, &index)?));
    if let Some(parts) = &image.parts {
        check_parts(root, parts, &index)?;
    }
    for deltas in &image.deltas {
        check_deltas(root, deltas, &index)?;
    }
    if let Some(described) = &image.groups {
        check_groups(root, described, &index)?;
    }
    let packs = packs(root, index.packs())?;
    if let Some(described) = &image.frames {
        check_frames(root, described, &index, &packs)?;
    }
    let sha256 = check_content(&packs, &index, weak_hashes.transpose()?.as_ref())?;
    ensure!(sha256 == image.sha256, "its content has SHA-256 {sha256}, the manifest says {}", image.sha256);
    Ok(())
}

/// Checks that the parts of the index are those of the index: robots would fetch it whole, and nobody would know.
fn check_parts(root: &Path, parts: &IndexParts, index: &Index) -> Result<()> {
    let outline = zstd::stream::decode_all(object(root, &parts.outline)?.as_slice()).context("read the outline")?;
    ensure!(outline == Outline::encode(index), "the outline is not that of the chunk index");
    let digests = object(root, &parts.digests)?;
    let of_index = (0..index.stored_count()).flat_map(|stored| index.digest(stored).0);
    ensure!(digests.into_iter().eq(of_index), "the digests are not those of the chunk index");
    ensure!(parts.content == content_of(index), "the digest of its content is {}", content_of(index));
    ensure!(parts.chunk_bytes == index.chunk_bytes(), "the chunks have {} bytes", index.chunk_bytes());
    Ok(())
}

/// Checks the deltas as far as that is possible without the release before: the table, and that each has its digest and
/// is one zstd frame of a size that it can have.
fn check_deltas(root: &Path, described: &DeltaObjects, index: &Index) -> Result<()> {
    let bytes = object(root, &described.pack)?;
    let pack = Pack { digest: described.pack.blake3, size_bytes: described.pack.size_bytes };
    let table = Deltas::from_object(&object(root, &described.table)?, pack, index)?;
    for number in 0..table.len() {
        let (delta, place) = (table.get(number), table.place(number));
        let bytes = &bytes[usize::try_from(place.start)?..usize::try_from(place.end)?];
        ensure!(Digest::of(bytes).half() == delta.digest, "delta {number} has another digest than its table says");
        deltas::open(bytes, delta.content_bytes(index)).with_context(|| format!("check delta {number}"))?;
    }
    Ok(())
}

/// Checks that each frame has its digest, and each page of digests its sum: a robot takes no frame that has another.
fn check_frames(root: &Path, described: &FrameObjects, index: &Index, packs: &[Vec<u8>]) -> Result<()> {
    let (digests, sums) = (object(root, &described.digests)?, object(root, &described.sums)?);
    let (digests, rest) = digests.as_chunks();
    let count = index.stored_count();
    ensure!(digests.len() == count as usize && rest.is_empty(), "there are not {count} digests of frames");
    for (stored, digest) in (0..).zip(digests) {
        ensure!(Digest::of(frame(packs, index, stored)?).half() == *digest, "frame {stored} has another digest");
    }
    ensure!(sums == frames::sums(digests), "the sums are not those of the digests of frames");
    Ok(())
}

/// Checks that each group has its digest, and makes its chunks.
fn check_groups(root: &Path, described: &Object, index: &Index) -> Result<()> {
    let groups = Groups::from_object(&object(root, described)?, index)?;
    let packs = packs(root, groups.packs())?;
    let chunk_bytes = usize::try_from(index.chunk_bytes())?;
    let check = |number: u32| -> Result<()> {
        let ChunkGroup { pack, range, digest, members } = groups.get(number);
        let bytes = &packs[pack as usize][usize::try_from(range.start)?..usize::try_from(range.end)?];
        ensure!(Digest::of(bytes).half() == digest, "it has another digest than its table says");
        zstd_frame::check_chunk(bytes, members.len() * chunk_bytes)?;
        let content = zstd::bulk::decompress(bytes, members.len() * chunk_bytes).context("decompress it")?;
        ensure!(content.len() == members.len() * chunk_bytes, "it has {} bytes of content", content.len());
        for (stored, content) in members.iter().zip(content.chunks(chunk_bytes)) {
            let is_right = stored.is_none_or(|stored| Digest::of(content) == *index.digest(stored));
            ensure!(is_right, "its content is not that of stored chunk {stored:?}");
        }
        Ok(())
    };
    let all = (0..groups.len()).into_par_iter();
    all.try_for_each(|number| check(number).with_context(|| format!("check group {number}")))
}

fn packs(root: &Path, packs: &[Pack]) -> Result<Vec<Vec<u8>>> {
    packs.iter().map(|pack| object(root, &Object { blake3: pack.digest, size_bytes: pack.size_bytes })).collect()
}

/// Checks every chunk against the index and against its weak hashes, and returns the SHA-256 of the image.
fn check_content(packs: &[Vec<u8>], index: &Index, weak_hashes: Option<&WeakHashes>) -> Result<String> {
    let mut sha256 = Sha256::new();
    let chunks: Vec<u32> = (0..index.chunk_count()).collect();
    for batch in chunks.chunks(256) {
        let contents: Vec<Vec<u8>> = batch
            .into_par_iter()
            .map(|chunk| content(packs, index, weak_hashes, *chunk).with_context(|| format!("check chunk {chunk}")))
            .collect::<Result<_>>()?;
        contents.iter().for_each(|content| sha256.update(content));
    }
    Ok(hex(&sha256.finalize()))
}

fn frame<'a>(packs: &'a [Vec<u8>], index: &Index, stored: StoredChunkNo) -> Result<&'a [u8]> {
    let Location { pack, range } = index.location(stored);
    Ok(&packs[pack as usize][usize::try_from(range.start)?..usize::try_from(range.end)?])
}

fn content(packs: &[Vec<u8>], index: &Index, weak_hashes: Option<&WeakHashes>, chunk: ChunkNo) -> Result<Vec<u8>> {
    let len = index.chunk_len(chunk);
    let ChunkContent::Stored(stored) = index.chunk_content(chunk) else { return Ok(vec![0; len]) };
    let bytes = frame(packs, index, stored)?;
    zstd_frame::check_chunk(bytes, len)?;
    let content = zstd::bulk::decompress(bytes, len).context("decompress it")?;
    ensure!(content.len() == len, "it has {} bytes of content, and its place has {len}", content.len());
    ensure!(index.matches(chunk, &content), "its content does not have the digest {}", index.digest(stored));
    if let Some(signed) = weak_hashes.and_then(|weak_hashes| weak_hashes.of(stored)) {
        let found = WeakHashes::of_chunk(&content).into_iter().chain(std::iter::repeat(WeakHash::NONE));
        ensure!(signed.zip(found).all(|(signed, found)| signed == found), "its weak hashes are of other content");
    }
    Ok(content)
}
