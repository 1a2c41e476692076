//! Host names from templates and from lists of assets, placeholders of firmware, and names of media and modules.

use reflash::machine::config::is_path_segment;
use reflash::machine::drivers::glob;
use reflash::machine::media::MediaId;
use reflash::machine::{hostname, placeholder};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (template, value) = text.split_once('\n').unwrap_or((&text, "x"));
    if let Ok(name) = hostname::expand(template, |_| Some(value.to_owned())) {
        let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!((1..=63).contains(&name.len()) && name.bytes().all(is_label), "{name:?}");
        assert!(!name.starts_with('-') && !name.ends_with('-'), "{name:?}");
    }
    let _ = hostname::asset(&text, |key| Some(if key == "mac" { "00:11".to_owned() } else { value.to_owned() }));
    let _ = placeholder::is_placeholder(&text);
    let _ = placeholder::is_placeholder_uuid(&text);
    let _ = placeholder::is_placeholder_address(&text);
    if is_path_segment(template) {
        assert!(!template.contains('/') && template != ".." && template != "." && !template.is_empty(), "{template:?}");
    }
    let _ = text.parse::<MediaId>();
    let _ = MediaId::of_descriptor(data);
    let _ = glob::matches(template, value);
}
