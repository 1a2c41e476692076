//! `reflash report`: the results of recent recoveries are posted to `report.url`.

use std::path::Path;

use serde_json::json;

use super::answer::{Exit, Failure, print};
use super::context::{config, keys, safe_start, this_machine};
use super::mounted::MountedState;
use super::options::Options;
use crate::fetch::{self, FetchError, FetchOptions};
use crate::jobs::health::HealthRecord;
use crate::record::blackbox::BlackBox;
use crate::record::report::{self, Pending, ReportedMachine};
use crate::record::start::StartRecord;
use crate::release::digest::Digest;

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    let config = config(options, Some(&mounted))?;
    let Some(url) = &config.report_url else {
        return nothing_to_post(options, "report.url is not configured, so nothing is posted");
    };
    let mut this_boot = StartRecord::of_this_boot().or_else(|| safe_start().map(StartRecord::of_safe_start));
    if let (Some(boot), Some(health)) = (&mut this_boot, HealthRecord::of_this_boot()) {
        boot.not_good = health.in_the_way().map(ToString::to_string).collect();
    }
    let record = keys(options, Some(&mounted)).ok().and_then(|keys| mounted.state.record(&keys));
    if let (Some(boot), Some(record)) = (&mut this_boot, &record) {
        // A robot with two systems may have got its release without a recovery, which would name it.
        boot.serial = Some(record.manifest().serial);
        boot.manifest = Some(Digest::of(record.release().signed.bytes()).to_string());
    }
    let machine = this_machine(&config, &mounted);
    let fetch_options = FetchOptions::with_clock_as_it_is(&config.network);
    let this_boot = this_boot.filter(|boot| !boot.is_whole());
    if !post(url, &machine, this_boot, &mounted.state.blackbox_path(), &fetch_options)? {
        return nothing_to_post(options, "every recovery was reported before");
    }
    print(options, &json!({ "reported": true }), || format!("reported to {}", fetch::redacted(url)))?;
    Ok(Exit::Done)
}

/// Posts how the system was started and how recoveries went. A server that refuses the first may take the second.
/// Returns whether there was any of the second.
fn post(
    url: &str,
    machine: &ReportedMachine,
    boot: Option<StartRecord>,
    black_box: &Path,
    options: &FetchOptions,
) -> Result<bool, Failure> {
    let failed = |error: FetchError| Failure::of(&error, error.is_retryable());
    let started = boot.map_or(Ok(()), |boot| report::post_start(url, machine, &boot, options).map_err(failed));
    let pending = Pending::of(&BlackBox::open(black_box)?, machine);
    if let Some(pending) = &pending {
        pending.post(url, options).map_err(failed)?;
        pending.mark_in(black_box);
    }
    started.map(|()| pending.is_some())
}

fn nothing_to_post(options: &Options, why: &str) -> Result<Exit, Failure> {
    print(options, &json!({ "reported": false }), || why.to_owned())?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::post;
    use crate::fetch::FetchOptions;
    use crate::machine::config::{Config, Layer};
    use crate::record::blackbox::{Attempt, AttemptOutcome, BlackBox, Marks};
    use crate::record::report::ReportedMachine;
    use crate::record::start::StartRecord;
    use std::io::{Read, Write};

    /// A server from before there were reports of starts, or one that finds something in them that it does not like.
    #[test]
    fn a_start_that_the_server_refuses_holds_no_recovery_back() {
        for status in ["403 Forbidden", "500 Internal Server Error"] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/report", listener.local_addr().unwrap());
            let (sender, documents) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut request = Vec::new();
                    while !request.ends_with(b"}") {
                        let mut piece = [0; 4096];
                        let length = stream.read(&mut piece).unwrap();
                        assert!(length > 0);
                        request.extend_from_slice(&piece[..length]);
                    }
                    let request = String::from_utf8(request).unwrap();
                    let status = if request.contains("safe_start") { status } else { "204 No Content" };
                    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
                    sender.send(request).unwrap();
                }
            });
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("blackbox");
            let outcome = Some(AttemptOutcome::Failed);
            BlackBox::open(&path).unwrap().record(&Attempt { id: 1, outcome, ..Attempt::default() }).unwrap();
            let network = "release.urls = ['http://a']\nmachine.product = 'x'\nnetwork.address = '192.0.2.7/24'\n";
            let config = Layer::parse("test", network).and_then(Config::resolve).unwrap();
            let options = FetchOptions::with_clock_as_it_is(&config.network);
            let boot = Some(StartRecord::of_safe_start(1));
            let machine = ReportedMachine::default();
            // `reflash good` at the same moment.
            let turn = crate::sys::turn::beside(&path);
            let mut beside = BlackBox::open(&path).unwrap();
            let good = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(500));
                beside.mark(Marks { good_through: 1, ..beside.marks() }).unwrap();
                drop(turn);
            });
            let Err(failure) = post(&url, &machine, boot, &path, &options) else { panic!("the start was refused") };
            good.join().unwrap();
            assert!(failure.text.contains(status), "{}", failure.text);
            let recoveries = documents.try_iter().last().unwrap();
            assert!(recoveries.contains("\"outcome\":\"failed\""), "{recoveries}");
            let marks = BlackBox::open(&path).unwrap().marks();
            assert_eq!((marks.reported_through, marks.good_through), (1, 1));
        }
    }
}
