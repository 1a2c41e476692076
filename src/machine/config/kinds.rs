//! The kinds of values that configuration keys have. Pure.

use std::fmt::Display;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::error::ConfigError;
use super::keys::{Shape, ValueKind, refused};
use super::ports::with_usable_port;

/// The pattern of [`Shape::Text`] that every text fits.
pub(super) const ANY: &str = "";

/// Text of any form.
#[derive(Debug)]
pub struct Text;

impl ValueKind for Text {
    type Written = String;
    type Checked = String;
    const SHAPE: Shape = Shape::Text(ANY);

    fn expected() -> String {
        "any text".to_owned()
    }

    fn example() -> String {
        "text".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(_key: &'static str, written: String) -> Result<String, ConfigError> {
        Ok(written)
    }
}

/// A text that can be one directory name of a URL.
#[derive(Debug)]
pub struct PathSegment;

impl ValueKind for PathSegment {
    type Written = String;
    type Checked = String;
    const SHAPE: Shape = Shape::Text("^[A-Za-z0-9_-][A-Za-z0-9._-]*$");

    fn expected() -> String {
        "letters, digits, '-', '_' and '.'".to_owned()
    }

    fn example() -> String {
        "stable".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(key: &'static str, written: String) -> Result<String, ConfigError> {
        if is_path_segment(&written) { Ok(written) } else { Err(refused::<Self>(key, &written)) }
    }
}

/// Whether the text can be one directory name of a URL without escaping.
#[must_use]
pub fn is_path_segment(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Base URLs of a release tree: at least one, tried in order.
#[derive(Debug)]
pub struct ReleaseUrls;

impl ValueKind for ReleaseUrls {
    type Written = Vec<String>;
    type Checked = Vec<String>;
    const SHAPE: Shape = Shape::Texts("^(https?://|file:///).");

    fn expected() -> String {
        "http://…, https://… or file:///…".to_owned()
    }

    fn example() -> String {
        "https://images.example.com/robots,file:///media/release".to_owned()
    }

    /// A comma in a path or a query is part of its URL, as of a token, unless another URL follows it.
    fn from_text(text: &str) -> Option<Vec<String>> {
        let has_path = |url: &String| url.split_once("://").is_some_and(|(_, rest)| rest.contains(['/', '?']));
        let mut urls: Vec<String> = Vec::new();
        for part in text.split(',') {
            match urls.last_mut() {
                Some(url) if !part.contains("://") && has_path(url) => *url += &format!(",{part}"),
                _ => urls.push(part.to_owned()),
            }
        }
        Some(urls)
    }

    fn check(key: &'static str, written: Vec<String>) -> Result<Vec<String>, ConfigError> {
        let known = |url: &str| {
            ["http://", "https://", "file:///"].iter().any(|scheme| url.starts_with(scheme) && url.len() > scheme.len())
        };
        if let Some(wrong) = written.iter().find(|url| !known(url)) {
            return Err(refused::<Self>(key, wrong));
        }
        let written = written.into_iter().map(|url| with_usable_port(key, url)).collect::<Result<Vec<_>, _>>()?;
        // A slash at the end of a query is part of it, as of a token.
        let trimmed = |url: &String| if url.contains('?') { url.clone() } else { url.trim_end_matches('/').to_owned() };
        Ok(written.iter().map(trimmed).collect())
    }

    fn usable(key: &'static str, written: Vec<String>, problems: &mut Vec<ConfigError>) -> Option<Vec<String>> {
        let mut is_usable =
            |url: &String| Self::check(key, vec![url.clone()]).map_err(|error| problems.push(error)).is_ok();
        let urls: Vec<String> = written.into_iter().filter(|url| is_usable(url)).collect();
        Some(urls).filter(|urls| !urls.is_empty())
    }

    fn is_absent(written: &Vec<String>) -> bool {
        written.is_empty()
    }
}

/// The URL of a server that takes posts.
#[derive(Debug)]
pub struct HttpUrl;

impl ValueKind for HttpUrl {
    type Written = String;
    type Checked = String;
    const SHAPE: Shape = Shape::Text("^https?://");

    fn expected() -> String {
        "http://… or https://…".to_owned()
    }

    fn example() -> String {
        "https://station.example.com/report".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(key: &'static str, written: String) -> Result<String, ConfigError> {
        let known = ["http://", "https://"].iter().any(|scheme| written.starts_with(scheme));
        if known { with_usable_port(key, written) } else { Err(refused::<Self>(key, &written)) }
    }
}

/// Address of either kind, without a prefix length.
#[derive(Debug)]
pub struct Address;

impl ValueKind for Address {
    type Written = IpAddr;
    type Checked = IpAddr;
    const SHAPE: Shape = Shape::Text("^[0-9a-fA-F.:]+$");

    fn expected() -> String {
        "an IP address".to_owned()
    }

    fn example() -> String {
        "192.0.2.1".to_owned()
    }

    fn from_text(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    fn check(_key: &'static str, written: IpAddr) -> Result<IpAddr, ConfigError> {
        Ok(written)
    }
}

/// A list of IP addresses.
#[derive(Debug)]
pub struct Addresses;

impl ValueKind for Addresses {
    type Written = Vec<IpAddr>;
    type Checked = Vec<IpAddr>;
    const SHAPE: Shape = Shape::Texts("^[0-9a-fA-F.:]+$");

    fn expected() -> String {
        "IP addresses; comma separated in a kernel argument".to_owned()
    }

    fn example() -> String {
        "192.0.2.53,2001:db8::53".to_owned()
    }

    fn from_text(text: &str) -> Option<Vec<IpAddr>> {
        // A list of none is written as an empty text, which only a default has.
        text.split(',').filter(|_| !text.is_empty()).map(|one| one.parse().ok()).collect()
    }

    fn check(_key: &'static str, written: Vec<IpAddr>) -> Result<Vec<IpAddr>, ConfigError> {
        Ok(written)
    }
}

/// Yes or no; the kernel argument needs no value.
#[derive(Debug)]
pub struct Flag;

impl ValueKind for Flag {
    type Written = bool;
    type Checked = bool;
    const SHAPE: Shape = Shape::Flag;

    fn expected() -> String {
        "true or false; without a value in a kernel argument".to_owned()
    }

    fn example() -> String {
        String::new()
    }

    fn from_text(text: &str) -> Option<bool> {
        match text {
            "" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    fn check(_key: &'static str, written: bool) -> Result<bool, ConfigError> {
        Ok(written)
    }
}

/// Checks that a number lies between two others.
fn within<K: ValueKind, T: Into<u64> + Copy + Display>(
    key: &'static str,
    value: T,
    min: u64,
    max: u64,
) -> Result<T, ConfigError> {
    if (min..=max).contains(&value.into()) { Ok(value) } else { Err(refused::<K>(key, &value)) }
}

/// A whole number of the type `T`, from `MIN` to `MAX`.
#[derive(Debug)]
pub struct Number<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<T: FromStr + Into<u64> + Copy + Display, const MIN: u64, const MAX: u64> ValueKind for Number<T, MIN, MAX> {
    type Written = T;
    type Checked = T;
    const SHAPE: Shape = Shape::Whole { min: MIN, max: MAX, or_zero: false };

    fn expected() -> String {
        format!("a number from {MIN} to {MAX}")
    }

    fn example() -> String {
        MIN.to_string()
    }

    fn from_text(text: &str) -> Option<T> {
        text.parse().ok()
    }

    fn check(key: &'static str, written: T) -> Result<T, ConfigError> {
        within::<Self, T>(key, written, MIN, MAX)
    }
}

/// A size of a disk, in units of 10^9 bytes, as on its label.
#[derive(Debug)]
pub struct Gigabytes;

impl ValueKind for Gigabytes {
    type Written = u64;
    type Checked = u64;
    const SHAPE: Shape = Shape::Whole { min: 0, max: u64::MAX, or_zero: false };

    fn expected() -> String {
        "GB, units of 10^9 bytes".to_owned()
    }

    fn example() -> String {
        "100".to_owned()
    }

    fn from_text(text: &str) -> Option<u64> {
        text.parse().ok()
    }

    fn check(_key: &'static str, written: u64) -> Result<u64, ConfigError> {
        Ok(written)
    }
}

/// A time in seconds, from `MIN` to `MAX`.
#[derive(Debug)]
pub struct Seconds<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> ValueKind for Seconds<MIN, MAX> {
    type Written = u64;
    type Checked = Duration;
    const SHAPE: Shape = Shape::Whole { min: MIN, max: MAX, or_zero: false };

    fn expected() -> String {
        format!("seconds from {MIN} to {MAX}")
    }

    fn example() -> String {
        MAX.to_string()
    }

    fn from_text(text: &str) -> Option<u64> {
        text.parse().ok()
    }

    fn check(key: &'static str, written: u64) -> Result<Duration, ConfigError> {
        within::<Self, u64>(key, written, MIN, MAX).map(Duration::from_secs)
    }
}

/// A time in seconds, from `MIN` to `MAX`, or 0 for never.
#[derive(Debug)]
pub struct SecondsOrNever<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> ValueKind for SecondsOrNever<MIN, MAX> {
    type Written = u64;
    type Checked = Option<Duration>;
    const SHAPE: Shape = Shape::Whole { min: MIN, max: MAX, or_zero: true };

    fn expected() -> String {
        format!("0, or seconds from {MIN} to {MAX}")
    }

    fn example() -> String {
        "0".to_owned()
    }

    fn from_text(text: &str) -> Option<u64> {
        text.parse().ok()
    }

    fn check(key: &'static str, written: u64) -> Result<Option<Duration>, ConfigError> {
        if written == 0 {
            return Ok(None);
        }
        within::<Self, u64>(key, written, MIN, MAX).map(|seconds| Some(Duration::from_secs(seconds)))
    }
}

/// A rate in KiB per second, from `MIN` to `MAX`; bytes per second once it is checked.
#[derive(Debug)]
pub struct KibPerSecond<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> ValueKind for KibPerSecond<MIN, MAX> {
    type Written = u64;
    type Checked = u64;
    const SHAPE: Shape = Shape::Whole { min: MIN, max: MAX, or_zero: false };

    fn expected() -> String {
        format!("KiB per second from {MIN} to {MAX}")
    }

    fn example() -> String {
        MIN.to_string()
    }

    fn from_text(text: &str) -> Option<u64> {
        text.parse().ok()
    }

    fn check(key: &'static str, written: u64) -> Result<u64, ConfigError> {
        within::<Self, u64>(key, written, MIN, MAX).map(|kib| kib * 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::{ReleaseUrls, ValueKind};

    #[test]
    fn a_comma_within_a_url_is_part_of_it() {
        for (text, urls) in [
            ("http://a", &["http://a"][..]),
            ("http://a/b?token=1,2,https://c/d,e", &["http://a/b?token=1,2", "https://c/d,e"]),
            ("https://a?x=,file:///media/r", &["https://a?x=", "file:///media/r"]),
            // No host has one.
            ("http://a,b", &["http://a", "b"]),
            ("a,http://b", &["a", "http://b"]),
            ("", &[""]),
        ] {
            assert_eq!(ReleaseUrls::from_text(text).unwrap(), urls, "{text}");
        }
    }
}
