//! `[update]`: what the running system does about its next release by itself, and when it may restart. Pure.

use std::fmt;
use std::str::FromStr;

use super::error::ConfigError;
use super::keys::{Shape, ValueKind, refused};

/// Share of an update that the running system carries out by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Automatic {
    /// Nothing is done without a person or another program.
    Off,
    /// The next release is fetched. A person or another program says when it is applied.
    Fetch,
    /// The next release is fetched, and applied at a moment that suits.
    Apply,
}

impl ValueKind for Automatic {
    type Written = String;
    type Checked = Self;
    const SHAPE: Shape = Shape::Text("^(off|fetch|apply)$");

    fn expected() -> String {
        "off, fetch or apply".to_owned()
    }

    fn example() -> String {
        "fetch".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(key: &'static str, written: String) -> Result<Self, ConfigError> {
        match written.as_str() {
            "off" => Ok(Self::Off),
            "fetch" => Ok(Self::Fetch),
            "apply" => Ok(Self::Apply),
            _ => Err(refused::<Self>(key, &written)),
        }
    }
}

/// Names of the days, as they are written.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A time of the week in which the machine may restart: `02:00-05:00`, `Sat 22:00-06:00` or `Mon-Fri 12:00-13:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartWindow {
    first_day: u8,
    last_day: u8,
    from: u16,
    until: u16,
}

impl RestartWindow {
    /// Whether the window is open at this minute of a day, on a day that is counted from Monday as 0. A window over
    /// midnight belongs to the day on which it opens.
    #[must_use]
    pub fn is_open(&self, weekday: u8, minute: u16) -> bool {
        let on = |day: u8| match self.first_day <= self.last_day {
            true => (self.first_day..=self.last_day).contains(&day),
            // From Friday to Monday.
            false => day >= self.first_day || day <= self.last_day,
        };
        match self.from < self.until {
            true => on(weekday) && (self.from..self.until).contains(&minute),
            false => on(weekday) && minute >= self.from || on((weekday + 6) % 7) && minute < self.until,
        }
    }
}

impl FromStr for RestartWindow {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (days, times) = text.trim().rsplit_once(' ').unwrap_or(("", text.trim()));
        let day = |name: &str| DAYS.iter().zip(0..).find(|(known, _)| **known == name).map(|(_, day)| day).ok_or(());
        let (first_day, last_day) = match days.trim() {
            "" => (0, 6),
            days => {
                let (first, last) = days.split_once('-').unwrap_or((days, days));
                (day(first)?, day(last)?)
            }
        };
        let minute = |text: &str| {
            let (hours, minutes) = text.split_once(':').filter(|(_, minutes)| minutes.len() == 2).ok_or(())?;
            let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
                true => text.parse::<u16>().map_err(drop),
                false => Err(()),
            };
            let (hours, minutes) = (number(hours)?, number(minutes)?);
            let at = hours.checked_mul(60).and_then(|at| at.checked_add(minutes)).ok_or(())?;
            if minutes < 60 && at <= DAY { Ok(at) } else { Err(()) }
        };
        let (from, until) = times.split_once('-').ok_or(())?;
        let (from, until) = (minute(from)?, minute(until)?);
        // What opens and closes at one time could be meant as never or as always.
        if from == until || from == DAY {
            return Err(());
        }
        Ok(Self { first_day, last_day, from, until })
    }
}

impl fmt::Display for RestartWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first_day, last_day, from, until } = *self;
        let day = |day: u8| DAYS[usize::from(day) % DAYS.len()];
        match (first_day, last_day) {
            (0, 6) => {}
            (first, last) if first == last => write!(f, "{} ", day(first))?,
            (first, last) => write!(f, "{}-{} ", day(first), day(last))?,
        }
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, until / 60, until % 60)
    }
}

/// Times of the week in which the machine may restart.
#[derive(Debug)]
pub struct Windows;

impl ValueKind for Windows {
    type Written = Vec<String>;
    type Checked = Vec<RestartWindow>;
    const SHAPE: Shape = Shape::Texts("^((Mon|Tue|Wed|Thu|Fri|Sat|Sun)(-[A-Z][a-z]{2})? )?[0-9]{1,2}:[0-9]{2}-");

    fn expected() -> String {
        "times such as 02:00-05:00, Sat 22:00-06:00 or Mon-Fri 12:00-13:00".to_owned()
    }

    fn example() -> String {
        "Mon-Fri 02:00-05:00".to_owned()
    }

    fn from_text(text: &str) -> Option<Vec<String>> {
        Some(text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect())
    }

    fn check(key: &'static str, written: Vec<String>) -> Result<Vec<RestartWindow>, ConfigError> {
        written.iter().map(|text| text.parse().map_err(|()| refused::<Self>(key, text))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::RestartWindow;

    #[test]
    fn windows_are_read_as_they_are_written() {
        for text in ["02:00-05:00", "Sat 22:00-06:00", "Mon-Fri 12:00-13:30", "Fri-Mon 00:00-24:00", "Sun 09:05-09:06"]
        {
            assert_eq!(text.parse::<RestartWindow>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "2-5",
            "02:00",
            "02:00-02:00",
            "24:00-01:00",
            "02:60-03:00",
            "25:00-26:00",
            "Sa 01:00-02:00",
            "Mon-Xyz 01:00-02:00",
            "+2:00-05:00",
            "02:0-05:00",
            "Sat,Sun 01:00-02:00",
            "Mon Tue 01:00-02:00",
        ] {
            assert!(text.parse::<RestartWindow>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_window_is_open_between_its_times_on_its_days() {
        let window = |text: &str| text.parse::<RestartWindow>().unwrap();
        let at = |hours: u16, minutes: u16| hours * 60 + minutes;
        for (text, weekday, minute, open) in [
            ("02:00-05:00", 3, at(2, 0), true),
            ("02:00-05:00", 3, at(4, 59), true),
            ("02:00-05:00", 3, at(5, 0), false),
            ("02:00-05:00", 3, at(1, 59), false),
            // Over midnight it belongs to the day on which it opens.
            ("Sat 22:00-06:00", 5, at(22, 0), true),
            ("Sat 22:00-06:00", 6, at(5, 59), true),
            ("Sat 22:00-06:00", 6, at(22, 0), false),
            ("Sat 22:00-06:00", 5, at(5, 59), false),
            ("Sun 22:00-06:00", 0, at(1, 0), true),
            ("Fri-Mon 12:00-13:00", 6, at(12, 30), true),
            ("Fri-Mon 12:00-13:00", 3, at(12, 30), false),
            ("Mon-Fri 00:00-24:00", 4, at(23, 59), true),
            ("Mon-Fri 00:00-24:00", 5, 0, false),
        ] {
            assert_eq!(window(text).is_open(weekday, minute), open, "{text} {weekday} {minute}");
        }
    }
}
