//! Losses of a start, as a line each in the event log of the state partition, and in the black box: they outlive this
//! boot, where the console and `/run` do not.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use super::error::SysrootError;
use super::plan::BootPlaces;
use super::take::answer_within;
use crate::jobs::state::StatePartition;
use crate::record::blackbox::BlackBox;
use crate::record::event::{Entry, Event};
use crate::record::start::StartRecord;
use crate::record::wire;
use crate::sys::clock::now_unix_s;
use crate::sys::mount::{self, Mount};

/// Time for the disk to take a few lines.
const LIMIT: Duration = Duration::from_secs(60);

/// Keeps what was lost in this start, if anything was.
pub(super) fn keep(record: &StartRecord, state: Option<&Path>, places: &BootPlaces) -> Result<(), SysrootError> {
    let Some(device) = state.filter(|_| !record.lost.is_empty()) else { return Ok(()) };
    let (mount, at) = (Mount::device(device, "ext4").data_only(), places.run.join("state"));
    let (lines, losses) = (lines(record), record.lost.clone());
    answer_within(LIMIT, "write to the state partition", move || {
        mount.on(&at)?;
        let state = StatePartition::new(&at);
        let written = append(&state, &lines);
        let recorded = BlackBox::open(&state.blackbox_path()).and_then(|mut open| open.add_losses(&losses));
        mount::unmount(&at)?;
        written.map_err(SysrootError::file("write to the event log of the state partition"))?;
        recorded.map_err(SysrootError::file("write to the black box"))
    })
}

fn append(state: &StatePartition, lines: &str) -> io::Result<()> {
    state.open_events().map_err(io::Error::other)?.write_all(lines.as_bytes())
}

/// The lines of the log. The clock is that of the hardware, which may be wrong.
fn lines(record: &StartRecord) -> String {
    let unix_s = now_unix_s();
    let begin = match record.safe_start {
        Some(number) => format!("safe start {number}"),
        None => "start of the system".to_owned(),
    };
    let line = |loss: &String| {
        let text = format!("{begin}: {loss}");
        wire::log_line(&Entry { unix_s, phase: None, event: Event::Warning(&text) }).map(|line| line + "\n")
    };
    record.lost.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::{append, lines};
    use crate::jobs::state::StatePartition;
    use crate::record::start::StartRecord;

    #[test]
    fn each_loss_is_a_line_of_the_event_log() {
        let dir = tempfile::tempdir().unwrap();
        let state = StatePartition::new(dir.path());
        let mut record = StartRecord { safe_start: Some(2), ..StartRecord::default() };
        record.lose("the data partition cannot be read");
        record.lose("something\nelse");
        append(&state, &lines(&record)).unwrap();
        let events = state.last_events(4096).unwrap();
        assert_eq!(events.lines().count(), 2, "{events}");
        assert!(events.contains("safe start 2: the data partition cannot be read"), "{events}");
    }
}
