//! Where PID 1 speaks: every console the kernel has, and the kernel log.

use std::fs;
use std::io::{IsTerminal, Write};

use crate::journal::Journal;
use crate::sys;

/// A journal that speaks to every console the kernel has, and to the kernel log.
pub(super) fn open_journal() -> Journal {
    let consoles: Vec<_> =
        sys::init::consoles().iter().filter_map(|path| fs::OpenOptions::new().write(true).open(path).ok()).collect();
    let console: Box<dyn Write + Send> =
        if consoles.is_empty() { Box::new(std::io::stdout()) } else { Box::new(Consoles(consoles)) };
    let journal = Journal::new(Some(console), std::io::stdout().is_terminal());
    if let Ok(kmsg) = sys::kmsg::Kmsg::open() {
        journal.also_to(Box::new(move |line| {
            // The console shows the line already; the kernel log keeps it for whoever looks later.
            let _ = kmsg.write(sys::kmsg::Level::Info, line);
        }));
    }
    journal
}

/// Writes to all consoles; one that fails does not keep the others silent.
struct Consoles(Vec<fs::File>);

impl Write for Consoles {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for console in &mut self.0 {
            let _ = console.write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
