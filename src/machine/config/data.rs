//! `[data]`: what becomes of a data partition that is lost. Pure.

use super::error::ConfigError;
use super::keys::{Shape, ValueKind, refused};

/// Fate of a data partition that cannot be written any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLoss {
    /// The partition stays as it is.
    Keep,
    /// The partition is made anew.
    Renew,
}

impl ValueKind for OnLoss {
    type Written = String;
    type Checked = Self;
    const SHAPE: Shape = Shape::Text("^(keep|renew)$");

    fn expected() -> String {
        "keep or renew".to_owned()
    }

    fn example() -> String {
        "renew".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(key: &'static str, written: String) -> Result<Self, ConfigError> {
        match written.as_str() {
            "keep" => Ok(Self::Keep),
            "renew" => Ok(Self::Renew),
            _ => Err(refused::<Self>(key, &written)),
        }
    }
}
