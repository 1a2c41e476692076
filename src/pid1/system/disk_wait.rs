//! How long the start of the system waits for its disk. Pure.

use std::time::Duration;

use crate::disk::Waiting;

/// Time to wait for the disk, unless the kernel command line says otherwise. GRUB has read the kernel from it a moment
/// ago, so it is there; behind some USB bridges it comes back a minute or two after the reset. A restart, which is all
/// that is left then, would begin the same wait anew, so there is no haste.
const DEFAULT: Duration = Duration::from_secs(180);
/// The longest wait that is taken from the kernel command line, seconds.
const MAX_S: u64 = 24 * 3600;

/// Reads the argument `reflash.disk-wait-s=`. Of several the last one counts, as it does for the kernel. What is no
/// number of seconds is left out: it must not keep the system from starting.
#[must_use]
pub fn limit(command_line: &str) -> Duration {
    let mut values = command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("reflash.disk-wait-s="));
    let seconds = values.next_back().and_then(|text| text.parse::<u64>().ok());
    seconds.map_or(DEFAULT, |seconds| Duration::from_secs(seconds.min(MAX_S)))
}

/// Says when it is time to what is waited for, and has the kernel look again for a disk that is still missing then.
pub fn report(waiting: &Waiting<'_>, limit: Duration, say: impl Fn(&str), look_again: impl FnOnce()) {
    if !waiting.is_news {
        return;
    }
    say(&format!("{waiting} ({} s at most)", limit.as_secs()));
    if waiting.error.is_some() && !waiting.waited.is_zero() {
        look_again();
    }
}

#[cfg(test)]
mod tests {
    use super::{DEFAULT, MAX_S, limit, report};
    use crate::disk::{FindError, Waiting};
    use std::cell::{Cell, RefCell};
    use std::time::Duration;

    #[test]
    fn the_last_number_of_seconds_counts_and_nonsense_does_not() {
        assert_eq!(limit("quiet reflash.system=a"), DEFAULT);
        for (text, seconds) in [("300", 300), ("0", 0), ("99999999", MAX_S), ("soon", 180), ("-1", 180), ("", 180)] {
            assert_eq!(limit(&format!("x reflash.disk-wait-s={text} y")).as_secs(), seconds, "{text:?}");
        }
        assert_eq!(limit("reflash.disk-wait-s=5 reflash.disk-wait-s=7").as_secs(), 7);
    }

    #[test]
    fn a_person_sees_what_is_waited_for_and_which_disks_there_are() {
        let error = FindError::None { partuuid: "p".into(), disks: vec!["/dev/sdb: no partition table".into()] };
        let waiting = |waited, is_news| Waiting { waited: Duration::from_secs(waited), is_news, error: Some(&error) };
        let reported = |waiting: &Waiting<'_>| {
            let (said, looked) = (RefCell::new(String::new()), Cell::new(false));
            report(waiting, DEFAULT, |text| said.borrow_mut().push_str(text), || looked.set(true));
            (said.into_inner(), looked.get())
        };
        assert_eq!(reported(&waiting(0, true)), ("waiting for the disk (180 s at most)".to_owned(), false));
        let (text, looked) = reported(&waiting(60, true));
        assert!(looked && text.contains("after 60 s") && text.contains("/dev/sdb: no partition table"), "{text}");
        assert_eq!(reported(&waiting(61, false)), (String::new(), false));
    }
}
