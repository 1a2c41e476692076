//! The station page of `serve --station`: it takes what machines post to `report.url`, and shows the last
//! state of each. The format is that of `reflash::record::wire`, which `docs/station.md` describes. Machines are not
//! trusted: everything is bounded, and only shown as text.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use reflash::record::wire::{Open, Post, ReportedAttempt, ReportedMachine, ReportedProgress};
use serde::Serialize;

const PAGE: &str = include_str!("station.html");
/// Most bytes of one post: 16 attempts of at most 4044 bytes each (a slot of the black box), and the machine.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Most machines that are remembered: more than a bench holds, in less than 3 MiB.
const MAX_MACHINES: usize = 500;
/// Most characters of one text.
const MAX_CHARS: usize = 300;
/// Time after which a machine that posted nothing gives way to a new one.
const SILENT: Duration = Duration::from_secs(30);

/// Content policy of the page: nothing comes from elsewhere, should a text ever become more than a text.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'";

/// The last state of every machine.
#[derive(Default)]
pub struct Station {
    machines: Mutex<BTreeMap<String, StationEntry>>,
    /// File to which each post is added as a line, for `rollout watch`.
    kept: Option<Mutex<File>>,
}

/// One machine. Its members are those of `/station.json`.
#[derive(Serialize)]
struct StationEntry {
    address: String,
    #[serde(rename = "seen_ms_ago", serialize_with = "ms_ago")]
    seen: Instant,
    machine: ReportedMachine,
    progress: Option<ReportedProgress>,
    last_attempt: Option<ReportedAttempt>,
}

fn ms_ago<S: serde::Serializer>(seen: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(seen.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// A post that is not taken.
#[derive(Debug, PartialEq, Eq)]
enum PostRefusal {
    Malformed(String),
    Full,
}

impl Station {
    /// A station that adds each post to a file, with the time at which it came.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn keeping(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("open {} to keep posts in", path.display()))?;
        Ok(Self { kept: Some(Mutex::new(file)), ..Self::default() })
    }

    /// Adds a post to the file of posts. What does not fit on the disk is a warning: the station goes on.
    fn keep(&self, body: &[u8]) {
        let Some(file) = &self.kept else { return };
        let Ok(mut post) = serde_json::from_slice::<serde_json::Value>(body) else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // A list can be read as a post, too.
        let Some(members) = post.as_object_mut() else { return };
        members.insert("received_unix_s".to_owned(), now.into());
        // One write, so that a reader never sees a line of two posts.
        let line = format!("{post}\n");
        if let Err(error) = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes()) {
            eprintln!("  warning: a post is not kept: {error}");
        }
    }

    /// Paths of the station: `/report` for machines, `/station` for people, `/station.json` for the page.
    pub fn routes(self: Arc<Self>) -> Router {
        Router::new()
            .route("/report", post(report).layer(DefaultBodyLimit::max(MAX_BODY_BYTES)))
            .route("/station", get(page))
            .route("/station.json", get(list))
            .with_state(self)
    }

    /// Content of `/station.json`.
    #[must_use]
    pub fn json(&self) -> String {
        let machines = self.lock();
        serde_json::json!({ "machines": machines.values().collect::<Vec<_>>() }).to_string()
    }

    fn take(&self, from: SocketAddr, body: &[u8]) -> Result<(), PostRefusal> {
        let post: Post = serde_json::from_slice(body).map_err(|error| PostRefusal::Malformed(error.to_string()))?;
        let Post { machine, progress, mut attempts, .. } = post;
        let machine = bounded_machine(machine);
        let address = from.ip().to_canonical().to_string();
        // A machine without any identity is known by its address.
        let key = machine.id.clone().unwrap_or_else(|| address.clone());
        let mut machines = self.lock();
        if !machines.contains_key(&key) && machines.len() >= MAX_MACHINES {
            let oldest = machines.iter().min_by_key(|(_, entry)| entry.seen);
            let silent = oldest.filter(|(_, entry)| entry.seen.elapsed() > SILENT).map(|(key, _)| key.clone());
            machines.remove(&silent.ok_or(PostRefusal::Full)?);
        }
        let entry = machines.entry(key).or_insert_with(|| StationEntry {
            seen: Instant::now(),
            address: String::new(),
            machine: ReportedMachine::default(),
            progress: None,
            last_attempt: None,
        });
        (entry.seen, entry.address, entry.machine) = (Instant::now(), address, machine);
        // A report of attempts says nothing about the one that is going on, and the other way round.
        entry.progress = progress.map(bounded_progress).or(entry.progress.take());
        entry.last_attempt = attempts.pop().map(bounded_attempt).or(entry.last_attempt.take());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, StationEntry>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts a text, and takes control characters out of it.
fn bounded(text: String) -> String {
    text.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn bounded_value<T>(value: Open<T>) -> Open<T> {
    match value {
        Open::Unknown(text) => Open::Unknown(bounded(text)),
        known => known,
    }
}

fn bounded_machine(machine: ReportedMachine) -> ReportedMachine {
    ReportedMachine {
        id: machine.id.map(bounded),
        hostname: machine.hostname.map(bounded),
        product: bounded(machine.product),
        hardware: machine.hardware.map(bounded),
        serial_number: machine.serial_number.map(bounded),
        uuid: machine.uuid.map(bounded),
        mac: machine.mac.map(bounded),
    }
}

fn bounded_progress(progress: ReportedProgress) -> ReportedProgress {
    ReportedProgress {
        phase: progress.phase.map(bounded_value),
        message: bounded(progress.message),
        version: progress.version.map(bounded),
        result: progress.result.map(bounded_value),
        ..progress
    }
}

fn bounded_attempt(attempt: ReportedAttempt) -> ReportedAttempt {
    ReportedAttempt {
        reason: attempt.reason.map(bounded),
        outcome: attempt.outcome.map(bounded_value),
        version: attempt.version.map(bounded),
    }
}

async fn report(
    State(station): State<Arc<Station>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: Bytes,
) -> (StatusCode, String) {
    match station.take(from, &body) {
        Ok(()) => {
            station.keep(&body);
            (StatusCode::NO_CONTENT, String::new())
        }
        Err(PostRefusal::Malformed(why)) => (StatusCode::BAD_REQUEST, format!("not a post of a machine: {why}\n")),
        Err(PostRefusal::Full) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{MAX_MACHINES} machines are known and none is silent\n"))
        }
    }
}

const NO_STORE: (HeaderName, &str) = (header::CACHE_CONTROL, "no-store");
const NO_SNIFF: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

async fn page() -> impl IntoResponse {
    let html = (header::CONTENT_TYPE, "text/html; charset=utf-8");
    ([html, NO_STORE, NO_SNIFF, (header::CONTENT_SECURITY_POLICY, POLICY)], PAGE)
}

async fn list(State(station): State<Arc<Station>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json"), NO_STORE, NO_SNIFF], station.json())
}

#[cfg(test)]
mod tests {
    use super::{MAX_CHARS, MAX_MACHINES, PostRefusal, SILENT, Station};
    use serde_json::{Value, json};
    use std::net::SocketAddr;
    use std::time::Instant;

    fn take(station: &Station, post: &Value) -> Result<(), PostRefusal> {
        station.take(SocketAddr::from(([192, 0, 2, 7], 1)), post.to_string().as_bytes())
    }

    fn machines(station: &Station) -> Vec<Value> {
        let all: Value = serde_json::from_str(&station.json()).unwrap();
        all["machines"].as_array().unwrap().clone()
    }

    #[test]
    fn posts_of_one_machine_make_one_row() {
        let station = Station::default();
        let machine = json!({ "id": "a", "hostname": "robot-1" });
        take(&station, &json!({ "machine": machine, "progress": { "phase": "write", "sequence": 3 } })).unwrap();
        let attempts = json!([{ "outcome": "failed" }, { "outcome": "installed", "id": 8, "phases": [] }]);
        take(&station, &json!({ "machine": machine, "attempts": attempts })).unwrap();
        take(&station, &json!({ "machine": {} })).unwrap();
        let rows = machines(&station);
        assert_eq!((rows.len(), &rows[0]["address"]), (2, &json!("192.0.2.7")));
        assert_eq!(
            (&rows[1]["progress"]["phase"], &rows[1]["machine"]["hostname"]),
            (&json!("write"), &json!("robot-1"))
        );
        assert_eq!(rows[1]["last_attempt"]["outcome"], "installed");
    }

    #[test]
    fn nothing_is_kept_without_bounds() {
        let station = Station::default();
        let long = "é\n".repeat(10_000);
        take(&station, &json!({ "machine": { "id": long, "hostname": long } })).unwrap();
        let name = machines(&station)[0]["machine"]["hostname"].as_str().unwrap().to_owned();
        assert!(name.chars().count() == MAX_CHARS && !name.contains('\n'));
        for number in 1..MAX_MACHINES {
            take(&station, &json!({ "machine": { "id": number.to_string() } })).unwrap();
        }
        let one_more = json!({ "machine": { "id": "one more" } });
        assert_eq!(take(&station, &one_more), Err(PostRefusal::Full));
        take(&station, &json!({ "machine": { "id": "7" } })).unwrap();
        // The machine that is silent for longest gives way.
        let Some(long_ago) = Instant::now().checked_sub(SILENT * 2) else { return };
        station.lock().get_mut("7").unwrap().seen = long_ago;
        take(&station, &one_more).unwrap();
        assert!(station.lock().len() == MAX_MACHINES && !station.lock().contains_key("7"));
    }

    #[test]
    fn what_is_no_post_is_refused() {
        let station = Station::default();
        for wrong in [json!([]), json!({ "progress": {} }), json!({ "machine": { "id": 7 } }), json!("\u{0}")] {
            assert!(matches!(take(&station, &wrong), Err(PostRefusal::Malformed(_))), "{wrong}");
        }
        assert!(machines(&station).is_empty());
    }
}
