//! Output and input of PID 1 and its worker: every console that the kernel has, and the kernel log.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::sync::mpsc::{Receiver, channel};

use super::background::background;
use crate::record::journal::{ConsoleKind, Journal};
use crate::sys;

/// Opens a journal that writes to every console that the kernel has, and to the kernel log.
pub(super) fn open_journal() -> Journal {
    let consoles: Vec<_> =
        sys::init::consoles().iter().filter_map(|path| fs::OpenOptions::new().write(true).open(path).ok()).collect();
    let console: Box<dyn Write + Send> =
        if consoles.is_empty() { Box::new(std::io::stderr()) } else { Box::new(Consoles(consoles)) };
    let kind = if std::io::stderr().is_terminal() { ConsoleKind::Terminal } else { ConsoleKind::Lines };
    let journal = Journal::on_console(console, kind);
    if let Ok(kmsg) = sys::kmsg::Kmsg::open() {
        journal.tee(Box::new(move |line| {
            // The console shows the line already; the kernel log keeps it for later.
            let _ = kmsg.write(sys::kmsg::Level::Info, line);
        }));
    }
    journal
}

/// Reads what is typed on any console, line by line.
pub(super) fn lines(journal: &Journal) -> Receiver<String> {
    let (sender, typed) = channel();
    for path in sys::init::consoles() {
        let Ok(console) = fs::File::open(path) else { continue };
        let sender = sender.clone();
        // Ends with the machine: nothing else reads the consoles.
        background(journal, "console", move || {
            for line in BufReader::new(console).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
    }
    typed
}

/// Sends the messages of libraries (HTTP, TLS) and of our own debugging to the kernel log: warnings always, everything
/// when `verbose`. The console belongs to the journal alone.
pub(super) fn log_libraries(verbose: bool) {
    let Ok(kmsg) = sys::kmsg::Kmsg::open() else { return };
    if log::set_boxed_logger(Box::new(KernelLog(kmsg))).is_ok() {
        log::set_max_level(if verbose { log::LevelFilter::Debug } else { log::LevelFilter::Warn });
    }
}

struct KernelLog(sys::kmsg::Kmsg);

impl log::Log for KernelLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = match record.level() {
            log::Level::Error | log::Level::Warn => sys::kmsg::Level::Warning,
            _ => sys::kmsg::Level::Info,
        };
        if self.enabled(record.metadata()) {
            let _ = self.0.write(level, &format!("{}: {}", record.target(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// A writer to all consoles; one that fails does not keep the others silent.
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
