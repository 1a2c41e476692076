//! Lines into the kernel log, where they survive on the serial console and in pstore.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

/// Kernel log level of a line, as in syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Error, level 3: on the console even at quiet log levels.
    Error = 3,
    /// Warning, level 4.
    Warning = 4,
    /// Information, level 6: in the log only.
    Info = 6,
}

/// The kernel refuses records above 1024 bytes, prefix included; the rest is room for the prefix.
const MAX_RECORD: usize = 960;

/// An open `/dev/kmsg`.
#[derive(Debug)]
pub struct Kmsg {
    device: File,
}

impl Kmsg {
    /// Opens `/dev/kmsg`; needs `/dev` to be mounted.
    ///
    /// # Errors
    /// The device is missing or may not be written.
    pub fn open() -> io::Result<Self> {
        Ok(Self { device: OpenOptions::new().write(true).open("/dev/kmsg")? })
    }

    /// Writes `text` as one record per line; a line longer than the kernel takes becomes several.
    ///
    /// # Errors
    /// The kernel refused the write.
    pub fn write(&self, level: Level, text: &str) -> io::Result<()> {
        for record in records(text) {
            // One write per record: the kernel ends a record at the end of the write, not at a newline.
            (&self.device).write_all(format!("<{}>reflash: {record}", level as u8).as_bytes())?;
        }
        Ok(())
    }
}

/// Splits at line ends and, at character boundaries, at the longest record the kernel takes.
fn records(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty()).flat_map(|line| {
        let mut rest = line;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (head, tail) = rest.split_at(rest.floor_char_boundary(MAX_RECORD));
            rest = tail;
            Some(head)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{MAX_RECORD, records};

    #[test]
    fn lines_become_records_and_long_lines_are_cut_between_characters() {
        let long = "é".repeat(MAX_RECORD);
        let text = format!("one\n\ntwo\n{long}");
        let all: Vec<&str> = records(&text).collect();
        assert_eq!(&all[..2], ["one", "two"]);
        assert!(all.iter().all(|record| record.len() <= MAX_RECORD && !record.is_empty()));
        assert_eq!(all[2..].concat(), long);
    }
}
