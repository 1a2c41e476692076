//! `reflash report`: the results of recent recoveries are posted to `report.url`.

use serde_json::json;

use super::answer::{Exit, Failure, print};
use super::context::{config, keys, safe_start, this_machine};
use super::mounted::MountedState;
use super::options::Options;
use crate::fetch::{self, FetchOptions};
use crate::jobs::health::HealthRecord;
use crate::record::blackbox::BlackBox;
use crate::record::report::{self, Pending};
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
    if let Some(boot) = this_boot.filter(|boot| !boot.is_whole()) {
        let fetch_options = FetchOptions::with_clock_as_it_is(&config.network);
        report::post_start(url, &this_machine(&config, &mounted), &boot, &fetch_options)
            .map_err(|error| Failure::of(&error, error.is_retryable()))?;
    }
    let open = BlackBox::open(&mounted.state.blackbox_path())?;
    let machine = this_machine(&config, &mounted);
    let Some(pending) = Pending::of(&open, &machine) else {
        return nothing_to_post(options, "every recovery was reported before");
    };
    let fetch_options = FetchOptions::with_clock_as_it_is(&config.network);
    pending.post(url, &fetch_options).map_err(|error| Failure::of(&error, error.is_retryable()))?;
    // Read anew: the post may have taken a while, in which this boot was called good.
    pending.mark(&mut BlackBox::open(&mounted.state.blackbox_path())?);
    print(options, &json!({ "reported": true }), || format!("reported to {}", fetch::redacted(url)))?;
    Ok(Exit::Done)
}

fn nothing_to_post(options: &Options, why: &str) -> Result<Exit, Failure> {
    print(options, &json!({ "reported": false }), || why.to_owned())?;
    Ok(Exit::Done)
}
