//! URLs of a configuration or a redirect: what is shown of them has no credentials, and what is asked for below them
//! stays below them.

use std::path::Path;

use reflash::fetch::{self, Directory, FetchOptions, redacted};
use reflash::machine::config::{Config, Layer};

use super::http::options;

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // Quotes and dots end what is looked for in the text below.
    let secret = "S3cr3tW0rd";
    if text.contains(secret) {
        return;
    }
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://user:{secret}@{text}");
        assert!(!redacted(&url).contains(secret), "{url:?} becomes {:?}", redacted(&url));
    }
    let _ = redacted(&text);
    let _ = Directory::from_url(&text);
    let _ = Directory::from_url(&format!("file:///{text}"));
    // Nothing is connected by opening.
    let _ = fetch::open(&text, options());
    let quoted = serde_json::to_string(&*text).unwrap();
    for key in ["release]\nurls", "network]\nproxy", "report]\nurl"] {
        let _ = Layer::parse("a file", &format!("[{key} = {quoted}\n")).and_then(Config::resolve);
    }
    let _: &FetchOptions = options();
    below(&text);
}

/// A path that a directory gives out lies in it.
fn below(path: &str) {
    use reflash::fetch::Source;
    let base = Path::new("/nowhere/at/all");
    let result = Directory::new(base).get_small(path, 10);
    assert!(result.is_err(), "{path:?} leads out of the directory");
}
