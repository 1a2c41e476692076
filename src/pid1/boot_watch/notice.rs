//! What a safe start says of itself, on the consoles, before a login and after it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::boot::this_boot::pause_before_normal_start;
use crate::record::start::StartRecord;

/// Files that login programs show: agetty reads the first where there is an `/etc/issue`, and the second where there
/// is none; the third is shown after a login, also over the network.
const FILES: &[&str] =
    &["/etc/issue.d/reflash-safe.issue", "/run/issue.d/reflash-safe.issue", "/run/motd.d/reflash-safe"];

/// Writes the notice of this safe start where login programs show it. Returns its lines, for the consoles.
pub(super) fn write(number: u32) -> Vec<String> {
    let lines = lines(number, pause_before_normal_start(number), &StartRecord::of_this_boot().unwrap_or_default());
    // getty would take a backslash for one of its codes.
    let text = format!("\n{}\n\n", lines.join("\n").replace('\\', "/"));
    for file in FILES {
        let path = Path::new(file);
        // Without memory for it, or where /etc cannot be written, the others are shown.
        if let Some(directory) = path.parent() {
            let _ = fs::create_dir_all(directory).and_then(|()| fs::write(path, &text));
        }
    }
    lines
}

fn lines(number: u32, pause: Duration, recorded: &StartRecord) -> Vec<String> {
    let mut lines = vec![
        format!("SAFE START {number}: the system was good before and did not come up any more, so it runs without the"),
        "machine's own settings. /etc is that of the image, /var is empty, and what is changed now is lost.".to_owned(),
    ];
    lines.push(match &recorded.data_at {
        Some(place) => format!("The machine's data can be read in {place}."),
        None => "The machine's data cannot be read.".to_owned(),
    });
    lines.extend(recorded.lost.iter().take(3).map(|sentence| format!("  {sentence}")));
    lines.push(format!(
        "A normal start is tried {} h after this one, or when nobody has typed for an hour. To try it now: reboot",
        pause.as_secs() / 3600
    ));
    lines.push("To install the offered release: reflash request, then reboot".to_owned());
    match &recorded.logins {
        Some(names) if names.is_empty() => lines.push(
            "NOBODY CAN LOG IN: no account of the image, and none of the machine that can be read, has a password or \
             a key."
                .to_owned(),
        ),
        Some(names) => lines.push(format!("Accounts that can log in: {}", names.join(", "))),
        None => {}
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{StartRecord, lines};
    use std::time::Duration;

    #[test]
    fn a_safe_start_says_what_it_is_where_the_data_is_and_when_nobody_can_log_in() {
        let of = |record: &str| {
            let recorded: StartRecord = serde_json::from_str(record).unwrap();
            lines(2, Duration::from_secs(7200), &recorded).join("\n")
        };
        let whole =
            of(r#"{"safe_start":2,"data_at":"/run/reflash/data","logins":["pilot","root"],"data":"read-only"}"#);
        assert!(whole.contains("SAFE START 2") && whole.contains("tried 2 h after"), "{whole}");
        assert!(whole.contains("read in /run/reflash/data") && whole.contains("log in: pilot, root"), "{whole}");
        let lost = of(r#"{"lost":["the data partition is gone"],"logins":[]}"#);
        assert!(lost.contains("cannot be read") && lost.contains("partition is gone"), "{lost}");
        assert!(lost.contains("NOBODY CAN LOG IN"), "{lost}");
        assert!(!of("{}").contains("log in"), "not known");
        assert!(whole.lines().all(|line| line.len() <= 120), "{whole}");
    }
}
