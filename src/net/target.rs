//! What a card has to reach: the servers of the release, or the proxy to them. Pure.

use ureq::http::Uri;
use ureq::http::uri::Scheme;

/// Targets that are tried, all at the same time.
const MOST_TARGETS: usize = 16;

/// Server that a card may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    /// Request to send once it is connected; without one, the connection is the answer.
    pub(super) request: Option<String>,
    /// Whether 401 is the answer of the source: the request goes without the credentials that the URL has.
    pub(super) asks_for_password: bool,
    /// Name of the file that is asked for.
    file: String,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Returns what to reach, for these URLs of manifests and the proxy that leads to a host, if one does. URLs that are
/// none, or of files, are left out.
pub(super) fn targets<'a>(sources: &[String], proxy_to: impl Fn(&str) -> Option<&'a str>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for source in sources.iter().filter_map(|url| target(url, false)) {
        let Some(target) = proxy_to(&source.host).map_or(Some(source), |proxy| target(proxy, true)) else { continue };
        if targets.len() < MOST_TARGETS && !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

fn target(url: &str, is_proxy: bool) -> Option<Target> {
    let uri: Uri = url.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let is_https = uri.scheme() == Some(&Scheme::HTTPS);
    if !is_https && uri.scheme() != Some(&Scheme::HTTP) {
        return None;
    }
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let authority = uri.authority()?.as_str();
    let (credentials, shown) = authority.rsplit_once('@').map_or((false, authority), |(_, host)| (true, host));
    let request = (!is_https && !is_proxy).then(|| {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "GET {path} HTTP/1.1\r\nHost: {shown}\r\nUser-Agent: reflash/{version}\r\nRange: bytes=0-0\r\n\
             Connection: close\r\n\r\n"
        )
    });
    Some(Target { host, port, request, asks_for_password: credentials, file: file_of(&uri).to_owned() })
}

fn file_of(uri: &Uri) -> &str {
    uri.path().rsplit('/').next().unwrap_or_default()
}

/// What the beginning of an answer shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageVerdict {
    /// It is too short to say.
    NeedsMore,
    /// It is that of a source: a manifest begins.
    Source,
    /// A web server that has no manifest here, such as that of a device or of a portal.
    OtherPage,
    /// It is no HTTP.
    NotHttp,
}

/// Judges the beginning of an answer to the request of a target.
pub(super) fn verdict(mut answer: &[u8], target: &Target) -> PageVerdict {
    const PREFIX: &[u8] = b"HTTP/1.";
    loop {
        let compared = answer.len().min(PREFIX.len());
        if answer[..compared] != PREFIX[..compared] {
            return PageVerdict::NotHttp;
        }
        let Some(head_bytes) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
            return PageVerdict::NeedsMore;
        };
        let (head, body) = (&answer[..head_bytes], &answer[head_bytes + 4..]);
        let code = head.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse::<u16>().ok());
        match code {
            None => return PageVerdict::NotHttp,
            // Interim answers come before the one that counts.
            Some(100..=199) => answer = body,
            Some(401) if target.asks_for_password => return PageVerdict::Source,
            Some(301 | 302 | 303 | 307 | 308) if leads_on(head, target) => return PageVerdict::Source,
            Some(200 | 206) => {
                let chunked = head.to_ascii_lowercase().windows(18).any(|part| part == b"transfer-encoding:");
                return match body.first() {
                    None => PageVerdict::NeedsMore,
                    // A manifest is a JSON object; pages of portals begin otherwise.
                    Some(b'{') => PageVerdict::Source,
                    Some(_) if chunked => PageVerdict::Source,
                    Some(_) => PageVerdict::OtherPage,
                };
            }
            Some(_) => return PageVerdict::OtherPage,
        }
    }
}

/// Whether a redirection is that of a source. Servers lead to https, or to a store, with the name of the file kept; a
/// portal leads to its login page, and names the file in the query at most.
fn leads_on(head: &[u8], target: &Target) -> bool {
    let head = String::from_utf8_lossy(head);
    let location = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then_some(value.trim())
    });
    let Some(uri) = location.and_then(|location| location.parse::<Uri>().ok()) else { return false };
    let host = uri.host().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    // Without a host it is the same one.
    let same_host = host.is_none_or(|host| host.eq_ignore_ascii_case(&target.host));
    file_of(&uri) == target.file && (same_host || uri.scheme() == Some(&Scheme::HTTPS))
}

#[cfg(test)]
mod tests {
    use super::{PageVerdict, targets, verdict};

    fn shown(sources: &[&str], proxy: Option<&str>) -> Vec<String> {
        let sources: Vec<String> = sources.iter().map(|&url| url.to_owned()).collect();
        targets(&sources, |_| proxy).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn urls_give_hosts_and_ports() {
        let sources = [
            "http://images.example.com/r/stable/manifest.json",
            "https://user:p%40ss@images.example.com/r/stable/manifest.json?sig=a%2Fb",
            "http://[2001:db8::7]:8080/stable/manifest.json",
            "file:///media/release/stable/manifest.json",
            "http://images.example.com/r/stable/manifest.json",
            "nonsense",
            "http://",
        ];
        assert_eq!(shown(&sources, None), ["images.example.com:80", "images.example.com:443", "[2001:db8::7]:8080"]);
        assert_eq!(shown(&sources, Some("http://user:password@proxy.example.com:3128")), ["proxy.example.com:3128"]);
        let many: Vec<String> = (0..50).map(|number| format!("http://h{number}/")).collect();
        assert_eq!(targets(&many, |_| None).len(), 16);
        // One of the hosts is reached without the proxy.
        let proxy = |host: &str| (host != "h7").then_some("http://proxy:3128");
        let shown: Vec<String> = targets(&many, proxy).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["proxy:3128", "h7:80"]);
    }

    #[test]
    fn a_request_has_no_credentials() {
        let urls = ["http://user:password@images.example.com/r/stable/manifest.json?a=b".to_owned()];
        let target = &targets(&urls, |_| None)[0];
        let request = target.request.as_ref().unwrap();
        assert!(request.starts_with("GET /r/stable/manifest.json?a=b HTTP/1.1\r\nHost: images.example.com\r\n"));
        assert!(!request.contains("password") && target.asks_for_password);
        assert_eq!(targets(&["https://a/m".to_owned()], |_| None)[0].request, None);
    }

    fn judged_of(url: &str, answer: &str) -> PageVerdict {
        verdict(answer.as_bytes(), &targets(&[url.to_owned()], |_| None)[0])
    }

    #[test]
    fn a_redirection_is_that_of_a_source_where_the_file_stays_the_same() {
        let judged = |code: u16, location: &str| {
            let answer = format!("HTTP/1.1 {code} Moved\r\nServer: a\r\n{location}\r\nX: y\r\n\r\n");
            judged_of("http://images.example.com/r/stable/manifest.json?a=b", &answer)
        };
        for (code, location) in [
            (301, "Location: https://images.example.com/r/stable/manifest.json?a=b"),
            (302, "location:https://IMAGES.example.com:8443/r/stable/manifest.json"),
            (303, "LOCATION: http://images.example.com/new/stable/manifest.json"),
            (307, "Location: https://store.example.net/bucket/r/stable/manifest.json?X-Signature=1"),
            (308, "Location: /new/stable/manifest.json"),
        ] {
            assert_eq!(judged(code, location), PageVerdict::Source, "{location}");
        }
        for location in [
            "Location: http://portal.example/",
            "Location: https://portal.example/login?next=http://images.example.com/r/stable/manifest.json",
            "Location: http://10.0.0.1/r/stable/manifest.json",
            "Location: /login.html",
            "Location: ",
            "Location: http://[",
            "Content-Location: /r/stable/manifest.json",
            "Date: now",
        ] {
            assert_eq!(judged(302, location), PageVerdict::OtherPage, "{location}");
        }
        assert_eq!(judged(304, "Location: /r/stable/manifest.json"), PageVerdict::OtherPage);
        let v6 = "HTTP/1.1 301 Moved\r\nLocation: https://[2001:db8::7]/stable/manifest.json\r\n\r\n";
        assert_eq!(judged_of("http://[2001:db8::7]:8080/stable/manifest.json", v6), PageVerdict::Source);
    }

    #[test]
    fn the_beginning_of_an_answer_says_what_answers() {
        let judged = |answer: &str| judged_of("http://images.example.com/stable/manifest.json", answer);
        assert_eq!(judged("HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\n{"), PageVerdict::Source);
        assert_eq!(judged("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{"), PageVerdict::Source);
        assert_eq!(judged("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{"), PageVerdict::Source);
        for other in ["200 OK\r\n\r\n<html>", "404 Not Found\r\n\r\n{", "302 Found\r\nLocation: http://portal/\r\n\r\n"]
        {
            assert_eq!(judged(&format!("HTTP/1.1 {other}")), PageVerdict::OtherPage, "{other}");
        }
        for more in [
            "",
            "HTT",
            "HTTP/1.1 2",
            "HTTP/1.1 200 OK\r\nA: b\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 100 C\r\n\r\n",
        ] {
            assert_eq!(judged(more), PageVerdict::NeedsMore, "{more}");
        }
        for other in ["SSH-2.0-dropbear", "HTTP/2", "HTTP/1.1 2x0 \r\n\r\n", "HTTP/1.\r\n\r\n", "<html>"] {
            assert_eq!(judged(other), PageVerdict::NotHttp, "{other}");
        }
        let password = "HTTP/1.1 401 Unauthorized\r\n\r\n";
        assert_eq!(
            (judged_of("http://user:password@images.example.com/m", password), judged(password)),
            (PageVerdict::Source, PageVerdict::OtherPage)
        );
    }
}
