//! Fetches a URL as a stream of chunks. A connection that breaks is taken up
//! again where it broke, where that is sure to give the same file.

use std::time::Duration;

use basin_model::Bytes;
use bytes::Bytes as Chunk;
use reqwest::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{Client, StatusCode, Url, redirect};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::{mpsc, oneshot};

use crate::datastore::StorageError;

/// How patient a fetch is. There is no limit to the whole: an image is large.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub connect: Duration,
    /// Without a single byte.
    pub stall: Duration,
    /// Breaks in a row without a byte in between.
    pub breaks: u32,
    /// Before the first new try; doubled for each further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            breaks: 5,
            pause: Duration::from_secs(1),
        }
    }
}

const REDIRECTS: usize = 10;

/// A fetch that runs while `chunks` is read.
pub struct Fetch {
    pub url: Url,
    pub patience: Patience,
    /// Somebody compares the checksum in the end, so that a resumption without
    /// the server's word that it is the same file is safe.
    pub checked: bool,
}

/// Where a fetch puts what it gets.
pub struct Sink {
    /// The length, once it is known (`None`: the server does not say).
    pub length: oneshot::Sender<Option<Bytes>>,
    pub chunks: mpsc::Sender<Result<Chunk, StorageError>>,
}

/// `http` or `https` with a host; a password in it is not repeated in errors.
pub fn parse_url(text: &str) -> Result<Url, StorageError> {
    let invalid = |why: String| Err(StorageError::Invalid(why));
    match Url::parse(text) {
        Err(e) => invalid(format!("'{text}' is not a URL: {e}")),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            invalid(format!("'{}' is not an http or https URL", public(&url)))
        }
        Ok(url) => Ok(url),
    }
}

/// The URL without secrets: neither log-in nor query (signed links carry keys there).
fn public(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.to_string()
}

/// A break that may be mended, or an end.
enum Break {
    Mend(String),
    End(String),
}

/// What must stay the same for a resumption.
#[derive(Default)]
struct Position {
    done: u64,
    length: Option<u64>,
    validator: Option<String>,
    ranges: bool,
}

impl Fetch {
    /// Runs to the end of the file or of patience; errors go to the sink.
    pub async fn run(self, sink: Sink) {
        let Sink { length, chunks } = sink;
        let end = match self.attempts(length, &chunks).await {
            Ok(()) => Ok(Chunk::new()),
            Err(why) => Err(StorageError::Fetch { url: public(&self.url), why }),
        };
        // Nobody listens when whoever wanted the file has given up.
        let _ = chunks.send(end).await;
    }

    async fn attempts(
        &self,
        length: oneshot::Sender<Option<Bytes>>,
        chunks: &mpsc::Sender<Result<Chunk, StorageError>>,
    ) -> Result<(), String> {
        let client = self.client()?;
        let mut length = Some(length);
        let mut position = Position::default();
        let mut breaks = 0;
        loop {
            let before = position.done;
            let why = match self.attempt(&client, &mut position, &mut length, chunks).await {
                Ok(()) => return Ok(()),
                Err(Break::End(why)) => return Err(why),
                Err(Break::Mend(why)) => why,
            };
            if position.done > before {
                breaks = 0;
            }
            breaks += 1;
            if breaks > self.patience.breaks {
                return Err(format!("{why} (tried {breaks} times)"));
            }
            let same = position.validator.is_some() || self.checked;
            if position.done > 0 && !(position.ranges && same) {
                return Err(format!(
                    "{why} after {}; the server does not let a transfer be taken up again",
                    Bytes(position.done)
                ));
            }
            tracing::info!(
                url = public(&self.url),
                done = position.done,
                why,
                "transfer broke; trying again"
            );
            tokio::time::sleep(self.patience.pause * 2u32.pow((breaks - 1).min(6))).await;
        }
    }

    async fn attempt(
        &self,
        client: &Client,
        position: &mut Position,
        length: &mut Option<oneshot::Sender<Option<Bytes>>>,
        chunks: &mpsc::Sender<Result<Chunk, StorageError>>,
    ) -> Result<(), Break> {
        let mut request = client.get(self.url.clone()).header(ACCEPT_ENCODING, "identity");
        if position.done > 0 {
            request = request.header(RANGE, format!("bytes={}-", position.done));
            if let Some(validator) = &position.validator {
                request = request.header(IF_RANGE, validator);
            }
        }
        let mut response = request.send().await.map_err(broken)?;
        let status = response.status();
        if position.done > 0 {
            position.continued_by(status, response.headers()).map_err(Break::End)?;
        } else if status == StatusCode::OK {
            position.length = response.content_length();
            position.validator = validator(response.headers());
            position.ranges = response.headers().get(ACCEPT_RANGES).is_some_and(|v| v == "bytes");
            if let Some(length) = length.take() {
                let _ = length.send(position.length.map(Bytes));
            }
        } else if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Break::Mend(format!("the server answered {status}")));
        } else {
            return Err(Break::End(format!("the server answered {status}")));
        }
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            position.done += chunk.len() as u64;
            // An empty chunk would mean the end.
            if !chunk.is_empty() && chunks.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
        match position.length {
            Some(length) if position.done < length => {
                Err(Break::Mend("the connection was closed too early".into()))
            }
            _ => Ok(()),
        }
    }

    fn client(&self) -> Result<Client, String> {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = || {
            rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
        };
        let config = match tls().map_err(|e| e.to_string())?.with_platform_verifier() {
            Ok(builder) => builder.with_no_client_auth(),
            // Plain http goes without; a redirect to https then fails on its certificate.
            Err(_) if self.url.scheme() == "http" => tls()
                .map_err(|e| e.to_string())?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth(),
            Err(e) => {
                return Err(format!(
                    "this server trusts no certificate authority ({e}); install ca-certificates"
                ));
            }
        };
        Client::builder()
            .tls_backend_preconfigured(config)
            .user_agent(concat!("basin/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.patience.connect)
            .read_timeout(self.patience.stall)
            .redirect(redirect::Policy::custom(follow))
            .build()
            .map_err(|e| chain(&e))
    }
}

/// Follows a bounded number of redirects, and none from https to http.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let was_secret = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > REDIRECTS {
        attempt.error("there are too many redirects")
    } else if was_secret && attempt.url().scheme() != "https" {
        attempt.error("it redirects from https to http")
    } else {
        attempt.follow()
    }
}

impl Position {
    /// Whether the answer goes on exactly where the last one broke.
    fn continued_by(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), String> {
        if status == StatusCode::OK {
            return Err("the file changed on the server while it was fetched".into());
        }
        if status != StatusCode::PARTIAL_CONTENT {
            return Err(format!("the server answered {status} when asked for the rest"));
        }
        let range = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (from, length) =
            parse_range(range).ok_or("the server's answer has no proper Content-Range")?;
        if from != self.done || (length.is_some() && self.length.is_some() && length != self.length)
        {
            return Err(format!(
                "the server answered with another part than was asked for ({range})"
            ));
        }
        Ok(())
    }
}

/// `bytes FROM-TO/LENGTH`, the length `*` when unknown.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (span, length) = text.strip_prefix("bytes ")?.split_once('/')?;
    let from = span.split_once('-')?.0.parse().ok()?;
    match length {
        "*" => Some((from, None)),
        length => Some((from, Some(length.parse().ok()?))),
    }
}

/// What the server promises to change when the file changes: a strong ETag, or a date.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    text(ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| text(LAST_MODIFIED))
}

fn broken(e: reqwest::Error) -> Break {
    let redirect = e.is_redirect();
    let why = chain(&e.without_url());
    // A redirect that is refused is refused the next time too.
    if redirect || why.contains("certificate") { Break::End(why) } else { Break::Mend(why) }
}

/// An error with its causes: the outermost text alone says little.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_http_and_secrets_are_not_repeated() {
        assert!(parse_url("https://example.org/a.qcow2").is_ok());
        for bad in ["", "a.qcow2", "file:///etc/shadow", "ftp://example.org/a"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
        let url = parse_url("https://me:secret@example.org/a?sig=secret").unwrap();
        assert_eq!(public(&url), "https://example.org/a");
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(parse_range("bytes 10-19/20"), Some((10, Some(20))));
        assert_eq!(parse_range("bytes 10-19/*"), Some((10, None)));
        assert_eq!(parse_range("bytes */20"), None);
        assert_eq!(parse_range("items 1-2/3"), None);
    }
}
