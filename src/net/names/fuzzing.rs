//! A door to the reader of name servers' answers, for its fuzz target.

use std::net::IpAddr;

use simple_dns::TYPE;

use super::query::{Outcome, is_answer, read};

/// Reads an answer to the question for `name`, as [`super::Resolver`] does: its addresses, or `None` when there are
/// none or it answers something else.
#[must_use]
pub fn answer(bytes: &[u8], id: u16, name: &str, ipv6: bool) -> Option<Vec<IpAddr>> {
    let kind = if ipv6 { TYPE::AAAA } else { TYPE::A };
    match is_answer(bytes, id, name, kind).then(|| read(bytes, kind))?? {
        Outcome::Addresses(addresses) => Some(addresses),
        Outcome::Failed(_) => None,
    }
}
