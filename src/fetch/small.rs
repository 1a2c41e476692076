//! Small objects as a whole: the manifest and its signature, and objects of a release that are of use only whole.

use super::answer::{HttpAnswer, WEB_PAGE, is_web_page};
use super::delivery::BUFFER;
use super::error::{FetchError, FetchErrorKind};
use super::http::Http;
use super::{Source, part_size};
use crate::release::manifest::OBJECTS_PATH;

/// The least bytes of an attempt after which the rest is asked for.
const LEAST_PART: u64 = 4 << 10;

impl Http {
    pub(super) fn small(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        // The limit of an object is its size.
        if !path.starts_with(OBJECTS_PATH) {
            return self.whole(path, limit_bytes);
        }
        if limit_bytes > self.habits.part_size.most_bytes() {
            return self.in_parts(path, limit_bytes);
        }
        let error = match self.whole(path, limit_bytes) {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        self.open_bodies.drop_all();
        if !error.is_denied() {
            self.habits.part_size.failed(limit_bytes, 0, error.kind());
            return Err(error);
        }
        match limit_bytes > part_size::LEAST && self.beginning_of(path, &(0..limit_bytes), &mut |_| Ok(())).is_some() {
            true => self.in_parts(path, limit_bytes),
            false => Err(error),
        }
    }

    /// A small object where a whole one does not come: by parts, as long as each attempt brings enough of it. A server
    /// that gives a byte at a time would be asked for each of them.
    fn in_parts(&self, path: &str, size_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        loop {
            let before = bytes.len() as u64;
            let result = self.get_range(path, before..size_bytes, &mut |part| {
                bytes.extend_from_slice(part);
                Ok(())
            });
            match result {
                Ok(()) => return Ok(bytes),
                Err(error) if (bytes.len() as u64) < before + LEAST_PART => return Err(error),
                Err(error) => log::debug!("{}; asking for the rest", error.chain()),
            }
        }
    }

    fn whole(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let answer = self.request(path, None)?;
        // 203 is the 200 of a proxy that changed something on the way. 206 is the whole of it too, from some caches
        // that keep an object in parts; what is missing shows in the digest or the signature.
        if !matches!(answer.status, 200 | 203 | 206) {
            let problem = format!("status {} instead of 200", answer.status);
            return Err(FetchError::new(FetchErrorKind::Protocol, &answer.url, problem));
        }
        let HttpAnswer { url, headers, body, .. } = answer;
        let protocol = |problem: String| FetchError::new(FetchErrorKind::Protocol, &url, problem);
        let too_large = |size: String| protocol(format!("{size} bytes, but at most {limit_bytes} are expected"));
        let announced = body.content_length().filter(|size| *size > limit_bytes);
        let mut pace = self.pace(path);
        let is_delimited = self.is_delimited(&headers, &body);
        let mut reader = body.into_reader();
        let mut bytes = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            // The limit of an object is its size.
            if path.starts_with(OBJECTS_PATH) && bytes.len() as u64 == limit_bytes && announced.is_none() {
                return match is_delimited && self.has_more(&mut reader) {
                    true => Err(too_large("more".to_owned())),
                    false => Ok(bytes),
                };
            }
            let n = pace.read(&url, &mut reader, &mut buffer)?;
            if bytes.is_empty() && is_web_page(&buffer[..n]) {
                return Err(protocol(WEB_PAGE.to_owned()));
            }
            match (n, announced) {
                (_, Some(size)) => return Err(too_large(size.to_string())),
                (0, None) => return Ok(bytes),
                (n, None) if bytes.len() as u64 + n as u64 > limit_bytes => return Err(too_large("more".to_owned())),
                (n, None) => bytes.extend_from_slice(&buffer[..n]),
            }
        }
    }
}
