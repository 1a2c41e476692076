//! The station page of `cargo xtask serve --station`: takes what machines post to `report.url`, and shows the last state
//! of each. `docs/station.md` has the format. Machines are not trusted: everything is bounded, and only shown as text.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

const PAGE: &str = include_str!("station.html");
/// Bytes of one post: 16 attempts of at most 4044 bytes each (a slot of the black box), and who it is.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Machines that are remembered: more than a bench holds, in less than 3 MiB.
const MAX_MACHINES: usize = 500;
/// Characters of one text.
const MAX_CHARS: usize = 300;
/// A machine that was not heard for so long gives way to a new one.
const SILENT: Duration = Duration::from_secs(30);

/// Nothing from elsewhere, should a text ever become more than a text.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'";

/// The last state of every machine.
#[derive(Default)]
pub struct Station {
    machines: Mutex<BTreeMap<String, Entry>>,
}

struct Entry {
    seen: Instant,
    address: String,
    machine: Machine,
    progress: Option<Progress>,
    last_attempt: Option<Attempt>,
}

#[derive(Deserialize)]
struct Post {
    machine: Machine,
    progress: Option<Progress>,
    #[serde(default)]
    attempts: Vec<Attempt>,
}

/// Who posts.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
struct Machine {
    id: Option<Text>,
    hostname: Option<Text>,
    product: Option<Text>,
    hardware: Option<Text>,
    serial_number: Option<Text>,
    mac: Option<Text>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct Progress {
    phase: Option<Text>,
    phase_number: Option<u8>,
    done_bytes: Option<u64>,
    total_bytes: Option<u64>,
    bytes_per_s: Option<u64>,
    message: Option<Text>,
    version: Option<Text>,
    result: Option<Text>,
}

/// What is shown of an attempt that ended before.
#[derive(Debug, Clone, Deserialize, Serialize)]
struct Attempt {
    reason: Option<Text>,
    outcome: Option<Text>,
    version: Option<Text>,
}

/// A text that was cut, and has no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "String")]
struct Text(String);

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect())
    }
}

/// One line of `/station.json`.
#[derive(Serialize)]
struct Row<'a> {
    address: &'a str,
    seen_ms_ago: u64,
    machine: &'a Machine,
    progress: &'a Option<Progress>,
    last_attempt: &'a Option<Attempt>,
}

/// Why a post is not taken.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Malformed(String),
    Full,
}

impl Station {
    /// Its paths: `/report` for machines, `/station` for people, `/station.json` for the page.
    pub fn routes(self: Arc<Self>) -> Router {
        Router::new()
            .route("/report", post(report).layer(DefaultBodyLimit::max(MAX_BODY_BYTES)))
            .route("/station", get(page))
            .route("/station.json", get(list))
            .with_state(self)
    }

    /// What `/station.json` says.
    #[must_use]
    pub fn json(&self) -> String {
        let machines = self.lock();
        let rows: Vec<Row<'_>> = machines.values().map(Entry::row).collect();
        serde_json::json!({ "machines": rows }).to_string()
    }

    fn take(&self, from: SocketAddr, body: &[u8]) -> Result<(), Refusal> {
        let post: Post = serde_json::from_slice(body).map_err(|error| Refusal::Malformed(error.to_string()))?;
        let address = from.ip().to_canonical().to_string();
        // A machine without any identity is known by its address.
        let key = post.machine.id.as_ref().map_or_else(|| address.clone(), |id| id.0.clone());
        let mut machines = self.lock();
        if !machines.contains_key(&key) && machines.len() >= MAX_MACHINES {
            let oldest = machines.iter().min_by_key(|(_, entry)| entry.seen);
            let silent = oldest.filter(|(_, entry)| entry.seen.elapsed() > SILENT).map(|(key, _)| key.clone());
            machines.remove(&silent.ok_or(Refusal::Full)?);
        }
        let entry = machines.entry(key).or_insert_with(|| Entry {
            seen: Instant::now(),
            address: String::new(),
            machine: Machine::default(),
            progress: None,
            last_attempt: None,
        });
        (entry.seen, entry.address, entry.machine) = (Instant::now(), address, post.machine);
        // A report of attempts says nothing about the one that is going on, and the other way round.
        entry.progress = post.progress.or(entry.progress.take());
        entry.last_attempt = post.attempts.into_iter().next_back().or(entry.last_attempt.take());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn row(&self) -> Row<'_> {
        Row {
            address: &self.address,
            seen_ms_ago: self.seen.elapsed().as_millis() as u64,
            machine: &self.machine,
            progress: &self.progress,
            last_attempt: &self.last_attempt,
        }
    }
}

async fn report(
    State(station): State<Arc<Station>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: Bytes,
) -> (StatusCode, String) {
    match station.take(from, &body) {
        Ok(()) => (StatusCode::NO_CONTENT, String::new()),
        Err(Refusal::Malformed(why)) => (StatusCode::BAD_REQUEST, format!("not a post of a machine: {why}\n")),
        Err(Refusal::Full) => {
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
    use super::{MAX_CHARS, MAX_MACHINES, Refusal, SILENT, Station};
    use serde_json::{Value, json};
    use std::net::SocketAddr;
    use std::time::Instant;

    fn take(station: &Station, post: &Value) -> Result<(), Refusal> {
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
        assert_eq!(take(&station, &one_more), Err(Refusal::Full));
        take(&station, &json!({ "machine": { "id": "7" } })).unwrap();
        // The one that is silent for longest gives way.
        let Some(long_ago) = Instant::now().checked_sub(SILENT * 2) else { return };
        station.lock().get_mut("7").unwrap().seen = long_ago;
        take(&station, &one_more).unwrap();
        assert!(station.lock().len() == MAX_MACHINES && !station.lock().contains_key("7"));
    }

    #[test]
    fn what_is_no_post_is_refused() {
        let station = Station::default();
        for wrong in [json!([]), json!({ "progress": {} }), json!({ "machine": { "id": 7 } }), json!("\u{0}")] {
            assert!(matches!(take(&station, &wrong), Err(Refusal::Malformed(_))), "{wrong}");
        }
        assert!(machines(&station).is_empty());
    }
}
