//! One mirror over HTTP or HTTPS: requests, and everything a server can answer wrongly.

use std::cell::Cell;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ureq::Body;
use ureq::http::header::{CONTENT_RANGE, CONTENT_TYPE, TRANSFER_ENCODING};
use ureq::http::{HeaderMap, Uri};

use super::answer::{HttpAnswer, WEB_PAGE, is_web_page};
use super::delivery::deliver;
use super::error::{FetchError, FetchErrorKind};
use super::habits::Habits;
use super::open_bodies::{OpenBodies, OpenBody, Turn};
use super::pace::Pace;
use super::part::{self, Head, Part};
use super::part_size;
use super::requests::Requests;
use super::url::{self, Base};
use super::watch::SpeedWatch;
use super::{Check, Clock, FetchOptions, Rate, Sink, Source};
use crate::machine::config::has_usable_port;
use crate::release::manifest::OBJECTS_PATH;

/// The most answers to one range that bring less than [`SMALL_PART`] and not its end: a server that gives a range in
/// crumbs would otherwise cost a round trip for each of them.
const MAX_SMALL_PARTS: u32 = 64;
/// The bytes from which on a part of a range counts as one that is worth its request.
const SMALL_PART: u64 = 64 << 10;
/// An answer, and what it has of a range.
type PartAnswer = (HttpAnswer, Part);

/// A source at a base URL. Connections are kept alive and shared by all requests, from any thread.
pub struct Http {
    requests: Requests,
    base: Base,
    /// The base as it was written: to some servers a slash at the end makes a difference for posts.
    written: String,
    watch: Option<SpeedWatch>,
    stall_timeout: Duration,
    clock: Arc<dyn Clock>,
    rate: Option<Rate>,
    pub(super) habits: Habits,
    pub(super) open_bodies: OpenBodies,
}

impl Http {
    /// Makes the source at `base`, an `http://` or `https://` URL.
    ///
    /// # Errors
    /// [`FetchErrorKind::Settings`] when the URL, the proxy or the CA file cannot be used. Nothing is connected yet.
    pub fn new(base: &str, options: &FetchOptions) -> Result<Self, FetchError> {
        let settings = |problem: &str| FetchError::new(FetchErrorKind::Settings, base, problem);
        let uri: Uri = base.parse().map_err(|_| settings("this is not a URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(settings("this is not an http:// or https:// URL with a host"));
        }
        if !has_usable_port(base) {
            return Err(settings("this is not a port from 1 to 65535"));
        }
        // What follows is for browsers alone, and http::Uri drops it without a word.
        if base.contains('#') {
            return Err(settings("a URL with a #fragment is no base for files; write %23 if the # is part of a name"));
        }
        let (base, credentials) = url::without_credentials(base);
        let requests = Requests::new(uri.scheme_str() == Some("https"), options, credentials)?;
        let (clock, rate) = (Arc::clone(&options.clock), options.rate.clone());
        Ok(Self {
            requests,
            base: Base::new(&base),
            written: base,
            watch: None,
            stall_timeout: options.stall_timeout,
            clock,
            rate,
            habits: Habits::default(),
            open_bodies: OpenBodies::default(),
        })
    }

    pub(super) fn pace<'s>(&'s self, path: &'s str) -> Pace<'s> {
        let watch = self.watch.as_ref().map(|watch| (watch, path));
        Pace::new(self.stall_timeout, &*self.clock, self.rate.as_ref().map(|rate| &*rate.0), watch)
    }

    fn url(&self, path: &str) -> Result<String, FetchError> {
        if !url::is_relative(path) {
            let problem = format!("{path:?} is not a path in a release");
            return Err(FetchError::new(FetchErrorKind::Local, &self.base.itself(), problem));
        }
        Ok(self.base.join(path))
    }

    /// Posts a JSON document to the base URL itself. The answer's body is of no interest. A redirect is not followed:
    /// what a login page takes is not delivered.
    ///
    /// # Errors
    /// The error of the transfer, or [`FetchErrorKind::Refused`] with the status.
    pub fn post_json(&self, document: &str) -> Result<(), FetchError> {
        let url = &self.written;
        self.requests.attempt(|| {
            let answer = self.requests.post(url.clone(), document)?;
            match answer.status {
                200..=299 if !answer.is_called_html() => Ok(()),
                // A login page answers everything, and what it takes is not delivered either.
                200..=299 => match self.is_page(answer)? {
                    true => Err(FetchError::new(FetchErrorKind::Protocol, url, WEB_PAGE)),
                    false => Ok(()),
                },
                status => Err(FetchError::new(FetchErrorKind::Refused(status), url, format!("HTTP status {status}"))),
            }
        })
    }

    /// Whether an answer that is called a web page is one. Many frameworks call every answer so, also the "ok" of a
    /// receiver of reports.
    fn is_page(&self, answer: HttpAnswer) -> Result<bool, FetchError> {
        let (mut reader, mut pace) = (answer.body.into_reader(), self.pace(""));
        let (mut beginning, mut length) = ([0; 512], 0);
        loop {
            match pace.read(&answer.url, &mut reader, &mut beginning[length..]) {
                Ok(bytes @ 1..) => length += bytes,
                Err(error) if length == 0 => return Err(error),
                // What came says enough, also where the end does not show.
                _ => return Ok(is_web_page(&beginning[..length])),
            }
        }
    }

    pub(super) fn request(&self, path: &str, range: Option<&Range<u64>>) -> Result<HttpAnswer, FetchError> {
        let range = range.map(|range| format!("bytes={}-{}", range.start, range.end - 1));
        self.requests.get(self.url(path)?, range.as_deref(), path.starts_with(OBJECTS_PATH))
    }

    /// The answer to a request for a range, and what it has of it: the whole object is asked for where only the range
    /// is what the server cannot do, or what something on the way makes nonsense of.
    fn part_of(&self, path: &str, range: &Range<u64>) -> Result<PartAnswer, FetchError> {
        if self.habits.asks_for_whole(range) {
            if let Ok(answer) = self.part_of_whole(path, range) {
                return Ok(answer);
            }
            self.habits.whole_came(false);
        }
        let answer = self.request(path, Some(range))?;
        let useless = match part::find(&head_of(&answer), range) {
            Ok(part) => return Ok((answer, part)),
            Err(useless) => useless,
        };
        let error = FetchError::new(FetchErrorKind::Protocol, &answer.url, useless.problem);
        if !useless.whole_may_help {
            return Err(error);
        }
        drop(answer);
        self.part_of_whole(path, range).map_err(|_| error)
    }

    /// What the whole object has of a range.
    fn part_of_whole(&self, path: &str, range: &Range<u64>) -> Result<PartAnswer, FetchError> {
        let answer = self.request(path, None)?;
        match part::find(&head_of(&answer), range) {
            Ok(part) => Ok((answer, part)),
            Err(useless) => Err(FetchError::new(FetchErrorKind::Protocol, &answer.url, useless.problem)),
        }
    }

    /// Delivers what one answer has of a range, at least one byte of it; returns how many. It asks again at once only
    /// as long as nothing of an answer was delivered.
    fn get_part(&self, path: &str, range: &Range<u64>, sink: Sink<'_>) -> Result<u64, FetchError> {
        let came = Cell::new(0);
        let mut counting = |bytes: &[u8]| {
            came.set(came.get() + bytes.len() as u64);
            sink(bytes)
        };
        let turn = self.open_bodies.turn_if_needed(path, range.start);
        if let Some(turn) = &turn {
            match turn.take(path, range.start).map(|body| self.go_on(turn, body, range, &mut counting)) {
                Some(Err(error)) if came.get() == 0 && error.kind() != FetchErrorKind::Local => {
                    log::debug!("{}; asking for it anew", error.chain());
                }
                Some(delivered) => return delivered,
                // What is left of the same object is behind it already, and may be what keeps the server busy.
                None => turn.drop_all_of(path),
            }
        }
        let delivered = self
            .requests
            .attempt(|| self.part_of(path, range))
            .and_then(|answer| self.deliver(path, range, answer, turn, &mut counting));
        match delivered {
            Ok(bytes) => {
                self.habits.part_size.came(bytes);
                Ok(bytes)
            }
            Err(error) => self.another_way(path, range, &error, came.get(), &mut counting).unwrap_or(Err(error)),
        }
    }

    /// Learns from a failure after so many bytes, and delivers what comes of the range in another way, if there is one.
    fn another_way(
        &self,
        path: &str,
        range: &Range<u64>,
        error: &FetchError,
        came_bytes: u64,
        sink: Sink<'_>,
    ) -> Option<Result<u64, FetchError>> {
        self.requests.note(error);
        if error.kind() == FetchErrorKind::Corrupt {
            self.requests.distrust_caches();
        }
        if error.is_denied() && came_bytes == 0 && range.end - range.start > part_size::LEAST {
            return self.beginning_of(path, range, sink).map(Ok);
        }
        // Some servers have one connection for each client, and a body that is kept would hold it.
        self.open_bodies.drop_all();
        let is_elsewhere = !error.url().starts_with(&self.describe());
        if !self.habits.range_failed(range, came_bytes, error.kind(), is_elsewhere) {
            return None;
        }
        let answer = self.part_of_whole(path, range);
        self.habits.whole_came(answer.is_ok());
        Some(self.deliver(path, range, answer.ok()?, None, sink))
    }

    /// Delivers the beginning of a range that was denied, if it comes: then a filter says so of what is large.
    /// Otherwise it is not there, as objects that spare downloads may be.
    pub(super) fn beginning_of(&self, path: &str, range: &Range<u64>, sink: Sink<'_>) -> Option<u64> {
        let came = self.get_part(path, &(range.start..range.start + part_size::LEAST), sink).ok()?;
        if !self.habits.has_whole_only() {
            self.habits.part_size.is_too_large(range.end - range.start);
        }
        Some(came)
    }

    fn deliver(
        &self,
        path: &str,
        range: &Range<u64>,
        (answer, part): PartAnswer,
        turn: Option<Turn<'_>>,
        sink: Sink<'_>,
    ) -> Result<u64, FetchError> {
        let is_whole = answer.status != 206 && part.skip_bytes == range.start;
        let turn = match turn.filter(|_| is_whole) {
            None if is_whole && !self.open_bodies.is_free() => {
                // Another connection is faster, and its body will be nearer than the beginning of this one.
                drop(answer);
                let turn = self.open_bodies.turn(path, range.start);
                if let Some(body) = turn.take(path, range.start) {
                    return self.go_on(&turn, body, range, sink);
                }
                let answer = self.part_of(path, range)?;
                return self.deliver(path, range, answer, Some(turn), sink);
            }
            None if is_whole => Some(self.open_bodies.turn(path, range.start)),
            turn => turn,
        };
        let HttpAnswer { url, headers, status, body } = answer;
        let end = range.start + part.take_bytes;
        let is_last = part.is_last;
        let (is_delimited, size_bytes) = (is_last && self.is_delimited(&headers, &body), body.content_length());
        let mut reader = body.into_reader();
        let mut pace = self.pace(path);
        deliver(&url, &mut reader, &mut pace, status, part, sink)?;
        if is_delimited && self.has_more(&mut reader) {
            let (problem, got) = ("more bytes than asked for", part.take_bytes);
            return Err(FetchError::new(FetchErrorKind::Protocol, &url, problem).after(got, got));
        }
        match turn {
            Some(turn) if !is_last => turn.keep(OpenBody { path: path.to_owned(), url, reader, at: end, size_bytes }),
            Some(_) => {}
            None => self.habits.range_came(),
        }
        Ok(part.take_bytes)
    }

    /// Delivers a range out of a body that is still coming.
    fn go_on(
        &self,
        turn: &Turn<'_>,
        mut body: OpenBody,
        range: &Range<u64>,
        sink: Sink<'_>,
    ) -> Result<u64, FetchError> {
        let take_bytes = range.end - range.start;
        let part = Part { skip_bytes: range.start - body.at, take_bytes, is_last: false };
        // Its beginning was looked at when it came.
        deliver(&body.url, &mut body.reader, &mut self.pace(&body.path), 206, part, sink)?;
        body.at = range.end;
        // Only a body that was read to its end gives its connection back.
        if body.size_bytes.is_none_or(|size| body.at < size) {
            turn.keep(body);
        } else {
            self.has_more(&mut body.reader);
        }
        Ok(take_bytes)
    }

    /// Whether the end of a body shows although the connection stays open: only a body that was read to its end frees
    /// the connection for reuse.
    pub(super) fn is_delimited(&self, headers: &HeaderMap, body: &Body) -> bool {
        let is_chunked = headers.get(TRANSFER_ENCODING).is_some_and(|coding| coding.as_bytes().ends_with(b"chunked"));
        body.content_length().is_some() || (is_chunked && self.habits.ends_in_time())
    }

    /// Whether more comes of a body that was to end. A failure costs nothing but the connection: all that was asked for
    /// is delivered. It may cost the stall timeout, but that once only.
    pub(super) fn has_more(&self, reader: &mut dyn Read) -> bool {
        let more = reader.read(&mut [0; 1]);
        if more.is_err() {
            self.habits.ended_late();
        }
        more.is_ok_and(|bytes| bytes > 0)
    }
}

fn head_of(answer: &HttpAnswer) -> Head<'_> {
    let content_type = answer.header(CONTENT_TYPE).unwrap_or_default();
    Head {
        status: answer.status,
        content_range: answer.header(CONTENT_RANGE),
        content_length: answer.body.content_length(),
        is_multipart: content_type.trim().to_ascii_lowercase().starts_with("multipart/"),
        is_called_html: answer.is_called_html(),
    }
}

impl Source for Http {
    fn describe(&self) -> String {
        url::redacted(&self.base.itself())
    }

    fn watch_speed(&mut self, watch: SpeedWatch) {
        self.watch = Some(watch);
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        self.requests.attempt(|| {
            let mut all = Vec::new();
            for (path, limit_bytes) in wanted {
                let mut file = self.small(path, *limit_bytes);
                // Of machines that answer in turns, one that is broken would always get the same one of the files.
                if file.is_err() && !all.is_empty() {
                    file = self.small(path, *limit_bytes);
                }
                let file = file.map_err(|error| self.requests.of_proxy(error));
                // One of them is there: that another is refused can be the moment in which they are replaced.
                all.push(file.map_err(|error| if all.is_empty() { error } else { error.doubted() })?);
            }
            let first = wanted.first().map_or("", |(path, _)| path);
            check(&all).map_err(|refusal| {
                self.requests.distrust_caches();
                refusal.of(&self.base.join(first))
            })?;
            Ok(all)
        })
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        let wanted = range.end - range.start;
        let (mut at, mut small_parts) = (range.start, 0);
        while at < range.end {
            let part = at..range.end.min(at.saturating_add(self.habits.part_size.most_bytes()));
            let got = self
                .get_part(path, &part, &mut *sink)
                .map_err(|error| self.requests.of_proxy(error).further(at - range.start, wanted))?;
            at += got;
            small_parts += u32::from(got < SMALL_PART.min(part.end - part.start));
            if at < range.end && small_parts > MAX_SMALL_PARTS {
                let problem = format!("the server gives the range in more than {MAX_SMALL_PARTS} small parts");
                let error = FetchError::new(FetchErrorKind::Protocol, &self.url(path)?, problem);
                return Err(error.after(at - range.start, wanted));
            }
        }
        Ok(())
    }
}
