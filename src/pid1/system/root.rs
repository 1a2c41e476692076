//! Puts `/var` and `/etc` over the deployment: from the data partition, or from what is left of it.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use super::accounts;
use super::data;
use super::error::SysrootError;
use super::messages::say;
use super::plan::{BootPlaces, BootStep, MemorySizes, etc_changes, etc_steps, forms_of_etc, forms_of_var, var_steps};
use super::renewal::{DataRenewal, RenewalParts};
use super::shipped;
use super::take::{answer_within, take_all};
use crate::chain::chain;
use crate::record::start::{DataUse, EtcFrom, StartRecord, VarFrom};
use crate::sys::{files, mount};

/// Time for the mounts of `/var` or `/etc`.
const LIMIT: Duration = Duration::from_secs(60);
/// Name of the file that units of a safe start find, below the directory of the first step.
const SAFE_MARK: &str = "safe";

/// Parts that the root is made from.
#[derive(Debug)]
pub struct RootParts<'a> {
    /// Directories to work in.
    pub places: &'a BootPlaces,
    /// Device of the data partition, if there is one.
    pub data: Option<&'a Path>,
    /// Partitions that its renewal needs, where one is configured.
    pub renewal: Option<&'a RenewalParts>,
    /// Program that checks it.
    pub fsck: &'a Path,
    /// Number of this safe start, if it is one.
    pub safe: Option<u32>,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
}

/// Puts `/var` and `/etc` over the deployment that is mounted on the root. Whatever fails is recorded, and something
/// else takes its place.
pub fn put_together(parts: &RootParts<'_>, record: &mut StartRecord) {
    let (places, safe) = (parts.places, parts.safe.is_some());
    record.safe_start = parts.safe;
    let mut used = open_data(parts, record);
    if used == DataUse::Writable {
        data::make_room(places.data.clone(), record);
        shipped::on_data(places, record);
    }
    make_memory_private(places);
    let sizes = MemorySizes::of(parts.memory_bytes);
    record.var = first_form(&mut used, record, "/var", |data| {
        let forms = forms_of_var(data, safe).iter();
        forms.map(|form| (*form, var_steps(places, data, *form, sizes))).collect()
    });
    record.etc = first_form(&mut used, record, "/etc", |data| {
        let forms = forms_of_etc(data, safe).iter();
        forms.map(|form| (*form, etc_steps(places, data, *form, sizes))).collect()
    });
    shipped::in_memory(places, record);
    if used == DataUse::Writable {
        data::restore_reserve(places.data.clone());
        data::keep_names(places.data.clone());
        if let Err(error) = mount::unmount(&places.data) {
            say(&chain(&error));
            let _ = mount::detach(&places.data);
        }
    }
    record.data = used;
    if safe {
        begin_safe(places, used, record);
    }
    for loss in &record.lost {
        say(&format!("GIVEN UP: {loss}"));
    }
    if record.var != VarFrom::Data || record.etc != EtcFrom::Data {
        say(&summary(record));
    }
}

/// Opens the data partition, and has it made anew where that is configured and due.
fn open_data(parts: &RootParts<'_>, record: &mut StartRecord) -> DataUse {
    let (places, safe) = (parts.places, parts.safe.is_some());
    let open = |record: &mut StartRecord| data::open(parts.data, parts.fsck, places, safe, record);
    let Some((renewal, device)) = parts.renewal.zip(parts.data).filter(|_| !safe) else { return open(record) };
    let refused = |record: &mut StartRecord, error: SysrootError| {
        record.lose(format!("the data partition is not made anew: {}", chain(&error)));
    };
    let mut renewal = match DataRenewal::go_on(renewal, device, places) {
        Ok(renewal) => renewal,
        Err(error) => {
            refused(record, error);
            return open(record);
        }
    };
    let used = open(record);
    if used == DataUse::Lost && data::foreign(device).is_some() {
        return used;
    }
    renewal.after(used, record, open).unwrap_or_else(|error| {
        refused(record, error);
        // What it was doing when it failed may have left the partition mounted or not.
        [&places.data, &places.readable_data()].into_iter().for_each(|place| mount::detach_below(place));
        open(record)
    })
}

/// Takes the steps of the first form that can be taken. A disk that does not answer counts as lost from then on.
fn first_form<F: Copy + Default>(
    data: &mut DataUse,
    record: &mut StartRecord,
    what: &str,
    forms: impl Fn(DataUse) -> Vec<(F, Vec<BootStep>)>,
) -> F {
    let mut left = forms(*data).into_iter();
    while let Some((form, steps)) = left.next() {
        let action = format!("put {what} together");
        match answer_within(LIMIT, &action, move || take_all(&steps)) {
            Ok(()) => return form,
            Err(error) => {
                record.lose(format!("{what}: {}", chain(&error)));
                if matches!(error, SysrootError::NoAnswer { .. }) && *data != DataUse::Lost {
                    *data = DataUse::Lost;
                    left = forms(DataUse::Lost).into_iter();
                }
            }
        }
    }
    F::default()
}

/// Keeps everybody but root out of the directories of the overlays: what lies there shows through `/var` and `/etc`
/// with the permissions that it should have.
fn make_memory_private(places: &BootPlaces) {
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(places.memory());
    if let Err(error) = made.and_then(|()| set_mode(&places.run, 0o755)) {
        say(&format!("cannot create {}: {error}", places.memory().display()));
    }
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// Gives a safe start the machine's accounts, where they can be read, and marks it for units and people.
fn begin_safe(places: &BootPlaces, data: DataUse, record: &mut StartRecord) {
    let own = (data == DataUse::ReadOnly).then(|| places.readable_data());
    let root = places.root.clone();
    let writable = (record.etc == EtcFrom::Memory, record.var == VarFrom::Memory);
    let given = answer_within(LIMIT, "read the accounts of this machine", move || {
        // A link may lead to the accounts of the initramfs, which are nobody's.
        let changes = own.as_deref().map(etc_changes);
        let machine = own.as_deref().zip(changes.as_deref()).filter(|(data, etc)| files::is_directory_on(etc, data));
        Ok(accounts::give(&root, machine.map(|(data, etc)| accounts::Machine { data, etc }), writable.0, writable.1))
    });
    match given {
        Ok(accounts::Given { logins, lost }) => {
            record.logins = Some(logins);
            lost.into_iter().for_each(|loss| record.lose(loss));
        }
        Err(error) => record.lose(chain(&error)),
    }
    let number = record.safe_start.unwrap_or(1);
    if let Err(error) = fs::write(places.run.join(SAFE_MARK), format!("{number}\n")) {
        say(&format!("this safe start cannot be marked as one: {error}"));
    }
}

/// One sentence for the person at the console.
fn summary(record: &StartRecord) -> String {
    let var = match record.var {
        VarFrom::Data => "of the data partition",
        VarFrom::MemoryOverData => "of the data partition, and its changes are in memory",
        VarFrom::Memory => "in memory, and began empty",
        VarFrom::Image => "of the image, and cannot be written",
    };
    let etc = match record.etc {
        EtcFrom::Data => "of this machine",
        EtcFrom::MemoryOverData => "of this machine, and its changes are in memory",
        EtcFrom::ReadOnly => "of this machine, and cannot be written",
        EtcFrom::Memory => "of the image, and its changes are in memory",
        EtcFrom::Image => "of the image, and cannot be written",
    };
    let begin = match record.safe_start {
        Some(number) => format!("SAFE START {number}: the system starts without the settings of this machine"),
        None => "the system starts without all of its data".to_owned(),
    };
    let data = record.data_at.as_ref().map(|at| format!("; data can be read at {at}")).unwrap_or_default();
    let logins = match record.logins.as_deref() {
        Some([]) => "; NOBODY CAN LOG IN".to_owned(),
        Some(names) => format!("; can log in: {}", names.join(", ")),
        None => String::new(),
    };
    format!("{begin}. /etc is {etc}; /var is {var}{data}{logins}")
}

#[cfg(test)]
mod tests {
    use super::summary;
    use crate::record::start::{DataUse, EtcFrom, StartRecord, VarFrom};

    #[test]
    fn a_person_at_the_console_learns_what_runs() {
        let mut record = StartRecord {
            data: DataUse::ReadOnly,
            data_at: Some("/run/reflash/data".into()),
            var: VarFrom::MemoryOverData,
            etc: EtcFrom::MemoryOverData,
            ..StartRecord::default()
        };
        let text = summary(&record);
        assert!(text.contains("changes are in memory") && text.contains("read at /run/reflash/data"), "{text}");
        record.safe_start = Some(2);
        record.logins = Some(Vec::new());
        assert!(summary(&record).starts_with("SAFE START 2") && summary(&record).contains("NOBODY CAN LOG IN"));
        record.logins = Some(vec!["root".into(), "pilot".into()]);
        assert!(summary(&record).contains("can log in: root, pilot"));
    }
}
