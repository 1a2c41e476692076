//! An S3-compatible store: the three requests that publishing needs.
//!
//! rusty-s3 signs, and ureq sends. aws-sdk-s3 would bring a hundred crates for this, object_store sixty-five and a C
//! library to build; both are made for programs that work in a store all the time.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};
use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use ureq::Agent;
use ureq::http::StatusCode;

/// Time for which a signature is good: the longest upload of one object.
const SIGNED_FOR: Duration = Duration::from_secs(3600);
/// Number of attempts of one request.
const ATTEMPTS: u32 = 5;
/// Largest size of a manifest or a signature, bytes.
const SMALL_BYTES: u64 = 1 << 20;

/// Largest page of a list, bytes: a thousand objects with their names.
const LIST_BYTES: u64 = 16 << 20;

/// One object of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Path below the prefix.
    pub path: String,
    /// Size of the object.
    pub size_bytes: u64,
    /// Time at which it was written (RFC 3339), if the store gives it.
    pub modified: Option<String>,
}

/// Location of a release tree in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLocation {
    /// Name of the bucket.
    pub bucket: String,
    /// Path in the bucket, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Base URL of the store; `None` means the one of AWS in the region.
    pub endpoint: Option<String>,
    /// Region, which the signature names.
    pub region: String,
}

impl StoreLocation {
    /// Parses the text `s3://BUCKET/PREFIX`.
    ///
    /// # Errors
    /// When it is something else, or the prefix has characters that a URL would have to escape.
    pub fn parse(text: &str, endpoint: Option<String>, region: String) -> Result<Self> {
        let rest = text.strip_prefix("s3://").with_context(|| format!("{text:?} is not s3://BUCKET/PREFIX"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let plain = |part: &str| reflash::machine::config::is_path_segment(part);
        ensure!(plain(bucket), "{text:?} names no bucket: expected s3://BUCKET/PREFIX");
        ensure!(
            prefix.is_empty() || prefix.split('/').all(plain),
            "the prefix {prefix:?} must consist of letters, digits, '-', '_', '.' and '/', as it becomes part of a URL"
        );
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned(), endpoint, region })
    }
}

/// Connection to a location, with the key that may write there.
pub struct Store {
    place: StoreLocation,
    bucket: Bucket,
    credentials: Credentials,
    agent: Agent,
}

impl Store {
    /// Prepares a store with the credentials of the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, for
    /// temporary ones, `AWS_SESSION_TOKEN`. No connection is made yet.
    ///
    /// # Errors
    /// When they are not set, or the endpoint is no URL.
    pub fn with_credentials_of_environment(place: StoreLocation) -> Result<Self> {
        let credentials = Credentials::from_env().context(
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set; every S3-compatible store takes its key by these names",
        )?;
        Self::new(place, credentials)
    }

    /// Prepares a store with the given credentials.
    ///
    /// # Errors
    /// When the endpoint is no URL.
    pub fn with_key(place: StoreLocation, id: &str, secret: &str) -> Result<Self> {
        Self::new(place, Credentials::new(id, secret))
    }

    fn new(place: StoreLocation, credentials: Credentials) -> Result<Self> {
        // AWS wants a host name for every bucket; other stores would need a name server for that.
        let (endpoint, style) = match &place.endpoint {
            Some(endpoint) => (endpoint.clone(), UrlStyle::Path),
            None => (format!("https://s3.{}.amazonaws.com", place.region), UrlStyle::VirtualHost),
        };
        let url = endpoint.parse().with_context(|| format!("{endpoint:?} is not a URL: expected https://HOST"))?;
        let bucket = Bucket::new(url, style, place.bucket.clone(), place.region.clone())
            .with_context(|| format!("{endpoint:?} cannot be the endpoint of a store"))?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect leads to another region, for which the signature is not valid; the answer names that region.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(120)))
            .timeout_send_body(Some(SIGNED_FOR))
            .user_agent(concat!("reflash-xtask/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { place, bucket, credentials, agent: config.into() })
    }

    /// Returns the URL of the location, for people, and for robots if everybody may read the bucket.
    pub fn describe(&self) -> String {
        self.bucket.object_url(&self.place.prefix).as_str().trim_end_matches('/').to_owned()
    }

    fn key(&self, path: &str) -> String {
        if self.place.prefix.is_empty() { path.to_owned() } else { format!("{}/{path}", self.place.prefix) }
    }

    /// Returns the size of an object; `None` when the object is not there.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses.
    pub fn size_of(&self, path: &str) -> Result<Option<u64>> {
        let key = self.key(path);
        let (status, length, _) = self.retry(&format!("ask for the size of {key}"), || {
            let url = self.bucket.head_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
            let answer = self.agent.head(url.as_str()).call()?;
            let length = answer.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
            // An answer to HEAD has no body that could give a reason.
            Ok((answer.status(), length, String::new()))
        })?;
        Ok(if status == StatusCode::NOT_FOUND { None } else { length })
    }

    /// Returns the content of a small object; `None` when the object is not there.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses, or the object has more than 1 MiB.
    pub fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        self.get_up_to(path, SMALL_BYTES)
    }

    /// Returns the content of an object that has at most `limit_bytes`; `None` when the object is not there.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses, or the object is larger.
    pub fn get_up_to(&self, path: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
        let key = self.key(path);
        let (status, content, _) = self.retry(&format!("read {key}"), || {
            let url = self.bucket.get_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
            let answer = self.agent.get(url.as_str()).call()?;
            let status = answer.status();
            let content = answer.into_body().into_with_config().limit(limit_bytes).read_to_vec()?;
            let text = String::from_utf8_lossy(&content).into_owned();
            Ok((status, content, text))
        })?;
        Ok((status != StatusCode::NOT_FOUND).then_some(content))
    }

    /// Stores an object, in one request that the store checks by its MD5.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses.
    pub fn put(&self, path: &str, content: &[u8], content_type: &str, cache_control: &str) -> Result<()> {
        let status = self.put_if(path, content, content_type, cache_control, None)?;
        ensure!(status.is_success(), "the bucket {} is not there; create it first", self.place.bucket);
        Ok(())
    }

    /// Stores an object under a condition, if one is given. Returns what the store says: that it holds, or not.
    fn put_if(
        &self,
        path: &str,
        content: &[u8],
        content_type: &str,
        cache_control: &str,
        condition: Option<(&'static str, &str)>,
    ) -> Result<StatusCode> {
        let key = self.key(path);
        let md5 = BASE64_STANDARD.encode(Md5::digest(content));
        let headers = [("content-type", content_type), ("cache-control", cache_control), ("content-md5", &md5)];
        let headers = headers.into_iter().chain(condition);
        let is_of_condition = |status| {
            condition.is_some() && matches!(status, StatusCode::PRECONDITION_FAILED | StatusCode::NOT_IMPLEMENTED)
        };
        let (status, ..) = self.retry_unless(is_of_condition, &format!("store {key}"), || {
            let mut action = self.bucket.put_object(Some(&self.credentials), &key);
            for (name, value) in headers.clone() {
                action.headers_mut().insert(name, value.to_owned());
            }
            let mut request = self.agent.put(action.sign(SIGNED_FOR).as_str());
            for (name, value) in headers.clone() {
                request = request.header(name, value);
            }
            let mut answer = request.send(content)?;
            let text = answer.body_mut().read_to_string().unwrap_or_default();
            Ok((answer.status(), (), text))
        })?;
        Ok(status)
    }

    /// Replaces a small object that has the content `before`, or is not there, on the store's own word where the store
    /// knows conditions. Returns false if the object has changed meanwhile.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses.
    pub fn replace(
        &self,
        path: &str,
        before: Option<&[u8]>,
        content: &[u8],
        content_type: &str,
        cache_control: &str,
    ) -> Result<bool> {
        let there = self.get_tagged(path)?;
        if there.as_ref().map(|(there, _)| &there[..]) != before {
            return Ok(false);
        }
        let condition = match &there {
            Some((_, Some(tag))) => ("if-match", tag.as_str()),
            Some((_, None)) => return self.put(path, content, content_type, cache_control).map(|()| true),
            None => ("if-none-match", "*"),
        };
        let status = self.put_if(path, content, content_type, cache_control, Some(condition))?;
        if status == StatusCode::NOT_IMPLEMENTED {
            // A store that knows no conditions says so; then two at once can still come between each other.
            return self.put(path, content, content_type, cache_control).map(|()| true);
        }
        // An answer that got lost has this very request be made again, and fail by what it wrote itself.
        Ok(status.is_success() || self.get(path)?.as_deref() == Some(content))
    }

    /// Returns the content of a small object and the tag that the store gives it; `None` when the object is not there.
    fn get_tagged(&self, path: &str) -> Result<Option<(Vec<u8>, Option<String>)>> {
        let key = self.key(path);
        let (status, found, _) = self.retry(&format!("read {key}"), || {
            let url = self.bucket.get_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
            let answer = self.agent.get(url.as_str()).call()?;
            let status = answer.status();
            let tag = answer.headers().get("etag").and_then(|tag| Some(tag.to_str().ok()?.to_owned()));
            let content = answer.into_body().into_with_config().limit(SMALL_BYTES).read_to_vec()?;
            let text = String::from_utf8_lossy(&content).into_owned();
            Ok((status, (content, tag), text))
        })?;
        Ok((status != StatusCode::NOT_FOUND).then_some(found))
    }

    /// Returns every object below the prefix.
    ///
    /// # Errors
    /// When the store cannot be reached, refuses, or gives a list that cannot be read.
    pub fn list(&self) -> Result<Vec<ListedObject>> {
        let below = if self.place.prefix.is_empty() { String::new() } else { format!("{}/", self.place.prefix) };
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let doing = format!("list {below}");
            let (status, text, _) = self.retry(&doing, || {
                let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
                action.with_prefix(below.clone());
                if let Some(token) = &token {
                    action.with_continuation_token(token.clone());
                }
                let mut answer = self.agent.get(action.sign(SIGNED_FOR).as_str()).call()?;
                let text = answer.body_mut().with_config().limit(LIST_BYTES).read_to_string()?;
                Ok((answer.status(), text.clone(), text))
            })?;
            ensure!(status.is_success(), "the bucket {} is not there", self.place.bucket);
            let page = ListObjectsV2::parse_response(&text)
                .with_context(|| format!("the answer of {} is no list of objects", self.describe()))?;
            // No name of a release tree has a character that the store would escape.
            let objects = page.contents.into_iter().filter_map(|object| {
                let path = object.key.strip_prefix(&below)?.to_owned();
                Some(ListedObject { path, size_bytes: object.size.unwrap_or(0), modified: object.last_modified })
            });
            found.extend(objects);
            match page.next_continuation_token {
                Some(next) if token.as_ref() != Some(&next) => token = Some(next),
                _ => return Ok(found),
            }
        }
    }

    /// Deletes an object. One that is not there is no error.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses.
    pub fn delete(&self, path: &str) -> Result<()> {
        let key = self.key(path);
        let answer = self.retry(&format!("delete {key}"), || {
            let url = self.bucket.delete_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
            let mut answer = self.agent.delete(url.as_str()).call()?;
            let text = answer.body_mut().read_to_string().unwrap_or_default();
            Ok((answer.status(), (), text))
        });
        answer.map(drop)
    }

    /// Repeats a request while it fails in ways that can pass. Returns the answer of a success, or of an object that is
    /// not there.
    fn retry<T>(
        &self,
        doing: &str,
        request: impl Fn() -> Result<(StatusCode, T, String), ureq::Error>,
    ) -> Result<(StatusCode, T, String)> {
        self.retry_unless(|_| false, doing, request)
    }

    /// As [`Self::retry`], and returns an answer that `is_answer`, too.
    fn retry_unless<T>(
        &self,
        is_answer: impl Fn(StatusCode) -> bool,
        doing: &str,
        request: impl Fn() -> Result<(StatusCode, T, String), ureq::Error>,
    ) -> Result<(StatusCode, T, String)> {
        let mut attempt = 1;
        loop {
            let problem = match request() {
                Ok(answer) if answer.0.is_success() || answer.0 == StatusCode::NOT_FOUND => return Ok(answer),
                Ok(answer) if is_answer(answer.0) => return Ok(answer),
                Ok((status, _, text)) if !passes(status) => {
                    let says = said(&text).map(|said| format!(": {said}")).unwrap_or_default();
                    bail!("cannot {doing}: {} answers {status}{says}{}", self.describe(), advice(status));
                }
                Ok((status, _, text)) => anyhow!("status {status}: {}", said(&text).unwrap_or_default()),
                Err(error) => anyhow!(error),
            };
            if attempt == ATTEMPTS {
                return Err(problem.context(format!("cannot {doing} in {} in {ATTEMPTS} attempts", self.describe())));
            }
            std::thread::sleep(Duration::from_millis(500 << attempt));
            attempt += 1;
        }
    }
}

/// Whether a refusal can end by itself.
fn passes(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT)
}

fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::FORBIDDEN => {
            " (check the key, its rights to read, write and list there, and this machine's clock; \
             without the right to list, s3:ListBucket, AWS answers so for what is missing, too)"
        }
        StatusCode::MOVED_PERMANENTLY | StatusCode::TEMPORARY_REDIRECT => " (give the bucket's --region)",
        _ => "",
    }
}

/// Returns code and message of a store's error document.
fn said(text: &str) -> Option<String> {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once('<')?.0.trim().to_owned())
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => Some(format!("{code}, {message}")),
        (code, message) => code.or(message),
    }
}

#[cfg(test)]
mod tests {
    use super::{Store, StoreLocation, said};

    fn place(text: &str, endpoint: Option<&str>) -> anyhow::Result<StoreLocation> {
        StoreLocation::parse(text, endpoint.map(str::to_owned), "eu-west-1".into())
    }

    #[test]
    fn locations_are_parsed_or_refused() {
        let deep = place("s3://robots/a/b/", None).unwrap();
        assert_eq!((deep.bucket.as_str(), deep.prefix.as_str()), ("robots", "a/b"));
        assert_eq!(place("s3://robots", None).unwrap().prefix, "");
        for wrong in ["robots/a", "s3://", "s3:///a", "s3://robots/a b", "s3://robots/a//b", "s3://robots/../b"] {
            assert!(place(wrong, None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_url_for_robots_depends_on_the_endpoint() {
        let url = |text, endpoint| Store::with_key(place(text, endpoint).unwrap(), "id", "secret").unwrap().describe();
        assert_eq!(url("s3://robots/a", None), "https://robots.s3.eu-west-1.amazonaws.com/a");
        assert_eq!(url("s3://robots/a", Some("http://192.0.2.1:9000")), "http://192.0.2.1:9000/robots/a");
        assert_eq!(url("s3://robots", Some("http://192.0.2.1:9000/")), "http://192.0.2.1:9000/robots");
        assert!(Store::with_key(place("s3://robots", Some("example")).unwrap(), "id", "secret").is_err());
    }

    #[test]
    fn the_error_document_of_a_store_is_read() {
        let text = "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>There is none</Message></Error>";
        assert_eq!(said(text).as_deref(), Some("NoSuchBucket, There is none"));
        assert_eq!(said("<html>"), None);
    }
}
