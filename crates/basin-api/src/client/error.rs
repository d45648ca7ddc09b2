//! What a call can end with other than an answer.

use std::error::Error;
use std::io::ErrorKind;

use crate::Problem;

/// Why a call failed: what happened, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No server answered, or it stopped in the middle.
    #[error("cannot reach the server at {endpoint}: {reason}")]
    Unreachable { endpoint: String, reason: String, advice: String },
    /// The server refused, and says why.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// What answered does not speak this API.
    #[error("the answer from {endpoint} is not Basin's: {detail}")]
    Protocol { endpoint: String, detail: String },
    /// Something on this side: a setting, a name, a file.
    #[error("{detail}")]
    Local { detail: String, advice: String },
}

impl ClientError {
    pub fn local(detail: impl Into<String>, advice: impl Into<String>) -> ClientError {
        ClientError::Local { detail: detail.into(), advice: advice.into() }
    }

    /// What to do about it; empty when there is nothing to say.
    pub fn advice(&self) -> &str {
        match self {
            ClientError::Unreachable { advice, .. } | ClientError::Local { advice, .. } => advice,
            ClientError::Problem(problem) => &problem.advice,
            ClientError::Protocol { .. } => {
                "check the address, and that client and server are of versions that fit"
            }
        }
    }

    /// The stable word of a refusal, such as `name-taken`.
    pub fn code(&self) -> Option<&str> {
        match self {
            ClientError::Problem(problem) => Some(&problem.code),
            _ => None,
        }
    }

    /// Whether a later attempt may succeed: the server is absent, or not ready yet.
    pub fn is_transient(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Problem(problem) => problem.status == 503,
            _ => false,
        }
    }

    /// From an error of the HTTP layer, before an answer was complete.
    pub(super) fn transport(endpoint: &str, error: &reqwest::Error) -> ClientError {
        let cause = Cause::of(error);
        let reason = if error.is_timeout() {
            "it did not answer in time".to_owned()
        } else if error.is_connect() {
            cause.text.clone()
        } else {
            format!("the connection was lost ({})", cause.text)
        };
        let advice = if cause.is_certificate {
            "trust the server's certificate authority with --ca FILE, \
             or address the server by a name in its certificate"
        } else if cause.io == Some(ErrorKind::PermissionDenied) {
            "the socket is for root: use sudo, or --url and --token"
        } else if error.is_timeout() {
            "see what the server is doing in its log"
        } else {
            "is `basin serve` running there? Name another server with --socket or --url"
        };
        ClientError::Unreachable { endpoint: endpoint.to_owned(), reason, advice: advice.into() }
    }
}

/// The innermost reason of an error, which is the one a person understands.
struct Cause {
    text: String,
    io: Option<ErrorKind>,
    is_certificate: bool,
}

impl Cause {
    fn of(error: &(dyn Error + 'static)) -> Cause {
        let mut cause = Cause { text: error.to_string(), io: None, is_certificate: false };
        let mut next = Some(error);
        while let Some(error) = next {
            cause.text = error.to_string();
            cause.is_certificate |=
                matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)));
            let io = error.downcast_ref::<std::io::Error>();
            cause.io = io.map(std::io::Error::kind).or(cause.io);
            // An io::Error hides the error it carries from `source`.
            next = match io.and_then(std::io::Error::get_ref) {
                Some(inner) => Some(inner as &(dyn Error + 'static)),
                None => error.source(),
            };
        }
        cause
    }
}
