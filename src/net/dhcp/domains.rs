//! Domains that a DHCP server gives for short names (RFC 2132, 3.17; RFC 3397). Pure.

/// Names that are read from a list; more is an attack or a mistake.
const MOST_NAMES: usize = 64;
/// Domains that are kept. Resolvers of old read six; today's read all.
const MOST_DOMAINS: usize = 32;

/// The machine's own domain (option 15) and the search list (option 119), each name once.
pub(in crate::net) fn search(domain: &[u8], list: &[u8]) -> Vec<String> {
    let domain = std::str::from_utf8(domain).unwrap_or_default();
    // Several in one option are not allowed and are seen.
    let mut found: Vec<String> = domain
        .split(|c: char| c.is_whitespace() || c == '\0')
        .filter_map(|name| checked_name(name.trim_end_matches('.')))
        .collect();
    for name in compressed_names(list) {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found.truncate(MOST_DOMAINS);
    found
}

/// Names in the compressed form of DNS (RFC 1035, 4.1.4), as far as they make sense. Pointers lead only back, so that
/// every name ends.
fn compressed_names(list: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = 0;
    while at < list.len() && names.len() < MOST_NAMES {
        let Some((name, next)) = compressed_name(list, at) else { break };
        names.extend(checked_name(&name));
        at = next;
    }
    names
}

/// One name at `at`, and where the next one begins.
fn compressed_name(list: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels: Vec<String> = Vec::new();
    let mut next = None;
    loop {
        let length = *list.get(at)?;
        match length >> 6 {
            0 if length == 0 => return Some((labels.join("."), next.unwrap_or(at + 1))),
            0 => {
                let label = list.get(at + 1..at + 1 + usize::from(length))?;
                labels.push(String::from_utf8(label.to_vec()).ok()?);
                at += 1 + usize::from(length);
            }
            3 => {
                let target = usize::from(length & 0x3f) << 8 | usize::from(*list.get(at + 1)?);
                next.get_or_insert(at + 2);
                if target >= at {
                    return None;
                }
                at = target;
            }
            _ => return None,
        }
        if labels.len() > 127 {
            return None;
        }
    }
}

/// A domain that may stand in resolv.conf: nothing in it can begin another line or word there.
fn checked_name(name: &str) -> Option<String> {
    let good = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| !label.is_empty() && label.len() <= 63)
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    good.then(|| name.to_ascii_lowercase())
}
