//! The index of a release: the recorded one, or put together from what the partition holds and what is lacking, or
//! fetched whole.

use std::cell::RefCell;
use std::ops::Range;

use super::error::RecoveryError;
use super::job::RecoveryJob;
use super::planning;
use super::release::fetch_object;
use super::savings::deltas_for;
use crate::chain::chain;
use crate::fetch::{Source, pages};
use crate::flash::survey::Survey;
use crate::flash::write;
use crate::jobs::state::{IndexedRelease, InstalledRecord, Release};
use crate::record::journal::Phase;
use crate::release::digest::Digest;
use crate::release::index::outline::{DIGEST_BYTES, Outline, changed};
use crate::release::index::{Index, StoredChunkNo};
use crate::release::manifest::{Image, IndexParts, SYSTEM_IMAGE, object_path};

/// What an index is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IndexUse {
    /// Whatever the partition holds, all of it may be asked for.
    All,
    /// Only the partition is made equal. Where it is already, and there is nothing to record, no index is fetched.
    Writing,
}

/// Completes a release with its index, fit for this partition.
pub(super) fn add_index(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: Release,
    index_use: IndexUse,
) -> Result<IndexedRelease, RecoveryError> {
    let Release { signed, manifest } = release;
    let image = manifest.image(SYSTEM_IMAGE)?;
    let same = |record: &&InstalledRecord| {
        record.manifest().image(SYSTEM_IMAGE).is_ok_and(|installed| installed.index == image.index)
    };
    let recorded = record.filter(same).zip(job.resources.state).and_then(|(record, state)| state.index_of(record));
    if recorded.is_none() {
        write::check_size(image.size_bytes, job.resources.target)?;
    }
    let ((index, index_object), survey) = match (recorded, &image.parts) {
        (Some(installed), _) => ((installed.index, installed.index_object), None),
        (None, Some(parts)) => put_together(job, record, (image, parts), index_use)?,
        (None, None) => (whole(job, image)?, None),
    };
    if index.image_bytes() != image.size_bytes {
        return Err(RecoveryError::SizesDiffer { index_bytes: index.image_bytes(), manifest_bytes: image.size_bytes });
    }
    write::check_size(index.image_bytes(), job.resources.target)?;
    Ok(IndexedRelease { signed, manifest, index, index_object, survey: RefCell::new(survey.map(Box::new)) })
}

/// An index and its object.
type Obtained = (Index, Vec<u8>);

fn whole(job: &RecoveryJob<'_>, image: &Image) -> Result<Obtained, RecoveryError> {
    job.journal.phase(Phase::Manifest, "fetch the chunk index", || {
        let object = fetch_object(job.resources.source, "chunk index", &image.index)?;
        Ok((Index::from_object(&object)?, object))
    })
}

/// Reads the partition, and fetches what it does not tell.
fn put_together(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    (image, parts): (&Image, &IndexParts),
    index_use: IndexUse,
) -> Result<(Obtained, Option<Survey>), RecoveryError> {
    // Parts that contradict themselves are no reason to do without a release whose index does not.
    let sizes = (parts.chunk_bytes, image.size_bytes);
    let sentence = format!("look through {}", job.resources.target.name());
    let looked = || planning::look_through(job, sizes, planning::image_bytes(record));
    let survey = match job.journal.phase(Phase::Plan, &sentence, looked) {
        Ok(survey) => survey,
        Err(error) => {
            job.journal.warn(&format!("the parts of the chunk index are not used: {}", chain(&error)));
            return Ok((whole(job, image)?, None));
        }
    };
    let is_of_use = index_use == IndexUse::All || job.resources.state.is_some();
    if !is_of_use && survey.content() == Some(parts.content) {
        return Ok(((survey.to_index()?, Vec::new()), Some(survey)));
    }
    let made = job.journal.phase(Phase::Plan, "fetch what is lacking of the chunk index", || {
        match from_parts(job, image, parts, &survey) {
            Err(error) if error.is_retryable() && !error.is_of_one_object() => Err(error),
            made => Ok(made),
        }
    })?;
    let obtained = match made {
        Ok(Some(obtained)) => obtained,
        Ok(None) => whole(job, image)?,
        Err(error) => {
            job.journal.warn(&format!("the chunk index is fetched whole: {}", chain(&error)));
            whole(job, image)?
        }
    };
    Ok((obtained, Some(survey)))
}

/// Puts the index together. `None` where the parts are not those of the index, which the index itself shows.
fn from_parts(
    job: &RecoveryJob<'_>,
    image: &Image,
    parts: &IndexParts,
    survey: &Survey,
) -> Result<Option<Obtained>, RecoveryError> {
    let source = job.resources.source;
    let mut outline = Outline::from_object(&fetch_object(source, "outline of the chunk index", &parts.outline)?)?;
    if outline.sizes() != (parts.chunk_bytes, image.size_bytes) {
        return Ok(None);
    }
    outline.guess(|chunk| survey.digest(chunk));
    let mut wrong = outline.wrong_pages();
    let lacking = |wrong: &[Range<StoredChunkNo>]| wrong.iter().map(|page| page.len() as u64 * DIGEST_BYTES).sum();
    let changed_digests = deltas_for(job, image).first().and_then(|deltas| deltas.digests);
    if let Some(object) = changed_digests.filter(|object| object.size_bytes < lacking(&wrong)) {
        outline.learn(changed::from_object(&fetch_object(source, "changed digests", &object)?)?.into_iter());
        wrong = outline.wrong_pages();
    }
    fetch_pages(source, parts, &mut outline, &wrong)?;
    let index = outline.complete()?;
    let object = index.to_object();
    let is_right = Digest::of(&object) == image.index.blake3 && object.len() as u64 == image.index.size_bytes;
    Ok(is_right.then_some((index, object)))
}

/// Fetches pages of digests. Each is checked by its sum before the next byte is taken.
fn fetch_pages(
    source: &dyn Source,
    parts: &IndexParts,
    outline: &mut Outline,
    wrong: &[Range<StoredChunkNo>],
) -> Result<(), RecoveryError> {
    let place = |page: &Range<StoredChunkNo>| u64::from(page.start) * DIGEST_BYTES..u64::from(page.end) * DIGEST_BYTES;
    let places: Vec<Range<u64>> = wrong.iter().map(place).collect();
    let fetched = pages::fetch(source, &object_path(&parts.digests.blake3), &places, |number, bytes| {
        let (page, digests) = (&wrong[number], bytes.as_chunks().0.iter().map(|digest| Digest(*digest)));
        let is_it = outline.is_page(page, &digests.clone().collect::<Vec<_>>());
        if is_it {
            outline.learn(page.clone().zip(digests));
        }
        is_it
    });
    fetched.map_err(|source| RecoveryError::Fetch { what: "digests of the chunk index", source })
}
