//! What the running system has fetched, on the data partition: one more source, of which nothing is trusted.
//!
//! The data partition is the machine's own, so nothing is written to it, not even by its file system: it is looked at
//! through a device that refuses writes, and its journal is not replayed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::sources::SupervisedSource;
use crate::boot::request::{RecoveryRequest, UpdatePermission};
use crate::chain::chain;
use crate::disk::filesystem::ext4_modules;
use crate::fetch::Source;
use crate::jobs::update::UpdateStore;
use crate::machine::drivers::Loader;
use crate::pid1::link::{Handover, WorkPart};
use crate::pid1::worker;
use crate::record::journal::Journal;

/// Mount point of the data partition.
const DATA: &str = "/data";

/// What the running system has fetched.
pub(super) struct Staged {
    /// The store.
    pub store: Arc<UpdateStore>,
    /// Permission beside the request for this recovery.
    pub permission: UpdatePermission,
}

impl Staged {
    /// Opens the store on the data partition, if an update is asked for. Without it a network has the release.
    pub(super) fn open(
        request: Option<RecoveryRequest>,
        data: &Path,
        handover: &Handover,
        journal: &Journal,
    ) -> Option<Self> {
        let Some(RecoveryRequest::Update(permission)) = request else { return None };
        if handover.leaves_out(&WorkPart::Staged) {
            return None;
        }
        let opened = worker::within(&WorkPart::Staged, || open_store(data));
        match opened {
            Ok(store) => Some(Self { store: Arc::new(store), permission }),
            Err(why) => {
                journal.warn(&format!("what the system has fetched cannot be used: {why}"));
                None
            }
        }
    }

    /// The store as one more source of what a release consists of. Which release is offered it does not say.
    pub(super) fn source(&self) -> Box<dyn Source> {
        Box::new(SupervisedSource::new(WorkPart::Staged, Box::new(Arc::clone(&self.store))))
    }
}

fn open_store(data: &Path) -> Result<UpdateStore, String> {
    let loader = Loader::for_running_kernel().map_err(|error| chain(&error))?;
    loader.load("loop").map_err(|error| chain(&error))?;
    let mut head = vec![0; 4096];
    File::open(data).and_then(|file| file.read_exact_at(&mut head, 0)).map_err(|error| error.to_string())?;
    for name in ext4_modules(&head) {
        loader.load(name).map_err(|error| chain(&error))?;
    }
    UpdateStore::open_on_partition(data, Path::new(DATA)).map_err(|error| chain(&error))
}
