//! The one place that sends requests and reads answers.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;

use super::{Client, ClientError};
use crate::Problem;
use crate::host::Version;

/// How long an answer may take, unless the call says otherwise.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

impl Client {
    /// Who answers.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.json(self.request(Method::GET, &["version"])?).await
    }

    /// A request for `/v1/SEGMENT/…`. It has a time limit; see [`Client::unlimited`].
    pub(super) fn request(
        &self,
        method: Method,
        segments: &[&str],
    ) -> Result<RequestBuilder, ClientError> {
        Ok(self.unlimited(method, segments)?.timeout(ANSWER_TIMEOUT))
    }

    /// A request whose answer may take as long as it likes.
    pub(super) fn unlimited(
        &self,
        method: Method,
        segments: &[&str],
    ) -> Result<RequestBuilder, ClientError> {
        Ok(self.http.request(method, self.url(segments)?))
    }

    fn url(&self, segments: &[&str]) -> Result<Url, ClientError> {
        let mut url = self.base.clone();
        // A URL would swallow these, and the request would go to another resource.
        if let Some(bad) = segments.iter().find(|s| matches!(**s, "" | "." | "..")) {
            return Err(ClientError::local(
                format!("'{bad}' is neither a name nor an id"),
                "write the name or the id of the resource",
            ));
        }
        url.path_segments_mut()
            .map_err(|()| ClientError::local("the server's URL cannot have a path", ""))?
            .pop_if_empty()
            .push("v1")
            .extend(segments);
        Ok(url)
    }

    /// Sends, and turns every refusal into an error.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|e| self.lost(&e))?;
        self.note_age(response.headers());
        let status = response.status();
        if status.is_success() || status.as_u16() == 101 {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|e| self.lost(&e))?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(ClientError::Problem(Box::new(problem))),
            Err(_) => Err(self.protocol(format!("{status}: {}", excerpt(&body)))),
        }
    }

    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, ClientError> {
        let body = self.bytes(request).await?;
        let text: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(text)
            .map_err(|e| self.protocol(format!("{e} in {}", excerpt(&body))))
    }

    pub(super) async fn bytes(&self, request: RequestBuilder) -> Result<Bytes, ClientError> {
        self.send(request).await?.bytes().await.map_err(|e| self.lost(&e))
    }

    pub(super) fn lost(&self, error: &reqwest::Error) -> ClientError {
        ClientError::transport(&self.endpoint, error)
    }

    pub(super) fn protocol(&self, detail: impl Into<String>) -> ClientError {
        ClientError::Protocol { endpoint: self.endpoint.clone(), detail: detail.into() }
    }
}

/// The beginning of a body, fit for a message.
fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.trim() {
        "" => "an empty body".to_owned(),
        line => format!("'{line}'"),
    }
}
